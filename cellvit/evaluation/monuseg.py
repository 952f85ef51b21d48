"""The MoNuSeg protocol: one model on images at x40 and x20, each seen whole and in patches of 256 px [1].

A model sees each image in the four :data:`FORMS`; :func:`evaluate_model` scores it, :func:`write_monuseg` writes its
scores beside the published ones.

References:
    [1] Hörst et al., CellViT: Vision Transformers for precise cell segmentation and classification, Medical Image
    Analysis 2024, doi:10.1016/j.media.2024.103143.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cellvit.errors import CellViTError, DataError
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.evaluation.results import versions
from cellvit.evaluation.scoring import RADII, ImageScores, ScoreSettings, pooled_scores, score_nuclei
from cellvit.inference.protocol import NucleiModel, autocast_context, evaluation_mode
from cellvit.io.format import write_json
from cellvit.io.images import read_image
from cellvit.io.labels import ImageRecord, nearest, raise_problems, read_label
from cellvit.io.tables import DIGITS, Cell, render, write_csv, write_text
from cellvit.model.build import image_arrays
from cellvit.plotting.overlay import draw_comparison
from cellvit.plotting.overlay import write_picture as write_overlay_picture
from cellvit.postprocess.base import Postprocessor
from cellvit.types import EMBEDDING_MAP, NUCLEI_BINARY_MAP, IntMap, Nuclei, NucleiClasses

PATCH_SIZE = 256
SCALE = 1024 / 1000
"""Pixels at x40 per pixel of the data: MoNuSeg's 1000 px become 1024."""

STRETCHED = 0.05
"""An image whose sides are scaled this much differently is not what the protocol is made for."""

NOT_MEANT = "the protocol is made for images of about 1000 px, scores of others compare with nothing published."

KINDS = NucleiClasses(("Background", "Nucleus", "Nucleus without a type"), ((0, 0, 0), (0, 220, 0), (255, 220, 0)))
"""All that the protocol tells apart."""

SCORES = ("bPQ", "bDQ", "bSQ", "F1_d_image_mean", "P_d_image_mean", "R_d_image_mean", "Dice")
"""Scores of the published table."""

OWN_SCORES = (*SCORES[:-1], "F1_d_within_image_mean", SCORES[-1])
"""Scores of our tables: beside the published F1 that of the most pairs within the radius."""

ModelScores = Mapping[str, Mapping[str, Sequence[ImageScores]]]
"""Per model and form, the scores of the images."""

Maps = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class InputForm:
    """How an image is shown to the network.

    Attributes:
        magnification: 40 or 20; sets the size of the image, the radius of detection and the post-processing.
        whole: Show it whole rather than in patches.
    """

    magnification: Literal[40, 20]
    whole: bool

    @property
    def name(self) -> str:
        """The name in the published table, such as ``x40/1024``."""
        side = PATCH_SIZE if not self.whole else 1024 * self.magnification // 40
        return f"x{self.magnification}/{side}"


FORMS = (InputForm(40, True), InputForm(40, False), InputForm(20, True), InputForm(20, False))


@dataclass(frozen=True)
class FormResult:
    """One image in one form.

    Attributes:
        form: The form.
        scores: Scores of the image.
        image: ``(H, W, 3)`` uint8, the image as the network saw it.
        target: True nuclei in its pixels, of the classes :data:`KINDS`.
        pred: Nuclei found, likewise.
    """

    form: InputForm
    scores: ImageScores
    image: NDArray[np.uint8]
    target: Nuclei
    pred: Nuclei


def input_size(height: int, width: int, magnification: Literal[40, 20]) -> tuple[int, int]:
    """Return the size ``(H, W)`` at which the protocol shows an image: whole patches, at least one at x40.

    At x40 the sides are 1.024 times as long, rounded to the nearest multiple of 256; at x20 half of that.

    Example:
        >>> input_size(1000, 1000, 40), input_size(1000, 1000, 20)
        ((1024, 1024), (512, 512))
    """
    x40 = [max(PATCH_SIZE, PATCH_SIZE * round(side * SCALE / PATCH_SIZE)) for side in (height, width)]
    return x40[0] * magnification // 40, x40[1] * magnification // 40


def stretched(height: int, width: int) -> bool:
    """Return whether an image of this size changes its proportions visibly."""
    new_height, new_width = input_size(height, width, 40)
    return abs(new_height / height / (new_width / width) - 1) > STRETCHED


