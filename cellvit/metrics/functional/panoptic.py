"""Panoptic quality of instance maps."""

from math import fsum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from cellvit.errors import ConfigError, DataError
from cellvit.metrics.functional.instances import InstanceOverlaps, Labels, check_types_cover, instance_overlaps

_EPSILON = 1e-6  # of the published formulas: a perfect match scores a little less than 1


class PanopticScore(NamedTuple):
    """Panoptic quality of one image, ``pq = dq · sq``.

    Attributes:
        dq: Detection quality, ``tp / (tp + fp / 2 + fn / 2 + 1e-6)``.
        sq: Segmentation quality, ``iou / (tp + 1e-6)``.
        pq: Panoptic quality.
        tp: Matched pairs.
        fp: Predicted instances without a match.
        fn: True instances without a match.
        iou: Sum of the IoU of the matched pairs.
    """

    dq: float
    sq: float
    pq: float
    tp: int
    fp: int
    fn: int
    iou: float


class TypedPanopticScore(NamedTuple):
    """Panoptic quality of one image, of all nuclei together and of every type.

    Attributes:
        binary: All nuclei, whatever their type.
        types: Entry ``c`` compares the predicted and the true nuclei of type ``c + 1``; empty where a true
            type is unknown.
    """

    binary: PanopticScore
    types: tuple[PanopticScore, ...]


class InstanceMatch(NamedTuple):
    """Which predicted instance is which true instance.

    Attributes:
        pairs: ``(K, 2)`` labels, predicted and true.
        iou: ``(K,)`` IoU of the pairs.
        unmatched_pred: Labels of the predicted instances without a partner.
        unmatched_target: Labels of the true instances without a partner.
    """

    pairs: NDArray[np.int64]
    iou: NDArray[np.float64]
    unmatched_pred: NDArray[np.int64]
    unmatched_target: NDArray[np.int64]


def label_iou(target: Labels, pred: Labels) -> NDArray[np.float64]:
    """Compute the IoU of every target label with every predicted label.

    Args:
        target: Instance map ``(H, W)``, labels 0..M without gaps, 0 is background.
        pred: Instance map ``(H, W)``, labels 0..N without gaps, 0 is background.

    Returns:
        Matrix ``(M, N)`` in [0, 1]; row ``i`` belongs to target label ``i + 1``.

    Raises:
        DataError: If the shapes differ, a map is not integer, or its labels have gaps.

    Example:
        >>> label_iou(np.array([[1, 1, 0]]), np.array([[0, 1, 1]])).round(3)
        array([[0.333]])
    """
    overlaps = instance_overlaps(pred, target)
    for what, labels in (("true", overlaps.target_labels), ("predicted", overlaps.pred_labels)):
        if len(labels) and labels[-1] != len(labels):
            raise DataError(f"{len(labels)} {what} labels reach up to {labels[-1]}; relabel them to 1..{len(labels)}")
    return _dense_iou(overlaps)


def match_instances(pred: Labels, target: Labels, *, iou_threshold: float = 0.5) -> InstanceMatch:
    """Pair predicted with true instances whose IoU is above a threshold, one to one.

    From a threshold of 0.5 on no instance can have two partners, so the pairs are unique; below, the pairs with the
    largest total IoU are chosen (Hungarian) and those at or below the threshold are dropped after.

    Args:
        pred: Predicted instance map ``(H, W)``, 0 is background; labels may have gaps.
        target: True instance map ``(H, W)``, likewise.
        iou_threshold: A pair's IoU must exceed it, in [0, 1).

    Returns:
        The pairs, ascending by predicted label, and what is left over.

    Raises:
        ConfigError: If the threshold is outside [0, 1).
        DataError: If the maps do not fit.

    Example:
        >>> match = match_instances(np.array([[5, 5, 5, 0]]), np.array([[2, 2, 0, 9]]))
        >>> match.pairs, match.unmatched_target
        (array([[5, 2]]), array([9]))
    """
    check_iou_threshold(iou_threshold)
    overlaps = instance_overlaps(pred, target)
    kept = _match(overlaps, iou_threshold)
    rows, columns = overlaps.pred[kept], overlaps.target[kept]
    return InstanceMatch(
        pairs=np.stack([overlaps.pred_labels[rows], overlaps.target_labels[columns]], axis=1),
        iou=overlaps.iou[kept],
        unmatched_pred=np.delete(overlaps.pred_labels, rows),
        unmatched_target=np.delete(overlaps.target_labels, columns),
    )


def panoptic_quality(pred: Labels, target: Labels, *, iou_threshold: float = 0.5) -> PanopticScore:
    """Compute the panoptic quality of one image [1].

    The unit is the image. Without true instances the three qualities are nan (the image says nothing about them;
    ``fp`` still counts the predictions). With true but no predicted instances they are 0.

    Args:
        pred: Predicted instance map ``(H, W)``, 0 is background; labels may have gaps.
        target: True instance map ``(H, W)``, likewise.
        iou_threshold: A pair's IoU must exceed it; see :func:`match_instances`.

    Returns:
        Qualities in [0, 1) or nan, and the counts behind them.

    Raises:
        ConfigError: If the threshold is outside [0, 1).
        DataError: If the maps do not fit.

    Example:
        One pair with IoU 2/3, one true instance missed: ``dq = 1 / 1.5``.

        >>> score = panoptic_quality(np.array([[5, 5, 5, 0]]), np.array([[2, 2, 0, 9]]))
        >>> round(score.dq, 3), round(score.sq, 3), round(score.pq, 3), score.fn
        (0.667, 0.667, 0.444, 1)

    References:
        [1] Kirillov et al., Panoptic Segmentation, CVPR 2019, 10.1109/CVPR.2019.00963
    """
    check_iou_threshold(iou_threshold)
    return _score(instance_overlaps(pred, target), iou_threshold)


