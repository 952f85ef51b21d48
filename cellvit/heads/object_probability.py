"""Object probability: how central is a pixel in its nucleus?"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from cellvit.heads.base import HEADS, Head, HeadSizes
from cellvit.losses import object_probability_loss
from cellvit.star import object_probability
from cellvit.types import OBJECT_PROBABILITY, Batch

FIRST_LOGIT = -2.0
"""An untrained head answers 0.12 everywhere, not 0.5, of which half the image would be candidates."""


@HEADS.register("object-probability")
class ObjectProbabilityHead(Head):
    """One channel: the distance to the rim of the nucleus over its maximum, trained with binary cross-entropy.

    The target is made from the instance map of the batch, see :func:`cellvit.star.object_probability`.

    Args:
        sizes: See :class:`cellvit.heads.base.Head`.
        losses: Weight of ``cross_entropy``; None is 1.

    References:
        Schmidt et al., Cell detection with star-convex polygons, MICCAI 2018, DOI 10.1007/978-3-030-00934-2_30
    """

    branch = OBJECT_PROBABILITY
    default_losses: ClassVar[Mapping[str, float]] = {"cross_entropy": 1.0}

    def __init__(self, sizes: HeadSizes, *, losses: Mapping[str, float] | None = None) -> None:
        super().__init__(sizes, losses=losses)
        self.out_channels = 1
        self.output = nn.Conv2d(sizes.decoder_channels, 1, 1)
        nn.init.constant_(self.output.bias, FIRST_LOGIT)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, 1, H, W)``."""
        return self.output(features)  # type: ignore[no-any-return]

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(B, 1, H, W)``."""
        return logits.sigmoid()

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"cross_entropy": object_probability_loss(logits, object_probability(batch["instance_map"]))}
