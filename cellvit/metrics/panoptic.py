"""Panoptic quality over a data set."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cellvit.errors import DataError
from cellvit.metrics._shared import ArrayOrTensor, as_array, fixed_mean, to_fixed, unique_names
from cellvit.metrics.base import METRICS, NucleiMetric
from cellvit.metrics.functional.instances import drop_background
from cellvit.metrics.functional.panoptic import (
    PanopticScore,
    check_iou_threshold,
    panoptic_quality,
    typed_panoptic_quality,
)
from cellvit.plugins.components import Configurable
from cellvit.types import UNKNOWN_TYPE, NucleiPrediction

_QUALITIES = ("PQ", "DQ", "SQ")


@METRICS.register("panoptic-quality")
class PanopticQuality(Configurable, NucleiMetric):
    """Binary and multi-class panoptic quality, averaged over images and over tissues.

    The unit is the image: qualities are computed per image and then averaged.

    * ``bPQ``, ``bDQ``, ``bSQ``: all nuclei together; an image without true nuclei is left out.
    * ``mPQ``, ``mDQ``, ``mSQ``: per image the mean over the types that occur in its truth. ``PQ/<type>``: mean over
      the images where the type occurs. A type that is predicted but does not occur costs nothing in that image. An
      image with true nuclei of unknown type (-1) is left out of all of these, not of bPQ. Only with class names.
    * ``bPQ_tissue_mean``, ``mPQ_tissue_mean``: mean over the tissues of each tissue's mean over its images, and
      ``bPQ/<tissue>``, ``mPQ/<tissue>``. Only with tissue names; images of unknown tissue are left out.

    Predicted nuclei of type 0 found no type at all. The published evaluation of PanNuke leaves them out of every
    quality, that of MoNuSeg, which has no types, counts them. So they are left out of the images whose true types are
    known, and count in the others; ``ignore_background=False`` counts them in all. (They are of no type in mPQ either
    way.) Where predictions come without types none is left out.

    A mean over nothing is nan. States are sums of integers, so neither the batches nor the number of processes
    change a digit of the result.

    Args:
        class_names: Names by type id, background first; empty computes the binary qualities only.
        tissue_names: Names by tissue id; empty computes no tissue means.
        iou_threshold: IoU that a matched pair must exceed.
        ignore_background: Leave predicted nuclei of type 0 out of images whose true types are known, as published.

    Example:
        >>> metric = PanopticQuality(class_names=["background", "epithelial", "dead"])
        >>> nuclei = np.array([[1, 1, 0, 2]])
        >>> metric.update(nuclei, np.array([1, 2]), nuclei, np.array([1, 1]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items() if "PQ" in name}
        {'bPQ': 1.0, 'mPQ': 0.667, 'PQ/epithelial': 0.667, 'PQ/dead': nan}
    """

    is_differentiable = False
    higher_is_better = True

    binary_sum: Tensor
    binary_count: Tensor
    multi_sum: Tensor
    multi_count: Tensor
    type_sum: Tensor
    type_count: Tensor

    def __init__(
        self,
        *,
        class_names: Sequence[str] = (),
        tissue_names: Sequence[str] = (),
        iou_threshold: float = 0.5,
        ignore_background: bool = True,
    ) -> None:
        super().__init__()
        check_iou_threshold(iou_threshold)
        self.class_names = unique_names(class_names, what="class name")
        self.tissue_names = unique_names(tissue_names, what="tissue name")
        self.iou_threshold = iou_threshold
        self.ignore_background = ignore_background
        rows, types = len(self.tissue_names) + 1, max(len(self.class_names) - 1, 0)  # last row: unknown tissue
        for name, size in (("binary", rows), ("multi", rows), ("type", types)):
            self.add_state(f"{name}_sum", torch.zeros(size, len(_QUALITIES), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{name}_count", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        pred_instances: ArrayOrTensor,
        pred_types: ArrayOrTensor | None,
        target_instances: ArrayOrTensor,
        target_types: ArrayOrTensor | None,
        *,
        tissue: int | str | None = None,
    ) -> None:
        """Add one image.

        Args:
            pred_instances: Predicted instance map ``(H, W)``, integer, 0 is background.
            pred_types: Type of predicted label ``i + 1`` at ``i``, 0..C-1 (0: none); None if they have none.
            target_instances: True instance map ``(H, W)``, likewise.
            target_types: Type of true label ``i + 1`` at ``i``, 1..C-1 or -1 if unknown; None if all are unknown.
            tissue: Name or id of the image's tissue; None or -1 if unknown. Not used without tissue names.

        Raises:
            DataError: If the maps do not fit, a label has no type, or a type or a tissue is unknown to the metric.
        """
        row = self._tissue_row(tissue)
        pred, target = as_array(pred_instances), as_array(target_instances)
        if self.ignore_background and pred_types is not None and _known(target_types):
            pred = drop_background(pred, as_array(pred_types))
        types: tuple[PanopticScore, ...] = ()
        if self.class_names and pred_types is not None and target_types is not None:
            binary, types = typed_panoptic_quality(
                pred,
                target,
                pred_types=as_array(pred_types),
                target_types=as_array(target_types),
                num_nuclei_classes=len(self.class_names),
                iou_threshold=self.iou_threshold,
            )
        else:
            binary = panoptic_quality(pred, target, iou_threshold=self.iou_threshold)
        if binary.tp + binary.fn:
            self.binary_sum[row] += to_fixed(_qualities(binary), device=self.device)
            self.binary_count[row] += 1
        occurring = [(kind, _qualities(score)) for kind, score in enumerate(types) if score.tp + score.fn]
        for kind, qualities in occurring:
            self.type_sum[kind] += to_fixed(qualities, device=self.device)
            self.type_count[kind] += 1
        if occurring:
            self.multi_sum[row] += to_fixed(np.mean([q for _, q in occurring], axis=0), device=self.device)
            self.multi_count[row] += 1

    def update_nuclei(self, pred: NucleiPrediction, target: NucleiPrediction, *, tissue: int = -1) -> None:
        """Add one image; see :class:`NucleiMetric`."""
        self.update(pred.instance_map, pred.nuclei.type, target.instance_map, target.nuclei.type, tissue=tissue)

    def compute(self) -> dict[str, Tensor]:
        """Return all means by name, scalars in [0, 1) or nan; see the class."""
        result = _image_means("b", self.binary_sum, self.binary_count)
        if self.class_names:
            result |= _image_means("m", self.multi_sum, self.multi_count)
            per_type = fixed_mean(self.type_sum[:, 0], self.type_count)
            result |= {f"PQ/{name}": float(value) for name, value in zip(self.class_names[1:], per_type, strict=True)}
        if self.tissue_names:
            result |= self._tissue_means("bPQ", self.binary_sum, self.binary_count)
            if self.class_names:
                result |= self._tissue_means("mPQ", self.multi_sum, self.multi_count)
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in result.items()}

    def _tissue_means(self, quality: str, total: Tensor, count: Tensor) -> dict[str, float]:
        means = fixed_mean(total[:-1, 0], count[:-1])
        seen = means[~np.isnan(means)]
        named = {f"{quality}/{name}": float(value) for name, value in zip(self.tissue_names, means, strict=True)}
        return {f"{quality}_tissue_mean": float(seen.mean()) if len(seen) else np.nan, **named}

    def _tissue_row(self, tissue: int | str | None) -> int:
        if not self.tissue_names or tissue is None or tissue == -1:
            return len(self.tissue_names)
        if isinstance(tissue, str) and tissue in self.tissue_names:
            return self.tissue_names.index(tissue)
        if not isinstance(tissue, str) and 0 <= tissue < len(self.tissue_names):
            return int(tissue)
        raise DataError(f"tissue {tissue!r} is not one of {list(self.tissue_names)}; pass a name, its index or None")


def _known(types: ArrayOrTensor | None) -> bool:
    return types is not None and bool((as_array(types) != UNKNOWN_TYPE).all())


def _qualities(score: PanopticScore) -> tuple[float, float, float]:
    return score.pq, score.dq, score.sq


def _image_means(prefix: str, total: Tensor, count: Tensor) -> dict[str, float]:
    means = fixed_mean(total.sum(0), count.sum().unsqueeze(0))
    return {prefix + quality: float(mean) for quality, mean in zip(_QUALITIES, means, strict=True)}
