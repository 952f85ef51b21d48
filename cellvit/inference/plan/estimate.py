"""From what a few tiles took to what a slide will take; ranges say how much the tiles differ."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cellvit.inference.plan.measure import Sample
from cellvit.inference.resume import TILES_PER_CHUNK
from cellvit.inference.settings import SlideSettings, available_cores, reading_threads

WORKER_BYTES = 350_000_000
"""A worker process that has imported what it needs (measured)."""

WORKER_BYTES_PER_PIXEL = 100
"""What a worker takes beyond that, per pixel of a tile (measured)."""

MARGIN = (0.8, 1.25)
"""Shares by which a run is faster or slower than its sample: other programs, clocks, caches."""

_WORKER_START = (2.0, 8.0)  # seconds until the first worker answers: it imports from a warm or a cold disk
_ONE_BATCH = 0.3  # share by which a number may be off if there is no second one to compare it with
_CHANCE = 0.2  # share by which one tile differs from the mean at least: two may be alike by chance
_PACKING = (0.9, 1.1)  # shares by which files pack better or worse than those of a few tiles


class Range(NamedTuple):
    """The least and the most that is expected."""

    low: float
    high: float

    def times(self, low: float, high: float | None = None) -> "Range":
        """Return the range multiplied; by two numbers its ends are multiplied each by one."""
        return Range(self.low * low, self.high * (low if high is None else high))

    def plus(self, low: float, high: float | None = None) -> "Range":
        """Return the range with a number added, or one to each end."""
        return Range(self.low + low, self.high + (low if high is None else high))


@dataclass(frozen=True)
class Estimate:
    """What a slide will take.

    Attributes:
        nuclei: Number of nuclei of the whole slide.
        seconds: From the start to the last file, for what is still to be done; loading of programs left out.
        stages: Seconds of work per whole tile of each stage.
        slowest: The stage that decides the time: ``"read"``, ``"network"``, ``"postprocess"``, or ``"cores"`` where
            all of them wait for the processor.
        memory: Bytes of all processes together.
        worker_memory: Bytes of one worker among them.
        device_memory: Bytes of the graphics card, or None.
        disk: Bytes of the results.
        working_disk: Bytes that are needed beside them while it runs.
        files: Bytes of each result.
    """

    nuclei: Range
    seconds: Range
    stages: dict[str, Range]
    slowest: str
    memory: int
    worker_memory: int
    device_memory: int | None
    disk: Range
    working_disk: Range
    files: dict[str, Range]


def as_plain(value: Any) -> Any:
    """Return a value as JSON knows it: dataclasses and named tuples as objects, arrays as lists, paths as text.

    Example:
        >>> as_plain({"seconds": Range(1, 2), "parts": (1, 2)})
        {'seconds': {'low': 1, 'high': 2}, 'parts': [1, 2]}
    """
    if is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [as_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def estimate_needs(
    sample: Sample,
    settings: SlideSettings,
    *,
    device: str,
    workers: int,
    tiles: float,
    all_tiles: float,
    tissue_mm2: float,
    prepared_in: float,
    process_bytes: int,
) -> Estimate:
    """Return what a slide will take.

    The stages run beside each other, so the slowest decides: reading over its threads, the network, post-processing
    over its workers, or, where they share the processor, their sum over the cores.

    Args:
        sample: What was measured.
        settings: Settings of the run.
        device: Where the network runs.
        workers: Post-processing processes.
        tiles: Tiles still to be done, as whole ones of as many pixels.
        all_tiles: Tiles that are searched, done or not, as whole ones.
        tissue_mm2: Area that is searched.
        prepared_in: Seconds until the first tile.
        process_bytes: Most memory that this process, which did the sample, has taken.
    """
    stages = {
        "read": _mean(sample.read),
        "network": _mean(sample.forward),
        "postprocess": _mean(sample.postprocess),
        # a part of the sample has fewer tiles than one of the run, and waits as long for the disk
        "write": Range(min(sample.write) / TILES_PER_CHUNK, max(sample.write) / min(sample.groups)),
    }
    nuclei = _nuclei(sample, tissue_mm2)
    seconds, slowest = _pipeline(stages, device=device, workers=workers, tiles=tiles)
    costs = sample.costs.values()
    export = Range(*(sum(cost.seconds + count * cost.seconds_per_nucleus for cost in costs) for count in nuclei))
    files = {
        name: Range(*(cost.size + count * cost.size_per_nucleus for count in nuclei)).times(*_PACKING)
        for name, cost in sample.costs.items()
    }
    worker, off = WORKER_BYTES + WORKER_BYTES_PER_PIXEL * settings.tile_size**2, _share_off(sample.nuclei)
    return Estimate(
        nuclei=nuclei,
        seconds=seconds.plus(*export).times(*MARGIN).plus(prepared_in),
        stages=stages,
        slowest=slowest,
        memory=round(process_bytes + _under_way(sample, settings, workers) + workers * worker),
        worker_memory=worker,
        device_memory=sample.device_bytes,
        disk=Range(*(sum(size[end] for size in files.values()) for end in range(2))),
        working_disk=Range(1 - off, 1 + off).times(all_tiles * sample.part_bytes),
        files=files,
    )


def _pipeline(stages: dict[str, Range], *, device: str, workers: int, tiles: float) -> tuple[Range, str]:
    """Return the seconds of the stream of tiles and the stage that decides them."""
    cores, on_cpu = available_cores(), device == "cpu"
    threads = min(torch.get_num_threads(), cores) if on_cpu else 1
    readers = min(max(2, min(8, cores)), cores)
    ends, slowest = [], ""
    for end in range(2):
        read, network, post, write = (stages[name][end] for name in ("read", "network", "postprocess", "write"))
        bounds = {
            "network": network + write,
            "read": read / readers,
            "postprocess": post / max(1, workers),
            "cores": (read + threads * network + post + write) / cores,
        }
        slowest = max(bounds, key=lambda name: bounds[name])
        # the first tile is read and the last one post-processed while nothing else runs
        fill = read + post + (0.0 if workers == 0 else max(0.0, _WORKER_START[end] - tiles * network))
        ends.append(tiles * bounds[slowest] + fill)
    return Range(*ends), slowest


def _nuclei(sample: Sample, tissue_mm2: float) -> Range:
    """Return the nuclei of a slide, from those per area of tissue in each batch."""
    area = sum(sample.tissue_mm2)
    if area <= 0:
        return Range(0.0, 0.0)
    mean = sum(sample.nuclei) / area
    densities = [count / part for count, part in zip(sample.nuclei, sample.tissue_mm2, strict=True) if part > 0]
    off = _share_off(densities)
    return Range(mean * (1 - off), mean * (1 + off)).times(tissue_mm2)


def _mean(values: Sequence[float]) -> Range:
    """Return the range in which the mean of all tiles lies, from some of them."""
    mean = statistics.fmean(values)
    off = _uncertainty(values) if len(values) > 1 else 0.0
    return Range(max(min(values) / 2, mean - off), mean + off)


def _uncertainty(values: Sequence[float]) -> float:
    """Return two standard errors of a mean."""
    return 2 * statistics.stdev(values) / math.sqrt(len(values))


def _share_off(values: Sequence[float]) -> float:
    """Return the share, 1 at most, by which the mean of all tiles may differ from that of some of them."""
    mean = statistics.fmean(values)
    if len(values) < 2 or mean <= 0:
        return _ONE_BATCH
    return min(1.0, max(_uncertainty(values) / mean, _CHANCE / math.sqrt(len(values))))


def _under_way(sample: Sample, settings: SlideSettings, workers: int) -> float:
    """Return the bytes of tiles and maps that wait between the stages."""
    batch, threads = settings.tiles_at_once, reading_threads()
    pixels = (2 * batch + threads) * 3 * settings.tile_size**2
    return pixels + (2 * max(1, workers) + batch) * sample.map_bytes
