"""NT: which type of nucleus does a pixel belong to?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from cellvit.heads.base import HEADS, Head, HeadSizes
from cellvit.losses import cross_entropy_loss, dice_loss, focal_tversky_loss
from cellvit.types import NUCLEI_TYPE_MAP, UNKNOWN_TYPE, Batch


@HEADS.register("nuclei-type")
class NucleiTypeHead(Head):
    """One channel per nucleus type and one for background; pixels of unknown type do not train it.

    Args:
        sizes: See :class:`Head`; ``num_nuclei_classes`` sets the channels.
        losses: Weights of ``focal_tversky``, ``dice`` and ``cross_entropy``; None takes the published ones.
        variant: ``"meant"``, or ``"released"`` to repeat the published runs, where the Tversky loss applied softmax
            to values that were probabilities already.
    """

    branch = NUCLEI_TYPE_MAP
    default_losses: ClassVar[Mapping[str, float]] = {"focal_tversky": 0.5, "dice": 0.2, "cross_entropy": 0.5}

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        losses: Mapping[str, float] | None = None,
        variant: Literal["meant", "released"] = "meant",
    ) -> None:
        super().__init__(sizes, losses=losses)
        self.variant = variant
        self.out_channels = sizes.num_nuclei_classes
        self.output = nn.Conv2d(sizes.decoder_channels, self.out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, C, H, W)``; channel 0 is background."""
        return self.output(features)  # type: ignore[no-any-return]

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
