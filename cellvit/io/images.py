"""Reading image files in the one form the package works on: RGB, 8 bits, ``(H, W, 3)``."""

import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.pixels import Rgb8 as Rgb8
from cellvit.io.pixels import Samples, clear_remarks, tiff_samples
from cellvit.io.pixels import to_rgb as to_rgb
from cellvit.io.remote import RemotePath, as_path
from cellvit.io.resolution import CONTRADICTION, StatedResolution, Statement, apart, settle
from cellvit.io.scenes import SceneName, choose_scene, tiff_scenes
from cellvit.io.tiff_metadata import is_tiff, open_tiff, tags_statement, tiff_resolution

if TYPE_CHECKING:  # the library is loaded when the first file is read
    from tifffile import TiffFile

MAX_PIXELS = 2**30
"""Largest image read whole (32,768 x 32,768 px, 3 GB as RGB)."""

_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 274, 282, 283, 296  # tags of EXIF and TIFF
_PILLOW_LOCK = threading.Lock()
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError, ArithmeticError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)
"""What the libraries raise for a file that is not what it seems; the error of tifffile is a ValueError."""


def read_image(path: str | Path, *, scene: SceneName | None = None) -> Rgb8:
    """Read an image file as 8-bit RGB.

    What kind of file it is is found by trying, not by its suffix: TIFF in all its forms (OME, tiled, 16-bit, the
    full-resolution level of a pyramid), then everything Pillow knows. Of several images in a TIFF the largest is
    read. EXIF orientation is applied, palettes and CMYK are converted, alpha is laid on white. Of 16 bits those are
    used that count; what the file does not say about them is judged by the largest value. Of an animation, the first
    frame is read. What is guessed or left out is a warning.

    Args:
        path: The file, or its address.
        scene: Number, from 0, or name of the image to read, where a TIFF holds several.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ImageError: If the file is missing, not an image, damaged, a stack of several images, not RGB or grey, or
            larger than ``MAX_PIXELS``; if it holds several images of full size and ``scene`` chooses none.
    """
    pixels, remarks = image_with_remarks(path, scene=scene)
    for text in remarks:
        warnings.warn(f"{str(path)!r}: {text}", stacklevel=2)
    return pixels


def image_with_remarks(path: str | Path, *, scene: SceneName | None = None) -> tuple[Rgb8, list[str]]:
    """Read an image file as :func:`read_image` does, and return the pixels and what is to be told about them.

    Args:
        path: The file.
        scene: Number, from 0, or name of the image to read, where a TIFF holds several.

    Returns:
        ``(H, W, 3)`` uint8, and one sentence per guess and per thing that is left out.

    Raises:
        ImageError: See :func:`read_image`.
    """
    path = as_path(path)
    require_file(path)
    tiff = is_tiff(path)
    readers = (_read_tiff, _read_pillow) if tiff else (_read_pillow,)
    first_error: Exception | None = None
    for reader in readers:
        try:
            return reader(path, scene)
        except SourceLostError:
            raise
        except ImageError as error:
            raise ImageError(f"{str(path)!r}: {error}") from error
        except UnidentifiedImageError as error:
            first_error = first_error or error
        except MemoryError as error:
            raise ImageError(f"{str(path)!r} does not fit into memory; cut it into smaller images") from error
        except DAMAGE as error:
            first_error = first_error or error
    if isinstance(first_error, UnidentifiedImageError):
        raise ImageError(
            f"{str(path)!r} is not an image this package can read; give a PNG, JPEG or TIFF"
        ) from first_error
    raise ImageError(
        f"{str(path)!r} is damaged or cut short ({one_line(first_error)}); copy or export it again"
    ) from first_error


