"""The report of a cross-validation as Markdown: the tables of the paper, how to read them, and what was run."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cellvit.evaluation.cross_validation.published import (
    Published,
    ScoreLine,
    published_sources,
    reasons_not_comparable,
    score_lines,
)
from cellvit.evaluation.cross_validation.scores import ROTATIONS, FoldScores

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
    parts = [f"# {_line(title)}", *_headline(lines, entry)]
    parts += ["## What was run", *_what_was_run(runs), "## How to read the tables", *_how_to_read(runs, entry)]
    compared = entry is not None and not reasons_not_comparable(runs, entry)
    parts += _tables(runs[0], lines, compared=compared)
    if entry is not None and compared:
        parts += _run_by_run(runs, entry)
    parts += ["## Pictures", *(f"![{_line(text)}]({name})\n\n{text}" for name, text in pictures.items())]
    if not pictures or all("scores" in name for name in pictures):
        parts.append("No test images were stored with the runs, so none are drawn.")
    parts += ["## How it was run", *_how_it_was_run(runs)]
    return "\n\n".join(parts) + "\n"


def _headline(lines: Mapping[str, ScoreLine], entry: Published | None) -> list[str]:
    found = [f"{label}: {_spread(lines[name])}" for name, label in _SHORT.items() if name in lines]
    against = "nothing" if entry is None else f"{entry.title} (`{entry.name}`)"
    return [*(["**" + "; ".join(found) + ".**"] if found else []), f"Published scores shown beside: {against}."]


def _what_was_run(runs: Sequence[FoldScores]) -> list[str]:
    first = runs[0]
    head = ["Run", "Trained on", "Validated on", "Tested on", "Test patches", "Epochs", "Weights tested"]
    rows = []
    for k, run in enumerate(runs, start=1):
        folds = [_folds(f) for f in (run.train_folds, run.val_folds, run.test_folds)]
        rows.append([str(k), *folds, f"{run.dataset.patches:,}", str(run.epochs), f"`{run.checkpoint}`"])
    facts = (
        f"Configuration `{first.config}`, data set `{first.dataset.name}` at {first.dataset.mpp:g} microns per pixel."
    )
    return [facts, _table(head, rows), *_fold_notes(runs)]


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


def _how_to_read(runs: Sequence[FoldScores], entry: Published | None) -> list[str]:
    count = len(runs)
    points = [
        "Scores lie in [0, 1]; higher is better, except for losses. "
        f"{_NONE} stands for no value: the type or tissue does not occur, or one run alone has no spread.",
        f"Mean and \N{PLUS-MINUS SIGN} are taken over {count} run{'s' if count > 1 else ''}; the spread is the "
        "population standard deviation (divided by the number of runs), as in the published tables. A run without a "
        "value is left out, and the number of the others is given.",
        "bPQ and mPQ are averaged in two ways. Table 2 takes the mean over the images of each tissue, then the mean "
        "over the tissues, so that rare tissues count as much as common ones; its spread is that of these means over "
        "the runs. Table 3 takes the mean over all images. The published mPQ and bPQ of a method are those of Table 2.",
        "Table 1 pools the nuclei of the whole test set before it divides.",
    ]
    if entry is not None:
        points += _about_published(runs, entry)
    return ["\n".join(f"* {point}" for point in points), *_warnings(runs, entry)]


def _about_published(runs: Sequence[FoldScores], entry: Published) -> list[str]:
    sources = published_sources()
    points = [f"**Authors' logs**: {sources['logs']}; run `{entry.log}`, mean over {len(entry.folds)} runs."]
    if entry.paper_v1:
        points.insert(0, f"**Paper v1**: {sources['paper_v1']}, as printed; superseded by the logs.")
    points.append(
        "The logs pair an image that has no nuclei on one side with one invented nucleus, which changes F1, P and R "
        "a little against a count without it. They count an image that is empty in truth and prediction as 0 in Dice "
        "and Jaccard; here it is left out, so these two come out higher than in the logs for the same nuclei."
    )
    if not reasons_not_comparable(runs, entry):
        points.append("The last column of a table is the mean here minus the mean of the logs; compare with the logs.")
    return points


def _warnings(runs: Sequence[FoldScores], entry: Published | None) -> list[str]:
    if entry is None:
        return []
    reasons = reasons_not_comparable(runs, entry)
    if reasons:
        return [f"**The published numbers must not be compared with the scores here: {'; '.join(reasons)}.**"]
    warnings = []
    if len(runs) != len(entry.folds):
        warnings.append(
            f"**{len(runs)} run{'s' if len(runs) > 1 else ''} here, {len(entry.folds)} in the published means: a "
            "difference may come from the folds alone.**"
        )
    sizes: dict[tuple[int, ...], int] = {fold.rotation[2:]: fold.patches for fold in entry.folds}
    for k, run in enumerate(runs, start=1):
        expected = sizes.get(run.test_folds, run.dataset.patches)
        if expected != run.dataset.patches:
            warnings.append(
                f"**Run {k} was tested on {run.dataset.patches:,} patches of fold {_folds(run.test_folds)}, the "
                f"published ones on {expected:,}: its scores are of other images.**"
            )
    return warnings


def _tables(run: FoldScores, lines: Mapping[str, ScoreLine], *, compared: bool) -> list[str]:
    """Return heading and table of every group of scores, and at last of all that belong to no group."""
    types, tissues = run.class_names[1:], run.tissue_names
    measures = {"F1": "F1", "P": "precision", "R": "recall"}
    over_images = {f"PQ/{t}": f"PQ, {t}" for t in types} | {name: name for name in _OVER_IMAGES}
    groups: dict[str, dict[str, str]] = {
        "Table 1. Detection, pooled over the test set": {f"{m}_d": f"All nuclei, {w}" for m, w in measures.items()}
        | {f"{m}/{t}": f"{t}, {w}" for t in types for m, w in measures.items()},
        "Table 2a. mPQ per tissue": _tissue_rows("mPQ", tissues),
        "Table 2b. bPQ per tissue": _tissue_rows("bPQ", tissues),
        "Table 3. Panoptic quality, averaged over images": over_images,
        "Overlap and tissue": dict(_FURTHER),
    }
    named = {name for group in groups.values() for name in group}
    groups["Further scores"] = {name: name for name in lines if name not in named}
    parts = []
    for heading, group in groups.items():
        found = [(label, lines[name]) for name, label in group.items() if name in lines]
        if found or heading != "Further scores":
            parts.append(f"## {heading}")
            parts.append(_scores_table(found, compared=compared) if found else "The runs hold no such scores.")
    return parts


def _tissue_rows(quality: str, tissues: Sequence[str]) -> dict[str, str]:
    return {f"{quality}/{tissue}": tissue for tissue in tissues} | {f"{quality}_tissue_mean": "Mean over tissues"}


def _scores_table(found: Sequence[tuple[str, ScoreLine]], *, compared: bool) -> str:
    """Return a table of scores with the published columns that have a value in it."""
    lines = [line for _, line in found]
    head = ["", "Score", *(f"Run {k + 1}" for k in range(len(lines[0].runs))), "Mean \N{PLUS-MINUS SIGN} std"]
    columns = [
        [label for label, _ in found],
        [f"`{line.name}`" for line in lines],
        *([_value(value) for value in column] for column in zip(*(line.runs for line in lines), strict=True)),
        [_spread(line) for line in lines],
    ]
    if any(line.paper_v1 for line in lines):
        head.append("Paper v1")
        columns.append([line.paper_v1 or _NONE for line in lines])
    if not all(math.isnan(line.logs) for line in lines):
        head.append("Authors' logs")
        columns.append([_with_std(line.logs, line.logs_std) for line in lines])
        if compared:
            head.append("Mean - logs")
            columns.append([_signed(line.difference) for line in lines])
    return _table(head, [list(row) for row in zip(*columns, strict=True)])


def _run_by_run(runs: Sequence[FoldScores], entry: Published) -> list[str]:
    """Return the runs beside the published runs on the same folds."""
    pairs = [(k, run, entry.fold(_rotation(run))) for k, run in enumerate(runs, start=1)]
    same = [(k, run, fold) for k, run, fold in pairs if fold is not None]
    if not same:
        return []
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
    return ["## Run by run, against the logs on the same folds", _table(head, rows)]


def _how_it_was_run(runs: Sequence[FoldScores]) -> list[str]:
    stages = list(dict.fromkeys(name for run in runs for name in run.seconds))
    names = sorted({name for run in runs for name in run.versions})
    columns = [f"Run {k + 1}" for k in range(len(runs))]
    rows = [[f"Time, {stage}", *(_time(run.seconds.get(stage)) for run in runs)] for stage in stages]
    rows += [[f"Version of {name}", *(run.versions.get(name, _NONE) for run in runs)] for name in names]
    return [_table(["", *columns], rows) if rows else "The runs state neither times nor versions."]


def _rotation(run: FoldScores) -> tuple[int, int, int] | None:
    """Return the fold trained, validated and tested on, or None where it is not one each."""
    folds = (run.train_folds, run.val_folds, run.test_folds)
    if any(len(f) != 1 for f in folds):
        return None
    return run.train_folds[0], run.val_folds[0], run.test_folds[0]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; columns of text are set to the left, those of numbers to the right."""
    lines = [head, ["---" if name in ("", "Score") else "---:" for name in head], *rows]
    return "\n".join("| " + " | ".join(_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _folds(folds: Iterable[int]) -> str:
    return ", ".join(map(str, folds)) or _NONE


def _value(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.4f}"


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
    if seconds is None:
        return _NONE
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
