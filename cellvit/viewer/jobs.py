"""Work that takes longer than an answer: one job at a time, on a thread of its own, and how far it is."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cellvit.errors import CellViTError
from cellvit.viewer.labels import LabelConflictError
from cellvit.viewer.tasks import Say

_KEPT = 20  # finished jobs that can be asked for


@dataclass
class Job:
    """A job and how far it is.

    Attributes:
        name: What is done.
        state: ``"running"``, ``"done"`` or ``"failed"``.
        text: How far it is, what came of it, or why nothing did.
        report: Address of a page about it, below that of the viewer; None without one.
        id: Its name in addresses.
    """

    name: str
    state: str = "running"
    text: str = ""
    report: str | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def facts(self) -> dict[str, Any]:
        """Return what the page is told."""
        facts = {"name": self.name, "state": self.state, "text": self.text}
        return facts if self.report is None else {**facts, "report": self.report}


class Jobs:
    """The jobs of a viewer, of which one runs at a time."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, name: str, work: Callable[[Say], str], *, report: str | None = None) -> Job:
        """Start a job.

        Args:
            name: What is done, for messages.
            work: Does it, says how far it is, and returns what came of it.
            report: Address of the page about it, once it is done.

        Raises:
            LabelConflictError: If another one runs.
        """
        with self._mutex:
            if running := self.running:
                raise LabelConflictError(f"{running.name!r} is under way ({running.text}); wait for it")
            job = Job(name, text="started")
            self._jobs[job.id] = job
            for old in list(self._jobs)[:-_KEPT]:
                del self._jobs[old]
            # every file it writes is whole or not there, so the process need not wait for it when it ends
            self._thread = threading.Thread(target=_run, args=(job, work, report), name=f"cellvit {name}", daemon=True)
            self._thread.start()
        return job

    def get(self, key: str) -> Job | None:
        """Return a job by its ``id``, or None."""
        return self._jobs.get(key)

    @property
    def running(self) -> Job | None:
        """The job that runs, or None."""
        return next((job for job in self._jobs.values() if job.state == "running"), None)

    def wait(self) -> None:
        """Wait until nothing runs."""
        if self._thread is not None:
            self._thread.join()


def _run(job: Job, work: Callable[[Say], str], report: str | None) -> None:
    def say(text: str) -> None:
        job.text = text

    try:
        text = work(say)
    except CellViTError as error:
        job.text, job.state = str(error), "failed"
    except Exception as error:  # a fault of ours must not leave a job that runs for ever
        job.text, job.state = f"{type(error).__name__}: {error}", "failed"
    else:
        job.text, job.report, job.state = text, report, "done"
