"""Outlines as maps of labels, all of them at once."""

import numpy as np
from numpy.typing import NDArray

from cellvit.geometry.polygons import Floats, Offsets, ring_lengths


def draw_rings(points: Floats, offsets: Offsets, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return a map of the pixels whose centres lie inside each outline; where outlines overlap the later one is seen.

    Pixel ``i`` covers ``[i, i + 1)``; a centre exactly on an outline belongs to what is to the right of or below it.
    Where an outline crosses itself, what it goes around twice is outside (even-odd rule).

    Args:
        points: ``(P, 2)``, ``(x, y)``, open or closed outlines; one with a point that is not finite is not drawn.
        offsets: ``(N + 1,)``.
        shape: ``(H, W)`` of the map; parts outside are cut off.

    Returns:
        ``(H, W)`` int32: outline ``i`` is label ``i + 1``, 0 is background.

    Example:
        >>> draw_rings(np.array([[1.0, 0], [3, 0], [3, 2], [1, 2]]), np.array([0, 4]), (3, 4)).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    canvas = np.zeros(shape, np.int32)
    lengths = ring_lengths(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    broken = np.zeros(len(lengths), bool)
    broken[owner[~np.isfinite(points).all(axis=1)]] = True
    following = np.arange(1, len(points) + 1)
    filled = lengths > 0
    following[offsets[1:][filled] - 1] = offsets[:-1][filled]
    edges = np.flatnonzero(~broken[owner])
    (x0, y0), (x1, y1) = points[edges].T, points[following[edges]].T
    first, stop = (_first_centre(end, shape[0]) for end in (np.minimum(y0, y1), np.maximum(y0, y1)))
    edge, row = _expanded(first, stop - first)
    x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    ring = owner[edges][edge]
    order = np.lexsort((x, row, ring))  # every outline crosses a row an even number of times: in, out, in, out
    x, row, ring = x[order], row[order[::2]], ring[order[::2]]
    left, right = _first_centre(x[::2], shape[1]), _first_centre(x[1::2], shape[1])
    run, column = _expanded(left, right - left)
    canvas.reshape(-1)[row[run] * shape[1] + column] = ring[run] + 1
    return canvas


def _first_centre(edge: Floats, size: int) -> NDArray[np.int64]:
    """Return the first of ``size`` pixels whose centre lies at or behind a coordinate; ``size`` if there is none."""
    return np.ceil(np.clip(edge - 0.5, 0, size)).astype(np.int64)


def _expanded(first: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of runs of whole numbers, each as often as it is long, and the numbers in them."""
    number = np.repeat(np.arange(len(first)), count)
    return number, np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count) + first[number]
