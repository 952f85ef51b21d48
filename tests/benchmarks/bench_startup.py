"""Print how long a start takes, as JSON: user CPU seconds of a new process, the median of several, and over torch's.

Run it by hand: ``python tests/benchmarks/bench_startup.py [--runs 5] [--only TEXT]``.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cellvit.cli import VERBS

TORCH = "import torch"
MESSAGES = {
    "cellvit segment missing.svs": ["segment", "missing.svs", "--out", "out"],
    "cellvit segment x --model nanno": ["segment", "x.png", "--model", "nanno", "--out", "out"],
}


def commands():
    """Return the arguments of Python for each thing that is started."""
    imports = (TORCH, "import cellvit", "from cellvit import Nuclei", "from cellvit import segment_image")
    called = MESSAGES | {f"cellvit {verb} --help": [verb, "--help"] for verb in VERBS}
    return {code: ["-c", code] for code in imports} | {
        name: ["-c", "import sys; from cellvit.cli import main; sys.exit(main())", *arguments]
        for name, arguments in called.items()
    }


def user_seconds(arguments, folder):
    """Return the user CPU seconds of one run of Python and of what it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
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
