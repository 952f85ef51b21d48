"""Checks of the readers of slides: each really opens a small file that is written for it."""

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellvit.doctor.finding import Finding, first_line

if TYPE_CHECKING:
    from cellvit.slide.readers.base import SlideReader

SECTION = "slides"
_SIDE = 320
_CLOSE = 12.0  # mean grey levels by which compression with loss may change the drawing


def check_readers() -> Iterator[Finding]:
    """Yield one finding for each reader and each codec that scanners use."""
    picture = _drawing()
    with tempfile.TemporaryDirectory(prefix="cellvit-doctor-") as folder:
        checks = [("OpenSlide", _openslide), ("tifffile", _tifffile), ("Pillow", _pillow)]
        if find_spec("pylibCZIrw") is not None:  # of an extra, which another check tells about
            checks.append(("pylibCZIrw", _czi))
        for name, check in checks:
            yield _checked(name, lambda check=check: check(Path(folder), picture))  # type: ignore[misc]
    for name in ("JPEG", "JPEG 2000", "LZW", "Deflate"):
        yield _checked(f"{name} codec", lambda name=name: _codec(name, picture), codec=True)  # type: ignore[misc]


def _checked(name: str, check: Callable[[], str], *, codec: bool = False) -> Finding:
    try:
        return Finding(SECTION, name, "ok", check())
    except Exception as error:  # compiled libraries raise errors of their own
        packages = "imagecodecs" if codec else "openslide-python openslide-bin tifffile imagecodecs pillow"
        packages = name if name == "pylibCZIrw" else packages
        advice = f"pip install --upgrade --force-reinstall {packages}"
        return Finding(SECTION, name, "problem", first_line(error), advice)


def _openslide(folder: Path, picture: NDArray[np.uint8]) -> str:
    import openslide

    from cellvit.slide.readers.openslide import OpenSlideReader

    path = _write_tiff(folder / "openslide.tif", picture, "jpeg")
    _compare(OpenSlideReader, path, picture)
    return f"library {openslide.__library_version__}, reads a tiled TIFF"


def _tifffile(folder: Path, picture: NDArray[np.uint8]) -> str:
    from cellvit.slide.readers.tiff import TiffSlide

    for compression in ("jpeg", "jpeg2000", "deflate"):
        path = _write_tiff(folder / f"{compression}.tif", picture, compression)
        _compare(TiffSlide, path, picture)
    return "reads tiled TIFF with JPEG, JPEG 2000 and Deflate"


def _pillow(folder: Path, picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    from cellvit.slide.readers.image import ImageSlide

    for suffix in ("png", "jpg"):
        path = folder / f"picture.{suffix}"
        Image.fromarray(picture).save(path)
        _compare(ImageSlide, path, picture)
    return "reads PNG and JPEG"


def _czi(folder: Path, picture: NDArray[np.uint8]) -> str:
    from pylibCZIrw import czi

    from cellvit.slide.readers.czi import CziSlide

    path = folder / "picture.czi"
    with czi.create_czi(str(path), compression_options="zstd1:ExplicitLevel=1") as file:
        file.write(np.ascontiguousarray(picture[..., ::-1]))  # it writes samples as they come, and blue is first
    _compare(CziSlide, path, picture)
    return "reads CZI"


def _codec(name: str, picture: NDArray[np.uint8]) -> str:
    import imagecodecs

    codecs: dict[str, tuple[Any, Any]] = {
        "JPEG": (imagecodecs.jpeg8_encode, imagecodecs.jpeg8_decode),
        "JPEG 2000": (imagecodecs.jpeg2k_encode, imagecodecs.jpeg2k_decode),
        "LZW": (imagecodecs.lzw_encode, imagecodecs.lzw_decode),
        "Deflate": (imagecodecs.zlib_encode, imagecodecs.zlib_decode),
    }
    encode, decode = codecs[name]
    found = decode(encode(picture))
    decoded = np.frombuffer(found, np.uint8).reshape(picture.shape) if isinstance(found, bytes) else found
    _require_same(np.asarray(decoded), picture)
    return "encodes and decodes"


def _drawing() -> NDArray[np.uint8]:
    """Return a smooth picture, of which compression keeps nearly everything."""
    row, column = np.mgrid[:_SIDE, :_SIDE]
    red, green = 255 * row / _SIDE, 255 * column / _SIDE
    return np.stack([red, green, 255 - red], axis=2).astype(np.uint8)


def _write_tiff(path: Path, picture: NDArray[np.uint8], compression: str) -> Path:
    import tifffile

    tifffile.imwrite(path, picture, tile=(128, 128), photometric="rgb", compression=compression, metadata=None)
    return path


def _compare(reader: "Callable[[Path], SlideReader]", path: Path, picture: NDArray[np.uint8]) -> None:
    with reader(path) as slide:
        found = slide.read_region(100, 60, 150, 200)  # crosses borders of tiles
    _require_same(found, picture[60:260, 100:250])


def _require_same(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> None:
    if found.shape != wanted.shape:
        raise ValueError(f"returned {found.shape} pixels instead of {wanted.shape}")
    difference = float(np.abs(found.astype(np.int16) - wanted).mean())
    if difference > _CLOSE:
        raise ValueError(f"returned other pixels than were written, {difference:.0f} grey levels off")
