"""Many slides: one after the other here, or side by side on several devices of one machine."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

from cellvit.errors import ConfigError
from cellvit.inference.cohort.job import Progress, Reporter, SlideJob, SlideOutcome, Task, attempt
from cellvit.inference.cohort.process import DeviceProcess
from cellvit.inference.cohort.summary import CohortFiles, write_summary
from cellvit.inference.settings import available_cores, default_workers

__all__ = ["CohortFiles", "Reporter", "SlideJob", "SlideOutcome", "choose_devices", "run_cohort", "write_summary"]

TRIES = 2
"""How often a slide is tried whose process dies: the reason may have been what ran beside it."""

STARTS = 2
"""How often a process is started on a device without becoming ready."""

POLL_SECONDS = 1.0
"""How often processes are asked whether they live, should the system not tell."""


def run_cohort(
    jobs: Sequence[SlideJob],
    *,
    task: Task,
    devices: Sequence[str] = ("cpu",),
    report: Reporter | None = None,
) -> list[SlideOutcome]:
    """Run a task on slides and return what came of each.

    With one device, or one slide, that happens in this process, one slide after the other. With several devices there
    is one process for each, which takes the next slide when it has finished one. If a process dies, its slide is tried
    once more after the others and another process takes its place. A slide that fails does not stop the others.

    Args:
        jobs: The slides.
        task: What to do with each; where there are several devices, a function at the top of a module. It is then
            given ``workers``, a share of the cores for each process, unless a job states that.
        devices: Names of devices, such as ``("cuda:0", "cuda:1")``; one that is named twice has two processes.
        report: Told of every step; ``finished`` is called as slides are finished, so what it has been told is not
            lost when this function is interrupted.

    Returns:
        One outcome per job, in the order of the jobs.

    Raises:
        ConfigError: If jobs share a folder of results, no device is named, or no process can be started.
        KeyboardInterrupt: If the user stops it; no process is left.
    """
    refuse_shared_folders(jobs)
    reporter = Reporter() if report is None else report
    if not devices:
        raise ConfigError("no device is named; pass devices=('cpu',) or the names of several")
    used = devices[: len(jobs)]
    if len(used) > 1:
        return _Cohort(jobs, task, used, reporter).run()
    outcomes = []
    for job in jobs:
        reporter.started(job, used[0])
        outcome = attempt(task, job, device=used[0], progress=_forward(reporter, job))
        outcomes.append(outcome)
        reporter.finished(outcome)
    return outcomes


def choose_devices(device: str, slides: int) -> tuple[str, ...]:
    """Return the devices that a number of slides is computed on.

    Args:
        device: ``"auto"``, the name of a device, or several names separated by commas.
        slides: Number of slides.

    Returns:
        For ``"auto"`` all CUDA devices if there are several of them and several slides, else ``("auto",)``; otherwise
        those named.

    Raises:
        ConfigError: If a name is unknown or there is no such device.
    """
    import torch

    from cellvit.inference.protocol import choose_device

    if device == "auto":
        count = min(torch.cuda.device_count(), slides)
        return tuple(f"cuda:{i}" for i in range(count)) if count > 1 else ("auto",)
    names = tuple(name.strip() for name in device.split(","))
    if not all(names):
        raise ConfigError(f"device {device!r} holds an empty name; write for example 'cuda:0,cuda:1'")
    for name in names:
        choose_device(name)
    return names


def refuse_shared_folders(jobs: Sequence[SlideJob]) -> None:
    """Raise if two jobs would write to one folder.

    Raises:
        ConfigError: With the folder.
    """
    shared = [str(out) for out, count in Counter(job.out.resolve() for job in jobs).items() if count > 1]
    if shared:
        raise ConfigError(f"{len(shared)} folders belong to several slides, such as {shared[0]!r}; give each its own")


def _forward(reporter: Reporter, job: SlideJob) -> Progress:
    return lambda done, total: reporter.advanced(job, done, total)


class _Cohort:
    """Slides on several devices; processes talk to this one only, so none can hold a lock when it is killed."""

    def __init__(self, jobs: Sequence[SlideJob], task: Task, devices: Sequence[str], reporter: Reporter) -> None:
        self.jobs, self.task, self.devices, self.reporter = jobs, task, devices, reporter
        self.threads = max(1, available_cores() // len(devices))
        self.waiting = deque(range(len(jobs)))
        self.deaths: Counter[int] = Counter()
        self.failed_starts: Counter[str] = Counter()
        self.outcomes: dict[int, SlideOutcome] = {}
        self.processes: list[DeviceProcess] = []
        self.started = False

    def run(self) -> list[SlideOutcome]:
        try:
            for device in self.devices:
                self._start(device)
            while len(self.outcomes) < len(self.jobs):
                self._assign()
                handles = [item for process in self.processes for item in (process.connection, process.sentinel)]
                wait(handles, timeout=POLL_SECONDS)
                for process in list(self.processes):
                    if process in self.processes:  # attending to one may have ended others
                        self._poll(process)
        finally:
            for process in self.processes:
                process.kill()
        return [self.outcomes[number] for number in range(len(self.jobs))]

    def _start(self, device: str) -> None:
        self.processes.append(DeviceProcess(self.task, device, threads=self.threads, quiet=self.started))
        self.started = True

    def _assign(self) -> None:
        """Give a slide to every process that has none."""
        for process in self.processes:
            if process.ready and process.job is None and self.waiting:
                number = self.waiting.popleft()
                self.reporter.started(self.jobs[number], process.device)
                process.give(number, self._with_share(self.jobs[number], process.device))

    def _with_share(self, job: SlideJob, device: str) -> SlideJob:
        """Return a job with its share of the post-processing workers, unless it states their number."""
        if job.settings.get("workers") is not None:
            return job
        workers = max(1, default_workers(device.partition(":")[0]) // len(self.devices))
        return replace(job, settings={**job.settings, "workers": workers})

    def _poll(self, process: DeviceProcess) -> None:
        """Read what a process has sent, and replace it if it has died."""
        alive = process.is_alive()  # asked first, so that nothing it sent before it died is missed
        for kind, value in process.messages():
            if self._handle_message(process, kind, value):
                self._replace(process)
                return
        if not alive:
            self._handle_exit(process)

    def _handle_message(self, process: DeviceProcess, kind: str, value: Any) -> bool:
        """Take in a message; return whether the process is to be replaced."""
        if kind == "unusable":
            raise ConfigError(f"task {self.task!r} cannot be loaded in another process: {value}")
        if kind == "ready":
            process.ready, self.failed_starts[process.device] = True, 0
        elif process.job is not None and kind == "progress":
            self.reporter.advanced(self.jobs[process.job], *value)
        elif process.job is not None:
            number, process.job = process.job, None
            self._finish(number, value)
            return value.trace is not None  # after an error of CUDA a process cannot compute any more
        return False

    def _handle_exit(self, process: DeviceProcess) -> None:
        """Decide what becomes of the slide of a process that has died."""
        number, ready, device = process.job, process.ready, process.device
        ending = self._replace(process)
        if not ready:
            self.failed_starts[device] += 1
            if self.failed_starts[device] >= STARTS:
                self._give_up(device, ending)
        if number is None:
            return
        self.deaths[number] += 1
        path = self.jobs[number].path
        if self.deaths[number] < TRIES:
            self.waiting.append(number)
            self.reporter.warned(f"the process on {device} {ending}; '{path}' is tried once more after the others")
            return
        error = f"its process on {device} {ending}, {TRIES} times; free memory or use fewer devices, then run it again"
        job = self.jobs[number]
        self._finish(number, SlideOutcome(job.path, job.out, None, error, 0.0, device, job.extra))

    def _replace(self, process: DeviceProcess) -> str:
        """End a process and start another in its place; return how it ended."""
        self.processes.remove(process)
        ending = process.kill()
        if len(self.outcomes) < len(self.jobs):
            self._start(process.device)
        return ending

    def _give_up(self, device: str, ending: str) -> None:
        """Go on without a device, if there is another."""
        for process in [process for process in self.processes if process.device == device and not process.ready]:
            self.processes.remove(process)
            process.kill()
        if not self.processes:
            message = (
                f"no process can be started: the last one {ending} before it was ready; a script that calls this "
                "has to do so below 'if __name__ == \"__main__\":', or pass one device"
            )
            raise ConfigError(message)
        self.reporter.warned(f"no process can be started on {device}: the last one {ending}; going on without it")

    def _finish(self, number: int, outcome: SlideOutcome) -> None:
        self.outcomes[number] = outcome
        self.reporter.finished(outcome)
