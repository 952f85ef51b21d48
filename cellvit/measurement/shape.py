"""Size and form of nuclei, from their pixels, as scikit-image measures them."""

from typing import NamedTuple

import cv2
import numpy as np

from cellvit.measurement.base import MEASUREMENTS, Columns, Measurement
from cellvit.measurement.pixels import Floats, Groups, Ints, LabelledPixels

# Length that a pixel of the border adds, by what lies around it: 1 for itself, 2 for each neighbour on the border at a
# side and 10 at a corner (K. Benkrid et al., Design and FPGA implementation of a perimeter estimator, IMVIP 2000).
_STEPS = np.zeros(50)
_STEPS[[5, 7, 15, 17, 25, 27]] = 1
_STEPS[[21, 33]] = np.sqrt(2)
_STEPS[[13, 23]] = (1 + np.sqrt(2)) / 2

_DIAMOND = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
_PAIRS_AT_ONCE = 1_000_000
_ROUNDING = 1e-9


@MEASUREMENTS.register("shape")
class Shape(Measurement):
    """Size and form: area, lengths, axes, convexity."""

    def __call__(self, pixels: LabelledPixels) -> Columns:
        """Return ``area_um2`` and the others; see the page on measurements."""
        (across, down), unit = pixels.spacing, pixels.unit
        area = pixels.groups.sizes * (across * down)
        perimeter = _perimeter(pixels) * np.sqrt(across * down)
        axes = _axes(pixels)
        hulls = _hulls(pixels)
        longest, shortest = _feret(hulls, (across, down))
        with np.errstate(divide="ignore", invalid="ignore"):
            circularity = np.where(perimeter > 0, 4 * np.pi * area / perimeter**2, np.nan)
        found = {
            f"area_{unit}2": area,
            f"perimeter_{unit}": perimeter,
            f"equivalent_diameter_{unit}": np.sqrt(4 * area / np.pi),
            f"major_axis_{unit}": axes.major,
            f"minor_axis_{unit}": axes.minor,
            "orientation_rad": axes.orientation,
            "eccentricity": axes.eccentricity,
            "solidity": pixels.groups.sizes / _pixels_inside(hulls),
            "circularity": circularity,
            f"feret_max_{unit}": longest,
            f"feret_min_{unit}": shortest,
        }
        return {name: pixels.spread(values) for name, values in found.items()}


class _Axes(NamedTuple):
    """The ellipse of the same second moments."""

    major: Floats
    minor: Floats
    orientation: Floats
    eccentricity: Floats


