"""The process of one device: it is given slides one after the other, and ends with its parent."""

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from cellvit.errors import ConfigError
from cellvit.inference.cohort.job import SlideJob, Task, attempt, seldom
from cellvit.weights.licences import LicenceNotice

PROGRESS_SECONDS = 0.2
"""A slide's progress is told no more often."""

WATCH_SECONDS = 2.0
"""How often a process looks whether its parent is alive, should the system not tell."""

_CONTEXT = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA, nor the threads of its parent


class DeviceProcess:
    """A process that runs a task on slides.

    It leads a process group of its own: a Ctrl+C at the terminal reaches its parent only, and what it starts itself
    ends with it.

    Args:
        task: What to do with a slide.
        device: Passed on to the task.
        threads: Threads of numerical libraries, unless ``OMP_NUM_THREADS`` says otherwise.
        quiet: Whether to keep back what another process has said already: licences of models.

    Attributes:
        ready: Whether it has loaded the task.
        job: Number of the slide it has been given and not answered for, or None.

    Raises:
        ConfigError: If the task cannot be sent to another process.
    """

    def __init__(self, task: Task, device: str, *, threads: int, quiet: bool = False) -> None:
        self.device = device
        self.ready = False
        self.job: int | None = None
        try:
            payload = pickle.dumps(task)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            message = f"task {task!r} cannot be sent to another process ({error}); define it at the top of a module"
            raise ConfigError(message) from error
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(theirs, payload, device, threads, quiet), name=f"cellvit {device}"
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Return the number of the process."""
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """Return what becomes ready when the process ends."""
        return self._process.sentinel

    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.is_alive()

    def give(self, number: int, job: SlideJob) -> None:
        """Send a slide; where the process has died meanwhile, that is found out when it is asked.

        Raises:
            ConfigError: If the settings of the job cannot be sent.
        """
        self.job = number
        try:
            payload = pickle.dumps(job)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            message = f"settings of slide '{job.path}' cannot be sent to another process ({error}); pass plain data"
            raise ConfigError(message) from error
        with suppress(OSError):
            self.connection.send_bytes(payload)

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield what the process has sent and nobody has read: a kind and a value."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            return

    def kill(self) -> str:
        """End the process and all it has started, at once; return in words how it ended."""
        pid = self._process.pid
        if pid is not None and hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        ending = _ending(self._process.exitcode)
        self.connection.close()
        self._process.close()
        return ending


def _ending(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _serve(connection: Connection, payload: bytes, device: str, threads: int, quiet: bool) -> None:
    """Do the slides that arrive until there are no more; the main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, name="cellvit parent", daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before the task loads the libraries that read it
    if quiet:
        warnings.simplefilter("ignore", LicenceNotice)
    try:
        task: Task = pickle.loads(payload)
    except Exception as error:
        connection.send(("unusable", f"{type(error).__name__}: {error}"))
        return
    progress = seldom(lambda done, total: connection.send(("progress", (done, total))), seconds=PROGRESS_SECONDS)
    connection.send(("ready", None))
    while True:
        try:
            job: SlideJob = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        outcome = attempt(task, job, device=device, progress=progress)
        try:
            connection.send(("outcome", outcome))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            outcome = replace(outcome, summary=None, error=f"its summary is no plain data: {error}")
            connection.send(("outcome", outcome))


def _end_with_parent() -> None:
    """Wait until the parent has died, then end this process and all it has started."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    # a parent that is gone has handed its children on, which a pipe held open by somebody else would hide
    while not wait([parent.sentinel], timeout=WATCH_SECONDS) and os.getppid() == parent.pid:
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
