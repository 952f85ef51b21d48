"""The stream of tiles: read ahead, through the network, post-processed beside it, written part by part.

Every stage waits when the next one is behind, so memory is bounded by the number of tiles under way, not by the
slide. The device starts on the next batch before the maps of the last one have left it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellvit.inference.prepare import PreparedSlide
from cellvit.inference.protocol import NucleiModel, Progress, postprocessor_of
from cellvit.inference.resources import memory_advice
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.settings import reading_threads
from cellvit.inference.workers import Finish, PostprocessPool, nuclei_of
from cellvit.model.build import start_transfer
from cellvit.types import EMBEDDING_MAP, Nuclei

Arrays = list[dict[str, NDArray[Any]]]


@dataclass
class StageSeconds:
    """Seconds of work in each stage; stages run beside each other, so they add up to more than the time that passed.

    Attributes:
        read: Seconds of all reading threads together.
        forward: Seconds of the main thread for the network and the transfer of its maps; the device is busy meanwhile.
        postprocess: Seconds that the main thread waited for workers.
        write: Seconds that the main thread spent on finished parts.
        elapsed: Seconds from the first tile to the last.
    """

    read: float = 0.0
    forward: float = 0.0
    postprocess: float = 0.0
    write: float = 0.0
    elapsed: float = 0.0


@dataclass
class TileStream:
    """Finds the nuclei of the tiles of a slide that are not finished yet.

    Attributes:
        prepared: The slide, its tiles and its parts.
        model: In evaluation mode, on its device.
        batch_size: Tiles of one size that go through the network together, at most those of one part.
        autocast: Makes the context in which the network runs.
        embeddings: Whether nuclei get an embedding.
        measure: Makes the table of a tile from its number, its pixels and what is found; None takes that as it is.
        clock: When the run began, in seconds of ``time.perf_counter``.
        seconds: Filled while it runs.
        noted: Seconds by stage, and ``total`` since ``clock``, that the parts which were written so far note.
        unreadable: Numbers of the tiles whose pixels could not be read, filled while it runs; they hold no nuclei.
        notes: What the user should know of how it ran, filled while it runs.
    """

    prepared: PreparedSlide
    model: NucleiModel
    batch_size: int
    autocast: Callable[[], AbstractContextManager[Any]]
    embeddings: bool
    measure: Finish | None = None
    clock: float = field(default_factory=time.perf_counter)
    seconds: StageSeconds = field(default_factory=StageSeconds)
    noted: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reading = threading.Lock()
        self.unreadable: set[int] = set()
        self.notes: list[str] = []
        self._postprocessor = postprocessor_of(self.model)

    def run(
        self,
        journal: ResumeFolder,
        *,
        workers: int,
        progress: Progress | None = None,
        written: Callable[[int], None] | None = None,
    ) -> str:
        """Find the nuclei of every part that is not finished, and write them.

        Args:
            journal: Knows what is finished and takes the parts.
            workers: Post-processing processes.
            progress: Called with the number of finished tiles and of all tiles.
            written: Called in a thread of its own, beside the network, with the number of parts from the first one on
                that are finished: at the start, and whenever there are more.

        Returns:
            Who post-processed: ``"processes"`` or ``"threads"``.

        Raises:
            ConfigError: If a batch or its post-processing does not fit into memory.
            OutputError: If a worker was killed, or a part cannot be written.
        """
        missing = [number for number in range(self.prepared.parts) if not journal.finished(number)]
        done = len(self.prepared.tiles) - sum(len(self.prepared.part(number)) for number in missing)
        report = progress or (lambda done, total: None)
        report(done, len(self.prepared.tiles))
        self._started = time.perf_counter()
        size = self.prepared.grid.tile_size
        with (
            memory_advice(tile_size=size, batch_size=self.batch_size),
            PostprocessPool(self.model, workers, self.measure) as pool,
            _Parts(self, journal, written, missing) as collected,
        ):
            under_way: deque[tuple[int, int, Future[Nuclei]]] = deque()
            for number, indices, images, maps in self._predicted(missing):
                for index, image, arrays in zip(indices, images, maps, strict=True):
                    place = None if self.measure is None else (index, image)
                    under_way.append((number, index, pool.submit(arrays, place)))
                while len(under_way) > pool.capacity or (under_way and under_way[0][2].done()):
                    collected.add(*under_way.popleft())
                    report(done + collected.tiles, len(self.prepared.tiles))
            while under_way:
                collected.add(*under_way.popleft())
                report(done + collected.tiles, len(self.prepared.tiles))
        self.notes += pool.notes
        self.seconds.elapsed = time.perf_counter() - self._started
        return pool.kind

    def facts_of_part(self) -> dict[str, Any]:
        """Return what a part that is to be written notes: what it took since the last one, and what computed it."""
        now = time.perf_counter()
        spent = {**asdict(self.seconds), "elapsed": now - self._started, "total": now - self.clock}
        seconds = {name: value - self.noted.get(name, 0.0) for name, value in spent.items()}
        self.noted = spent
        return {"seconds": seconds, "made_on": f"{self.model.device.type}, torch {torch.__version__}"}

    def _predicted(self, missing: Sequence[int]) -> Iterator[tuple[int, list[int], NDArray[np.uint8], Arrays]]:
        """Yield part, tiles, pixels and maps of each batch; the next batch is launched before maps are awaited."""
        launched: tuple[int, list[int], NDArray[np.uint8], Callable[[], Arrays]] | None = None
        for number, indices, images in self._batches(missing):
            with self._timed("forward"):
                transfer = self._launch(images)
            if launched is not None:
                yield self._arrived(*launched)
            launched = (number, indices, images, transfer)
        if launched is not None:
            yield self._arrived(*launched)

    def _launch(self, images: NDArray[np.uint8]) -> Callable[[], Arrays]:
        pixels = torch.from_numpy(images)
        on_gpu = self.model.device.type == "cuda"
        pixels = (pixels.pin_memory() if on_gpu else pixels).to(self.model.device, non_blocking=on_gpu)
        with self.autocast():
            maps = self.model.predict_maps(pixels.permute(0, 3, 1, 2).float().div_(255))
        if not self.embeddings:
            maps = {name: value for name, value in maps.items() if name != EMBEDDING_MAP}
        return start_transfer(maps, self._postprocessor)

    def _arrived(
        self, number: int, indices: list[int], images: NDArray[np.uint8], transfer: Callable[[], Arrays]
    ) -> tuple[int, list[int], NDArray[np.uint8], Arrays]:
        with self._timed("forward"):
            return number, indices, images, transfer()

    def _batches(self, missing: Sequence[int]) -> Iterator[tuple[int, list[int], NDArray[np.uint8]]]:
        """Yield batches of tiles of one size, read ahead by threads; none crosses the border of a part."""
        plan = [(number, rows) for number in missing for rows in self.prepared.batches(number, self.batch_size)]
        threads = reading_threads()
        ahead: deque[Future[NDArray[np.uint8]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
            order = iter([index for _, rows in plan for index in rows])
            try:
                for number, rows in plan:
                    while len(ahead) < 2 * len(rows) + threads and (index := next(order, None)) is not None:
                        ahead.append(pool.submit(self._read, index))
                    yield number, rows, np.stack([ahead.popleft().result() for _ in rows])
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, index: int) -> NDArray[np.uint8]:
        started = time.perf_counter()
        pixels, is_read = self.prepared.read_tile(index)
        if not is_read:
            self.unreadable.add(index)
        with self._reading:
            self.seconds.read += time.perf_counter() - started
        return pixels

    def _timed(self, stage: str) -> "_Timer":
        return _Timer(self.seconds, stage)


class _Parts:
    """Gathers the nuclei of tiles and writes each part when its last tile is there; use it as a context."""

    def __init__(
        self,
        stream: TileStream,
        journal: ResumeFolder,
        written: Callable[[int], None] | None,
        missing: Sequence[int],
    ) -> None:
        self._stream, self._journal, self._written = stream, journal, written
        self._missing = deque(missing)
        self._found: list[tuple[int, Nuclei]] = []
        self.tiles = 0

    def __enter__(self) -> "_Parts":
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self._tell()
        return self

    def __exit__(self, *stop: object) -> None:
        self._beside.shutdown(wait=True, cancel_futures=True)

    def add(self, number: int, index: int, future: "Future[Nuclei]") -> None:
        """Take one tile, waiting for it if need be."""
        with _Timer(self._stream.seconds, "postprocess"):
            nuclei = nuclei_of(future)
        if index in self._stream.unreadable:
            nuclei = nuclei.select(np.zeros(0, np.int64))
        self._found.append((index, nuclei))
        self.tiles += 1
        if len(self._found) == len(self._stream.prepared.part(number)):
            with _Timer(self._stream.seconds, "write"):
                unreadable = sorted(self._stream.unreadable & {index for index, _ in self._found})
                facts = self._stream.facts_of_part()
                found = sorted(self._found, key=lambda tile: tile[0])
                self._journal.write_part(number, found, unreadable=unreadable, **facts)
            self._found = []
            self._missing.popleft()
            self._tell()

    def _tell(self) -> None:
        """Say how many parts from the first one on are finished; whoever needs what comes of it meets its errors."""
        if self._written is not None:
            finished = self._missing[0] if self._missing else self._stream.prepared.parts
            self._beside.submit(self._written, finished)


@dataclass
class _Timer:
    """Adds the time of a block to a stage."""

    seconds: StageSeconds
    stage: str
    started: float = 0.0

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *stop: object) -> None:
        spent = getattr(self.seconds, self.stage) + time.perf_counter() - self.started
        setattr(self.seconds, self.stage, spent)
