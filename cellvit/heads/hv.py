"""HV: how far is a pixel from the centre of its nucleus?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from cellvit.heads.base import HEADS, Head, HeadSizes
from cellvit.losses import hv_gradient_loss, hv_mse_loss
from cellvit.types import HV_MAP, Batch


@HEADS.register("hv")
class HVHead(Head):
    """Horizontal and vertical distances in [-1, 1], trained on their values and their gradients.

    Args:
        sizes: See :class:`Head`.
        losses: Weights of ``mse`` and ``msge``; None takes the published ones.
        variant: ``"meant"``, or ``"released"`` to repeat the published runs, where each map was differentiated along
            the other axis.
    """

    branch = HV_MAP
    default_losses: ClassVar[Mapping[str, float]] = {"mse": 2.5, "msge": 8.0}
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
        """Return the maps ``(B, 2, H, W)``; channel 0 horizontal, 1 vertical."""
        return self.output(features)  # type: ignore[no-any-return]

    def activate(self, logits: Tensor) -> Tensor:
        """Return the maps as they are; the published network bounds them by nothing."""
        return logits

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared errors of the maps and, inside nuclei, of their gradients."""
        target, mask = batch["hv_map"], batch["nuclei_binary_map"]
        return {
            "mse": hv_mse_loss(logits, target),
            "msge": hv_gradient_loss(logits, target, mask, swap_axes=self.variant == "released"),
        }
