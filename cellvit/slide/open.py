"""Opening a whole slide, or any image as one, whatever its format."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from PIL import UnidentifiedImageError

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.images import DAMAGE, Rgb8, require_file
from cellvit.io.remote import RemotePath, as_path
from cellvit.io.scenes import SceneName
from cellvit.slide.naming import SCANNER_SUFFIXES
from cellvit.slide.readers.base import OtherReaderError, SlideReader, is_slide_folder, readers_for

_SCANNER_SUFFIXES = SCANNER_SUFFIXES | {".dcm"}


class Slide(Protocol):
    """A slide that is open. Coordinates are ``(x, y)``; level-0 pixels are those of full resolution."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def reader(self) -> str:
        """What reads it, such as "openslide", "tiff" or "pillow"."""

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """``(width, height)`` per level, full resolution first."""

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """``(x, y, width, height)`` of the scanned part in level-0 pixels; the whole slide where none is stated."""

    @property
    def stated_mpp(self) -> tuple[float, float] | None:
        """``(x, y)`` micrometres per pixel as stated by the file; None where not stated, or not plausible."""

    @property
    def stated_magnification(self) -> float | None:
        """Power of the objective as stated by the file."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What the file says about itself, for the record."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know about the pixels; each is a sentence."""

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return a part of a level ``(height, width, 3)``, in pixels of that level; white outside. Thread-safe."""

    def close(self) -> None:
        """Close the file; closing twice does nothing more."""

    def __enter__(self) -> Self:
        """Return the slide."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""


def open_slide(path: str | Path, *, scene: SceneName | None = None) -> Slide:
    """Open a whole slide, or any image as a slide of one level.

    What kind of file it is is found by asking the readers in :data:`cellvit.slide.readers.base.READERS`, not by its
    suffix, highest priority first: those of other packages, the formats of scanners with OpenSlide, TIFF, and
    everything that can be read whole. Of several images in a TIFF the largest is read; which was guessed, and what
    else was, is in ``warnings`` of the slide. At an address only TIFF, OME-Zarr and images are read.

    Args:
        path: The file, or its address, such as ``https://host/a.ome.tif``; for formats of several files, the one that
            OpenSlide names; of a slide in DICOM, any of its files, or their folder; of an OME-Zarr, its folder.
        scene: Number, from 0, or name of the image to read, where a file holds several.

    Raises:
        ImageError: If the file is missing, empty, damaged, a stack, or of no known format; if it holds several images
            of full size and ``scene`` chooses none, or one that is not there.
    """
    path = as_path(path)
    if not is_slide_folder(path):
        path = _dicom_file(path)
        require_file(path)
    refused: list[tuple[str, OtherReaderError]] = []
    for reader in readers_for(path):
        try:
            if reader.accepts(path):
                return _opened(reader, path, scene)
        except OtherReaderError as error:
            refused.append((reader.reader, error))
        except SourceLostError:
            raise
        except ImageError as error:
            raise ImageError(_naming(path, error)) from error
    *others, (_, last) = refused  # the reader of images takes everything
    said = f" ({'; '.join(f'{name}: {error}' for name, error in others)})" if others else ""
    if isinstance(last.__cause__, UnidentifiedImageError) and isinstance(path, RemotePath):
        raise ImageError(
            f"{str(path)!r} is not a slide or an image that is read at an address, as TIFF, OME-Zarr, PNG and JPEG "
            f"are{said}; copy the file here, or convert it to a tiled, pyramidal TIFF or to OME-Zarr"
        ) from last
    if isinstance(last.__cause__, UnidentifiedImageError):
        raise ImageError(
            f"{str(path)!r} is not a slide or an image that OpenSlide, tifffile or Pillow can read{said}; copy or "
            "export it again, or convert it to a tiled, pyramidal TIFF"
        ) from last
    raise ImageError(f"{_naming(path, last)}{said}") from last


def _dicom_file(path: Path) -> Path:
    """Return the file that names the slide in DICOM whose files a folder holds; any other path as it is."""
    if not path.is_dir() or find_spec("pydicom") is None:
        return path
    from cellvit.io.dicom import slide_file

    return slide_file(path) or path


def _opened(reader: type[SlideReader], path: Path, scene: SceneName | None) -> SlideReader:
    if scene is None:
        return cast("Callable[[Path], SlideReader]", reader)(path)
    if not reader.scenes:
        raise OtherReaderError(f"it reads one image only, not scene {scene!r}")
    return cast("Callable[..., SlideReader]", reader)(path, scene=scene)


def is_slide(path: str | Path) -> bool:
    """Tell whether a file is a whole slide rather than an ordinary image.

    Slides are the formats of scanners, pyramids, tiled TIFFs, what a reader of another package takes, and images of
    more than 67 million pixels. A file with a scanner's suffix that cannot be read counts too, so that opening it says
    why. Nothing is decoded.

    Args:
        path: A file, or a folder that is one slide; what is missing is no slide.
    """
    path = as_path(path)
    try:
        if not path.is_file():
            return is_slide_folder(path) or _dicom_file(path) != path
        if path.suffix.lower() in _SCANNER_SUFFIXES:
            return True
        return next(reader.is_slide(path) for reader in readers_for(path) if reader.accepts(path))
    except DAMAGE:
        return False


def _naming(path: Path, error: ImageError) -> str:
    text = str(error)
    return text if repr(str(path)) in text else f"{str(path)!r}: {text}"
