"""Whether embeddings know where in its image a nucleus lies, which they should not: a type must not depend on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellvit.types import Nuclei

PLACES = ("x", "y", "border")
"""What is predicted: the place in the image, and the distance to its nearest border, up to :data:`BORDER_PX`."""

BORDER_PX = 128.0
MAX_NUCLEI = 2000
MIN_NUCLEI = 50
_PENALTIES = np.logspace(0, 8, 9)
_FOLDS, _FEWEST_IMAGES = 5, 3
_TINY = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PlaceSample:
    """Embeddings of nuclei of an image, and where they lie.

    Attributes:
        embedding: ``(N, D)``.
        place: ``(N, 3)``: x and y as shares of the image, and the distance to the border in pixels, as :data:`PLACES`.
    """

    embedding: NDArray[np.float32]
    place: NDArray[np.float64]


@dataclass(frozen=True)
class PlaceProbe:
    """What a linear model can tell of the place of a nucleus from its embedding, in images it has not seen.

    Attributes:
        r2: R² by name of :data:`PLACES`; 0 or less means that it knows nothing.
        nuclei: How many nuclei it was measured on.
        images: Of how many images.
    """

    r2: dict[str, float]
    nuclei: int
    images: int


def sample_places(nuclei: Nuclei, shape: tuple[int, int], *, seed: int) -> PlaceSample | None:
    """Return the places of at most :data:`MAX_NUCLEI` nuclei that the border does not cut; None without embeddings.

    Args:
        nuclei: Found in an image, in its pixels.
        shape: ``(H, W)`` of the image.
        seed: Decides the draw.
    """
    size = np.array(shape[::-1], np.float64)
    whole = np.flatnonzero((nuclei.bbox[:, :2] > 0).all(axis=1) & (nuclei.bbox[:, 2:] < size).all(axis=1))
    if nuclei.embedding is None:
        return None
    rows = np.random.default_rng(seed).permutation(whole)[:MAX_NUCLEI]
    centre = nuclei.centroid[rows]
    border = np.minimum(centre, size - centre).min(axis=1, initial=BORDER_PX)
    return PlaceSample(nuclei.embedding[rows], np.column_stack([centre / size, border]))


def probe_places(samples: Sequence[PlaceSample]) -> PlaceProbe | None:
    """Return R² of ridge regressions of the place on the embedding, cross-validated over groups of images.

    The penalty is the one that explains most there, so that no linear model of this kind tells more. What a place has
    in common with the tissue of one image alone does not count: that image is not among those that are learnt from.

    Args:
        samples: One per image.

    Returns:
        None where there are fewer than three images with nuclei, or fewer than :data:`MIN_NUCLEI` of these.
    """
    used = [sample for sample in samples if len(sample.place)]
    image = np.repeat(np.arange(len(used)), [len(sample.place) for sample in used])
    if len(used) < _FEWEST_IMAGES or len(image) < MIN_NUCLEI:
        return None
    place = np.concatenate([sample.place for sample in used])
    known = np.concatenate([sample.embedding for sample in used]).astype(np.float64)
    wrong = np.zeros((len(_PENALTIES), *place.shape))
    for fold in range(min(_FOLDS, len(used))):
        asked = image % _FOLDS == fold
        wrong[:, asked] = _told(known[~asked], place[~asked], known[asked]) - place[asked]
    spread = np.maximum(((place - place.mean(axis=0)) ** 2).sum(axis=0), _TINY)
    r2 = (1 - (wrong**2).sum(axis=1) / spread).max(axis=0)
    return PlaceProbe(dict(zip(PLACES, r2.tolist(), strict=True)), len(place), len(used))


def _told(known: Floats, place: Floats, asked: Floats) -> Floats:
    """Return what ridge regressions of each penalty say of the places asked for, ``(penalties, N, 3)``."""
    centre, scale = known.mean(axis=0), np.maximum(known.std(axis=0), _TINY)
    values, vectors = np.linalg.eigh(((known - centre) / scale).T @ ((known - centre) / scale))
    target = vectors.T @ (((known - centre) / scale).T @ (place - place.mean(axis=0)))
    given = ((asked - centre) / scale) @ vectors
    told: Floats = np.stack([given @ (target / (values[:, None] + p)) for p in _PENALTIES]) + place.mean(axis=0)
    return told
