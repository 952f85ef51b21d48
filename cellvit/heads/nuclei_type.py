"""NT: which type of nucleus does a pixel belong to?"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from cellvit.heads.base import HEADS, HeadSizes, MapHead
from cellvit.losses import cross_entropy_loss, dice_loss, focal_tversky_loss
from cellvit.types import NUCLEI_TYPE_MAP, UNKNOWN_TYPE, Batch


@HEADS.register("nuclei-type")
class NucleiTypeHead(MapHead):
    """One channel per nucleus type and one for background; pixels of unknown type do not train it.

    The released variant applies softmax to the probabilities before the Tversky loss.
    """

    branch = NUCLEI_TYPE_MAP
    default_losses: ClassVar[Mapping[str, float]] = {"focal_tversky": 0.5, "dice": 0.2, "cross_entropy": 0.5}

    @staticmethod
    def channels(sizes: HeadSizes) -> int:
        """Return the number of nucleus types; channel 0 is background."""
        return sizes.num_nuclei_classes

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(B, C, H, W)``."""
        return logits.softmax(1)

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return focal Tversky, Dice and cross-entropy loss over the pixels of known type."""
        probs, target = logits.softmax(1), batch["nuclei_type_map"]
        doubled = probs.softmax(1) if self.variant == "released" else probs
        return {
            "focal_tversky": focal_tversky_loss(doubled, target, ignore_index=UNKNOWN_TYPE),
            "dice": dice_loss(probs, target, ignore_index=UNKNOWN_TYPE),
            "cross_entropy": cross_entropy_loss(probs, target, ignore_index=UNKNOWN_TYPE),
        }
