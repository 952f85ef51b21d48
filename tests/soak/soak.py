"""Work that is killed at random moments and taken up again, compared with work that nobody disturbed.

``make soak`` runs it for 20 minutes, outside the automated tests; ``make soak SECONDS=120 SEED=7`` repeats a run. Each
kind of work is done once without interruption. Then, again and again in a new folder, it is stopped by SIGKILL, SIGTERM
or SIGHUP at random moments and continued by the same command until it is done; what is promised to be the same is
compared.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/cli")]

from drawn_folds import draw_tissue, write_folds, write_folds_config  # noqa: E402

CELLVIT = (sys.executable, "-m", "cellvit")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
DEATHS = 3
"""After so many in one folder the work may finish, so that folders of many lives are compared too."""
PATIENCE = 600.0
"""Seconds after which work that does not end counts as hung."""
LEFT_SECONDS = 60.0
"""Seconds that processes may outlive their parent."""

SUMMARY = ("nuclei", "tiles", "tissue", "resolution", "fingerprints", "warnings", "statistics")
"""What a summary must say again; times and places differ."""


@dataclass(frozen=True)
class Work:
    """A kind of work.

    Attributes:
        name: In the table.
        command: Returns the command for a folder of results; it is asked again for each life.
        result: Returns what must be the same in every folder, by name.
    """

    name: str
    command: Callable[[Path], list[str]]
    result: Callable[[Path], Mapping[str, Any]]


@dataclass
class Tally:
    """What became of a kind of work."""

    seconds: float = 0.0
    kills: dict[str, int] = field(default_factory=lambda: {number.name: 0 for number in SIGNALS})
    survived: int = 0
    compared: int = 0
    different: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Life:
    """One process: how it ended, whether a signal of ours had come before, and how many children it left behind."""

    status: int
    stopped: bool
    left: int


def live(command: list[str], log: Path, *, after: float | None = None, number: int = signal.SIGKILL) -> Life:
    """Run a command, stop it after some seconds unless it has ended, and return how it ended.

    Args:
        command: The command; it leads a process group of its own.
        log: Gets what it prints.
        after: Seconds; None leaves it alone.
        number: The signal; a closed terminal tells the whole group, other signals are sent to the process alone.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "CELLVIT_ACCEPT_LICENCES": "1", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
    try:
        return Life(process.wait(PATIENCE if after is None else after), False, 0)
    except subprocess.TimeoutExpired:
        family = psutil.Process(process.pid).children(recursive=True)
    if after is None:
        process.kill()
        process.wait()
        return Life(-signal.SIGALRM, False, 0)
    (os.killpg if number == signal.SIGHUP else os.kill)(process.pid, number)
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    left = psutil.wait_procs(family, timeout=LEFT_SECONDS)[1]
    for child in left:
        child.kill()
    return Life(status, True, len(left))


def episode(
    work: Work, out: Path, whole: Mapping[str, Any], tally: Tally, *, chance: random.Random, end: float
) -> None:
    """Do work with interruptions until it is done, and compare.

    Args:
        work: The work.
        out: Folder of results, new.
        whole: What undisturbed work resulted in.
        tally: Is filled.
        chance: Chooses moments and signals.
        end: Time of ``time.monotonic`` after which it is interrupted once only.
    """
    log, deaths = out.with_suffix(".log"), 0
    while True:
        number = chance.choice(SIGNALS)
        free = deaths >= DEATHS or (deaths > 0 and time.monotonic() >= end)
        life = live(work.command(out), log, after=None if free else chance.uniform(0, tally.seconds), number=number)
        if life.left:
            tally.faults.append(
                f"{life.left} processes outlived it by {LEFT_SECONDS:g} s after {number.name}, see {log}"
            )
        if life.status == 0:
            break
        # before its first own statement a process dies of the signal itself
        if not life.stopped or life.status not in (-number, 128 + number):
            tally.faults.append(
                f"it ended with {life.status}" + f" after {number.name}" * life.stopped + f", see {log}"
            )
            tally.different += 1
            return
        deaths += 1
        tally.kills[number.name] += 1
    tally.survived += deaths
    tally.compared += 1
    found = work.result(out)
    differing = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
    if differing:
        tally.different += 1
        tally.faults.append(f"{', '.join(differing[:5])} differ from those of undisturbed work, see {out}")


