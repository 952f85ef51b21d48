"""Many slides on the workers of a Dask cluster, on one machine or on many.

:func:`run_on_cluster` is what the caller's process does: it submits slides and hears of them. :func:`run_slide` is what
a worker does; the two exchange events on a topic, and plain data as results.
"""

import json
import math
import pickle
import platform
import queue
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from cellvit.errors import CellViTError, ConfigError, OutputError
from cellvit.inference.cohort.job import Progress, Reporter, SlideJob, SlideOutcome, Task, attempt, seldom
from cellvit.inference.cohort.run import refuse_shared_folders
from cellvit.weights.catalogue import BUNDLED

PACKAGE = "cellvit-lightning"

PROGRESS_SECONDS = 1.0
"""A slide's progress is told no more often, and as often it is asked whether the slide is still wanted."""

CONNECT_SECONDS = 20
"""A scheduler that does not answer within this time when a run begins is not there."""

RECONNECT_SECONDS = 120
"""A scheduler that was there is waited for as long when the connection is lost; a busy machine may be silent."""

RECONNECTIONS = 5
"""How often a connection may be lost and made again in one run."""

PATIENCE = {"distributed.comm.timeouts.connect": 60.0, "distributed.comm.timeouts.tcp": 120.0}
"""Settings of Dask in the process that submits: how many seconds an answer may take, at least (Dask's own: 30)."""

LOCK_SECONDS = 120
"""So long is waited for a worker that had a slide when the connection was lost; it leaves it after a tile."""

POLL_SECONDS = 1.0
"""How often workers are counted."""

NO_WORKER_WARNING_SECONDS = 10.0
"""A cluster that has lost its workers for longer will hardly replace them by itself."""

TRIES = 2
"""A slide that has started on so many workers that died is to blame, and fails."""

SUBMISSIONS = 10
"""How often a slide is given to the scheduler at most: one that only waits on workers that die is not to blame."""

_one_at_a_time = threading.Lock()  # a worker with several threads is given as many slides, but has one device


class RemoteOutcome(TypedDict):
    """What a worker returns: a :class:`cellvit.inference.cohort.job.SlideOutcome` without what the client knows."""

    summary: dict[str, Any] | None
    error: str | None
    seconds: float
    device: str
    trace: str | None


def run_on_cluster(
    jobs: Sequence[SlideJob], address: str, *, task: Task, report: Reporter | None = None
) -> list[SlideOutcome]:
    """Run a task on slides on a Dask cluster and return what came of each.

    Each worker does one slide at a time. If a worker dies, the scheduler gives its slide to another, which goes on with
    what is on the disk. Workers that come later are given slides too. A slide that fails does not stop the others. If
    the connection to the scheduler is lost, it is made again, :data:`RECONNECTIONS` times, each within
    :data:`RECONNECT_SECONDS`, and the slides that were under way go on with what is on the disk.

    Args:
        jobs: The slides. Slides, folders of results and files in settings are on a disk that the workers share.
        address: Address of the scheduler, such as ``"tcp://10.0.0.1:8786"``, or the path of its ``scheduler.json``.
        task: What to do with each slide; a function at the top of a module that the workers have too. It is given the
            device of the settings, else ``"auto"``.
        report: Told of every step, as by :func:`cellvit.inference.cohort.run.run_cohort`.

    Returns:
        One outcome per job, in the order of the jobs.

    Raises:
        ConfigError: If the cluster cannot be reached or used, or the jobs cannot be sent.
        OutputError: If a folder cannot be made.
        CellViTError: If the connection is lost and cannot be made again.
        KeyboardInterrupt: If the user stops it; the workers stop too, at the next tile.
    """
    refuse_shared_folders(jobs)
    if not jobs:
        return []
    reporter = Reporter() if report is None else report
    payloads = [_payload(task, job) for job in jobs]
    with _connected(address) as client:
        _check_cluster(client, address, reporter)
        for job in jobs:  # workers tell by them whether they share the disk
            _make_folder(job.out)
        return _Run(client, jobs, payloads, reporter).run()


