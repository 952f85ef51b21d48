"""The decoder contract and its registry."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.errors import ConfigError
from cellvit.plugins.components import Configurable
from cellvit.plugins.registry import Registry
from cellvit.types import NUCLEI_TYPE_MAP, FeatureInfo


class Decoder(Configurable, nn.Module, ABC):
    """Turns an encoder's feature maps into one full-resolution feature map per branch.

    A subclass takes ``(features, branches)`` first and its configuration as keyword-only arguments.

    Attributes:
        out_channels: Channels ``C`` of every branch's output.
    """

    out_channels: int

    def __init__(self, features: Sequence[FeatureInfo], branches: Sequence[str]) -> None:
        super().__init__()
        self.branches = tuple(branches)

    @abstractmethod
    def forward(self, image: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Decode a batch.

        Args:
            image: Normalised image ``(B, 3, H, W)``.
            features: The encoder's maps ``(B, C_i, H / stride_i, W / stride_i)``.

        Returns:
            For every branch a map ``(B, C, H, W)``. Beside them there may be ``embedding_map`` ``(B, D, H / s, W / s)``
            of a stride ``s`` below 16, of which embeddings of nuclei are made; without it they are made of the
            encoder's deepest map.
        """


def check_embedding(decoder: str, branches: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if a decoder that is to give embeddings has no branch of types to make them of."""
    if NUCLEI_TYPE_MAP not in branches:
        raise ConfigError(
            f"decoder {decoder!r} has embedding True, which needs a branch {NUCLEI_TYPE_MAP!r}, but the branches are "
            f"{', '.join(branches)}; add the head, or leave embedding out"
        )


def join_embedding(*maps: Tensor, quarter: Sequence[Tensor] = ()) -> Tensor:
    """Return maps of stride 4 and, averaged to that, maps of stride 2 as one."""
    return torch.cat([*quarter, *(F.avg_pool2d(one, 2) for one in maps)], dim=1)


OWN = {
    "pyramid": "pyramid",
    "subpixel": "subpixel",
    "unetr": "unetr",
}
"""Module that registers each name of ours; it is imported when the name is asked for."""

DECODERS: Registry[Decoder] = Registry("decoder", Decoder, package="cellvit.decoders", own=OWN)
"""Decoders by name."""
