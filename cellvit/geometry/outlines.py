"""Outlines along the edges of pixels, from border pixels and back, for many nuclei at once.

Pixel ``i`` covers ``[i, i + 1)``. The outline of a nucleus follows the outer edges of its pixels, so it encloses
exactly their area; holes are filled. The *border* of a nucleus is the closed chain of its outermost pixels, each named
by its number, which is the form that OpenCV returns and the released files hold. One determines the other.

Where the pixels of a nucleus touch at a corner only, the outline would touch itself, which no valid polygon may: it is
cut there, and the largest part counts (the first in reading order among equals).
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.geometry.polygons import Offsets, polygon_area, ring_lengths, ring_offsets

Ints = NDArray[np.int64]

_STEPS = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)])
"""The eight neighbours of a pixel, ``(x, y)``, anticlockwise as one sees them, from the one on the right."""

_CODES = np.array([(3, 4, 5), (2, 8, 6), (1, 0, 7)])
"""The number of a step ``(dx, dy)`` in the list above, at ``[dx + 1, dy + 1]``; 8 for none: a single pixel."""

_SIDE_ENDS = {0: (1, 0), 2: (0, 0), 4: (0, 1), 6: (1, 1)}
"""The corner of a pixel at which each of its sides ends, anticlockwise."""

_SHIFT = 4  # points between pixels are drawn in steps of 1/16
_NEAR = 0.1  # of a pixel: coordinates in files are rounded


def _corners_of(arrival: int, departure: int) -> list[tuple[int, int]]:
    """Return the corners of an outline at one pixel of a border.

    Turning anticlockwise from where the chain came from to where it goes on, the neighbours in between are not of the
    nucleus: the sides towards them are edges.
    """
    back = (arrival + 4) % 8
    turned = (departure - back - 1) % 8 + 1
    sides = [number % 8 for number in range(back + 1, back + turned) if number % 2 == 0]
    if not sides:  # a chain that goes through the pixel in an inner corner
        return [tuple(np.maximum(_STEPS[(back + 1) % 8], 0))] if back % 2 == 0 and turned == 2 else []
    return [_SIDE_ENDS[side] for side in (sides if departure % 2 else sides[:-1])]


def _corner_tables() -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Return the corners by arrival and departure, ``(81, 4, 2)``, and which of the four there are."""
    corners, there = np.zeros((9, 9, 4, 2), np.int8), np.zeros((9, 9, 4), bool)
    for arrival in range(8):
        for departure in range(8):
            found = _corners_of(arrival, departure)
            corners[arrival, departure, : len(found)] = np.reshape(found, (-1, 2))
            there[arrival, departure, : len(found)] = True
    corners[8, 8], there[8, 8] = [_SIDE_ENDS[side] for side in (2, 4, 6, 0)], True
    return corners.reshape(81, 4, 2), there.reshape(81, 4)


_CORNERS, _THERE = _corner_tables()


def find_border(mask: NDArray[np.uint8], offset: tuple[int, int] = (0, 0)) -> NDArray[np.int32]:
    """Return the border of the largest piece of a mask.

    Args:
        mask: ``(H, W)`` uint8, not 0 where the nucleus is; at least one pixel.
        offset: ``(x, y)`` to add.

    Returns:
        ``(K, 2)`` pixels ``(x, y)``, each beside the next; anticlockwise as one sees them, from the first in reading
        order. Pieces are 8-connected; of equals the first in reading order counts.
    """
    # Two-level retrieval lists outer borders (no parent) and holes, so a second piece cannot hide inside a hole.
    found, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=offset)
    outer = [0] if len(found) == 1 else np.flatnonzero(hierarchy[0, :, 3] < 0)
    if len(outer) == 1:
        return np.asarray(found[outer[0]], np.int32).reshape(-1, 2)
    count, pieces = cv2.connectedComponents(mask, connectivity=8)
    firsts = np.unique(pieces, return_index=True)[1]
    areas = np.bincount(pieces.reshape(-1), minlength=count)
    largest = min(range(1, count), key=lambda piece: (-areas[piece], firsts[piece]))
    return find_border((pieces == largest).view(np.uint8), offset)


def border_corners(pixels: NDArray[Any], offsets: Offsets) -> Ints:
    """Count the pixels of every border at which it turns.

    Args:
        pixels: ``(P, 2)``, whole borders as :func:`find_border` returns them.
        offsets: ``(N + 1,)``.

    Returns:
        ``(N,)``: 1 for a single pixel and 2 for a straight line, which the released tools take for no nucleus.
    """
    arrival, departure = _steps(pixels, offsets)
    lengths = ring_lengths(offsets)
    turns = np.bincount(np.repeat(np.arange(len(lengths)), lengths), arrival != departure, minlength=len(lengths))
    return np.where(lengths == 1, 1, turns).astype(np.int64)


