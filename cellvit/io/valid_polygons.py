"""Outlines as valid polygons: programs such as QuPath refuse files that hold a single invalid one."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.geometry.outlines import flags_per_ring
from cellvit.geometry.polygons import (
    Floats,
    Offsets,
    bbox_area,
    close_rings,
    next_in_ring,
    open_rings,
    polygon_area,
    polygon_centroid,
    ring_bounds,
    ring_lengths,
    ring_offsets,
    select_rings,
)
from cellvit.types import Nuclei

_MOST_CHANGED = 0.1
"""Share of its area that an outline may gain or lose by being simplified, before it is scaled."""

_TOGETHER = 4096
"""Outlines that are proven valid at the same time."""

_LARGEST_BOX = 1 << 14
"""Corners of pixels in the box of an outline that is: together they take 64 MB at most."""

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
    simple = _along_pixels(points, offsets)
    if simple.all():
        return points, offsets
    long = np.flatnonzero(~simple & (ring_lengths(offsets) >= 3))
    shapes = polygons_from_rings(*select_rings(points, offsets, long))
    valid = shapely.is_valid(shapes)
    kept = valid & (shapely.area(shapes) > 0)
    if kept.all() and len(long) + simple.sum() == len(nuclei):
        return points, offsets
    rings: NDArray[Any] = np.full(len(nuclei), None, dtype=object)
    rings[simple] = shapely.get_exterior_ring(polygons_from_rings(*select_rings(points, offsets, simple)))
    rings[long[kept]] = shapely.get_exterior_ring(shapes[kept])
    broken, repaired = _largest_parts(shapes[~valid])
    rings[long[~valid][broken]] = shapely.get_exterior_ring(repaired)
    missing = shapely.is_missing(rings)
    rings[missing] = shapely.get_exterior_ring(_boxes(nuclei.select(missing)))
    return open_rings(*_rings_of(rings))  # shapely's rings repeat their first point


def _along_pixels(points: Floats, offsets: Offsets) -> NDArray[np.bool_]:
    """Return which rings are proven to make valid polygons, in a fraction of the time that a check takes.

    A ring that follows the edges of pixels passes corners of pixels. It is simple, and encloses something, if it passes
    as many different ones as it has edges. Nothing is said of other rings, and of those larger than most nuclei.
    """
    proven = np.zeros(len(offsets) - 1, np.bool_)
    for first in range(0, len(proven), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        some = offsets[first : first + _TOGETHER + 1]
        piece, some = points[some[0] : some[-1]], some - some[0]
        straight = _is_rectilinear(piece, some)
        if not straight.all():
            piece, some = select_rings(piece, some, straight)
        if straight.any():
            proven[part][straight] = _is_simple(piece, some)
    return proven


def _is_rectilinear(points: Floats, offsets: Offsets) -> NDArray[np.bool_]:
    """Return which rings go along rows and columns from whole numbers to whole numbers, and are small."""
    bounds = ring_bounds(points, offsets)
    with np.errstate(invalid="ignore"):
        small: NDArray[np.bool_] = (bounds[:, 2:] - bounds[:, :2] + 1).prod(axis=1) <= _LARGEST_BOX
        small &= (np.abs(bounds) < 2**52).all(axis=1) & (ring_lengths(offsets) >= 4)
    x, y = np.ascontiguousarray(points.T)
    straight = (next_in_ring(x, offsets) == x) != (next_in_ring(y, offsets) == y)
    straight &= (np.rint(x) == x) & (np.rint(y) == y)
    small &= flags_per_ring(straight, offsets) == ring_lengths(offsets)
    return small


def _is_simple(points: Floats, offsets: Offsets) -> NDArray[np.bool_]:
    """Return which rings pass no corner of a pixel twice; see :func:`_is_rectilinear`."""
    bounds, lengths = ring_bounds(points, offsets), ring_lengths(offsets)
    width, height = (bounds[:, 2:] - bounds[:, :2] + 1).T.astype(np.int32)
    corners = ring_offsets(width * height)  # of the boxes, which lie one behind the other
    right, down = (
        (next_in_ring(values, offsets) - values).astype(np.int32) for values in np.ascontiguousarray(points.T)
    )
    # of every edge one of the two is 0
    stride, count = np.sign(right) + np.sign(down) * np.repeat(width, lengths), np.abs(right + down)
    x, y = (points[offsets[:-1]] - bounds[:, :2]).T.astype(np.int32)
    edges = np.add.reduceat(count, offsets[:-1])
    passed = np.repeat(stride, count).cumsum(dtype=np.int32)  # comes back to 0 with every ring
    passed += np.repeat((corners[:-1] + y * width + x).astype(np.int32), edges)
    seen = np.zeros(corners[-1], np.bool_)
    seen[passed] = True
    if np.count_nonzero(seen) == len(passed):
        return np.ones(len(edges), np.bool_)
    simple: NDArray[np.bool_] = flags_per_ring(seen, corners) == edges
    return simple


def simplified_rings(points: Floats, offsets: Offsets, tolerance: float) -> tuple[Floats, Offsets]:
    """Return outlines with fewer points and the same areas.

    Points are left out as long as the outline stays near them (Douglas and Peucker), then it is scaled about its centre
    to the area it had. An outline that would lose its shape by that stays as it is.

    Args:
        points: ``(P, 2)``, ``(x, y)``, of open rings that make valid polygons.
        offsets: ``(N + 1,)``.
        tolerance: Pixels that a point which is left out may be away from the outline; 0 leaves out none.

    Returns:
        Points of open rings that make valid polygons, and offsets ``(N + 1,)``.
    """
    if tolerance == 0 or len(offsets) == 1:
        return points, offsets
    shapes = polygons_from_rings(points, offsets)
    fewer, fewer_offsets = open_rings(*_rings_of(shapely.simplify(shapes, tolerance)))
    area, wanted = polygon_area(fewer, fewer_offsets), polygon_area(points, offsets)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.repeat(np.sqrt(wanted / area), ring_lengths(fewer_offsets))[:, None]
    centre = np.repeat(polygon_centroid(fewer, fewer_offsets), ring_lengths(fewer_offsets), axis=0)
    scaled = np.where(np.isfinite(factor), centre + (fewer - centre) * factor, fewer)
    good = np.abs(area - wanted) <= _MOST_CHANGED * wanted
    good &= shapely.is_valid(polygons_from_rings(scaled, fewer_offsets))
    rings: NDArray[Any] = shapely.get_exterior_ring(shapes)
    rings[good] = shapely.get_exterior_ring(polygons_from_rings(*select_rings(scaled, fewer_offsets, good)))
    return open_rings(*_rings_of(rings))


def _rings_of(shapes: NDArray[Any]) -> tuple[Floats, Offsets]:
    """Return the points of polygons without holes, or of rings, and their offsets."""
    return shapely.get_coordinates(shapes), ring_offsets(shapely.get_num_coordinates(shapes))


def rings_from_polygons(shapes: NDArray[Any]) -> tuple[Floats, Offsets]:
    """Return the outlines of shapely geometries, without holes; the inverse of :func:`polygons_from_rings`.

    Args:
        shapes: ``(N,)`` polygons; of one in several pieces the largest counts, and what is no polygon has no outline.

    Returns:
        Points ``(P, 2)`` of open rings, and offsets ``(N + 1,)``.
    """
    rings: NDArray[Any] = np.full(len(shapes), None, dtype=object)
    rows, largest = _largest_of(*shapely.get_parts(shapes, return_index=True))
    rings[rows] = shapely.get_exterior_ring(largest)
    points = shapely.get_coordinates(shapely.force_2d(rings))
    return open_rings(points, ring_offsets(shapely.get_num_points(rings)))


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


def wkb_of_rings(points: Floats, offsets: Offsets) -> tuple[Offsets, NDArray[np.uint8]]:
    """Return outlines as well-known binary, as ``shapely.to_wkb`` writes them.

    Args:
        points: ``(P, 2)``, open rings of at least three points each.
        offsets: ``(N + 1,)``.

    Returns:
        Where each begins in the bytes, ``(N + 1,)``, and the bytes of all.
    """
    points, offsets = close_rings(points, offsets)
    head = np.zeros(len(offsets) - 1, [("order", "u1"), ("type", "<u4"), ("rings", "<u4"), ("points", "<u4")])
    head["order"], head["type"], head["rings"], head["points"] = 1, 3, 1, ring_lengths(offsets)
    size = head.dtype.itemsize
    starts = ring_offsets(size + 16 * ring_lengths(offsets))
    heads = starts[:-1, None] + np.arange(size)
    of_points = np.ones(starts[-1], np.bool_)
    of_points[heads] = False
    found = np.empty(starts[-1], np.uint8)
    found[heads] = head.view(np.uint8).reshape(-1, size)
    found[of_points] = np.ascontiguousarray(points, "<f8").view(np.uint8).reshape(-1)
    return starts, found


def _largest_parts(shapes: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Repair polygons; return the rows that have a part with an area, and the largest part of each."""
    parts, owner = shapely.get_parts(shapely.make_valid(shapes), return_index=True)
    parts, nested = shapely.get_parts(parts, return_index=True)  # a collection may hold a multi-polygon
    return _largest_of(parts, owner[nested])


def _largest_of(parts: NDArray[Any], owner: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the owners that have a part with an area, and the largest part of each."""
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
