"""A few tiles of a slide through the real pipeline, into a temporary folder, with the clock running."""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cellvit.runner.journal import Journal
from cellvit.runner.pipeline import TileStream
from cellvit.runner.plan_files import Cost, write_costs
from cellvit.runner.plan_tiles import searched_mm2, spread, tile_boxes
from cellvit.runner.preparation import PreparedSlide
from cellvit.runner.settings import SlideSettings
from cellvit.segment import NucleiModel, autocast_context, evaluation_mode
from cellvit.tta import augmented


@dataclass(frozen=True)
class Sample:
    """What a few tiles took.

    Attributes:
        tiles: ``(T,)`` their numbers in the grid, ascending.
        groups: Tiles of each batch.
        read: Seconds of a reading thread per tile, a value per batch.
        forward: Seconds of the device per tile, a value per batch.
        postprocess: Seconds of a worker per tile, a value per batch.
        write: Seconds for the part of each batch.
        nuclei: Nuclei that belong to the tiles of each batch, those in overlaps once.
        tissue_mm2: What is searched in the cores of the tiles of each batch.
        part_bytes: Bytes of finished parts per tile.
        map_bytes: Bytes of the maps of a tile on the host.
        rows: Nuclei in the table that was written.
        costs: Of ``"parquet"`` and each format.
        device_bytes: Most memory of a graphics card that was in use, or None.
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
        model: On its device.
        settings: Of the run that is planned.
        count: Batches.
        workers: Of the run that is planned; workers post-process with one thread each.
        metadata: Facts for the heads of files.
    """
    groups = spread(prepared, count, settings.batch_size)
    watched = _Watched(augmented(model, settings.tta))
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    with (
        tempfile.TemporaryDirectory(prefix="cellvit-plan-") as temporary,
        evaluation_mode(model),
        _cv2_threads(1 if workers else None),
    ):
        folder = Path(temporary)
        first_read = _run(prepared, watched, settings, groups[0], folder / "warm").seconds.read
        streams = [
            _run(prepared, watched, settings, group, folder / str(number)) for number, group in enumerate(groups)
        ]
        streams[0].seconds.read = first_read  # the second time the reader has the tile in its memory
        sampled = _restricted(prepared, groups)
        journal = Journal(folder / "all")
        journal.folder.mkdir(parents=True)
        for number in range(len(groups)):
            Journal(folder / str(number)).part_path(0).rename(journal.part_path(number))
        costs, rows = write_costs(folder, sampled, journal, model, settings, metadata)
        sizes = [len(group) for group in groups]
        stages = {
            name: tuple(getattr(stream.seconds, name) / size for stream, size in zip(streams, sizes, strict=True))
            for name in ("read", "forward")
        }
        return Sample(
            tiles=np.concatenate(groups),
            groups=tuple(sizes),
            **stages,
            postprocess=watched.seconds_of(sizes),
            write=tuple(stream.seconds.write for stream in streams),
            nuclei=tuple(_owned(sampled, journal, number) for number in range(len(groups))),
            tissue_mm2=tuple(searched_mm2(prepared, group) for group in groups),
            part_bytes=sum(journal.part_path(i).stat().st_size for i in range(len(groups))) / sum(sizes),
            map_bytes=max(watched.sizes),
            rows=rows,
            costs=costs,
            device_bytes=_device_bytes(model.device),
        )


@dataclass
class _Watched:
    """A model that notes how long post-processing takes and how large the maps are."""

    model: Any
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

    def seconds_of(self, groups: list[int]) -> tuple[float, ...]:
        """Return the mean per tile of each batch, the warm-up left out."""
        times = np.split(np.array(self.seconds[groups[0] :]), np.cumsum(groups)[:-1])
        return tuple(float(values.mean()) for values in times)


def _run(
    prepared: PreparedSlide, model: Any, settings: SlideSettings, tiles: NDArray[np.int64], folder: Path
) -> TileStream:
    """Do one batch as the only part of a slide, so that no stage runs beside another."""
    stream = TileStream(
        prepared=_restricted(prepared, [tiles]),
        model=model,
        batch_size=settings.batch_size,
        autocast=lambda: autocast_context(settings.precision, model.device),
        embeddings=settings.embeddings,
    )
    journal = Journal(folder)
    journal.folder.mkdir(parents=True)
    stream.run(journal, workers=0)
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


def _owned(sampled: _Sampled, journal: Journal, number: int) -> int:
    """Return how many nuclei of a part will be kept: those whose centroid lies in the core of their tile."""
    tile, found, _ = journal.read_part(number)
    corner = tile_boxes(sampled, tile)[:, :2]
    centroid = found.centroid + corner
    kept = sampled.grid.owner(centroid) == tile
    if sampled.region is not None:
        scale, origin = np.asarray(sampled.view.scale), np.asarray(sampled.slide.bounds[:2])
        kept &= sampled.region.contains((centroid + 0.5) / scale - 0.5 + origin)
    return int(kept.sum())
