"""Processes that turn maps into nuclei while the device computes the maps of the next tiles.

This module is what a new process imports first, and neither it nor what it imports needs torch, which would take a
second and 200 MB of each.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.errors import OutputError
from cellvit.postprocess.base import Postprocessor, postprocessor_of
from cellvit.types import Nuclei, NucleiPrediction

if TYPE_CHECKING:
    from cellvit.inference.protocol import NucleiModel

Maps = Mapping[str, NDArray[Any]]
Place = tuple[int, NDArray[np.uint8]]
"""Number and pixels of a tile."""

Finish = Callable[[int, NDArray[np.uint8], NucleiPrediction], Nuclei]
"""Makes the table of a tile from its number, its pixels and what is found there."""

Result = TypeVar("Result")

_hiding = threading.Lock()
_postprocess: tuple[Callable[[Maps], Any], Finish | None] | None = None
_NOTHING = pickle.dumps(None)
_pickled = _NOTHING, _NOTHING

NO_PROCESS = (OSError, EOFError, NotImplementedError, ImportError)
"""What Python raises where no process can be started: no shared memory, no free process, a helper process that died."""


class PostprocessPool:
    """Post-processes tiles in other processes; use it as a context.

    Where processes cannot be had, threads of this process do it: with ``workers=0``, in a daemonic process (which may
    not have children), for a post-processor that only the running script knows, and where the system refuses to start
    processes, of which :attr:`notes` tell.

    Args:
        model: The model; its ``postprocessor`` goes to the workers, or, if it has none, its ``postprocess`` stays here.
        workers: Number of processes.
        finish: Makes the table of a tile; it can be pickled, and goes to the workers once. None takes what is found.

    Attributes:
        kind: ``"processes"`` or ``"threads"``; the latter also if processes were refused on the way.
        notes: What the user should know of it, a line each.
        capacity: Tiles that may be waiting or in work; more would only take memory.
    """

    def __init__(self, model: "NucleiModel", workers: int, finish: Finish | None = None) -> None:
        postprocessor = postprocessor_of(model)
        portable = postprocessor is not None and _can_travel(postprocessor)
        possible = workers > 0 and portable and may_have_children()
        self.kind = "threads"
        self.notes: list[str] = []
        self.capacity = 2 * max(1, workers) + 1
        self._local, self._finish = model.postprocess, finish
        self._open = ExitStack()
        self._threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="postprocess")
        self._open.callback(self._threads.shutdown, wait=True, cancel_futures=True)
        if possible:
            try:
                self._processes = process_pool(
                    workers, partial(_keep, pickle.dumps(postprocessor), pickle.dumps(finish))
                )
            except NO_PROCESS as error:
                self._do_without(error)
            else:
                self.kind = "processes"
                self._open.callback(self._processes.shutdown, wait=True, cancel_futures=True)

    def __enter__(self) -> "PostprocessPool":
        return self

    def __exit__(self, *stop: object) -> None:
        self._open.close()

    def submit(self, maps: Maps, place: Place | None = None) -> "Future[Nuclei]":
        """Start to find the nuclei of one tile.

        Args:
            maps: Maps of the tile, as :meth:`cellvit.postprocess.base.Postprocessor.__call__` takes them.
            place: Its number and its pixels, of which its table is made; None takes what is found as it is.

        Returns:
            A future of the nuclei in pixels of the tile, without class names; :func:`nuclei_of` waits for it.
        """
        if self.kind == "processes":
            try:
                return submit(self._processes, _find, maps, place)
            except BrokenProcessPool as error:
                raise _worker_died() from error
            except NO_PROCESS as error:  # what processes that did start have in work stays theirs
                self._do_without(error)
        return self._threads.submit(_find_here, self._local, self._finish, maps, place)

    def _do_without(self, error: BaseException) -> None:
        self.kind = "threads"
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self.notes.append(
            f"no post-processing process could be started ({reason}); threads did its work, which is slower: "
            "look at 'cellvit doctor', or pass workers=0"
        )


def nuclei_of(future: "Future[Nuclei]") -> Nuclei:
    """Wait for the nuclei of a tile.

    Args:
        future: From :meth:`PostprocessPool.submit`.

    Raises:
        OutputError: If a worker process was killed.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _worker_died() from error


