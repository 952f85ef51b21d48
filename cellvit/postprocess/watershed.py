"""The marker watershed of scikit-image, run only where nuclei touch, with the same result."""

import math
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from skimage import segmentation

from cellvit.types import IntMap

Ints = NDArray[np.int64]


def marker_watershed(energy: NDArray[np.float64], markers: IntMap, components: IntMap) -> IntMap:
    """Compute the watershed of an energy from markers inside a mask.

    The result is that of ``skimage.segmentation.watershed(energy, markers, mask=components > 0)``. A component
    with one marker goes to it whole, whatever the energy; only components with several are flooded.
    Components do not influence each other, except through the order in which equal pixels start (see
    :func:`_order_is_certain`); where that could matter, the whole map is flooded.

    Args:
        energy: ``(H, W)``; low values are flooded first.
        markers: ``(H, W)`` int32, 0 is none; what lies outside the mask does not count.
        components: ``(H, W)`` int32, the 4-connected components of the mask, labelled 1..N; 0 is outside.

    Returns:
        ``(H, W)`` int32: the marker that got each pixel; 0 outside the mask and in components without a marker.
    """
    at = np.flatnonzero(markers != 0)
    component, seed = components.reshape(-1)[at], markers.reshape(-1)[at]
    owner = np.zeros(int(components.max()) + 1, np.int32)
    owner[component] = seed  # any one of the component's markers; a component with a second one is contested
    contested = np.zeros(len(owner), np.bool_)
    contested[component[owner[component] != seed]] = True
    contested[0] = owner[0] = 0
    labels: IntMap = np.where(contested, np.int32(0), owner).take(components)
    if contested.any():
        at = np.flatnonzero(contested.take(components))
        number = np.cumsum(contested) - 1
        arena = _Arena(*np.divmod(at, energy.shape[1]), number[components.reshape(-1)[at]])
        flooded = _flooded(arena, energy.reshape(-1)[at], markers.reshape(-1)[at])
        if flooded is None:
            inside = components > 0
            return _watershed(energy, markers * inside, inside)
        labels.reshape(-1)[at] = flooded
    return labels


class _Arena(NamedTuple):
    """The pixels of components to flood, in reading order.

    Attributes:
        y: ``(P,)`` rows.
        x: ``(P,)`` columns.
        component: ``(P,)``, numbered from 0 without gaps.
    """

    y: Ints
    x: Ints
    component: Ints


def _flooded(arena: _Arena, energy: NDArray[np.float64], seeds: IntMap) -> IntMap | None:
    """Return the marker that gets each pixel, or None where the order of equal pixels might decide.

    A pixel whose lowest neighbour is a seed, lower than its other neighbours and than itself, gets that seed's marker:
    the seed is in the queue from the start, so it passes on its marker before any other neighbour comes up. The
    pixel itself comes up later than its seed in any case, so it may as well be a seed from the start, and the argument
    holds for its neighbours in turn. Only what no such way downhill joins to a marker needs a queue.
    """
    place, (height, width) = _packed(arena)
    level = np.full(height * width, np.inf)
    label, component = np.zeros((2, height * width), np.int32)
    level[place], label[place], component[place] = energy, seeds, arena.component
    free = place[seeds == 0]
    label[free] = label[_ends_downhill(level, free, width)]
    rest = free[label[free] == 0]
    if len(rest):
        mask = np.zeros(len(level), np.bool_)
        near = (rest[:, None] + np.array([-1, 1, -width, width])).reshape(-1)
        mask[near[label[near] > 0]] = mask[rest] = True
        at = np.flatnonzero(mask)
        if not _order_is_certain(level[at], component[at], label[at] > 0):
            return None
        shape = height, width
        found = _watershed(level.reshape(shape), (label * mask).reshape(shape), mask.reshape(shape))
        label[rest] = found.reshape(-1)[rest]
    return label[place]


