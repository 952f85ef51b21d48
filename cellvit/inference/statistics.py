"""What the nuclei of a slide say together: density, proportions of types, how near they lie, and hot spots."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import type_name
from cellvit.io.stream import NucleiStream
from cellvit.plotting.hotspots import WINDOW_STEPS, densest_windows
from cellvit.slide.tissue import TissueMask

FEWEST = 50
"""Types of fewer nuclei are left out: their numbers would be chance."""

BLOCK_UM = 500.0
"""Side of the squares whose differences give the intervals, and of hot spots."""

REACH_UM = 50.0
"""Distance within which neighbours are counted."""

ALL = "all"

_FEWEST_BLOCKS = 4
_SPOTS = 3

Bounds = tuple[int, int, int, int]
_Floats = NDArray[np.float64]


def slide_statistics(
    stream: NucleiStream, *, bounds: Bounds, mpp: tuple[float, float], tissue: TissueMask
) -> dict[str, Any]:
    """Return statistics of the nuclei of a slide as plain data.

    Intervals hold the true value in 95 % of slides like this one. They come from the differences between squares of
    500 µm, by the ratio estimator of survey sampling (Cochran, *Sampling Techniques*, 3rd ed. 1977, chapter 6), since
    nuclei lie in groups and vary more than independent ones would; with fewer than four squares they are None.

    Args:
        stream: The nuclei, in pixels; read once. Their centroids and types are held, 20 bytes a nucleus.
        bounds: ``(x, y, width, height)`` of the scanned part in the same pixels.
        mpp: Microns per pixel along x and y.
        tissue: Where nuclei were looked for, over the bounds.

    Returns:
        ``density_per_mm2``: by type name, ``all`` first, ``{"value", "low", "high"}`` per mm² of tissue. ``ratios``:
        for each pair of types the nuclei of the first per nucleus of the second, with their interval. ``neighbours``:
        for each ordered pair, from every nucleus of the first to the nearest other of the second, the quartiles in µm,
        and the mean number of the second within 50 µm. ``hot_spots``: by type name up to three squares of 500 µm with
        the most nuclei, which do not overlap, in pixels. Types and squares of fewer than 50 nuclei appear nowhere.
    """
    place = _Place(bounds, mpp, tissue)
    points, kinds = _collect(stream)
    counted, numbers = np.unique(kinds, return_counts=True)
    chosen = {str(type_name(stream.classes, k)): k for k in counted[numbers >= FEWEST].tolist() if k > 0}
    groups = {name: points[kinds == kind] for name, kind in chosen.items()}
    every = {ALL: points, **groups} if len(points) >= FEWEST else {}
    area, blocks = place.block_areas(), {name: place.block_counts(xy) for name, xy in every.items()}
    return {
        "fewest_nuclei": FEWEST,
        "block_um": BLOCK_UM,
        "reach_um": REACH_UM,
        "density_per_mm2": {name: _ratio(count, area) for name, count in blocks.items()},
        "ratios": [{"of": a, "to": b, **_ratio(blocks[a], blocks[b])} for a, b in combinations(groups, 2)],
        "neighbours": _neighbours({name: xy * np.array(mpp) for name, xy in groups.items()}),
        "hot_spots": {name: place.hot_spots(xy) for name, xy in every.items()},
    }


@dataclass(frozen=True)
class _Place:
    """The scanned part of a slide."""

    bounds: Bounds
    mpp: tuple[float, float]
    tissue: TissueMask

    def _grid(self, steps: int) -> tuple[_Floats, tuple[int, int]]:
        """Return the size in pixels of parts of a block, ``(x, y)``, and the rows and columns of them."""
        size = BLOCK_UM / np.array(self.mpp) / steps
        columns, rows = np.ceil(np.array(self.bounds[2:]) / size).astype(int).clip(1).tolist()
        return size, (rows, columns)

    def block_areas(self) -> _Floats:
        """Return the mm² of tissue in each block, ``(rows, columns)``."""
        size, shape = self._grid(1)
        corner = np.indices(shape)[::-1].reshape(2, -1).T * size
        return self._tissue_mm2(np.concatenate([corner, corner + size], axis=1)).reshape(shape)

    def block_counts(self, points: _Floats, steps: int = 1) -> NDArray[np.int64]:
        """Return the number of points in each block or part of one, ``(rows, columns)``."""
        size, shape = self._grid(steps)
        cell = np.floor((points - self.bounds[:2]) / size).astype(np.int64).clip(0, np.array(shape)[::-1] - 1)
        flat = cell[:, 1] * shape[1] + cell[:, 0]
        return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)

    def hot_spots(self, points: _Floats) -> list[dict[str, Any]]:
        """Return the squares with most of the points."""
        size, shape = self._grid(WINDOW_STEPS)
        counts = self.block_counts(points, WINDOW_STEPS)
        padded = np.pad(counts, [(0, max(0, WINDOW_STEPS - side)) for side in shape])
        found = []
        for row, column in densest_windows(padded, _SPOTS):
            start = np.array([column, row]) * size
            number = int(padded[row : row + WINDOW_STEPS, column : column + WINDOW_STEPS].sum())
            if number < FEWEST:
                break
            area = float(self._tissue_mm2(np.concatenate([start, start + size * WINDOW_STEPS])[None])[0])
            x, y = (start + self.bounds[:2]).round().astype(int).tolist()
            width, height = (size * WINDOW_STEPS).round().astype(int).tolist()
            spot = {"x": x, "y": y, "width": width, "height": height, "nuclei": number}
            found.append({**spot, "per_mm2": round(number / area, 1) if area else None})
        return found

    def _tissue_mm2(self, boxes: _Floats) -> _Floats:
        """Return the mm² of tissue in boxes ``(N, 4)``, counted from the corner of the bounds."""
        inside = np.clip(boxes, 0, np.tile(self.bounds[2:], 2))
        area = (inside[:, 2:] - inside[:, :2]).prod(axis=1) * self.mpp[0] * self.mpp[1] / 1e6
        return np.asarray(self.tissue.coverage(inside, self.bounds[2:]) * area)


def _collect(stream: NucleiStream) -> tuple[_Floats, NDArray[np.int32]]:
    """Return all centroids ``(N, 2)`` that are finite, and their types ``(N,)``."""
    points, kinds = [np.zeros((0, 2))], [np.zeros(0, np.int32)]
    for chunk in stream:
        known = np.isfinite(chunk.centroid).all(axis=1)
        points.append(chunk.centroid[known])
        kinds.append(chunk.type[known])
    return np.concatenate(points), np.concatenate(kinds)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> dict[str, float | None]:
    """Return the ratio of two sums over blocks, with the interval that the differences between blocks give."""
    from scipy.special import stdtrit  # here, for the library takes longer to import than most commands

    total = float(below.sum())
    if not total:
        return {"value": None, "low": None, "high": None}
    value = float(above.sum()) / total
    used = (above > 0) | (below > 0)
    number = int(used.sum())
    if number < _FEWEST_BLOCKS:
        return {"value": _rounded(value), "low": None, "high": None}
    rest = above[used] - value * below[used]
    reach = stdtrit(number - 1, 0.975) * np.sqrt(number / (number - 1) * (rest**2).sum()) / total
    return {"value": _rounded(value), "low": _rounded(max(0.0, value - reach)), "high": _rounded(value + reach)}


def _neighbours(groups: Mapping[str, _Floats]) -> list[dict[str, Any]]:
    """Return how near the types lie to each other; points are in microns."""
    from scipy.spatial import cKDTree

    trees = {name: cKDTree(points) for name, points in groups.items()}
    found = []
    for near, other in product(groups, groups):
        own = near == other
        distance = trees[other].query(groups[near], k=[2] if own else [1])[0].ravel()
        within = int(trees[near].count_neighbors(trees[other], REACH_UM)) - (len(distance) if own else 0)
        quartiles = [round(float(q), 2) for q in np.percentile(distance, [25, 50, 75])]
        found.append({"from": near, "to": other, "nearest_um": quartiles, "within": _rounded(within / len(distance))})
    return found


def _rounded(value: float) -> float:
    """Return a value to four digits."""
    return float(f"{value:.4g}")
