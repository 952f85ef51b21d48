"""A process that segments a drawn slide in children and kills them at random moments; run by test_runner_kill.py.

A child is forked from here, where everything is imported, so that a start costs nothing. One line of JSON per child.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import anndata  # noqa: F401 - this and the others are imported here, once for all children
import imagecodecs  # noqa: F401
import openslide  # noqa: F401
import psutil
import scipy.spatial  # noqa: F401
import tifffile  # noqa: F401
from support.drawn_slides import DrawnModel

from cellvit.inference import prepare
from cellvit.inference import slide as runner
from cellvit.inference.resume import ResumeFolder

SETTINGS = {"tile_size": 256, "overlap": 48, "tissue_filter": False, "batch_size": 3, "formats": ("geojson", "h5ad")}
LONG = 300  # seconds


def segment(path, out, *, workers):
    runner.segment_slide(path, out, model=DrawnModel(), device="cpu", workers=workers, **SETTINGS)


def start(path, out, workers):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            segment(path, out, workers=workers)
            status = 0
        finally:
            os._exit(status)
    return child


def run(path, out, workers, kill_after, *, ready=lambda: True):
    """Run a child, kill it some seconds after it is ready unless it has ended; print how it ended, and return that."""
    began, ready_at = time.monotonic(), None
    child = start(path, out, workers)
    while ready_at is None or time.monotonic() - ready_at < kill_after:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return told(out, os.waitstatus_to_exitcode(status), time.monotonic() - began)
        if ready_at is None and ready():
            ready_at = time.monotonic()
        time.sleep(0.002)
    family = psutil.Process(child).children(recursive=True)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = psutil.wait_procs(family, timeout=200)[1]
    if left:
        raise SystemExit(f"processes go on without their parent: {left}")
    return told(out, status, time.monotonic() - began, family=len(family))


def told(out, status, seconds, *, family=0):
    """Print how a child ended."""
    print(json.dumps({"out": out.name, "status": status, "seconds": seconds, "family": family}), flush=True)
    return status, seconds


def main(path, folder, kills, seed):
    """Segment once without interruption, then again and again with kills until there were enough."""
    chance = random.Random(seed)
    status, whole = run(path, folder / "whole", 0, LONG)
    killed = attempt = 0
    while killed < kills:
        attempt += 1
        out, deaths = folder / f"killed-{attempt}", 0
        while True:
            # after three deaths in one folder it may finish, so that folders of many lives are compared too
            status, _ = run(path, out, 0, chance.uniform(0, whole) if deaths < 3 else LONG)
            if status != -signal.SIGKILL:
                break
            killed, deaths = killed + 1, deaths + 1
    # one with worker processes, killed in the middle of its work
    out = folder / "killed-with-workers"
    run(path, out, 1, chance.uniform(0, whole / 4), ready=ResumeFolder(out).part_path(0).exists)
    run(path, out, 1, LONG)


if __name__ == "__main__":
    prepare.TILES_PER_CHUNK = 4  # of a small slide that has several parts all the same
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
