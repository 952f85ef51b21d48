"""Overlap of binary maps and of instance maps over a data set."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from cellvit.errors import DataError
from cellvit.metrics._shared import ArrayOrTensor, as_array, fixed_mean, fixed_ratio, to_fixed, valid_items
from cellvit.metrics.base import METRICS, NucleiMetric
from cellvit.metrics.functional.overlap import aggregated_jaccard
from cellvit.plugins.components import Configurable
from cellvit.types import NucleiPrediction


@METRICS.register("binary-overlap")
class BinaryOverlap(Configurable, Metric):
    """Overlap of nuclei with tissue where the instances are not told apart: ``Dice`` and ``Jaccard``.

    The unit is the image: both are computed per image and then averaged. An image that is empty in prediction and
    truth is left out; the released evaluation counts it as 0, although nothing in it is wrong. A mean over nothing is
    nan. States are sums of integers, so neither the batches nor the number of processes change a digit.

    Example:
        >>> metric = BinaryOverlap()
        >>> metric.update(torch.tensor([[[1, 1, 0]], [[0, 0, 0]]]), torch.tensor([[[0, 1, 0]], [[0, 0, 0]]]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'Dice': 0.667, 'Jaccard': 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    overlap_sum: Tensor
    overlap_count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("overlap_sum", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")  # Dice, Jaccard
        self.add_state("overlap_count", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, target: Tensor, *, valid: Tensor | None = None) -> None:
        """Add a batch; nothing leaves the device.

        Args:
            pred: Predicted maps ``(B, H, W)``, boolean or integers; everything but 0 is nucleus.
            target: True maps, likewise.
            valid: Boolean ``(B,)``; items where it is False, such as those that only fill up a process's share of
                the data, are left out. None counts all.

        Raises:
            DataError: If the shapes do not fit, the maps hold floats, or the mask is not boolean.
        """
        if pred.ndim != 3 or pred.shape != target.shape:
            message = f"binary maps {tuple(pred.shape)} and {tuple(target.shape)} do not fit; "
            raise DataError(message + "pass two tensors (B, H, W) of one shape")
        if pred.is_floating_point() or target.is_floating_point():
            raise DataError(f"binary maps of {pred.dtype} and {target.dtype}; pass 0 and 1, the argmax of the channels")
        found, true = pred.flatten(1) != 0, target.flatten(1) != 0
        shared, total = (found & true).sum(1), found.sum(1) + true.sum(1)
        used = (total > 0) & valid_items(valid, like=pred)
        whole = total.clamp(min=1)  # empty images divide by something and are not used
        scores = torch.stack([fixed_ratio(2 * shared, whole), fixed_ratio(shared, (whole - shared).clamp(min=1))])
        self.overlap_sum += (scores * used).sum(1)
        self.overlap_count += used.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return both means by name, scalars in [0, 1] or nan."""
        means = fixed_mean(self.overlap_sum, self.overlap_count).astype(np.float32)
        return dict(zip(("Dice", "Jaccard"), torch.from_numpy(means).to(self.device), strict=True))


@METRICS.register("aggregated-jaccard")
class AggregatedJaccard(Configurable, NucleiMetric):
    """Aggregated Jaccard index ``AJI``, averaged over images.

    The unit is the image; :func:`cellvit.metrics.functional.aggregated_jaccard` scores it. All nuclei count, whatever
    their types. An image without true and predicted nuclei is left out; one with nuclei on one side only is 0. A
    mean over nothing is nan. States are sums of integers, so neither the batches nor the number of processes change a
    digit.

    Example:
        >>> metric = AggregatedJaccard()
        >>> metric.update(np.array([[0, 1, 1, 2, 2]]), np.array([[1, 1, 0, 0, 0]]))
        >>> metric.compute()
        {'AJI': tensor(0.2000)}
    """

    is_differentiable = False
    higher_is_better = True

    aji_sum: Tensor
    aji_count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("aji_sum", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("aji_count", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred_instances: ArrayOrTensor, target_instances: ArrayOrTensor) -> None:
        """Add one image.

        Args:
            pred_instances: Predicted instance map ``(H, W)``, integer, 0 is background.
            target_instances: True instance map ``(H, W)``, likewise.

        Raises:
            DataError: If the maps do not fit.
        """
        score = aggregated_jaccard(as_array(pred_instances), as_array(target_instances))
        if not np.isnan(score):
            self.aji_sum += to_fixed(score, device=self.device)
            self.aji_count += 1

    def update_nuclei(self, pred: NucleiPrediction, target: NucleiPrediction, *, tissue: int = -1) -> None:
        """Add one image; see :class:`NucleiMetric`."""
        self.update(pred.instance_map, target.instance_map)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean by name, a scalar in [0, 1] or nan."""
        mean = fixed_mean(self.aji_sum, self.aji_count).astype(np.float32)
        return {"AJI": torch.from_numpy(mean).to(self.device).squeeze(0)}
