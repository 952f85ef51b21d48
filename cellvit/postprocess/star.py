"""From object probability and radial distances to nuclei."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, DataError
from cellvit.geometry.rays import MIN_RAYS
from cellvit.postprocess.base import POSTPROCESSORS, Postprocessor
from cellvit.postprocess.measure import check_finite, nuclei_from_instances
from cellvit.postprocess.nms import Shapes, non_maximum_suppression
from cellvit.types import (
    EMBEDDING_MAP,
    NUCLEI_TYPE_MAP,
    OBJECT_PROBABILITY,
    RADIAL_DISTANCES,
    FloatMap,
    IntMap,
    NucleiPrediction,
)


@POSTPROCESSORS.register("star-nms")
class StarPostprocessor(Postprocessor):
    """Lets every pixel propose a star-convex polygon and keeps the most probable of those that overlap.

    Polygons are drawn the most probable on top; one that nothing is seen of, or only a line, is no nucleus. Contours
    are those of the map, as they are after any postprocessor, not the polygons.

    Args:
        prob_threshold: Pixels whose object probability reaches this propose a polygon. The probability is a
            distance to the rim, so 0.5 leaves the inner quarter of a round nucleus to propose.
        nms_threshold: Two polygons that share more than this part of the smaller one show the same nucleus. Both
            thresholds were chosen on validation images.
        max_distance: Longer rays are cut, in pixels: it bounds the work that a network in disorder can cause. 128 px
            are 32 µm at 0.25 µm/px.

    Raises:
        ConfigError: If an argument has a value that cannot work.

    References:
        Schmidt et al., Cell detection with star-convex polygons, MICCAI 2018, DOI 10.1007/978-3-030-00934-2_30
    """

    needs: ClassVar[frozenset[str]] = frozenset({OBJECT_PROBABILITY, RADIAL_DISTANCES})
    takes_labels: frozenset[str] = frozenset({NUCLEI_TYPE_MAP})

    def __init__(self, *, prob_threshold: float = 0.5, nms_threshold: float = 0.3, max_distance: float = 128.0) -> None:
        if not 0 < prob_threshold <= 1:
            raise ConfigError(f"prob_threshold {prob_threshold} is no probability to reach; use above 0, up to 1")
        if not 0 <= nms_threshold < 1:
            raise ConfigError(f"nms_threshold {nms_threshold} is no share to exceed; use 0 or more, below 1")
        if not 1 <= max_distance < float("inf"):
            raise ConfigError(f"max_distance {max_distance} must be a number of pixels, 1 or more")
        self.prob_threshold = prob_threshold
        self.nms_threshold = nms_threshold
        self.max_distance = max_distance

    def __call__(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Find the nuclei of one image.

        Args:
            maps: Activated maps without a batch axis:

                * ``object_probability``: ``(1, H, W)`` floats in [0, 1].
                * ``radial_distances``: ``(K, H, W)`` floats in pixels; see :mod:`cellvit.geometry.rays`.
                * ``nuclei_type_map``, optional: ``(C, H, W)`` probabilities, channel 0 is background; or ``(H, W)``
                  integer type ids. Without it every nucleus is type 1, and its ``type_prob`` the mean object
                  probability inside.
                * ``embedding_map``, optional: ``(D, h, w)``, averaged per nucleus.

                Other entries are ignored.

        Returns:
            The instance map and the table; ids follow the reading order of the polygons' centres.

        Raises:
            DataError: If a map is missing, has the wrong shape or number type, or holds NaN or infinity.
        """
        self.check_maps(maps)
        prob = _read_prob(np.asarray(maps[OBJECT_PROBABILITY]))
        distances = _read_distances(np.asarray(maps[RADIAL_DISTANCES]), prob.shape)
        return nuclei_from_instances(
            self.separate(prob, distances),
            type_map=maps.get(NUCLEI_TYPE_MAP),
            nucleus_prob=prob,
            embedding_map=maps.get(EMBEDDING_MAP),
        )

    def separate(self, prob: FloatMap, distances: FloatMap) -> IntMap:
        """Return the instance map.

        Args:
            prob: ``(H, W)`` float32.
            distances: ``(K, H, W)`` float32, finite.

        Returns:
            ``(H, W)`` int32; ids have gaps where a polygon lies under others.
        """
        y, x = np.nonzero(prob >= self.prob_threshold)
        rays = np.minimum(distances[:, y, x].T, np.float32(self.max_distance))
        kept, pixels = non_maximum_suppression(Shapes(x, y, rays), prob[y, x], threshold=self.nms_threshold)
        label = np.empty(len(kept), np.int32)
        label[np.argsort(kept)] = np.arange(1, len(kept) + 1)
        return _drawn(pixels[::-1], label[::-1], prob.shape)


def _drawn(pixels: list[tuple[NDArray[np.intp], NDArray[np.intp]]], labels: IntMap, shape: tuple[int, ...]) -> IntMap:
    """Return a map of lists of pixels ``(x, y)``, later ones over earlier ones."""
    instances = np.zeros(shape, np.int32)
    if not pixels:
        return instances
    x, y = (np.concatenate(values) for values in zip(*pixels, strict=True))
    label = np.repeat(labels, [len(values) for values, _ in pixels])
    inside = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    instances[y[inside], x[inside]] = label[inside]  # the last of equal positions counts
    return instances


def _read_prob(prob: NDArray[Any]) -> FloatMap:
    if prob.ndim != 3 or len(prob) != 1 or prob.dtype.kind != "f" or 0 in prob.shape:
        expected = "floats (1, H, W) of at least one pixel, without a batch axis"
        raise DataError(f"{OBJECT_PROBABILITY} must be {expected}, not {prob.dtype} {prob.shape}")
    check_finite(OBJECT_PROBABILITY, prob)
    return np.ascontiguousarray(prob[0], dtype=np.float32)


def _read_distances(distances: NDArray[Any], shape: tuple[int, ...]) -> FloatMap:
    if distances.ndim != 3 or distances.shape[1:] != shape or distances.dtype.kind != "f" or len(distances) < MIN_RAYS:
        message = (
            f"{RADIAL_DISTANCES} must be floats (K, {shape[0]}, {shape[1]}) of at least {MIN_RAYS} rays, like "
            f"{OBJECT_PROBABILITY} and without a batch axis, not {distances.dtype} {distances.shape}"
        )
        raise DataError(message)
    check_finite(RADIAL_DISTANCES, distances)
    return np.ascontiguousarray(distances, dtype=np.float32)
