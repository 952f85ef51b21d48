"""Training targets from an instance map: HV maps, type maps, contiguous labels.

Everything works on the list of foreground pixels, so the cost follows the tissue and not the number of nuclei.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from skimage.measure import label as connected_parts

from cellvit.errors import DataError
from cellvit.types import (
    HV_MAP,
    NUCLEI_BINARY_MAP,
    NUCLEI_TYPE_MAP,
    TISSUE_TYPES,
    UNKNOWN_TYPE,
    FloatMap,
    IntMap,
)

_GROW = 2
_THIN = 2


def hv_map_from_instances(instance_map: NDArray[Any]) -> FloatMap:
    """Compute the horizontal and vertical distance of each pixel to its nucleus's centre.

    The published rule [1], with its offset: inside the nucleus's box coordinates count from 1, the centre of mass
    counts from 0 and is rounded half up, so the centre pixel has the raw distance 1 and not 0. Per nucleus and axis
    negative distances are divided by their largest magnitude and positive ones by theirs. The published box is grown
    by 2 px on each side that has room; the growth moves coordinates and centre alike, so all it decides is that a
    nucleus thinner than 2 px is left 0 only where neither side has room, in maps of at most 3 px. Each axis is
    held against its own size (the published code holds columns against the height). A nucleus in several
    parts has one centre.

    [1] Graham et al., HoVer-Net, Medical Image Analysis 2019, DOI 10.1016/j.media.2019.101563.

    Args:
        instance_map: ``(H, W)`` integers, 0 is background; labels may have gaps.

    Returns:
        ``(2, H, W)`` float32 in [-1, 1]; channel 0 horizontal (x), channel 1 vertical (y); 0 outside nuclei.

    Raises:
        DataError: If the map is not two-dimensional, not of integers, or has negative labels.

    Example:
        >>> hv_map_from_instances(np.array([[0, 1, 1, 1, 1, 0]] * 4))[0, 0]  # raw distances -1, 0, 1, 2
        array([ 0. , -1. ,  0. ,  0.5,  1. ,  0. ], dtype=float32)
    """
    _check_map(instance_map)
    hv = np.zeros((2, *instance_map.shape), np.float32)
    pixels = np.flatnonzero(instance_map)
    if not len(pixels):
        return hv
    labels = _dense(instance_map.ravel()[pixels])
    count = np.bincount(labels)
    height, width = instance_map.shape
    rows, cols = np.divmod(pixels, width)
    row_hv, row_box = _axis_distance(rows, labels, count)
    col_hv, col_box = _axis_distance(cols, labels, count)
    thin = _thin(*row_box, height) | _thin(*col_box, width)
    if thin.any():
        row_hv, col_hv = (np.where(thin[labels], np.float32(0), d) for d in (row_hv, col_hv))
    hv[0].ravel()[pixels] = col_hv
    hv[1].ravel()[pixels] = row_hv
    return hv


def _axis_distance(
    position: NDArray[np.int64], labels: NDArray[np.intp], count: NDArray[np.intp]
) -> tuple[FloatMap, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the normalised distance per pixel along one axis, and first and last position per nucleus."""
    first = np.full(len(count), np.iinfo(np.int64).max)
    last = np.full(len(count), -1)
    np.minimum.at(first, labels, position)
    np.maximum.at(last, labels, position)
    total = np.bincount(labels, weights=position).astype(np.int64)
    # floor(total / count + 1/2) in integers: exact, and the same as rounding inside the grown box.
    centre = (2 * total + count) // (2 * count)
    origin = centre - 1
    lowest = np.minimum(first - origin, -1).astype(np.float32)
    highest = np.maximum(last - origin, 1).astype(np.float32)
    distance = (position - origin[labels]).astype(np.float32)
    return distance / np.where(distance < 0, -lowest[labels], highest[labels]), (first, last)


