"""Non-maximum suppression of star-convex shapes: of those that show the same nucleus, the most probable stays.

A shape covers the pixels whose centres lie in its polygon, also beyond the image. Areas are those of the polygons; what
two of them share is counted in pixels, for large ones in every second, third, ... pixel and row, so that a comparison
costs the same whatever the size.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellvit.geometry.rays import ray_directions, star_area
from cellvit.types import FloatMap

Indices = NDArray[np.intp]

_MIN_DISTANCE = np.float32(1e-3)  # pixels; a shape without extent still covers its centre
_MAX_POINTS = 400  # at which the overlap with one shape is measured
_CHUNK = 1 << 20  # shapes times pixels that are looked at together


class Shapes(NamedTuple):
    """Star-convex shapes around pixel centres.

    Attributes:
        x: Columns of the centres, ``(N,)`` integers.
        y: Rows of the centres, ``(N,)`` integers.
        distances: From the centre to the outline along each ray, ``(N, K)`` float32; less than 0.001 px counts as
            0.001 px.
    """

    x: Indices
    y: Indices
    distances: FloatMap


class _Disc(NamedTuple):
    """Pixels around a centre, in the coordinates of the two rays that enclose each.

    A pixel is ``along · u_k + across · u_(k + 1)`` in its sector ``k``, so it lies in the triangle of the centre and
    the two ends of the rays if ``along / r_k + across / r_(k + 1) <= 1``.

    Attributes:
        radius: The table spans ``(2 radius + 1)²`` pixels, flat, centre in the middle.
        sector: ``k`` of each pixel.
        along: First coordinate, float32.
        across: Second coordinate, float32.
    """

    radius: int
    sector: Indices
    along: FloatMap
    across: FloatMap


def non_maximum_suppression(
    shapes: Shapes, prob: FloatMap, *, threshold: float
) -> tuple[Indices, list[tuple[Indices, Indices]]]:
    """Choose the shapes that no better one overlaps.

    The most probable shape is kept and removes all others with which it shares more than ``threshold`` of the smaller
    of the two areas; then the most probable of the rest is kept, and so on. Of equally probable ones the first goes
    first. One turn costs what there is around the shape that is kept, whatever the number of shapes.

    Args:
        shapes: The shapes, no two with the same centre.
        prob: Probability of each, ``(N,)``.
        threshold: Share of the smaller area, in [0, 1).

    Returns:
        Indices of the shapes kept ``(M,)``, most probable first, and the pixels ``(x, y)`` of each.
    """
    if not len(prob):
        return np.zeros(0, np.intp), []
    distances = np.maximum(shapes.distances, _MIN_DISTANCE)
    inverse = np.concatenate([1 / distances, 1 / distances[:, :1]], axis=1)  # the first again, behind the last
    longest = distances.max(axis=1)
    reach = int(longest.max())
    disc = _disc(distances.shape[1], 3 * reach + 1)
    area = star_area(distances)
    x, y = shapes.x - shapes.x.min(), shapes.y - shapes.y.min()
    # Which shape is centred where, -1 once it is decided: a look at a window finds those that matter.
    undecided = np.full((int(y.max()) + 1, int(x.max()) + 1), -1, np.intp)
    undecided[y, x] = np.arange(len(prob))
    kept, pixels = [], []
    for best in np.argsort(-prob, kind="stable").tolist():
        row, col = int(y[best]), int(x[best])
        if undecided[row, col] != best:
            continue
        undecided[row, col] = -1
        own = _covered(inverse[best], int(longest[best]), disc)
        kept.append(best)
        pixels.append((own[0] + shapes.x[best], own[1] + shapes.y[best]))
        far = int(longest[best]) + reach + 1
        window = undecided[max(0, row - far) : row + far + 1, max(0, col - far) : col + far + 1]
        others = window[window >= 0]
        dx, dy = x[others] - col, y[others] - row
        near = dx * dx + dy * dy <= (longest[others] + longest[best]) ** 2
        others = others[near]
        stride = math.ceil(math.sqrt(area[best] / _MAX_POINTS))
        shared = _shared(_thinned(own, stride), dx[near], dy[near], inverse[others], disc) * stride**2
        same = others[shared > threshold * np.minimum(area[others], area[best])]
        undecided[y[same], x[same]] = -1
    return np.array(kept, np.intp), pixels


def _shared(
    own: tuple[Indices, Indices], dx: Indices, dy: Indices, inverse: FloatMap, disc: _Disc
) -> NDArray[np.int64]:
    """Return how many of some pixels lie in each of the shapes whose centres are at ``(dx, dy)``."""
    side = 2 * disc.radius + 1
    pixels = (own[1] + disc.radius) * side + own[0] + disc.radius
    shared = np.empty(len(dx), np.int64)
    rows = max(1, _CHUNK // max(1, len(pixels)))
    for first in range(0, len(dx), rows):
        part = slice(first, first + rows)
        at = pixels - (dy[part] * side + dx[part])[:, None]
        ray = disc.sector[at] + (np.arange(len(at)) * inverse.shape[1])[:, None]
        ends = inverse[part].reshape(-1)
        shared[part] = (disc.along[at] * ends[ray] + disc.across[at] * ends[ray + 1] <= 1).sum(axis=1)
    return shared


def _covered(inverse: FloatMap, longest: int, disc: _Disc) -> tuple[Indices, Indices]:
    """Return the pixels ``(x, y)`` of one shape, relative to its centre."""
    span = slice(disc.radius - longest, disc.radius + longest + 1)
    side = 2 * disc.radius + 1
    sector, along, across = (t.reshape(side, side)[span, span] for t in (disc.sector, disc.along, disc.across))
    y, x = np.nonzero(along * inverse[sector] + across * inverse[sector + 1] <= 1)
    return x - longest, y - longest


def _thinned(pixels: tuple[Indices, Indices], stride: int) -> tuple[Indices, Indices]:
    """Return the pixels in every so many rows and columns, counted from the centre."""
    if stride == 1:
        return pixels
    x, y = pixels
    chosen = (x % stride == 0) & (y % stride == 0)
    return x[chosen], y[chosen]


@lru_cache(maxsize=4)
def _disc(num_rays: int, radius: int) -> _Disc:
    y, x = (v.reshape(-1) for v in np.indices((2 * radius + 1, 2 * radius + 1)) - radius)
    turn = 2 * np.pi / num_rays
    sector = np.minimum((np.arctan2(y, x) % (2 * np.pi) / turn).astype(np.intp), num_rays - 1)
    directions = ray_directions(num_rays)
    first, second = directions[sector], directions[(sector + 1) % num_rays]
    along = (x * second[:, 1] - y * second[:, 0]) / np.sin(turn)
    across = (y * first[:, 0] - x * first[:, 1]) / np.sin(turn)
    return _Disc(radius, sector, along.astype(np.float32), across.astype(np.float32))
