"""A Dask cluster for tests: a scheduler and two workers, each with a nanny that replaces it when it dies.

It runs in a process group of its own, which is killed at the end: a LocalCluster may take forever to close while it
starts a worker anew.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def local_cluster() -> Iterator[str]:
    """Yield the address of the scheduler of a cluster whose workers can import the stand-ins of the tests."""
    here = Path(__file__)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2])]),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "5m",  # on a busy machine a worker may take more than 15 s
    }
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, str(here)]
    with subprocess.Popen(command, env=environment, start_new_session=True, text=True, **streams) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    from distributed import LocalCluster

    quiet = {"dashboard_address": None, "worker_dashboard_address": None, "silence_logs": logging.CRITICAL}
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, scheduler_port=0, **quiet)
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()  # until the tests have ended, however that may be
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
