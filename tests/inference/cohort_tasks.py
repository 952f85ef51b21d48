"""Stand-ins for the segmentation of a slide, and what the tests of cohorts share.

A task runs in other processes, so it lives at the top of a module and imports nothing that takes long.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvit.errors import ImageError
from cellvit.inference.cohort.job import Reporter, SlideJob, SlideOutcome

TILES = 6


@dataclass(frozen=True)
class Result:
    summary: dict[str, Any]


def summary_of(name: str, *, nuclei: int = 100, **changes: Any) -> dict[str, Any]:
    """Return a summary as segment_slide makes it, with the parts that cohorts read."""
    by_type = {"Neoplastic": nuclei // 2, "Inflammatory": nuclei - nuclei // 2, "Connective": 0}
    by_type |= {"Dead": 0, "Epithelial": 0}
    return {
        "slide": {"name": name},
        "resolution": {"mpp": [0.5, 0.5], "source": "slide"},
        "model": {
            "name": "nano",
            "classes": ["Background", *by_type],
            "colors": [[0, 0, 0], [255, 0, 0], [34, 221, 77], [35, 92, 236], [254, 255, 0], [255, 159, 68]],
        },
        "tissue": {"area_mm2": 2.0, "source": "filter"},
        "tiles": {"total": 2 * TILES, "done": TILES},
        "nuclei": {"total": nuclei, "by_type": by_type, "density_per_mm2": nuclei / 2},
        "seconds": {"total": 1.5},
        "files": {"parquet": "nuclei.parquet", "tissue": "tissue.png", "overlay": "overlay.png"},
        "warnings": [],
    } | changes


def resumable(path, out, *, device="auto", progress=None, seconds=0.0, kill_at=None, kills=1, workers=None, **settings):
    """Do tiles and note each in a file; the process kills itself at a tile, the first times it gets there.

    ``settings`` may hold ``refuse`` or ``fault``, texts of errors to raise.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    with log.open("a") as stream:
        stream.write(f"start {os.getpid()} {device} {workers}\n")
    if "refuse" in settings:
        raise ImageError(settings["refuse"])
    if "fault" in settings:
        raise RuntimeError(settings["fault"])
    for tile in range(TILES):
        done = out / f"tile-{tile}"
        if not done.exists():
            if tile == kill_at and len(starts(out)) <= kills:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            with log.open("a") as stream:
                stream.write(f"tile {tile}\n")
            done.touch()
        if progress is not None:
            progress(tile + 1, TILES)
    summary = summary_of(path.name, settings={**settings, "workers": workers})
    (out / "summary.json").write_text(json.dumps(summary, default=str))
    return Result(summary)


def unpicklable_summary(path, out, *, device="auto", progress=None, **settings):
    return Result({"stream": sys.stdin, "lock": open})  # a stream cannot be sent


def starts(out: Path) -> list[list[str]]:
    """Return process, device and workers of every start on a slide."""
    return [line.split()[1:] for line in (out / "log.txt").read_text().splitlines() if line.startswith("start")]


def tiles_done(out: Path) -> list[int]:
    """Return the tiles in the order they were computed."""
    return [int(line.split()[1]) for line in (out / "log.txt").read_text().splitlines() if line.startswith("tile")]


def jobs_in(folder: Path, count: int, **settings: Any) -> list[SlideJob]:
    """Return jobs for slides that exist."""
    slides = [folder / f"slide{i}.svs" for i in range(count)]
    for slide in slides:
        slide.touch()
    return [SlideJob(slide, folder / "out" / slide.stem, dict(settings)) for slide in slides]


def with_settings(job: SlideJob, **settings: Any) -> SlideJob:
    return SlideJob(job.path, job.out, {**job.settings, **settings}, job.extra)


class Recorder(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.outcomes: list[SlideOutcome] = []
        self.warnings: list[str] = []

    def started(self, job, device):
        self.events.append(("started", job.path.name, device))

    def advanced(self, job, done, total):
        self.events.append(("advanced", job.path.name, done, total))

    def finished(self, outcome):
        self.events.append(("finished", outcome.path.name))
        self.outcomes.append(outcome)

    def warned(self, text):
        self.warnings.append(text)


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended and is not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, *, seconds: float = 200) -> None:
    """Wait until something holds, and fail if it takes too long: on a busy machine a start alone may take a minute."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
