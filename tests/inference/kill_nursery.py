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

import psutil
from support.drawn_slides import DrawnModel

from cellvit.inference import slide as runner

SETTINGS = {"tile_size": 256, "overlap": 48, "tissue_filter": False, "batch_size": 3, "formats": ("geojson", "h5ad")}


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


def run(path, out, workers, kill_after):
    """Run a child, kill it after some seconds unless it has ended, and return how it ended and after how long."""
    began = time.monotonic()
    child = start(path, out, workers)
    while time.monotonic() - began < kill_after:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), time.monotonic() - began
        time.sleep(0.002)
    family = psutil.Process(child).children(recursive=True)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = psutil.wait_procs(family, timeout=200)[1]
    if left:
        raise SystemExit(f"processes go on without their parent: {left}")
    return status, time.monotonic() - began


def main(path, folder, kills, workers, seed):
    """Segment once without interruption, then again and again with kills until there were enough."""
    chance = random.Random(seed)
    status, whole = run(path, folder / "whole", workers, 300)
    print(json.dumps({"out": "whole", "status": status, "seconds": whole}), flush=True)
    killed = attempt = 0
    while killed < kills:
        attempt += 1
        out, deaths = folder / f"killed-{attempt}", 0
        while True:
            # after three deaths in one folder it may finish, so that folders of many lives are compared too
            status, seconds = run(path, out, workers, chance.uniform(0, whole) if deaths < 3 else 300)
            print(json.dumps({"out": out.name, "status": status, "seconds": seconds}), flush=True)
            if status == -signal.SIGKILL:
                killed, deaths = killed + 1, deaths + 1
            else:
                break


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
