"""Print how long a start takes, as JSON: user CPU seconds of a new process, the median of several, and over torch's.

``worker processes`` and ``writer processes`` are the starter of processes and two of them until a small tile or a small
file each, is done; the program that asks for them is not counted.

Run it by hand: ``python tests/benchmarks/bench_startup.py [--runs 5] [--only TEXT]``. With ``PYTHONPATH`` it measures
another checkout.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from cellvit.cli import VERBS

TORCH = "import torch"
POOL = """
import pickle, sys
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
import numpy as np
import psutil
from cellvit import HVPostprocessor
from cellvit.inference import outputs, workers
from cellvit.io.formats.base import ImageFacts
from cellvit.io.parquet import write_parquet

y, x = np.mgrid[-1:1:64j, -1:1:64j].astype(np.float32)
disc = np.float32(x**2 + y**2 < 0.25)
maps = {"nuclei_binary_map": np.stack([1 - disc, disc]), "hv_map": np.stack([x, y]) * disc}
pool = workers.process_pool(2, partial(workers._keep, pickle.dumps(HVPostprocessor())))
calls = [(workers._find, maps, None)] * 2
if sys.argv[1] == "writer":
    write_parquet(HVPostprocessor()(maps).nuclei, "nuclei.parquet")
    calls = [(outputs._write_table, name, Path(), ImageFacts(mpp=0.25)) for name in ("geojson", "csv")]
for future in [workers.submit(pool, *call) for call in calls]:
    future.result()
pids = (forkserver._forkserver._forkserver_pid, *pool._processes)
print(sum(psutil.Process(pid).cpu_times().user for pid in pids))
"""
MESSAGES = {
    "cellvit segment small.png": ["segment", "small.png", "--out", "out", "--mpp", "0.25"],
    "cellvit segment missing.svs": ["segment", "missing.svs", "--out", "out"],
    "cellvit segment x --model nanno": ["segment", "x.png", "--model", "nanno", "--out", "out"],
}


def commands():
    """Return the arguments of Python for each thing that is started."""
    imports = (
        TORCH,
        "import cellvit",
        "from cellvit import Nuclei",
        "from cellvit import segment_image",
        "from cellvit import CellViT",
    )
    called = MESSAGES | {f"cellvit {verb} --help": [verb, "--help"] for verb in VERBS}
    started = {f"{kind} processes": ["-c", POOL, kind] for kind in ("worker", "writer")}
    return (
        {code: ["-c", code] for code in imports}
        | started
        | {
            name: ["-c", "import sys; from cellvit.cli import main; sys.exit(main())", *arguments]
            for name, arguments in called.items()
        }
    )


def user_seconds(arguments, folder):
    """Return the user CPU seconds of one run of Python and of what it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
    if POOL in arguments:
        return float(done.stdout)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each, after one that is not counted (5)")
    parser.add_argument("--only", default="", help="only what holds this text, beside 'import torch'")
    options = parser.parse_args()
    chosen = {name: call for name, call in commands().items() if name == TORCH or options.only in name}
    seconds = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.png").touch()  # so that only the model is wrong
        Image.new("RGB", (128, 128), (200, 150, 200)).save(Path(folder) / "small.png")
        for run in range(options.runs + 1):  # in turns, so that what else the machine does slows all alike
            for name, arguments in chosen.items():
                spent = user_seconds(arguments, folder)
                if run:  # the first run reads files from the disk and writes bytecode
                    seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {
        name: {"user_s": round(value, 3), "over_import_torch": round(value / medians[TORCH], 3)}
        for name, value in medians.items()
    }
    print(json.dumps({"runs": options.runs, "python": sys.version.split()[0], "startup": rows}, indent=2))


if __name__ == "__main__":
    main()
