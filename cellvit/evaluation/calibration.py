"""Whether the probability of a type means what it says, and the temperature that would make it so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from cellvit.errors import DataError
from cellvit.geometry.polygons import ring_offsets
from cellvit.types import NucleiPrediction

PIXELS = 64
"""Pixels of a nucleus that are looked at, at most."""

BINS = 10
FOLDS = 5
TEMPERATURES = (0.25, 4.0)
"""Smallest and largest temperature that is tried."""

_TINY = 1e-12
_LEAST = 1e-30  # what is left of all types where background takes everything in float32: they are then alike


@dataclass(frozen=True)
class TypeSample:
    """Predicted nuclei that were paired with a true one of known type.

    Attributes:
        true: ``(N,)`` true type, 1..C-1.
        stated: ``(N,)`` predicted type, 0..C-1.
        confidence: ``(N,)`` its ``type_prob``.
        image: ``(N,)`` number of the image.
        log_pixels: ``(P, C)`` float32, logarithms of the type probabilities of some of their pixels.
        offsets: ``(N + 1,)`` pixels of nucleus ``i`` are the rows from ``offsets[i]`` to ``offsets[i + 1]``.
    """

    true: NDArray[np.int64]
    stated: NDArray[np.int64]
    confidence: NDArray[np.float64]
    image: NDArray[np.int64]
    log_pixels: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.true)

    @classmethod
    def concatenate(cls, parts: "Sequence[TypeSample]") -> "TypeSample":
        """Return the nuclei of all parts, in order; there is at least one part."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        names = ("true", "stated", "confidence", "image", "log_pixels")
        columns: dict[str, NDArray[Any]] = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
        return cls(**columns, offsets=ring_offsets(lengths))

    def select(self, keep: NDArray[np.bool_]) -> "TypeSample":
        """Return some of the nuclei.

        Args:
            keep: ``(N,)``.
        """
        lengths = np.diff(self.offsets)
        pixels = self.log_pixels[np.repeat(keep, lengths)]
        columns = (self.true[keep], self.stated[keep], self.confidence[keep], self.image[keep])
        return TypeSample(*columns, pixels, ring_offsets(lengths[keep]))


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy of nuclei, in bins of equal width from 0 to 1.

    Attributes:
        confidence: Mean confidence per bin; nan for an empty one.
        accuracy: Share of right types per bin; nan for an empty one.
        count: Nuclei per bin.
        ece: Expected calibration error: mean distance of the two, weighted by the counts.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]
    ece: float


@dataclass(frozen=True)
class Fit:
    """How well mean probabilities tell the type.

    Attributes:
        nll: Mean negative log-likelihood of the true type.
        accuracy: Share of nuclei whose most probable type is the true one.
        reliability: Confidence and accuracy of the most probable type.
    """

    nll: float
    accuracy: float
    reliability: Reliability


@dataclass(frozen=True)
class Calibration:
    """What is known of the probabilities of types.

    Attributes:
        nuclei: Predicted nuclei paired with a true one of known type.
        no_type: Number of those that were given no type; the reliability of ``type_prob`` leaves them out.
        stated: Reliability of ``type_prob`` as the model states it.
        accuracy: Share of right types among those that have one.
        temperature: Temperature of least negative log-likelihood on all images; None if there were too few images.
        folds: Groups of images in turn held out to measure ``after``.
        before: Fit of the mean probabilities as they are.
        after: Fit of the same nuclei at the temperature fitted on the images of the other folds.
        confusion: Number of these nuclei by true type, 1..C-1, and by stated type, 0..C-1, 0 being none.
    """

    nuclei: int
    no_type: int
    stated: Reliability
    accuracy: float
    temperature: float | None
    folds: int
    before: Fit
    after: Fit | None
    confusion: tuple[tuple[int, ...], ...]


def sample_types(
    pred: NucleiPrediction,
    target: NucleiPrediction,
    probabilities: NDArray[np.floating[Any]],
    *,
    radius: float,
    image: int = 0,
    seed: int = 0,
) -> TypeSample:
    """Pair the nuclei of an image by their centroids, and keep types and pixels of those of known type.

    Args:
        pred: Nuclei found.
        target: True nuclei; type -1 is unknown.
        probabilities: ``(C, H, W)`` of the types, channel 0 is background.
        radius: Largest distance of a pair in pixels.
        image: Number of the image, kept with every nucleus.
        seed: Decides which pixels are kept of nuclei with more than :data:`PIXELS`.

    Raises:
        DataError: If the probabilities do not fit the maps.
    """
    if probabilities.shape[1:] != pred.instance_map.shape:
        message = f"type probabilities {probabilities.shape} for a map {pred.instance_map.shape}; "
        raise DataError(message + "both must show the same pixels")
    # here, as they bring torch, which the calibration of a classifier of embeddings does without
    from cellvit.metrics.detection import detectable
    from cellvit.metrics.functional.detection import match_centroids

    true = detectable(target)
    pairs = match_centroids(pred.nuclei.centroid, true.centroid, radius=radius).pairs
    rows, kinds = pairs[:, 0], true.type[pairs[:, 1]].astype(np.int64)
    rows, kinds = rows[kinds > 0], kinds[kinds > 0]
    order = np.full(len(pred.nuclei) + 1, -1)
    order[pred.nuclei.label[rows]] = np.arange(len(rows))
    pixels, lengths = _some_pixels(order[pred.instance_map].ravel(), len(rows), seed=seed)
    chosen = probabilities.reshape(len(probabilities), -1)[:, pixels].T
    return TypeSample(
        true=kinds,
        stated=pred.nuclei.type[rows].astype(np.int64),
        confidence=pred.nuclei.type_prob[rows].astype(np.float64),
        image=np.full(len(rows), image, np.int64),
        log_pixels=np.log(np.maximum(chosen, _TINY)).astype(np.float32),
        offsets=ring_offsets(lengths),
    )