def _worker_died() -> OutputError:
    return OutputError(
        "a post-processing worker was killed, or the process that starts them, most likely for lack of memory; "
        "the finished parts are kept: run the same again with fewer workers"
    )


def _find_here(postprocess: Callable[[Maps], Any], finish: Finish | None, maps: Maps, place: Place | None) -> Nuclei:
    found: NucleiPrediction = postprocess(maps)
    return found.nuclei if finish is None or place is None else finish(*place, found)


def _find(maps: Maps, place: Place | None) -> Nuclei:
    global _postprocess
    if _postprocess is None:  # here, not at the start, so that an error reaches the user
        _postprocess = pickle.loads(_pickled[0]), pickle.loads(_pickled[1])  # from our own parent
    postprocess, finish = _postprocess
    return _find_here(postprocess, finish, maps, place)


def _keep(postprocessor: bytes, finish: bytes = _NOTHING) -> None:
    global _pickled
    _pickled = postprocessor, finish


def _can_travel(postprocessor: Postprocessor) -> bool:
    """Tell whether a post-processor can be sent to a worker: not one that only the running script knows."""
    try:
        return type(postprocessor).__module__ != "__main__" and bool(pickle.dumps(postprocessor))
    except Exception:  # what cannot be pickled says so in many ways
        return False


def may_have_children() -> bool:
    """Tell whether this process may start others; a daemonic one, such as a worker of Dask, may not."""
    return not multiprocessing.current_process().daemon


def start_early() -> None:
    """Start the process that starts workers, and do not wait until it has imported what they need.

    Where it cannot be started, :class:`PostprocessPool` finds out and tells.
    """
    context = _context()
    if context.get_start_method() == "forkserver" and may_have_children():
        from multiprocessing import forkserver  # here, for not every system has it

        with suppress(*NO_PROCESS), _deaf_to_hangup():
            forkserver.ensure_running()


def process_pool(workers: int, prepare: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Return a pool of processes of one thread each that end when this one ends, however that may be.

    Args:
        workers: Number of processes, from 1.
        prepare: Is called in each; a function that can be pickled.

    Raises:
        OSError: If the system has no shared memory for it, or another of :data:`NO_PROCESS`.
    """
    with _deaf_to_hangup():
        return ProcessPoolExecutor(workers, _context(), initializer=partial(_start, prepare))


def submit(pool: Executor, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
    """Start a call in a pool of :func:`process_pool`, whose processes never run the script that runs here.

    Args:
        pool: The pool.
        function: What to call; it and its arguments can be pickled.
        *arguments: For it.
    """
    with _without_main_module(), _deaf_to_hangup():
        return pool.submit(function, *arguments)


def _start(prepare: Callable[[], None] | None) -> None:
    """Prepare a worker."""
    if prepare is not None:
        prepare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which ends this one
    _compute_with_one_thread()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _compute_with_one_thread() -> None:
    """Leave the other cores to the other processes; a post-processor of others may bring torch now or later."""
    cv2.setNumThreads(1)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # torch reads them when it is imported
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _context() -> multiprocessing.context.BaseContext:
    """Return a way to start processes that is safe beside threads and CUDA; workers share what was imported once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the running script from processes that start: they do not need it, and it may lack a main guard."""
    with _hiding:  # threads may start processes at the same time
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextmanager
def _deaf_to_hangup() -> Iterator[None]:
    """Let processes that start here, and what starts them, not hear of a closed terminal: they end with this one.

    They inherit the mask of this thread; a signal that comes meanwhile is delivered afterwards.
    """
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
