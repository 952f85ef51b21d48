"""Boxes and outlines: conversions between ``(row, col)`` and ``(x, y)``, and ragged polygon arithmetic.

Arrays are indexed ``(row, col)``; geometry is written ``(x, y)``. Only this module converts between the two.
Outlines of many nuclei are *ragged*: all points in one array ``(P, 2)`` and offsets ``(N + 1,)``, where outline
``i`` is ``points[offsets[i]:offsets[i + 1]]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Offsets = NDArray[np.int64]
Points = TypeVar("Points", bound=NDArray[Any])

MIN_CONTOUR_POINTS = 3
"""An outline with fewer points encloses nothing; such an instance is no nucleus that could be detected."""


@dataclass(frozen=True)
class FurtherRings:
    """What nuclei consist of beside one outline each: their holes, and further pieces with holes of their own.

    Attributes:
        points: ``(P, 2)`` points of all these rings, ``(x, y)``, closed or open.
        offsets: ``(R + 1,)``.
        owner: ``(R,)`` row of the nucleus that a ring belongs to, ascending.
        piece: ``(R,)`` number of the piece of that nucleus, ascending within it. The outline is the outer ring of piece
            0, so all rings of piece 0 are holes; of any other piece the first ring is the outer one.
    """

    points: Floats
    offsets: Offsets
    owner: NDArray[np.int64]
    piece: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.owner)

    def rings(self) -> dict[int, dict[int, list[Floats]]]:
        """Return the rings by nucleus and piece."""
        found: dict[int, dict[int, list[Floats]]] = {}
        columns = (self.owner, self.piece, self.offsets[:-1], self.offsets[1:])
        for owner, piece, start, stop in zip(*(column.tolist() for column in columns), strict=True):
            found.setdefault(owner, {}).setdefault(piece, []).append(self.points[start:stop])
        return found

    def select(self, rows: NDArray[np.bool_]) -> "FurtherRings":
        """Return the rings of some nuclei, whose rows are counted anew; ``rows`` is a mask ``(N,)``."""
        kept = rows[self.owner]
        number = np.cumsum(rows) - 1
        points, offsets = select_rings(self.points, self.offsets, kept)
        return FurtherRings(points, offsets, number[self.owner[kept]], self.piece[kept])


def bbox_xyxy_to_rowcol(bbox: NDArray[Any]) -> NDArray[Any]:
    """Return boxes as corner pairs in array order.

    Args:
        bbox: ``(N, 4)``, ``(xmin, ymin, xmax, ymax)``, half-open.

    Returns:
        ``(N, 2, 2)``, ``[[row_min, col_min], [row_max, col_max]]``, half-open, same dtype.

    Example:
        >>> bbox_xyxy_to_rowcol(np.array([[1, 2, 3, 4]])).tolist()
        [[[2, 1], [4, 3]]]
    """
    return bbox.reshape(-1, 2, 2)[:, :, ::-1]


def bbox_rowcol_to_xyxy(bbox: NDArray[Any]) -> NDArray[Any]:
    """Return boxes given as corner pairs in array order as flat ``(x, y)`` boxes.

    Args:
        bbox: ``(N, 2, 2)``, ``[[row_min, col_min], [row_max, col_max]]``, half-open.

    Returns:
        ``(N, 4)``, ``(xmin, ymin, xmax, ymax)``, half-open, same dtype.

    Example:
        >>> bbox_rowcol_to_xyxy(np.array([[[2, 1], [4, 3]]])).tolist()
        [[1, 2, 3, 4]]
    """
    return bbox.reshape(-1, 2, 2)[:, :, ::-1].reshape(-1, 4)


def swap_xy_rowcol(points: NDArray[Any]) -> NDArray[Any]:
    """Return points with their two coordinates exchanged: ``(x, y)`` to ``(row, col)`` or back.

    Args:
        points: ``(…, 2)``.

    Returns:
        A view of the same shape.
    """
    return points[..., ::-1]


def ring_lengths(offsets: Offsets) -> Offsets:
    """Return the number of points of every outline, ``(N,)``, from its offsets ``(N + 1,)``."""
    return np.diff(offsets)


def ring_offsets(lengths: Sequence[int] | NDArray[Any]) -> Offsets:
    """Return the offsets ``(N + 1,)`` of outlines of the given lengths ``(N,)``; the first is 0.

    Example:
        >>> ring_offsets([3, 0, 4]).tolist()
        [0, 3, 3, 7]
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(lengths, np.int64))])


