"""Reading a part of a slide at a resolution of its own, so that no pixel depends on the box it is read in.

The picture is made in blocks that lie on a fixed grid. A block is always resampled in the same way from the same
pixels of a pyramid level, with a margin as wide as the filter reaches, so blocks fit without a seam. Beyond the edge
of the scanned part there is nothing: the filter is cut off there and its weights are normalised again, so that a
slide which is dark to its edge gets no light rim.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from cellvit.io.images import Rgb8

Pair = tuple[float, float]

LEVEL_TOLERANCE = 0.05
"""A pyramid level this much coarser than what is asked for still counts as fine enough."""

_BLOCK = 128
_BLOCK_SOURCE = 4096  # largest side of what a block is made from
_READ_PIXELS = 2**25  # read at once: 100 MB
_REACH = {Image.Resampling.LANCZOS: 3.0, Image.Resampling.HAMMING: 1.0}  # of the filters, in pixels of the coarser side


class Levels(Protocol):
    """What is needed of a slide: its levels, its scanned part, and regions."""

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """``(width, height)`` per level, full resolution first."""

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """``(x, y, width, height)`` of the scanned part, level-0 pixels."""

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return ``(height, width, 3)`` of a level."""


def level_ratios(level_sizes: Sequence[tuple[int, int]]) -> list[Pair]:
    """Return how many level-0 pixels a pixel of each level spans, ``(x, y)``.

    Scanners shrink by whole numbers and drop or fill up the last pixel. Where the sizes allow that, the whole number
    is the ratio: taken from the sizes it would be off by up to a pixel of the level at the far edge.

    Args:
        level_sizes: ``(width, height)``, full resolution first.

    Example:
        >>> level_ratios([(4443, 3567), (2221, 1783), (1000, 800)])
        [(1.0, 1.0), (2.0, 2.0), (4.443, 4.45875)]
    """
    width, height = level_sizes[0]
    return [_ratio((width, height), size) for size in level_sizes]


def ratios_of(slide: Levels) -> list[Pair]:
    """Return how many level-0 pixels a pixel of each level of a slide spans: as its file states it, else by the sizes.

    Args:
        slide: The slide; readers whose files state it have an attribute ``level_ratios``.
    """
    stated: Sequence[Pair] = getattr(slide, "level_ratios", ())
    return list(stated) or level_ratios(slide.level_sizes)


