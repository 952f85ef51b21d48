"""Outlines along the edges of pixels, from border pixels and back, for many nuclei at once.

Pixel ``i`` covers ``[i, i + 1)``. The outline of a nucleus follows the outer edges of its pixels, so it encloses
exactly their area; holes are filled. The *border* of a nucleus is the closed chain of its outermost pixels, each named
by its number, which is the form that OpenCV returns and the released files hold. One determines the other.

Where the pixels of a nucleus touch at a corner only, the outline would touch itself, which no valid polygon may: it is
cut there, and the largest part counts (the first in reading order among equals).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellvit.geometry.polygons import Offsets, next_in_ring, polygon_area, ring_lengths, ring_offsets, select_rings

Ints = NDArray[np.int64]

_STEPS = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)])
"""The eight neighbours of a pixel, ``(x, y)``, anticlockwise as one sees them, from the one on the right."""

_CODES = np.array([(3, 4, 5), (2, 8, 6), (1, 0, 7)])
"""The number of a step ``(dx, dy)`` in the list above, at ``[dx + 1, dy + 1]``; 8 for none: a single pixel."""

_SIDE_ENDS = {0: (1, 0), 2: (0, 0), 4: (0, 1), 6: (1, 1)}
"""The corner of a pixel at which each of its sides ends, anticlockwise."""


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


def _corner_tables() -> tuple[Ints, Ints]:
    """Return the corners by arrival and departure, ``(81, 4, 2)``, and how many of the four there are."""
    corners, count = np.zeros((9, 9, 4, 2), np.int64), np.zeros((9, 9), np.int64)
    for arrival in range(8):
        for departure in range(8):
            found = _corners_of(arrival, departure)
            corners[arrival, departure, : len(found)] = np.reshape(found, (-1, 2))
            count[arrival, departure] = len(found)
    corners[8, 8], count[8, 8] = [_SIDE_ENDS[side] for side in (2, 4, 6, 0)], 4
    return corners.reshape(81, 4, 2), count.reshape(81)


_CORNERS, _COUNT = _corner_tables()


class OuterRings(NamedTuple):
    """The outlines of all pieces of a label map, holes filled.

    Attributes:
        points: ``(Q, 2)`` corners of pixels, ``(x, y)``, of open rings as :func:`edge_rings` has them.
        offsets: ``(R + 1,)``.
        first: ``(R,)`` flat position of the first pixel of each piece.
        touching: ``(R,)``, whether pixels of the piece touch at a corner only, so that the ring may touch itself.
    """

    points: Ints
    offsets: Offsets
    first: Ints
    touching: NDArray[np.bool_]


def outer_rings(labels: NDArray[np.int32]) -> OuterRings:
    """Return the outlines of all pieces of a label map, not yet cut where they touch themselves.

    At a corner four pixels meet, which tell whether an outline turns there. Along a line of the lattice outlines of one
    direction never overlap, so the n-th that departs is the n-th that arrives: corners are linked without a walk along
    the pixels.

    Args:
        labels: ``(H, W)`` int32, 0 is background.

    Returns:
        The rings by ascending label; pieces are 8-connected, those of one label follow each other in reading order.
        :func:`cut_where_touching` is the last step to valid polygons.

    Example:
        >>> outer_rings(np.array([[0, 7, 7], [0, 7, 7]], np.int32)).points.tolist()
        [[1, 0], [1, 2], [3, 2], [3, 0]]
    """
    around = np.pad(labels, 1)
    flat, width = around.reshape(-1), around.shape[1]
    corner = _corners(flat, width)
    # the pixels around each corner, anticlockwise; pixel k is on the left of what arrives going right, up, left, down
    pixel = flat[corner[:, None] + np.array([0, width, width + 1, 1])]
    differs, opposite = pixel != np.roll(pixel, -1, axis=1), pixel == np.roll(pixel, -2, axis=1)
    before = np.roll(differs, 1, axis=1)
    arrival = np.flatnonzero((pixel > 0) & differs & (opposite | before))
    corner, direction = corner[arrival >> 2], arrival & 3
    inner = opposite.reshape(-1)[arrival]
    first, rank = _cycles(_following(direction, (direction + np.where(inner, 3, 1)) & 3, corner % width))
    length = np.bincount(first, minlength=len(first))
    # around a hole most corners are inner ones
    starts = np.flatnonzero(length > 2 * np.bincount(first, inner, minlength=len(first)))
    starts = starts[np.argsort(pixel.reshape(-1)[arrival[starts]], kind="stable")]
    offsets = ring_offsets(length[starts])
    top_left = corner[starts] + width + 1  # pixel
    begin, shift = np.full(len(first), -1), np.zeros(len(first), np.int64)
    begin[starts], shift[starts] = offsets[:-1], _before_top_left(flat, top_left, width)
    outer = np.flatnonzero(begin[first] >= 0)
    ring = first[outer]
    y, x = np.divmod(corner[outer], width)
    points = np.empty((len(outer), 2), np.int64)
    points[begin[ring] + (rank[outer] + shift[ring]) % length[ring]] = np.stack([x, y], axis=1)
    y, x = np.divmod(top_left, width)
    touching = np.bincount(first, inner & before.reshape(-1)[arrival], minlength=len(first)) > 0
    return OuterRings(points, offsets, (y - 1) * (width - 2) + x - 1, touching[starts])


def _corners(flat: NDArray[np.int32], width: int) -> Ints:
    """Return where outlines may turn: the position of the pixel above, on the left.

    Args:
        flat: Labels with a frame of background.
        width: With the frame.
    """
    across, along = flat[1:] != flat[:-1], flat[width:] != flat[:-width]
    return np.flatnonzero((across[width:] | across[:-width]) & (along[1:] | along[:-1]))


def _following(direction: Ints, leaving: Ints, column: Ints) -> Ints:
    """Return which corner follows each on its outline.

    Args:
        direction: In which an outline arrives at each corner, 0 to 3: right, up, left, down; in reading order.
        leaving: Direction in which it goes on.
        column: Of the corners.
    """
    following = np.empty_like(direction)
    following[leaving == 0], following[leaving == 2] = np.flatnonzero(direction == 0), np.flatnonzero(direction == 2)
    # numpy sorts numbers of 16 bits several times as fast
    order = np.argsort(column.astype(np.uint16) if column.max(initial=0) < 1 << 16 else column, kind="stable")
    for way in (1, 3):
        following[order[leaving[order] == way]] = order[direction[order] == way]
    return following


def _cycles(following: Ints) -> tuple[Ints, Ints]:
    """Return the smallest number in the cycle of each, and how many steps after it that one comes."""
    first, jump = np.arange(len(following)), following
    while True:
        lower = np.minimum(first, first[jump])
        if np.array_equal(lower, first):
            break
        first, jump = lower, jump[jump]
    start = first == np.arange(len(first))
    left = np.where(start, 0, 1)  # steps to the end, by jumps that double and stop there
    jump = np.where(start, first, following)
    while not start[jump].all():
        left, jump = left + left[jump], jump[jump]
    length = np.bincount(first, minlength=len(first))
    return first, (length[first] - left) % length[first]


def _before_top_left(labels: NDArray[np.int32], pixel: Ints, width: int) -> Ints:
    """Return how many corners of a ring come before the top left one of its first pixel.

    A border arrives at its first pixel from the right, from below, or from the left below.

    Args:
        labels: Flat.
        pixel: Position of the first pixel of every ring.
        width: Of the map.
    """
    same = [labels[pixel + step] == labels[pixel] for step in (1, width + 1, width, width - 1)]
    return np.select([same[0], same[1] | same[2], same[3]], [0, 1, 2], 0)


def edge_rings(pixels: NDArray[Any], offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return the outlines that have the given borders.

    Args:
        pixels: ``(P, 2)`` integers, whole borders as :func:`cellvit.io.frames.find_border` returns them.
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
    count = _COUNT[turn]
    before = ring_offsets(count)
    pixel = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(pixel)) - before[pixel]
    points = pixels[pixel] + _CORNERS[turn[pixel], number]
    touching = flags_per_ring((departure % 2 == 1) & (count > 0), offsets) > 0
    return cut_where_touching(points, before[offsets], touching)


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
    step = np.sign(points[following_points(offsets)] - points)
    inwards = np.stack([step[:, 1], -step[:, 0]], axis=1)
    doubled = 2 * points - 1 + inwards
    ends = 2 * points[following_points(offsets)] - 1 + inwards
    both = np.stack([doubled + step, ends - step], axis=1).reshape(-1, 2) // 2
    offsets = offsets * 2
    moved = (both[following_points(offsets)] != both).any(axis=1)
    moved[offsets[:-1][flags_per_ring(moved, offsets) == 0]] = True  # a single pixel
    return turning_points(both[moved], ring_offsets(flags_per_ring(moved, offsets)))


def turning_points(pixels: Ints, offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return only the pixels of borders at which they turn."""
    arrival, departure = _steps(np.sign(pixels[following_points(offsets)] - pixels), offsets, given=True)
    turning = (arrival != departure) | (arrival == 8)
    return pixels[turning], ring_offsets(flags_per_ring(turning, offsets))


