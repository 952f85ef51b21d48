"""Outlines along the edges of pixels, from border pixels and back, for many nuclei at once.

Pixel ``i`` covers ``[i, i + 1)``. The outline of a nucleus follows the outer edges of its pixels, so it encloses
exactly their area; holes are filled. The *border* of a nucleus is the closed chain of its outermost pixels, each named
by its number, which is the form that OpenCV returns and the released files hold. One determines the other.

Where the pixels of a nucleus touch at a corner only, the outline would touch itself, which no valid polygon may: it is
cut there, and the largest part counts (the first in reading order among equals).
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.geometry.polygons import (
    Floats,
    Offsets,
    open_rings,
    polygon_area,
    ring_bounds,
    ring_lengths,
    ring_offsets,
    select_rings,
)

Ints = NDArray[np.int64]

_STEPS = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)])
"""The eight neighbours of a pixel, ``(x, y)``, anticlockwise as one sees them, from the one on the right."""

_CODES = np.array([(3, 4, 5), (2, 8, 6), (1, 0, 7)])
"""The number of a step ``(dx, dy)`` in the list above, at ``[dx + 1, dy + 1]``; 8 for none: a single pixel."""

_SIDE_ENDS = {0: (1, 0), 2: (0, 0), 4: (0, 1), 6: (1, 1)}
"""The corner of a pixel at which each of its sides ends, anticlockwise."""

_SHIFT = 4  # points between pixels are drawn in steps of 1/16
_ROUNDED = 0.02  # pixels; coordinates in files are rounded to 0.01
_LARGEST = 4096  # pixels; a wider outline that follows no pixels is not drawn


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
    count = _COUNT[turn]
    before = ring_offsets(count)
    pixel = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(pixel)) - before[pixel]
    points = pixels[pixel] + _CORNERS[turn[pixel], number]
    inner = before[1:][(departure % 2 == 1) & (count > 0)] - 1
    return _cut_where_touching(points, before[offsets], inner)


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
    return _turns(both[moved], ring_offsets(_sums(moved, offsets)))


def _turns(pixels: Ints, offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return only the pixels of borders at which they turn."""
    arrival, departure = _steps(np.sign(pixels[_following(offsets)] - pixels), offsets, given=True)
    turning = (arrival != departure) | (arrival == 8)
    return pixels[turning], ring_offsets(_sums(turning, offsets))


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


def _cut_where_touching(points: Ints, offsets: Offsets, inner: Ints) -> tuple[Ints, Offsets]:
    """Return rings that pass no point twice: of one that does the largest part, from its first corner.

    Args:
        points: Of rings.
        offsets: Of the rings.
        inner: Which points are inner corners, ascending; a point that is passed twice is one both times.
    """
    if not len(inner):
        return points, offsets
    owner = np.searchsorted(offsets, inner, side="right") - 1
    x, y = (column - column.min() for column in (points[inner, 0], points[inner, 1]))
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


def from_pixel_centres(points: Floats, offsets: Offsets, bbox: Floats) -> tuple[Floats, Offsets]:
    """Return outlines that ran through the centres of border pixels as outlines along the edges of pixels.

    That is how this package wrote them at first and how the released files still hold them: the centre of pixel ``i``
    is at ``i``. Outlines of nuclei that were found at another resolution follow larger or smaller pixels. One that
    follows no pixels at all is drawn, with the pixels that it runs through. One that is as large as its box was written
    in place of a line or a pixel, and is along edges already.

    Args:
        points: ``(P, 2)``, ``(x, y)``, open or closed outlines.
        offsets: ``(N + 1,)``.
        bbox: ``(N, 4)``, edges of the boxes of the same nuclei, which tell the size of the pixels; NaN: not known.

    Returns:
        Points, where pixel ``i`` covers ``[i, i + 1)``, and offsets ``(N + 1,)``; empty outlines stay empty.

    Example:
        >>> from_pixel_centres(np.array([[2.0, 1], [2, 2], [3, 2], [3, 1]]), np.array([0, 4]), np.full((1, 4), np.nan))
        (array([[2., 1.],
               [2., 3.],
               [4., 3.],
               [4., 1.]]), array([0, 4]))
    """
    points, offsets = open_rings(points, offsets)
    size = _pixel_size(points, offsets, bbox)
    start, index, straight = _on_lattice(points, offsets, size)
    boxes = np.flatnonzero((ring_bounds(points, offsets) == bbox).all(axis=1))
    straight[boxes] = False
    rows = np.flatnonzero(straight)
    chain, chain_offsets = _whole_chains(*select_rings(index, offsets, rows))
    corners, corner_offsets = edge_rings(chain, chain_offsets)
    inside = polygon_area(chain.astype(float), chain_offsets) + ring_lengths(chain_offsets) / 2 + 1
    inside[ring_lengths(chain_offsets) == 1] = 1
    good = polygon_area(corners.astype(float), corner_offsets) == inside  # by Pick's theorem, else it is no border
    owner = np.repeat(rows, ring_lengths(corner_offsets))
    edges = start[owner] + 0.5 + (corners - 0.5) * size
    found, (box_points, box_offsets) = select_rings(edges, corner_offsets, good), select_rings(points, offsets, boxes)
    lengths = np.concatenate([ring_lengths(found[1]), ring_lengths(box_offsets)])
    done = np.concatenate([rows[good], boxes]), np.concatenate([found[0], box_points]), ring_offsets(lengths)
    return _with_others(points, offsets, done, _drawn_edges)


