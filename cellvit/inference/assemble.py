"""From finished parts to files: seams, coordinates of the slide, the table, and everything made from the table."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellvit.geometry.regions import Region
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.settings import Origin
from cellvit.io.stream import Patches
from cellvit.measurement.base import Columns
from cellvit.measurement.measure import TileMeasurement, measure_missing, measured_names
from cellvit.measurement.neighbors import measure_neighbors, neighbor_columns
from cellvit.slide.stitching import SeamReplay, SeamStep, StreamingStitcher, TileNuclei
from cellvit.slide.tiling import TileGrid
from cellvit.slide.tissue import TissueMask
from cellvit.slide.view import SlideView
from cellvit.types import Nuclei, NucleiClasses

TABLE = "nuclei.parquet"
TISSUE = "tissue.png"
_MARGIN = 64


class _Scanned(NamedTuple):
    """What was decided on a part: how its seams are joined and which nuclei are kept then; of these place and type."""

    step: SeamStep
    kept: NDArray[np.intp]
    centroid: NDArray[np.float64]
    type: NDArray[np.int32]


@dataclass
class SlideTable:
    """Makes the table of nuclei of a slide from its parts; only a part and the nuclei at open seams are held.

    Outlines at seams are compared when a part is scanned, which may be while later tiles are still computed; then the
    table is made by the same decisions. Of every nucleus its centre, its type and its row are held until then.

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
        counts: ``(C,)`` nuclei per type, filled while parts are scanned.
        off_tissue: Nuclei of the region that were left out as they lie off the tissue, filled while parts are scanned.
        unreadable: Numbers of the tiles that could not be read, filled while parts are scanned.
        seconds: What the parts took, by stage, in all runs together, filled while parts are scanned.
        made_on: What the parts were computed on, each once, filled while parts are scanned.
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
    counts: NDArray[np.int64] = field(init=False)
    off_tissue: int = 0
    unreadable: list[int] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    made_on: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.classes), np.int64)
        self._stitcher = StreamingStitcher(self.grid)
        self._scanned: list[_Scanned] = []
        self._width: int | None = None
        self._found = 0

    @property
    def scanned(self) -> int:
        """Return the number of parts that are scanned."""
        return len(self._scanned)

    @property
    def measured_names(self) -> tuple[str, ...]:
        """Return the names of what is measured, in the order of the columns."""
        return () if self.measure is None else (*measured_names(), *neighbor_columns(self.classes))

    def embedding_dim(self, resume: ResumeFolder) -> int | None:
        """Return the width of the embeddings, or None if nuclei have none: of the first part that has nuclei."""
        self.scan(resume, self.parts)
        return self._width

    def scan(self, resume: ResumeFolder, stop: int) -> None:
        """Decide which nuclei of the parts below a number are kept, once for each part, in their order.

        Args:
            resume: Holds these parts.
            stop: Number of the first part that is not looked at.
        """
        for number in range(self.scanned, stop):
            chunk = resume.read_part(number)
            self.unreadable += chunk.unreadable
            self.seconds.update(chunk.seconds)
            self.made_on += [chunk.made_on] if chunk.made_on and chunk.made_on not in self.made_on else []
            if not self._found:
                self._width = None if chunk.nuclei.embedding is None else chunk.nuclei.embedding.shape[1]
            self._found += len(chunk.nuclei)
            found = replace(chunk.nuclei, embedding=None, measurements={})
            last = number + 1 == self.parts
            done = len(self.grid) if last else int(self.part(number + 1)[0])
            step, final = self._stitcher.step(self._place(chunk.tile, found), done=done)
            kept = self._kept(final)
            placed = self._on_slide(final.select(kept))
            self.counts += np.bincount(placed.type, minlength=len(self.classes))
            self._scanned.append(_Scanned(step, kept, placed.centroid, placed.type))

    def nuclei(self, resume: ResumeFolder) -> Iterator[Nuclei]:
        """Yield the nuclei in chunks: each once, labelled 1..N, in level-0 pixels, with what was measured.

        Args:
            resume: Holds the finished parts.
        """
        self.scan(resume, self.parts)
        neighbors, label, replay = self._neighbors(), 0, SeamReplay()
        for number, scanned in enumerate(self._scanned):
            chunk = resume.read_part(number)
            final = replay.add(self._place(chunk.tile, chunk.nuclei), scanned.step).select(scanned.kept)
            placed = replace(self._on_slide(final), classes=self.classes)
            if self.measure is not None:  # those that no tile holds whole are measured now
                whole = measure_missing(self.view, final, mpp=self.measure.mpp, stains=self.measure.stains)
                placed = replace(placed, measurements=whole.measurements)
            rows = slice(label, label + len(placed))
            measured = {**placed.measurements, **{name: values[rows] for name, values in neighbors.items()}}
            numbers = np.arange(rows.start + 1, rows.stop + 1, dtype=np.int32)
            yield replace(placed, label=numbers, measurements=measured)
            label = rows.stop

    def _neighbors(self) -> Columns:
        """Measure the neighbours of all nuclei, which may lie anywhere."""
        if self.measure is None:
            return {}
        across, down = (mpp * scale for mpp, scale in zip(self.measure.mpp, self.view.scale, strict=True))
        places = np.concatenate([np.zeros((0, 2)), *(part.centroid for part in self._scanned)])
        types = np.concatenate([np.zeros(0, np.int32), *(part.type for part in self._scanned)])
        return measure_neighbors(places, types, classes=self.classes, mpp=(across, down))

    def _place(self, tile: NDArray[np.int64], found: Nuclei) -> TileNuclei:
        """Return the nuclei of a part in pixels of the view."""
        limits = np.flatnonzero(np.diff(tile, prepend=-1, append=-1))
        runs = [(int(tile[a]), np.arange(a, b)) for a, b in pairwise(limits)] or [(0, tile)]
        return TileNuclei.concatenate([TileNuclei.place(self.grid, index, found.select(rows)) for index, rows in runs])

    def _kept(self, nuclei: Nuclei) -> NDArray[np.intp]:
        """Return which nuclei of the view lie on the tissue and in the region, and count those off the tissue."""
        kept = np.ones(len(nuclei), bool)
        if self.region is not None:
            kept = self.region.contains(self.view.to_level0(nuclei).centroid)
        if self.tissue is not None:
            off = kept & ~self.tissue.contains(nuclei.centroid, (self.view.width, self.view.height))
            self.off_tissue += int(off.sum())
            kept &= ~off
        return np.flatnonzero(kept)

    def _on_slide(self, nuclei: Nuclei) -> Nuclei:
        """Return nuclei of the view in level-0 pixels, counted from where the files count.

        Outlines of a resampled slide are rounded to 0.01 pixels: all digits would nearly double the text files.
        """
        placed = self.view.to_level0(nuclei)
        placed = replace(placed, contour_points=placed.contour_points.round(2))
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