def _thin(first: NDArray[np.int64], last: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Return which nuclei span less than 2 px along an axis and cannot be grown there."""
    no_room = (first < _GROW) & (last + 1 > size - _GROW)
    thin: NDArray[np.bool_] = (last - first + 1 < _THIN) & no_room
    return thin


def _dense(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Return labels of foreground pixels as 0..N-1, in the order of the labels."""
    largest = int(labels.max())
    if largest > 4 * labels.size + 1024:  # too sparse for a table
        return np.unique(labels, return_inverse=True)[1].ravel()
    present = np.zeros(largest + 1, bool)
    present[labels] = True
    table = np.cumsum(present) - 1
    dense: NDArray[np.intp] = table[labels]
    return dense


def relabel(instance_map: NDArray[Any]) -> IntMap:
    """Return the map with labels 1..N without gaps, in the order of the old labels.

    Args:
        instance_map: ``(H, W)`` integers, 0 is background.

    Raises:
        DataError: If the map is not two-dimensional, not of integers, or has negative labels.

    Example:
        >>> relabel(np.array([[0, 7, 7], [3, 0, 9]]))
        array([[0, 2, 2],
               [1, 0, 3]], dtype=int32)
    """
    _check_map(instance_map)
    out = np.zeros(instance_map.shape, np.int32)
    pixels = np.flatnonzero(instance_map)
    if len(pixels):
        out.ravel()[pixels] = _dense(instance_map.ravel()[pixels]) + 1
    return out


def type_map_from_instances(instance_map: NDArray[Any], types: ArrayLike | None) -> IntMap:
    """Return the type of each pixel's nucleus.

    Args:
        instance_map: ``(H, W)`` integers, 0 is background.
        types: ``(N + 1,)`` type ids indexed by label; entry 0 is not read, a negative entry means unknown.
            None: the types of all nuclei are unknown.

    Returns:
        ``(H, W)`` int32; 0 is background, -1 a nucleus of unknown type.

    Raises:
        DataError: If there are labels without an entry in ``types``.

    Example:
        >>> type_map_from_instances(np.array([[0, 1, 2, 2]]), [0, 4, -1])
        array([[ 0,  4, -1, -1]], dtype=int32)
    """
    _check_map(instance_map)
    if types is None:
        return np.where(instance_map > 0, np.int32(UNKNOWN_TYPE), np.int32(0))
    table = np.array(types, np.int32)
    largest = int(instance_map.max(initial=0))
    if table.ndim != 1 or len(table) <= largest:
        message = (
            f"types of shape {table.shape} for labels up to {largest}; give one type per label, ({largest + 1},), "
            "entry 0 for background"
        )
        raise DataError(message)
    table = np.maximum(table, UNKNOWN_TYPE)
    table[0] = 0
    type_map: IntMap = table[instance_map]
    return type_map


def separate_mirrored(instance_map: NDArray[Any], real: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the map with new labels for mirror images that do not touch their original.

    Filling a border by reflection repeats labels. A mirror image that touches its nucleus grows it, as the picture
    shows; one that lies apart is a nucleus of its own.

    Args:
        instance_map: ``(H, W)`` integers, 0 is background.
        real: ``(H, W)``, False where the map was filled by reflection.

    Example:
        >>> separate_mirrored(np.array([[1, 0, 1, 2, 2]]), np.array([[False, False, True, True, False]]))
        array([[3, 0, 1, 2, 2]])
    """
    if real.all():
        return instance_map
    parts = connected_parts(instance_map, background=0, connectivity=2)  # type: ignore[no-untyped-call]
    mirrored = np.bincount(parts.ravel(), weights=real.ravel()) == 0
    mirrored[0] = False
    new = int(instance_map.max(initial=0)) + np.cumsum(mirrored)
    return np.where(mirrored[parts], new[parts], instance_map).astype(instance_map.dtype)


def make_targets(instance_map: NDArray[Any], type_map: NDArray[Any], *, tissue_type: int = -1) -> dict[str, Any]:
    """Return the targets of one image under the keys of :class:`cellvit.types.Batch`, without the batch axis.

    Args:
        instance_map: ``(H, W)`` integers, 0 is background.
        type_map: ``(H, W)`` integers, 0 is background and -1 a nucleus of unknown type.
        tissue_type: Class of the tissue; -1 is unknown.
    """
    labels = relabel(instance_map)
    return {
        "instance_map": torch.from_numpy(labels.astype(np.int64)),
        NUCLEI_BINARY_MAP: torch.from_numpy((labels > 0).astype(np.int64)),
        HV_MAP: torch.from_numpy(hv_map_from_instances(labels)),
        NUCLEI_TYPE_MAP: torch.from_numpy(type_map.astype(np.int64)),
        TISSUE_TYPES: torch.tensor(tissue_type, dtype=torch.int64),
    }


def _check_map(instance_map: NDArray[Any]) -> None:
    if instance_map.ndim != 2 or instance_map.dtype.kind not in "iu":
        message = (
            f"instance map has shape {instance_map.shape} and type {instance_map.dtype}; "
            "give (H, W) integers, 0 for background"
        )
        raise DataError(message)
    if instance_map.dtype.kind == "i" and instance_map.min(initial=0) < 0:
        raise DataError(f"instance map has the label {instance_map.min()}; give labels from 0, 0 for background")