def distributed() -> Any:
    """Return the package ``distributed``.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return import_module("distributed")
    except ImportError as error:
        message = f"a cluster needs the package distributed ({error}); from a checkout: pip install '.[cluster]'"
        raise ConfigError(message) from error


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield a client of the cluster that is closed at the end."""
    package = distributed()
    with import_module("dask.config").set(_patience()), _client(package, address) as client:
        yield client


def _patience() -> dict[str, float]:
    """Return :data:`PATIENCE` where Dask is not configured to be more patient, in seconds."""
    config, seconds = import_module("dask.config"), import_module("dask.utils").parse_timedelta
    return {name: max(least, seconds(config.get(name))) for name, least in PATIENCE.items()}


@contextmanager
def _client(package: Any, address: str) -> Iterator[Any]:
    try:
        client = package.Client(_address(address), timeout=CONNECT_SECONDS, set_as_default=False, name="cellvit")
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = (
            f"no Dask scheduler answers at {address!r} ({reason}); start one with 'dask scheduler' and pass the "
            "address it prints, such as tcp://HOST:8786, or the path of its --scheduler-file"
        )
        raise ConfigError(message) from error
    client._timeout = RECONNECT_SECONDS  # Dask has one for both; without such an attribute it stays the first
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_SECONDS)


def _address(text: str) -> str:
    """Return an address, read from the file of a scheduler if that is what is named."""
    if Path(text).suffix != ".json":
        return text
    return str(json.loads(Path(text).read_text(encoding="utf-8"))["address"])


def _check_cluster(client: Any, address: str, reporter: Reporter) -> None:
    """Raise if the scheduler or a worker has another version of this package; warn of what slows or waits."""
    try:
        found = {"the scheduler": client.run_on_scheduler(version, PACKAGE)}
    except ImportError as error:  # PackageNotFoundError is one
        found = {"the scheduler": error}
    found |= client.run(version, PACKAGE, on_error="return")
    ours = versions()["cellvit"]
    for place, theirs in found.items():
        if isinstance(theirs, ImportError):
            raise ConfigError(f"{place} at {address!r} has no {PACKAGE}; install {PACKAGE}=={ours} there")
        if isinstance(theirs, str) and theirs != ours:
            message = f"{place} at {address!r} has {PACKAGE} {theirs}, here is {ours}; install the same everywhere"
            raise ConfigError(message)
    threads = client.nthreads()
    wide = [place for place, number in threads.items() if number > 1]
    if wide:
        reporter.warned(
            f"{len(wide)} workers have several threads, such as {wide[0]}, but do one slide at a time; "
            "start one worker per device with --nthreads 1"
        )


def _payload(task: Task, job: SlideJob) -> bytes:
    """Return task and job for a worker, whose working directory is another."""
    settings = {name: _absolute(name, value) for name, value in job.settings.items()}
    portable = SlideJob(job.path.absolute(), job.out.absolute(), settings)
    try:
        return pickle.dumps((task, portable))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        message = f"slide '{job.path}' cannot be sent to workers ({error}); pass plain data, and a task of a module"
        raise ConfigError(message) from error


def _absolute(name: str, value: Any) -> Any:
    if name == "model" and isinstance(value, str):
        is_path = Path(value).exists() and not (BUNDLED / value).exists()
        return str(Path(value).absolute()) if is_path else value
    return Path(value).absolute() if isinstance(value, Path) or (name == "roi" and value is not None) else value


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"folder '{folder}' cannot be made: {reason}; choose another out=FOLDER") from error


