"""One slide on a worker of a Dask cluster; light to import, because the scheduler imports it too."""

import pickle
import platform
import threading
import time
from importlib.metadata import version
from typing import Any, TypedDict

from cellvit.runner.cohort_task import SlideJob, Task, attempt

PACKAGE = "cellvit-lightning"

PROGRESS_SECONDS = 1.0
"""A slide's progress is told no more often, and as often it is asked whether the slide is still wanted."""

_one_at_a_time = threading.Lock()  # a worker with several threads is given as many slides, but has one device


class RemoteOutcome(TypedDict):
    """What a worker returns of a slide: see :class:`cellvit.runner.cohort_task.SlideOutcome`."""

    summary: dict[str, Any] | None
    error: str | None
    seconds: float
    device: str
    trace: str | None


class _NoLongerWantedError(BaseException):
    """Nobody waits for this slide any more; not an Exception, as nothing but :func:`do_slide` may catch it."""


def do_slide(payload: bytes, topic: str, number: int) -> RemoteOutcome:
    """Return what comes of a slide.

    It is told on the topic when it starts, how far it is and when it is done. It is left off, to be gone on with later,
    when the client has cancelled it or is gone.

    Args:
        payload: The pickled pair of task and job; the scheduler, which unpickles everything else, needs neither.
        topic: Where events are told.
        number: Of the slide, in the events.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    name = f"worker {worker.name}"
    told = time.monotonic()

    def check() -> None:
        state = worker.state.tasks.get(key)
        if state is None or state.state == "cancelled":
            raise _NoLongerWantedError

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done >= total or time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            check()
            worker.log_event(topic, {"slide": number, "kind": "progress", "done": int(done), "total": int(total)})

    with _one_at_a_time:
        try:
            check()
            worker.log_event(topic, {"slide": number, "kind": "start", "worker": name, "versions": versions()})
            outcome = _run(payload, name, progress)
            worker.log_event(topic, {"slide": number, "kind": "done"})
            return outcome
        except _NoLongerWantedError:
            return RemoteOutcome(summary=None, error="cancelled", seconds=0.0, device=name, trace=None)


def versions() -> dict[str, str]:
    """Return the versions of this package and of Python here."""
    return {"cellvit": version(PACKAGE), "python": ".".join(platform.python_version_tuple()[:2])}


def _run(payload: bytes, name: str, progress: Any) -> RemoteOutcome:
    loaded: tuple[Task, SlideJob] = pickle.loads(payload)
    task, job = loaded
    missing = next((path for path in (job.path, job.out) if not path.exists()), None)
    if missing is not None:
        error = f"{name} does not see '{missing}'; slides and results have to be on a disk that all workers share"
        return RemoteOutcome(summary=None, error=error, seconds=0.0, device=name, trace=None)
    device = str(job.settings.get("device", "auto"))
    settings = {key: value for key, value in job.settings.items() if key != "device"}
    done = attempt(task, SlideJob(job.path, job.out, settings), device=device, progress=progress)
    return RemoteOutcome(
        summary=done.summary, error=done.error, seconds=done.seconds, device=f"{name}, {device}", trace=done.trace
    )