def _some_pixels(owner: NDArray[np.int64], number: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return flat positions of at most so many pixels of every owner, ascending by owner, and how many each has."""
    pixels = np.flatnonzero(owner >= 0)
    mixed = np.random.default_rng(seed).permutation(pixels)
    mixed = mixed[np.argsort(owner[mixed], kind="stable")]
    area = np.bincount(owner[mixed], minlength=number)
    rank = np.arange(len(mixed)) - np.repeat(area.cumsum() - area, area)
    return mixed[rank < PIXELS], np.minimum(area, PIXELS)


def mean_probabilities(sample: TypeSample, temperature: float = 1.0) -> NDArray[np.float64]:
    """Compute the probability of every type at a temperature: mean over the pixels of a nucleus, without background.

    Args:
        sample: The nuclei, each with at least one pixel.
        temperature: Divides the logits; above 1 makes probabilities less certain.

    Returns:
        ``(N, C - 1)``; rows add up to 1.
    """
    if not len(sample):
        return np.zeros((0, sample.log_pixels.shape[1] - 1))
    scaled = sample.log_pixels / np.float32(temperature)
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    total = np.add.reduceat(powers, sample.offsets[:-1], axis=0)[:, 1:].astype(np.float64) + _LEAST
    return np.asarray(total / total.sum(axis=1, keepdims=True))


def negative_log_likelihood(probabilities: NDArray[np.float64], true: NDArray[np.int64]) -> float:
    """Return the mean negative logarithm of the probability of the true type.

    Args:
        probabilities: ``(N, C - 1)``; column ``k`` is type ``k + 1``.
        true: ``(N,)`` 1..C-1.
    """
    return float(-np.log(np.maximum(probabilities[np.arange(len(true)), true - 1], _TINY)).mean())


def fit_temperature(sample: TypeSample) -> float:
    """Return the temperature of least negative log-likelihood [1].

    Args:
        sample: At least one nucleus.

    References:
        [1] Guo et al., On calibration of modern neural networks, ICML 2017.
    """

    def cost(temperature: float) -> float:
        return negative_log_likelihood(mean_probabilities(sample, temperature), sample.true)

    return float(minimize_scalar(cost, bounds=TEMPERATURES, method="bounded", options={"xatol": 1e-3}).x)


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], *, bins: int = BINS) -> Reliability:
    """Compare confidence with accuracy in bins of equal width.

    Args:
        confidence: ``(N,)`` in [0, 1].
        right: ``(N,)`` whether the type is the true one.
        bins: Their number.

    Example:
        >>> found = reliability(np.array([0.9, 0.9, 0.4]), np.array([True, False, False]), bins=2)
        >>> found.count, found.accuracy, round(found.ece, 2)
        ((1, 2), (0.0, 0.5), 0.4)
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = np.stack([np.bincount(place, values, bins) for values in (confidence, right)])
    confidences, accuracies = sums / np.where(count, count, np.nan)
    ece = np.abs(sums[0] - sums[1]).sum() / len(confidence) if len(confidence) else np.nan
    return Reliability(tuple(confidences.tolist()), tuple(accuracies.tolist()), tuple(count.tolist()), float(ece))


def calibrate(sample: TypeSample, *, seed: int = 0) -> Calibration:
    """Measure the calibration of types, and fit a temperature that is judged on images it was not fitted on.

    Args:
        sample: Nuclei of all images, at least one.
        seed: Decides which images are held out together.

    Raises:
        DataError: If there is no nucleus.
    """
    if not len(sample):
        raise DataError("no predicted nucleus meets a true one of known type; give images of a typed data set")
    images, number = np.unique(sample.image, return_inverse=True)
    folds = min(FOLDS, len(images))
    plain = mean_probabilities(sample)
    temperature, after = None, None
    if folds > 1:
        fold = np.random.default_rng(seed).permutation(len(images))[number] % folds
        held_out = np.empty_like(plain)
        for k in range(folds):
            fitted = fit_temperature(sample.select(fold != k))
            held_out[fold == k] = mean_probabilities(sample.select(fold == k), fitted)
        temperature, after = fit_temperature(sample), _fit(held_out, sample.true)
    typed = sample.stated > 0
    right = (sample.stated == sample.true)[typed]
    kinds = sample.log_pixels.shape[1]
    confusion = np.bincount(sample.true * kinds + sample.stated, minlength=kinds**2).reshape(kinds, kinds)
    return Calibration(
        nuclei=len(sample),
        no_type=int(np.count_nonzero(~typed)),
        stated=reliability(sample.confidence[typed], right),
        accuracy=float(right.mean()) if len(right) else float("nan"),
        temperature=temperature,
        folds=folds if folds > 1 else 0,
        before=_fit(plain, sample.true),
        after=after,
        confusion=tuple(map(tuple, confusion[1:].tolist())),
    )


def _fit(probabilities: NDArray[np.float64], true: NDArray[np.int64]) -> Fit:
    right = probabilities.argmax(axis=1) + 1 == true
    found = reliability(probabilities.max(axis=1), right)
    return Fit(negative_log_likelihood(probabilities, true), float(right.mean()), found)