def to_pixel_centres(
    points: Floats, offsets: Offsets, *, pixel: tuple[float, float] = (1.0, 1.0)
) -> tuple[Floats, Offsets]:
    """Return outlines along the edges of pixels as outlines through the centres of the border pixels.

    Args:
        points: ``(P, 2)``, ``(x, y)``, open outlines.
        offsets: ``(N + 1,)``.
        pixel: ``(x, y)`` size of the pixels that the outlines follow. Of an outline that does not follow such pixels
            the border is that of the pixels of size 1 whose centres lie inside.

    Returns:
        Points, where the centre of pixel ``i`` is at ``i``, and offsets ``(N + 1,)``: for pixels of size 1 exactly what
        ``cv2.findContours`` returns for the pixels inside.

    Example:
        >>> to_pixel_centres(np.array([[2.0, 1], [2, 3], [4, 3], [4, 1]]), np.array([0, 4]))[0].tolist()
        [[2.0, 1.0], [2.0, 2.0], [3.0, 2.0], [3.0, 1.0]]
    """
    size = np.asarray(pixel, np.float64)
    start, index, straight = _on_lattice(points, offsets, size, sideways=False)
    rows = np.flatnonzero(straight & (ring_lengths(offsets) > 3))
    border, border_offsets = border_rings(*_anticlockwise(*select_rings(index, offsets, rows)))
    owner = np.repeat(rows, ring_lengths(border_offsets))
    centres = start[owner] + (border + 0.5) * size - 0.5
    if pixel != (1.0, 1.0):
        centres = centres.round(2)
    return _with_others(points, offsets, (rows, centres, border_offsets), _drawn_border)


