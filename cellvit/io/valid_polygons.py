"""Outlines as valid polygons: programs such as QuPath refuse files that hold a single invalid one."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.geometry.polygons import (
    Floats,
    Offsets,
    bbox_area,
    open_rings,
    ring_bounds,
    ring_lengths,
    ring_offsets,
    select_rings,
)
from cellvit.types import Nuclei

_MIN_SIDE = 1.0
"""Side in pixels of the square that stands for a nucleus without any extent."""


def valid_rings(nuclei: Nuclei) -> tuple[Floats, Offsets]:
    """Return one outline per nucleus that makes a valid polygon of positive area.

    Valid outlines come back point for point. Of an outline that crosses or touches itself the largest part is
    kept, without holes. Outlines that enclose nothing (fewer than three points, all points on a line) become the
    nucleus's bounding box, so that no nucleus disappears.

    Args:
        nuclei: The nuclei; coordinates must be finite.

    Returns:
        Points ``(P, 2)``, ``(x, y)``, of open rings, and offsets ``(N + 1,)``.
    """
    points, offsets = open_rings(nuclei.contour_points, nuclei.contour_offsets)
    long = np.flatnonzero(ring_lengths(offsets) >= 3)
    shapes = polygons_from_rings(*select_rings(points, offsets, long))
    valid = shapely.is_valid(shapes)
    kept = valid & (shapely.area(shapes) > 0)
    if kept.all() and len(long) == len(nuclei):
        return points, offsets
    rings: NDArray[Any] = np.full(len(nuclei), None, dtype=object)
    rings[long[kept]] = shapely.get_exterior_ring(shapes[kept])
    broken, repaired = _largest_parts(shapes[~valid])
    rings[long[~valid][broken]] = shapely.get_exterior_ring(repaired)
    missing = shapely.is_missing(rings)
    rings[missing] = shapely.get_exterior_ring(_boxes(nuclei.select(missing)))
    coordinates = shapely.get_coordinates(rings)
    lengths = shapely.get_num_points(rings)
    keep = np.ones(len(coordinates), bool)
    keep[np.cumsum(lengths) - 1] = False  # shapely's rings repeat their first point
    return coordinates[keep], ring_offsets(lengths - 1)


def polygons_from_rings(points: Floats, offsets: Offsets) -> NDArray[Any]:
    """Return outlines as shapely polygons.

    Args:
        points: ``(P, 2)``, open rings of at least three points each.
        offsets: ``(N + 1,)``.

    Returns:
        ``(N,)`` object array of polygons, valid or not.
    """
    if len(offsets) == 1:
        return np.zeros(0, dtype=object)
    owner = np.repeat(np.arange(len(offsets) - 1), ring_lengths(offsets))
    return np.asarray(shapely.polygons(shapely.linearrings(points[offsets[0] : offsets[-1]], indices=owner)))


def _largest_parts(shapes: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Repair polygons; return the rows that have a part with an area, and the largest part of each."""
    parts, owner = shapely.get_parts(shapely.make_valid(shapes), return_index=True)
    parts, nested = shapely.get_parts(parts, return_index=True)  # a collection may hold a multi-polygon
    owner = owner[nested]
    area = shapely.area(parts)
    order = np.lexsort((-area, owner))
    order = order[area[order] > 0]
    rows, first = np.unique(owner[order], return_index=True)
    return rows, parts[order[first]]


def _boxes(nuclei: Nuclei) -> NDArray[Any]:
    """Return a rectangle per nucleus: its box, else the box of its outline, else a pixel at its centroid."""
    boxes = nuclei.bbox.copy()
    flat = bbox_area(boxes) <= 0
    around = ring_bounds(nuclei.contour_points, nuclei.contour_offsets)
    half = np.array([-0.5, -0.5, 0.5, 0.5]) * _MIN_SIDE
    points_at = np.tile(nuclei.centroid, 2)
    boxes[flat] = np.where(np.isnan(around[flat]), points_at[flat], around[flat]) + half
    return np.asarray(shapely.box(*boxes.T))