def read_mpp(path: str | Path, *, scene: SceneName | None = None) -> float | None:
    """Return the resolution a file states, in micrometres per pixel, or None if it states none that can be used.

    Where the axes are a few per cent apart, it is their mean; further apart, one number does not say it, and it is
    None. :func:`read_resolution` returns both axes, where they stand, and why a statement cannot be used.

    Args:
        path: An image file.
        scene: Number or name of the image that is meant, see :func:`read_image`.
    """
    mpp = read_resolution(path, scene=scene).mpp
    if mpp is None or apart(mpp[:1], mpp[1:]) > CONTRADICTION:
        return None
    return round(sum(mpp) / 2, 6)


def read_resolution(path: str | Path, *, scene: SceneName | None = None) -> StatedResolution:
    """Return what a file states about its resolution, and a note for all that is wrong with the statement.

    Read are OME-XML, the descriptions of Aperio and ImageJ, the resolution tags of TIFF and EXIF, and the density of
    PNG, JPEG and what else Pillow knows. A value outside 0.01 to 20 micrometres (such as the 72 dots per inch many
    programs write) says nothing about a microscope. Axes are those of the picture as :func:`read_image` returns it.

    Args:
        path: An image file; one that is missing or damaged states nothing, nor does one of which no image is chosen.
        scene: Number or name of the image that is meant, see :func:`read_image`.
    """
    path = as_path(path)
    try:
        if is_tiff(path):
            with open_tiff(path) as tiff:
                return _scene_resolution(tiff, scene)
        with open_pillow(path) as image:
            return settle([s for s in (_density(image),) if s is not None])
    except SourceLostError:
        raise
    except DAMAGE:  # an ImageError is among them; whoever reads the pixels says what is wrong
        return StatedResolution()


def _scene_resolution(tiff: "TiffFile", scene: SceneName | None) -> StatedResolution:
    """Return what a TIFF states about the image that is meant, or about its first page where its images are unclear."""
    try:
        scenes = tiff_scenes(tiff)
    except DAMAGE:  # a description that tifffile refuses; Pillow reads such a file
        return tiff_resolution(tiff)
    chosen, _ = choose_scene(scenes, scene)
    return tiff_resolution(tiff, series=chosen.series, levels=chosen.levels)


def _density(image: Image.Image) -> Statement | None:
    """Return what the head of a PNG, a JPEG and the like says."""
    exif = image.getexif()
    if image.format in ("JPEG", "MPO") and not image.info.get(
        "jfif_unit"
    ):  # what Pillow says then may be a default of its own
        values = (exif.get(_X_RESOLUTION), exif.get(_Y_RESOLUTION))
        stated = tags_statement(values, exif.get(_RESOLUTION_UNIT, 2))
        place = "EXIF tags"
    else:
        x, y = image.info.get("dpi", (None, None))
        quote = "" if x is None else f"{x:.6g} x {y:.6g} pixels per inch"
        stated, place = tags_statement((x, y), 2), f"{image.format} head"
        stated = None if stated is None else replace(stated, quote=quote)
    if stated is None:
        return None
    turned = stated.mpp is not None and exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return replace(stated, place=place, mpp=stated.mpp[::-1] if turned and stated.mpp else stated.mpp)


def require_file(path: Path) -> None:
    """Refuse what is not a file with something in it.

    Args:
        path: The file.

    Raises:
        ImageError: If it is missing, a folder or empty.
    """
    if path.is_dir():
        raise ImageError(f"{str(path)!r} is a folder; name the images in it")
    if not path.exists():
        raise ImageError(f"{str(path)!r} does not exist; check the spelling")
    if path.stat().st_size == 0:
        raise ImageError(f"{str(path)!r} is an empty file; copy or export it again")


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:,.0f}"
        raise ImageError(
            f"{width} x {height} px is too large to read whole (limit {limit} million px); cut it up first"
        )


