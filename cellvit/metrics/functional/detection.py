"""Detection of nuclei by their centroids."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

from cellvit.errors import ConfigError, DataError

Points = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]


class CentroidMatch(NamedTuple):
    """Which predicted point is which true point.

    Attributes:
        pairs: ``(K, 2)`` row numbers, predicted and true, ascending by the predicted one.
        unmatched_pred: Rows of the predicted points without a partner.
        unmatched_target: Rows of the true points without a partner.
    """

    pairs: NDArray[np.int64]
    unmatched_pred: NDArray[np.int64]
    unmatched_target: NDArray[np.int64]


class DetectionScore(NamedTuple):
    """F1, precision and recall, arrays of the shape of the counts; nan for 0 / 0."""

    f1: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


class TypeCounts(NamedTuple):
    """Counts per type ``(C,)``; index 0 (no type) is counted like the others and means nothing.

    Attributes:
        tp: Pairs where both sides are of the type.
        fp: Pairs where only the prediction is.
        fn: Pairs where only the truth is.
        fp_d: Predictions of the type without a partner.
        fn_d: True nuclei of the type without a partner.
    """

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    fp_d: NDArray[np.int64]
    fn_d: NDArray[np.int64]


def match_centroids(pred: Points, target: Points, *, radius: float) -> CentroidMatch:
    """Pair predicted with true points one to one.

    First all points of the smaller set are assigned so that the total Euclidean distance is minimal (Hungarian),
    then the pairs farther apart than the radius are dropped. This is the published order; it does not maximise the
    number of pairs within the radius, which :func:`pairs_within` counts.

    Args:
        pred: Predicted points ``(N, 2)``.
        target: True points ``(M, 2)``, same axis order and unit.
        radius: Largest distance of a pair, inclusive, in the unit of the points.

    Returns:
        The pairs and what is left over; no points on one side leave all of the other.

    Raises:
        ConfigError: If the radius is negative or nan.
        DataError: If the points are not ``(N, 2)`` or not finite.

    Example:
        >>> match_centroids(np.array([[0, 0], [9, 9]]), np.array([[50, 50], [0, 1]]), radius=12)
        CentroidMatch(pairs=array([[0, 1]]), unmatched_pred=array([1]), unmatched_target=array([0]))
    """
    distance = _distances(pred, target, radius)
    rows, columns = linear_sum_assignment(distance)
    near = distance[rows, columns] <= radius
    rows, columns = rows[near], columns[near]
    return CentroidMatch(
        pairs=np.stack([rows, columns], axis=1).astype(np.int64),
        unmatched_pred=np.delete(np.arange(distance.shape[0]), rows),
        unmatched_target=np.delete(np.arange(distance.shape[1]), columns),
    )


def pairs_within(pred: Points, target: Points, *, radius: float) -> int:
    """Count the most pairs, one to one, of a predicted and a true point within the radius.

    Points farther apart are never paired, so that one point far from all others cannot pull near ones apart, as it
    can in the published order of :func:`match_centroids`. Never fewer than the pairs of that.

    Args:
        pred: Predicted points ``(N, 2)``.
        target: True points ``(M, 2)``, same axis order and unit.
        radius: Largest distance of a pair, inclusive, in the unit of the points.

    Raises:
        ConfigError: If the radius is negative or nan.
        DataError: If the points are not ``(N, 2)`` or not finite.

    Example:
        >>> pred, target = np.array([[0, 0], [10, 0]]), np.array([[0, 0], [-2, 3]])
        >>> pairs_within(pred, target, radius=12), len(match_centroids(pred, target, radius=12).pairs)
        (2, 1)
    """
    near = csr_array(_distances(pred, target, radius) <= radius)
    return int(np.count_nonzero(maximum_bipartite_matching(near, perm_type="column") >= 0)) if near.nnz else 0


def detection_scores(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> DetectionScore:
    """Compute F1, precision and recall of counts.

    Args:
        tp: Matched pairs, a number or an array.
        fp: Predictions without a partner, likewise.
        fn: True nuclei without a partner, likewise.

    Returns:
        ``2 tp / (2 tp + fp + fn)``, ``tp / (tp + fp)`` and ``tp / (tp + fn)``; nan for 0 / 0.

    Example:
        >>> score = detection_scores(3, 1, 2)
        >>> score.f1.round(3).item(), score.precision.item(), score.recall.item()
        (0.667, 0.75, 0.6)
    """
    hits, wrong, missed = (np.asarray(v, np.float64) for v in (tp, fp, fn))
    return DetectionScore(
        f1=_ratio(2 * hits, 2 * hits + wrong + missed),
        precision=_ratio(hits, hits + wrong),
        recall=_ratio(hits, hits + missed),
    )


def type_counts(
    match: CentroidMatch, *, pred_types: NDArray[Any], target_types: NDArray[Any], num_nuclei_classes: int
) -> TypeCounts:
    """Count, per type, right and wrong types of the pairs and the points without a partner.

    Args:
        match: Pairs of :func:`match_centroids`.
        pred_types: Type of every predicted point ``(N,)``, 0..C-1.
        target_types: Type of every true point ``(M,)``, 0..C-1.
        num_nuclei_classes: ``C``, background included.

    Returns:
        The counts; they add up over images.

    Raises:
        DataError: If there is not one type per point, or a type is outside 0..C-1.

    Example:
        >>> match = match_centroids(np.array([[0, 0]]), np.array([[0, 0], [9, 9]]), radius=1)
        >>> counts = type_counts(match, pred_types=np.array([1]), target_types=np.array([2, 2]), num_nuclei_classes=3)
        >>> counts.fp, counts.fn, counts.fn_d
        (array([0, 1, 0]), array([0, 0, 1]), array([0, 0, 1]))
    """
    rows = len(match.pairs) + len(match.unmatched_pred), len(match.pairs) + len(match.unmatched_target)
    found = _check_types(pred_types, rows[0], num_nuclei_classes, what="predicted")
    truth = _check_types(target_types, rows[1], num_nuclei_classes, what="true")
    pair_found, pair_truth = found[match.pairs[:, 0]], truth[match.pairs[:, 1]]
    same = pair_found == pair_truth

    def count(types: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(types, minlength=num_nuclei_classes)

    return TypeCounts(
        tp=count(pair_found[same]),
        fp=count(pair_found[~same]),
        fn=count(pair_truth[~same]),
        fp_d=count(found[match.unmatched_pred]),
        fn_d=count(truth[match.unmatched_target]),
    )


def type_detection_scores(counts: TypeCounts) -> DetectionScore:
    """Compute F1, precision and recall per type; a wrong type weighs as much as two unmatched points [1].

    Args:
        counts: Sums over a data set of :func:`type_counts`.

    Returns:
        ``2 tp / (2 tp + 2 fp + 2 fn + fp_d + fn_d)``, ``tp / (tp + 2 fp + fp_d)`` and ``tp / (tp + 2 fn + fn_d)``,
        arrays ``(C,)``; nan for a type that neither occurs nor is predicted.

    References:
        [1] Graham et al., HoVer-Net, Medical Image Analysis 2019, 10.1016/j.media.2019.101563
    """
    tp, fp, fn, fp_d, fn_d = (np.asarray(c, np.float64) for c in counts)
    return DetectionScore(
        f1=_ratio(2 * tp, 2 * tp + 2 * fp + 2 * fn + fp_d + fn_d),
        precision=_ratio(tp, tp + 2 * fp + fp_d),
        recall=_ratio(tp, tp + 2 * fn + fn_d),
    )


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _distances(pred: Points, target: Points, radius: float) -> NDArray[np.float64]:
    if not radius >= 0:
        raise ConfigError(f"radius {radius} matches nothing; pass a distance in pixels, 12 at x40")
    distance: NDArray[np.float64] = cdist(_check_points(pred, what="predicted"), _check_points(target, what="true"))
    return distance


def _check_points(points: Points, *, what: str) -> NDArray[np.float64]:
    array = np.asarray(points, np.float64)
    if not array.size:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise DataError(f"the {what} points have shape {array.shape}; pass (N, 2)")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise DataError(f"{what} point {row} is {array[row].tolist()}; every coordinate must be finite")
    return array


def _check_types(types: NDArray[Any], count: int, num_nuclei_classes: int, *, what: str) -> NDArray[np.int64]:
    array = np.asarray(types).astype(np.int64)
    if array.shape != (count,):
        raise DataError(f"{count} {what} points have types of shape {array.shape}; pass one type per point")
    wrong = (array < 0) | (array >= num_nuclei_classes)
    if wrong.any():
        message = f"a {what} point is of type {array[wrong][0]}; "
        raise DataError(message + f"there are {num_nuclei_classes} classes, background included")
    return array
