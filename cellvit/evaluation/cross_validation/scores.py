"""The result files of a cross-validation, ``run-1/scores.json`` to ``run-n/scores.json``, and their mean and spread."""

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cellvit.errors import DataError
from cellvit.io.format import plain_data, write_json

FORMAT = "cellvit-scores"
VERSION = 1
FILE_NAME = "scores.json"
LAST = "last.ckpt"
"""Checkpoint of the last finished epoch of a run; named here, where no training is imported."""

Fold = tuple[int, int, int]
"""Numbers of the folds that train, validate and test one model."""

ROTATIONS: dict[str, tuple[Fold, ...]] = {
    "published": ((1, 2, 3), (2, 1, 3), (3, 2, 1)),
    "full": ((1, 2, 3), (2, 3, 1), (3, 1, 2)),
}
"""The runs of the paper, which test fold 3 twice, and a rotation that tests every fold once."""

_LISTED = 12


class DatasetFacts(NamedTuple):
    """Name of a data set, microns per pixel, and number of test patches of the run."""

    name: str
    mpp: float
    patches: int


@dataclass(frozen=True)
class FoldScores:
    """Scores of one run of a cross-validation on its test folds.

    Attributes:
        config: Name of the configuration.
        train_folds: Folds trained on, counted from 1; likewise ``val_folds`` and ``test_folds``.
        val_folds: Folds validated on.
        test_folds: Folds the scores are of.
        epochs: Epochs trained; the last one is tested.
        checkpoint: Path of the tested weights, relative to the folder of all runs.
        class_names: Names by type id, background first; empty without types.
        tissue_names: Names by tissue id; empty without tissues.
        dataset: What was tested on.
        scores: Value by score name, without prefix of a stage; nan where a score is over nothing.
        seconds: Time taken by ``fit`` and ``test``.
        versions: Version by library name.
    """

    config: str
    train_folds: tuple[int, ...]
    val_folds: tuple[int, ...]
    test_folds: tuple[int, ...]
    epochs: int
    checkpoint: str
    class_names: tuple[str, ...]
    tissue_names: tuple[str, ...]
    dataset: DatasetFacts
    scores: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class Summary(NamedTuple):
    """Mean and population standard deviation of a score over the runs that have it, and their number.

    The mean is nan over no run, the deviation also over one.
    """

    mean: float
    std: float
    folds: int


def summarise(runs: Sequence[FoldScores]) -> dict[str, Summary]:
    """Return mean and spread of every score over the runs.

    The spread is the population standard deviation, divided by the number of runs, as published tables have it.
    Runs where a score is nan or missing are left out of that score.

    Args:
        runs: At least one.

    Returns:
        Summaries by score name, in the order in which the runs name them.

    Example:
        >>> run = FoldScores("nano", (1,), (2,), (3,), 1, "last.ckpt", (), (), DatasetFacts("x", 0.25, 9), {"bPQ": 0.5})
        >>> summarise([run])["bPQ"]
        Summary(mean=0.5, std=nan, folds=1)
    """
    names = dict.fromkeys(name for run in runs for name in run.scores)
    return {name: _summary([run.scores.get(name, math.nan) for run in runs]) for name in names}


def _summary(values: list[float]) -> Summary:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Summary(math.nan, math.nan, 0)
    return Summary(statistics.fmean(known), statistics.pstdev(known) if len(known) > 1 else math.nan, len(known))


def write_scores(path: str | Path, scores: FoldScores) -> None:
    """Write the result file of one run; it appears when it is complete.

    Args:
        path: The file, ``<folder of all runs>/run-<k>/scores.json``.
        scores: What it holds. Nan is written as null.

    Raises:
        DataError: If a score is infinite or a field is not what :func:`read_runs` accepts.
        OutputError: If the file cannot be written.
    """
    facts = asdict(scores)
    values = {name: float(value) for name, value in facts.pop("scores").items()}
    data = plain_data(
        {"format": FORMAT, "version": VERSION, **facts, "dataset": scores.dataset._asdict(), "test": values}
    )
    problems = _problems(data)
    if problems:
        raise DataError(f"scores for {str(path)!r} cannot be written: {'; '.join(problems)}")
    write_json(path, data)


