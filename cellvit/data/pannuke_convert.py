"""Turn one fold of PanNuke into compact patches, block by block, and say what it holds and what is wrong with it."""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.data.pannuke_folds import SourceFold, listed, patch_name
from cellvit.data.pannuke_names import SourceNames
from cellvit.data.pannuke_patches import (
    MAX_NUCLEI,
    PatchFaults,
    checked_ids,
    checked_images,
    merge_channels,
    rescale,
    unlabelled,
)

REPEATED_IDS, EMPTY_MASKS, SHARED_IMAGES = "repeated-ids", "empty-masks", "shared-images"
ACCEPTABLE = {
    REPEATED_IDS: "has an id in more than one type channel; each channel's part counts as a nucleus of its own",
    EMPTY_MASKS: "is zero in all channels, background too, so nobody labelled it; it counts as without nuclei",
    SHARED_IMAGES: "has the same image as a patch of another fold",
}
"""Faults that a user can accept, and what they say of a patch."""


@dataclass
class FoldSummary:
    """What one prepared fold holds.

    Attributes:
        number: Number of the fold.
        patches: Number of patches.
        nuclei: Number of nuclei by name of their type.
        tissues: Number of patches by name of their tissue.
        without_nuclei: Patches without a nucleus.
        hidden: Nuclei that lie wholly under nuclei of later channels.
        vanished: Nuclei that fall between the pixels of a coarser resolution.
        repeated_images: Patches with the image of an earlier patch of the fold.
        accepted: Number of patches by the fault that was accepted.
    """

    number: int
    patches: int
    nuclei: dict[str, int]
    tissues: dict[str, int]
    without_nuclei: int = 0
    hidden: int = 0
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
                lines.append(f"{masks}: {listed(where)}: {ACCEPTABLE[name]} (--accept {name} allows it)")
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
        self.summary.hidden += merged.labelled - found
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
