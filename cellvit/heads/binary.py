"""NP: is a pixel part of a nucleus?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from cellvit.heads.base import HEADS, Head, HeadSizes
from cellvit.losses import binary_focal_tversky_loss, dice_loss
from cellvit.types import NUCLEI_BINARY_MAP, Batch


@HEADS.register("binary")
class BinaryHead(Head):
    """Two channels, background and nucleus, trained with focal Tversky and Dice loss.

    Args:
        sizes: See :class:`Head`.
        losses: Weights of ``focal_tversky`` and ``dice``; None takes the published ones.
        variant: ``"meant"``, or ``"released"`` to repeat the published runs, where the Tversky loss applied softmax
            to values that were probabilities already.
    """

    branch = NUCLEI_BINARY_MAP
    default_losses: ClassVar[Mapping[str, float]] = {"focal_tversky": 1.0, "dice": 1.0}
    out_channels = 2

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        losses: Mapping[str, float] | None = None,
        variant: Literal["meant", "released"] = "meant",
    ) -> None:
        super().__init__(sizes, losses=losses)
        self.variant = variant
        self.output = nn.Conv2d(sizes.decoder_channels, self.out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, 2, H, W)``; channel 1 is nucleus."""
        return self.output(features)  # type: ignore[no-any-return]

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(B, 2, H, W)``."""
        return logits.softmax(1)

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return focal Tversky and Dice loss."""
        probs, target = logits.softmax(1), batch["nuclei_binary_map"]
        doubled = probs.softmax(1) if self.variant == "released" else probs
        return {
            "focal_tversky": binary_focal_tversky_loss(doubled, target),
            "dice": dice_loss(probs, target),
        }
