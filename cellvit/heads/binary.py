"""NP: is a pixel part of a nucleus?"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from cellvit.heads.base import HEADS, HeadSizes, MapHead
from cellvit.losses import binary_focal_tversky_loss, dice_loss
from cellvit.types import NUCLEI_BINARY_MAP, Batch


@HEADS.register("binary")
class BinaryHead(MapHead):
    """Two channels, background and nucleus, trained with focal Tversky and Dice loss.

    The released variant applies softmax to the probabilities before the Tversky loss.
    """

    branch = NUCLEI_BINARY_MAP
    default_losses: ClassVar[Mapping[str, float]] = {"focal_tversky": 1.0, "dice": 1.0}

    @staticmethod
    def channels(sizes: HeadSizes) -> int:
        """Return 2; channel 1 is nucleus."""
        return 2

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(B, 2, H, W)``."""
        return logits.softmax(1)

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return focal Tversky and Dice loss."""
        probs, target = logits.softmax(1), batch["nuclei_binary_map"]
        doubled = probs.softmax(1) if self.variant == "released" else probs
        return {"focal_tversky": binary_focal_tversky_loss(doubled, target), "dice": dice_loss(probs, target)}
