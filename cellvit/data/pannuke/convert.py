"""One fold of PanNuke made compact, block by block: what it holds, and what is wrong with it.

Single patches come first (checks, the merging of type channels, resampling), the fold as a whole after them
(:class:`FoldConverter`), and images that several folds share last.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.data.pannuke.source import SourceFold, SourceNames, listed, patch_name
from cellvit.io.labels import resample

REPEATED_IDS, EMPTY_MASKS, SHARED_IMAGES = "repeated-ids", "empty-masks", "shared-images"
ACCEPTABLE = {
    REPEATED_IDS: "has an id in more than one type channel; each channel's part counts as a nucleus of its own",
    EMPTY_MASKS: "is zero in all channels, background too, so nobody labelled it; it counts as without nuclei",
    SHARED_IMAGES: "has the same image as a patch of another fold",
}
"""Faults that a user can accept, and what they say of a patch."""

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


@dataclass
class FoldSummary:
    """What one prepared fold holds.

    Attributes:
        number: Number of the fold.
        patches: Number of patches.
        nuclei: Number of nuclei by name of their type.
        tissues: Number of patches by name of their tissue.
        without_nuclei: Patches without a nucleus.
        occluded: Nuclei that lie wholly under nuclei of later channels.
        vanished: Nuclei that fall between the pixels of a coarser resolution.
        repeated_images: Patches with the image of an earlier patch of the fold.
        accepted: Number of patches by the fault that was accepted.
    """

    number: int
    patches: int
    nuclei: dict[str, int]
    tissues: dict[str, int]
    without_nuclei: int = 0
    occluded: int = 0
    vanished: int = 0
    repeated_images: int = 0
    accepted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CompactPatches:
    """A block of patches as they are stored: arrays and one row per patch."""

    images: NDArray[np.uint8]
    instance_maps: NDArray[np.uint16]
    type_maps: NDArray[np.uint8]
    rows: list[dict[str, Any]]


class FoldConverter:
    """Converts the blocks of one fold in order.

    Args:
        fold: The fold.
        names: Names of types.
        size: Side of the patches to make, in pixels.

    Attributes:
        summary: What was seen so far.
        digests: A digest of the pixels of each image seen so far; empty for an image with a fault.
    """

    def __init__(self, fold: SourceFold, *, names: SourceNames, size: int) -> None:
        self.fold, self.names, self.size = fold, names, size
        nuclei = dict.fromkeys(names.class_names[1:], 0)
        self.summary = FoldSummary(fold.files.number, len(fold), nuclei, dict(Counter(fold.tissues)))
        self.digests: list[str] = []
        self._faults = PatchFaults()
        self._doubtful: dict[str, list[int]] = {REPEATED_IDS: [], EMPTY_MASKS: []}
        self._brightest = 0

    def convert(self, block: slice) -> CompactPatches:
        """Return the patches of the next block; those with a fault are replaced by anything of the right shape."""
        images = checked_images(self.fold.read("images", block), self._faults, first=block.start)
        masks = self.fold.read("masks", block)
        ids = checked_ids(masks, self._faults, first=block.start)
        self._doubtful[EMPTY_MASKS] += (np.flatnonzero(unlabelled(masks)) + block.start).tolist()
        self._brightest = max(self._brightest, int(images.max()))
        faulty = {i for where in self._faults.images.values() for i in where}
        marks = [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images]
        self.digests += ["" if block.start + i in faulty else mark for i, mark in enumerate(marks)]
        self.summary.repeated_images = len(self.digests) - len(set(self.digests))
        shape = (len(images), self.size, self.size)
        small = np.empty((*shape, 3), np.uint8)
        instance_maps, type_maps = np.empty(shape, np.uint16), np.empty(shape, np.uint8)
        rows = []
        for i in range(len(images)):
            small[i], labels, types = self._patch(block.start + i, images[i], ids[i])
            instance_maps[i], type_maps[i] = labels.astype(np.uint16), types[labels]
            rows.append(self._row(block.start + i, types))
        return CompactPatches(small, instance_maps, type_maps, rows)

    def problems(self, accept: Collection[str]) -> list[str]:
        """Return what is wrong with the fold, one line per file and fault.

        Args:
            accept: Names of :data:`ACCEPTABLE` faults, which are counted in the summary instead.
        """
        images, masks = self.fold.label("images"), self.fold.label("masks")
        lines = [*self.fold.faults, *self._faults.lines(images, masks)]
        if self._brightest <= 1 and not self._faults.images:
            lines.append(f"{images}: no value is above 1 in any patch; give 0..255, as in np.save(path, 255 * images)")
        for name, where in self._doubtful.items():
            if where and name not in accept:
                lines.append(f"{masks}: {listed(where)}: {ACCEPTABLE[name]} (accept=[{name!r}] allows it)")
        self.summary.accepted = {name: len(where) for name, where in self._doubtful.items() if where}
        return lines

    def _patch(
        self, index: int, image: NDArray[np.uint8], ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
        """Return image, instance map and types by label of one patch, and note what it shows."""
        merged = merge_channels(ids)
        found = len(merged.types) - 1
        if merged.repeated:
            self._doubtful[REPEATED_IDS].append(index)
        if found > MAX_NUCLEI:
            self._faults.masks.setdefault(f"has more than {MAX_NUCLEI} nuclei", []).append(index)
        self.summary.occluded += merged.labelled - found
        if self.size == self.fold.size:
            return image, merged.instance_map, merged.types
        small, labels, types = rescale(image, merged, factor=self.size / self.fold.size)
        self.summary.vanished += found - (len(types) - 1)
        return small, labels, types

    def _row(self, index: int, types: NDArray[np.uint8]) -> dict[str, Any]:
        counts = np.bincount(types[1:], minlength=len(self.names.class_names))[1:].tolist()
        named = dict(zip(self.names.class_names[1:], counts, strict=True))
        for name, count in named.items():
            self.summary.nuclei[name] += count
        self.summary.without_nuclei += len(types) == 1
        where = {"name": patch_name(self.fold.files.number, index), "source": self.fold.sources[index]}
        return {**where, "tissue": self.fold.tissues[index], **named}


class ImageOwners:
    """Remembers which fold has which images."""

    def __init__(self) -> None:
        self._owners: dict[str, tuple[int, int]] = {}

    def add(self, digests: Sequence[str], number: int) -> list[tuple[int, str]]:
        """Add the images of a fold; return index and earlier patch of those that another fold has."""
        shared = []
        for index, digest in enumerate(digests):
            if not digest:
                continue
            fold, patch = self._owners.setdefault(digest, (number, index))
            if fold != number:
                shared.append((index, patch_name(fold, patch)))
        return shared