def read_runs(folder: str | Path) -> tuple[FoldScores, ...]:
    """Read the result files of all runs of a cross-validation.

    Args:
        folder: Holds ``run-1`` to ``run-n``, each with a ``scores.json``.

    Returns:
        One per run, in the order of their numbers.

    Raises:
        DataError: If there is no run, a number or a file is missing, a file is damaged or of another version, or the
            runs differ in configuration, epochs, data set, classes or tissues. One error names all that is wrong.
    """
    root = Path(folder)
    numbers = run_numbers(root)
    if not numbers:
        raise DataError(f"{str(root)!r} holds no folder run-1; name the folder that holds the runs of a validation")
    problems = [f"run-{k} is missing" for k in range(1, numbers[-1]) if k not in numbers]
    runs: list[tuple[str, FoldScores]] = []
    for number in numbers:
        name = f"run-{number}/{FILE_NAME}"
        found, data = _load(root / name)
        found = found or _problems(data)
        problems += [f"{name}: {problem}" for problem in found]
        if not found:
            runs.append((name, _fold_scores(data)))
    problems += _differences(runs)
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        listed = "; ".join(problems[:_LISTED])
        raise DataError(f"{str(root)!r} cannot be summarised: {listed}{more}; finish, repair or remove these runs")
    return tuple(run for _, run in runs)


def run_numbers(folder: Path) -> list[int]:
    """Return the numbers ``k`` of the folders ``run-<k>``, ascending."""
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"run-([1-9]\d*)", path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def _load(path: Path) -> tuple[list[str], Any]:
    """Return what prevents reading, and the data."""
    try:
        return [], json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ["is missing; the run is not finished"], None
    except OSError as error:
        return [f"cannot be read ({error.strerror or error})"], None
    except ValueError as error:  # also bytes that are not UTF-8
        return [f"is not JSON ({error})"], None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and len(set(value)) == len(value)


def _folds(value: Any) -> bool:
    return isinstance(value, list) and all(_count(v) and v > 0 for v in value)


def _map_of(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(check(v) for v in value.values())


def _dataset(value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) >= set(DatasetFacts._fields):
        return False
    return isinstance(value["name"], str) and _number(value["mpp"]) and value["mpp"] > 0 and _count(value["patches"])


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (lambda v: isinstance(v, str), "a name"),
    "train_folds": (_folds, "a list of fold numbers from 1"),
    "val_folds": (_folds, "a list of fold numbers from 1"),
    "test_folds": (_folds, "a list of fold numbers from 1"),
    "epochs": (_count, "a whole number"),
    "checkpoint": (lambda v: isinstance(v, str), "a path"),
    "class_names": (_texts, "a list of different names"),
    "tissue_names": (_texts, "a list of different names"),
    "dataset": (_dataset, '{"name": text, "mpp": positive number, "patches": whole number}'),
    "seconds": (lambda v: _map_of(v, _number), "numbers by name"),
    "versions": (lambda v: _map_of(v, lambda x: isinstance(x, str)), "texts by name"),
    "test": (lambda v: _map_of(v, lambda x: x is None or _number(x)), "finite numbers or null by score name"),
}


def _problems(data: Any) -> list[str]:
    """Return what is wrong with the data of one file."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        return [f'does not hold "format": "{FORMAT}"']
    if data.get("version") != VERSION:
        return [f"is of version {data.get('version')!r}, this program reads {VERSION}"]
    problems = [f"has no {name!r}" for name in _CHECKS if name not in data]
    for name, (check, wanted) in _CHECKS.items():
        if name in data and not check(data[name]):
            problems.append(f"{name!r} is {_short(data[name])}, not {wanted}")
    return problems


def _short(value: Any) -> str:
    if isinstance(value, dict) and len(repr(value)) > 80:
        value = {k: v for k, v in value.items() if v is not None and not _number(v)} or value
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _fold_scores(data: dict[str, Any]) -> FoldScores:
    lists = ("train_folds", "val_folds", "test_folds", "class_names", "tissue_names")
    return FoldScores(
        config=data["config"],
        epochs=data["epochs"],
        checkpoint=data["checkpoint"],
        dataset=DatasetFacts(*(data["dataset"][name] for name in DatasetFacts._fields)),
        seconds=data["seconds"],
        versions=data["versions"],
        scores={name: math.nan if value is None else float(value) for name, value in data["test"].items()},
        **{name: tuple(data[name]) for name in lists},
    )


def _differences(runs: Sequence[tuple[str, FoldScores]]) -> list[str]:
    """Return where runs differ from the first in what a cross-validation holds constant."""
    facts: dict[str, Callable[[FoldScores], Any]] = {
        "configuration": lambda run: run.config,
        "data set": lambda run: run.dataset.name,
        "microns per pixel": lambda run: run.dataset.mpp,
        "class names": lambda run: run.class_names,
        "tissue names": lambda run: run.tissue_names,
    }
    problems = []
    for name, run in runs[1:]:
        first_name, first = runs[0]
        for what, fact in facts.items():
            if fact(run) != fact(first):
                problems.append(f"{name}: {what} {fact(run)!r}, but {fact(first)!r} in {first_name}")
    return problems
