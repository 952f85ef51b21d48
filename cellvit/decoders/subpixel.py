"""A decoder that works at half resolution and leaves the last factor of two to sub-pixel convolutions."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cellvit.decoders.base import DECODERS, Decoder, check_embedding, join_embedding
from cellvit.decoders.unetr import conv_block, upsample
from cellvit.errors import ConfigError
from cellvit.types import EMBEDDING_MAP, NUCLEI_TYPE_MAP, FeatureInfo

_STRIDES = (2, 4, 8, 16)


@DECODERS.register("subpixel")
class SubpixelDecoder(Decoder):
    """Upsamples a pyramid to stride 2 once for all branches; each then has a short path of its own to full resolution.

    Most of the time of a UNETR decoder goes into its full-resolution level, where every convolution reads and
    writes a million pixels per tile. At 0.25 microns per pixel half that resolution still shows every nucleus, so the
    convolutions end there and a transposed convolution of stride 2, which computes the four pixels of each square
    apart [1], gives the rest.

    Args:
        features: The encoder's four maps at strides 2, 4, 8 and 16.
        branches: Names of the branches.
        widths: Channels at strides 1, 2, 4 and 8.
        shared_convs: Convolutions at each of strides 2, 4 and 8.
        branch_convs: Convolutions of each branch at stride 2.
        dropout: Dropout in every convolution block.
        embedding: Also give ``embedding_map``, by which nuclei are told apart: the level at stride 2 that all branches
            share and the convolutions of the branch of types after it, averaged to stride 4. Without it the embedding
            of a nucleus is made of the encoder's deepest map, whose tokens are wider than a nucleus.

    Raises:
        ConfigError: If the strides of the features do not fit, a number is out of range, or there is no branch of types
            to make an embedding of.

    References:
        [1] Shi et al., Real-time single image and video super-resolution using an efficient sub-pixel convolutional
        neural network, CVPR 2016.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        branches: Sequence[str],
        *,
        widths: Sequence[int] = (8, 32, 64, 128),
        shared_convs: int = 2,
        branch_convs: int = 1,
        dropout: float = 0.0,
        embedding: bool = False,
    ) -> None:
        super().__init__(features, branches)
        strides = tuple(feature.stride for feature in features)
        if strides != _STRIDES:
            raise ConfigError(
                f"decoder 'subpixel' needs feature maps at strides {_STRIDES}, the encoder's have {strides}; "
                "use decoder 'unetr' or a pyramid such as encoder 'hybrid'"
            )
        if len(widths) != len(_STRIDES) or min(widths) < 1 or shared_convs < 1 or branch_convs < 0:
            raise ConfigError(
                f"decoder 'subpixel' has widths {list(widths)}, shared_convs {shared_convs}, branch_convs "
                f"{branch_convs}; give {len(_STRIDES)} widths from 1, shared_convs from 1 and branch_convs from 0"
            )
        if embedding:
            check_embedding("subpixel", branches)
        self.embedding = embedding
        self.out_channels = widths[0]
        self.ups, self.levels = nn.ModuleList(), nn.ModuleList()
        below = features[-1].channels
        for feature, width in zip(features[-2::-1], widths[:0:-1], strict=True):
            self.ups.append(upsample(below, width))
            sizes = [feature.channels + width, *[width] * shared_convs]
            self.levels.append(_convs(sizes, dropout=dropout))
            below = width
        self.paths = nn.ModuleDict(
            {
                branch: nn.Sequential(
                    _convs([below] * (branch_convs + 1), dropout=dropout),
                    upsample(below, widths[0]),
                    nn.BatchNorm2d(widths[0]),
                    nn.ReLU(inplace=True),
                )
                for branch in branches
            }
        )

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Decode a batch; see :class:`Decoder`."""
        x = features[-1]
        for up, level, skip in zip(self.ups, self.levels, features[-2::-1], strict=True):
            x = level(torch.cat([skip, up(x)], dim=1))
        inside, maps = {}, {}
        for branch, path in self.paths.items():
            first, *rest = path.children()
            inside[branch] = maps[branch] = first(x)
            for layer in rest:
                maps[branch] = layer(maps[branch])
        if self.embedding:
            maps[EMBEDDING_MAP] = join_embedding(x, inside[NUCLEI_TYPE_MAP])
        return maps


def _convs(sizes: Sequence[int], *, dropout: float) -> nn.Sequential:
    """Return 3x3 convolution blocks between the given numbers of channels."""
    return nn.Sequential(*(conv_block(a, b, dropout=dropout) for a, b in itertools.pairwise(sizes)))