class _Run:
    """Slides that a cluster does; callbacks put what happens into a queue, from which it is told in this thread.

    No more slides are submitted than there are workers: when a worker dies, the scheduler blames every task that it has
    assigned to it, also those that only waited there.
    """

    def __init__(self, client: Any, jobs: Sequence[SlideJob], payloads: Sequence[bytes], reporter: Reporter) -> None:
        self.client, self.jobs, self.payloads, self.reporter = client, jobs, payloads, reporter
        self.futures: dict[int, Any] = {}
        self.outcomes: dict[int, SlideOutcome] = {}
        self.starts: Counter[int] = Counter()
        self.submissions: Counter[int] = Counter()
        self.known: set[str] = set()
        self.lost = 0

    def run(self) -> list[SlideOutcome]:
        self._begin()
        looked = -math.inf
        try:
            while len(self.outcomes) < len(self.jobs):
                if self.client.status != "running":
                    self._reconnect()
                if time.monotonic() - looked >= POLL_SECONDS:
                    self._refresh_workers()
                    looked = time.monotonic()
                while self.waiting and len(self.futures) < self.workers:
                    self._submit(self.waiting.popleft())
                with suppress(queue.Empty):
                    self._handle_message(self.events.get(timeout=POLL_SECONDS))
            return [self.outcomes[number] for number in range(len(self.jobs))]
        finally:
            if self.client.status == "running":
                with suppress(OSError):  # a connection that breaks now takes both with it
                    self.client.cancel(list(self.futures.values()))
                    self.client.unsubscribe_topic(self.topic)

    def _begin(self) -> None:
        """Ask to be told of the slides that are not done, under a name that no earlier message has."""
        self.topic = f"cellvit-{secrets.token_hex(8)}"
        events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.events = events
        self.waiting = deque(number for number in range(len(self.jobs)) if number not in self.outcomes)
        self.futures.clear()
        self.starts.clear()
        self.workers, self.seen = 0, -math.inf
        self.client.subscribe_topic(self.topic, lambda event: events.put(event[1]))

    def _reconnect(self) -> None:
        """Wait until Dask has made the connection again; with it the scheduler has forgotten our slides."""
        self.lost += 1
        if self.lost <= RECONNECTIONS:
            self.reporter.warned(f"the connection to the Dask scheduler was lost; trying for {RECONNECT_SECONDS} s")
            while self.client.status == "connecting":
                time.sleep(POLL_SECONDS / 10)
        if self.client.status != "running":
            raise CellViTError(
                "the connection to the Dask scheduler was lost; finished slides and parts are kept: "
                "start the cluster again and run the same command"
            )
        self._begin()

    def _refresh_workers(self) -> None:
        """Count the workers, which come and go."""
        try:
            self.workers = len(self.client.nthreads())
        except OSError:  # the connection has just been lost, which its status will tell
            return
        if self.workers:
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > NO_WORKER_WARNING_SECONDS:
            self.seen = math.inf  # said once, until there are some again
            self.reporter.warned("the cluster has no workers; waiting for some: start them with 'dask worker ...'")

    def _submit(self, number: int) -> None:
        self.submissions[number] += 1
        key = f"{self.topic}-{number}-{self.submissions[number]}"
        arguments = (self.payloads[number], self.topic, number, LOCK_SECONDS if self.lost else 0)
        future = self.client.submit(run_slide, *arguments, key=key, pure=False, retries=1)
        self.futures[number] = future
        future.add_done_callback(lambda _: self.events.put({"slide": number, "kind": "end", "key": key}))

    def _handle_message(self, event: dict[str, Any]) -> None:
        number, kind = event["slide"], event["kind"]
        future = self.futures.get(number)
        if future is None:
            return  # events and results take different ways, so one may overtake the other
        if kind == "end" and event["key"] == future.key:
            self._end(number, self.futures.pop(number))
        elif kind == "start":
            self.starts[number] += 1
            self._compare(event["worker"], event["versions"])
            self.reporter.started(self.jobs[number], event["worker"])
        elif kind == "done":  # should its result be lost with a worker, it was not this slide that killed it
            self.starts[number] = 0
        elif kind == "progress":
            self.reporter.advanced(self.jobs[number], event["done"], event["total"])

    def _end(self, number: int, future: Any) -> None:
        try:
            remote = future.result() if future.status == "finished" else self._broken(number, future.exception())
        except (OSError, CancelledError):  # what was known of it went with a worker, or with the connection
            remote = self._broken(number, None)
        future.release()
        if remote is None:
            self.waiting.append(number)
            return
        job = self.jobs[number]
        self.outcomes[number] = SlideOutcome(job.path, job.out, extra=job.extra, **remote)
        self.reporter.finished(self.outcomes[number])

    def _broken(self, number: int, error: BaseException | None) -> RemoteOutcome | None:
        """Return the outcome of a slide that came to no end on any worker; None if it is not to blame for that."""
        text = f"{type(error).__name__}: {error}"
        if error is None or isinstance(error, distributed().KilledWorker):
            if self.starts[number] < TRIES and self.submissions[number] < SUBMISSIONS:
                return None
            text = (
                "the workers that did it died, perhaps for want of memory; give workers more memory, "
                "then run it again: it goes on where it was"
            )
        return RemoteOutcome(summary=None, error=text, seconds=0.0, device="", trace=None)

    def _compare(self, worker: str, theirs: dict[str, str]) -> None:
        """Warn of a worker whose versions differ from ours; one that has come after the start is not refused."""
        differing = [
            f"{name} {theirs[name]} (here {ours})" for name, ours in versions().items() if theirs[name] != ours
        ]
        if differing and worker not in self.known:
            self.reporter.warned(f"{worker} has {', '.join(differing)}; install the same everywhere")
        self.known.add(worker)