def open_pillow(path: Path) -> Image.Image:
    """Return an image of any size, not yet decoded.

    Args:
        path: The file.
    """
    # The limit of Pillow is a process-wide setting at 89 million pixels; ours is larger and checked by the caller.
    with _PILLOW_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path.open("rb") if isinstance(path, RemotePath) else path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read_pillow(path: Path, scene: SceneName | None) -> tuple[Rgb8, list[str]]:
    image: Image.Image = open_pillow(path)
    with image:
        if image.format == "TIFF":
            image.seek(_page_of(path, scene))
        elif scene is not None and str(scene) != "0":
            raise ImageError(
                f"it is a {image.format} and holds one image, no scene {scene!r}; leave out scene={scene!r}"
            )
        _require_size(*image.size)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
            return _told(_plain_depth(np.asarray(image)))
        if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
            return _told(np.asarray(image))
        transparent = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
        return _told(np.asarray(image.convert("RGBA" if transparent else "RGB")))


def _told(array: NDArray[Any]) -> tuple[Rgb8, list[str]]:
    """Return what Pillow has read as 8-bit RGB, and what is to be told about it."""
    if array.ndim == 2:
        samples, remarks = Samples(1, 1).judged(array)
        return samples.rgb(array), remarks
    return to_rgb(array), clear_remarks(array[..., -1]) if array.shape[2] in (2, 4) else []


def _page_of(path: Path, scene: SceneName | None) -> int:
    """Return which page of a TIFF holds the image that is meant; the first of a file that only Pillow understands."""
    try:
        with open_tiff(path) as tiff:
            index = choose_scene(tiff_scenes(tiff), scene)[0].levels[0].pages[0].index
    except ImageError:
        raise
    except DAMAGE:
        return 0
    if not isinstance(index, int):
        raise ImageError("its pixels are of an unusual kind and lie in a SubIFD; save the image as a file of its own")
    return index


def _plain_depth(array: NDArray[Any]) -> NDArray[Any]:
    """Return what Pillow holds in 32-bit integers as the 16-bit image it was."""
    if array.dtype.kind in "iu" and int(array.min()) >= 0 and int(array.max()) <= 65535:
        return array.astype(np.uint16)
    return array


def _read_tiff(path: Path, scene: SceneName | None) -> tuple[Rgb8, list[str]]:
    with open_tiff(path) as tiff:
        chosen, remarks = choose_scene(tiff_scenes(tiff), scene)
        series, page = chosen.levels[0], chosen.page
        _require_size(page.imagewidth, page.imagelength)
        if page.photometric not in (1, 2, 6):  # min-is-black, RGB, YCbCr; Pillow knows the rest
            raise RuntimeError(f"colour space {page.photometric!s}")
        array: NDArray[Any] = channels_last(series.asarray(), series.axes)
        if tuple(array.shape[:2]) != (page.imagelength, page.imagewidth):
            raise ImageError(f"its axes are {series.axes} {series.shape}; save one plane as RGB")
        samples, dropped = tiff_samples(tiff, page, 1 if array.ndim == 2 else array.shape[2])
        tag = page.tags.get("Orientation")
        array = _ORIENTATIONS[int(tag.value) if tag is not None else 1](array)
    samples, judged = samples.judged(array)
    return samples.rgb(array), [*remarks, *dropped, *judged]


def channels_last(array: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return a TIFF series as ``(H, W)`` or ``(H, W, C)``.

    Args:
        array: The series.
        axes: One letter per axis, as tifffile names them.

    Raises:
        ImageError: If it is a stack of several images.
    """
    for axis in [a for a, size in zip(axes, array.shape, strict=True) if a not in "YXS" and size == 1]:
        array, axes = array.squeeze(axes.index(axis)), axes.replace(axis, "", 1)
    planes = {a: size for a, size in zip(axes, array.shape, strict=True) if a not in "YXS"}
    if planes == {"C": 3} and "S" not in axes:
        axes, planes = axes.replace("C", "S"), {}
    if planes:
        count = int(np.prod(list(planes.values())))
        raise ImageError(f"it holds {count} planes (axes {axes}); save the one you want as an image of its own")
    return np.moveaxis(array, 0, -1) if axes == "SYX" else array


_ORIENTATIONS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def one_line(error: BaseException | None) -> str:
    """Return what an error says, on one line and not too long."""
    return " ".join(str(error).split())[:160] or type(error).__name__
