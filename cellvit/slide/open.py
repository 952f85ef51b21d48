"""Opening a whole slide, or any image as one, whatever its format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import tifffile
from PIL import UnidentifiedImageError

from cellvit.errors import ImageError
from cellvit.io.images import DAMAGE, Rgb8, open_pillow, require_file
from cellvit.io.tiff_metadata import is_tiff, quiet_tifffile
from cellvit.slide.naming import SLIDE_SUFFIXES
from cellvit.slide.readers.base import OtherReaderError, SlideReader
from cellvit.slide.readers.image import ImageSlide
from cellvit.slide.readers.openslide import OpenSlideReader, scanner_format
from cellvit.slide.readers.tiff import TiffSlide

_SCANNER_SUFFIXES = (SLIDE_SUFFIXES | {".dcm"}) - {".btf", ".tf8"}
_LARGE = 2**26
_GENERIC = "generic-tiff"


class Slide(Protocol):
    """A slide that is open. Coordinates are ``(x, y)``; level-0 pixels are those of full resolution."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def reader(self) -> str:
        """What reads it: "openslide", "tiff" or "pillow"."""

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


def open_slide(path: str | Path) -> Slide:
    """Open a whole slide, or any image as a slide of one level.

    What kind of file it is is found by trying, not by its suffix: the formats of scanners with OpenSlide, then TIFF,
    then everything that can be read whole. What OpenSlide calls a generic TIFF is left to the reader of TIFF, which
    sees the levels and the resolution of an OME-TIFF and whether a file is a stack.

    Args:
        path: The file; for formats of several files, the one that OpenSlide names.

    Raises:
        ImageError: If the file is missing, empty, damaged, a stack, or of no known format.
    """
    path = Path(path)
    require_file(path)
    knows: dict[str, tuple[bool, Callable[[Path], SlideReader]]] = {
        "OpenSlide": (scanner_format(path) not in (None, _GENERIC), OpenSlideReader),
        "TIFF": (is_tiff(path), TiffSlide),
    }
    reasons = []
    for name, (known, reader) in knows.items():
        try:
            if known:
                return reader(path)
        except OtherReaderError as error:
            reasons.append(f"{name}: {error}")
        except ImageError as error:
            raise ImageError(_naming(path, error)) from error
    try:
        return ImageSlide(path)
    except ImageError as error:
        said = f" ({'; '.join(reasons)})" if reasons else ""
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise ImageError(
                f"{str(path)!r} is not a slide or an image that OpenSlide, tifffile or Pillow can read{said}; copy or "
                "export it again, or convert it to a tiled, pyramidal TIFF"
            ) from error
        raise ImageError(f"{error}{said}") from error


def is_slide(path: str | Path) -> bool:
    """Tell whether a file is a whole slide rather than an ordinary image.

    Slides are the formats of scanners, pyramids, tiled TIFFs, and images of more than 67 million pixels. A file with
    a scanner's suffix that cannot be read counts too, so that opening it says why. Nothing is decoded.

    Args:
        path: A file; what is missing or a folder is no slide.
    """
    path = Path(path)
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() in _SCANNER_SUFFIXES or scanner_format(path) not in (None, _GENERIC):
            return True
        return _is_large_tiff(path) if is_tiff(path) else _pixels(path) > _LARGE
    except DAMAGE:
        return False


def _is_large_tiff(path: Path) -> bool:
    with quiet_tifffile(), tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        reduced = any(other.keyframe.is_reduced for other in tiff.series[1:])
        pixels = page.imagewidth * page.imagelength
        return bool(page.is_tiled or len(series.levels) > 1 or reduced or pixels > _LARGE)


def _pixels(path: Path) -> int:
    with open_pillow(path) as image:
        return image.width * image.height


def _naming(path: Path, error: ImageError) -> str:
    text = str(error)
    return text if repr(str(path)) in text else f"{str(path)!r}: {text}"
