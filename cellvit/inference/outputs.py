"""Files made from the table of a slide: text for other programs, tables for other packages, pictures."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cellvit import io, plotting
from cellvit.errors import OutputError
from cellvit.inference.assemble import TABLE, PatchLayout
from cellvit.inference.settings import FORMATS, PICTURES, Origin, SlideSettings, available_cores
from cellvit.inference.workers import NO_PROCESS, may_have_children, process_pool, submit
from cellvit.io.formats.base import FORMATS as NUCLEI_FORMATS
from cellvit.io.formats.base import ImageFacts
from cellvit.io.images import Rgb8
from cellvit.slide.open import Slide
from cellvit.types import Nuclei

if TYPE_CHECKING:  # which brings torch; this module is imported by processes that only write files
    from cellvit.inference.prepare import PreparedSlide

PARALLEL_EXPORT_MIN_NUCLEI = 50_000
"""Number of nuclei from which on the files that take long are each written by a process of their own."""

_PROCESSES = 2  # each takes 0.4 GB

_SLOW_FORMATS = (  # longest first
    *("ome-tiff", "ome-zarr", "ome-xml", "geojson", "json", "geojson-plain", "coco", "coco-rle", "csv", "h5ad"),
    "points",
)


@dataclass(frozen=True)
class OutputContext:
    """What the writers of one slide share.

    Attributes:
        slide: The slide.
        thumbnail: ``(h, w, 3)`` uint8 picture of its scanned part.
        mpp: Microns per level-0 pixel.
        metadata: Facts for the heads of files.
        patches: Tells where the tiles of nuclei lie.
        origin: ``"slide"`` or ``"bounds"``.
        tissue: ``(h, w)``, True where nuclei were looked for, over the scanned part.
        simplify: Microns by which outlines in GeoJSON may deviate.
    """

    slide: Slide
    thumbnail: Rgb8
    mpp: float
    metadata: Mapping[str, Any]
    patches: PatchLayout
    origin: Origin
    tissue: NDArray[np.bool_]
    simplify: float = 0.0

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Return the box of the thumbnail in the coordinates of the files."""
        x, y, width, height = self.slide.bounds
        return (x, y, width, height) if self.origin == "slide" else (0, 0, width, height)

    @property
    def image(self) -> ImageFacts:
        """Return what the formats of nuclei are told."""
        return ImageFacts(
            mpp=self.mpp,
            size=self.slide.level_sizes[0] if self.origin == "slide" else self.slide.bounds[2:],
            path=self.slide.path if self.origin == "slide" else None,
            metadata=dict(self.metadata),
            patches=self.patches,
            pixel=self.patches.pixel,
            simplify=self.simplify / self.mpp,
            picture=self.thumbnail,
            bounds=self.bounds,
        )


def context_of(
    prepared: "PreparedSlide", settings: SlideSettings, *, metadata: Mapping[str, Any], patches: PatchLayout
) -> OutputContext:
    """Return what the writers of a slide share.

    Args:
        prepared: The slide.
        settings: Of the run.
        metadata: Facts for the heads of files.
        patches: Tells where the tiles of nuclei lie.
    """
    return OutputContext(
        slide=prepared.slide,
        thumbnail=prepared.thumbnail,
        mpp=prepared.mpp,
        metadata=metadata,
        patches=patches,
        origin=settings.origin,
        tissue=prepared.tissue.mask,
        simplify=settings.simplify,
    )


class _Where(TypedDict):
    """What pictures of a slide need beside the thumbnail."""

    bounds: tuple[int, int, int, int]
    mpp: float
    tissue: NDArray[np.bool_]


def write_formats(out: Path, formats: tuple[str, ...], context: OutputContext) -> None:
    """Write files from the table of a slide.

    Args:
        out: The result folder, which holds the table.
        formats: Keys of :data:`cellvit.inference.settings.FORMATS`.
        context: What the writers share.

    Raises:
        OutputError: If a file cannot be written; the table and the files that are complete stay.
    """
    parallel = (
        len(io.ParquetStream(out / TABLE)) >= PARALLEL_EXPORT_MIN_NUCLEI
        and available_cores() > 1
        and may_have_children()
    )
    separate = [name for name in _SLOW_FORMATS if name in formats] if parallel else []
    here = [name for name in formats if name not in separate]
    if not separate:
        _write_here(out, here, context)
        return
    with ExitStack() as stack:
        try:
            pool = stack.enter_context(process_pool(min(len(separate), _PROCESSES)))
            started = [submit(pool, _write_table, name, out, context.image) for name in separate]
        except NO_PROCESS:  # only slower; the post-processing, which met it first, has told
            _write_here(out, list(formats), context)
            return
        _write_here(out, here, context)
        try:
            for file in started:
                file.result()
        except BrokenProcessPool as error:
            raise OutputError(
                "a process that wrote a file was killed, most likely for lack of memory; the table is complete: "
                "run the same command again"
            ) from error


def import_writers(formats: tuple[str, ...]) -> None:
    """Import what files are written with, which takes seconds that may pass beside other work.

    Args:
        formats: Keys of :data:`cellvit.inference.settings.FORMATS`.
    """
    import pyarrow as pa

    pa.array(np.zeros(1))  # the first array brings pandas with it
    if set(formats) & set(PICTURES):
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401


class _Held:
    """The nuclei of a table as a stream for pictures, each of which reads all; few are held in memory between them."""

    def __init__(self, path: Path) -> None:
        self._source = io.ParquetStream(path, embedding=False)
        self.classes, self.embedding_dim = self._source.classes, self._source.embedding_dim

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Nuclei]:
        return iter(self._chunks if len(self) < PARALLEL_EXPORT_MIN_NUCLEI else self._source)

    @cached_property
    def _chunks(self) -> list[Nuclei]:
        return list(self._source)


def _write_here(out: Path, formats: list[str], context: OutputContext) -> None:
    light = _Held(out / TABLE)
    picture = context.thumbnail
    where = _Where(bounds=context.bounds, mpp=context.mpp, tissue=context.tissue)
    pictures: dict[str, Callable[[Path], object]] = {
        "overlay": lambda path: plotting.write_slide_overlay(light, picture, path, **where),
        "density": lambda path: plotting.write_density(light, picture, path, **where),
        "closeups": lambda path: plotting.write_closeups(light, _ShiftedSlide(context), path, mpp=context.mpp),
    }
    for name in formats:
        if name in pictures:
            pictures[name](out / FORMATS[name])
        else:
            _write_table(name, out, context.image)


def _write_table(name: str, out: Path, image: ImageFacts) -> None:
    """Write a file of nuclei from the table; in any process."""
    format_ = NUCLEI_FORMATS.get(name)()
    format_.write(io.ParquetStream(out / TABLE, embedding=format_.embeddings), out / format_.file, image)


class _ShiftedSlide:
    """The pixels of a slide in the coordinates of the files."""

    def __init__(self, context: OutputContext) -> None:
        self._slide, self._bounds = context.slide, context.bounds
        self._shift = context.slide.bounds[:2] if context.origin == "bounds" else (0, 0)

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """The scanned part."""
        return self._bounds

    def read_region(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Rgb8:
        """Return pixels of the full resolution."""
        if level:
            raise ValueError(f"level {level}: only level 0 can be shifted; read level 0")
        return self._slide.read_region(x + self._shift[0], y + self._shift[1], width, height)