def soak(works: list[Work], folder: Path, *, seconds: float, seed: int) -> dict[str, Tally]:
    """Interrupt and compare for some time, each kind of work in turn, at least once.

    Args:
        works: The kinds of work.
        folder: For all results; those without fault are removed.
        seconds: How long, with the undisturbed work.
        seed: Of the random moments.
    """
    chance, end = random.Random(seed), time.monotonic() + seconds
    tallies, whole = {work.name: Tally() for work in works}, {}
    for work in works:
        started, out = time.monotonic(), folder / f"{work.name}-whole"
        life = live(work.command(out), out.with_suffix(".log"))
        tallies[work.name].seconds = time.monotonic() - started
        if life.status:
            tallies[work.name].faults.append(f"undisturbed it ended with {life.status}, see {out.with_suffix('.log')}")
            tallies[work.name].different += 1
            continue
        whole[work.name] = work.result(out)
        print(f"{work.name}: {tallies[work.name].seconds:.0f} s undisturbed", flush=True)
    turn = 0
    while whole and (turn < len(works) or time.monotonic() < end):
        work = works[turn % len(works)]
        turn += 1
        if work.name in whole:
            tally = tallies[work.name]
            before = len(tally.faults)
            episode(work, folder / f"{work.name}-{turn}", whole[work.name], tally, chance=chance, end=end)
            for fault in tally.faults[before:]:
                print(f"{work.name}: {fault}", flush=True)
    return tallies


