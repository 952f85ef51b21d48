"""How haematoxylin and eosin absorb light: vectors of optical density, estimated from the pixels of a slide."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.io.images import Rgb8

Vector = tuple[float, float, float]

_DENSITY = (-np.log10(np.maximum(np.arange(256), 1) / 255)).astype(np.float32)
_MIN_DENSITY = 0.15  # length of the density of a pixel; less is glass
_MAX_DENSITY = 2.0  # more is ink, a fold or dirt: hardly any light is left to tell stains apart
_GREY = np.cos(np.radians(5))  # nearer to grey than that is dirt, pigment or pen
_PERCENT = 1.0  # of the angles at either end are outliers
_MIN_PIXELS = 2_000
_MIN_ANGLE = np.radians(12)  # between the two stains; pixels of one stain only span less
_MAX_TURN = np.radians(25), np.radians(45)  # of either stain from its published vector; eosins differ more


@dataclass(frozen=True)
class Stains:
    """The optical density of each stain in red, green and blue, of length 1.

    Attributes:
        hematoxylin: Vector of haematoxylin.
        eosin: Vector of eosin.
        source: Where they are from.
        doubt: Why they are not those of the slide, for the user; empty if they are.
    """

    hematoxylin: Vector
    eosin: Vector
    source: str
    doubt: str = ""

    @cached_property
    def _unmixing(self) -> NDArray[np.float64]:
        """``(3, 2)``: a density times this is the share of both stains; what is left is normal to both."""
        both = np.array([self.hematoxylin, self.eosin])
        rest = np.cross(*both)
        return np.linalg.inv(np.stack([*both, rest / np.linalg.norm(rest)]))[:, :2]

    def separate(self, image: Rgb8) -> NDArray[np.float32]:
        """Return the optical densities of both stains, as ``skimage.color.separate_stains`` has them but for the unit.

        Args:
            image: ``(H, W, 3)`` uint8 RGB; white is 255.

        Returns:
            ``(2, H, W)``: haematoxylin and eosin, decadic, negative ones as 0. It is six times what scikit-image
            returns with the third vector normal to both, as its unit is a millionth of the light. A value of 0 counts
            as 1, where scikit-image takes a millionth.

        Example:
            >>> RUIFROK.separate(np.full((1, 1, 3), 255, np.uint8)).tolist()
            [[[0.0]], [[0.0]]]
        """
        density = cv2.LUT(image, _DENSITY)
        planes = (cv2.transform(density, row[None]) for row in self._unmixing.T.astype(np.float32))
        return np.stack([np.maximum(plane, 0) for plane in planes])

    def facts(self) -> dict[str, Any]:
        """Return the vectors and where they are from as plain data, for summaries and heads of files."""
        return {"hematoxylin": list(self.hematoxylin), "eosin": list(self.eosin), "source": self.source}


def _unit(vector: NDArray[np.float64]) -> Vector:
    positive = np.clip(vector, 0, None)
    red, green, blue = (round(float(part), 4) for part in positive / np.linalg.norm(positive))
    return red, green, blue


RUIFROK = Stains(
    _unit(np.array([0.65, 0.70, 0.29])),
    _unit(np.array([0.07, 0.99, 0.11])),
    "Ruifrok and Johnston 2001",
)
"""The published vectors: A. C. Ruifrok, D. A. Johnston, Quantification of histochemical staining by color
deconvolution, Anal Quant Cytol Histol 23, 2001."""


def estimate_stains(images: Iterable[Rgb8]) -> Stains:
    """Estimate the vectors of both stains from pixels of a slide.

    The densities of stained pixels lie near a plane; the two stains are the robust extremes of their angle in it
    (percentiles 1 and 99) [1]. Left out are pixels that are nearly white, very dark, or grey. Where there are too few,
    or what is found is no haematoxylin and eosin (one stain only, or more than 25° and 45° from their published
    vectors), those are returned, with the reason as ``doubt``.

    [1] M. Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009,
    doi:10.1109/ISBI.2009.5193250.

    Args:
        images: ``(H, W, 3)`` uint8 RGB, some hundred thousand pixels of tissue are enough; may be none.

    Returns:
        Vectors, rounded to four digits. The same pixels give the same vectors.
    """
    kept = [_stained(image) for image in images]
    density = np.concatenate(kept) if kept else np.zeros((0, 3))
    if len(density) < _MIN_PIXELS:
        return _published(f"there is too little stained tissue ({len(density):,} pixels) to estimate them")
    plane = np.linalg.eigh(density.T @ density)[1][:, :0:-1]
    plane = plane * np.sign(plane.sum(axis=0))
    across = density @ plane
    low, high = np.percentile(np.arctan2(across[:, 1], across[:, 0]), (_PERCENT, 100 - _PERCENT))
    ends = [_unit(plane @ (np.cos(angle), np.sin(angle))) for angle in (low, high)]
    hematoxylin, eosin = sorted(ends, key=lambda vector: -vector[0])  # eosin lets red pass
    found = Stains(hematoxylin, eosin, "estimated from the pixels (Macenko 2009)")
    if high - low < _MIN_ANGLE:
        return _published("the pixels show one stain only")
    turn = _angle(hematoxylin, RUIFROK.hematoxylin), _angle(eosin, RUIFROK.eosin)
    if turn[0] > _MAX_TURN[0] or turn[1] > _MAX_TURN[1]:
        return _published(f"the colours are not those of haematoxylin and eosin ({hematoxylin}, {eosin})")
    return found


def image_stains(image: Rgb8) -> Stains:
    """Estimate the vectors of both stains from an image, of which about a million pixels are looked at.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    return estimate_stains([reduced(image, max(2, round(np.sqrt(image.shape[0] * image.shape[1] / 1e6))))])


def reduced(image: Rgb8, times: int) -> Rgb8:
    """Return an image of means, so many times smaller: the colours of single pixels are mostly noise."""
    height, width = image.shape[:2]
    size = max(1, width // times), max(1, height // times)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _stained(image: Rgb8) -> NDArray[np.float64]:
    """Return the densities ``(P, 3)`` of the pixels that show a stain."""
    density = _DENSITY[image.reshape(-1, 3)].astype(np.float64)
    length = np.linalg.norm(density, axis=1)
    seen = (length > _MIN_DENSITY) & (length < _MAX_DENSITY)
    density, length = density[seen], length[seen]
    coloured: NDArray[np.float64] = density[density.sum(axis=1) < _GREY * np.sqrt(3) * length]
    return coloured


def _published(reason: str) -> Stains:
    doubt = f"the published vectors of haematoxylin and eosin are used for optical densities: {reason}"
    return Stains(RUIFROK.hematoxylin, RUIFROK.eosin, RUIFROK.source, doubt)


def _angle(one: Vector, two: Vector) -> float:
    return float(np.arccos(np.clip(np.dot(one, two), -1, 1)))
