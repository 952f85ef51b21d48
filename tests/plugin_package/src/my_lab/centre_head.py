"""A head with a branch of its own: where are the centres of the nuclei?"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellvit import Head, HeadSizes
from cellvit.errors import ConfigError
from cellvit.types import Batch


class CentreHead(Head):
    """A heat map that is 1 at the centre of each nucleus and falls off towards its edge.

    Args:
        sizes: What flows in from the decoder.
        losses: Weight per loss term, ``mse`` and ``bce``.
        sigma: Pixels from the centre at which the map has fallen to 0.61.

    Raises:
        ConfigError: If ``sigma`` is not positive, or a loss is unknown.
    """

    branch = "nuclei_centre_map"
    default_losses: ClassVar[Mapping[str, float]] = {"mse": 2.0, "bce": 1.0}

    def __init__(self, sizes: HeadSizes, *, losses: Mapping[str, float] | None = None, sigma: float = 4.0) -> None:
        super().__init__(sizes, losses=losses)
        if not sigma > 0:
            raise ConfigError(f"sigma {sigma} must be above 0 px")
        self.sigma = sigma
        self.out_channels = 1
        self.output = nn.Conv2d(sizes.decoder_channels, self.out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, 1, H, W)``."""
        return self.output(features)

    def activate(self, logits: Tensor) -> Tensor:
        """Return the heat map in [0, 1]."""
        return logits.sigmoid()

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error and the cross-entropy of the heat map."""
        target = centre_map(batch["instance_map"], sigma=self.sigma)
        return {
            "mse": F.mse_loss(logits.sigmoid(), target),
            "bce": F.binary_cross_entropy_with_logits(logits, target),
        }


def centre_map(instance_map: Tensor, *, sigma: float) -> Tensor:
    """Return ``exp(-d^2 / (2 sigma^2))`` for every pixel of a nucleus, ``d`` pixels from its centre of mass.

    Args:
        instance_map: ``(B, H, W)`` int64, 0 is background.
        sigma: Width of the peaks in pixels.

    Returns:
        ``(B, 1, H, W)`` float32 in [0, 1], 0 in the background.
    """
    size, height, width = instance_map.shape
    count = int(instance_map.max()) + 1
    offsets = torch.arange(size, device=instance_map.device).view(-1, 1, 1) * count
    label = (instance_map + offsets).flatten()  # a number of its own for every nucleus of the batch
    rows = torch.arange(height, device=label.device).view(1, -1, 1).expand_as(instance_map).flatten()
    columns = torch.arange(width, device=label.device).view(1, 1, -1).expand_as(instance_map).flatten()
    area = torch.bincount(label, minlength=size * count).clamp(min=1)
    distance = torch.zeros(label.shape, device=label.device)
    for position in (rows, columns):
        total = torch.zeros_like(area).index_add_(0, label, position)
        distance += (position - (total / area)[label]) ** 2
    heat = (-distance / (2 * sigma**2)).exp().view(size, 1, height, width)
    return heat * (instance_map > 0).unsqueeze(1)