def typed_panoptic_quality(
    pred: Labels,
    target: Labels,
    *,
    pred_types: Labels,
    target_types: Labels,
    num_nuclei_classes: int,
    iou_threshold: float = 0.5,
) -> TypedPanopticScore:
    """Compute the panoptic quality of one image for all nuclei together and for every type.

    A type's score compares the nuclei of that type alone: a nucleus found with the wrong type is a false positive of
    one and a false negative of the other. Each score follows :func:`panoptic_quality`, so a type without true nuclei
    is nan and its predictions cost nothing there. Predicted nuclei of type 0 count among all nuclei only.

    Args:
        pred: Predicted instance map ``(H, W)``.
        target: True instance map ``(H, W)``.
        pred_types: Type of predicted label ``i + 1`` at ``i``, 0..C-1.
        target_types: Type of true label ``i + 1`` at ``i``, 1..C-1, or -1 if unknown: then no type is scored.
        num_nuclei_classes: ``C``, background included.
        iou_threshold: A pair's IoU must exceed it; see :func:`match_instances`.

    Returns:
        The scores; ``types`` has ``C - 1`` entries, or none where a true type is unknown.

    Raises:
        ConfigError: If the threshold is outside [0, 1).
        DataError: If the maps do not fit, a label has no type, or a type is outside the classes.

    Example:
        >>> score = typed_panoptic_quality(np.array([[1, 0, 2]]), np.array([[1, 0, 2]]),
        ...     pred_types=np.array([1, 1]), target_types=np.array([1, 2]), num_nuclei_classes=4)
        >>> [round(type_score.pq, 2) for type_score in score.types]
        [0.67, 0.0, nan]
    """
    check_iou_threshold(iou_threshold)
    overlaps = instance_overlaps(pred, target)
    pred_type = _types_of(overlaps.pred_labels, pred_types, num_nuclei_classes, what="predicted")
    target_type = _types_of(overlaps.target_labels, target_types, num_nuclei_classes, what="true")
    binary = _score(overlaps, iou_threshold)
    if (target_type < 0).any():
        return TypedPanopticScore(binary, ())
    scores = (
        _score(_restrict(overlaps, pred_type == kind, target_type == kind), iou_threshold)
        for kind in range(1, num_nuclei_classes)
    )
    return TypedPanopticScore(binary, tuple(scores))


def check_iou_threshold(iou_threshold: float) -> None:
    """Raise ConfigError unless the threshold is in [0, 1)."""
    if not 0 <= iou_threshold < 1:
        raise ConfigError(f"iou_threshold {iou_threshold} can never or always be exceeded; choose it in [0, 1)")


def _types_of(labels: NDArray[np.int64], types: Labels, num_nuclei_classes: int, *, what: str) -> NDArray[np.int64]:
    """Return the type of every label present, checked."""
    check_types_cover(int(labels[-1]) if len(labels) else 0, types, what=what)
    found = types.astype(np.int64)[labels - 1]
    lowest = 0 if what == "predicted" else -1
    wrong = (found < lowest) | (found >= num_nuclei_classes)
    if wrong.any():
        message = f"{what} nucleus {labels[wrong][0]} is of type {found[wrong][0]}; "
        raise DataError(message + f"there are {num_nuclei_classes} classes, background included")
    return found


def _restrict(
    overlaps: InstanceOverlaps, keep_pred: NDArray[np.bool_], keep_target: NDArray[np.bool_]
) -> InstanceOverlaps:
    """Return the overlaps among some of the instances; the IoU of a pair knows no third instance."""
    kept = keep_pred[overlaps.pred] & keep_target[overlaps.target]
    return InstanceOverlaps(
        pred_labels=overlaps.pred_labels[keep_pred],
        target_labels=overlaps.target_labels[keep_target],
        pred_area=overlaps.pred_area[keep_pred],
        target_area=overlaps.target_area[keep_target],
        pred=(np.cumsum(keep_pred) - 1)[overlaps.pred[kept]],
        target=(np.cumsum(keep_target) - 1)[overlaps.target[kept]],
        intersection=overlaps.intersection[kept],
    )


def _match(overlaps: InstanceOverlaps, iou_threshold: float) -> NDArray[np.int64]:
    """Return which of the overlapping pairs are matches."""
    above = overlaps.iou > iou_threshold
    if iou_threshold < 0.5:
        rows, columns = linear_sum_assignment(_dense_iou(overlaps), maximize=True)
        partner = np.full(len(overlaps.target_labels), -1)
        partner[rows] = columns
        above &= partner[overlaps.target] == overlaps.pred
    return np.flatnonzero(above)


def _dense_iou(overlaps: InstanceOverlaps) -> NDArray[np.float64]:
    """Return the IoU of all pairs as a matrix ``(M, N)``, true rows and predicted columns."""
    matrix = np.zeros((len(overlaps.target_labels), len(overlaps.pred_labels)))
    matrix[overlaps.target, overlaps.pred] = overlaps.iou
    return matrix


def _score(overlaps: InstanceOverlaps, iou_threshold: float) -> PanopticScore:
    matched = _match(overlaps, iou_threshold)
    tp, iou = len(matched), fsum(overlaps.iou[matched])  # exact, so the order of the labels cannot matter
    fp, fn = len(overlaps.pred_labels) - tp, len(overlaps.target_labels) - tp
    if not tp + fn:
        return PanopticScore(np.nan, np.nan, np.nan, tp, fp, fn, iou)
    dq = tp / (tp + 0.5 * fp + 0.5 * fn + _EPSILON)
    sq = iou / (tp + _EPSILON)
    return PanopticScore(dq, sq, dq * sq, tp, fp, fn, iou)
