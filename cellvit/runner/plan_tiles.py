"""Which tiles of a slide stand for all, and what they cover."""

import numpy as np
from numpy.typing import NDArray

from cellvit.runner.preparation import PreparedSlide


def spread(prepared: PreparedSlide, count: int, batch_size: int) -> list[NDArray[np.int64]]:
    """Return batches of neighbouring tiles, spread over what is searched: where there is more tissue lie more.

    Args:
        prepared: The slide, with at least one tile to do.
        count: Batches; a slide with few tiles gives fewer.
        batch_size: Tiles of each.
    """
    tiles = prepared.tiles
    if len(tiles) <= count * batch_size:
        return [tiles[start : start + batch_size] for start in range(0, len(tiles), batch_size)]
    tissue = np.cumsum(prepared.tissue.coverage(tile_boxes(prepared, tiles), prepared.size))
    wanted = (np.arange(count) + 0.5) / count * tissue[-1]
    starts = np.searchsorted(tissue, wanted) - (batch_size - 1) // 2
    first, last = batch_size * np.arange(count), len(tiles) - batch_size * np.arange(count, 0, -1)
    starts = np.clip(starts, first, last)
    for i in range(1, count):
        starts[i] = max(starts[i], starts[i - 1] + batch_size)
    return [tiles[start : start + batch_size] for start in starts]


def tile_boxes(prepared: PreparedSlide, tiles: NDArray[np.int64], *, core: bool = False) -> NDArray[np.float64]:
    """Return the boxes of tiles ``(N, 4)`` in pixels of the view, or of what they own: cores do not overlap."""
    rows, columns = np.divmod(tiles, len(prepared.grid.columns.starts))
    edges = []
    for axis, numbers in ((prepared.grid.columns, columns), (prepared.grid.rows, rows)):
        if core:
            cuts = np.concatenate([[0.0], axis.cuts + 0.5, [axis.length]])
            edges.append((cuts[numbers], cuts[numbers + 1]))
        else:
            edges.append((axis.starts[numbers], axis.starts[numbers] + axis.size))
    (left, right), (top, bottom) = edges
    return np.stack([left, top, right, bottom], axis=1).astype(np.float64)


def searched_mm2(prepared: PreparedSlide, tiles: NDArray[np.int64]) -> float:
    """Return the square millimetres of tissue in the cores of tiles."""
    boxes = tile_boxes(prepared, tiles, core=True)
    x, y = (mpp / scale / 1000 for mpp, scale in zip(prepared.resolution.mpp, prepared.view.scale, strict=True))
    area = (boxes[:, 2] - boxes[:, 0]) * x * (boxes[:, 3] - boxes[:, 1]) * y
    return float((prepared.tissue.coverage(boxes, prepared.size) * area).sum())
