"""The watershed on horizontal and vertical distance maps that turns the maps of one image into nuclei."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, DataError
from cellvit.postprocess.base import POSTPROCESSORS, Postprocessor
from cellvit.postprocess.measure import TypeRule, check_finite, nuclei_from_instances
from cellvit.postprocess.selection import select_instances
from cellvit.postprocess.watershed import marker_watershed
from cellvit.types import (
    EMBEDDING_MAP,
    HV_MAP,
    NUCLEI_BINARY_MAP,
    NUCLEI_TYPE_MAP,
    FloatMap,
    IntMap,
    NucleiPrediction,
)

Mask = NDArray[np.uint8]
Normalisation = Literal["tile", "fixed"]

MIN_COMPONENT_SIZE = 10
"""Foreground components with fewer pixels are dropped, at every magnification."""

EDGE_THRESHOLD = 0.4
"""Pixels whose edge strength reaches this belong to no marker."""

PUBLISHED_THRESHOLD = 0.5
"""Nucleus probability above which a pixel is foreground."""

_OPENING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


class _Scale(NamedTuple):
    sobel_size: int
    min_marker_size: int


SCALES = {40: _Scale(sobel_size=21, min_marker_size=10), 20: _Scale(sobel_size=11, min_marker_size=3)}
"""Sizes of the filter and of the smallest marker in pixels, by magnification."""


@POSTPROCESSORS.register("hv-watershed")
class HVPostprocessor(Postprocessor):
    """Separates touching nuclei where their horizontal and vertical distance maps jump.

    Inside a nucleus the distance maps rise from -1 to 1; at the border to the next one they fall back. A Sobel filter
    finds the falls, what they leave of the foreground are the markers, and a watershed gives every foreground pixel
    to a marker. A foreground component without a marker is no nucleus [1, 2].

    Args:
        magnification: Objective power the maps correspond to, 40 (0.25 µm/px) or 20 (0.5 µm/px). Sets the size of
            the Sobel filter (21 or 11) and of the smallest marker (10 or 3 pixels).
        normalisation: Rule that brings distance maps and filter responses to [0, 1]. ``"tile"`` stretches each
            between its smallest and largest value in the image, as published: a nucleus then depends on the rest of
            the image, and an image with only small nuclei yields none. ``"fixed"`` uses constants (see
            :func:`fixed_edge`), so that a nucleus depends on its surroundings only.

        type_rule: Rule that gives a nucleus its type: ``"majority"`` of its pixels, as published, or their ``"mean"``
            probability; see :func:`cellvit.postprocess.measure.nuclei_from_instances`.
        threshold: Nucleus probability above which a pixel is foreground, in (0, 1); 0.5 is published.
        min_size: Fewest pixels of a nucleus. Published are 10 pixels for a connected foreground and nothing for the
            nuclei it is divided into; 0 leaves it at that.
        min_prob: Smallest mean nucleus probability over the pixels of a nucleus, in [0, 1); 0, as published, keeps all.

    Raises:
        ConfigError: If an argument has another value.

    References:
        [1] Graham et al., HoVer-Net: Simultaneous segmentation and classification of nuclei in multi-tissue histology
        images, Medical Image Analysis 2019, doi:10.1016/j.media.2019.101563.
        [2] Hörst et al., CellViT: Vision Transformers for precise cell segmentation and classification, Medical Image
        Analysis 2024, doi:10.1016/j.media.2024.103143.
    """

    needs: ClassVar[frozenset[str]] = frozenset({NUCLEI_BINARY_MAP, HV_MAP})
    takes_labels: frozenset[str] = frozenset({NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP})

    def __init__(
        self,
        *,
        magnification: Literal[40, 20] = 40,
        normalisation: Normalisation = "tile",
        type_rule: TypeRule = "majority",
        threshold: float = 0.5,
        min_size: int = 0,
        min_prob: float = 0.0,
    ) -> None:
        if not (0 < threshold < 1 and min_size >= 0 and 0 <= min_prob < 1):
            message = f"threshold {threshold}, min_size {min_size} and min_prob {min_prob} cannot work"
            raise ConfigError(f"{message}; give a threshold in (0, 1), pixels from 0 and a probability in [0, 1)")
        if magnification not in SCALES:
            message = (
                f"magnification {magnification!r} has no published settings; use 40 or 20 "
                "and resample the image to 0.25 or 0.5 microns per pixel"
            )
            raise ConfigError(message)
        if normalisation not in ("tile", "fixed"):
            raise ConfigError(f"normalisation {normalisation!r} is unknown; use 'tile' (published) or 'fixed'")
        if type_rule not in get_args(TypeRule):
            raise ConfigError(f"type_rule {type_rule!r} is unknown; use 'majority' (published) or 'mean'")
        self.type_rule = type_rule
        self.threshold, self.min_size, self.min_prob = threshold, min_size, min_prob
        if type_rule == "mean":
            self.takes_labels = frozenset({NUCLEI_BINARY_MAP})
            self.takes_half = frozenset({NUCLEI_TYPE_MAP})
        if self._needs_prob():
            self.takes_labels -= {NUCLEI_BINARY_MAP}
        self.magnification = magnification
        self.normalisation = normalisation

    def __call__(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Find the nuclei of one image.

        Integer labels may stand for probabilities where the argmax was taken on the device, which shrinks the
        transfer to the host several times and gives the same nuclei.

        Args:
            maps: Activated maps without a batch axis:

                * ``nuclei_binary_map``: ``(2, H, W)`` probabilities, channel 1 is nucleus, ties are background; or
                  ``(H, W)`` integers or booleans, 1 is nucleus.
                * ``hv_map``: ``(2, H, W)`` floats, channel 0 horizontal, 1 vertical.
                * ``nuclei_type_map``, optional: ``(C, H, W)`` probabilities, channel 0 is background; or ``(H, W)``
                  integer type ids. Without it every nucleus is type 1, and its ``type_prob`` the mean
                  nucleus probability inside (1 where ``nuclei_binary_map`` holds labels).
                * ``embedding_map``, optional: ``(D, h, w)``, averaged per nucleus.

                Other entries are ignored.

        Returns:
            The instance map and the table; ids follow the reading order of the markers' first pixels.

        Raises:
            DataError: If a map is missing, has the wrong shape or number type, or holds NaN or infinity.
        """
        self.check_maps(maps)
        foreground, prob = _read_binary(np.asarray(maps[NUCLEI_BINARY_MAP]))
        if prob is None and self._needs_prob():
            message = f"{NUCLEI_BINARY_MAP} holds labels, but threshold {self.threshold} and min_prob {self.min_prob}"
            raise DataError(f"{message} need probabilities; give those, (2, H, W)")
        if prob is not None and self.threshold != PUBLISHED_THRESHOLD:
            foreground = (prob > self.threshold).view(np.uint8)
        hv_map = _read_hv(np.asarray(maps[HV_MAP]), foreground.shape)
        instances = self.separate(foreground, hv_map)
        if self.min_size or self.min_prob:
            instances = select_instances(instances, prob, min_size=self.min_size, min_prob=self.min_prob)
        return nuclei_from_instances(
            instances,
            type_map=maps.get(NUCLEI_TYPE_MAP),
            nucleus_prob=prob,
            embedding_map=maps.get(EMBEDDING_MAP),
            type_rule=self.type_rule,
        )

    def _needs_prob(self) -> bool:
        return self.threshold != PUBLISHED_THRESHOLD or self.min_prob > 0

    def separate(self, foreground: Mask, hv_map: FloatMap) -> IntMap:
        """Return the instance map of a foreground.

        Args:
            foreground: ``(H, W)`` uint8 in {0, 1}.
            hv_map: ``(2, H, W)`` float32, finite.

        Returns:
            ``(H, W)`` int32; ids may have gaps where a marker lay in a hole of the foreground.
        """
        scale = SCALES[self.magnification]
        foreground, components = _drop_small(foreground, MIN_COMPONENT_SIZE)
        if not foreground.any():
            return np.zeros(foreground.shape, np.int32)
        edge_of = _tile_edge if self.normalisation == "tile" else fixed_edge
        edge = np.maximum(edge_of(hv_map[0], 0, scale.sobel_size), edge_of(hv_map[1], 1, scale.sobel_size))
        # Every float32 here is a multiple of 2^-24 in [0, 1]: 1 - edge is exact, only the blur needs float64.
        inside = ((1 - edge) * foreground).astype(np.float64)
        energy = -np.asarray(cv2.GaussianBlur(inside, (3, 3), 0), np.float64)
        core = foreground & (edge < EDGE_THRESHOLD)
        core = _opened(_fill_holes(core))
        markers = _drop_small(core, scale.min_marker_size)[1]
        return marker_watershed(energy, markers, components)


