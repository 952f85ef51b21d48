"""Accuracy of the tissue class over a data set."""

import torch
from torch import Tensor
from torchmetrics import Metric

from cellvit.errors import DataError
from cellvit.metrics._shared import valid_items
from cellvit.metrics.base import METRICS
from cellvit.plugins.components import Configurable
from cellvit.types import UNKNOWN_TYPE


@METRICS.register("tissue-accuracy")
class TissueAccuracy(Configurable, Metric):
    """Share of images whose tissue class is right, ``tissue_accuracy``.

    The unit is the image. Images of unknown tissue (-1) are left out; without any other image the result is nan.

    Example:
        >>> metric = TissueAccuracy()
        >>> metric.update(torch.tensor([[0.1, 2.0], [3.0, 0.0], [0.5, 0.4]]), torch.tensor([1, 1, -1]))
        >>> metric.compute()
        {'tissue_accuracy': tensor(0.5000)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, target: Tensor, *, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            pred: Logits or probabilities ``(B, T)``.
            target: Tissue ids ``(B,)``, -1 if unknown.
            valid: Boolean ``(B,)``; items where it is False, such as those that only fill up a process's share of
                the data, are left out. None counts all.

        Raises:
            DataError: If the shapes do not fit, or the mask is not boolean.
        """
        if pred.ndim != 2 or target.shape != pred.shape[:1]:
            message = f"tissue logits {tuple(pred.shape)} and ids {tuple(target.shape)} do not fit; "
            raise DataError(message + "pass (B, T) and (B,)")
        known = (target != UNKNOWN_TYPE) & valid_items(valid, like=target)
        self.correct += ((pred.argmax(1) == target) & known).sum()
        self.total += known.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the accuracy by name, in [0, 1] or nan."""
        return {"tissue_accuracy": self.correct / self.total}
