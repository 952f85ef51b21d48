"""From finished parts to files: seams, coordinates of the slide, the table, and everything made from the table."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cellvit.geometry.regions import Region
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.settings import Origin
from cellvit.io.stream import Patches
from cellvit.measurement.base import Columns
from cellvit.measurement.measure import TileMeasurement, measure_missing, measured_names
from cellvit.measurement.neighbors import measure_neighbors, neighbor_columns
from cellvit.slide.stitching import StreamingStitcher, TileNuclei
from cellvit.slide.tiling import TileGrid
from cellvit.slide.tissue import TissueMask
from cellvit.slide.view import SlideView
from cellvit.types import Nuclei, NucleiClasses

TABLE = "nuclei.parquet"
TISSUE = "tissue.png"
_MARGIN = 64


@dataclass
class SlideTable:
    """Makes the table of nuclei of a slide from its parts; only a part and the nuclei at open seams are held.

    Attributes:
        view: The slide at the model's resolution.
        grid: The tiles.
        parts: Number of parts.
        part: Returns the tiles of a part.
        classes: Names and colours of the types.
        tissue: Nuclei whose centroid lies off it are left out and counted, so that the density divides nuclei of the
            tissue by its area; None keeps all. Parts on the disk hold them, so a resumed run leaves out the same.
        region: Nuclei whose centroid lies outside are left out; None keeps all.
        origin: ``"slide"`` or ``"bounds"``: where coordinates count from.
        measure: What measured the nuclei of the tiles; None for nuclei that were not.
        counts: ``(C,)`` nuclei per type, filled while it is iterated.
        off_tissue: Nuclei of the region that were left out as they lie off the tissue, filled while it is iterated.
        unreadable: Numbers of the tiles that could not be read, filled while it is iterated.
        seconds: What the parts took, by stage, in all runs together, filled while it is iterated.
        made_on: What the parts were computed on, each once, filled while it is iterated.
    """

    view: SlideView
    grid: TileGrid
    parts: int
    part: Callable[[int], NDArray[np.int64]]
    classes: NucleiClasses
    tissue: TissueMask | None = None
    region: Region | None = None
    origin: Origin = "slide"
    measure: TileMeasurement | None = None
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    off_tissue: int = 0
    unreadable: list[int] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    made_on: list[str] = field(default_factory=list)

    def embedding_dim(self, resume: ResumeFolder) -> int | None:
        """Return the width of the embeddings, or None if nuclei have none: of the first part that has nuclei."""
        width = None
        for number in range(self.parts):
            found = resume.read_part(number).nuclei
            width = None if found.embedding is None else found.embedding.shape[1]
            if len(found):
                break
        return width

    @property
    def measured_names(self) -> tuple[str, ...]:
        """Return the names of what is measured, in the order of the columns."""
        return () if self.measure is None else (*measured_names(), *neighbor_columns(self.classes))

    def nuclei(self, resume: ResumeFolder) -> Iterator[Nuclei]:
        """Yield the nuclei in chunks: each once, labelled 1..N, in level-0 pixels, with what was measured.

        Neighbours may lie anywhere, so the parts are read twice if nuclei are measured, first for all centres.

        Args:
            resume: Holds the finished parts.
        """
        neighbors, label = self._neighbors(resume), 0
        for placed in self._finals(resume, measure=self.measure):
            rows = slice(label, label + len(placed))
            measured = {**placed.measurements, **{name: values[rows] for name, values in neighbors.items()}}
            numbers = np.arange(rows.start + 1, rows.stop + 1, dtype=np.int32)
            yield replace(placed, label=numbers, measurements=measured)
            label = rows.stop

    def _neighbors(self, resume: ResumeFolder) -> Columns:
        if self.measure is None:
            return {}
        centroid, kind = [np.zeros((0, 2))], [np.zeros(0, np.int32)]
        for final in self._finals(resume, measure=None):
            centroid.append(final.centroid)
            kind.append(final.type)
        across, down = (mpp * scale for mpp, scale in zip(self.measure.mpp, self.view.scale, strict=True))
        places, types = np.concatenate(centroid), np.concatenate(kind)
        return measure_neighbors(places, types, classes=self.classes, mpp=(across, down))

    def _finals(self, resume: ResumeFolder, *, measure: TileMeasurement | None) -> Iterator[Nuclei]:
        """Yield the nuclei of the slide, each once, in level-0 pixels; measured only with ``measure``."""
        stitcher = StreamingStitcher(self.grid)
        self.counts, self.unreadable = np.zeros(len(self.classes), np.int64), []
        self.off_tissue, self.seconds, self.made_on = 0, Counter(), []
        for number in range(self.parts):
            chunk = resume.read_part(number)
            found = chunk.nuclei
            if self.measure is not None and measure is None:
                found = replace(found, embedding=None, measurements={})
            self.unreadable += chunk.unreadable
            self.seconds.update(chunk.seconds)
            self.made_on += [chunk.made_on] if chunk.made_on and chunk.made_on not in self.made_on else []
            last = number + 1 == self.parts
            done = len(self.grid) if last else int(self.part(number + 1)[0])
            final = stitcher.add(self._place(chunk.tile, found), done=done)
            placed = self._on_slide(replace(final, classes=self.classes), measure)
            self.counts += np.bincount(placed.type, minlength=len(self.classes))
            yield placed

    def _place(self, tile: NDArray[np.int64], found: Nuclei) -> TileNuclei:
        """Return the nuclei of a part in pixels of the view."""
        limits = np.flatnonzero(np.diff(tile, prepend=-1, append=-1))
        runs = [(int(tile[a]), np.arange(a, b)) for a, b in pairwise(limits)] or [(0, tile)]
        return TileNuclei.concatenate([TileNuclei.place(self.grid, index, found.select(rows)) for index, rows in runs])

    def _on_slide(self, nuclei: Nuclei, measure: TileMeasurement | None) -> Nuclei:
        """Return nuclei of the view in level-0 pixels, those of the tissue and the region only, all of them measured.

        Outlines of a resampled slide are rounded to 0.01 pixels: all digits would nearly double the text files.
        """
        placed = self.view.to_level0(nuclei)
        placed = replace(placed, contour_points=placed.contour_points.round(2))
        kept = np.ones(len(placed), bool) if self.region is None else self.region.contains(placed.centroid)
        if self.tissue is not None:
            off = kept & ~self.tissue.contains(nuclei.centroid, (self.view.width, self.view.height))
            self.off_tissue += int(off.sum())
            kept &= ~off
        placed = placed.select(kept)
        if measure is not None:  # those that no tile holds whole are measured now
            whole = measure_missing(self.view, nuclei.select(kept), mpp=measure.mpp, stains=measure.stains)
            placed = replace(placed, measurements=whole.measurements)
        x, y = self.view.slide.bounds[:2] if self.origin == "bounds" else (0, 0)
        return placed.transform(shift=(-x, -y)) if (x, y) != (0, 0) else placed

    @property
    def patches(self) -> "PatchLayout":
        """Return what tells where the tiles of nuclei lie."""
        shift = (0, 0) if self.origin == "bounds" else self.view.slide.bounds[:2]
        return PatchLayout(self.grid, self.view.scale, shift)


@dataclass(frozen=True)
class PatchLayout:
    """Tells where the tiles of nuclei lie, in the terms of the released layout.

    Attributes:
        grid: The tiles.
        scale: ``(x, y)`` pixels of the view per level-0 pixel.
        shift: ``(x, y)`` of the view's corner in the coordinates of the files.
    """

    grid: TileGrid
    scale: tuple[float, float]
    shift: tuple[int, int]

    @property
    def pixel(self) -> tuple[float, float]:
        """Return the size ``(x, y)`` of a pixel of the view in level-0 pixels."""
        return (1 / self.scale[0], 1 / self.scale[1])

    def __call__(self, nuclei: Nuclei) -> Patches:
        """Return the tile of each nucleus.

        Args:
            nuclei: In the coordinates of the files.

        Returns:
            Row and column of the tile that owns the centroid; where the nucleus's box lies in it (0 inside, 1 to 8
            clockwise from the top left corner if it comes within 64 px of an edge); the tile's corner, (row, column).
        """
        scale, shift = np.asarray(self.scale), np.asarray(self.shift, np.float64)
        owner = self.grid.owner((nuclei.centroid - shift) * scale)
        row, column = np.divmod(owner, len(self.grid.columns.starts))
        corner = np.stack([self.grid.columns.starts[column], self.grid.rows.starts[row]], axis=1)
        local = (nuclei.bbox - np.tile(shift, 2)) * np.tile(scale, 2) - np.tile(corner, 2)
        size = np.array([self.grid.columns.size, self.grid.rows.size])
        offset = np.rint(corner / scale + shift)[:, ::-1].astype(np.int64)
        return Patches(np.stack([row, column], axis=1), _status(local, size), offset)


def _status(local: NDArray[np.float64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the status of boxes ``(N, 4)`` in their tile: 0 inside, else 1 to 8 clockwise from the top left."""
    left, top = (local[:, :2] < _MARGIN).T
    right, bottom = (local[:, 2:] > size - _MARGIN).T
    conditions = [top & left, top & right, top, right & bottom, right, bottom & left, bottom, left]
    return np.select(conditions, [1, 3, 2, 5, 4, 7, 6, 8], default=0).astype(np.int64)
