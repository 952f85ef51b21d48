"""The report of a cross-validation: ``report.md``, ``report.json`` and pictures, from the result files of its runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellvit.evaluation.cross_validation.figures import Bars, draw_bars, draw_samples, read_samples
from cellvit.evaluation.cross_validation.published import (
    Published,
    ScoreLine,
    published_sources,
    reasons_not_comparable,
    score_lines,
)
from cellvit.evaluation.cross_validation.published import published as published_entry
from cellvit.evaluation.cross_validation.scores import FoldScores, read_runs, run_numbers
from cellvit.evaluation.cross_validation.text import report_text
from cellvit.io.format import write_json
from cellvit.io.tables import write_text
from cellvit.plotting.legend import Picture
from cellvit.plotting.overlay import write_picture

FORMAT = "cellvit-report"
VERSION = 1
TEXT_NAME = "report.md"
DATA_NAME = "report.json"
SAMPLES_NAME = "report.png"
SCORES_NAME = "report-scores.png"


def write_report(folder: str | Path, *, published: str | None, title: str) -> Path:
    """Write the report of all runs in a folder beside them.

    ``report.md`` holds the tables of the paper, ``report.json`` all numbers, ``report.png`` one test image per tissue
    of the first run that has stored any, ``report-scores.png`` bars of mean and spread. The same scores give the same
    files, except for times and versions, which stand in one place of the text and of the data.

    Args:
        folder: Holds ``run-1`` to ``run-n``; see :func:`cellvit.evaluation.cross_validation.scores.read_runs`.
        published: Name of the published scores to show beside, see
            :func:`cellvit.evaluation.cross_validation.published.known_names`; None shows none.
        title: Heading of the report.

    Returns:
        The path of ``report.md``.

    Raises:
        ConfigError: If no published scores have this name.
        DataError: If runs are missing, damaged or of different kinds, or stored test images are damaged.
        OutputError: If a file cannot be written.
    """
    root = Path(folder)
    entry = None if published is None else published_entry(published)
    runs = read_runs(root)
    pictures: dict[str, str] = {}
    for name, text, picture in (*_sample_picture(root, runs[0]), _bars_picture(runs, entry)):
        write_picture(picture, root / name)
        pictures[name] = text
    write_json(root / DATA_NAME, report_data(runs, entry, title=title))
    write_text(root / TEXT_NAME, report_text(runs, entry, title=title, pictures=pictures))
    return root / TEXT_NAME


def report_data(runs: Sequence[FoldScores], entry: Published | None, *, title: str) -> dict[str, Any]:
    """Return all numbers of a report as plain data; null stands for no value.

    Args:
        runs: At least one.
        entry: Published scores, or None.
        title: Heading of the report.
    """
    first = runs[0]
    compared = entry is not None and not reasons_not_comparable(runs, entry)
    lines = score_lines(runs, entry)
    return {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "config": first.config,
        "dataset": {"name": first.dataset.name, "mpp": first.dataset.mpp},
        "class_names": list(first.class_names),
        "tissue_names": list(first.tissue_names),
        "runs": [_run_data(run) for run in runs],
        "published": None if entry is None else _published_data(runs, entry),
        "scores": {name: _line_data(line, compared=compared) for name, line in lines.items()},
        "how_it_was_run": [{"seconds": dict(run.seconds), "versions": dict(run.versions)} for run in runs],
    }


def _run_data(run: FoldScores) -> dict[str, Any]:
    return {
        "train_folds": list(run.train_folds),
        "val_folds": list(run.val_folds),
        "test_folds": list(run.test_folds),
        "patches": run.dataset.patches,
        "epochs": run.epochs,
        "checkpoint": run.checkpoint,
    }


def _published_data(runs: Sequence[FoldScores], entry: Published) -> dict[str, Any]:
    facts = {"name": entry.name, "title": entry.title, "log": entry.log, "dataset": entry.dataset, "mpp": entry.mpp}
    return {**facts, "not_comparable": reasons_not_comparable(runs, entry), "sources": published_sources()}


def _line_data(line: ScoreLine, *, compared: bool) -> dict[str, Any]:
    mean, std, folds = line.summary
    return {
        "runs": list(line.runs),
        "mean": mean,
        "std": std,
        "folds": folds,
        "paper_v1": None if line.paper_v1 is None else float(line.paper_v1),
        "logs": line.logs,
        "logs_std": line.logs_std,
        "mean_minus_logs": line.difference if compared else None,
    }


def _sample_picture(root: Path, run: FoldScores) -> list[tuple[str, str, Picture]]:
    """Return file name, description and picture of the test images of the first run that has any."""
    for number in run_numbers(root):
        samples = read_samples(root / f"run-{number}", run.class_names)
        if samples:
            text = f"One test image per tissue, run {number}: the image, its true and its predicted nuclei."
            title = f"{run.config}: one test image per tissue, run {number}"
            return [(SAMPLES_NAME, text, draw_samples(samples, title=title))]
    return []


def _bars_picture(runs: Sequence[FoldScores], entry: Published | None) -> tuple[str, str, Picture]:
    """Return file name, description and picture of mean and spread per tissue, per type, or of all nuclei."""
    lines = score_lines(runs, entry)
    types, tissues = runs[0].class_names[1:], runs[0].tissue_names
    known = [t for t in tissues if f"bPQ/{t}" in lines and lines[f"bPQ/{t}"].summary.folds]
    if len(known) > 1:
        what, rows = "per tissue", {t: (f"bPQ/{t}", f"mPQ/{t}") for t in tissues}
        rows["Mean over tissues"] = ("bPQ_tissue_mean", "mPQ_tissue_mean")
        labels: tuple[str, ...] = ("bPQ", "mPQ")
    elif types:
        what, rows, labels = "per type", {t: (f"PQ/{t}", f"F1/{t}") for t in types}, ("PQ", "F1 of detection")
    else:
        what, rows, labels = "of all nuclei", {"All nuclei": ("bPQ", "F1_d")}, ("bPQ", "F1 of detection")
    compared = entry is not None and not reasons_not_comparable(runs, entry)
    columns = {label: [lines.get(names[i]) for names in rows.values()] for i, label in enumerate(labels)}
    groups = [_bars(label, column, compared=compared) for label, column in columns.items() if any(column)]
    labels = tuple(group.label for group in groups)
    marked = " Lines mark published values." if any(group.marks for group in groups) else ""
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    text = f"{' and '.join(labels)} {what}: mean and population standard deviation over {count}.{marked}"
    title = f"{runs[0].config}: {' and '.join(labels)} {what}, mean and standard deviation over {count}"
    return SCORES_NAME, text, draw_bars(list(rows), groups, title=title)


def _bars(label: str, column: Sequence[ScoreLine | None], *, compared: bool) -> Bars:
    """Return one group of bars, with the published values that may be compared."""
    means = [math.nan if line is None else line.summary.mean for line in column]
    stds = [math.nan if line is None else line.summary.std for line in column]
    marks = {
        "Authors' logs": [math.nan if line is None else line.logs for line in column],
        "Paper v1": [math.nan if line is None or line.paper_v1 is None else float(line.paper_v1) for line in column],
    }
    shown = {name: values for name, values in marks.items() if compared and not all(map(math.isnan, values))}
    return Bars(label, means, stds, shown)