def following_points(offsets: Offsets) -> Ints:
    """Return the number of the point that follows each in its ring."""
    return next_in_ring(np.arange(offsets[-1]), offsets)


def flags_per_ring(flags: NDArray[np.bool_], offsets: Offsets) -> Ints:
    """Return how many flags of every ring are set."""
    return np.diff(ring_offsets(flags)[offsets])


def _steps(pixels: NDArray[Any], offsets: Offsets, *, given: bool = False) -> tuple[Ints, Ints]:
    """Return the code of the step that leads to each pixel of a border, and of that which leads on.

    Args:
        pixels: Of whole borders, each beside the next; or, if ``given``, the steps themselves.
        offsets: Of the borders.
        given: See above.
    """
    following = following_points(offsets)
    step = pixels if given else np.asarray(pixels, np.int64)[following] - pixels
    departure = _CODES[step[:, 0] + 1, step[:, 1] + 1]
    arrival = np.empty_like(departure)
    arrival[following] = departure
    return arrival, departure


def cut_where_touching(points: Ints, offsets: Offsets, rows: NDArray[np.bool_]) -> tuple[Ints, Offsets]:
    """Return rings that pass no point twice: of one that does the largest part, from its first corner.

    Args:
        points: ``(Q, 2)`` of rings.
        offsets: ``(R + 1,)``.
        rows: ``(R,)``, which rings may pass a point twice.
    """
    if not rows.any():
        return points, offsets
    owner = np.repeat(np.arange(len(rows)), np.where(rows, ring_lengths(offsets), 0))
    x, y = (column - column.min() for column in select_rings(points, offsets, rows)[0].T)
    width, height = int(x.max()) + 1, int(y.max()) + 1
    key = np.sort((owner * height + y) * width + x)
    twice = key[1:][key[1:] == key[:-1]]
    if not len(twice):
        return points, offsets
    rings = np.split(points, offsets[1:-1])
    for row in np.unique(twice // (width * height)).tolist():
        rings[row] = _largest_loop(rings[row])
    return np.concatenate(rings), ring_offsets([len(ring) for ring in rings])


def _largest_loop(ring: Ints) -> Ints:
    """Return the part of the largest area of a ring that touches itself, from its first corner in reading order."""
    loops: list[list[tuple[int, ...]]] = []
    path: list[tuple[int, ...]] = []
    place: dict[tuple[int, ...], int] = {}
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
    parts = [np.array(loop, np.int64) for loop in [*loops, path]]
    areas = polygon_area(np.concatenate(parts).astype(float), ring_offsets([len(part) for part in parts]))
    first = [min((y, x) for x, y in part.tolist()) for part in parts]
    best = min(range(len(parts)), key=lambda i: (-areas[i], first[i]))
    start = int(np.lexsort(parts[best].T)[0])
    return np.roll(parts[best], -start, axis=0)


def anticlockwise(points: Ints, offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return rings anticlockwise as one sees them, as the border of a nucleus runs, from the same first points."""
    lengths = ring_lengths(offsets)
    following = points[following_points(offsets)]
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    clockwise = (np.bincount(owner, cross, minlength=len(lengths)) > 0)[owner]
    place = np.arange(len(points))
    mirrored = offsets[:-1][owner] + (offsets[:-1][owner] - place) % lengths[owner]
    return points[np.where(clockwise, mirrored, place)], offsets


def whole_borders(points: Ints, offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return all pixels of borders that are given by the pixels at which they turn."""
    points, offsets = anticlockwise(points, offsets)
    step = points[following_points(offsets)] - points
    count = np.abs(step).max(axis=1, initial=0)
    starts = offsets[:-1][np.add.reduceat(count, offsets[:-1]) == 0] if len(offsets) > 1 else offsets[:0]
    count[starts] = 1  # a single pixel
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    chain = np.repeat(points, count, axis=0) + number[:, None] * np.repeat(np.sign(step), count, axis=0)
    return chain, ring_offsets(count)[offsets]
