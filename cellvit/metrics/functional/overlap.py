"""Overlap of binary maps and of whole instance maps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.metrics.functional.instances import Labels, instance_overlaps

BinaryMap = NDArray[np.bool_] | NDArray[np.integer[Any]]


def dice(pred: BinaryMap, target: BinaryMap) -> float:
    """Compute the Dice coefficient of two binary maps, twice the shared area over the sum of both.

    Args:
        pred: Predicted map of any shape; everything but 0 is foreground.
        target: True map of the same shape.

    Returns:
        Value in [0, 1]; nan if both maps are empty.

    Raises:
        DataError: If the shapes differ.

    Example:
        >>> dice(np.array([1, 1, 0]), np.array([0, 1, 0]))  # 2 · 1 / (2 + 1)
        0.6666666666666666
    """
    shared, one, other = _areas(pred, target)
    return 2 * shared / (one + other) if one + other else float("nan")


def jaccard(pred: BinaryMap, target: BinaryMap) -> float:
    """Compute the Jaccard index of two binary maps, intersection over union.

    Args:
        pred: Predicted map of any shape; everything but 0 is foreground.
        target: True map of the same shape.

    Returns:
        Value in [0, 1]; nan if both maps are empty.

    Raises:
        DataError: If the shapes differ.

    Example:
        >>> jaccard(np.array([1, 1, 0]), np.array([0, 1, 0]))
        0.5
    """
    shared, one, other = _areas(pred, target)
    return shared / (one + other - shared) if one + other else float("nan")


def aggregated_jaccard(pred: Labels, target: Labels) -> float:
    """Compute the aggregated Jaccard index of one image [1].

    Every true instance takes the prediction with the largest IoU, even one that another took before; of equals the
    one that shares more pixels, then the lower label. The intersections of these pairs are divided by their unions
    plus the area of all predictions never taken.

    Args:
        pred: Predicted instance map ``(H, W)``, 0 is background; labels may have gaps.
        target: True instance map ``(H, W)``, likewise.

    Returns:
        Value in [0, 1]; nan if both maps are empty.

    Raises:
        DataError: If the maps do not fit.

    Example:
        The true instance 1 meets prediction 1 in one of three pixels; prediction 2 adds its two pixels.

        >>> aggregated_jaccard(np.array([[0, 1, 1, 2, 2]]), np.array([[1, 1, 0, 0, 0]]))
        0.2

    References:
        [1] Kumar et al., A Dataset and a Technique for Generalized Nuclear Segmentation for Computational Pathology,
        IEEE TMI 2017, 10.1109/TMI.2017.2677499
    """
    overlaps = instance_overlaps(pred, target)
    # Sorted by true instance, then by falling IoU, then by falling intersection: the first of each run is the choice.
    order = np.lexsort((-overlaps.intersection, -overlaps.iou, overlaps.target))
    _, first = np.unique(overlaps.target[order], return_index=True)
    chosen = order[first]
    missed = np.delete(overlaps.target_area, overlaps.target[chosen])
    unused = np.delete(overlaps.pred_area, np.unique(overlaps.pred[chosen]))
    union = int(overlaps.union[chosen].sum() + missed.sum() + unused.sum())
    return int(overlaps.intersection[chosen].sum()) / union if union else float("nan")


def _areas(pred: BinaryMap, target: BinaryMap) -> tuple[int, int, int]:
    """Return the shared area, the predicted one and the true one, in pixels."""
    if pred.shape != target.shape:
        raise DataError(f"the predicted map is {pred.shape} and the true map {target.shape}; both need one shape")
    one, other = pred != 0, target != 0
    return int(np.count_nonzero(one & other)), int(np.count_nonzero(one)), int(np.count_nonzero(other))
