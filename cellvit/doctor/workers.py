"""The check of worker processes, which clusters and containers break: one is started and does one tile."""

import multiprocessing
import threading
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from cellvit.doctor.finding import Finding, first_line

SECTION = "workers"
TIMEOUT = 60.0
"""Seconds after which a worker counts as stuck; on a busy disk it imports for ten."""

_ADVICE = (
    "pass --workers 0 (slower); often the temporary folder is to blame (set TMPDIR to a short path on a local disk), "
    "or a limit of processes or memory (ulimit -u, the cluster's --mem)"
)


class WorkerCheck:
    """Starts a worker beside other checks; :meth:`finding` waits for it.

    Args:
        timeout: Seconds to wait.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        # what the worker needs is imported here: two threads that import at once see half a module
        from cellvit.inference.workers import PostprocessPool, nuclei_of
        from cellvit.postprocess.hv import HVPostprocessor

        self._pool, self._nuclei_of = PostprocessPool, nuclei_of
        postprocessor = HVPostprocessor(normalisation="fixed")
        self._model = SimpleNamespace(postprocessor=postprocessor, postprocess=postprocessor)
        self._maps = drawn_maps()
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._before = set(multiprocessing.active_children())
        self._found: Finding | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finding(self) -> Finding:
        """Return what came of it; a worker that is stuck is ended."""
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._found is not None:
            return self._found
        for child in set(multiprocessing.active_children()) - self._before:
            child.kill()
        self._thread.join(2.0)
        text = f"a worker process did not answer within {self._timeout:g} seconds"
        return Finding(SECTION, "post-processing", "problem", text, _ADVICE)

    def _run(self) -> None:
        try:
            self._found = self._examined()
        except Exception as error:  # operating systems refuse processes in many ways
            self._found = Finding(SECTION, "post-processing", "problem", first_line(error), _ADVICE)

    def _examined(self) -> Finding:
        started = time.perf_counter()
        with self._pool(self._model, workers=1) as pool:
            found = len(self._nuclei_of(pool.submit(self._maps)))
            kind = pool.kind
        seconds = time.perf_counter() - started
        facts = {"kind": kind, "nuclei": found, "seconds": round(seconds, 3)}
        if found != 2:
            text = f"a worker found {found} of 2 drawn nuclei"
            return Finding(SECTION, "post-processing", "problem", text, "reinstall opencv-python-headless", facts)
        if kind != "processes":
            return Finding(SECTION, "post-processing", "note", "threads, for processes cannot be had", _ADVICE, facts)
        return Finding(SECTION, "post-processing", "ok", f"a worker process started, in {seconds:.1f} s", facts=facts)


def drawn_maps() -> Mapping[str, Any]:
    """Return the maps of a tile with two touching nuclei, which only the distance maps tell apart."""
    from cellvit.data.targets import hv_map_from_instances
    from cellvit.types import HV_MAP, NUCLEI_BINARY_MAP

    row, column = np.mgrid[:64, :96]
    instances = np.zeros((64, 96), np.int32)
    for label, x in ((1, 34), (2, 60)):
        instances[(row - 32) ** 2 + (column - x) ** 2 < 14**2] = label
    nucleus = (instances > 0).astype(np.float32)
    return {NUCLEI_BINARY_MAP: np.stack([1 - nucleus, nucleus]), HV_MAP: hv_map_from_instances(instances)}