def edge_rings(pixels: NDArray[Any], offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return the outlines that have the given borders.

    Args:
        pixels: ``(P, 2)`` integers, whole borders as :func:`find_border` returns them.
        offsets: ``(N + 1,)``.

    Returns:
        Corners of pixels ``(Q, 2)``, ``(x, y)``, of open rings without points on a straight line, in the sense of the
        border, and offsets ``(N + 1,)``.

    Example:
        >>> edge_rings(np.array([[2, 1], [2, 2], [3, 2], [3, 1]]), np.array([0, 4]))[0].tolist()
        [[2, 1], [2, 3], [4, 3], [4, 1]]
    """
    arrival, departure = _steps(pixels, offsets)
    turn = arrival * 9 + departure
    there = _THERE[turn]
    points = (np.asarray(pixels, np.int64)[:, None] + _CORNERS[turn])[there]
    before = ring_offsets(there.sum(axis=1))
    return _cut_where_touching(points, before[offsets])


def border_rings(points: NDArray[Any], offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return the borders of outlines, only the pixels at which they turn; the inverse of :func:`edge_rings`.

    Args:
        points: ``(Q, 2)`` integers, corners of pixels; open rings along edges, anticlockwise as one sees them.
        offsets: ``(N + 1,)``.

    Returns:
        Pixels ``(P, 2)``, ``(x, y)``, and offsets ``(N + 1,)``; what ``cv2.findContours`` returns with
        ``CHAIN_APPROX_SIMPLE``.

    Example:
        >>> border_rings(np.array([[2, 1], [2, 3], [4, 3], [4, 1]]), np.array([0, 4]))[0].tolist()
        [[2, 1], [2, 2], [3, 2], [3, 1]]
    """
    points = np.asarray(points, np.int64)
    step = np.sign(points[_following(offsets)] - points)
    inwards = np.stack([step[:, 1], -step[:, 0]], axis=1)
    doubled = 2 * points - 1 + inwards
    ends = 2 * points[_following(offsets)] - 1 + inwards
    both = np.stack([doubled + step, ends - step], axis=1).reshape(-1, 2) // 2
    offsets = offsets * 2
    moved = (both[_following(offsets)] != both).any(axis=1)
    moved[offsets[:-1][_sums(moved, offsets) == 0]] = True  # a single pixel
    both, offsets = both[moved], ring_offsets(_sums(moved, offsets))
    arrival, departure = _steps(np.sign(both[_following(offsets)] - both), offsets, given=True)
    turns = (arrival != departure) | (arrival == 8)
    return both[turns], ring_offsets(_sums(turns, offsets))


def _following(offsets: Offsets) -> Ints:
    """Return the number of the point that follows each in its ring."""
    following = np.arange(1, offsets[-1] + 1)
    filled = ring_lengths(offsets) > 0
    following[offsets[1:][filled] - 1] = offsets[:-1][filled]
    return following


def _sums(flags: NDArray[np.bool_], offsets: Offsets) -> Ints:
    """Return how many flags of every ring are set."""
    return np.diff(ring_offsets(flags)[offsets])


def _steps(pixels: NDArray[Any], offsets: Offsets, *, given: bool = False) -> tuple[Ints, Ints]:
    """Return the code of the step that leads to each pixel of a border, and of that which leads on.

    Args:
        pixels: Of whole borders, each beside the next; or, if ``given``, the steps themselves.
        offsets: Of the borders.
        given: See above.
    """
    following = _following(offsets)
    step = pixels if given else np.asarray(pixels, np.int64)[following] - pixels
    departure = _CODES[step[:, 0] + 1, step[:, 1] + 1]
    arrival = np.empty_like(departure)
    arrival[following] = departure
    return arrival, departure


def _cut_where_touching(points: Ints, offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return rings that pass no point twice: of one that does the largest part, from its first corner."""
    lengths = ring_lengths(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    low, span = points.min(axis=0, initial=0), np.ptp(points, axis=0) + 1 if len(points) else (1, 1)
    key = np.sort((owner * span[1] + points[:, 1] - low[1]) * span[0] + points[:, 0] - low[0])
    twice = key[1:][key[1:] == key[:-1]]
    if not len(twice):
        return points, offsets
    rows = np.unique(twice // (span[0] * span[1]))
    rings = np.split(points, offsets[1:-1])
    for row in rows.tolist():
        rings[row] = _largest_loop(rings[row])
    return np.concatenate(rings), ring_offsets([len(ring) for ring in rings])


def _largest_loop(ring: Ints) -> Ints:
    """Return the part of the largest area of a ring that touches itself, from its first corner in reading order."""
    loops, path, place = [], [], {}
    for point in map(tuple, ring.tolist()):
        if point in place:
            start = place[point]
            loops.append(path[start:])
            for gone in path[start + 1 :]:
                del place[gone]
            del path[start + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    loops = [np.array(loop) for loop in [*loops, path] if len(loop) > 3]
    areas = polygon_area(np.concatenate(loops).astype(float), ring_offsets([len(loop) for loop in loops]))
    first = [min((y, x) for x, y in loop.tolist()) for loop in loops]
    best = min(range(len(loops)), key=lambda i: (-areas[i], first[i]))
    start = int(np.lexsort(loops[best].T)[0])
    return np.roll(loops[best], -start, axis=0)