def resized(
    image: NDArray[np.uint8], instance_map: NDArray[Any], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return an image by Lanczos and its labels by the nearest pixel centre, at another size ``(H, W)``."""
    picture = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(picture), nearest(instance_map, size)


def postprocessor_at(model: NucleiModel, magnification: Literal[40, 20]) -> Postprocessor | None:
    """Return the model's post-processor for a magnification, with its other settings.

    Args:
        model: The model.
        magnification: 40 or 20.

    Returns:
        A new one if it takes a magnification, else the model's own; None if the model shows none.
    """
    own = getattr(model, "postprocessor", None)
    if not isinstance(own, Postprocessor):
        return None
    if not hasattr(own, "magnification"):
        return own
    rebuilt: Postprocessor = type(own)(**{**own.init_args, "magnification": magnification})
    return rebuilt


def predicted_maps(
    model: NucleiModel,
    image: NDArray[np.uint8],
    *,
    whole: bool,
    postprocessor: Postprocessor | None,
    batch_size: int = 4,
    precision: str = "32-true",
) -> Maps:
    """Return the activated maps of an image, seen whole or in patches without overlap that are put together again.

    Args:
        model: The network.
        image: ``(H, W, 3)`` uint8; it is continued by its mirror image to whole patches.
        whole: True shows it at once, False in patches of 256 px.
        postprocessor: Who will read the maps; see :func:`cellvit.model.build.image_arrays`.
        batch_size: Patches that go through the network together.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Returns:
        ``(C, H, W)`` or ``(H, W)`` by name, as the post-processor takes them.
    """
    height, width = image.shape[:2]
    if whole:
        return _forward(model, image[None], postprocessor, precision)[0]
    padded = np.pad(image, ((0, -height % PATCH_SIZE), (0, -width % PATCH_SIZE), (0, 0)), mode="symmetric")
    rows, cols = padded.shape[0] // PATCH_SIZE, padded.shape[1] // PATCH_SIZE
    patches = padded.reshape(rows, PATCH_SIZE, cols, PATCH_SIZE, 3).swapaxes(1, 2).reshape(-1, *[PATCH_SIZE] * 2, 3)
    found: list[Maps] = []
    for first in range(0, len(patches), batch_size):
        found += _forward(model, patches[first : first + batch_size], postprocessor, precision)
    return {name: _stitched([maps[name] for maps in found], rows, cols)[..., :height, :width] for name in found[0]}


def evaluate_image(
    model: NucleiModel, record: ImageRecord, *, batch_size: int = 4, precision: str = "32-true"
) -> Iterator[FormResult]:
    """Yield the scores of one image in every form of the protocol.

    Args:
        model: The model, on its device.
        record: Image and label.
        batch_size: Patches that go through the network together.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Raises:
        DataError: If image and label cannot be used together.
    """
    image, labels = _read(record)
    height, width = labels.shape
    for form in FORMS:
        shown, instances = resized(image, labels, input_size(height, width, form.magnification))
        postprocessor = postprocessor_at(model, form.magnification)
        with evaluation_mode(model):
            maps = predicted_maps(
                model, shown, whole=form.whole, postprocessor=postprocessor, batch_size=batch_size, precision=precision
            )
        pred = model.postprocess(maps) if postprocessor is None else postprocessor(maps)
        target = nuclei_from_labels(instances, None)
        settings = ScoreSettings(radius=RADII[form.magnification], ignore_background=True)
        foreground = _foreground(maps, pred.instance_map)
        scores = score_nuclei(pred, target, settings, name=record.name, foreground=foreground)
        yield FormResult(form, scores, shown, _plain(target.nuclei), _plain(pred.nuclei))


def check_records(records: Sequence[ImageRecord], *, where: Path) -> list[str]:
    """Read all images and labels once, before anything is computed.

    Args:
        records: The images.
        where: The data folder, for messages.

    Returns:
        Names of the images that the protocol stretches; see :func:`stretched`.

    Raises:
        DataError: If there are none, or some cannot be used; one error names them all.
    """
    if not records:
        raise DataError(f"data folder '{where}' has no images; check the path, or choose another split")
    problems, odd = [], []
    for record in records:
        try:
            labels = _read(record)[1]
        except CellViTError as error:
            problems.append(str(error))
            continue
        if stretched(*labels.shape):
            odd.append(record.name)
    raise_problems(problems, where=where)
    return odd


def evaluate_model(
    model: NucleiModel,
    records: Sequence[ImageRecord],
    *,
    batch_size: int = 4,
    precision: str = "32-true",
    seen: Callable[[int, FormResult], None] | None = None,
) -> dict[str, list[ImageScores]]:
    """Score a model on all images in every form; one image is in memory at a time.

    Args:
        model: The model, on its device.
        records: The images.
        batch_size: Patches that go through the network together.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        seen: Called with the number of the image and each result.

    Returns:
        Per name of a form, the scores of the images in order.
    """
    scores: dict[str, list[ImageScores]] = {form.name: [] for form in FORMS}
    for index, record in enumerate(records):
        for result in evaluate_image(model, record, batch_size=batch_size, precision=precision):
            scores[result.form.name].append(result.scores)
            if seen is not None:
                seen(index, result)
    return scores


def mean_scores(scores: ModelScores) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of every model and form, averaged over images."""
    return {
        model: {form: {name: pooled_scores(images)[name] for name in OWN_SCORES} for form, images in forms.items()}
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
    page = render(
        "evaluation/monuseg.md.jinja",
        count=count,
        data=inputs["data"],
        notes=notes,
        rows=rows,
        published=published,
        about=about,
    )
    write_text(out / "monuseg.md", page)
    settings = {"radius": {form.name: RADII[form.magnification] for form in FORMS}, "iou_threshold": 0.5}
    content: dict[str, Any] = {"models": means, "over_models": over_models(means), "images": count}
    content |= {"settings": settings, "inputs": dict(inputs), "notes": list(notes), "versions": versions()}
    write_json(out / "scores.json", content | {"published": {"rows": published, "about": about}}, digits=DIGITS)
    return rows


def write_picture(out: Path, result: FormResult) -> Path:
    """Write image, truth and prediction side by side and return the file.

    Raises:
        OutputError: If the file cannot be written.
    """
    name = f"{result.scores.name.replace('/', '-')}-{result.form.name.replace('/', '-')}.png"
    write_overlay_picture(draw_comparison(result.image, result.target, result.pred), out / name)
    return out / name


def _read(record: ImageRecord) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    image, labels = read_image(record.image), read_label(record.label)[0]
    if image.shape[:2] != labels.shape:
        message = f"image '{record.image}' is {image.shape[:2]} and label '{record.label}' {labels.shape}; "
        raise DataError(message + "both must show the same pixels")
    return image, labels


def _plain(nuclei: Nuclei) -> Nuclei:
    """Return nuclei whose type says only whether they have one; -1, of the truth, is not told apart."""
    return replace(nuclei, type=np.where(nuclei.type == 0, 2, 1).astype(np.int32), classes=KINDS)


def _forward(
    model: NucleiModel, images: NDArray[np.uint8], postprocessor: Postprocessor | None, precision: str
) -> list[Maps]:
    batch = torch.from_numpy(np.ascontiguousarray(images)).to(model.device).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode(), autocast_context(precision, model.device):
        maps = model.predict_maps(batch)
    return image_arrays({name: value for name, value in maps.items() if name != EMBEDDING_MAP}, postprocessor)


def _stitched(patches: Sequence[NDArray[Any]], rows: int, cols: int) -> NDArray[Any]:
    return np.concatenate([np.concatenate(patches[r * cols : (r + 1) * cols], axis=-1) for r in range(rows)], axis=-2)


def _foreground(maps: Maps, instances: IntMap) -> NDArray[np.bool_]:
    """Return what the network takes for nucleus, before post-processing; the instances where it does not say."""
    binary = maps.get(NUCLEI_BINARY_MAP)
    if binary is None:
        return instances > 0
    return np.asarray(binary > 0 if binary.ndim == 2 else binary[1] > binary[0])


def _image_row(model: str, form: str, image: ImageScores) -> dict[str, Cell]:
    row: dict[str, Cell] = {"model": model, "input": form, "image": image.name}
    row |= {"true_nuclei": image.true, "predicted_nuclei": image.predicted, "without_type": image.untyped}
    return row | {name: image.scores[name] for name in OWN_SCORES}


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
