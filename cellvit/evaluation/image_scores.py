"""Scores of the nuclei of one image, and of several images added up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics import Metric

from cellvit.errors import CellViTError, ConfigError
from cellvit.evaluation.pairing import Pair
from cellvit.evaluation.rasterize import drawn_maps, nuclei_from_labels
from cellvit.io.detections import LoadedNuclei, read_nuclei, translated_types
from cellvit.io.loaded import Note
from cellvit.metrics import AggregatedJaccard, BinaryOverlap, CentroidDetection, PanopticQuality
from cellvit.metrics.functional.panoptic import check_iou_threshold
from cellvit.types import NucleiPrediction

RADII = {40: 12.0, 20: 6.0}
"""Largest distance of a detected centroid in pixels, by magnification."""

BINARY_SCORES = ("bPQ", "bDQ", "bSQ", "F1_d", "P_d", "R_d", "Dice", "Jaccard", "AJI")
"""Scores that know no types; a name may go on after them."""


@dataclass(frozen=True)
class ScoreSettings:
    """How nuclei are scored.

    Attributes:
        class_names: Names of the types by id, background first; empty scores outlines only.
        numbered: Whether a file's type numbers are places among the class names.
        class_map: Names of predicted classes and what each is called among the class names.
        tissue_names: Names of the tissues to average over.
        radius: Largest distance of detected centroids in pixels.
        iou_threshold: IoU that a matched pair must exceed.
        ignore_background: Leave predicted nuclei of type 0 out of detection, as published for MoNuSeg. False leaves
            them out of panoptic quality instead, in images whose true types are known, as published for PanNuke.
        corners: Predicted outlines count pixels from their corners; see
            :func:`cellvit.evaluation.rasterize.draw_outlines`.

    Raises:
        ConfigError: If a number or a list of names cannot work.
    """

    class_names: tuple[str, ...] = ()
    numbered: bool = True
    class_map: Mapping[str, str] = field(default_factory=dict)
    tissue_names: tuple[str, ...] = ()
    radius: float = 12.0
    iou_threshold: float = 0.5
    ignore_background: bool = False
    corners: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.radius < float("inf"):
            raise ConfigError(f"radius {self.radius} is no distance; pass pixels from 0, 12 at x40 or 6 at x20")
        check_iou_threshold(self.iou_threshold)
        if len(self.class_names) == 1:
            raise ConfigError(f"class names {list(self.class_names)} lack a type; give background, then every type")
        known = {name.casefold() for name in self.class_names}
        if len(known) < len(self.class_names):
            raise ConfigError(f"class names {list(self.class_names)} repeat one; upper and lower case count as equal")
        unknown = sorted(name for name in self.class_map.values() if name.casefold() not in known)
        if unknown and self.class_names:
            raise ConfigError(f"class map leads to {unknown}; the classes are {list(self.class_names)}")


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image.

    Attributes:
        name: Name of the image.
        tissue: Its tissue, or None.
        true: Number of true nuclei.
        predicted: Number of predicted nuclei.
        untyped: Number of predicted nuclei of type 0.
        occluded: Predicted outlines of which no pixel is seen: outside the image or under later ones. They count
            nowhere.
        occluded_true: True outlines likewise.
        typed: Whether the file of the prediction states types; None if it has no nuclei.
        scores: All scores by name; nan where the image says nothing.
        metrics: The metrics that saw this image alone; see :func:`pooled_scores`.
        true_typed: Whether the file of the truth states types; None if it has no nuclei.
        notes: What was not used of the files, each with its file.
    """

    name: str
    tissue: str | None
    true: int
    predicted: int
    untyped: int
    occluded: int
    occluded_true: int
    typed: bool | None
    scores: dict[str, float]
    metrics: tuple[Metric, ...]
    true_typed: bool | None = None
    notes: tuple[tuple[str, Note | str], ...] = ()


