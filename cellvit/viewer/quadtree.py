"""Squares of a slide, each of four smaller ones, and nuclei in an order in which every square is one run of rows.

The order is that of a Z-shaped curve through small cells [1]: the bits of a cell's column and row take turns in one
number. All cells of a square, however large, have numbers that follow each other.

[1] Morton, A computer oriented geodetic data base and a new technique in file sequencing, IBM 1966.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]

FINEST = 256
"""Level-0 pixels along a side of the smallest squares."""

_BITS = 16  # of a row or column of cells
_SMALLEST_CELL = 4
_DENSITY_BITS = 6


@dataclass(frozen=True)
class Quadtree:
    """Squares that cover an area from the corner ``(0, 0)`` on.

    At zoom ``z`` a square is ``base / 2**z`` level-0 pixels wide. What lies outside belongs to the squares at the edge.

    Attributes:
        base: Side of the largest square: 256 times a power of two.

    Example:
        >>> tree = Quadtree.covering(40_000, 30_000)
        >>> tree.base, tree.max_zoom, tree.cell
        (65536, 8, 4)
    """

    base: int

    @classmethod
    def covering(cls, width: float, height: float) -> "Quadtree":
        """Return the smallest one that covers an area, in level-0 pixels."""
        longest = max(width, height, FINEST)
        return cls(FINEST * 2 ** math.ceil(math.log2(longest / FINEST)))

    @property
    def max_zoom(self) -> int:
        """Return the zoom of the smallest squares."""
        return (self.base // FINEST).bit_length() - 1

    @property
    def cell(self) -> int:
        """Return the side of a cell in level-0 pixels."""
        return max(_SMALLEST_CELL, self.base >> _BITS)

    def has(self, zoom: int, column: int, row: int) -> bool:
        """Tell whether there is such a square."""
        return 0 <= zoom <= self.max_zoom and 0 <= column < 2**zoom and 0 <= row < 2**zoom

    def corner(self, zoom: int, column: int, row: int) -> tuple[int, int]:
        """Return the top left corner of a square, level-0 pixels."""
        side = self.base >> zoom
        return column * side, row * side

    def codes(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> Codes:
        """Return the number of the cell of every point ``(N,)``.

        Args:
            x: ``(N,)`` level-0 pixels, finite.
            y: ``(N,)`` level-0 pixels, finite.
        """
        last = self.base // self.cell - 1
        across, down = (np.clip(v // self.cell, 0, last).astype(np.uint32) for v in (x, y))
        return spread(across) | (spread(down) << np.uint32(1))

    def rows(self, codes: Codes, zoom: int, column: int, row: int) -> slice:
        """Return where the points of a square are among sorted numbers of cells.

        Args:
            codes: ``(N,)`` ascending.
            zoom: Of the square.
            column: Of the square, from 0.
            row: Of the square, from 0.
        """
        cells = 4 ** self._cell_bits(zoom)
        start = _code(column, row) * cells
        first = np.searchsorted(codes, np.uint32(start), side="left")
        stop = np.searchsorted(codes, np.uint32(start + cells - 1), side="right")
        return slice(int(first), int(stop))

    def density(self, codes: Codes, kind: NDArray[np.uint8], zoom: int, classes: int) -> NDArray[np.uint32]:
        """Return how many points of each class lie in every part of a square, ``(classes, G, G)``.

        Args:
            codes: ``(N,)`` numbers of cells, all of the same square.
            kind: ``(N,)`` class ids.
            zoom: Of the square.
            classes: Number of classes.
        """
        bits = self._cell_bits(zoom)
        fine = min(bits, _DENSITY_BITS)
        parts = 4**fine
        inside = (codes & np.uint32(4**bits - 1)) >> np.uint32(2 * (bits - fine))
        place = kind.astype(np.uint32) * np.uint32(parts) + inside
        counts = np.bincount(place, minlength=classes * parts)[: classes * parts].reshape(classes, parts)
        side = np.arange(2**fine, dtype=np.uint32)
        order = spread(side)[None, :] | (spread(side)[:, None] << np.uint32(1))
        return counts[:, order].astype(np.uint32)

    def _cell_bits(self, zoom: int) -> int:
        """Return the logarithm of the number of cells along a side of a square."""
        return ((self.base >> zoom) // self.cell).bit_length() - 1


def spread(values: Codes) -> Codes:
    """Return numbers of 16 bits with a zero bit between every two of theirs."""
    found = values.astype(np.uint32)
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        found = (found | (found << np.uint32(shift))) & np.uint32(mask)
    return found


def _code(column: int, row: int) -> int:
    across, down = spread(np.array([column, row], np.uint32)).tolist()
    return int(across) | int(down) << 1
