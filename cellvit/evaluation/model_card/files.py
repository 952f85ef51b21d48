"""Files of a model card: ``card.json``, ``card.md``, ``images.csv`` and the pictures."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cellvit.errors import OutputError
from cellvit.evaluation.calibration import Calibration, Reliability
from cellvit.evaluation.model_card.measure import CardImage, CardSettings, Measurements
from cellvit.evaluation.model_card.pictures import draw_reliability, draw_window
from cellvit.evaluation.model_card.tables import (
    GroupScores,
    bin_table,
    calibration_notes,
    calibration_table,
    confusion_table,
    image_table,
    score_table,
    type_table,
)
from cellvit.evaluation.results import make_folder, versions
from cellvit.inference.protocol import NucleiModel
from cellvit.io.format import write_json
from cellvit.io.provenance import read_record, sha256
from cellvit.io.tables import DIGITS, Cell, render, write_csv, write_text
from cellvit.model.checkpoint import CONFIG_NAME, bundled_models
from cellvit.plotting.overlay import write_picture
from cellvit.weights.catalogue import BUNDLED

FAILURES = "failures"
"""Folder of the pictures of failures."""

_NAME = 60  # letters of an image's name in that of its picture; file systems allow 255 bytes

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
        groups: One per data set and resolution, from :func:`.tables.group_scores`.
        model: Name, hash, resolution and classes, from :func:`model_facts`.
        settings: Data, resolutions and resamples it was measured with.
        seconds: Duration of the measurement.

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
        "places": None if found.places is None else asdict(found.places),
        "failures": failures,
        "seconds": float(seconds),
        "versions": versions(),
    }
    write_json(out / "card.json", content, digits=DIGITS)
    write_text(out / "card.md", _page(found, groups, model, settings, failures))


def _write_pictures(out: Path, found: Measurements, *, tissue: bool) -> list[dict[str, Any]]:
    folder, earlier = out / FAILURES, _earlier_card(out)
    for row in earlier.get("failures") or ():
        if re.fullmatch(rf"{FAILURES}/\d\d_[^/\\]+\.png", name := str(row.get("file"))):
            (out / name).unlink(missing_ok=True)
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
    elif earlier.get("calibration"):
        (out / "reliability.png").unlink(missing_ok=True)
    return rows


def _earlier_card(out: Path) -> Mapping[str, Any]:
    """Return what ``card.json`` of an earlier card says, or nothing: what it does not name is not ours to remove."""
    with suppress(OutputError):
        return read_record(out / "card.json", advice="") or {}
    return {}


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
    calibration = found.calibration
    return render(
        "evaluation/model_card/card.md.jinja",
        model=model,
        settings=settings,
        data=data_facts(found.images),
        scores=score_table(groups),
        types=type_table(groups),
        learnt_on=model.get("about", {}).get("types_learnt_on"),
        main=found.main,
        calibration=None if calibration is None else calibration_table(calibration),
        confusion=[] if calibration is None else confusion_table(calibration, model["class_names"]),
        notes=[] if calibration is None else calibration_notes(calibration, found.type_rule),
        bins=[] if calibration is None else bin_table(calibration),
        no_calibration=NO_CALIBRATION,
        places=found.places,
        failures=failures,
    )


def _plain_group(group: GroupScores) -> dict[str, Any]:
    """Return a group as plain data; the scores of types only where types are known."""
    scores = {n: asdict(e) for n, e in group.scores.items() if group.typed_images or "/" not in n}
    return {**asdict(group), "scores": scores}