def _pixel_size(points: Floats, offsets: Offsets, bbox: Floats) -> Floats:
    """Return the size ``(x, y)`` of the pixels through whose centres outlines run; 1 where the boxes do not tell.

    An outline lies half a pixel inside its box on every side, save where the box holds further pieces, too. Whole
    coordinates are those of pixels of size 1, as the centres of others lie between them.
    """
    if not np.mod(points, 1).any():
        return np.ones(2)
    around = ring_bounds(points, offsets) + 0.5
    before, behind = around[:, :2] - bbox[:, :2], bbox[:, 2:] - around[:, 2:]
    rough = _typical(np.where(np.abs(before - behind) <= 2 * _ROUNDED, before + behind, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        side = bbox[:, 2:] - bbox[:, :2]
        size = _typical(side / np.rint(side / rough))
    return np.where((size > 0.05) & (size < 20), size, 1.0)


def _typical(values: Floats) -> Floats:
    """Return the median of every column, of the finite values; NaN if there are none."""
    return np.array(
        [np.median(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan for column in values.T]
    )


def _on_lattice(
    points: Floats, offsets: Offsets, size: Floats, *, sideways: bool = True
) -> tuple[Floats, Ints, NDArray[np.bool_]]:
    """Return the first point of every outline, points in steps from it, and which outlines are of whole steps.

    Args:
        points: Of open outlines.
        offsets: Of the outlines.
        size: ``(x, y)`` of a step.
        sideways: Whether outlines may also go from corner to corner of pixels.
    """
    lengths = ring_lengths(offsets)
    start = np.full((len(lengths), 2), np.nan)
    start[lengths > 0] = points[offsets[:-1][lengths > 0]]
    away = points - np.repeat(start, lengths, axis=0)
    exact = np.isfinite(away).all(axis=1)
    index = np.rint(np.where(exact[:, None], away, 0) / size).astype(np.int64)
    near = (np.abs(away - index * size) <= _ROUNDED).all(axis=1)
    step = np.abs(index[_following(offsets)] - index)
    straight = (step == 0).any(axis=1)
    if sideways:
        straight |= step[:, 0] == step[:, 1]
    return start, index, (_sums(exact & near & straight, offsets) == lengths) & (lengths > 0)


def _anticlockwise(points: Ints, offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return rings anticlockwise as one sees them, as the border of a nucleus runs, from the same first points."""
    lengths = ring_lengths(offsets)
    following = points[_following(offsets)]
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    clockwise = (np.bincount(owner, cross, minlength=len(lengths)) > 0)[owner]
    place = np.arange(len(points))
    mirrored = offsets[:-1][owner] + (offsets[:-1][owner] - place) % lengths[owner]
    return points[np.where(clockwise, mirrored, place)], offsets


def _whole_chains(points: Ints, offsets: Offsets) -> tuple[Ints, Offsets]:
    """Return all pixels of borders that are given by the pixels at which they turn."""
    points, offsets = _anticlockwise(points, offsets)
    step = points[_following(offsets)] - points
    count = np.abs(step).max(axis=1, initial=0)
    starts = offsets[:-1][np.add.reduceat(count, offsets[:-1]) == 0] if len(offsets) > 1 else offsets[:0]
    count[starts] = 1  # a single pixel
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    chain = np.repeat(points, count, axis=0) + number[:, None] * np.repeat(np.sign(step), count, axis=0)
    return chain, ring_offsets(count)[offsets]


def _with_others(
    points: Floats,
    offsets: Offsets,
    done: tuple[Ints, Floats, Offsets],
    convert: Callable[[Floats], Floats],
) -> tuple[Floats, Offsets]:
    """Return all outlines in their order: those that are done, by their rows, and the others one by one."""
    rows, found, found_offsets = done
    others = np.setdiff1d(np.flatnonzero(ring_lengths(offsets) > 0), rows)
    if len(rows) == len(offsets) - 1 and (np.diff(rows) > 0).all():
        return found, found_offsets
    single = [convert(points[offsets[row] : offsets[row + 1]]) for row in others.tolist()]
    lengths = np.zeros(len(offsets) - 1, np.int64)
    lengths[rows], lengths[others] = ring_lengths(found_offsets), [len(ring) for ring in single]
    source = np.concatenate([found, *single, np.zeros((0, 2))])
    place = np.zeros(len(lengths), np.int64)
    order = np.concatenate([rows, others])
    place[order] = ring_offsets(lengths[order])[:-1]
    all_offsets = ring_offsets(lengths)
    return source[np.arange(all_offsets[-1]) + np.repeat(place - all_offsets[:-1], lengths)], all_offsets


def _drawn_edges(ring: Floats) -> Floats:
    """Return the edges of the pixels that an outline through centres encloses or runs through."""
    if not _can_be_drawn(ring):
        return ring + 0.5
    low = np.floor(ring.min(axis=0)) - 1
    mask = np.zeros(np.ceil(np.ptp(ring, axis=0)).astype(int)[::-1] + 4, np.uint8)
    cv2.fillPoly(mask, [np.rint((ring - low) * 2**_SHIFT).astype(np.int32)], 1, cv2.LINE_8, _SHIFT)
    border = find_border(mask)
    return np.asarray(edge_rings(border, np.array([0, len(border)]))[0] + low)


def _drawn_border(ring: Floats) -> Floats:
    """Return the turning points of the border of the pixels whose centres an outline encloses."""
    if not _can_be_drawn(ring):
        return ring - 0.5
    from skimage.draw import polygon  # here, for it is rarely needed and takes long to import

    low = np.floor(ring.min(axis=0))
    mask = np.zeros(np.ceil(ring.max(axis=0) - low).astype(int)[::-1] + 1, np.uint8)
    x, y = (ring - low - 0.5).T
    mask[polygon(y, x, mask.shape)] = 1  # type: ignore[no-untyped-call]
    if not mask.any():
        column, row = np.floor(ring.mean(axis=0) - low).astype(int)
        mask[row, column] = 1
    border = find_border(mask).astype(np.int64)
    return np.asarray(_turns(border, np.array([0, len(border)]))[0] + low)


def _can_be_drawn(ring: Floats) -> bool:
    return bool(np.isfinite(ring).all() and (np.ptp(ring, axis=0) < _LARGEST).all())