def score_nuclei(
    pred: NucleiPrediction,
    target: NucleiPrediction,
    settings: ScoreSettings,
    *,
    name: str = "",
    tissue: str | None = None,
    foreground: NDArray[np.bool_] | None = None,
    typed: bool = True,
) -> ImageScores:
    """Score the nuclei of one image.

    Args:
        pred: Nuclei found, all that are in the map.
        target: True nuclei, single pixels too; type -1 is unknown.
        settings: Names of types and thresholds that scores are made with.
        name: Name of the image.
        tissue: Name of its tissue.
        foreground: ``(H, W)`` what Dice and Jaccard compare with the true nuclei; None takes the predicted nuclei.
        typed: Whether the prediction states types; where it does not, no nucleus is left out for having none.

    Raises:
        DataError: If the two do not fit.
    """
    names = settings.class_names
    quality = PanopticQuality(
        class_names=names,
        tissue_names=settings.tissue_names,
        iou_threshold=settings.iou_threshold,
        ignore_background=not settings.ignore_background,
    )
    detection = CentroidDetection(
        class_names=names, radius=settings.radius, ignore_background=settings.ignore_background
    )
    overlap, aji = BinaryOverlap(), AggregatedJaccard()
    quality.update(
        pred.instance_map,
        pred.nuclei.type if typed else None,
        target.instance_map,
        target.nuclei.type,
        tissue=settings.tissue_names.index(tissue) if tissue else -1,
    )
    detection.update_nuclei(pred, target)
    aji.update_nuclei(pred, target)
    mask = pred.instance_map > 0 if foreground is None else foreground
    overlap.update(torch.from_numpy(mask)[None], torch.from_numpy(target.instance_map > 0)[None])
    metrics = (quality, detection, overlap, aji)
    # a metric remembers what it computed, but these are to be added up
    scores = _computed([metric.clone() for metric in metrics])
    untyped = int(np.count_nonzero(pred.nuclei.type == 0))
    return ImageScores(name, tissue, len(target.nuclei), len(pred.nuclei), untyped, 0, 0, None, scores, metrics)


def score_pair(pair: Pair, settings: ScoreSettings, *, others_typed: bool = False) -> ImageScores | str:
    """Read and score one image; return what is wrong where it cannot be scored.

    Args:
        pair: The files.
        settings: Names of types and thresholds that scores are made with.
        others_typed: Predictions of other images state types: if this one does not, its nuclei are of type 0.
    """
    try:
        stated = read_nuclei(pair.pred, image=pair.pred_image)
        truth = read_nuclei(pair.truth, image=pair.truth_image)
        found, true = drawn_maps(stated, truth, corners=settings.corners)
        types, true_types = _types(stated, truth, settings)
        pred, target = nuclei_from_labels(found, _or_zero(types, found)), nuclei_from_labels(true, true_types)
        typed = types is not None if len(pred.nuclei) else None
        as_typed = others_typed or typed is not False
        scores = score_nuclei(pred, target, settings, name=pair.name, tissue=pair.tissue, typed=as_typed)
        return replace(
            scores,
            occluded=_occluded(stated, pred),
            occluded_true=_occluded(truth, target),
            typed=typed,
            true_typed=truth.types is not None if len(target.nuclei) else None,
            notes=tuple((str(side.path), note) for side in (stated, truth) for note in side.notes),
        )
    except CellViTError as error:
        return f"{pair.name}: {error}"


def pooled_scores(images: Sequence[ImageScores]) -> dict[str, float]:
    """Return the scores over images, by name; without types where nuclei are predicted and none states any.

    The metrics keep sums, so those of the images are added up; see :class:`cellvit.metrics.PanopticQuality`,
    :class:`cellvit.metrics.CentroidDetection`, :class:`cellvit.metrics.BinaryOverlap` and
    :class:`cellvit.metrics.AggregatedJaccard` for what is averaged how.

    Args:
        images: At least one; all scored with the same settings.
    """
    totals = [metric.clone() for metric in images[0].metrics]
    for image in images[1:]:
        for total, part in zip(totals, image.metrics, strict=True):
            for state, value in part.metric_state.items():
                setattr(total, state, getattr(total, state) + value)
    scores = _computed(totals)
    if any(image.typed for image in images) or all(image.typed is None for image in images):
        return scores
    return {name: value for name, value in scores.items() if name.startswith(BINARY_SCORES)}


def _types(
    stated: LoadedNuclei, truth: LoadedNuclei, settings: ScoreSettings
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Return predicted types, and true types with -1 for unknown, by label; None where there are none."""
    if not settings.class_names:
        return None, None
    names, numbered = settings.class_names, settings.numbered
    types = translated_types(stated, names, class_map=settings.class_map, numbered=numbered)
    true_types = translated_types(truth, names, numbered=numbered)
    return types, None if true_types is None else np.where(true_types > 0, true_types, -1)


def _occluded(stated: LoadedNuclei, found: NucleiPrediction) -> int:
    return 0 if stated.outlines is None else len(stated.outlines) - len(found.nuclei)


def _or_zero(types: NDArray[np.int64] | None, instances: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.zeros(int(instances.max(initial=0)) + 1, np.int64) if types is None else types


def _computed(metrics: Iterable[Metric]) -> dict[str, float]:
    return {name: float(value) for metric in metrics for name, value in metric.compute().items()}
