"""Texture of the haematoxylin in nuclei: co-occurrence of densities, gradient, and granularity of the chromatin."""

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.measurement.base import MEASUREMENTS, Columns, Measurement
from cellvit.measurement.pixels import Floats, LabelledPixels

LEVELS, STEP = 16, 0.1
"""Number of levels of density, and optical density of each; the last one takes all above."""

GRAIN_UM = 0.5
"""Radius in microns of the disc that clumps of chromatin must hold to count as coarse."""


@MEASUREMENTS.register("texture")
class Texture(Measurement):
    """Texture of the haematoxylin: co-occurrence matrix, gradient, granularity."""

    def __call__(self, pixels: LabelledPixels) -> Columns:
        """Return ``glcm_contrast`` and the others; see the page on measurements."""
        density = np.ascontiguousarray(pixels.stain_density[0])
        found = {f"glcm_{name}": values for name, values in _properties(_co_occurrence(pixels, density)).items()}
        gradient = _gradient(pixels, density)
        mean, sd = pixels.groups.mean_and_sd(gradient)
        found |= {f"gradient_mean_per_{pixels.unit}": mean, f"gradient_sd_per_{pixels.unit}": sd}
        found["chromatin_granularity"] = _granularity(pixels, density)
        return {name: pixels.spread(values) for name, values in found.items()}


def _co_occurrence(pixels: LabelledPixels, density: NDArray[np.float32]) -> Floats:
    """Return how often two levels are neighbours in each nucleus, ``(K, 16, 16)``.

    Pairs of pixels of the same nucleus, side by side or corner to corner, counted both ways.
    """
    width = pixels.labels.shape[1]
    label = np.pad(pixels.labels, 1).reshape(-1)
    levels = np.minimum(density / np.float32(STEP), LEVELS - 1).astype(np.uint8)
    level = np.pad(levels, 1).reshape(-1)
    y, x = np.divmod(pixels.place, width)
    place = (y + 1) * (width + 2) + x + 1
    own, first = label[place], pixels.groups.owner * LEVELS**2 + level[place].astype(np.int64) * LEVELS
    size = len(pixels.rows) * LEVELS**2
    counts = np.zeros(size, np.int64)
    for step in (1, width + 1, width + 2, width + 3):
        same = label[place + step] == own
        counts += np.bincount(first[same] + level[place[same] + step], minlength=size)
    matrix = counts.reshape(-1, LEVELS, LEVELS)
    return (matrix + matrix.transpose(0, 2, 1)).astype(np.float64)


def _properties(counts: Floats) -> dict[str, Floats]:
    """Return properties of co-occurrence matrices, as ``skimage.feature.graycoprops`` has them; NaN without pairs."""
    total = counts.sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (counts / total[:, None, None]).reshape(len(counts), LEVELS**2)
        i, j = (index.reshape(-1).astype(np.float64) for index in np.indices((LEVELS, LEVELS)))
        contrast, homogeneity, mean, square, product = (
            share @ weight for weight in ((i - j) ** 2, 1 / (1 + (i - j) ** 2), i, i**2, i * j)
        )
        variance = square - mean**2  # the same in both directions, as pairs count both ways
        correlation = np.where(variance > 1e-12, (product - mean**2) / variance, 1.0)
        entropy = -np.where(share > 0, share * np.log2(np.where(share > 0, share, 1)), 0).sum(axis=1)
    found = {
        "contrast": contrast,
        "homogeneity": homogeneity,
        "energy": np.sqrt((share**2).sum(axis=1)),
        "correlation": correlation,
        "entropy": entropy,
    }
    return {name: np.where(total > 0, values, np.nan) for name, values in found.items()}


def _gradient(pixels: LabelledPixels, density: NDArray[np.float32]) -> Floats:
    """Return the length of Sobel's gradient at every pixel of a nucleus, per unit of length."""
    square = np.zeros(len(pixels.place))  # not by cv2.magnitude, whose last bit depends on where arrays lie in memory
    for dx, dy, length in ((1, 0, pixels.spacing[0]), (0, 1, pixels.spacing[1])):
        slope = np.asarray(cv2.Sobel(density, cv2.CV_32F, dx, dy, borderType=cv2.BORDER_REFLECT), np.float32)
        square += (slope.reshape(-1)[pixels.place] / (8 * length)) ** 2
    return np.asarray(np.sqrt(square))


def _granularity(pixels: LabelledPixels, density: NDArray[np.float32]) -> Floats:
    """Return the share of the haematoxylin of every nucleus that an opening by a small disc removes."""
    radius = max(1, round(pixels.pixels_of(GRAIN_UM)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    fine = density - cv2.morphologyEx(density, cv2.MORPH_OPEN, disc, borderType=cv2.BORDER_REFLECT)
    whole, removed = (pixels.groups.sum(image.reshape(-1)[pixels.place]) for image in (density, fine))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(whole > 0, removed / whole, np.nan))
