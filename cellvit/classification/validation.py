"""How good a classifier is, on slides whose labels it has not seen: F1 with intervals, calibration, learning curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classification.classifier import TypeClassifier, temperature_of, with_temperature
from cellvit.classification.folds import Split, out_of_fold
from cellvit.evaluation.bootstrap import MIN_IMAGES, image_weights, percentile_interval
from cellvit.evaluation.calibration import Reliability, reliability

RESAMPLES = 1000
SIZES = (5, 10, 25, 50, 100, 200, 400, 800)
"""Labels per type of a learning curve."""

DRAWS = 3


@dataclass(frozen=True)
class TypeScore:
    """How well a type is told, by the most probable type of every label.

    Attributes:
        name: The type.
        labels: Number of its labels.
        precision: Share of right ones among those that were called so; nan if none was.
        recall: Share of its labels that were called so.
        f1: Harmonic mean of the two.
        low: Lower end of the 95 % interval of F1 over slides; nan with fewer than three.
        high: Upper end.
        unsure: Share of its labels of which the classifier is not sure.
    """

    name: str
    labels: int
    precision: float
    recall: float
    f1: float
    low: float
    high: float
    unsure: float


@dataclass(frozen=True)
class CurvePoint:
    """A number of labels, and what they give.

    Attributes:
        labels: Labels per type that were drawn; types that have fewer give all they have.
        mean: Mean of macro F1 over draws.
        low: The lowest draw.
        high: The highest draw.
    """

    labels: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Validation:
    """What held-out labels say.

    Attributes:
        probabilities: ``(N, K)`` of every label when it was held out, calibrated on the other folds.
        codes: ``(N,)`` number of the true type.
        confusion: ``(K, K + 1)``: rows are true types, the last column is unsure.
        types: Scores of each type.
        macro_f1: Mean F1 over types.
        macro_interval: 95 % interval of it over slides.
        stated: How often the most probable type is right, by the probability that the estimator states.
        calibrated: The same by the probability that is calibrated.
        curve: Score against number of labels.
        folds: Number of parts in turn held out.
    """

    probabilities: NDArray[np.float64]
    codes: NDArray[np.int64]
    confusion: NDArray[np.int64]
    types: tuple[TypeScore, ...]
    macro_f1: float
    macro_interval: tuple[float, float]
    stated: Reliability
    calibrated: Reliability
    curve: tuple[CurvePoint, ...]
    folds: int


def validate(
    classifier: TypeClassifier,
    x: NDArray[Any],
    codes: NDArray[np.int64],
    groups: NDArray[Any],
    folds: Sequence[Split],
    *,
    names: Sequence[str],
) -> Validation:
    """Score a classifier on labels it has not seen.

    Args:
        classifier: Fitted; its settings are used.
        x: ``(N, D)`` features.
        codes: ``(N,)`` numbers of the types.
        groups: ``(N,)`` slide or part of one.
        folds: Rows to fit on and rows held out.
        names: Of the types.
    """
    blank = classifier._blank(codes)
    plain = out_of_fold(blank, x, codes, folds)
    held = _calibrated(classifier, blank, x, codes, folds, plain)
    stated = held.argmax(axis=1)  # who is not sure is told beside, and spoils no score
    members, place = np.unique(groups, return_inverse=True)
    kinds = len(names)
    counts = np.zeros((len(members), kinds, kinds + 1), np.int64)
    np.add.at(counts, (place, codes, stated), 1)
    weights = image_weights(["all"] * len(members), resamples=RESAMPLES, seed=classifier.random_state)
    drawn = _f1(np.tensordot(weights, counts, axes=1))
    enough = len(members) >= MIN_IMAGES
    table = counts.sum(axis=0)
    f1 = _f1(table[None])[0]
    confusion = np.zeros_like(table)
    np.add.at(confusion, (codes, classifier.codes_of(held) - 1), 1)
    unknown = (np.nan, np.nan)
    types = []
    for k, name in enumerate(names):
        right, called = int(table[k, k]), int(table[:, k].sum())
        low, high = percentile_interval(drawn[:, k]) if enough else unknown
        number = int(table[k].sum())
        precision, unsure = right / called if called else np.nan, float(confusion[k, -1] / number)
        types.append(TypeScore(name, number, precision, right / number, f1[k], low, high, unsure))
    return Validation(
        probabilities=held,
        codes=codes,
        confusion=confusion,
        types=tuple(types),
        macro_f1=float(np.nanmean(f1)),
        macro_interval=percentile_interval(np.nanmean(drawn, axis=1)) if enough else unknown,
        stated=reliability(plain.max(axis=1), plain.argmax(axis=1) == codes),
        calibrated=reliability(held.max(axis=1), held.argmax(axis=1) == codes),
        curve=learning_curve(blank, x, codes, folds, seed=classifier.random_state),
        folds=len(folds),
    )


def _calibrated(
    classifier: TypeClassifier,
    blank: Any,
    x: NDArray[Any],
    codes: NDArray[np.int64],
    folds: Sequence[Split],
    plain: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return held-out probabilities that were calibrated without the labels they are of."""
    if classifier.calibration == "temperature":
        held = plain.copy()
        for fit, out in folds:
            held[out] = with_temperature(plain[out], temperature_of(plain[fit], codes[fit]))
        return held
    parts = min((int(np.bincount(codes[fit]).min()) for fit, _ in folds), default=0)
    if classifier.calibration is None or parts < 2:
        return plain
    from sklearn.calibration import CalibratedClassifierCV

    sigmoid = CalibratedClassifierCV(blank, method="sigmoid", ensemble=False, cv=min(3, parts))
    return out_of_fold(sigmoid, x, codes, folds)


