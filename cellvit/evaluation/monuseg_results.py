"""Files of the MoNuSeg protocol: our rows beside the published ones, one row per image, and pictures."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cellvit.atomic import atomic_path
from cellvit.evaluation.monuseg import FORMS, FormResult
from cellvit.evaluation.results import versions
from cellvit.evaluation.scoring import RADII, ImageScores, pooled_scores
from cellvit.evaluation.tables import Cell, markdown_table, write_csv, write_json, write_text
from cellvit.export.overlay import draw_comparison

SCORES = ("bPQ", "bDQ", "bSQ", "F1_d_image_mean", "P_d_image_mean", "R_d_image_mean", "Dice")
"""Scores of the published table."""

ModelScores = Mapping[str, Mapping[str, Sequence[ImageScores]]]
"""Per model and form, the scores of the images."""

HOW = """\
Scores of each image, averaged over the images. x40: sides 1.024 times as long, in whole patches of 256 px, so that
1000 px become 1024; x20: half of that. 1024 and 512: the image seen whole; 256: in patches without overlap, whose maps
are put together and post-processed as one. Dice compares the map of the network with the truth, before post-processing.
The qualities count predicted nuclei of type 0, detection leaves them out.
"""


def mean_scores(scores: ModelScores) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of every model and form, averaged over images."""
    return {
        model: {form: {name: pooled_scores(images)[name] for name in SCORES} for form, images in forms.items()}
        for model, forms in scores.items()
    }


def over_models(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean and population standard deviation over models.

    Args:
        scores: Per model and form, the scores by name.

    Returns:
        Per form and score, ``{"mean": ..., "std": ...}``.

    Example:
        >>> over_models({"a": {"x40/256": {"bPQ": 0.5}}, "b": {"x40/256": {"bPQ": 0.7}}})["x40/256"]["bPQ"]["mean"]
        0.6
    """
    models = list(scores.values())
    return {
        form: {name: _mean_and_std([model[form][name] for model in models]) for name in models[0][form]}
        for form in models[0]
    }


def published_rows() -> tuple[list[dict[str, Cell]], list[str]]:
    """Return the rows of the authors' logs, ``model``, ``input`` and :data:`SCORES`; and what to know of them."""
    stored = json.loads(files("cellvit.evaluation").joinpath("published_monuseg.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Cell]] = [
        {"model": model, "input": form, **dict(zip(stored["columns"], values, strict=True))}
        for model, forms in stored["models"].items()
        for form, values in forms.items()
    ]
    return rows, [stored["source"], stored["first_version"]]


def own_rows(means: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Cell]]:
    """Return one row per model and form; of several models their mean and standard deviation too."""
    rows: list[dict[str, Cell]] = [
        {"model": model, "input": form, **scores} for model, forms in means.items() for form, scores in forms.items()
    ]
    if len(means) > 1:
        for form, scores in over_models(means).items():
            for part in ("mean", "std"):
                label = f"{part} of {len(means)} models"
                rows.append({"model": label, "input": form, **{name: value[part] for name, value in scores.items()}})
    return rows


def untyped_notes(scores: ModelScores) -> list[str]:
    """Return a sentence for every model of whose nuclei at x40 more than a tenth have no type."""
    notes = []
    for model, forms in scores.items():
        images = forms[FORMS[0].name]
        untyped, total = sum(image.untyped for image in images), sum(image.predicted for image in images)
        if untyped > total / 10:
            message = f"{untyped} of the {total} nuclei that {model} finds in {FORMS[0].name} have no type (type 0): "
            notes.append(message + "detection leaves them out, which lowers its recall.")
    return notes


def write_monuseg(
    out: Path, scores: ModelScores, *, inputs: Mapping[str, Any], notes: Sequence[str] = ()
) -> list[dict[str, Cell]]:
    """Write ``scores.json``, ``images.csv`` and ``monuseg.md``.

    Args:
        out: An existing folder.
        scores: Per model and form, the scores of the images.
        inputs: Data and models, as plain data.
        notes: Sentences a reader must know.

    Returns:
        Our rows of the table.

    Raises:
        OutputError: If a file cannot be written.
    """
    means = mean_scores(scores)
    rows, (published, about) = own_rows(means), published_rows()
    every = [
        _image_row(model, form, image)
        for model, forms in scores.items()
        for form, images in forms.items()
        for image in images
    ]
    write_csv(out / "images.csv", every)
    count = len({str(row["image"]) for row in every})
    parts = ["# MoNuSeg protocol", f"{count} images of `{inputs['data']}`.", *(f"**Note**: {note}" for note in notes)]
    parts += [markdown_table(rows), HOW, "## Published", markdown_table(published), *about]
    write_text(out / "monuseg.md", "\n\n".join(parts))
    settings = {"radius": {form.name: RADII[form.magnification] for form in FORMS}, "iou_threshold": 0.5}
    content: dict[str, Any] = {"models": means, "over_models": over_models(means), "images": count}
    content |= {"settings": settings, "inputs": dict(inputs), "notes": list(notes), "versions": versions()}
    write_json(out / "scores.json", content | {"published": {"rows": published, "about": about}})
    return rows


def write_picture(out: Path, result: FormResult) -> Path:
    """Write image, truth and prediction side by side and return the file.

    Raises:
        OutputError: If the file cannot be written.
    """
    name = f"{result.scores.name.replace('/', '-')}-{result.form.name.replace('/', '-')}.png"
    picture = Image.fromarray(draw_comparison(result.image, result.target, result.pred))
    with atomic_path(out / name) as temporary:
        picture.save(temporary)
    return out / name


def _image_row(model: str, form: str, image: ImageScores) -> dict[str, Cell]:
    row: dict[str, Cell] = {"model": model, "input": form, "image": image.name}
    row |= {"true_nuclei": image.true, "predicted_nuclei": image.predicted, "without_type": image.untyped}
    return row | {name: image.scores[name] for name in SCORES}


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
