"""Patches of PanNuke's folds: what may be wrong with them, and how their channels become one map of nuclei."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.data.pannuke_folds import SourceFold, listed
from cellvit.data.records import resample

MAX_NUCLEI = int(np.iinfo(np.uint16).max)
_MAX_ID = 2**31 - 1
_BLOCK_BYTES = 2**25


@dataclass(frozen=True)
class Merged:
    """The nuclei of one patch.

    Attributes:
        instance_map: ``(S, S)`` int32, 0 is background, 1..N without gaps.
        types: ``(N + 1,)`` uint8, type of each nucleus by label; entry 0 is background.
        labelled: Number of nuclei in the channels, those that later channels hide included.
        repeated: Whether an id occurs in more than one channel.
    """

    instance_map: NDArray[np.int32]
    types: NDArray[np.uint8]
    labelled: int
    repeated: bool


@dataclass
class PatchFaults:
    """Indices of the patches of one fold that have a fault, by what it is."""

    images: dict[str, list[int]] = field(default_factory=dict)
    masks: dict[str, list[int]] = field(default_factory=dict)

    def lines(self, images: str, masks: str) -> list[str]:
        """Return a line per file and fault.

        Args:
            images: Name of the file of images.
            masks: Name of the file of masks.
        """
        parts = ((images, self.images), (masks, self.masks))
        return [f"{file}: {listed(where)}: {what}" for file, faults in parts for what, where in faults.items()]


def blocks(fold: SourceFold) -> Iterator[slice]:
    """Yield slices that cover a fold, each as many patches as are read at once."""
    one = fold.images[0].nbytes + fold.masks[0].nbytes
    step = max(1, _BLOCK_BYTES // one)
    for start in range(0, len(fold), step):
        yield slice(start, min(start + step, len(fold)))


def checked_images(block: NDArray[Any], faults: PatchFaults, *, first: int) -> NDArray[np.uint8]:
    """Return images as uint8, halves rounded to even, and note what is wrong with them.

    Args:
        block: ``(B, S, S, 3)`` numbers.
        faults: Is added to.
        first: Index of the block's first patch.
    """
    if block.dtype == np.uint8:
        return np.ascontiguousarray(block)
    finite, low, high = _ranges(block)
    good = finite & (low >= 0) & (high <= 255)
    _note(faults.images, "holds NaN or infinite values", ~finite, first)
    _note(faults.images, "holds values outside 0..255", finite & ~good, first)
    return np.rint(np.where(good[:, None, None, None], block, 0)).astype(np.uint8)


def checked_ids(block: NDArray[Any], faults: PatchFaults, *, first: int) -> NDArray[np.int32]:
    """Return the ids of the type channels and note what is wrong with them.

    Args:
        block: ``(B, S, S, C)`` numbers, the last channel is background and not looked at.
        faults: Is added to.
        first: Index of the block's first patch.

    Returns:
        ``(B, S, S, C - 1)``; 0 in patches with a fault.
    """
    channels = block[..., :-1]
    finite, low, high = _ranges(channels)
    good = finite & (low >= 0) & (high <= _MAX_ID)
    _note(faults.masks, "holds NaN or infinite ids", ~finite, first)
    _note(faults.masks, "holds negative ids", finite & (low < 0), first)
    _note(faults.masks, f"holds ids above {_MAX_ID}", finite & (high > _MAX_ID), first)
    ids: NDArray[np.int32] = np.where(good[:, None, None, None], channels, 0).astype(np.int32)
    fractional = good & (ids != channels).any(axis=(1, 2, 3))
    _note(faults.masks, "holds ids that are no whole numbers", fractional, first)
    ids[fractional] = 0
    return ids


def unlabelled(block: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which patches of ``(B, S, S, C)`` masks are zero in all channels, so that nobody labelled them."""
    empty: NDArray[np.bool_] = ~(block != 0).any(axis=(1, 2, 3))
    return empty


def merge_channels(ids: NDArray[np.int32]) -> Merged:
    """Merge the type channels of one patch into one map of nuclei.

    The published rule: the ids of each channel count as nuclei of their own, a later channel hides an earlier one
    where both have a nucleus, and what is left is numbered from 1 in the order of channel and id.

    Args:
        ids: ``(S, S, C - 1)`` ids of nuclei, 0 is none.

    Example:
        >>> merge_channels(np.array([[[4, 0], [4, 9]], [[0, 0], [2, 0]]], np.int32)).instance_map
        array([[2, 3],
               [0, 1]], dtype=int32)
    """
    present = ids > 0
    covered = present.any(axis=-1)
    last = ids.shape[-1] - 1 - np.argmax(present[..., ::-1], axis=-1)
    top = np.take_along_axis(ids, last[..., None], axis=-1)[..., 0]
    keys = (last[covered].astype(np.int64) << 32) | top[covered]
    kept, ranks = np.unique(keys, return_inverse=True)
    instance_map = np.zeros(covered.shape, np.int32)
    instance_map[covered] = ranks.ravel() + 1
    labelled = np.unique((np.nonzero(present)[-1].astype(np.int64) << 32) | ids[present])
    repeated = len(np.unique(labelled & (2**32 - 1))) < len(labelled)
    types = np.concatenate(([0], (kept >> 32) + 1)).astype(np.uint8)
    return Merged(instance_map, types, len(labelled), repeated)


def rescale(
    image: NDArray[np.uint8], merged: Merged, *, factor: float
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
    """Return image, instance map and types of a patch with ``factor`` times as many pixels per axis.

    The image is averaged over areas, labels are those at the centres of the new pixels; nuclei that fall between them
    vanish and the others are numbered anew.

    Args:
        image: ``(S, S, 3)``.
        merged: Its nuclei.
        factor: Pixels per pixel.
    """
    small, labels = resample(image, merged.instance_map, factor=factor)
    present, ranks = np.unique(labels, return_inverse=True)
    kept = present[present > 0]
    offset = 0 if len(kept) < len(present) else 1
    instance_map = (ranks.reshape(labels.shape) + offset).astype(np.int32)
    return small, instance_map, np.concatenate(([0], merged.types[kept])).astype(np.uint8)


def _ranges(block: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[Any], NDArray[Any]]:
    """Return per patch whether all values are finite, the smallest and the largest."""
    with np.errstate(invalid="ignore"):
        low, high = block.min(axis=(1, 2, 3)), block.max(axis=(1, 2, 3))
    return np.isfinite(low) & np.isfinite(high), low, high


def _note(faults: dict[str, list[int]], what: str, which: NDArray[np.bool_], first: int) -> None:
    if which.any():
        faults.setdefault(what, []).extend((np.flatnonzero(which) + first).tolist())