def select_rings(points: Points, offsets: Offsets, rows: NDArray[Any]) -> tuple[Points, Offsets]:
    """Return some of the outlines.

    Args:
        points: ``(P, 2)``.
        offsets: ``(N + 1,)``.
        rows: Boolean mask ``(N,)`` or indices ``(K,)``.

    Returns:
        The points of the chosen outlines ``(Q, 2)`` and their offsets ``(K + 1,)``.
    """
    index = np.flatnonzero(rows) if rows.dtype == bool else rows
    lengths = ring_lengths(offsets)[index]
    chosen = ring_offsets(lengths)
    shift = np.repeat(offsets[:-1][index] - chosen[:-1], lengths)
    return cast("Points", points[np.arange(chosen[-1]) + shift]), chosen


def close_rings(points: Floats, offsets: Offsets) -> tuple[Floats, Offsets]:
    """Return the outlines with the first point of each repeated at its end; empty ones stay empty.

    Args:
        points: ``(P, 2)``, open outlines.
        offsets: ``(N + 1,)``.

    Returns:
        Points ``(P + K, 2)`` with ``K`` the number of outlines that have points, and offsets ``(N + 1,)``.

    Example:
        >>> close_rings(np.array([[0.0, 0], [2, 0], [0, 2]]), np.array([0, 3]))[0].tolist()
        [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    """
    filled = ring_lengths(offsets) > 0
    closed = ring_offsets(ring_lengths(offsets) + filled)
    source = np.arange(closed[-1]) + np.repeat(offsets[:-1] - closed[:-1], np.diff(closed))
    source[closed[1:][filled] - 1] = offsets[:-1][filled]
    return points[source], closed


def open_rings(points: Floats, offsets: Offsets) -> tuple[Floats, Offsets]:
    """Return the outlines without a last point that repeats the first; the inverse of :func:`close_rings`.

    Args:
        points: ``(P, 2)``, closed or open outlines.
        offsets: ``(N + 1,)``.

    Returns:
        Points and offsets ``(N + 1,)``. An outline of a single point is left as it is.
    """
    lengths = ring_lengths(offsets)
    long = np.flatnonzero(lengths > 1)
    first, last = offsets[:-1][long], offsets[1:][long] - 1
    repeats = (points[first] == points[last]).all(axis=1)
    keep = np.ones(len(points), bool)
    keep[: offsets[0]] = keep[offsets[-1] :] = False
    keep[last[repeats]] = False
    shorter = lengths.copy()
    shorter[long[repeats]] -= 1
    return points if keep.all() else points[keep], ring_offsets(shorter)


def polygon_area(points: Floats, offsets: Offsets) -> Floats:
    """Compute the area that every outline encloses, by the shoelace formula.

    Args:
        points: ``(P, 2)``, open or closed outlines, either sense of rotation.
        offsets: ``(N + 1,)``.

    Returns:
        ``(N,)`` in square units of the points; 0 for fewer than three points. Where an outline crosses itself,
        the parts that run the other way round count negative, as the formula has it.

    Example:
        >>> polygon_area(np.array([[0.0, 0], [4, 0], [4, 2], [0, 2]]), np.array([0, 4]))
        array([8.])
    """
    lengths = ring_lengths(offsets)
    if not lengths.any():
        return np.zeros(len(lengths))
    owner, _, cross = _crosses(points, offsets)
    return np.asarray(np.abs(np.bincount(owner, cross, minlength=len(lengths))) / 2)


