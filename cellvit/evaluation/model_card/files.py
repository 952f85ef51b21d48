"""Files of a model card: ``card.json``, ``card.md``, ``images.csv`` and the pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cellvit.evaluation.calibration import Calibration, Reliability
from cellvit.evaluation.model_card.measure import CardImage, CardSettings, Measurements
from cellvit.evaluation.model_card.pictures import draw_reliability, draw_window
from cellvit.evaluation.model_card.tables import (
    GroupScores,
    bin_table,
    calibration_notes,
    calibration_table,
    image_table,
    score_table,
    type_table,
)
from cellvit.evaluation.results import make_folder, versions
from cellvit.inference.protocol import NucleiModel
from cellvit.io.tables import Cell, markdown_table, write_csv, write_json, write_text
from cellvit.model.checkpoint import CONFIG_NAME, bundled_models, sha256
from cellvit.plotting.overlay import write_picture
from cellvit.weights.catalogue import BUNDLED

FAILURES = "failures"
"""Folder of the pictures of failures."""

_NAME = 60  # letters of an image's name in that of its picture; file systems allow 255 bytes

HOW = """\
* `F1_d`, `P_d`, `R_d`, and `P`, `R`, `F1` per type: counts of all images added up. Centroids are paired one to one
  at the smallest total distance, and pairs farther apart than 3 µm are dropped, as published: not the most pairs there
  could be. Per type a nucleus found with a wrong type weighs as much as two that are not found, as published too.
* `bPQ`, `DQ`, `SQ`, `mPQ`, and `PQ` per type: of each image at an IoU above 0.5, averaged over the images. Scores of
  types are of images whose types are known.
* In brackets: the middle 95 % of {resamples:,} resamples of the images, each data set by itself. None is given for
  fewer than 3 images.