# What happens on a worker.


class _NoLongerWantedError(BaseException):
    """Nobody waits for this slide any more; not an Exception, as nothing but :func:`run_slide` may catch it."""


def run_slide(payload: bytes, topic: str, number: int, patience: float = 0) -> RemoteOutcome:
    """Segment one slide on this worker and return its outcome.

    It is told on the topic when it starts, how far it is and when it is done. It is left off, to be gone on with later,
    when the client has cancelled it or is gone.

    Args:
        payload: The pickled pair of task and job; the scheduler, which unpickles everything else, needs neither.
        topic: Name of the topic that events are told on.
        number: Number of the slide in the events.
        patience: Seconds to wait for another worker that may still be leaving this slide.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    name = f"worker {worker.name}"

    def check() -> None:
        state = worker.state.tasks.get(key)
        if state is None or state.state == "cancelled":
            raise _NoLongerWantedError

    def tell(done: int, total: int) -> None:
        check()
        worker.log_event(topic, {"slide": number, "kind": "progress", "done": int(done), "total": int(total)})

    with _one_at_a_time:
        try:
            check()
            worker.log_event(topic, {"slide": number, "kind": "start", "worker": name, "versions": versions()})
            outcome = _run(payload, name, seldom(tell, seconds=PROGRESS_SECONDS), patience)
            worker.log_event(topic, {"slide": number, "kind": "done"})
            return outcome
        except _NoLongerWantedError:
            return RemoteOutcome(summary=None, error="cancelled", seconds=0.0, device=name, trace=None)


def versions() -> dict[str, str]:
    """Return the versions of this package and of Python here."""
    return {"cellvit": version(PACKAGE), "python": ".".join(platform.python_version_tuple()[:2])}


def _run(payload: bytes, name: str, progress: Progress, patience: float) -> RemoteOutcome:
    loaded: tuple[Task, SlideJob] = pickle.loads(payload)
    task, job = loaded
    missing = next((path for path in (job.path, job.out) if not path.exists()), None)
    if missing is not None:
        error = f"{name} does not see '{missing}'; slides and results have to be on a disk that all workers share"
        return RemoteOutcome(summary=None, error=error, seconds=0.0, device=name, trace=None)
    if patience:
        with suppress(Timeout, OSError, NotImplementedError), FileLock(job.out / ".lock", timeout=patience):
            pass  # of which the task says what is to be said
    device = str(job.settings.get("device", "auto"))
    settings = {key: value for key, value in job.settings.items() if key != "device"}
    done = attempt(task, SlideJob(job.path, job.out, settings), device=device, progress=progress)
    return RemoteOutcome(
        summary=done.summary, error=done.error, seconds=done.seconds, device=f"{name}, {device}", trace=done.trace
    )
