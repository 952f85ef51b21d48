"""One slide of a cohort: what is to be done, what came of it, and who is told."""

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cellvit.errors import CellViTError

Progress = Callable[[int, int], None]
"""Called with the number of finished tiles and the number of all tiles."""


@dataclass(frozen=True)
class SlideJob:
    """A slide that is to be done.

    Attributes:
        path: The slide.
        out: Folder of its results; no other slide has the same.
        settings: Keyword arguments of the task, such as ``mpp``, ``roi`` and ``model``.
        extra: What a list of slides says beside them, by column; it goes into ``summary.csv``.
    """

    path: Path
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass
class SlideOutcome:
    """What came of a slide.

    Attributes:
        path: The slide.
        out: Folder of its results.
        summary: What ``summary.json`` holds; None for a slide that failed.
        error: Why it failed, for a reader; None for a slide that is done.
        seconds: Time of this attempt.
        device: Where it was computed: a device, or a worker of a cluster.
        extra: What a list of slides says beside it, by column.
        trace: Where an error came from that this package did not raise on purpose.
    """

    path: Path
    out: Path
    summary: dict[str, Any] | None
    error: str | None
    seconds: float
    device: str
    extra: Mapping[str, str] = field(default_factory=dict)
    trace: str | None = None


class TaskResult(Protocol):
    """What a task returns; :class:`cellvit.inference.slide.SlideResult` is one."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """Plain data: the content of ``summary.json``."""


class Task(Protocol):
    """What is done with each slide; :func:`cellvit.inference.slide.segment_slide` is one."""

    def __call__(self, path: Path, out: Path, *, device: str, progress: Progress | None, **settings: Any) -> TaskResult:
        """Do one slide; a second call for the same folder goes on where the first was stopped."""


class Reporter:
    """Is told how a cohort comes along, always from the thread that called it; each method may be overridden."""

    def started(self, job: SlideJob, device: str) -> None:
        """Take note that work on a slide starts; once more if it is tried once more."""

    def advanced(self, job: SlideJob, done: int, total: int) -> None:
        """Take note of the finished tiles of a slide, and of all its tiles."""

    def finished(self, outcome: SlideOutcome) -> None:
        """Take note that a slide is done or has failed."""

    def warned(self, text: str) -> None:
        """Show the user a line."""


def seldom(tell: Progress, *, seconds: float) -> Progress:
    """Return a progress that is told no more often than every so many seconds, and at the end; from any thread.

    Args:
        tell: What is then called.
        seconds: Least time between two calls.
    """
    told, one_at_a_time = time.monotonic(), threading.Lock()

    def progress(done: int, total: int) -> None:
        nonlocal told
        with one_at_a_time:
            if done >= total or time.monotonic() - told >= seconds:
                told = time.monotonic()
                tell(done, total)

    return progress


def attempt(task: Task, job: SlideJob, *, device: str, progress: Progress) -> SlideOutcome:
    """Return what comes of a slide when a task is run on it here.

    Args:
        task: What to do.
        job: The slide.
        device: Passed on to the task.
        progress: Passed on to the task.
    """
    started = time.monotonic()
    outcome = SlideOutcome(job.path, job.out, None, None, 0.0, device, job.extra)
    try:
        outcome.summary = dict(task(job.path, job.out, device=device, progress=progress, **job.settings).summary)
    except CellViTError as error:
        outcome.error = str(error) or type(error).__name__
    except (Exception, SystemExit) as error:  # a fault of ours in one slide must not cost the user the others
        outcome.error = f"{type(error).__name__}: {error}"
        outcome.trace = traceback.format_exc()
    outcome.seconds = time.monotonic() - started
    return outcome
