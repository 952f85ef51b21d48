"""Which instances of two maps overlap, and by how much: the table that PQ, AJI and IoU are read from."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError

Labels = NDArray[np.integer[Any]]
"""An instance map or a list of labels of any integer type."""


class InstanceOverlaps(NamedTuple):
    """All pairs of instances that share a pixel, and the area of every instance.

    Attributes:
        pred_labels: Labels of the predicted map ``(N,)``, ascending, without background.
        target_labels: Labels of the true map ``(M,)``, likewise.
        pred_area: Pixels per predicted instance ``(N,)``.
        target_area: Pixels per true instance ``(M,)``.
        pred: Row of ``pred_labels`` of every overlapping pair ``(P,)``.
        target: Row of ``target_labels`` of every overlapping pair ``(P,)``.
        intersection: Pixels that the pair shares ``(P,)``, at least 1.
    """

    pred_labels: NDArray[np.int64]
    target_labels: NDArray[np.int64]
    pred_area: NDArray[np.int64]
    target_area: NDArray[np.int64]
    pred: NDArray[np.int64]
    target: NDArray[np.int64]
    intersection: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels that belong to either instance of the pair ``(P,)``."""
        return self.pred_area[self.pred] + self.target_area[self.target] - self.intersection

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of the pair ``(P,)``, in (0, 1]."""
        return self.intersection / self.union


def instance_overlaps(pred: Labels, target: Labels) -> InstanceOverlaps:
    """Find all pairs of instances that share a pixel, in one pass over the pixels.

    Args:
        pred: Predicted instance map ``(H, W)``, 0 is background; labels may have gaps.
        target: True instance map ``(H, W)``, likewise.

    Returns:
        The overlaps, sorted by predicted and then by true label.

    Raises:
        DataError: If the shapes differ, or a map holds anything but integers from 0.

    Example:
        >>> instance_overlaps(np.array([[4, 4, 0, 7]]), np.array([[0, 2, 2, 2]])).intersection
        array([1, 1])
    """
    check_instance_map(pred, what="predicted instance map")
    check_instance_map(target, what="true instance map")
    if pred.shape != target.shape:
        message = f"the predicted map is {pred.shape} and the true map {target.shape}; both must show the same pixels"
        raise DataError(message)
    pred_labels, pred_rows, pred_area = _rows_of(pred)
    target_labels, target_rows, target_area = _rows_of(target)
    both = np.flatnonzero((pred_rows > 0) & (target_rows > 0))
    width = len(target_labels)
    pair = (pred_rows[both] - 1) * width + (target_rows[both] - 1)
    codes, counts = _count(pair, bound=len(pred_labels) * width)
    return InstanceOverlaps(
        pred_labels=pred_labels,
        target_labels=target_labels,
        pred_area=pred_area,
        target_area=target_area,
        pred=codes // max(width, 1),
        target=codes % max(width, 1),
        intersection=counts,
    )


def drop_background(instance_map: Labels, types: Labels) -> Labels:
    """Return an instance map without the instances of type 0; the others keep their labels.

    Args:
        instance_map: ``(H, W)``, 0 is background; labels may have gaps.
        types: Type of label ``i + 1`` at ``i``.

    Returns:
        ``(H, W)``; the given map where no type is 0.

    Raises:
        DataError: If it is no instance map, or a label has no type.

    Example:
        >>> drop_background(np.array([[1, 1, 0, 2]]), np.array([0, 3]))
        array([[0, 0, 0, 2]])
    """
    check_instance_map(instance_map, what="predicted instance map")
    check_types_cover(int(instance_map.max(initial=0)), types, what="predicted")
    if types.all():
        return instance_map
    kept = np.concatenate([[0], np.where(types != 0, np.arange(1, len(types) + 1), 0)])
    return np.asarray(kept[instance_map])


def check_types_cover(top: int, types: Labels, *, what: str) -> None:
    """Raise DataError unless every label up to the highest has a type."""
    if types.ndim != 1 or top > len(types):
        message = f"{what} labels reach up to {top}, but their types have shape {types.shape}; "
        raise DataError(message + "give the type of label i + 1 at index i")


def check_instance_map(labels: Labels, *, what: str) -> None:
    """Raise unless an array is an instance map.

    Args:
        labels: The array.
        what: What it is; named in errors.

    Raises:
        DataError: If it is not ``(H, W)``, not of an integer type, or has a negative label.
    """
    if labels.ndim != 2:
        raise DataError(f"{what} has shape {labels.shape}; pass one image (H, W) at a time")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{what} is of type {labels.dtype}; pass integer labels, 0 for background")
    if labels.size and labels.min() < 0:
        raise DataError(f"{what} holds the label {labels.min()}; labels count from 1, 0 is background")


def _rows_of(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels present, per pixel the 1-based row of its label (0: background), and the areas."""
    flat = labels.ravel().astype(np.int64, copy=False)
    present, counts = _count(flat, bound=int(flat.max(initial=0)) + 1)
    foreground = present > 0
    present, counts = present[foreground], counts[foreground]
    if not len(present) or present[-1] == len(present):
        return present, flat, counts
    if present[-1] > _table_size(flat):
        return present, np.where(flat > 0, np.searchsorted(present, flat) + 1, 0), counts
    lookup = np.zeros(present[-1] + 1, np.int64)
    lookup[present] = np.arange(1, len(present) + 1)
    return present, lookup[flat], counts


def _count(codes: NDArray[np.int64], *, bound: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct codes (all below ``bound``) and how often each occurs."""
    if bound > _table_size(codes):
        return np.unique(codes, return_counts=True)
    counts = np.bincount(codes)
    present = np.flatnonzero(counts)
    return present, counts[present]


def _table_size(codes: NDArray[np.int64]) -> int:
    """Return the largest table that is cheaper to fill than the codes are to sort."""
    return 8 * codes.size + 2**16