* An image is reduced to the stated µm/px and brought to the model's resolution; the truth stays what it was.
"""
NO_CALIBRATION = (
    "No predicted nucleus meets a true one of known type, or the model knows one type only: nothing to tell."
)


def model_facts(name: str, model: NucleiModel) -> dict[str, Any]:
    """Return what identifies a model: name, SHA-256 of its weights (None if unknown), resolution, types, size.

    Args:
        name: Name or path it was loaded by.
        model: The model.
    """
    parameters = getattr(model, "parameters", None)
    return {
        "name": name,
        "sha256": _weights_hash(name),
        "mpp": model.mpp,
        "class_names": list(model.classes.names),
        "parameters": None if parameters is None else sum(p.numel() for p in parameters()),
        "about": dict(getattr(model, "about", {})),
    }


def _weights_hash(name: str) -> str | None:
    path = BUNDLED / name if name in bundled_models() else Path(name)
    try:
        if path.is_file():
            return sha256(path)
        stated = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        return str(stated["weights"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):  # a model that is known by name only
        return None


def data_facts(images: Sequence[CardImage]) -> list[dict[str, Cell]]:
    """Return one row per data set: images, how many are typed, true nuclei, resolutions."""
    rows: list[dict[str, Cell]] = []
    for name in dict.fromkeys(image.record.dataset for image in images):
        members = [image for image in images if image.record.dataset == name]
        known = sorted({"unknown" if i.record.mpp is None else f"{i.record.mpp:g}" for i in members})
        row: dict[str, Cell] = {"data set": name, "images": len(members), "typed": sum(i.typed for i in members)}
        rows.append(row | {"true nuclei": sum(sum(i.types) for i in members), "µm/px of the files": ", ".join(known)})
    return rows


def write_card(
    out: Path,
    found: Measurements,
    groups: Sequence[GroupScores],
    *,
    model: Mapping[str, Any],
    settings: CardSettings,
    seconds: float,
) -> None:
    """Write all files of a model card.

    Args:
        out: An existing folder; pictures of failures of an earlier card there are replaced.
        found: What was measured.
        groups: See :func:`cellvit.evaluation.model_card.tables.group_scores`.
        model: See :func:`model_facts`.
        settings: How it was measured.
        seconds: That it took.

    Raises:
        OutputError: If a file cannot be written.
    """
    failures = _write_pictures(out, found, tissue=settings.tissue)
    write_csv(out / "images.csv", image_table(found.images, model["class_names"]))
    calibration = found.calibration
    content = {
        "model": dict(model),
        "data": {"root": settings.root, "split": settings.split, "datasets": data_facts(found.images)},
        "settings": asdict(settings),
        "scores": [_plain_group(group) for group in groups],
        "calibration": None
        if calibration is None
        else {"mpp": found.main, "type_rule": found.type_rule, **asdict(calibration)},
        "failures": failures,
        "seconds": float(seconds),
        "versions": versions(),
    }
    write_json(out / "card.json", content)
    write_text(out / "card.md", _page(found, groups, model, settings, failures))


def _write_pictures(out: Path, found: Measurements, *, tissue: bool) -> list[dict[str, Any]]:
    folder = out / FAILURES
    for old in folder.glob("[0-9][0-9]_*.png"):  # of an earlier card
        old.unlink()
    rows = []
    for number, window in enumerate(found.windows, start=1):
        make_folder(folder)
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in window.record.name)
        path = folder / f"{number:02d}_{name[:_NAME]}.png"
        write_picture(draw_window(window, tissue=tissue), path)
        place = {"image": window.record.name, "left": window.left, "top": window.top, "mpp": found.main}
        counts = {"true": window.true, "missed": window.missed, "invented": window.invented}
        rows.append({"file": f"{FAILURES}/{path.name}", **place, **counts})
    if found.calibration is not None:
        write_picture(draw_reliability(_curves(found.calibration)), out / "reliability.png")
    else:
        (out / "reliability.png").unlink(missing_ok=True)
    return rows


def _curves(calibration: Calibration) -> dict[str, Reliability]:
    curves = {"type_prob as stated": calibration.stated, "mean over the nucleus": calibration.before.reliability}
    if calibration.after is not None:
        curves["mean at T, held-out images"] = calibration.after.reliability
    return curves


def _page(
    found: Measurements,
    groups: Sequence[GroupScores],
    model: Mapping[str, Any],
    settings: CardSettings,
    failures: Sequence[Mapping[str, Any]],
) -> str:
    facts = f"Model `{model['name']}`, SHA-256 of the weights {model['sha256'] or 'unknown'}. Split `{settings.split}`"
    facts += "." if settings.tta == 1 else f", maps averaged over {settings.tta} turned and mirrored views."
    parts = ["# Measurements", facts, markdown_table(data_facts(found.images))]
    parts += ["## Scores", markdown_table(score_table(groups)), HOW.format(resamples=settings.resamples).rstrip()]
    types = type_table(groups)
    parts += ["## Types", markdown_table(types) if types else "No data set states the types of its nuclei."]
    parts += ["## Calibration of types"]
    calibration = found.calibration
    if calibration is None:
        parts += [NO_CALIBRATION]
    else:
        parts += [f"Images at {found.main:g} µm/px; predicted nuclei that meet a true one of known type."]
        parts += [markdown_table(calibration_table(calibration), digits=3)]
        parts += ["\n".join(f"* {note}" for note in calibration_notes(calibration, found.type_rule))]
        parts += [markdown_table(bin_table(calibration), digits=3), "![Reliability](reliability.png)"]
    if failures:
        parts += ["## Where most goes wrong"]
        parts += [
            f"{row['image']}: {row['missed']} missed, {row['invented']} invented at {row['true']} true nuclei.\n\n"
            f"![{row['image']}]({row['file']})"
            for row in failures
        ]
    return "\n\n".join(parts)


def _plain_group(group: GroupScores) -> dict[str, Any]:
    """Return a group as plain data; the scores of types only where types are known."""
    scores = {n: asdict(e) for n, e in group.scores.items() if group.typed_images or "/" not in n}
    return {**asdict(group), "scores": scores}