def _f1(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return F1 of each type from tables ``(R, K, K + 1)``; nan where it is neither there nor called."""
    right = np.diagonal(counts[:, :, :-1], axis1=1, axis2=2)
    both = counts.sum(axis=2) + counts[:, :, :-1].sum(axis=1)
    return np.asarray(2 * right / np.where(both, both, np.nan), np.float64)


def learning_curve(
    estimator: Any, x: NDArray[Any], codes: NDArray[np.int64], folds: Sequence[Split], *, seed: int
) -> tuple[CurvePoint, ...]:
    """Return macro F1 on held-out labels by the number of labels per type that were learnt from.

    Args:
        estimator: Not fitted.
        x: ``(N, D)`` features.
        codes: ``(N,)`` numbers of the types.
        folds: Rows to draw labels from, and rows that are held out.
        seed: Of the draws.

    Returns:
        A point for each of :data:`SIZES` that the labels reach, and one for all of them.
    """
    rng = np.random.default_rng(seed)
    kinds = int(codes.max()) + 1
    most = max(int(np.bincount(codes[fit], minlength=kinds).max()) for fit, _ in folds)
    points = []
    for size in (*(size for size in SIZES if size < most), most):
        scores = []
        for _ in range(1 if size == most else DRAWS):
            drawn = [(_drawn(fit, codes, size, rng), held) for fit, held in folds]
            tested = np.concatenate([held for _, held in drawn])
            stated = out_of_fold(estimator, x, codes, drawn).argmax(axis=1)
            table = np.zeros((1, kinds, kinds + 1), np.int64)
            np.add.at(table[0], (codes[tested], stated[tested]), 1)
            scores.append(float(np.nanmean(_f1(table))))
        points.append(CurvePoint(size, float(np.mean(scores)), min(scores), max(scores)))
    return tuple(points)


def _drawn(rows: NDArray[np.int64], codes: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most so many of the rows of each type, drawn by chance."""
    mixed = rng.permutation(rows)
    mixed = mixed[np.argsort(codes[mixed], kind="stable")]
    number = np.bincount(codes[mixed])
    rank = np.arange(len(mixed)) - np.repeat(number.cumsum() - number, number)
    return mixed[rank < size]