def _ratio(full: tuple[int, int], size: tuple[int, int]) -> Pair:
    stretched = (full[0] / size[0], full[1] / size[1])
    longest = stretched[0] if full[0] >= full[1] else stretched[1]
    for whole in (2 ** round(math.log2(longest)), round(longest)):
        if all(part in (total // whole, -(-total // whole)) for total, part in zip(full, size, strict=True)):
            return float(whole), float(whole)
    return stretched


def best_level(level_sizes: Sequence[tuple[int, int]], pixel: Pair) -> int:
    """Return the coarsest level that is at least as fine as a pixel size, within ``LEVEL_TOLERANCE``.

    Args:
        level_sizes: ``(width, height)``, full resolution first.
        pixel: ``(x, y)`` size in level-0 pixels of the pixels that are wanted.
    """
    fine = [
        (ratio[0] * ratio[1], level)
        for level, ratio in enumerate(level_ratios(level_sizes))
        if all(part <= wanted * (1 + LEVEL_TOLERANCE) for part, wanted in zip(ratio, pixel, strict=True))
    ]
    return max(fine)[1] if fine else 0


def resize_box(
    image: Rgb8, size: tuple[int, int], box: tuple[float, float, float, float], *, filter: Image.Resampling
) -> Rgb8:
    """Return a part of an image at another size, antialiased.

    Args:
        image: ``(H, W, 3)`` uint8.
        size: ``(width, height)`` of the result.
        box: ``(left, top, right, bottom)`` of the part, edges in pixels. Where it reaches beyond the image, the
            outermost pixels are repeated.
        filter: Filter of Pillow.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = box
    before_x, before_y = max(0, math.ceil(-left)), max(0, math.ceil(-top))
    after_x, after_y = max(0, math.ceil(right - width)), max(0, math.ceil(bottom - height))
    if before_x or before_y or after_x or after_y:
        image = np.pad(image, ((before_y, after_y), (before_x, after_x), (0, 0)), mode="edge")
    moved = (left + before_x, top + before_y, right + before_x, bottom + before_y)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, filter, box=moved))


@dataclass(frozen=True)
class _Block:
    """A block along one axis: its pixels in the picture, and where they come from in the level."""

    start: int
    stop: int
    source_start: int
    source_stop: int
    edges: Pair  # of the block, in pixels of the level


@dataclass(frozen=True)
class _Axis:
    """One axis of the picture: ``pixels`` that span ``length`` level-0 pixels from ``origin`` on."""

    origin: int
    length: int
    pixels: int
    ratio: float
    level_pixels: int
    reach: float

    @property
    def step(self) -> float:
        """Pixels of the level per pixel of the picture."""
        return self.length / self.pixels / self.ratio

    @property
    def block(self) -> int:
        """Pixels of a block: fewer where each is made of very many."""
        return max(1, min(_BLOCK, int(_BLOCK_SOURCE / self.step)))

    @property
    def offset(self) -> int | None:
        """The pixel of the level that is the first pixel of the picture, if all are pixels of the level."""
        start = self.origin / self.ratio
        return int(start) if self.step == 1.0 and start == int(start) else None

    def blocks(self, start: int, stop: int) -> list[_Block]:
        """Return the blocks that cover some pixels."""
        return [self._at(index) for index in range(start // self.block, -(-stop // self.block))]

    def _at(self, index: int) -> _Block:
        start, stop = index * self.block, min((index + 1) * self.block, self.pixels)
        edges = tuple((self.origin + i * self.length / self.pixels) / self.ratio for i in (start, stop))
        margin = self.reach * max(1.0, self.step) + 1
        first = min(int(self.origin / self.ratio), self.level_pixels - 1)
        last = min(math.ceil((self.origin + self.length) / self.ratio), self.level_pixels)
        low = min(max(first, math.floor(edges[0] - margin)), last - 1)
        high = max(min(last, math.ceil(edges[1] + margin)), low + 1)
        return _Block(start, stop, low, high, (edges[0], edges[1]))


class Resampled:
    """The scanned part of a slide as a picture of a given size.

    Args:
        slide: The slide.
        size: ``(width, height)`` of the picture.
        level: The level it is made from.
        filter: Lanczos or Hamming.
    """

    def __init__(
        self, slide: Levels, *, size: tuple[int, int], level: int, filter: Image.Resampling = Image.Resampling.LANCZOS
    ) -> None:
        self.size, self.level = size, level
        self._slide, self._filter = slide, filter
        ratio, level_size = ratios_of(slide)[level], slide.level_sizes[level]
        self._x, self._y = (
            _Axis(slide.bounds[i], slide.bounds[i + 2], size[i], ratio[i], level_size[i], _REACH[filter])
            for i in range(2)
        )

    def read(self, x: int, y: int, width: int, height: int) -> Rgb8:
        """Return a part of the picture, ``(height, width, 3)``.

        Args:
            x: Left edge in pixels of the picture.
            y: Top edge.
            width: Pixels of the picture, from 1; the part lies inside.
            height: Pixels of the picture, from 1; the part lies inside.
        """
        left, top = self._x.offset, self._y.offset
        if left is not None and top is not None:
            return self._slide.read_region(left + x, top + y, width, height, level=self.level)
        picture = np.empty((height, width, 3), np.uint8)
        self._fill(picture, (x, y), self._x.blocks(x, x + width), self._y.blocks(y, y + height))
        return picture

    def _fill(self, picture: Rgb8, origin: tuple[int, int], columns: list[_Block], rows: list[_Block]) -> None:
        """Write blocks into the picture, reading as much at once as memory allows, whole rows rather than columns."""
        left, top = columns[0].source_start, rows[0].source_start
        width, height = columns[-1].source_stop - left, rows[-1].source_stop - top
        if width * height > _READ_PIXELS and len(rows) > 1:
            half = len(rows) // 2
            self._fill(picture, origin, columns, rows[:half])
            self._fill(picture, origin, columns, rows[half:])
        elif width * height > _READ_PIXELS and len(columns) > 1:
            half = len(columns) // 2
            self._fill(picture, origin, columns[:half], rows)
            self._fill(picture, origin, columns[half:], rows)
        else:
            source = self._slide.read_region(left, top, width, height, level=self.level)
            for row in rows:
                for column in columns:
                    part = source[
                        row.source_start - top : row.source_stop - top,
                        column.source_start - left : column.source_stop - left,
                    ]
                    _paste(picture, origin, column, row, self._resize(part, column, row))

    def _resize(self, part: Rgb8, column: _Block, row: _Block) -> Rgb8:
        (left, right), (top, bottom) = column.edges, row.edges
        x, y = column.source_start, row.source_start
        size = (column.stop - column.start, row.stop - row.start)
        return resize_box(part, size, (left - x, top - y, right - x, bottom - y), filter=self._filter)


def _paste(picture: Rgb8, origin: tuple[int, int], column: _Block, row: _Block, block: Rgb8) -> None:
    """Write the part of a block that the picture holds."""
    height, width = picture.shape[:2]
    left, top = max(column.start, origin[0]), max(row.start, origin[1])
    right, bottom = min(column.stop, origin[0] + width), min(row.stop, origin[1] + height)
    picture[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]] = block[
        top - row.start : bottom - row.start, left - column.start : right - column.start
    ]
