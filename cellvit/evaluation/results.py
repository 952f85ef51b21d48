"""Files of an evaluation: all scores, one row per image, and a page to read."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cellvit.errors import OutputError
from cellvit.evaluation.image_scores import ImageScores, ScoreSettings
from cellvit.io.atomic import atomic_path, temporary_path
from cellvit.io.format import write_json
from cellvit.io.tables import DIGITS, Cell, render, write_csv, write_text

_COLUMNS = {
    **{"bPQ": "bPQ", "DQ": "bDQ", "SQ": "bSQ", "mPQ": "mPQ"},
    **{"F1": "F1_d", "P": "P_d", "R": "R_d", "F1_within": "F1_d_within"},
}
_OVERLAPS = ("Dice", "Jaccard", "AJI")


def make_folder(out: Path) -> None:
    """Make the folder for results and try to write into it, before anything is computed.

    Raises:
        OutputError: If that is not possible.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot make the folder '{out}' ({reason}); choose another out=FOLDER") from error
    probe = temporary_path(out / "write-test")  # a name that nothing else has
    with atomic_path(probe):
        pass
    probe.unlink()


def versions() -> dict[str, str]:
    """Return the versions that scores may depend on, by name."""
    packages = ("cellvit-lightning", "torch", "numpy", "scipy", "opencv-python-headless", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def image_rows(images: Sequence[ImageScores]) -> list[dict[str, Cell]]:
    """Return one row of named scores per image; columns that no image has a value for are left out."""
    tissues = any(image.tissue for image in images)
    names = {column: score for column, score in _COLUMNS.items() if any(score in image.scores for image in images)}
    occluded = any(image.occluded or image.occluded_true for image in images)
    rows: list[dict[str, Cell]] = []
    for image in images:
        row: dict[str, Cell] = {"image": image.name}
        row |= {"tissue": image.tissue} if tissues else {}
        row |= {"true_nuclei": image.true, "predicted_nuclei": image.predicted}
        row |= {"occluded_true": image.occluded_true, "occluded_predicted": image.occluded} if occluded else {}
        row |= {column: image.scores[score] for column, score in names.items()}
        rows.append(row | {score: image.scores[score] for score in _OVERLAPS})
    return rows


def score_rows(scores: Mapping[str, float]) -> list[dict[str, Cell]]:
    """Return one row per score, without those of single types and tissues."""
    return [{"score": name, "value": value} for name, value in scores.items() if "/" not in name]


def group_rows(scores: Mapping[str, float]) -> list[dict[str, Cell]]:
    """Return one row per type or tissue with the scores named ``<score>/<group>``."""
    groups = list(dict.fromkeys(name.split("/", 1)[1] for name in scores if "/" in name))
    columns = list(dict.fromkeys(name.split("/", 1)[0] for name in scores if "/" in name))
    return [{"type or tissue": g, **{c: scores.get(f"{c}/{g}", float("nan")) for c in columns}} for g in groups]


def write_results(
    out: Path,
    images: Sequence[ImageScores],
    scores: Mapping[str, float],
    *,
    settings: ScoreSettings,
    inputs: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Write ``scores.json``, ``images.csv`` and ``scores.md``.

    Args:
        out: An existing folder.
        images: Scores per image.
        scores: Scores over all images.
        settings: Names of types and thresholds they were made with.
        inputs: Where the nuclei came from, as plain data.
        notes: Sentences a reader must know.

    Raises:
        OutputError: If a file cannot be written.
    """
    totals = {"images": len(images), "true_nuclei": sum(i.true for i in images)}
    totals["predicted_nuclei"] = sum(i.predicted for i in images)
    write_csv(out / "images.csv", image_rows(images))
    page = render(
        "evaluation/scores.md.jinja",
        inputs=inputs,
        totals=totals,
        notes=notes,
        scores=score_rows(scores),
        groups=group_rows(scores),
        settings=settings,
        images=image_rows(images),
    )
    write_text(out / "scores.md", page)
    content = {"scores": dict(scores), **totals, "settings": asdict(settings), "inputs": dict(inputs)}
    write_json(out / "scores.json", {**content, "notes": list(notes), "versions": versions()}, digits=DIGITS)