def polygon_centroid(points: Floats, offsets: Offsets) -> Floats:
    """Compute the centre of mass of the area that every outline encloses.

    Args:
        points: ``(P, 2)``, open or closed outlines, either sense of rotation.
        offsets: ``(N + 1,)``.

    Returns:
        ``(N, 2)``, ``(x, y)``; the mean of the points where no area is enclosed, NaN without points.

    Example:
        >>> polygon_centroid(np.array([[0.0, 0], [4, 0], [4, 2], [0, 2], [5, 7]]), np.array([0, 4, 5])).tolist()
        [[2.0, 1.0], [5.0, 7.0]]
    """
    cross, first = _moments(points, offsets)
    lengths = ring_lengths(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    sums = np.stack([np.bincount(owner, column, minlength=len(lengths)) for column in points.T], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = first / (3 * cross[:, None])
        mean = sums / lengths[:, None]
    starts = np.zeros_like(centre)
    starts[lengths > 0] = points[offsets[:-1][lengths > 0]]
    return np.asarray(np.where(np.abs(cross[:, None]) > 1e-9, starts + centre, mean), np.float64)


def _moments(points: Floats, offsets: Offsets) -> tuple[Floats, Floats]:
    """Return twice the signed area of every outline ``(N,)``, and six times its first moments ``(N, 2)``.

    The moments are relative to the outline's first point: slide coordinates are large, and their products would cancel
    badly.
    """
    lengths = ring_lengths(offsets)
    if not lengths.any():
        return np.zeros(len(lengths)), np.zeros((len(lengths), 2))
    owner, both, cross = _crosses(points, offsets)
    weights = (cross, *(cross * each for each in both))
    sums: list[Floats] = [np.bincount(owner, w, minlength=len(lengths)).astype(np.float64) for w in weights]
    return sums[0], np.stack(sums[1:], axis=1)


def _crosses(points: Floats, offsets: Offsets) -> tuple[NDArray[np.int64], list[Floats], Floats]:
    """Return of every edge its outline, the sums of both coordinates of its ends, and their cross product.

    Coordinates are relative to the outline's first point.
    """
    lengths = ring_lengths(offsets)
    filled = lengths > 0
    owner = np.repeat(np.arange(len(lengths)), lengths)
    own = offsets - offsets[0]
    columns = points[offsets[0] : offsets[-1]].T
    local = [values - np.repeat(values[own[:-1][filled]], lengths[filled]) for values in columns]
    ahead = [next_in_ring(near, own) for near in local]
    cross = local[0] * ahead[1] - ahead[0] * local[1]
    return owner, [a + b for a, b in zip(local, ahead, strict=True)], cross


def next_in_ring(values: NDArray[Any], offsets: Offsets) -> NDArray[Any]:
    """Return for every point the value of the next one in its ring; after the last comes the first.

    Args:
        values: ``(P,)`` of one coordinate.
        offsets: ``(N + 1,)``, from 0; a ring may be empty.

    Example:
        >>> next_in_ring(np.array([1, 2, 3, 8, 9]), np.array([0, 3, 3, 5])).tolist()
        [2, 3, 1, 9, 8]
    """
    ahead = np.empty_like(values)
    ahead[:-1] = values[1:]
    filled = ring_lengths(offsets) > 0
    ahead[offsets[1:][filled] - 1] = values[offsets[:-1][filled]]
    return ahead


def ring_bounds(points: Floats, offsets: Offsets) -> Floats:
    """Return the smallest box around the points of every outline.

    Args:
        points: ``(P, 2)``, ``(x, y)``.
        offsets: ``(N + 1,)``.

    Returns:
        ``(N, 4)``, ``(xmin, ymin, xmax, ymax)``; NaN for an outline without points.

    Example:
        >>> ring_bounds(np.array([[1.0, 5], [3, 2]]), np.array([0, 2])).tolist()
        [[1.0, 2.0, 3.0, 5.0]]
    """
    bounds = np.full((len(offsets) - 1, 4), np.nan)
    filled = np.flatnonzero(ring_lengths(offsets) > 0)
    if len(filled):
        starts = offsets[:-1][filled]
        inside = points[: offsets[-1]]
        bounds[filled, :2] = np.minimum.reduceat(inside, starts)
        bounds[filled, 2:] = np.maximum.reduceat(inside, starts)
    return bounds


def bbox_area(bbox: Floats) -> Floats:
    """Return the area of every box ``(N, 4)``, ``(xmin, ymin, xmax, ymax)``; 0 where it is inside out."""
    size = np.clip(bbox[:, 2:] - bbox[:, :2], 0, None)
    return np.asarray(size[:, 0] * size[:, 1])
