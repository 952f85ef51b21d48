"""The watershed on distance maps in tensor operations only: it stays on the device, and goes into TorchScript."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cellvit.postprocess.base import POSTPROCESSORS
from cellvit.postprocess.hv import (
    EDGE_THRESHOLD,
    MIN_COMPONENT_SIZE,
    PUBLISHED_THRESHOLD,
    SCALES,
    HVPostprocessor,
    Mask,
)
from cellvit.postprocess.measure import check_finite, nuclei_from_instances
from cellvit.postprocess.torch_regions import fill_holes, flooded, label_regions
from cellvit.types import (
    EMBEDDING_MAP,
    HV_MAP,
    INSTANCE_MAP,
    NUCLEI_BINARY_MAP,
    NUCLEI_TYPE_MAP,
    FloatMap,
    IntMap,
    NucleiPrediction,
)


@POSTPROCESSORS.register("hv-torch")
class HVTorchPostprocessor(HVPostprocessor):
    """Does what ``hv-watershed`` does, in tensor operations.

    On a GPU nuclei are separated there, and only their ids and the types leave it; on the CPU it takes longer than
    ``hv-watershed``. Nuclei are the same but for the rounding of float32 and, where two passes of the watershed
    have the same height, the pixels between them. Arguments are those of
    :class:`cellvit.postprocess.hv.HVPostprocessor`.
    """

    @property
    def separation(self) -> "HVSeparation":
        """What separates the nuclei; made anew, as what a post-processor holds is part of its fingerprint."""
        return HVSeparation(self)

    def __call__(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Find the nuclei of one image; see :meth:`cellvit.postprocess.hv.HVPostprocessor.__call__`.

        Args:
            maps: What that takes; or what :meth:`on_device` made of it, with ``instance_map`` ``(1, H, W)`` int32 in
                place of the maps it needs.
        """
        if INSTANCE_MAP not in maps:
            return super().__call__(maps)
        return nuclei_from_instances(
            maps[INSTANCE_MAP][0],
            type_map=maps.get(NUCLEI_TYPE_MAP),
            nucleus_prob=maps[NUCLEI_BINARY_MAP][1] if NUCLEI_BINARY_MAP in maps else None,
            embedding_map=maps.get(EMBEDDING_MAP),
            type_rule=self.type_rule,
        )

    def on_device(self, maps: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the maps with ids of nuclei in place of those they were made of; on the CPU, as they are."""
        ours = self.needs <= set(maps) and maps[HV_MAP].device.type != "cpu"
        return self.with_instances(maps) if ours else maps

    def with_instances(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the maps of a batch with ids of nuclei in place of those they were made of.

        Args:
            maps: Activated maps ``(B, C, H, W)``.

        Raises:
            DataError: If a map holds NaN or infinity.
        """
        for name in self.needs:
            if not bool(maps[name].isfinite().all()):
                check_finite(name, maps[name].cpu().numpy())
        separation, pairs = self.separation, zip(maps[NUCLEI_BINARY_MAP], maps[HV_MAP], strict=True)
        found = torch.stack([separation(binary.float(), hv.float())[None] for binary, hv in pairs])
        left = self.needs if NUCLEI_TYPE_MAP in maps else self.needs - {NUCLEI_BINARY_MAP}
        return {name: value for name, value in maps.items() if name not in left} | {INSTANCE_MAP: found}

    def separate(self, foreground: Mask, hv_map: FloatMap) -> IntMap:
        """Return the instance map of a foreground; see :meth:`cellvit.postprocess.hv.HVPostprocessor.separate`."""
        with torch.inference_mode():
            found = self.separation.separate(torch.from_numpy(foreground).bool(), torch.from_numpy(hv_map))
        instances: IntMap = np.asarray(found.numpy(), np.int32)
        return instances


class HVSeparation(nn.Module):
    """Separates the nuclei of one image; ``torch.jit.script`` takes it, and no size is built in.

    Args:
        settings: The post-processor whose settings it follows.
    """

    def __init__(self, settings: HVPostprocessor) -> None:
        super().__init__()
        scale = SCALES[settings.magnification]
        self.sobel_size, self.min_marker_size = scale.sobel_size, scale.min_marker_size
        self.stretch = settings.normalisation == "tile"
        self.threshold, self.min_size, self.min_prob = settings.threshold, settings.min_size, settings.min_prob
        self.published = settings.threshold == PUBLISHED_THRESHOLD
        self.min_component_size, self.edge_threshold = MIN_COMPONENT_SIZE, EDGE_THRESHOLD
        half = scale.sobel_size // 2
        # the response of the Sobel filter to a unit step, as its coefficients are binomial
        self.peak = float(math.comb(scale.sobel_size - 2, half - 1) << (scale.sobel_size - 1))

    def forward(self, binary: Tensor, hv_map: Tensor) -> Tensor:
        """Return the nuclei of one image.

        Args:
            binary: ``(2, H, W)`` float32 probabilities, channel 1 is nucleus.
            hv_map: ``(2, H, W)`` float32.

        Returns:
            ``(H, W)`` int32, 1..N without gaps; 0 is background.
        """
        foreground = binary[1] > binary[0] if self.published else binary[1] > self.threshold
        found = self.separate(foreground, hv_map)
        area = torch.bincount(found.flatten())
        keep = area >= max(self.min_size, 1)
        if self.min_prob > 0:
            keep &= nucleus_sums(found, binary[1:])[0] >= self.min_prob * area
        keep[0] = False
        number = torch.cumsum(keep, 0, dtype=torch.int32) * keep
        return number.index_select(0, found.flatten()).view(found.shape)

    @torch.jit.export
    def separate(self, foreground: Tensor, hv_map: Tensor) -> Tensor:
        """Return the instance map of a foreground.

        Args:
            foreground: ``(H, W)`` bool.
            hv_map: ``(2, H, W)`` float32, finite.

        Returns:
            ``(H, W)`` int32; ids may have gaps.
        """
        regions = label_regions(foreground, self.min_component_size)
        inside = regions > 0
        if not bool(inside.any()):
            return regions
        down = self.edge(hv_map[1].t()).t()
        edge = torch.maximum(self.edge(hv_map[0]), down)
        energy = -blurred((1 - edge) * inside)
        core = opened(fill_holes(inside & (edge < self.edge_threshold)))
        return flooded(energy, label_regions(core, self.min_marker_size), regions)

    @torch.jit.export
    def edge(self, distance: Tensor) -> Tensor:
        """Return the edge strength along rows; see :func:`cellvit.postprocess.hv.fixed_edge`.

        The Sobel filter is made of sums of neighbours, whose coefficients are binomial too.
        """
        size = self.sobel_size
        unit = stretched(distance) if self.stretch else (distance.clamp(-1, 1) + 1) * 0.5
        values = reflected(unit, size // 2)
        values = values[:, 1:] - values[:, :-1]
        for _ in range(size - 2):
            values = values[:, 1:] + values[:, :-1]
        for _ in range(size - 1):
            values = values[1:] + values[:-1]
        if self.stretch:
            return 1 - stretched(values)
        return 1 - ((values / self.peak + 0.8) / 1.3).clamp(0, 1)


def nucleus_sums(labels: Tensor, planes: Tensor) -> Tensor:
    """Return the sum of probabilities over the pixels of each nucleus.

    They are added as whole multiples of 2^-12, so that the order of additions, which a GPU does not fix, does not
    matter; of up to half a million pixels.

    Args:
        labels: ``(H, W)`` int32, 0 is background.
        planes: ``(C, H, W)`` in [0, 1].

    Returns:
        ``(C, N + 1)`` float32; the first column is of no nucleus.
    """
    at = torch.nonzero(labels.flatten()).flatten()
    label = labels.flatten().index_select(0, at)
    values = (planes.flatten(1).index_select(1, at) * 4096).round().int()
    sums = torch.zeros([planes.shape[0], int(labels.max()) + 1], dtype=torch.int32, device=labels.device)
    return sums.index_add_(1, label, values) / 4096.0


def nucleus_types(labels: Tensor, types: Tensor, by_majority: bool) -> Tensor:
    """Return the type of every nucleus, by the rules of :func:`cellvit.postprocess.measure.nuclei_from_instances`.

    A nucleus all of whose pixels are background gets the type that is second there.

    Args:
        labels: ``(H, W)`` int32, 1..N, 0 is background.
        types: ``(C, H, W)`` probabilities, channel 0 is background.
        by_majority: Count the most probable type of each pixel; else the probabilities are added.

    Returns:
        ``(N,)`` int64, from 1.
    """
    sums = nucleus_sums(labels, types)[1:, 1:]
    if by_majority:
        at = torch.nonzero(labels.flatten()).flatten()
        best = types[0].flatten().index_select(0, at)
        winner = torch.zeros_like(at)
        for index in range(1, types.shape[0]):  # argmax along the slow axis takes many times as long
            value = types[index].flatten().index_select(0, at)
            winner = torch.where(value > best, index, winner)
            best = torch.maximum(best, value)
        size = [sums.shape[1] + 1, types.shape[0]]
        place = labels.flatten().index_select(0, at).long() * size[1] + winner
        counts = torch.bincount(place, minlength=size[0] * size[1]).view(size)[1:, 1:].t()
        sums = torch.where(counts.sum(0) > 0, counts.float(), sums)
    return sums.argmax(0) + 1


def stretched(values: Tensor) -> Tensor:
    """Return values stretched to [0, 1]; all zero where they are constant."""
    low, high = values.min(), values.max()
    return torch.where(high > low, (values - low) / (high - low).clamp(min=1e-30), 0)


def reflected(values: Tensor, margin: int) -> Tensor:
    """Return a map ``(H, W)`` with a margin that mirrors it about the pixels of its border, however small it is."""
    for axis in range(2):
        last = values.shape[axis] - 1
        place = torch.arange(-margin, last + 1 + margin, device=values.device).remainder(max(2 * last, 1))
        values = values.index_select(axis, torch.minimum(place, (2 * last - place).abs()))
    return values


def blurred(values: Tensor) -> Tensor:
    """Return a map filtered with the binomial of 3x3."""
    values = reflected(values, 1)
    values = (values[:, :-2] + values[:, 2:]) * 0.25 + values[:, 1:-1] * 0.5
    return (values[:-2] + values[2:]) * 0.25 + values[1:-1] * 0.5


def opened(mask: Tensor) -> Tensor:
    """Return a mask ``(H, W)`` opened with OpenCV's ellipse of 5x5; what lies outside takes nothing away."""
    return grown(~grown(~mask))


def grown(mask: Tensor) -> Tensor:
    """Return a mask grown by the ellipse, which is three rows of five pixels and one more above and below."""
    height, width = mask.shape[0], mask.shape[1]
    framed = torch.zeros([height + 4, width + 4], dtype=torch.bool, device=mask.device)
    framed[2:-2, 2:-2] = mask
    rows = framed[1:-1]
    line = rows[:, :-4] | rows[:, 1:-3] | rows[:, 2:-2] | rows[:, 3:-1] | rows[:, 4:]
    column = framed[:-4, 2:-2] | framed[4:, 2:-2]
    return line[:-2] | line[1:-1] | line[2:] | column
