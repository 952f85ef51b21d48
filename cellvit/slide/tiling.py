"""The grid of overlapping tiles over an image, which tile owns which point, and tiles cut down to what is wanted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellvit.errors import ConfigError


@dataclass(frozen=True)
class Tile:
    """One tile: its place in the grid and its box in pixels of the image.

    Attributes:
        index: Number of the tile, row by row.
        x: Left edge.
        y: Top edge.
        width: Columns.
        height: Rows.
    """

    index: int
    x: int
    y: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return the ``(row, column)`` slices that cut the tile out of an array ``(H, W, ...)``."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


CROP_STEP = 256
"""Pixels: tiles are cut down in steps of it, so that few sizes occur. Attention windows of 16 tokens stay whole."""

_NOTHING = 1e-9  # share of a block that is rounding


@dataclass(frozen=True)
class TileAxis:
    """Tiles along one axis: all of one size, the last one shifted inward instead of padded.

    The *core* of a tile ends midway between its own end and the start of its neighbour; the outermost cores are
    unbounded. Cores partition the axis, so every point has exactly one owner. Pixel ``i`` covers ``[i, i + 1)``.

    Attributes:
        length: Pixels along the axis.
        tile_size: Largest tile.
        overlap: Pixels that neighbouring tiles share at least.
    """

    length: int
    tile_size: int
    overlap: int

    @property
    def size(self) -> int:
        """Return the size of every tile: ``tile_size``, or ``length`` where that is smaller."""
        return min(self.tile_size, self.length)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Return the first pixel of every tile ``(n,)``, strictly increasing."""
        last = self.length - self.size
        steps = -(-last // (self.tile_size - self.overlap))
        return np.minimum(np.arange(steps + 1, dtype=np.int64) * (self.tile_size - self.overlap), last)

    @cached_property
    def cuts(self) -> NDArray[np.float64]:
        """Return the borders between neighbouring cores ``(n - 1,)``, in pixels."""
        cuts: NDArray[np.float64] = (self.starts[:-1] + self.starts[1:] + self.size) / 2
        return cuts

    def owner(self, points: ArrayLike) -> NDArray[np.int64]:
        """Return the number of the tile whose core holds each point; a point on a border goes to the later tile."""
        return np.searchsorted(self.cuts, np.asarray(points), side="right").astype(np.int64)

    def own_range(self, number: int) -> tuple[float, float]:
        """Return the half-open range that no other tile covers; empty or negative if the others cover it all."""
        low = self.starts[number - 1] + self.size if number > 0 else -np.inf
        high = self.starts[number + 1] if number + 1 < len(self.starts) else np.inf
        return float(low), float(high)


@dataclass(frozen=True)
class TileGrid:
    """The grid of overlapping tiles over an image of one size.

    Attributes:
        width: Columns of the image.
        height: Rows of the image.
        tile_size: Side of a tile in pixels; an image smaller than that is one tile of its own size.
        overlap: Pixels that neighbouring tiles share at least. Half of it is the margin a nucleus may extend
            beyond the core that holds its centre without being cut.

    Raises:
        ConfigError: If a size is not positive, or the overlap is negative or more than half a tile.

    Example:
        >>> grid = TileGrid(width=28, height=4, tile_size=16, overlap=4)
        >>> [grid.tile(i).x for i in range(len(grid))]
        [0, 12]
        >>> grid.owner([[13.9, 0.0], [14.0, 3.0]]).tolist()
        [0, 1]
    """

    width: int
    height: int
    tile_size: int = 1024
    overlap: int = 64

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ConfigError(f"an image of {self.width} x {self.height} px has no pixels; give 1 x 1 px or more")
        if self.tile_size < 16:
            raise ConfigError(f"tile size {self.tile_size} is too small; use 256 to 2048 px (1024 is the default)")
        if not 0 <= self.overlap <= self.tile_size // 2:
            limit = self.tile_size // 2
            raise ConfigError(f"overlap {self.overlap} does not fit tiles of {self.tile_size} px; use 0 to {limit} px")

    @cached_property
    def columns(self) -> TileAxis:
        """Return the tiles along x."""
        return TileAxis(self.width, self.tile_size, self.overlap)

    @cached_property
    def rows(self) -> TileAxis:
        """Return the tiles along y."""
        return TileAxis(self.height, self.tile_size, self.overlap)

    def __len__(self) -> int:
        return len(self.columns.starts) * len(self.rows.starts)

    def tile(self, index: int) -> Tile:
        """Return one tile by its number, counted row by row."""
        row, column = divmod(index, len(self.columns.starts))
        x, y = int(self.columns.starts[column]), int(self.rows.starts[row])
        return Tile(index, x, y, self.columns.size, self.rows.size)

    def boxes_of(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the boxes ``(N, 4)`` of tiles by their numbers: ``(xmin, ymin, xmax, ymax)``, half-open."""
        rows, columns = np.divmod(tiles, len(self.columns.starts))
        corner = np.stack([self.columns.starts[columns], self.rows.starts[rows]], axis=1)
        return np.concatenate([corner, corner + np.array([self.columns.size, self.rows.size])], axis=1)

    def owner(self, points: ArrayLike) -> NDArray[np.int64]:
        """Return the number of the tile whose core holds each point.

        Args:
            points: ``(N, 2)`` ``(x, y)``, pixels of the image.

        Returns:
            ``(N,)`` tile numbers; cores are half-open, so every point has exactly one owner.
        """
        xy = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        return self.rows.owner(xy[:, 1]) * len(self.columns.starts) + self.columns.owner(xy[:, 0])

    def shared(self, index: int, bbox: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which boxes of a tile reach into a part of it that another tile covers too.

        Args:
            index: Number of the tile.
            bbox: ``(N, 4)`` ``(xmin, ymin, xmax, ymax)``, half-open, pixels of the image.

        Returns:
            ``(N,)`` booleans; only these nuclei can have been found twice.
        """
        row, column = divmod(index, len(self.columns.starts))
        (left, right), (top, bottom) = self.columns.own_range(column), self.rows.own_range(row)
        inside = (bbox[:, 0] >= left) & (bbox[:, 1] >= top) & (bbox[:, 2] <= right) & (bbox[:, 3] <= bottom)
        return ~inside

    def cut(self, index: int, bbox: NDArray[np.float64], *, margin: float = 0.0) -> NDArray[np.bool_]:
        """Tell which boxes of a tile come within ``margin`` pixels of one of its edges inside the image.

        Args:
            index: Number of the tile.
            bbox: ``(N, 4)`` ``(xmin, ymin, xmax, ymax)``, half-open, pixels of the image.
            margin: Pixels; 0 asks for boxes that touch the edge.

        Returns:
            ``(N,)`` booleans; edges of the image itself do not count, there is nothing beyond them.
        """
        tile = self.tile(index)
        right, bottom = tile.x + tile.width, tile.y + tile.height
        left_cut = (bbox[:, 0] <= tile.x + margin) & (tile.x > 0)
        top_cut = (bbox[:, 1] <= tile.y + margin) & (tile.y > 0)
        right_cut = (bbox[:, 2] >= right - margin) & (right < self.width)
        bottom_cut = (bbox[:, 3] >= bottom - margin) & (bottom < self.height)
        return left_cut | top_cut | right_cut | bottom_cut

    def reaches(self, done: int, bbox: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which boxes reach into a tile that is still to come when tiles are taken by their numbers.

        Args:
            done: Tiles below this number are done.
            bbox: ``(N, 4)`` ``(xmin, ymin, xmax, ymax)``, half-open, pixels of the image; of tiles that are done.

        Returns:
            ``(N,)`` booleans.
        """
        if done >= len(self):
            return np.zeros(len(bbox), dtype=bool)
        row, column = divmod(done, len(self.columns.starts))
        later_rows = self.rows.starts[row + 1] if row + 1 < len(self.rows.starts) else np.inf
        this_row = (bbox[:, 3] > self.rows.starts[row]) & (bbox[:, 2] > self.columns.starts[column])
        return np.asarray((bbox[:, 3] > later_rows) | this_row, dtype=bool)


@dataclass(frozen=True)
class CroppedGrid(TileGrid):
    """A grid whose tiles are cut down to what is wanted of them; those that nothing is wanted of are left whole.

    Neighbours share more than the overlap where the last tile is shifted inward. There the earlier one owns all that it
    sees with the usual margin, so that the later one can be cut down to the rest.

    Attributes:
        boxes: ``(T, 4)`` int64 ``(xmin, ymin, xmax, ymax)`` of every tile, half-open, pixels of the image.
    """

    boxes: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64), compare=False)

    @cached_property
    def columns(self) -> TileAxis:
        """Return the tiles along x."""
        return _LateAxis(self.width, self.tile_size, self.overlap)

    @cached_property
    def rows(self) -> TileAxis:
        """Return the tiles along y."""
        return _LateAxis(self.height, self.tile_size, self.overlap)

    def boxes_of(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the boxes ``(N, 4)`` of what is left of tiles, by their numbers."""
        return self.boxes[tiles]

    def tile(self, index: int) -> Tile:
        """Return what is left of a tile, by its number."""
        left, top, right, bottom = self.boxes[index].tolist()
        return Tile(index, left, top, right - left, bottom - top)


class _LateAxis(TileAxis):
    """Tiles whose cores end as late as half the overlap allows."""

    @cached_property
    def cuts(self) -> NDArray[np.float64]:
        """Return the borders between neighbouring cores ``(n - 1,)``, in pixels."""
        return np.asarray(self.starts[:-1] + self.size - self.overlap / 2, np.float64)


def cropped_grid(
    grid: TileGrid, coverage: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[CroppedGrid, NDArray[np.int64]]:
    """Return a grid whose tiles are cut down to what is wanted in their cores, and the tiles that hold any of it.

    Around all that is wanted a tile keeps half the overlap, the margin that it has at its own edges. Tiles are cut
    along lines :data:`CROP_STEP` pixels apart, counted from their corner.

    Args:
        grid: The whole tiles.
        coverage: Returns for boxes ``(N, 4)``, pixels of the image, the share of each that is wanted.

    Returns:
        The grid, and ``(K,)`` the numbers of the tiles to do, ascending.
    """
    cropped = CroppedGrid(grid.width, grid.height, grid.tile_size, grid.overlap)
    axes, margin = (cropped.columns, cropped.rows), grid.overlap / 2
    sides, low, high = [], [], []
    for axis in axes:
        lines = np.append(np.arange(0, axis.size, CROP_STEP), axis.size)
        edges = axis.starts[:, None] + lines  # (n, blocks + 1)
        core = np.concatenate([[0.0], axis.cuts, [axis.length]])
        sides.append(lines)
        low.append(np.maximum(edges[:, :-1] - margin, core[:-1, None]))
        high.append(np.maximum(np.minimum(edges[:, 1:] + margin, core[1:, None]), low[-1]))
    shape = (len(low[1]), len(low[0]), low[1].shape[1], low[0].shape[1])
    boxes = np.empty((*shape, 4))
    for place, (x, y) in ((0, (low[0], low[1])), (2, (high[0], high[1]))):
        boxes[..., place], boxes[..., place + 1] = x[None, :, None, :], y[:, None, :, None]
    wanted = (coverage(boxes.reshape(-1, 4)) > _NOTHING).reshape(-1, *shape[2:])
    ends = []
    for number, lines in enumerate(sides):
        used = np.asarray(wanted.any(axis=1 + number))  # of the blocks along x, those with something in any row
        used = used | ~used.any(axis=1, keepdims=True)
        first, last = used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)
        ends.append((lines[first], lines[last]))
    corner = grid.boxes_of(np.arange(len(grid)))[:, :2]
    kept = np.concatenate([corner + np.stack([e[i] for e in ends], axis=1) for i in range(2)], axis=1)
    done = np.flatnonzero(wanted.any(axis=(1, 2)))
    return CroppedGrid(grid.width, grid.height, grid.tile_size, grid.overlap, kept.astype(np.int64)), done