def fixed_edge(distance: FloatMap, axis: Literal[0, 1], sobel_size: int) -> FloatMap:
    """Compute the edge strength of a distance map by constants only.

    The map's nominal range [-1, 1] becomes [0, 1]. Let P be the peak response of the Sobel kernel to a unit step, the
    sharpest fall there can be. Responses from -0.8 P (strong fall, edge 1) to 0.5 P (steep rise, edge 0) are mapped
    linearly; what lies beyond is clipped. These are the extremes of ordinary tiles: annotated nuclei give minima of
    -0.9 P to -0.6 P and maxima of 0.4 P to 0.6 P at both magnifications. So the threshold 0.4 keeps its meaning, an
    edge is where the smoothed map does not rise; a flat map has edge 0.385, just below it.

    Args:
        distance: ``(H, W)`` horizontal or vertical distance, float32.
        axis: 0 to differentiate along x, 1 along y.
        sobel_size: Odd side of the kernel.

    Returns:
        ``(H, W)`` float32 in [0, 1].
    """
    unit = (np.clip(distance, -1, 1) + 1) * np.float32(0.5)
    slope, smoothing = cv2.getDerivKernels(1, 0, sobel_size)
    peak = np.abs(slope).sum(dtype=np.float64) / 2 * smoothing.sum(dtype=np.float64)
    low, high = -0.8 * peak, 0.5 * peak
    rise = np.clip((_sobel(unit, axis, sobel_size) - low) / (high - low), 0, 1)
    edge: FloatMap = np.float32(1) - rise.astype(np.float32)
    return edge


