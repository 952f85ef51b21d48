"""A few tiles of a slide through the real pipeline, into a temporary folder, with the clock running."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cellvit.inference.pipeline import TileStream
from cellvit.inference.plan.file_costs import Cost, write_costs
from cellvit.inference.prepare import PreparedSlide
from cellvit.inference.protocol import NucleiModel, autocast_context, evaluation_mode
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.settings import SlideSettings
from cellvit.inference.tta import with_tta
from cellvit.measurement.measure import TileMeasurement
from cellvit.types import Nuclei, NucleiPrediction


@dataclass(frozen=True)
class Sample:
    """What a few tiles took.

    Attributes:
        tiles: ``(T,)`` their numbers in the grid, ascending.
        groups: Tiles of each batch.
        read: Seconds of a reading thread per whole tile, a value per batch.
        forward: Seconds of the device per whole tile, a value per batch.
        postprocess: Seconds of a worker per whole tile, a value per batch.
        write: Seconds for the part of each batch.
        nuclei: Nuclei that belong to the tiles of each batch, those in overlaps once.
        tissue_mm2: What is searched in the cores of the tiles of each batch.
        part_bytes: Bytes of finished parts per whole tile.
        map_bytes: Bytes of the maps of the largest tile on the host.
        rows: Nuclei in the table that was written.
        costs: Seconds and bytes of ``"parquet"`` and of each format.
        device_bytes: Most memory of a graphics card that was in use, or None.
        off_tissue: Nuclei of these tiles that would be left out, as they lie off the tissue; not among ``nuclei``.
    """

    tiles: NDArray[np.int64]
    groups: tuple[int, ...]
    read: tuple[float, ...]
    forward: tuple[float, ...]
    postprocess: tuple[float, ...]
    write: tuple[float, ...]
    nuclei: tuple[int, ...]
    tissue_mm2: tuple[float, ...]
    part_bytes: float
    map_bytes: float
    rows: int
    costs: Mapping[str, Cost]
    device_bytes: int | None
    off_tissue: int = 0


@dataclass(frozen=True)
class _Sampled(PreparedSlide):
    """A slide of which only some batches are done, each as a part of its own."""

    groups: tuple[NDArray[np.int64], ...] = ()

    @property
    def parts(self) -> int:
        return len(self.groups)

    def part(self, number: int) -> NDArray[np.int64]:
        return self.groups[number]


def measure(
    prepared: PreparedSlide,
    model: NucleiModel,
    settings: SlideSettings,
    *,
    count: int,
    workers: int,
    metadata: Mapping[str, Any],
) -> Sample:
    """Return what a few batches of tiles take, from reading to files.

    The first batch is done once before the clock runs. The stages follow each other here, so that each is measured
    alone.

    Args:
        prepared: The slide.
        model: The model, on its device.
        settings: Settings of the run that is planned.
        count: Number of batches.
        workers: Post-processing processes of the run that is planned; each works with one thread.
        metadata: Facts for the heads of files.
    """
    groups = spread(prepared, count, settings.tiles_at_once)
    watched = _Watched(with_tta(model, settings.tta))
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    with (
        tempfile.TemporaryDirectory(prefix="cellvit-plan-") as temporary,
        evaluation_mode(model),
        _cv2_threads(1 if workers else None),
    ):
        folder = Path(temporary)
        watched.measurement = prepared.measurement if settings.measurements else None
        first_read = _run(prepared, watched, settings, groups[0], folder / "warm").seconds.read
        streams = [
            _run(prepared, watched, settings, group, folder / str(number)) for number, group in enumerate(groups)
        ]
        streams[0].seconds.read = first_read  # the second time the reader has the tile in its memory
        sampled = _restricted(prepared, groups)
        chunks = ResumeFolder(folder / "all")
        chunks.folder.mkdir(parents=True)
        for number in range(len(groups)):
            ResumeFolder(folder / str(number)).part_path(0).rename(chunks.part_path(number))
        costs, rows = write_costs(folder, sampled, chunks, model, settings, metadata)
        sizes, whole = [len(group) for group in groups], [prepared.whole_tiles(group) for group in groups]
        kept, off = zip(*(_owned(sampled, chunks, number) for number in range(len(groups))), strict=True)
        stages = {
            name: tuple(getattr(stream.seconds, name) / size for stream, size in zip(streams, whole, strict=True))
            for name in ("read", "forward")
        }
        return Sample(
            tiles=np.concatenate(groups),
            groups=tuple(sizes),
            **stages,
            postprocess=watched.seconds_of(sizes, whole),
            write=tuple(stream.seconds.write for stream in streams),
            nuclei=kept,
            off_tissue=sum(off),
            tissue_mm2=tuple(searched_mm2(prepared, group) for group in groups),
            part_bytes=sum(chunks.part_path(i).stat().st_size for i in range(len(groups))) / sum(whole),
            map_bytes=max(watched.sizes),
            rows=rows,
            costs=costs,
            device_bytes=_device_bytes(model.device),
        )


def spread(prepared: PreparedSlide, count: int, batch_size: int) -> list[NDArray[np.int64]]:
    """Return batches of neighbouring tiles, spread over what is searched: where there is more tissue lie more.

    Args:
        prepared: The slide, with at least one tile to do.
        count: Number of batches; a slide with few tiles gives fewer.
        batch_size: Tiles of each batch.
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
    if not core:
        return prepared.grid.boxes_of(tiles).astype(np.float64)
    rows, columns = np.divmod(tiles, len(prepared.grid.columns.starts))
    edges = []
    for axis, numbers in ((prepared.grid.columns, columns), (prepared.grid.rows, rows)):
        cuts = np.concatenate([[0.0], axis.cuts, [axis.length]])
        edges.append((cuts[numbers], cuts[numbers + 1]))
    (left, right), (top, bottom) = edges
    return np.stack([left, top, right, bottom], axis=1).astype(np.float64)