def table(tallies: Mapping[str, Tally]) -> str:
    """Return a line per kind of work: kills by signal, those survived, folders compared, those that differ."""
    names = [number.name for number in SIGNALS]
    rows = [["work", "seconds", *names, "survived", "compared", "different"]]
    for name, tally in tallies.items():
        numbers = [*tally.kills.values(), tally.survived, tally.compared, tally.different]
        rows.append([name, f"{tally.seconds:.0f}", *map(str, numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def file_digests(folder: Path, *, leave: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder by its relative path, hidden files and some names left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave and not path.relative_to(folder).parts[0].startswith(".")
    }


NEW_EACH_TIME = ("nuclei.dcm",)
"""Files with identifiers that are new in every run."""


def slide_results(out: Path) -> dict[str, Any]:
    """Return what must be the same of slides: all files byte for byte, and what tables say beside times."""
    found: dict[str, Any] = file_digests(
        out, leave=("summary.json", "summary.csv", "report.html", ".lock", *NEW_EACH_TIME)
    )
    for path in out.glob("*/summary.json"):
        summary = json.loads(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(out))] = {name: summary.get(name) for name in SUMMARY}
    with (out / "summary.csv").open(encoding="utf-8", newline="") as stream:
        found["summary.csv"] = [{**row, "seconds": ""} for row in csv.DictReader(stream)]
    return found


def trained_weights(out: Path) -> dict[str, Any]:
    """Return digests of the trained weights."""
    import torch

    state = torch.load(out / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    return {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for name, value in state.items()}


def segment_command(inputs: list[Path], more: tuple[str, ...], out: Path) -> list[str]:
    return [*CELLVIT, "segment", *map(str, inputs), "--out", str(out), *more]


def fit_command(config: Path, out: Path) -> list[str]:
    point = {
        "class_path": "cellvit.evaluation.cross_validation.callbacks.ResumePoint",
        "init_args": {"dirpath": str(out)},
    }
    resume = ["--ckpt_path", str(out / "last.ckpt")] if (out / "last.ckpt").exists() else []
    more = ["--trainer.default_root_dir", str(out), f"--trainer.callbacks+={json.dumps(point)}"]
    return [*CELLVIT, "fit", "--config", str(config), *more, *resume]


def prepare_command(folds: Path, out: Path) -> list[str]:
    return [*CELLVIT, "prepare", "pannuke", str(folds), "--out", str(out)]


def write_pannuke(root: Path, *, patches: int = 60, size: int = 128) -> Path:
    """Write drawn folds as PanNuke distributes them."""
    for number in (1, 2, 3):
        folder = root / f"fold{number}"
        folder.mkdir(parents=True)
        masks = np.zeros((patches, size, size, 6))
        images = np.zeros((patches, size, size, 3))
        for i in range(patches):
            images[i], instances, types = draw_tissue(100 * number + i, size)
            for kind in (1, 2):
                masks[i, ..., kind - 1] = np.where(types[instances] == kind, instances, 0)
            masks[i, ..., 5] = instances == 0
        np.save(folder / "images.npy", images)
        np.save(folder / "masks.npy", masks)
        np.save(folder / "types.npy", np.array([("Breast", "Colon")[i % 2] for i in range(patches)]))
    return root


def all_works(folder: Path) -> list[Work]:
    """Return all kinds of work; the real slide only where ``CELLVIT_TEST_DATA`` names the data."""
    from cellvit.inference.settings import PICTURES
    from cellvit.io.formats.base import FORMATS

    chosen = [
        name
        for name in FORMATS
        if name not in ("parquet", "dicom-3d") and all(map(find_spec, FORMATS.get(name).packages))
    ]
    formats = ",".join([*chosen, *PICTURES])  # the slide is not in DICOM, so that it has no frame of reference
    slides = [folder / f"drawn{i}.png" for i in range(3)]
    for i, path in enumerate(slides):
        Image.fromarray(draw_tissue(i, 640)[0]).save(path)
    cohort = ("--as", "slide", "--mpp", "0.25", "--tile-size", "256", "--device", "cpu,cpu", "--workers", "1")
    config = write_folds_config(folder / "fit.yaml", write_folds(folder / "folds"))
    works = [
        Work("cohort", partial(segment_command, slides, (*cohort, "--no-tissue-filter")), slide_results),
        Work("fit", partial(fit_command, config), trained_weights),
        Work("prepare", partial(prepare_command, write_pannuke(folder / "pannuke")), file_digests),
    ]
    region = Path(os.environ.get("CELLVIT_TEST_DATA", "")) / "wsi/cmu_small_region.svs"
    if not region.is_file():
        print("no real slide: set CELLVIT_TEST_DATA to the folder that holds wsi/")
        return works
    corners = [[200, 200], [1200, 200], [1200, 1200], [200, 1200], [200, 200]]  # seven parts of 16 tiles
    roi = folder / "roi.geojson"
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    slide = ("--tile-size", "256", "--roi", str(roi), "--device", "cpu", "--workers", "1", "--formats", formats)
    return [Work("slide", partial(segment_command, [region.resolve()], slide), slide_results), *works]


def main() -> int:
    """Soak, print the table, and return 1 if anything differs, failed or was left behind."""
    parser = argparse.ArgumentParser("soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1200, help="how long (default 1200)")
    parser.add_argument("--seed", type=int, help="of the random moments (default: a new one, which is printed)")
    parser.add_argument("--works", help="kinds of work, separated by commas (default: all)")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="cellvit-soak-"))
    works = [w for w in all_works(folder) if not options.works or w.name in options.works.split(",")]
    tallies = soak(works, folder, seconds=options.seconds, seed=seed)
    print(table(tallies))
    if any(tally.different or tally.faults for tally in tallies.values()):
        print(f"not all is as promised; the folders stay in {folder}")
        return 1
    import shutil

    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
