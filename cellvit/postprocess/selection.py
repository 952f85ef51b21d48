"""Which of the nuclei that a watershed gave are kept."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.types import IntMap


def select_instances(
    instance_map: IntMap, prob: NDArray[Any] | None, *, min_size: int = 0, min_prob: float = 0.0
) -> IntMap:
    """Return a map without instances that are small or doubtful; the ids of the others stay.

    Args:
        instance_map: ``(H, W)``, ids from 1, 0 is background.
        prob: ``(H, W)`` nucleus probability in [0, 1]; None if ``min_prob`` is 0.
        min_size: Fewest pixels of an instance.
        min_prob: Smallest mean probability over its pixels.

    Example:
        >>> labels = np.array([[1, 1, 0, 2, 3, 3]], np.int32)
        >>> prob = np.array([[0.9, 0.7, 0.1, 0.9, 0.6, 0.6]])
        >>> select_instances(labels, prob, min_size=2, min_prob=0.7)
        array([[1, 1, 0, 0, 0, 0]], dtype=int32)
    """
    flat = instance_map.reshape(-1)
    area = np.bincount(flat)
    keep = area >= max(min_size, 1)
    if min_prob > 0:
        assert prob is not None
        total = np.bincount(flat, prob.reshape(-1), len(area))
        keep &= total >= min_prob * area
    keep[0] = False
    if keep[1:].all():
        return instance_map
    kept: IntMap = np.where(keep, np.arange(len(keep), dtype=np.int32), np.int32(0)).take(instance_map)
    return kept
