"""Outlines of other tools: JSON of HoVer-Net and of LabelMe, and regions of ImageJ."""

import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, DataError
from cellvit.io.images import DAMAGE
from cellvit.io.limits import MALFORMED, brief, zip_entries
from cellvit.io.loaded import LoadedNuclei, Ring, from_rings, points_of

OUTLINES = ("polygon", "freehand", "traced", "rect", "oval")
"""Kinds of regions of ImageJ that enclose something."""

_CIRCLE_POINTS = 64
_SHOWN = 20  # characters of a value of a file that a note quotes
_LEVEL = "files state the magnification {mag}, which was not used: coordinates were taken as pixels of the image"
_GROUPS = "shapes are parts of groups; each was taken as a nucleus of its own"


def is_hovernet(data: Any) -> bool:
    """Return whether plain data are those of HoVer-Net."""
    return isinstance(data, Mapping) and isinstance(data.get("nuc"), Mapping)


def nuclei_of_hovernet(data: Any, path: Path) -> LoadedNuclei:
    """Return the nuclei of JSON of HoVer-Net.

    Args:
        data: Plain data with ``nuc``: by label, each with ``contour`` and perhaps ``type``, a number.
        path: The file; named in errors.

    Raises:
        DataError: If the data are not of this layout.
    """
    counts: Counter[str] = Counter()
    if data.get("mag") is not None:
        counts[_LEVEL.format(mag=str(data["mag"])[:_SHOWN])] += 1
    try:
        nuclei = list(data["nuc"].values())
        rings = [points_of(one["contour"]) for one in nuclei]
        kinds = [None if one.get("type") is None else int(one["type"]) for one in nuclei]
    except MALFORMED as error:
        message = f"'{path}' is not in the layout of HoVer-Net ({brief(error)}); "
        raise DataError(message + "a nucleus needs a contour [[x, y], ...] and perhaps a type") from error
    if not rings:
        counts.clear()
    return from_rings(path, rings, kinds, skipped=counts)


def is_labelme(data: Any) -> bool:
    """Return whether plain data are those of LabelMe."""
    return isinstance(data, Mapping) and isinstance(data.get("shapes"), list)


def nuclei_of_labelme(data: Any, path: Path) -> LoadedNuclei:
    """Return the nuclei of JSON of LabelMe: polygons, rectangles and circles; their labels are types.

    Args:
        data: Plain data with ``shapes``.
        path: The file; named in errors.

    Raises:
        DataError: If the data are not of this layout, or hold shapes but no outline.
    """
    counts: Counter[str] = Counter()
    rings: list[Ring] = []
    kinds: list[str | int | None] = []
    try:
        for shape in data["shapes"]:
            kind = str(shape.get("shape_type") or "polygon")
            ring = labelme_ring(kind, points_of(shape["points"]))
            if ring is None:
                counts[f"shapes of the kind {kind[:_SHOWN]!r} are no outlines and were left out"] += 1
                continue
            counts[_GROUPS] += shape.get("group_id") is not None
            rings.append(ring)
            kinds.append(str(shape["label"]).strip() or None if shape.get("label") is not None else None)
    except MALFORMED as error:
        message = f"'{path}' is not in the layout of LabelMe ({brief(error)}); "
        raise DataError(message + "a shape needs a label, points [[x, y], ...] and a shape_type") from error
    return from_rings(path, rings, kinds, skipped=counts)


def labelme_ring(kind: str, points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the outline ``(K, 2)`` of a shape of LabelMe, or None if it has none.

    Args:
        kind: Its ``shape_type``.
        points: ``(K, 2)``.
    """
    if kind == "polygon":
        return points
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if kind == "rectangle" and len(points) == 4:
        return points
    if kind == "circle" and len(points) == 2:
        angle = np.linspace(0, 2 * np.pi, _CIRCLE_POINTS, endpoint=False)
        radius = np.linalg.norm(points[1] - points[0])
        return np.asarray(points[0] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return None


def read_imagej(path: Path) -> LoadedNuclei:
    """Read regions of ImageJ; their groups, if they have some, are type numbers.

    Args:
        path: A ``.zip`` of regions, or one region ``.roi``. Polygons, freehand and traced outlines, rectangles and
            ovals are read. Of a region of several parts the largest counts.

    Raises:
        ConfigError: If the package roifile is not installed.
        DataError: If the file cannot be read, or holds regions but no outline.
    """
    regions, counts = imagej_regions(path), Counter[str]()
    rings: list[Ring] = []
    kinds: list[str | int | None] = []
    try:
        for roi in regions:
            kind = roi.roitype.name.lower()
            if kind not in OUTLINES:
                counts[f"regions of the kind {kind!r} are no outlines and were left out"] += 1
                continue
            parts = [np.asarray(part, np.float64) for part in roi.coordinates(multi=True)]
            counts["smaller parts of regions in several parts were left out"] += len(parts) - 1
            rings.append(max(parts, key=_area))
            kinds.append(int(roi.group) or None)
    except DAMAGE as error:
        raise DataError(f"'{path}' cannot be read as regions of ImageJ ({error}); save them again") from error
    return from_rings(path, rings, kinds, skipped=counts, corners=True)


def imagej_regions(path: Path) -> list[Any]:
    """Return the regions of ImageJ in a file, as the package roifile has them.

    Args:
        path: A ``.zip`` of regions, or one region ``.roi``.

    Raises:
        ConfigError: If the package roifile is not installed.
        DataError: If the file cannot be read.
    """
    try:
        import roifile
    except ImportError as error:
        message = f"'{path}' holds regions of ImageJ; to read them, install roifile: pip install roifile, "
        raise ConfigError(message + "or save the regions as a label image") from error
    try:
        entries = zip_entries(path) if zipfile.is_zipfile(path) else iter([(".roi", path.read_bytes())])
        return [roifile.ImagejRoi.frombytes(data) for name, data in entries if name.lower().endswith(".roi")]
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"'{path}' cannot be read as regions of ImageJ ({error}); save them again") from error


def _area(ring: NDArray[np.float64]) -> float:
    """Return the area of a ring, by the shoelace formula."""
    x, y = ring.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
