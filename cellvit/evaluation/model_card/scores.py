"""Scores of a group of images with confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cellvit.evaluation.bootstrap import MIN_IMAGES, image_weights, percentile_interval
from cellvit.evaluation.scoring import ImageScores, pooled_scores
from cellvit.metrics import CentroidDetection, PanopticQuality
from cellvit.metrics._shared import fixed_mean
from cellvit.metrics.functional.detection import TypeCounts, detection_scores, type_detection_scores

Sums = Mapping[str, NDArray[np.int64]]
"""States of the two metrics by name; the first axis counts images or resamples."""

Names = Sequence[str]

SCORES = ("F1_d", "P_d", "R_d", "F1_d_within", "bPQ", "bDQ", "bSQ", "mPQ")
"""Scores of all nuclei, in the order of tables."""

TYPE_SCORES = ("P", "R", "F1", "PQ")
"""Scores per type; their names go on with ``/<type>``."""


@dataclass(frozen=True)
class Estimate:
    """A score and its interval.

    Attributes:
        value: The score; nan where the images say nothing.
        low: Lower end of the 95 % interval; None where it is not stated.
        high: Upper end; None where it is not stated.
    """

    value: float
    low: float | None = None
    high: float | None = None


def image_sums(images: Sequence[ImageScores]) -> dict[str, NDArray[np.int64]]:
    """Return the states of the metrics of every image, ``(images, ...)`` each.

    Args:
        images: At least one; all scored with the same settings.
    """
    rows = [_states(image) for image in images]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def resampled_sums(sums: Sums, weights: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the states of every resample, ``(resamples, ...)`` each: one product of integers, exact.

    Args:
        sums: States per image, ``(images, ...)`` each, from :func:`image_sums`.
        weights: ``(resamples, images)`` how often each image counts.
    """
    flat = {name: value.reshape(len(value), -1) for name, value in sums.items()}
    total = weights @ np.concatenate(list(flat.values()), axis=1)
    parts = np.split(total, np.cumsum([value.shape[1] for value in flat.values()])[:-1], axis=1)
    return {name: part.reshape(-1, *sums[name].shape[1:]) for name, part in zip(sums, parts, strict=True)}


def scores_of(sums: Sums, class_names: Names) -> dict[str, NDArray[np.float64]]:
    """Compute the scores of every row of sums; what is averaged how is said by the two metrics.

    Args:
        sums: States, ``(R, ...)`` each.
        class_names: Names of the types by id, background first.

    Returns:
        ``(R,)`` per name: :data:`SCORES` and, per type, :data:`TYPE_SCORES`; nan where a row says nothing.
    """
    f1, precision, recall = detection_scores(*np.moveaxis(sums["counts"], 1, 0))
    found = {"F1_d": f1, "P_d": precision, "R_d": recall}
    pairs, points = sums["within_pairs"], (sums["counts"] * [2, 1, 1]).sum(axis=1)
    found["F1_d_within"] = detection_scores(pairs, points - 2 * pairs, 0).f1
    binary, multi = (_means(sums[f"{kind}_sum"].sum(axis=1), sums[f"{kind}_count"]) for kind in ("binary", "multi"))
    found |= {"bPQ": binary[:, 0], "bDQ": binary[:, 1], "bSQ": binary[:, 2], "mPQ": multi[:, 0]}
    typed = type_detection_scores(TypeCounts(*np.moveaxis(sums["type_counts"], 1, 0)))
    quality = _means(sums["type_sum"][..., 0], sums["type_count"])
    for kind, name in enumerate(class_names[1:], start=1):
        found |= {f"P/{name}": typed.precision[:, kind], f"R/{name}": typed.recall[:, kind]}
        found |= {f"F1/{name}": typed.f1[:, kind], f"PQ/{name}": quality[:, kind - 1]}
    return found


def estimate_scores(
    images: Sequence[ImageScores], class_names: Names, *, strata: Sequence[str], resamples: int, seed: int
) -> dict[str, Estimate]:
    """Compute the scores over images as the metrics pool them, with 95 % intervals.

    An interval is stated where at least :data:`~cellvit.evaluation.bootstrap.MIN_IMAGES` images have a say in the
    score: those with true nuclei for qualities, those where the type occurs for the scores of a type.

    Args:
        images: At least one; all scored with the same settings.
        class_names: Names of the types by id, background first.
        strata: Data set of every image; resamples keep their sizes.
        resamples: Number of draws of the images, at least 1.
        seed: Decides the draws.

    Returns:
        Estimate per name of :func:`scores_of`.
    """
    points = pooled_scores(images)
    sums = image_sums(images)
    weights = image_weights(strata, resamples=resamples, seed=seed)
    drawn = scores_of(resampled_sums(sums, weights), class_names)
    support = _support(sums, class_names)
    return {name: _estimate(points[name], values, support[name]) for name, values in drawn.items()}


def _estimate(value: float, resampled: NDArray[np.float64], images: int) -> Estimate:
    if images < MIN_IMAGES or np.isnan(value):
        return Estimate(value)
    return Estimate(value, *percentile_interval(resampled))


def _support(sums: Sums, class_names: Names) -> dict[str, int]:
    """Return the number of images that have a say in each score."""
    detection, binary, multi = (
        int(np.count_nonzero(sums[name].reshape(len(sums[name]), -1).any(axis=1)))
        for name in ("counts", "binary_count", "multi_count")
    )
    found = dict.fromkeys(("F1_d", "P_d", "R_d", "F1_d_within"), detection) | dict.fromkeys(
        ("bPQ", "bDQ", "bSQ"), binary
    )
    occurring = np.count_nonzero(sums["type_count"], axis=0).tolist()
    for name, number in zip(class_names[1:], occurring, strict=True):
        found |= {f"{score}/{name}": number for score in TYPE_SCORES}
    return found | {"mPQ": multi}


def _states(image: ImageScores) -> dict[str, NDArray[np.int64]]:
    kinds = (PanopticQuality, CentroidDetection)
    states = [metric.metric_state for metric in image.metrics if isinstance(metric, kinds)]
    return {name: np.asarray(torch.as_tensor(value)) for state in states for name, value in state.items()}


def _means(total: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return means of fixed-point sums ``(R, K)``; the counts are ``(R, 1)`` or ``(R, K)``."""
    return fixed_mean(torch.from_numpy(total), torch.from_numpy(count))
