"""Published scores to compare with, as data: the paper's first version and the logs its authors published later.

The numbers are of PanNuke, means over three runs. The paper's first version came before a fault in training was
repaired; the logs came after it and are what a repetition should be compared with.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from statistics import pstdev

from cellvit.errors import ConfigError
from cellvit.evaluation.cross_validation.scores import FoldScores, Summary, summarise
from cellvit.io.schema import checked


@dataclass(frozen=True)
class PublishedFold:
    """Scores of one published run.

    Attributes:
        fold: Its number in the logs.
        rotation: Folds it was trained, validated and tested on, counted from 1.
        patches: Number of test patches.
        scores: Values by score name, to four digits.
    """

    fold: int
    rotation: tuple[int, int, int]
    patches: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Published:
    """What is published about one configuration.

    Attributes:
        title: What it is.
        log: Its name in the authors' logs.
        mpp: Microns per pixel of the patches.
        folds: The runs of the logs.
        logs: Mean over the runs of the logs by score name; per tissue for four configurations only.
        logs_std: Population standard deviation over the runs by score name: as stated, else from the values of the
            runs; none per type and per tissue.
        paper_v1: Numbers of the paper's first version as printed, by score name; empty where it has none.
        name: What it is asked for by.
        dataset: Name of the data set.
    """

    title: str
    log: str
    mpp: float
    folds: tuple[PublishedFold, ...]
    logs: Mapping[str, float]
    logs_std: Mapping[str, float]
    paper_v1: Mapping[str, str]
    name: str = ""
    dataset: str = ""

    def fold(self, rotation: tuple[int, int, int] | None) -> PublishedFold | None:
        """Return the run that was trained, validated and tested on these folds, or None."""
        return next((run for run in self.folds if run.rotation == rotation), None)


def published(name: str) -> Published:
    """Return the published scores of a configuration.

    Args:
        name: One of :func:`known_names`.

    Raises:
        ConfigError: If nothing is published under this name.

    Example:
        >>> published("cellvit-256").logs["mPQ_tissue_mean"], published("cellvit-256").paper_v1["mPQ_tissue_mean"]
        (0.4846, '0.5000')
    """
    document = _document()
    if name not in document.entries:
        raise ConfigError(f"no published scores under {name!r}; known are {', '.join(document.entries)}, or give none")
    entry = deepcopy(document.entries[name])
    runs = [run.scores for run in entry.folds]
    spread = {score: round(pstdev([scores[score] for scores in runs]), 4) for score in runs[0]}
    return replace(entry, name=name, dataset=document.dataset, logs_std={**spread, **entry.logs_std})


def known_names() -> tuple[str, ...]:
    """Return the names of all configurations with published scores."""
    return tuple(_document().entries)


def published_sources() -> dict[str, str]:
    """Return where the numbers come from: ``paper_v1`` and ``logs``."""
    return dict(_document().sources)


@dataclass(frozen=True)
class ScoreLine:
    """One score of a cross-validation beside what is published about it.

    Attributes:
        name: Name of the score.
        runs: Its value in every run; nan where it has none.
        summary: Mean and spread over the runs.
        logs: Mean over the runs of the authors' logs, or nan.
        logs_std: Its spread, or nan.
        paper_v1: As printed in the first version of the paper, or None.
    """

    name: str
    runs: tuple[float, ...]
    summary: Summary
    logs: float = math.nan
    logs_std: float = math.nan
    paper_v1: str | None = None

    @property
    def difference(self) -> float:
        """Mean minus logs; nan where one of them is."""
        return self.summary.mean - self.logs


def score_lines(runs: Sequence[FoldScores], entry: Published | None) -> dict[str, ScoreLine]:
    """Return every score of the runs beside the published one of the same name.

    Args:
        runs: At least one.
        entry: What to compare with, or None.

    Returns:
        Lines by score name, in the order in which the runs name them.
    """
    lines = {}
    for name, summary in summarise(runs).items():
        values = tuple(run.scores.get(name, math.nan) for run in runs)
        if entry is None:
            lines[name] = ScoreLine(name, values, summary)
            continue
        logs, spread = entry.logs.get(name, math.nan), entry.logs_std.get(name, math.nan)
        lines[name] = ScoreLine(name, values, summary, logs, spread, entry.paper_v1.get(name))
    return lines


def reasons_not_comparable(runs: Sequence[FoldScores], entry: Published) -> list[str]:
    """Return why the scores of these runs must not be compared with an entry; empty if they may be.

    Args:
        runs: At least one, all of one data set.
        entry: What to compare with.
    """
    data = runs[0].dataset
    reasons = []
    if data.name.casefold() != entry.dataset.casefold():
        reasons.append(f"they are of the data set `{entry.dataset}`, the scores here of `{data.name}`")
    if not math.isclose(data.mpp, entry.mpp, rel_tol=0.05):
        reasons.append(f"they are of {entry.mpp:g} microns per pixel, the scores here of {data.mpp:g}")
    return reasons


@dataclass(frozen=True)
class _Document:
    """What ``published.json`` holds: name of the data set, sources, and an entry per configuration."""

    dataset: str
    sources: Mapping[str, str]
    entries: Mapping[str, Published]


@lru_cache(maxsize=1)
def _document() -> _Document:
    text = (files("cellvit.evaluation.cross_validation") / "published.json").read_text(encoding="utf-8")
    return checked(text, _Document, what="published.json of cellvit", advice="reinstall cellvit-lightning")