def searched_mm2(prepared: PreparedSlide, tiles: NDArray[np.int64]) -> float:
    """Return the square millimetres of tissue in the cores of tiles."""
    boxes = tile_boxes(prepared, tiles, core=True)
    x, y = (mpp / scale / 1000 for mpp, scale in zip(prepared.resolution.mpp, prepared.view.scale, strict=True))
    area = (boxes[:, 2] - boxes[:, 0]) * x * (boxes[:, 3] - boxes[:, 1]) * y
    return float((prepared.tissue.coverage(boxes, prepared.size) * area).sum())


@dataclass
class _Watched:
    """A model that notes how long post-processing takes, with measuring, and how large the maps are."""

    model: Any
    measurement: TileMeasurement | None = None
    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def postprocess(self, maps: Mapping[str, NDArray[Any]]) -> Any:
        started = time.perf_counter()
        found = self.model.postprocess(maps)
        self.seconds.append(time.perf_counter() - started)
        self.sizes.append(sum(array.nbytes for array in maps.values()))
        return found

    def measure(self, index: int, image: NDArray[np.uint8], found: NucleiPrediction) -> Nuclei:
        """Measure the nuclei of the tile that was post-processed last."""
        started = time.perf_counter()
        nuclei = found.nuclei if self.measurement is None else self.measurement(index, image, found)
        self.seconds[-1] += time.perf_counter() - started
        return nuclei

    def seconds_of(self, groups: list[int], whole: list[float]) -> tuple[float, ...]:
        """Return the mean per whole tile of each batch, the warm-up left out."""
        times = np.split(np.array(self.seconds[groups[0] :]), np.cumsum(groups)[:-1])
        return tuple(float(values.sum() / size) for values, size in zip(times, whole, strict=True))


def _run(
    prepared: PreparedSlide, model: _Watched, settings: SlideSettings, tiles: NDArray[np.int64], folder: Path
) -> TileStream:
    """Do one batch as the only part of a slide, so that no stage runs beside another."""
    stream = TileStream(
        prepared=_restricted(prepared, [tiles]),
        model=cast(NucleiModel, model),
        batch_size=settings.tiles_at_once,
        autocast=lambda: autocast_context(settings.precision, model.device),
        embeddings=settings.embeddings,
        measure=model.measure,
    )
    chunks = ResumeFolder(folder)
    chunks.folder.mkdir(parents=True)
    stream.run(chunks, workers=0)
    return stream


def _restricted(prepared: PreparedSlide, groups: Iterable[NDArray[np.int64]]) -> _Sampled:
    values = {item.name: getattr(prepared, item.name) for item in fields(PreparedSlide)}
    chosen = tuple(groups)
    return _Sampled(**{**values, "tiles": np.concatenate(chosen)}, groups=chosen)


def _device_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


@contextmanager
def _cv2_threads(number: int | None) -> Iterator[None]:
    before = cv2.getNumThreads()
    if number is not None:
        cv2.setNumThreads(number)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _owned(sampled: _Sampled, chunks: ResumeFolder, number: int) -> tuple[int, int]:
    """Return how many nuclei of a part will be kept, and how many lie off the tissue and will not.

    Both count those whose centroid lies in the core of their tile and in the region.
    """
    tile, found = chunks.read_part(number)[:2]
    corner = tile_boxes(sampled, tile)[:, :2]
    centroid = found.centroid + corner
    owned = sampled.grid.owner(centroid) == tile
    if sampled.region is not None:
        scale, origin = np.asarray(sampled.view.scale), np.asarray(sampled.slide.bounds[:2])
        owned &= sampled.region.contains(centroid / scale + origin)
    if sampled.only_on is None:
        return int(owned.sum()), 0
    kept = owned & sampled.only_on.contains(centroid, sampled.size)
    return int(kept.sum()), int(owned.sum() - kept.sum())
