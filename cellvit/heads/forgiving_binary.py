"""NP for labels that lack nuclei: the foreground, trained with losses that forgive."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from cellvit.errors import ConfigError
from cellvit.heads.base import HEADS, HeadSizes
from cellvit.heads.binary import BinaryHead
from cellvit.losses import binary_focal_tversky_loss, dice_loss
from cellvit.losses.forgiving import focal_cross_entropy_loss, forgiven_pixels
from cellvit.types import Batch

_IGNORED = -1


@HEADS.register("binary-forgiving")
class ForgivingBinaryHead(BinaryHead):
    """Background and nucleus, where some nuclei are not labelled.

    Beside focal Tversky and Dice loss, a cross-entropy in which hard pixels count more. Pixels of the background at
    which the model is certain of a nucleus are left out of all three; see
    :func:`cellvit.losses.forgiving.forgiven_pixels`.

    Args:
        sizes: See :class:`cellvit.heads.base.Head`.
        losses: See :class:`cellvit.heads.base.Head`.
        forgive_above: Probability from which a pixel of the background is left out; above 1 none is.
        smoothing: Label smoothing of the cross-entropy, in [0, 1).
        gamma: Exponent of its weights, from 0.

    Raises:
        ConfigError: If a number is out of range.
    """

    default_losses: ClassVar[Mapping[str, float]] = {"focal_tversky": 1.0, "dice": 1.0, "cross_entropy": 1.0}

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        losses: Mapping[str, float] | None = None,
        forgive_above: float = 0.95,
        smoothing: float = 0.05,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(sizes, losses=losses)
        if not (forgive_above > 0.5 and 0 <= smoothing < 1 and gamma >= 0):
            raise ConfigError(
                f"forgive_above {forgive_above} must be above 0.5, smoothing {smoothing} in [0, 1) and gamma {gamma} "
                "at least 0"
            )
        self.forgive_above, self.smoothing, self.gamma = forgive_above, smoothing, gamma

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return focal Tversky loss, Dice loss and cross-entropy."""
        probs, target = logits.softmax(1), batch["nuclei_binary_map"]
        ignored = forgiven_pixels(probs, target, threshold=self.forgive_above)
        known = target.masked_fill(ignored, _IGNORED)
        return {
            "focal_tversky": binary_focal_tversky_loss(probs, known, ignore_index=_IGNORED),
            "dice": dice_loss(probs, known, ignore_index=_IGNORED),
            "cross_entropy": focal_cross_entropy_loss(
                probs, target, gamma=self.gamma, smoothing=self.smoothing, ignored=ignored
            ),
        }