def _axes(pixels: LabelledPixels) -> _Axes:
    """Return the axes of every nucleus; scikit-image's formulas, with lengths of pixels that may not be square."""
    groups, (across, down) = pixels.groups, pixels.spacing
    y, x = np.divmod(pixels.place, pixels.labels.shape[1])
    x, y = (values - groups.mean(values)[groups.owner] for values in (x * across, y * down))
    xx, yy, xy = groups.mean(x * x), groups.mean(y * y), groups.mean(x * y)
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    large, small = middle + spread, np.maximum(middle - spread, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        eccentricity = np.where(large > 0, np.sqrt(1 - small / large), 0)
    even = np.isclose(xx, yy, rtol=1e-12, atol=0) | (xx == yy)
    orientation = np.where(even, np.where(xy > 0, 1, -1) * -np.pi / 4, np.arctan2(2 * xy, yy - xx) / 2)
    return _Axes(4 * np.sqrt(large), 4 * np.sqrt(small), orientation, eccentricity)


def _perimeter(pixels: LabelledPixels) -> Floats:
    """Return the perimeter of every nucleus in pixels, as ``skimage.measure.perimeter`` does."""
    width = pixels.labels.shape[1] + 2
    label = np.pad(pixels.labels, 1).reshape(-1)
    y, x = np.divmod(pixels.place, width - 2)
    place = (y + 1) * width + x + 1
    own = label[place]
    sides, corners = (-width, -1, 1, width), (-width - 1, -width + 1, width - 1, width + 1)
    at_border = np.zeros(len(place), bool)
    for step in sides:
        at_border |= label[place + step] != own
    border, own = place[at_border], own[at_border]
    only = np.zeros_like(label)
    only[border] = own
    code = np.ones(len(border), np.int64)
    for weight, steps in ((2, sides), (10, corners)):
        for step in steps:
            code += weight * (only[border + step] == own)
    return np.bincount(pixels.groups.owner[at_border], _STEPS[code], minlength=len(pixels.rows)).astype(np.float64)


class _Hulls(NamedTuple):
    """Convex hulls of the middles of the pixels' edges.

    Attributes:
        points: ``(Q, 2)``, ``(x, y)`` twice the coordinates, where the centre of pixel ``i`` is at ``2 i``.
        corners: The points of each nucleus.
    """

    points: Ints
    corners: Groups


def _hulls(pixels: LabelledPixels) -> _Hulls:
    """Return the convex hull of every nucleus, as ``skimage.morphology.convex_hull_image`` takes it."""
    width = pixels.labels.shape[1]
    owner = pixels.groups.owner
    y, x = np.divmod(pixels.place, width)
    first = np.ones(len(x), bool)  # of a row of pixels of a nucleus; pixels are in reading order
    first[1:] = (y[1:] != y[:-1]) | (owner[1:] != owner[:-1])
    last = np.roll(first, -1)
    ends = 2 * np.stack([np.stack([x[which], y[which]], axis=1) for which in (first, last)], axis=1)
    tips = (ends[:, :, None] + _DIAMOND).reshape(-1, 2).astype(np.int32)
    offsets = 8 * np.concatenate([[0], np.cumsum(np.bincount(owner[first], minlength=len(pixels.rows)))])
    hulls = [cv2.convexHull(tips[a:b])[:, 0] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    sizes = np.array([len(hull) for hull in hulls], np.int64)
    return _Hulls(np.concatenate([np.zeros((0, 2), np.int32), *hulls]).astype(np.int64), Groups(sizes))


def _pixels_inside(hulls: _Hulls) -> Ints:
    """Return how many pixels of each hull have their centre inside: the area of ``convex_hull_image``."""
    points, corners = hulls
    if not len(points):
        return np.zeros(0, np.int64)
    following = np.arange(1, len(points) + 1)
    following[corners.starts + corners.sizes - 1] = corners.starts
    (x0, y0), (x1, y1) = points.T, points[following].T
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    first, stop = -(-low // 2), high // 2 + 1  # rows of pixel centres that an edge passes
    count = np.where(y0 == y1, 0, stop - first)
    edge = np.repeat(np.arange(len(points)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    x = (x0[edge] + (2 * row - y0[edge]) * ((x1 - x0) / np.where(y0 == y1, 1, y1 - y0))[edge]) / 2
    top = np.minimum.reduceat(first, corners.starts)
    rows = Groups(np.maximum.reduceat(stop, corners.starts) - top)
    place = rows.starts[corners.owner[edge]] + row - top[corners.owner[edge]]
    ends = np.zeros((2, len(rows.owner)))  # both sides of the hull in every row: one where edges rise, one where not
    ends[(y1 > y0)[edge].astype(np.int64), place] = x
    left, right = np.ceil(ends.min(axis=0) - _ROUNDING), np.floor(ends.max(axis=0) + _ROUNDING)
    return rows.sum(right - left + 1).astype(np.int64)


def _feret(hulls: _Hulls, spacing: tuple[float, float]) -> tuple[Floats, Floats]:
    """Return the largest and the smallest distance of two parallel lines that touch a hull on both sides."""
    points, corners = hulls
    count = len(corners.sizes)
    longest, shortest = np.zeros(count), np.zeros(count)
    if not count:
        return longest, shortest
    widest = int(corners.sizes.max())
    at_once = max(1, _PAIRS_AT_ONCE // widest**2)
    scaled = points * (np.asarray(spacing) / 2)
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        # a hull of fewer points repeats its last one
        index = corners.starts[part, None] + np.minimum(np.arange(widest), corners.sizes[part, None] - 1)
        hull = scaled[index]
        hull -= hull[:, :1]
        square = (hull**2).sum(axis=2)
        away = square[:, :, None] + square[:, None] - 2 * hull @ hull.transpose(0, 2, 1)
        longest[part] = np.sqrt(away.max(axis=(1, 2)))
        edge = np.roll(hull, -1, axis=1) - hull
        length = np.hypot(edge[..., 0], edge[..., 1])
        normal = np.stack([-edge[..., 1], edge[..., 0]], axis=1) / np.where(length > 0, length, 1)[:, None]
        reach = hull @ normal
        reach = reach.max(axis=1) - reach.min(axis=1)
        shortest[part] = np.where(length > 0, reach, np.inf).min(axis=1)
    return longest, shortest
