"""NT: which type of nucleus does a pixel belong to?"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cellvit.errors import ConfigError
from cellvit.heads.base import HEADS, HeadSizes, MapHead
from cellvit.losses import cross_entropy_loss, dice_loss, focal_tversky_loss, partial_label_loss
from cellvit.types import NUCLEI_TYPE_MAP, UNKNOWN_TYPE, Batch


@HEADS.register("nuclei-type")
class NucleiTypeHead(MapHead):
    """One channel per nucleus type and one for background; pixels of unknown type do not train it.

    A nucleus of unknown type still is no background. The loss ``unknown_type``, off as published, tells the head so;
    without it a model that saw types in one data set only calls nuclei of the others background.

    The released variant applies softmax to the probabilities before the Tversky loss.

    Args:
        sizes: Channels and numbers of classes that flow in from the decoder, the encoder and the data.
        losses: Weight per loss term; None takes ``default_losses``. A term left out is not added.
        variant: ``"corrected"``, or ``"released"`` to repeat the faults of the published training runs.
        temperature: Divides the logits before :meth:`activate`, not in training: above 1 it makes probabilities less
            certain. Fitted on held-out data it calibrates them and changes no pixel's most probable type [1], so it
            acts only where probabilities are averaged: ``HVPostprocessor(type_rule="mean")``.
        loss_stride: The losses look at every n-th pixel of every n-th row; a nucleus has one type, so that 2 tells as
            much as 1 for a quarter of the time. In training the first row and column are drawn anew each time: a
            decoder whose pixels are put together from channels would otherwise never learn most of them.

    Raises:
        ConfigError: If the temperature is not a finite number above 0, or the stride is below 1.

    References:
        [1] Guo et al., On calibration of modern neural networks, ICML 2017.
    """

    branch = NUCLEI_TYPE_MAP
    default_losses: ClassVar[Mapping[str, float]] = {
        "focal_tversky": 0.5,
        "dice": 0.2,
        "cross_entropy": 0.5,
        "unknown_type": 0.0,
    }

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        losses: Mapping[str, float] | None = None,
        variant: Literal["corrected", "released", "meant"] = "corrected",
        temperature: float = 1.0,
        loss_stride: int = 1,
    ) -> None:
        super().__init__(sizes, losses=losses, variant=variant)
        if loss_stride < 1:
            raise ConfigError(f"loss_stride {loss_stride} must be at least 1, which takes every pixel")
        self.loss_stride = loss_stride
        if not 0 < temperature < float("inf"):
            raise ConfigError(
                f"temperature {temperature} must be finite and above 0; 1 leaves probabilities as they are"
            )
        self.temperature = temperature

    @staticmethod
    def channels(sizes: HeadSizes) -> int:
        """Return the number of nucleus types; channel 0 is background."""
        return sizes.num_nuclei_classes

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(B, C, H, W)``."""
        return (logits / self.temperature if self.temperature != 1 else logits).softmax(1)

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the losses over the pixels of known type, and that over the pixels of unknown type."""
        target = batch["nuclei_type_map"]
        if self.loss_stride > 1:
            logits, target = self._some_pixels(logits, target)
        probs = logits.softmax(1)
        doubled = probs.softmax(1) if self.variant == "released" else probs
        return {
            "focal_tversky": focal_tversky_loss(doubled, target, ignore_index=UNKNOWN_TYPE),
            "dice": dice_loss(probs, target, ignore_index=UNKNOWN_TYPE),
            "cross_entropy": cross_entropy_loss(probs, target, ignore_index=UNKNOWN_TYPE),
            "unknown_type": partial_label_loss(probs, target, index=UNKNOWN_TYPE),
        }

    def _some_pixels(self, *maps: Tensor) -> list[Tensor]:
        """Return every n-th pixel of every n-th row of maps ``(..., H, W)``, of all the same ones."""
        device, chosen = maps[0].device, list(maps)
        for axis in (-2, -1):
            side = maps[0].shape[axis]
            start = torch.randint(self.loss_stride, (1,), device=device) if self.training else 0
            places = torch.arange(-(-side // self.loss_stride), device=device) * self.loss_stride + start
            chosen = [one.index_select(axis, places.clamp(max=side - 1)) for one in chosen]
        return chosen