def _packed(arena: _Arena) -> tuple[Ints, tuple[int, int]]:
    """Return where each pixel is in a smaller map with the same components, none beside another, and its shape.

    The boxes of components, the highest first, stand side by side in rows of about the same length.
    """
    y, x, component = arena
    top, bottom, right = np.zeros((3, int(component.max()) + 1), np.int64)
    left = np.full(len(top), x.max())
    top[component[::-1]], bottom[component] = y[::-1], y  # of several the last counts
    np.minimum.at(left, component, x)
    np.maximum.at(right, component, x)
    height, width = bottom - top + 2, right - left + 2  # with a gap
    order = np.argsort(-height, kind="stable")
    before = np.cumsum(width[order]) - width[order]
    length = math.isqrt(int((height * width).sum())) + 1
    row, highest, row_of = np.unique(before // length, return_index=True, return_inverse=True)
    row_starts = np.cumsum(height[order[highest]]) - height[order[highest]]
    down, along = np.empty_like(top), np.empty_like(top)
    down[order], along[order] = row_starts[row_of] + 1, before - row[row_of] * length + 1
    shape = int((down + height).max()), int((along + width).max())
    return (y + (down - top)[component]) * shape[1] + x + (along - left)[component], shape


def _ends_downhill(level: NDArray[np.float64], free: Ints, width: int) -> Ints:
    """Return where the way from each pixel to the lowest neighbour, as long as it is certain, ends.

    Args:
        level: ``(K,)`` flat, infinite outside.
        free: ``(P,)`` positions of the pixels that no marker has; the way ends at all others.
        width: Of the map.
    """
    steps = (-1, 1, -width, width)
    around = [level[free + step] for step in steps]
    lowest = np.minimum(np.minimum(around[0], around[1]), np.minimum(around[2], around[3]))
    onward, count = np.zeros(len(free), np.int64), np.zeros(len(free), np.int8)
    for step, value in zip(steps, around, strict=True):
        same = value == lowest
        onward += step * same
        count += same
    onward[(count > 1) | (lowest >= level[free])] = 0
    ends = np.arange(len(level))
    ends[free] += onward
    found = ends[free]
    while True:
        further = ends[found]
        if np.array_equal(further, found):
            return found
        ends[free] = found = further


def _order_is_certain(level: NDArray[np.float64], component: IntMap, seed: NDArray[np.bool_]) -> bool:
    """Tell whether the order in which pixels come up does not depend on how the queue is laid out.

    The flood is a queue ordered by energy, then by time of entry. All seeds enter at time 0, so which of two with equal
    energy comes up first depends on the layout of the queue, hence on all other components. If no seed has the
    energy of another pixel of its component, the order within each component is fixed. Measured maps have such ties
    hardly ever, exactly symmetric drawings do.

    Args:
        level: ``(K,)`` energy of the pixels.
        component: ``(K,)`` of the pixels.
        seed: ``(K,)``, whether they are in the queue from the start.
    """
    if not _markers_start_by_energy():
        return False
    order = np.lexsort((level, component))
    level, component, seed = level[order], component[order], seed[order]
    tied = (level[1:] == level[:-1]) & (component[1:] == component[:-1]) & (seed[1:] | seed[:-1])
    return not bool(tied.any())


@cache
def _markers_start_by_energy() -> bool:
    """Tell whether the installed scikit-image lets the marker pixel with the lowest energy start first.

    Where it treats all marker pixels as equal instead, their order is never certain.
    """
    flooded = _watershed(np.array([[-1.0, 0.0, -2.0]]), np.array([[1, 0, 2]], np.int32), np.ones((1, 3), np.bool_))
    return bool(flooded[0, 1] == 2)


def _watershed(energy: NDArray[np.float64], markers: IntMap, mask: NDArray[np.bool_]) -> IntMap:
    return cast(IntMap, cast(Any, segmentation.watershed)(energy, markers, mask=mask))
