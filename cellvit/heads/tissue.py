"""Tissue: which organ does the image show?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.errors import ConfigError
from cellvit.heads.base import HEADS, Head, HeadSizes
from cellvit.types import TISSUE_TYPES, Batch

UNKNOWN_TISSUE = -1


@HEADS.register("tissue")
class TissueHead(Head):
    """A linear layer on the encoder's pooled vector; images of unknown tissue do not train it.

    Args:
        sizes: Channels and numbers of classes that flow in from the decoder, the encoder and the
            data; ``num_tissue_classes`` sets the channels.
        losses: Weight of ``cross_entropy``; None takes the published one.

    Raises:
        ConfigError: If the model has no tissue classes.
    """

    branch = TISSUE_TYPES
    source: ClassVar[Literal["decoder", "pooled"]] = "pooled"
    default_losses: ClassVar[Mapping[str, float]] = {"cross_entropy": 0.1}

    def __init__(self, sizes: HeadSizes, *, losses: Mapping[str, float] | None = None) -> None:
        super().__init__(sizes, losses=losses)
        if sizes.num_tissue_classes < 1:
            raise ConfigError("head 'tissue' needs num_tissue_classes >= 1; set it or leave the head out")
        self.out_channels = sizes.num_tissue_classes
        self.output = nn.Linear(sizes.pooled_channels, self.out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, T)``."""
        return self.output(features)  # type: ignore[no-any-return]

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(B, T)``."""
        return logits.softmax(1)

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy; 0 if no image of the batch has a known tissue."""
        target = batch["tissue_types"]
        known = (target != UNKNOWN_TISSUE).sum().clamp_min(1)
        total = F.cross_entropy(logits, target, ignore_index=UNKNOWN_TISSUE, reduction="sum")
        return {"cross_entropy": total / known}
