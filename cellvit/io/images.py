"""Reading image files and bringing arrays into the one form the package works on: RGB, 8 bits, ``(H, W, 3)``."""

import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cellvit.errors import ImageError
from cellvit.io.resolution import CONTRADICTION, StatedResolution, Statement, apart, settle
from cellvit.io.tiff_metadata import is_tiff, quiet_tifffile, tags_statement, tiff_resolution

MAX_PIXELS = 2**30
"""Largest image read whole (32,768 x 32,768 px, 3 GB as RGB)."""

Rgb8 = NDArray[np.uint8]

_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 274, 282, 283, 296  # tags of EXIF and TIFF
_PILLOW_LOCK = threading.Lock()
DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)
"""What the libraries raise for a file that is not what it seems; the error of tifffile is a ValueError."""


def to_rgb(image: ArrayLike) -> Rgb8:
    """Return an image as 8-bit RGB.

    Grey is repeated to three channels and alpha is laid on white. 8 bits stay as they are; 16 bits are divided by
    257 and rounded (65,535 becomes 255); floats are read as [0, 1].

    Args:
        image: ``(H, W)``, or ``(H, W, C)`` with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) channels;
            uint8, uint16, or float in [0, 1].

    Returns:
        ``(H, W, 3)`` uint8; the input itself if it has that form already.

    Raises:
        ImageError: If it is something else, has no pixels, or a float lies outside [0, 1].

    Example:
        >>> to_rgb(np.array([[0, 65535]], dtype=np.uint16)).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    if isinstance(image, str | Path):
        raise ImageError(f"{str(image)!r} is a path, not an array; open it with cellvit.io.images.read_image first")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        hint = "; move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"an array of shape {np.shape(image)} is not an image; give (H, W, 3) RGB or (H, W) grey{hint}"
        )
    if array.size == 0:
        raise ImageError(f"an image of shape {np.shape(image)} has no pixels; give 1 x 1 px or more")
    array = _eight_bits(array)
    if array.shape[2] in (2, 4):
        array = _on_white(array)
    return np.ascontiguousarray(array if array.shape[2] == 3 else array.repeat(3, axis=2))


def read_image(path: str | Path) -> Rgb8:
    """Read an image file as 8-bit RGB.

    What kind of file it is is found by trying, not by its suffix: TIFF in all its forms (OME, tiled, 16-bit, the
    full-resolution level of a pyramid), then everything Pillow knows. EXIF orientation is applied, palettes and CMYK
    are converted, alpha is laid on white, 16 bits are divided by 257. Of an animation, the first frame is read.

    Args:
        path: The file.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        ImageError: If the file is missing, not an image, damaged, a stack of several images, not RGB or grey, or
            larger than ``MAX_PIXELS``.
    """
    path = Path(path)
    require_file(path)
    tiff = is_tiff(path)
    readers = (_read_tiff, _read_pillow) if tiff else (_read_pillow,)
    first_error: Exception | None = None
    for reader in readers:
        try:
            return to_rgb(reader(path))
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


def read_mpp(path: str | Path) -> float | None:
    """Return the resolution a file states, in micrometres per pixel, or None if it states none that can be used.

    Where the axes are a few per cent apart, it is their mean; further apart, one number does not say it, and it is
    None. :func:`read_resolution` returns both axes, where they stand, and why a statement cannot be used.

    Args:
        path: An image file.
    """
    mpp = read_resolution(path).mpp
    if mpp is None or apart(mpp[:1], mpp[1:]) > CONTRADICTION:
        return None
    return round(sum(mpp) / 2, 6)


def read_resolution(path: str | Path) -> StatedResolution:
    """Return what a file states about its resolution, and a note for all that is wrong with the statement.

    Read are OME-XML, the descriptions of Aperio and ImageJ, the resolution tags of TIFF and EXIF, and the density of
    PNG, JPEG and what else Pillow knows. A value outside 0.01 to 20 micrometres (such as the 72 dots per inch many
    programs write) says nothing about a microscope. Axes are those of the picture as :func:`read_image` returns it.

    Args:
        path: An image file; one that is missing or damaged states nothing.
    """
    import tifffile

    try:
        if is_tiff(Path(path)):
            with quiet_tifffile(), tifffile.TiffFile(path) as tiff:
                return tiff_resolution(tiff)
        with open_pillow(Path(path)) as image:
            return settle([s for s in (_density(image),) if s is not None])
    except DAMAGE:  # an ImageError is among them; whoever reads the pixels says what is wrong
        return StatedResolution()


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


def _eight_bits(array: NDArray[Any]) -> Rgb8:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also refuses nan
            raise ImageError(
                f"a float image has values from {low:g} to {high:g}; scale it to [0, 1] or convert to uint8"
            )
        return np.rint(array * 255.0).astype(np.uint8)
    raise ImageError(
        f"an image of {array.dtype} values has no known range; convert it to uint8, uint16 or float in [0, 1]"
    )


def _on_white(array: Rgb8) -> Rgb8:
    alpha = array[..., -1:].astype(np.uint32)
    color = array[..., :-1].astype(np.uint32)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


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
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read_pillow(path: Path) -> NDArray[Any]:
    image: Image.Image = open_pillow(path)
    with image:
        _require_size(*image.size)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
            return _plain_depth(np.asarray(image))
        if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
            return np.asarray(image)
        transparent = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
        return np.asarray(image.convert("RGBA" if transparent else "RGB"))


def _plain_depth(array: NDArray[Any]) -> NDArray[Any]:
    """Return what Pillow holds in 32-bit integers as the 16-bit image it was."""
    if array.dtype.kind in "iu" and int(array.min()) >= 0 and int(array.max()) <= 65535:
        return array.astype(np.uint16)
    return array


def _read_tiff(path: Path) -> NDArray[Any]:
    import tifffile

    with quiet_tifffile(), tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        _require_size(page.imagewidth, page.imagelength)
        if page.photometric not in (1, 2, 6):  # min-is-black, RGB, YCbCr; Pillow knows the rest
            raise RuntimeError(f"colour space {page.photometric!s}")
        array: NDArray[Any] = channels_last(series.asarray(), series.axes)
        if tuple(array.shape[:2]) != (page.imagelength, page.imagewidth):
            raise ImageError(f"its axes are {series.axes} {series.shape}; save one plane as RGB")
        bits = page.bitspersample
        tag = page.tags.get("Orientation")
        array = _ORIENTATIONS[int(tag.value) if tag is not None else 1](array)
    if array.dtype.kind in "ub" and isinstance(bits, int) and bits not in (8, 16, 32, 64):
        array = np.rint(array * (255.0 / (2**bits - 1))).astype(np.uint8)
    return array


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
