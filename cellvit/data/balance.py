"""Training patches around rare types of nuclei."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError


class TypeBalance:
    """A share of the patches lies around a nucleus whose type was drawn evenly among all types.

    Image and type are drawn as if every nucleus of the type were as likely; within the image one of the type's pixels
    is, so large nuclei come more often. The pixel lies in the middle half of the patch where the image leaves room.

    Args:
        counts: Nuclei of each type in each image, ``(images, types)``; types that occur nowhere are left out.
        weights: Probability of each image without balance, ``(images,)``; nuclei of images of probability 0 are not
            drawn either.
        share: Share of the patches, in [0, 1].

    Attributes:
        weights: Probability of each image, ``(images,)``.

    Raises:
        ConfigError: If there is a share but no nucleus of known type.
    """

    def __init__(self, counts: NDArray[np.int64], weights: NDArray[np.float64], *, share: float) -> None:
        counts = np.where(weights[:, None] > 0, counts, 0)
        total = counts.sum(0)
        if share and not total.any():
            message = f"type_balance {share} needs nuclei of known type, and the images that are drawn have none"
            raise ConfigError(f"{message}; set it to 0")
        present = total > 0
        # Probability of each image and type when the type is drawn first and then one of its nuclei.
        self._by_type = np.where(present, counts / np.maximum(total, 1), 0.0) / max(int(present.sum()), 1)
        balanced = share * self._by_type.sum(1)
        self.weights: NDArray[np.float64] = (1 - share) * weights + balanced
        self._share = balanced / np.maximum(self.weights, np.finfo(float).tiny)

    def corner(
        self,
        image: int,
        instance_map: NDArray[np.integer],
        types: NDArray[np.int32] | None,
        *,
        size: int,
        rng: np.random.Generator,
    ) -> tuple[int, int]:
        """Draw the top left corner of a patch.

        Args:
            image: Number of the image.
            instance_map: Its nuclei, ``(H, W)``.
            types: Type per label; None if unknown.
            size: Side of the patch in pixels.
            rng: Source of the draw.

        Returns:
            Row and column.
        """
        room = [max(length - size, 0) + 1 for length in instance_map.shape]
        if types is not None and self._share[image] > 0 and rng.random() < self._share[image]:
            by_type = self._by_type[image]
            kind = rng.choice(len(by_type), p=by_type / by_type.sum())
            chosen = types == kind
            chosen[0] = False  # the entry of the background may be anything
            pixels = np.flatnonzero(chosen[instance_map])
            middle = np.unravel_index(pixels[rng.integers(len(pixels))], instance_map.shape)
            top, left = (
                int(np.clip(at - rng.integers(size // 4, size - size // 4), 0, most - 1))
                for at, most in zip(middle, room, strict=True)
            )
            return top, left
        top, left = (int(rng.integers(most)) for most in room)
        return top, left


def count_types(images: Sequence[tuple[NDArray[np.integer], NDArray[np.int32] | None]]) -> NDArray[np.int64]:
    """Return the nuclei of each type in each image, ``(images, types)``; unknown types are not counted.

    Args:
        images: Labels that occur, ``(N,)`` with or without 0, and the type per label or None.
    """
    known = [types[labels[labels > 0]] for labels, types in images if types is not None]
    num_types = 1 + max((int(found.max(initial=0)) for found in known), default=0)
    counts = np.zeros((len(images), num_types), np.int64)
    for row, (labels, types) in zip(counts, images, strict=True):
        if types is not None:
            found = types[labels[labels > 0]]
            row += np.bincount(found[found > 0], minlength=num_types)
    return counts
