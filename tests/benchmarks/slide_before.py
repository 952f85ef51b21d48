"""A slide from the command to the last file, by this code and by an earlier commit in turn, and the picture of it."""

import contextlib
import csv
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile
from matplotlib.figure import Figure
from timing import processor

BEFORE = "8298767"
"""The commit before slides became faster."""

SMALL = "cmu_small_region"

ISAS = {"all": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
"""What oneDNN may use of the processor; the second is what a laptop has."""

_REPOSITORY = Path(__file__).parents[2]
_PR_SET_CHILD_SUBREAPER = 36
_CHILD = """
import json, sys, time
started = time.perf_counter()
from pathlib import Path
from cellvit.cli import main
assert main(["segment", sys.argv[1], "--as", "slide", "--out", sys.argv[2], "--quiet"]) == 0
summary = json.loads((Path(sys.argv[2]) / Path(sys.argv[1]).stem / "summary.json").read_text())
print(json.dumps({"seconds": summary["seconds"], "tissue_mm2": summary["tissue"]["area_mm2"],
    "precision": summary["settings"]["precision"], "nuclei": summary["nuclei"]["total"],
    "tiles": summary["tiles"]["done"], "in_python": time.perf_counter() - started}))
"""


def bench_before(folder, picture, *, data, quick, commit=BEFORE):
    """Return wall and processor seconds of both sides on real tissue, and draw them.

    Args:
        folder: For the earlier code, the slides and the results.
        picture: PNG.
        data: Folder with real images; without it, or outside of a repository, nothing is compared.
        quick: One small slide, once each; else that twice, and a large one.
        commit: Of the earlier code.
    """
    checkout = folder / "before"
    git = ["git", "-C", str(_REPOSITORY), "worktree"]
    if data is None or subprocess.run([*git, "add", "--detach", checkout, commit], capture_output=True).returncode:
        return {"left_out": f"needs real images and commit {commit}"}
    try:
        slides = {SMALL: data / "wsi" / "cmu_small_region.svs"}
        if not quick:
            slides["mosaic"] = write_mosaic(folder / "mosaic.tif", data)
        runs = [
            {"slide": name, "isa": isa, "side": side, **_run(path, folder / "out", root, ISAS[isa])}
            for name, path in slides.items()
            for isa in ISAS
            for _ in range(2 if len(slides) > 1 and name == SMALL else 1)
            for side, root in (("before", checkout), ("now", _REPOSITORY))
        ]
    finally:
        subprocess.run([*git, "remove", "--force", checkout], capture_output=True, check=False)
    compared = [_compared(runs, name, isa) for name in slides for isa in ISAS]
    _draw(compared, picture)
    return {"commit": commit, "processor": processor(), "compared": compared, "runs": runs}


def write_mosaic(path, data, *, side=6000):
    """Write a slide of real tissue: images of 1000 px at 0.25 µm per pixel, side by side.

    Args:
        path: The file.
        data: Folder with real images.
        side: Of the slide in pixels, a multiple of 1000.
    """
    with (data / "nuclei" / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] in ("consep", "monuseg")]
    images = [next((data / "nuclei" / r["dataset"] / "images").glob(f"{r['image']}.*")) for r in rows]
    number = side // 1000
    mosaic = np.empty((side, side, 3), np.uint8)
    for place in range(number**2):
        y, x = np.multiply(divmod(place, number), 1000)
        mosaic[y : y + 1000, x : x + 1000] = cv2.imread(str(images[place % len(images)]))[:1000, :1000, ::-1]
    resolution = (40_000, 40_000)  # pixels per centimetre: 0.25 µm per pixel
    tifffile.imwrite(
        path, mosaic, tile=(512, 512), photometric="rgb", compression="jpeg", resolution=resolution, resolutionunit=3
    )
    return path


def _run(path, out, root, environment):
    """Return what one run takes in a process of its own, with all processes that it starts."""
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.suppress(OSError, AttributeError):  # only Linux lets an ancestor wait for orphans
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before, started = _children_seconds(), time.perf_counter()
    variables = {**os.environ, **environment, "PYTHONPATH": str(root), "CELLVIT_ACCEPT_LICENCES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), str(out)],
        env=variables, cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    with contextlib.suppress(ChildProcessError):
        while True:  # what starts the workers ends a little later
            os.waitpid(-1, 0)
    facts = json.loads(done.stdout.splitlines()[-1])
    cpu = _children_seconds() - before
    return {"wall": round(wall, 2), "cpu": round(cpu, 2), "cpu_per_mm2": round(cpu / facts["tissue_mm2"], 2), **facts}


def _children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _compared(runs, slide, isa):
    """Return the least that each side took, their ratios, and the shares of the wall time of this code's stages."""
    chosen = {
        side: min((r for r in runs if (r["slide"], r["isa"], r["side"]) == (slide, isa, side)), key=lambda r: r["cpu"])
        for side in ("before", "now")
    }
    before, now = chosen["before"], chosen["now"]
    seconds = now["seconds"]
    stages = {"network": seconds["forward"], "waiting for workers": seconds["postprocess"], "parts": seconds["write"]}
    stages |= {"table": seconds["seams"], "files": seconds["export"] + seconds["digests"]}
    stages["start, slide, model"] = now["wall"] - sum(stages.values())
    return {
        "slide": slide,
        "isa": isa,
        "times_faster": {name: round(before[name] / now[name], 2) for name in ("wall", "cpu")},
        "cpu_per_mm2": {side: run["cpu_per_mm2"] for side, run in chosen.items()},
        "nuclei": {side: run["nuclei"] for side, run in chosen.items()},
        "wall": {side: run["wall"] for side, run in chosen.items()},
        "cpu": {side: run["cpu"] for side, run in chosen.items()},
        "share_of_wall": {name: round(value / now["wall"], 3) for name, value in stages.items()},
    }


def _draw(compared, path):
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(compared))
    labels = [f"{row['slide']}\noneDNN: {row['isa']}".replace("_", "\n", 1) for row in compared]
    for offset, side, color in ((-0.2, "before", "#e28c32"), (0.2, "now", "#4074b4")):
        left.bar(places + offset, [row["cpu_per_mm2"][side] for row in compared], 0.4, label=side, color=color)
    for place, row in zip(places, compared, strict=True):
        left.annotate(f"{row['times_faster']['cpu']:.2f} x", (place, 1.02 * row["cpu_per_mm2"]["before"]), ha="center")
    left.set_ylim(0, 1.25 * max(row["cpu_per_mm2"]["before"] for row in compared))
    left.set_ylabel("processor seconds per mm² of tissue")
    left.set_xticks(places, labels, fontsize=8)
    left.legend()
    below = np.zeros(len(compared))
    for name in compared[0]["share_of_wall"]:
        values = np.array([row["share_of_wall"][name] for row in compared])
        right.bar(places, values, 0.6, bottom=below, label=name)
        below += values
    right.set_ylabel("share of the wall time, now")
    right.set_xticks(places, labels, fontsize=8)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)
