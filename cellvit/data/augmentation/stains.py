"""Augmentation of stains: colours of other laboratories, and what compression leaves of an image."""

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations as A

TISSUE_LIGHTNESS = 220
"""Pixels of at most this lightness, 0 to 255, are tissue; the rest is glass."""

LAB_MEAN = ((167.0, 148.0, 115.0), (29.0, 9.0, 6.5))
"""Mean and standard deviation, over H&E images of four public data sets, of the mean L, a and b of their tissue."""

LAB_STD = ((30.0, 6.0, 6.5), (11.0, 2.0, 2.0))
"""The same of the standard deviation of L, a and b over the tissue of an image."""

_MIN_TISSUE = 0.05
_FACTORS = (0.5, 2.0)


class StainMix(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Move the colours of the tissue towards those of an image that nobody has taken.

    Mean and standard deviation of L, a and b over the tissue become a mixture of what they are and of values drawn
    around those of public data sets [1, 2]. An image with hardly any tissue stays as it is.

    Args:
        strength: Largest share of the drawn values in the mixture; the share is uniform in [0, strength].
        spread: Factor on the spread of the drawn values; 1 is that of the data sets.
        p: Probability.

    References:
        [1] Reinhard et al., Color transfer between images, IEEE Computer Graphics and Applications 2001.
        [2] Shen et al., RandStainNA: learning stain-agnostic features from histology slides by bridging stain
        augmentation and normalization, MICCAI 2022.
    """

    def __init__(self, *, strength: float = 1.0, spread: float = 1.0, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not (0 <= strength <= 1 and spread >= 0):
            raise ValueError(f"strength={strength} is not in [0, 1] or spread={spread} is below 0")
        self.strength, self.spread = strength, spread

    def get_params(self) -> dict[str, Any]:
        """Draw ``share``, and ``mean`` and ``std`` ``(3,)`` of L, a and b on the scale 0 to 255."""
        draw = self.random_generator
        mean, std = (
            np.asarray(centre) + self.spread * np.asarray(width) * draw.standard_normal(3)
            for centre, width in (LAB_MEAN, LAB_STD)
        )
        return {"share": float(draw.uniform(0, self.strength)), "mean": mean, "std": np.maximum(std, 1.0)}

    def apply(
        self,
        img: NDArray[np.uint8],
        share: float,
        mean: NDArray[np.float64],
        std: NDArray[np.float64],
        **params: Any,
    ) -> NDArray[np.uint8]:
        """Return the image with other colours; glass moves along with the tissue, cut off at white."""
        lab = cv2.cvtColor(img, cv2.COLOR_RGB2LAB)
        tissue = lab[lab[..., 0] <= TISSUE_LIGHTNESS].astype(np.float32)
        if len(tissue) < _MIN_TISSUE * lab.shape[0] * lab.shape[1]:
            return img
        own_mean, own_std = tissue.mean(0), np.maximum(tissue.std(0), 1.0)
        factor = np.clip((1 - share) + share * std / own_std, *_FACTORS)
        shifted = (1 - share) * own_mean + share * mean
        levels = np.arange(256, dtype=np.float64)[:, None]
        table = ((levels - own_mean) * factor + shifted).round().clip(0, 255).astype(np.uint8)
        moved = cv2.LUT(np.ascontiguousarray(lab), np.ascontiguousarray(table[:, None, :]))
        return np.asarray(cv2.cvtColor(np.asarray(moved, np.uint8), cv2.COLOR_LAB2RGB), np.uint8)


class Jpeg(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Write the image as JPEG and read it again.

    Args:
        quality: Range of the quality, 1 to 100, drawn evenly.
        p: Probability.
    """

    def __init__(self, *, quality: tuple[int, int] = (30, 90), p: float = 0.5) -> None:
        super().__init__(p=p)
        low, high = quality
        if not 1 <= low <= high <= 100:
            raise ValueError(f"quality={quality!r} is not 1 <= low <= high <= 100")
        self.quality = (int(low), int(high))

    def get_params(self) -> dict[str, Any]:
        """Draw the quality."""
        return {"quality": int(self.random_generator.integers(self.quality[0], self.quality[1] + 1))}

    def apply(self, img: NDArray[np.uint8], quality: int, **params: Any) -> NDArray[np.uint8]:
        """Return what a JPEG of that quality keeps of the image."""
        _, coded = cv2.imencode(".jpg", img[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        return np.ascontiguousarray(np.asarray(decoded, np.uint8)[..., ::-1])
