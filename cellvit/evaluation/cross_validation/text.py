"""The report of a cross-validation as Markdown: the tables of the paper, how to read them, and what was run."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from cellvit.evaluation.cross_validation.published import (
    Published,
    ScoreLine,
    published_sources,
    reasons_not_comparable,
    score_lines,
)
from cellvit.evaluation.cross_validation.scores import ROTATIONS, FoldScores
from cellvit.io.format import clock_duration, readable_number
from cellvit.io.tables import Cell, markdown_lines, render

_NONE = "\N{EN DASH}"
_SHORT = {"mPQ_tissue_mean": "mPQ, mean over tissues", "bPQ_tissue_mean": "bPQ, mean over tissues", "F1_d": "F1"}
_OVER_IMAGES = ("mPQ", "mDQ", "mSQ", "bPQ", "bDQ", "bSQ")
_FURTHER = {"Dice": "Dice", "Jaccard": "Jaccard", "AJI": "AJI", "tissue_accuracy": "Tissue accuracy"}


def report_text(runs: Sequence[FoldScores], entry: Published | None, *, title: str, pictures: Mapping[str, str]) -> str:
    """Return the report as Markdown.

    Args:
        runs: At least one.
        entry: Published scores to show beside, or None.
        title: The heading.
        pictures: What a picture shows by file name; empty where no test images were stored.

    Returns:
        The text. All that depends on times and versions stands in its last section.
    """
    lines = score_lines(runs, entry)
    compared = entry is not None and not reasons_not_comparable(runs, entry)
    return render(
        "evaluation/cross_validation/report.md.jinja",
        title=title,
        headline=[f"{label}: {_spread(lines[name])}" for name, label in _SHORT.items() if name in lines],
        entry=entry,
        sources=published_sources(),
        compared=compared,
        first=runs[0],
        runs=_counted(len(runs)),
        none=_NONE,
        run_rows=[_run_row(k, run) for k, run in enumerate(runs, start=1)],
        fold_notes=_fold_notes(runs),
        warnings=[] if entry is None else _warnings(runs, entry),
        tables=_tables(runs[0], lines, compared=compared),
        same_folds=Markup(_run_by_run(runs, entry)) if entry is not None and compared else "",
        pictures=pictures,
        samples=any("scores" not in name for name in pictures),
        how_rows=_how_it_was_run(runs),
    )


def _run_row(number: int, run: FoldScores) -> dict[str, Cell]:
    folds = {"Trained on": run.train_folds, "Validated on": run.val_folds, "Tested on": run.test_folds}
    row: dict[str, Cell] = {"Run": str(number)}
    row |= {name: _folds(values) for name, values in folds.items()}
    return row | {
        "Test patches": f"{run.dataset.patches:,}",
        "Epochs": str(run.epochs),
        "Weights tested": f"`{run.checkpoint}`",
    }


def _fold_notes(runs: Sequence[FoldScores]) -> list[str]:
    notes = []
    if len({run.epochs for run in runs}) > 1:
        notes.append("**The runs were trained for different numbers of epochs**, as early stopping does.")
    if tuple(map(_rotation, runs)) == ROTATIONS["published"]:
        notes.append("These are the folds of the authors' three runs.")
    tested = Counter(fold for run in runs for fold in run.test_folds)
    used = {fold for run in runs for fold in (*run.train_folds, *run.val_folds, *run.test_folds)}
    for fold in sorted(fold for fold, times in tested.items() if times > 1):
        which = [str(k) for k, run in enumerate(runs, start=1) if fold in run.test_folds]
        never = sorted(used - set(tested))
        rest = f", and fold {_folds(never)} is never tested" if never and len(runs) > 2 else ""
        notes.append(
            f"Fold {fold} is tested {len(which)} times, in runs {' and '.join(which)}{rest}: these runs share their "
            "test images, so the spread over the runs is smaller than over independent tests, and the mean weighs the "
            "images of that fold more."
        )
    for k, run in enumerate(runs, start=1):
        seen = sorted(set(run.test_folds) & {*run.train_folds, *run.val_folds})
        if seen:
            notes.append(f"**Run {k} is tested on fold {_folds(seen)}, which it was trained or validated on.**")
    return notes


def _warnings(runs: Sequence[FoldScores], entry: Published) -> list[str]:
    reasons = reasons_not_comparable(runs, entry)
    if reasons:
        return [f"The published numbers must not be compared with the scores here: {'; '.join(reasons)}."]
    warnings = []
    if len(runs) != len(entry.folds):
        warnings.append(
            f"{_counted(len(runs))} here, {len(entry.folds)} in the published means: a "
            "difference may come from the folds alone."
        )
    sizes: dict[tuple[int, ...], int] = {fold.rotation[2:]: fold.patches for fold in entry.folds}
    for k, run in enumerate(runs, start=1):
        expected = sizes.get(run.test_folds, run.dataset.patches)
        if expected != run.dataset.patches:
            warnings.append(
                f"Run {k} was tested on {run.dataset.patches:,} patches of fold {_folds(run.test_folds)}, the "
                f"published ones on {expected:,}: its scores are of other images."
            )
    return warnings


def _tables(run: FoldScores, lines: Mapping[str, ScoreLine], *, compared: bool) -> dict[str, list[dict[str, Cell]]]:
    """Return the rows of every group of scores by heading, and at last of all that belong to no group."""
    types, tissues = run.class_names[1:], run.tissue_names
    measures = {"F1": "F1", "P": "precision", "R": "recall"}
    over_images = {f"PQ/{t}": f"PQ, {t}" for t in types} | {name: name for name in _OVER_IMAGES}
    groups: dict[str, dict[str, str]] = {
        "Table 1. Detection, pooled over the test set": {f"{m}_d": f"All nuclei, {w}" for m, w in measures.items()}
        | {f"{m}/{t}": f"{t}, {w}" for t in types for m, w in measures.items()}
        | {"F1_d_within": "All nuclei, F1 of the most pairs within the radius"},
        "Table 2a. mPQ per tissue": _tissue_rows("mPQ", tissues),
        "Table 2b. bPQ per tissue": _tissue_rows("bPQ", tissues),
        "Table 3. Panoptic quality, averaged over images": over_images,
        "Overlap and tissue": dict(_FURTHER),
    }
    named = {name for group in groups.values() for name in group}
    groups["Further scores"] = {name: name for name in lines if name not in named}
    tables = {
        heading: _scores_table([(label, lines[name]) for name, label in group.items() if name in lines], compared)
        for heading, group in groups.items()
    }
    return {heading: rows for heading, rows in tables.items() if rows or heading != "Further scores"}


def _tissue_rows(quality: str, tissues: Sequence[str]) -> dict[str, str]:
    return {f"{quality}/{tissue}": tissue for tissue in tissues} | {f"{quality}_tissue_mean": "Mean over tissues"}


def _scores_table(found: Sequence[tuple[str, ScoreLine]], compared: bool) -> list[dict[str, Cell]]:
    """Return the rows of a table of scores with the published columns that have a value in it."""
    lines = [line for _, line in found]
    printed, logged = any(line.paper_v1 for line in lines), not all(math.isnan(line.logs) for line in lines)
    rows = []
    for label, line in found:
        row: dict[str, Cell] = {"": label, "Score": f"`{line.name}`"}
        row |= {f"Run {k}": _value(value) for k, value in enumerate(line.runs, start=1)}
        row["Mean \N{PLUS-MINUS SIGN} std"] = _spread(line)
        if printed:
            row["Paper v1"] = line.paper_v1 or _NONE
        if logged:
            row["Authors' logs"] = _with_std(line.logs, line.logs_std)
        if logged and compared:
            row["Mean - logs"] = _signed(line.difference)
        rows.append(row)
    return rows


def _run_by_run(runs: Sequence[FoldScores], entry: Published) -> str:
    """Return a table of the runs beside the published runs on the same folds; nothing if there are none."""
    pairs = [(k, run, entry.fold(_rotation(run))) for k, run in enumerate(runs, start=1)]
    same = [(k, run, fold) for k, run, fold in pairs if fold is not None]
    if not same:
        return ""
    head = ["Score"]
    for k, _, fold in same:
        head += [f"Run {k}", f"Logs, fold {fold.fold}", "Difference"]
    rows = []
    for name in same[0][2].scores:
        row = [f"`{name}`"]
        for _, run, fold in same:
            ours, theirs = run.scores.get(name, math.nan), fold.scores[name]
            row += [_value(ours), _value(theirs), _signed(ours - theirs)]
        rows.append(row)
    return markdown_lines(head, rows, missing=_NONE)


def _how_it_was_run(runs: Sequence[FoldScores]) -> list[dict[str, Cell]]:
    stages = list(dict.fromkeys(name for run in runs for name in run.seconds))
    names = sorted({name for run in runs for name in run.versions})
    cells = {f"Time, {stage}": [_time(run.seconds.get(stage)) for run in runs] for stage in stages}
    cells |= {f"Version of {name}": [run.versions.get(name, _NONE) for run in runs] for name in names}
    columns = ["", *(f"Run {k}" for k in range(1, len(runs) + 1))]
    return [dict(zip(columns, [label, *values], strict=True)) for label, values in cells.items()]


def _rotation(run: FoldScores) -> tuple[int, int, int] | None:
    """Return the fold trained, validated and tested on, or None where it is not one each."""
    folds = (run.train_folds, run.val_folds, run.test_folds)
    if any(len(f) != 1 for f in folds):
        return None
    return run.train_folds[0], run.val_folds[0], run.test_folds[0]


def _counted(runs: int) -> str:
    return f"{runs} run{'s' if runs > 1 else ''}"


def _folds(folds: Iterable[int]) -> str:
    return ", ".join(map(str, folds)) or _NONE


def _value(value: float) -> str:
    return readable_number(value, missing=_NONE)


def _signed(value: float) -> str:
    return _NONE if math.isnan(value) else f"{round(value, 4) + 0.0:+.4f}"


def _with_std(value: float, std: float) -> str:
    return _value(value) if math.isnan(std) else f"{value:.4f} \N{PLUS-MINUS SIGN} {std:.4f}"


def _spread(line: ScoreLine) -> str:
    """Return mean and spread, and of how many runs where some have no value."""
    mean, std, folds = line.summary
    if not folds:
        return _NONE
    part = "" if folds == len(line.runs) else f" ({folds} of {len(line.runs)} runs)"
    return f"{mean:.4f} \N{PLUS-MINUS SIGN} {_value(std)}{part}"


def _time(seconds: float | None) -> str:
    return _NONE if seconds is None else clock_duration(seconds)
