"""The report of a trained classifier: a page, its numbers as JSON, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.classification.classifier import UNSURE
from cellvit.classification.crops import contact_sheet, draw_crop, slide_of
from cellvit.classification.samples import Sample
from cellvit.classification.validation import Validation
from cellvit.evaluation.model_card.pictures import draw_reliability
from cellvit.io.format import write_json
from cellvit.io.tables import DIGITS, data_uri, render, write_text
from cellvit.plotting.charts import COLORS, new_axes, to_picture
from cellvit.plotting.legend import Picture
from cellvit.plotting.overlay import write_picture

REPORT, NUMBERS = "report.html", "report.json"
_CROPS = 8


def write_report(
    out: Path,
    found: Validation,
    sample: Sample,
    *,
    facts: Mapping[str, Any],
    notes: Sequence[str],
    slides: str | Path | None = None,
) -> Path:
    """Write ``report.html``, ``report.json`` and pictures beside a classifier.

    Args:
        out: The folder.
        found: Scores on held-out labels.
        sample: The labels.
        facts: What was trained, and how, in words.
        notes: What the user should know.
        slides: Where the slides are, if not where they were.

    Returns:
        The page.

    Raises:
        OutputError: If a file cannot be written.
    """
    names = [score.name for score in found.types]
    curves = {"as the estimator states it": found.stated, "calibrated on other labels": found.calibrated}
    pictures: dict[str, tuple[str, Picture]] = {
        "confusion.png": ("Held-out labels: what they are, and what they were called", draw_confusion(found, names)),
        "reliability.png": ("How often the most probable type is right", draw_reliability(curves)),
        "learning-curve.png": ("Score against number of labels", draw_curve(found)),
    }
    for number, (name, picture) in enumerate(_sheets(found, sample, names, slides), start=1):
        pictures[f"nuclei-{number}.png"] = (name, picture)
    for name, (_, picture) in pictures.items():
        write_picture(picture, out / name)
    data = {
        **facts,
        "macro_f1": found.macro_f1,
        "macro_f1_interval": list(found.macro_interval),
        "types": [asdict(score) for score in found.types],
        "confusion": {"rows": names, "columns": [*names, UNSURE], "counts": found.confusion.tolist()},
        "calibration": {"stated": asdict(found.stated), "calibrated": asdict(found.calibrated)},
        "learning_curve": [asdict(point) for point in found.curve],
        "notes": list(notes),
    }
    write_json(out / NUMBERS, data, digits=DIGITS)
    page = render(
        "classification/report.html.jinja",
        facts=facts,
        found=found,
        notes=notes,
        pictures=[(text, data_uri((out / name).read_bytes(), "image/png")) for name, (text, _) in pictures.items()],
        written=f"cellvit {version('cellvit-lightning')}",
    )
    write_text(out / REPORT, page)
    return out / REPORT


def draw_confusion(found: Validation, names: Sequence[str]) -> Picture:
    """Draw how often every type was called what, as counts over shares of the row.

    Args:
        found: Scores.
        names: Of the types.
    """
    has_unsure = bool(found.confusion[:, -1].any())
    counts = found.confusion if has_unsure else found.confusion[:, :-1]
    columns = [*names, UNSURE] if has_unsure else list(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = new_axes(90 * len(columns), 60 * len(names))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="called", ylabel="labelled")
    return to_picture(figure)


def draw_curve(found: Validation) -> Picture:
    """Draw macro F1 over the number of labels per type, with the range of the draws."""
    figure, axes = new_axes(560, 340)
    labels = [point.labels for point in found.curve]
    axes.fill_between(labels, [p.low for p in found.curve], [p.high for p in found.curve], color=COLORS[0], alpha=0.25)
    axes.plot(labels, [point.mean for point in found.curve], color=COLORS[0], marker="o")
    axes.set_xscale("log")
    axes.set_xticks(labels, [f"{number:,}" for number in labels])
    axes.minorticks_off()
    axes.set(xlabel="labels per type, at most", ylabel="macro F1 on held-out labels", ylim=(0, 1))
    axes.grid(color="#cdcdcd")
    return to_picture(figure)


def _sheets(
    found: Validation, sample: Sample, names: Sequence[str], slides: str | Path | None
) -> list[tuple[str, Picture]]:
    """Return for each type the labels it is most and least sure of, where their slides can be read."""
    crops: dict[int, Picture] = {}
    chosen = {
        (name, kind): rows for k, name in enumerate(names) for kind, rows in _extremes(found, k).items() if len(rows)
    }
    wanted = np.unique(np.concatenate([np.zeros(0, np.int64), *chosen.values()]))
    for number, table in enumerate(sample.tables):
        with slide_of(table.parent, slides) as opened:
            if opened is not None:
                rows = wanted[sample.group[wanted] == number].tolist()
                crops |= {row: draw_crop(opened, sample.nuclei, row, _caption(found, names, row)) for row in rows}
    sheets = []
    for (name, kind), rows in chosen.items():
        seen = [crops[row] for row in rows.tolist() if row in crops]
        if seen:
            sheets.append((f"Labelled {name}: {kind}", contact_sheet(seen, f"{name}: {kind}")))
    return sheets


def _extremes(found: Validation, kind: int) -> dict[str, Any]:
    """Return the labels of a type whose type is most probable, and those whose type is least."""
    rows = np.flatnonzero(found.codes == kind)
    order = rows[np.argsort(-found.probabilities[rows, kind], kind="stable")]
    return {"most sure": order[:_CROPS], "least sure": order[_CROPS:][::-1][:_CROPS]}


def _caption(found: Validation, names: Sequence[str], row: int) -> str:
    best = int(found.probabilities[row].argmax())
    text = f"{found.probabilities[row, found.codes[row]]:.2f}"
    return text if best == found.codes[row] else f"{text} {names[best][:12]}?"
