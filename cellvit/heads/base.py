"""The head contract and its registry."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cellvit.errors import ConfigError
from cellvit.geometry.symmetry import Symmetry
from cellvit.plugins.components import Configurable
from cellvit.plugins.registry import Registry
from cellvit.types import Batch


@dataclass(frozen=True)
class HeadSizes:
    """Sizes that flow into every head.

    Attributes:
        decoder_channels: Channels of the decoder's output per branch.
        pooled_channels: Length of the encoder's pooled vector.
        num_nuclei_classes: Nucleus types, background counted.
        num_tissue_classes: Tissue types; 0 if the model has no tissue head.
    """

    decoder_channels: int
    pooled_channels: int
    num_nuclei_classes: int
    num_tissue_classes: int


class Head(Configurable, nn.Module, ABC):
    """Owns one branch: its output layer, activation, target and losses.

    Args:
        sizes: What flows in from the decoder, the encoder and the data.
        losses: Weight per loss term; None takes ``default_losses``. A term left out is not added.

    Attributes:
        branch: Name of the map this head makes, without a dot. Where data modules give its target ready-made, it is
            the target's key in the batch; a head may compute another target from what the batch holds.
        source: ``"decoder"`` for a map ``(B, C, H, W)``, ``"pooled"`` for a vector ``(B, P)``.
        default_losses: Weight per loss term.
        out_channels: Channels of the logits.
    """

    branch: ClassVar[str]
    source: ClassVar[Literal["decoder", "pooled"]] = "decoder"
    default_losses: ClassVar[Mapping[str, float]]
    out_channels: int

    def __init__(self, sizes: HeadSizes, *, losses: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.loss_weights = dict(self.default_losses if losses is None else losses)
        unknown = sorted(set(self.loss_weights) - set(self.default_losses))
        if unknown:
            known = ", ".join(self.default_losses)
            raise ConfigError(f"head {type(self).__name__} has no loss {unknown}; it has: {known}")

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Return logits from the head's source."""

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities (or the regressed map) from logits, same shape."""

    @abstractmethod
    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return every unweighted loss term as a scalar, keyed as in ``default_losses``."""

    def restore(self, activated: Tensor, symmetry: Symmetry) -> Tensor:
        """Return the activated map of an image from that of a view of it.

        As it stands this is for values that have no direction: they are moved to where they belong, and pooled ones
        stay as they are. A head whose channels mean directions overrides it.

        Args:
            activated: What :meth:`activate` returns for the view.
            symmetry: Mirroring and turn that made the view of the image.

        Raises:
            ConfigError: If the channels cannot be brought back.
        """
        return symmetry.undo(activated) if self.source == "decoder" else activated

    def losses(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss terms of non-zero weight, in float32 whatever the precision of the network."""
        with torch.autocast(logits.device.type, enabled=False):
            terms = self.loss_terms(logits.float(), batch)
        return {name: weight * terms[name] for name, weight in self.loss_weights.items() if weight}


class MapHead(Head):
    """A head whose map comes from the decoder's features by one 1x1 convolution.

    Args:
        sizes: Channels and numbers of classes that flow in from the decoder, the encoder and the data.
        losses: Weight per loss term; None takes ``default_losses``. A term left out is not added.
        variant: ``"corrected"``, or ``"released"`` to repeat the faults of the published training runs. ``"meant"`` is
            the former name of ``"corrected"``.

    Raises:
        ConfigError: If the variant is unknown.
    """

    def __init__(
        self,
        sizes: HeadSizes,
        *,
        losses: Mapping[str, float] | None = None,
        variant: Literal["corrected", "released", "meant"] = "corrected",
    ) -> None:
        super().__init__(sizes, losses=losses)
        if variant not in ("corrected", "released", "meant"):
            raise ConfigError(
                f"variant {variant!r} of head {type(self).__name__} is unknown; use 'corrected' or 'released'"
            )
        self.variant = variant
        self.out_channels = self.channels(sizes)
        self.output = nn.Conv2d(sizes.decoder_channels, self.out_channels, 1)

    @staticmethod
    @abstractmethod
    def channels(sizes: HeadSizes) -> int:
        """Return the number of channels of the map."""

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, channels, H, W)``."""
        return self.output(features)  # type: ignore[no-any-return]


OWN = {
    "binary": "binary",
    "binary-forgiving": "forgiving_binary",
    "hv": "hv",
    "nuclei-type": "nuclei_type",
    "object-probability": "star",
    "radial-distances": "star",
    "tissue": "tissue",
}
"""Module that registers each name of ours; it is imported when the name is asked for."""

HEADS: Registry[Head] = Registry("head", Head, package="cellvit.heads", own=OWN)
"""Heads by name."""
