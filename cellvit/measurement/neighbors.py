"""Where the neighbours of nuclei are: distances, counts, and the Delaunay triangulation of the centres."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import NucleiClasses, type_label
from cellvit.measurement.base import Columns
from cellvit.measurement.pixels import USUAL_MPP, Floats
from cellvit.types import Nuclei

RADII_UM = (25.0, 50.0)
"""Microns within which neighbours are counted."""

_AT_ONCE = 65_536


def neighbor_columns(classes: NucleiClasses | None, *, unit: str = "um") -> tuple[str, ...]:
    """Return the names of what :func:`measure_neighbors` measures, in order.

    Args:
        classes: Names of the types; None leaves out what is measured by type.
        unit: ``"um"`` or ``"px"``.
    """
    return (*_names(_radii(unit), unit), *(name for _, name in _by_type(classes, unit)))


def measure_neighbors(
    centroid: Floats,
    type: NDArray[np.int32],
    *,
    classes: NucleiClasses | None = None,
    mpp: tuple[float, float] | None = None,
) -> Columns:
    """Measure the neighbourhood of every nucleus, all distances from centre to centre.

    Memory is some 150 bytes per nucleus while it runs, and what :class:`scipy.spatial.Delaunay` takes: about 1 kB.

    Args:
        centroid: ``(N, 2)`` pixels; a nucleus whose centre is not finite is nobody's neighbour and has none.
        type: ``(N,)`` class ids.
        classes: Names of the types; None leaves out what is measured by type.
        mpp: ``(x, y)`` microns per pixel; None where not known: lengths are pixels then, and radii those of 0.25 µm.

    Returns:
        ``(N,)`` float32 by name: ``nearest_um`` to the nearest other nucleus, ``neighbors_25um`` and
        ``neighbors_50um`` how many others are that near, ``delaunay_neighbors`` how many others share an edge of the
        Delaunay triangulation, and ``nearest_TYPE_um`` to the nearest other nucleus of each type. NaN where there is no
        other, and where there is no triangulation: fewer than three places, or all on a line. Nuclei at the same place
        share their edges.

    Example:
        >>> found = measure_neighbors(np.array([[0.0, 0], [30, 0], [0, 40]]), np.array([1, 1, 1]), mpp=(1, 1))
        >>> {name: values.tolist() for name, values in found.items()}
        {'nearest_um': [30.0, 30.0, 40.0], 'neighbors_25um': [0.0, 0.0, 0.0], 'neighbors_50um': [2.0, 2.0, 2.0], \
'delaunay_neighbors': [2.0, 2.0, 2.0]}
    """
    unit = "px" if mpp is None else "um"
    known = np.flatnonzero(np.isfinite(centroid).all(axis=1))
    points = centroid[known] * ((1.0, 1.0) if mpp is None else mpp)
    radii = _radii(unit)
    found = [_nearest(points, points, np.ones(len(points), bool)), *_counts(points, radii), _delaunay_degree(points)]
    columns = {name: np.full(len(centroid), np.nan, np.float32) for name in _names(radii, unit)}
    for column, values in zip(columns.values(), found, strict=True):
        column[known] = values
    return columns | nearest_of_types(centroid, type, classes=classes, mpp=mpp)


def nearest_of_types(
    centroid: Floats, type: NDArray[np.int32], *, classes: NucleiClasses | None, mpp: tuple[float, float] | None
) -> Columns:
    """Measure the distance to the nearest other nucleus of each type: what :func:`measure_neighbors` says by type.

    Args:
        centroid: ``(N, 2)`` pixels.
        type: ``(N,)`` class ids.
        classes: Names of the types.
        mpp: ``(x, y)`` microns per pixel; None where not known.
    """
    known = np.flatnonzero(np.isfinite(centroid).all(axis=1))
    points, kind = centroid[known] * ((1.0, 1.0) if mpp is None else mpp), type[known]
    columns: Columns = {}
    for code, name in _by_type(classes, "px" if mpp is None else "um"):
        columns[name] = np.full(len(centroid), np.nan, np.float32)
        columns[name][known] = _nearest(points, points[kind == code], kind == code)
    return columns


def with_neighbors(nuclei: Nuclei, *, mpp: tuple[float, float] | None = None) -> Nuclei:
    """Return nuclei with :func:`measure_neighbors` of them among their measurements.

    Args:
        nuclei: All nuclei of an image or slide.
        mpp: ``(x, y)`` microns per pixel; None where not known.
    """
    found = measure_neighbors(nuclei.centroid, nuclei.type, classes=nuclei.classes, mpp=mpp)
    return replace(nuclei, measurements={**nuclei.measurements, **found})


def _radii(unit: str) -> tuple[float, ...]:
    return RADII_UM if unit == "um" else tuple(radius / USUAL_MPP for radius in RADII_UM)


def _names(radii: Sequence[float], unit: str) -> Iterator[str]:
    yield f"nearest_{unit}"
    yield from (f"neighbors_{radius:g}{unit}" for radius in radii)
    yield "delaunay_neighbors"


def _by_type(classes: NucleiClasses | None, unit: str) -> list[tuple[int, str]]:
    """Return the id of every type and the name of the column of the nearest one."""
    found: dict[str, int] = {}
    for code in range(1, len(classes or ())):
        word = re.sub(r"\W+", "_", type_label(classes, code).lower()).strip("_") or "type"
        while f"nearest_{word}_{unit}" in found:
            word = f"{word}_{code}"
        found[f"nearest_{word}_{unit}"] = code
    return [(code, name) for name, code in found.items()]


def _nearest(points: Floats, others: Floats, is_one: NDArray[np.bool_]) -> Floats:
    """Return the distance of every point to the nearest of others; of one that is itself among them to the second."""
    if not len(others):
        return np.full(len(points), np.nan)
    from scipy.spatial import KDTree  # here, for processes that only write files import this module too

    away = KDTree(others).query(points, k=[1, 2], workers=-1)[0]
    away = np.where(is_one, away[:, 1], away[:, 0])
    return np.where(np.isfinite(away), away, np.nan)


def _counts(points: Floats, radii: Sequence[float]) -> Iterator[Floats]:
    """Yield for each radius how many others are within it of every point."""
    from scipy.spatial import KDTree

    tree = KDTree(points) if len(points) else None
    for radius in radii:
        count = np.zeros(len(points))
        for start in range(0, len(points), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            assert tree is not None
            count[part] = tree.query_ball_point(points[part], radius, return_length=True) - 1
        yield count


def _delaunay_degree(points: Floats) -> Floats:
    """Return the number of edges of every point in the Delaunay triangulation."""
    places, back = np.unique(points, axis=0, return_inverse=True)
    if len(places) < 3:
        return np.full(len(points), np.nan)
    from scipy.spatial import Delaunay, QhullError

    try:
        offsets = Delaunay(places - places.mean(axis=0)).vertex_neighbor_vertices[0]
    except QhullError:  # all on a line
        return np.full(len(points), np.nan)
    degree: Floats = np.diff(offsets).astype(np.float64)[back.reshape(-1)]
    return degree
