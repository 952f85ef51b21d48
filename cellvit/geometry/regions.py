"""Regions of interest (read by :mod:`cellvit.io.regions`): which pixels and which nuclei of a slide lie in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate

from cellvit.errors import ConfigError, DataError

_Floats = NDArray[np.float64]

MAX_CORNERS = 100_000
"""Corners of all polygons of a region; with more, repairing and comparing them may take minutes."""

MAX_CROSSINGS = 2_000
"""Crossings of polygons that cross themselves; the time of their repair grows with the square."""

MAX_NEAR = 1e7
"""Pairs of sides whose boxes overlap, which repairing compares one by one."""

_PIECE, _TRIANGLE = 500, 3  # sides of a piece of a ring, and of the smallest ring
_SAMPLE = 1_000_000  # pairs of sides that are looked at


@dataclass(frozen=True)
class Region:
    """An area of a slide, in pixels of its full resolution; pixel ``i`` covers ``[i, i + 1)``, as QuPath draws.

    Attributes:
        geometry: A valid polygon or multi-polygon of positive area.
    """

    geometry: Any

    def moved(self, x: float, y: float) -> "Region":
        """Return the region moved by some pixels."""
        return Region(translate(self.geometry, x, y))

    @classmethod
    def of_polygons(cls, polygons: Sequence[Any]) -> "Region":
        """Return the union of polygons.

        Args:
            polygons: shapely polygons of finite coordinates; those that cross themselves are repaired.

        Raises:
            DataError: If they enclose no area, have more than :data:`MAX_CORNERS`, or those that are to be repaired
                cross themselves more than :data:`MAX_CROSSINGS` times.
        """
        _check_work(np.array(polygons, object))
        geometry = _areas(shapely.union_all(shapely.make_valid(np.array(polygons, object))))
        if geometry.is_empty:
            raise DataError(f"the {len(polygons)} polygons enclose no area; draw them again")
        return cls(geometry)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the normalised geometry: the same for the same area, however its polygons are written."""
        # a union leaves corners where two polygons met on a straight side
        plain = shapely.normalize(shapely.simplify(shapely.set_precision(self.geometry, 2.0**-10), 0))
        return hashlib.sha256(shapely.to_wkb(plain, byte_order=1, output_dimension=2)).hexdigest()

    @property
    def area_px(self) -> float:
        """Area in pixels of the full resolution."""
        return float(self.geometry.area)

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points lie inside.

        Args:
            points: ``(N, 2)`` ``(x, y)`` in full-resolution pixels.

        Returns:
            ``(N,)``; a rectangle around ``w`` pixels contains the centres of exactly these.
        """
        shapely.prepare(self.geometry)
        x, y = np.asarray(points, np.float64).reshape(-1, 2).T
        return np.asarray(shapely.contains_xy(self.geometry, x, y))

    def mask(self, shape: tuple[int, int], bounds: tuple[float, float, float, float]) -> NDArray[np.bool_]:
        """Return a raster of the region, exact to the last corner that reaches into a pixel.

        Args:
            shape: ``(h, w)`` of the raster.
            bounds: ``(x, y, width, height)`` of the rectangle that the raster covers, in full-resolution pixels.

        Returns:
            ``(h, w)``; True where any part of the region lies inside the pixel. Sharing an edge is not enough.

        Raises:
            ConfigError: If the raster or the bounds have no area.
        """
        left, top, width, height = bounds
        if min(shape) < 1 or not (width > 0 and height > 0):
            raise ConfigError(f"raster {shape} over bounds {bounds}; both need a positive width and height")
        visible = _areas(shapely.intersection(self.geometry, shapely.box(left, top, left + width, top + height)))
        scale = np.array([shape[1] / width, shape[0] / height])
        segments = _segments(visible)
        segments = (segments - (left, top)) * scale
        return _filled(segments, shape) | _crossed(segments, shape)


def simplified(polygon: Any, tolerance: float) -> Any:
    """Return a polygon of fewer corners whose border moved by no more than a tolerance; it may cross itself.

    Rings are simplified in pieces: the time of the algorithm may grow with the square of the corners.

    Args:
        polygon: A shapely polygon.
        tolerance: Largest distance in the units of the polygon.
    """
    rings = [_simplified_ring(shapely.get_coordinates(ring), tolerance) for ring in shapely.get_rings(polygon)]
    return shapely.Polygon(rings[0], [hole for hole in rings[1:] if len(hole) > _TRIANGLE])


def _simplified_ring(points: _Floats, tolerance: float) -> _Floats:
    """Return a closed ring ``(K, 2)`` of fewer points, closed."""
    if len(points) <= 2 * _PIECE:
        return np.asarray(shapely.get_coordinates(shapely.simplify(shapely.LineString(points), tolerance, False)))
    starts = np.arange(0, len(points) - 1, _PIECE)
    lengths = np.diff(np.append(starts, len(points) - 1)) + 1  # a piece ends where the next begins
    piece, index = _ranges(starts, starts + lengths)
    lines = shapely.simplify(shapely.linestrings(points[index], indices=piece), tolerance, preserve_topology=False)
    kept, owner = shapely.get_coordinates(lines, return_index=True)
    repeated = np.append(owner[1:] != owner[:-1], False)  # the end of every piece but the last
    return np.asarray(kept[~repeated])


def _check_work(polygons: NDArray[Any]) -> None:
    """Raise if polygons would take minutes to be repaired and joined."""
    corners = int(shapely.get_num_coordinates(polygons).sum())
    if corners > MAX_CORNERS:
        raise DataError(f"the polygons have {corners:,} corners, at most {MAX_CORNERS:,} are used; draw them coarser")
    near, _ = _meetings(polygons)
    if near > MAX_NEAR:
        message = f"some {near:.1g} pairs of sides of the polygons may cross, at most {MAX_NEAR:.1g} are compared; "
        raise DataError(message + "draw them without spikes and crossings")
    _, crossings = _meetings(polygons[~shapely.is_valid(polygons)])
    if crossings > MAX_CROSSINGS:
        message = f"the polygons cross themselves some {crossings:,.0f} times, at most {MAX_CROSSINGS:,} are repaired; "
        raise DataError(message + "draw them without crossings")


def _meetings(polygons: NDArray[Any]) -> tuple[float, float]:
    """Estimate of how many pairs of sides the boxes overlap, and how many pairs cross inside of both.

    Where there are few pairs, both are exact; else they come from a sample.
    """
    segments = _segments(polygons)
    count = len(segments)
    pairs = count * (count - 1) // 2
    if pairs <= _SAMPLE:
        one, other = np.triu_indices(count, 1)
    else:
        one, other = np.random.default_rng(0).integers(0, count, (2, _SAMPLE))
    near = np.ones(len(one), bool)
    for axis in (0, 1):
        low, high = segments[:, :, axis].min(axis=1), segments[:, :, axis].max(axis=1)
        near &= (low[one] < high[other]) & (low[other] < high[one])
    (a, b), (c, d) = (segments[side[near]].swapaxes(0, 1) for side in (one, other))
    crossed = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
    share = pairs / max(len(one), 1)
    return float(np.count_nonzero(near) * share), float(np.count_nonzero(crossed) * share)


def _side(start: _Floats, end: _Floats, point: _Floats) -> _Floats:
    """Return on which side of a line each point lies: positive, 0 on it, or negative."""
    (x, y), (u, v) = (end - start).T, (point - start).T
    return np.asarray(np.sign(x * v - y * u))


def _areas(geometry: Any) -> Any:
    """Return the polygons of a geometry; lines and points that a repair or a cut leaves have no area."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon" and part.area > 0])


