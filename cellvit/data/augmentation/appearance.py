"""Transforms of colour and texture that albumentations 2 lacks or computes slowly."""

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import slic

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations as A

# Optical densities of haematoxylin, eosin and a residual in red, green and blue: Ruifrok and Johnston,
# Quantification of histochemical staining by color deconvolution, Anal Quant Cytol Histol 2001.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


class Superpixels(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Replace a share of superpixels by their mean colour.

    As published: superpixels are found on the image reduced to ``max_size``, and the result is enlarged again, so a
    chosen image also becomes softer. The transform of albumentations 2 takes ten times as long for the same.

    Args:
        p_replace: Probability of each superpixel to be replaced.
        segments: About how many superpixels there are.
        max_size: Longer side in pixels that the image is reduced to.
        p: Probability.
    """

    def __init__(self, *, p_replace: float, segments: int, max_size: int, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not 0 <= p_replace <= 1 or segments < 1 or max_size < 1:
            message = f"p_replace={p_replace}, segments={segments}, max_size={max_size}: one is out of range"
            raise ValueError(message)
        self.p_replace, self.segments, self.max_size = p_replace, segments, max_size

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Return the image with some superpixels flattened."""
        height, width = img.shape[:2]
        shrink = min(1.0, self.max_size / max(height, width))
        small_size = (max(1, int(width * shrink)), max(1, int(height * shrink)))
        small = cv2.resize(img, small_size, interpolation=cv2.INTER_LINEAR)
        found = slic(small, n_segments=self.segments, compactness=10, start_label=0)
        labels = found.ravel()
        replaced = self.random_generator.random(labels.max() + 1) < self.p_replace
        if not replaced.any():
            return img
        pixels = small.reshape(-1, 3)
        sums = np.stack([np.bincount(labels, weights=pixels[:, c]) for c in range(3)], axis=1)
        mean = np.rint(sums / np.maximum(np.bincount(labels), 1)[:, None]).astype(np.uint8)
        flat = np.where(replaced[labels, None], mean[labels], pixels).reshape(small.shape)
        return np.asarray(cv2.resize(flat, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


class GaussianNoise(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Add normal noise to each channel of each pixel, its variance drawn anew for each image.

    As published: the variance is uniform. Albumentations 2 draws the standard deviation uniformly, which makes the
    noise weaker on average.

    Args:
        variance_limit: Largest variance, in squared grey levels of 0..255.
        p: Probability.
    """

    def __init__(self, *, variance_limit: float, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not variance_limit >= 0:
            raise ValueError(f"variance_limit={variance_limit} is below 0")
        self.variance_limit = variance_limit

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Return the image with noise, rounded and cut off at 0 and 255."""
        deviation = np.float32(np.sqrt(self.random_generator.uniform(0, self.variance_limit)))
        noisy = img + deviation * self.random_generator.standard_normal(img.shape, dtype=np.float32)
        return np.asarray(noisy.round().clip(0, 255), np.uint8)


class HedJitter(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Multiply and shift the amount of each stain by random numbers.

    Args:
        scale: Factors are drawn from [1 - scale, 1 + scale].
        shift: Shifts of the stain amounts, in optical density, are drawn from [-shift, shift].
        p: Probability.
    """

    def __init__(self, *, scale: float = 0.1, shift: float = 0.02, p: float = 0.5) -> None:
        super().__init__(p=p)
        if not (0 <= scale < 1 and shift >= 0):
            raise ValueError(f"scale={scale} is not in [0, 1) or shift={shift} is below 0")
        self.scale, self.shift = scale, shift

    def get_params(self) -> dict[str, Any]:
        """Draw the colour transformation in optical density: ``matrix`` ``(3, 3)`` and ``offset`` ``(3,)``."""
        factor = self.random_generator.uniform(1 - self.scale, 1 + self.scale, 3)
        offset = self.random_generator.uniform(-self.shift, self.shift, 3)
        stains = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
        return {"matrix": np.linalg.inv(stains) @ np.diag(factor) @ stains, "offset": offset @ stains}

    def apply(
        self, img: NDArray[np.uint8], matrix: NDArray[np.float64], offset: NDArray[np.float64], **params: Any
    ) -> NDArray[np.uint8]:
        """Return the image with changed stains."""
        density = _DENSITY[img].reshape(-1, 3) @ matrix.astype(np.float32) + offset.astype(np.float32)
        light: NDArray[np.uint8] = (256 * np.exp(-density) - 1).clip(0, 255).round().astype(np.uint8)
        return light.reshape(img.shape)


class LowerResolution(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Reduce the image and enlarge it again, both smoothly: a slide of lower magnification, resampled.

    Args:
        scale: Range of the reduction, drawn evenly: 0.5 makes 20x of 40x.
        p: Probability.
    """

    def __init__(self, *, scale: tuple[float, float] = (0.4, 0.9), p: float = 0.5) -> None:
        super().__init__(p=p)
        low, high = scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale={scale!r} is not 0 < low <= high <= 1")
        self.scale = (low, high)

    def get_params(self) -> dict[str, Any]:
        """Draw the reduction."""
        return {"factor": float(self.random_generator.uniform(*self.scale))}

    def apply(self, img: NDArray[np.uint8], factor: float, **params: Any) -> NDArray[np.uint8]:
        """Return the image at the lower resolution, as large as before."""
        height, width = img.shape[:2]
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        small = cv2.resize(img, size, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LANCZOS4), np.uint8)
