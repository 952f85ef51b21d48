"""What a TIFF file says about its image: whether it is one, its resolution, the objective."""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvit.errors import ImageError

if TYPE_CHECKING:  # the library is loaded when the first file is read
    from tifffile import TiffFile

MIN_MPP, MAX_MPP = 0.01, 20.0
"""A resolution outside says nothing about a microscope, such as the 72 dots per inch that many programs write."""

# the sign for micro and the Greek letter are both in use
_MICRONS = {"\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_QUIET_LOCK = threading.Lock()
_quiet_users = 0


def is_tiff(path: Path) -> bool:
    """Tell whether a file begins like a TIFF.

    Args:
        path: The file.

    Raises:
        ImageError: If it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except OSError as error:
        raise ImageError(f"{str(path)!r} cannot be opened ({error.strerror}); check its permissions") from error


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Keep the remarks of tifffile about unusual files out of the user's terminal; its errors still raise."""
    global _quiet_users
    logger = logging.getLogger("tifffile")
    with _QUIET_LOCK:
        _quiet_users += 1
        logger.disabled = True
    try:
        yield
    finally:
        with _QUIET_LOCK:
            _quiet_users -= 1
            logger.disabled = _quiet_users > 0


def plausible_mpp(stated: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return a stated resolution if a microscope can have it, else None.

    Args:
        stated: ``(x, y)`` micrometres per pixel, or None.

    Example:
        >>> plausible_mpp((0.25, 0.25)), plausible_mpp((352.8, 352.8))
        ((0.25, 0.25), None)
    """
    if stated is None or not all(MIN_MPP <= value <= MAX_MPP for value in stated):
        return None
    return stated


def stated_mpp(tiff: "TiffFile") -> tuple[float, float] | None:
    """Return the resolution ``(x, y)`` that OME-XML, the Aperio description or TIFF tags state, plausible or not.

    Args:
        tiff: An open file.
    """
    if tiff.is_ome and tiff.ome_metadata:
        pixels = _first(_ome(tiff)["Image"])["Pixels"]
        if "PhysicalSizeX" in pixels and "PhysicalSizeY" in pixels:
            x = float(pixels["PhysicalSizeX"]) * _MICRONS[pixels.get("PhysicalSizeXUnit", "um")]
            return x, float(pixels["PhysicalSizeY"]) * _MICRONS[pixels.get("PhysicalSizeYUnit", "um")]
        return None
    page = tiff.series[0].keyframe
    if tiff.is_svs:
        stated = _aperio(tiff).get("MPP")
        return None if stated is None else (float(stated), float(stated))
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    x_tag, y_tag = page.tags.valueof("XResolution"), page.tags.valueof("YResolution")
    if unit is None or not x_tag or not y_tag or not (x_tag[0] and y_tag[0]):
        return None
    return unit * x_tag[1] / x_tag[0], unit * y_tag[1] / y_tag[0]


def stated_magnification(tiff: "TiffFile") -> float | None:
    """Return the power of the objective that OME-XML or the Aperio description state, or None.

    Args:
        tiff: An open file.
    """
    stated: Any = None
    if tiff.is_ome and tiff.ome_metadata:
        objectives = _first(_ome(tiff).get("Instrument", {})).get("Objective", {})
        stated = None if isinstance(objectives, list) else objectives.get("NominalMagnification")
    elif tiff.is_svs:
        stated = _aperio(tiff).get("AppMag")
    return positive(stated)


def positive(text: Any) -> float | None:
    """Return a number above zero, or None for anything else.

    Args:
        text: What a file states, or None.

    Example:
        >>> positive("40"), positive("unknown"), positive(None)
        (40.0, None, None)
    """
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _aperio(tiff: "TiffFile") -> dict[str, Any]:
    from tifffile.tifffile import svs_description_metadata

    return svs_description_metadata(tiff.series[0].keyframe.description)


def _ome(tiff: "TiffFile") -> dict[str, Any]:
    from tifffile import xml2dict

    ome: dict[str, Any] = xml2dict(tiff.ome_metadata or "")["OME"]
    return ome


def _first(item: Any) -> dict[str, Any]:
    first: dict[str, Any] = item[0] if isinstance(item, list) else item
    return first