def _segments(geometry: Any) -> _Floats:
    """Return all sides of polygons and of their holes, ``(K, 2, 2)``: start and end, each ``(x, y)``."""
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    return np.asarray(np.stack([points[:-1], points[1:]], axis=1)[ring[:-1] == ring[1:]])


def _filled(segments: _Floats, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels whose centre is inside: an odd number of sides lies left of it."""
    height, width = shape
    (x0, y0), (x1, y1) = segments[:, 0].T, segments[:, 1].T
    # rows whose centre line a side crosses, half-open so that a shared corner counts once
    first = np.ceil(np.minimum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y0, y1) - 0.5).clip(0, height).astype(np.int64)
    side, row = _ranges(first, last)
    x = x0[side] + (row + 0.5 - y0[side]) / (y1 - y0)[side] * (x1 - x0)[side]
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.asarray(crossings.cumsum(axis=1)[:, :-1] % 2 == 1)


def _crossed(segments: _Floats, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels through whose inside a side runs.

    The grid lines cut every side into pieces that lie in one pixel each, which the middle of the piece tells.
    """
    start, step = segments[:, 0], segments[:, 1] - segments[:, 0]
    cuts, owners = [np.zeros(len(start)), np.ones(len(start))], [np.arange(len(start))] * 2
    for axis in (0, 1):
        low, high = segments[:, :, axis].min(axis=1), segments[:, :, axis].max(axis=1)
        side, line = _ranges(np.floor(low).astype(np.int64) + 1, np.ceil(high).astype(np.int64))
        owners.append(side)
        cuts.append((line - start[side, axis]) / step[side, axis])
    owner, cut = np.concatenate(owners), np.concatenate(cuts)
    order = np.lexsort((cut, owner))
    owner, cut = owner[order], cut[order]
    same = (owner[:-1] == owner[1:]) & (cut[:-1] < cut[1:])
    middle = (cut[:-1] + cut[1:])[same] / 2
    points = start[owner[:-1][same]] + middle[:, None] * step[owner[:-1][same]]
    pixel = np.floor(points).astype(np.int64)
    # a side along a grid line runs through no pixel's inside
    keep = ((points != pixel) & (pixel >= 0) & (pixel < (shape[1], shape[0]))).all(axis=1)
    mask = np.zeros(shape, bool)
    mask[pixel[keep, 1], pixel[keep, 0]] = True
    return mask


def _ranges(first: NDArray[np.int64], stop: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all integers of many ranges ``[first, stop)``, and before them the number of the range each is from."""
    lengths = np.maximum(stop - first, 0)
    owner = np.repeat(np.arange(len(first)), lengths)
    offset = np.cumsum(lengths) - lengths
    return owner, cast("NDArray[np.int64]", np.arange(len(owner)) - offset[owner] + first[owner])