def _tile_edge(distance: FloatMap, axis: Literal[0, 1], sobel_size: int) -> FloatMap:
    """Compute the edge strength of a distance map, stretched between the extremes of the tile."""
    return 1 - _min_max(_sobel(_min_max(distance), axis, sobel_size))


def _sobel(values: FloatMap, axis: Literal[0, 1], size: int) -> NDArray[np.float64]:
    """Return ``cv2.Sobel`` in double precision.

    OpenCV pads rows to 64 values. Where that makes a multiple of 4096 bytes, as for 1024 pixels, all rows under the
    kernel compete for the same lines of the cache and the filter takes 1.7 times as long; more columns change that, and
    no value, as they continue the image the way OpenCV does.
    """
    width = values.shape[1]
    if -(-width // 64) % 8 == 0:
        values = cast(FloatMap, cv2.copyMakeBorder(values, 0, 0, 0, 64, cv2.BORDER_REFLECT_101))
    return np.asarray(cv2.Sobel(values, cv2.CV_64F, 1 - axis, axis, ksize=size), np.float64)[:, :width]


def _min_max(values: NDArray[Any]) -> FloatMap:
    """Return values stretched to [0, 1] as float32; all zero where they are constant."""
    stretched = np.empty(values.shape, np.float32)
    return cast(FloatMap, cv2.normalize(values, stretched, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F))


def _opened(mask: Mask) -> Mask:
    return cast(Mask, cv2.morphologyEx(mask, cv2.MORPH_OPEN, _OPENING))


def _drop_small(mask: Mask, min_size: int) -> tuple[Mask, IntMap]:
    """Return a mask without its small 4-connected components, and the labels of those that remain, 1..N."""
    count, found = cv2.connectedComponents(mask, connectivity=4)
    labels = cast(IntMap, found)
    inside = np.flatnonzero(mask.view(np.bool_))  # most pixels are outside, and counting them takes longest
    keep = np.bincount(labels.reshape(-1)[inside], minlength=count) >= min_size
    keep[0] = False
    if not keep[1:].all():
        labels = np.where(keep, keep.cumsum(dtype=np.int32), np.int32(0)).take(labels)
        mask = (labels > 0).view(np.uint8)
    return mask, labels


def _fill_holes(mask: Mask) -> Mask:
    """Return the mask with every background region filled that no 4-connected path joins to the border."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(framed, None, (0, 0), 2, flags=4)
    return np.ascontiguousarray(framed[1:-1, 1:-1] != 2).view(np.uint8)


def _read_binary(binary: NDArray[Any]) -> tuple[Mask, NDArray[Any] | None]:
    """Return the foreground and, where the map has it, the nucleus probability."""
    if 0 in binary.shape:
        raise DataError(f"{NUCLEI_BINARY_MAP} {binary.shape} has no pixels; give an image of at least one pixel")
    if binary.ndim == 2 and binary.dtype.kind in "biu":
        if binary.min() < 0 or binary.max() > 1:
            message = f"{NUCLEI_BINARY_MAP} labels span {binary.min()}..{binary.max()}; use 0 background and 1 nucleus"
            raise DataError(message)
        return np.ascontiguousarray(binary, dtype=np.uint8), None
    if binary.ndim == 3 and len(binary) == 2 and binary.dtype.kind == "f":
        check_finite(NUCLEI_BINARY_MAP, binary)
        return np.greater(binary[1], binary[0], order="C").view(np.uint8), binary[1]
    expected = "float probabilities (2, H, W) or integer labels (H, W), without a batch axis"
    raise DataError(f"{NUCLEI_BINARY_MAP} must be {expected}, not {binary.dtype} {binary.shape}")


def _read_hv(hv_map: NDArray[Any], shape: tuple[int, ...]) -> FloatMap:
    if hv_map.shape != (2, *shape) or hv_map.dtype.kind != "f":
        message = (
            f"{HV_MAP} must be floats {(2, *shape)}, like {NUCLEI_BINARY_MAP} and without a batch axis, "
            f"not {hv_map.dtype} {hv_map.shape}"
        )
        raise DataError(message)
    check_finite(HV_MAP, hv_map)
    return np.ascontiguousarray(hv_map, dtype=np.float32)
