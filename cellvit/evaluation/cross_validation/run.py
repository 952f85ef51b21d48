"""Training and testing one configuration on several folds, each step in a process of its own.

A step that is finished leaves a file and is never run again; one that was interrupted goes on from the last finished
epoch. Every step is a ``cellvit`` command, so whatever the Trainer does (several GPUs, mixed precision) it does here.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cellvit.errors import CellViTError, ConfigError, OutputError
from cellvit.evaluation.cross_validation.scores import FILE_NAME as SCORES
from cellvit.evaluation.cross_validation.scores import LAST, DatasetFacts, Fold, FoldScores, write_scores
from cellvit.io.format import write_json
from cellvit.io.provenance import differences, read_record

PLAN = "cross-validation.json"
SUPERVISED = "CELLVIT_SUPERVISED"
"""Environment variable that, if set, makes a training end with its standard input: it must not outlive its parent."""
_WAIT = 10.0  # seconds that a training needs at most to notice that it has been left alone


@dataclass(frozen=True)
class CrossValidation:
    """What is to be run.

    Attributes:
        name: Name of the configuration.
        layers: Configuration texts, bases first.
        overrides: Further arguments of ``cellvit fit`` and ``cellvit test``.
        rotation: Folds of every run.
        out: Folder of the results.
    """

    name: str
    layers: tuple[str, ...]
    overrides: tuple[str, ...]
    rotation: tuple[Fold, ...]
    out: Path

    def folder(self, run: int) -> Path:
        """Return the folder of a run, counted from 1."""
        return self.out / f"run-{run}"


def run_all(plan: CrossValidation, *, say: Callable[[str], None]) -> None:
    """Train and test every fold that is not finished.

    Args:
        plan: What to run.
        say: Called with a line per step.

    Raises:
        ConfigError: If the folder holds another cross-validation.
        OutputError: If another process works in the folder, or it cannot be written.
        CellViTError: If a step fails; what was finished stays.
    """
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot write into {str(plan.out)!r} ({error.strerror}); choose another out=FOLDER"
        raise OutputError(message) from error
    with _only_process(plan.out) as lock:
        _check_plan(plan)
        for run, folds in enumerate(plan.rotation, start=1):
            if (plan.folder(run) / SCORES).is_file():
                say(f"run {run} of {len(plan.rotation)}: finished before")
                continue
            train, val, test = folds
            say(f"run {run} of {len(plan.rotation)}: train on fold {train}, validate on {val}, test on {test}")
            _run_fold(plan, run, folds, lock=lock)


def _run_fold(plan: CrossValidation, run: int, folds: Fold, *, lock: int | None) -> None:
    folder = plan.folder(run)
    folder.mkdir(exist_ok=True)
    checkpoint, fitted, tested = folder / "checkpoints" / LAST, folder / "fitted.json", folder / "test.json"
    if not fitted.is_file():
        resume = ["--ckpt_path", str(checkpoint)] if checkpoint.is_file() else []
        point = _part("ResumePoint", dirpath=str(checkpoint.parent))
        command = ["fit", *_arguments(plan, run, folds), f"--trainer.callbacks+={point}", *resume]
        seconds = _step(command, folder, what=f"training of run {run}", lock=lock)
        write_json(fitted, {} if resume else {"fit": seconds})  # of a resumed training nobody knows the whole
    scores = _part("TestScores", path=str(tested), samples=str(folder / "samples"))
    tested.unlink(missing_ok=True)
    command = ["test", *_arguments(plan, run, folds), f"--trainer.callbacks+={scores}", "--ckpt_path", str(checkpoint)]
    seconds = _step(command, folder, what=f"test of run {run}", lock=lock)
    if not tested.is_file():
        raise CellViTError(f"the test of run {run} wrote no '{tested}', see above; run the same command again")
    found = json.loads(tested.read_text(encoding="utf-8"))
    write_scores(
        folder / SCORES,
        FoldScores(
            config=plan.name,
            train_folds=folds[:1],
            val_folds=folds[1:2],
            test_folds=folds[2:],
            epochs=torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)["epoch"] + 1,
            checkpoint=f"{folder.name}/checkpoints/{LAST}",
            class_names=tuple(found["class_names"]),
            tissue_names=tuple(found["tissue_names"]),
            dataset=DatasetFacts(**found["dataset"]),
            seconds={**json.loads(fitted.read_text(encoding="utf-8")), "test": seconds},
            versions={name: version(name) for name in ("cellvit-lightning", "torch", "lightning", "timm")},
            scores={name: math.nan if value is None else value for name, value in found["scores"].items()},
        ),
    )


def _arguments(plan: CrossValidation, run: int, folds: Fold) -> list[str]:
    folder = plan.folder(run)
    path = "lightning.pytorch.loggers.CSVLogger"
    logger = {"class_path": path, "init_args": {"save_dir": str(folder), "name": "log"}}
    return [
        *(argument for layer in plan.layers for argument in ("--config", layer)),
        *plan.overrides,
        f"--data.train_folds=[{folds[0]}]",
        f"--data.val_folds=[{folds[1]}]",
        f"--data.test_folds=[{folds[2]}]",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.logger={json.dumps(logger)}",
    ]


def _part(name: str, **arguments: Any) -> str:
    return json.dumps({"class_path": f"cellvit.evaluation.cross_validation.callbacks.{name}", "init_args": arguments})


def _step(command: Sequence[str], folder: Path, *, what: str, lock: int | None) -> float:
    """Run one command of cellvit to its end and return the seconds it took."""
    start = time.monotonic()
    environment = {**os.environ, SUPERVISED: "1"}
    arguments = [sys.executable, "-m", "cellvit", *command]
    with subprocess.Popen(
        arguments,
        env=environment,
        stdin=subprocess.PIPE,  # never written to: it ends when this process does
        pass_fds=() if lock is None else (lock,),  # the folder stays locked while any process works in it
    ) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    if code:
        raise CellViTError(
            f"the {what} failed with exit code {code}, see above; '{folder}' keeps what was done, run the same command "
            "again to go on"
        )
    return time.monotonic() - start


def _check_plan(plan: CrossValidation) -> None:
    """Write down what is run here, or refuse if it was something else."""
    path = plan.out / PLAN
    told = {
        "config": plan.name,
        "rotation": [list(folds) for folds in plan.rotation],
        "overrides": list(plan.overrides),
        "layers": list(plan.layers),
    }
    started = any(plan.out.glob(f"run-*/checkpoints/{LAST}"))
    if not path.is_file() or not started:  # what failed before its first epoch binds nobody
        write_json(path, told)
        return
    before = read_record(path, advice="choose another out=FOLDER") or {}
    changed = differences(before, told | {"layers": before.get("layers")})
    if told["layers"] != before.get("layers"):
        changed.append("the text of the configuration has changed")
    if changed:
        raise ConfigError(
            f"'{plan.out}' holds a cross-validation with other settings ({'; '.join(changed)}); choose another "
            f"out=FOLDER, or repeat the command it was made with, see {path.name}"
        )


@contextmanager
def _only_process(folder: Path) -> Iterator[int | None]:
    """Lock a folder; the lock is held until this process and all it has started are gone."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield None
        return
    with (folder / ".lock").open("a") as file:  # not "w": what lies there or is linked there stays as it is
        end = time.monotonic() + _WAIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    message = f"another process works in '{folder}'; wait for it, stop it, or choose another out=FOLDER"
                    raise OutputError(message) from None
                time.sleep(0.5)
        yield file.fileno()
