"""Nuclei with what their tiles know about them: where they were found, and whether the tile saw all of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellvit.slide.tiling import TileGrid
from cellvit.types import Nuclei

CUT_MARGIN = 1.0
"""Pixels: a nucleus that ends this close to its tile's edge may go on beyond it."""

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class TileNuclei:
    """Nuclei in coordinates of the image, each with what its tile knows about it.

    Attributes:
        nuclei: The table; coordinates are pixels of the image.
        tile: ``(N,)`` number of the tile each was found in.
        owned: ``(N,)`` whether the tile's core holds the centroid.
        cut: ``(N,)`` whether it reaches an edge of its tile beyond which the image goes on.
        shared: ``(N,)`` whether it reaches into a part that another tile covers too; the others are final.
    """

    nuclei: Nuclei
    tile: Rows
    owned: Mask
    cut: Mask
    shared: Mask

    @classmethod
    def place(cls, grid: TileGrid, index: int, nuclei: Nuclei) -> "TileNuclei":
        """Return the nuclei of one tile, moved from the tile's coordinates to the image's."""
        tile = grid.tile(index)
        placed = nuclei.transform(shift=(tile.x, tile.y))
        return cls(
            nuclei=placed,
            tile=np.full(len(placed), index, dtype=np.int64),
            owned=grid.owner(placed.centroid) == index,
            cut=grid.cut(index, placed.bbox, margin=CUT_MARGIN),
            shared=grid.shared(index, placed.bbox),
        )

    @classmethod
    def concatenate(cls, parts: "list[TileNuclei]") -> "TileNuclei":
        """Return the nuclei of all parts, in order; at least one part is needed."""
        columns = ("tile", "owned", "cut", "shared")
        nuclei = Nuclei.concatenate([part.nuclei for part in parts])
        return cls(nuclei, *(np.concatenate([getattr(part, name) for part in parts]) for name in columns))

    def select(self, rows: Rows) -> "TileNuclei":
        """Return the nuclei of integer rows."""
        return TileNuclei(
            self.nuclei.select(rows), self.tile[rows], self.owned[rows], self.cut[rows], self.shared[rows]
        )
