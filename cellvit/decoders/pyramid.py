"""A light decoder for pyramids of any strides, with a skip from the pixels themselves."""

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from cellvit.decoders.base import DECODERS, Decoder, check_embedding, join_embedding
from cellvit.decoders.unetr import conv_block, upsample
from cellvit.errors import ConfigError
from cellvit.types import EMBEDDING_MAP, NUCLEI_TYPE_MAP, FeatureInfo

NUM_MAPS = 4
QUARTER = 4
"""Stride of an embedding."""


@DECODERS.register("pyramid")
class PyramidDecoder(Decoder):
    """Joins feature maps from the deepest up and ends at stride 2, whose last factor of two is sub-pixel output.

    An encoder that works at half the resolution of the image has no map that shows where one nucleus ends and the next
    begins. The image does: one convolution of stride 2 on its pixels is the skip at stride 2. Where the next finer map
    is finer by two or more, what comes from below is enlarged by transposed convolutions; where its stride is the
    same, both are joined as they are. From stride 2 each branch has a path of its own: convolutions, then a linear map
    to the channels of the four pixels of each square, which are put into place [1]. As all after the last activation
    is linear, as few channels as the heads have independent outputs lose nothing: 4 do for five types.

    Args:
        features: The encoder's maps, finest first; strides are powers of two from 2 that do not decrease.
        branches: Names of the branches.
        widths: Channels at stride 1, then of each level from the finest: stride 2 if ``detail`` is above 0, and each
            of the encoder's maps but the deepest.
        detail: Channels of the skip from the image at stride 2; 0 leaves that level out, if the encoder has a map of
            stride 2.
        shared_convs: Convolutions at each level, or of each level from the finest.
        branch_convs: Convolutions of each branch at stride 2.
        branch_width: Channels of these.
        dropout: Dropout in every convolution block.
        embedding: Also give ``embedding_map``, by which nuclei are told apart: the levels at strides 2 and 4 that all
            branches share, the latter where there is one, and the convolutions of the branch of types, averaged to
            stride 4. Without it the embedding of a nucleus is made of the encoder's deepest map, whose tokens are wider
            than a nucleus.

    Raises:
        ConfigError: If the strides do not fit, a number is out of range, or there is no branch of types to make an
            embedding of.

    References:
        [1] Shi et al., Real-time single image and video super-resolution using an efficient sub-pixel convolutional
        neural network, CVPR 2016.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        branches: Sequence[str],
        *,
        widths: Sequence[int] = (4, 24, 48, 64, 96),
        detail: int = 12,
        shared_convs: int | Sequence[int] = 1,
        branch_convs: int = 1,
        branch_width: int = 16,
        dropout: float = 0.0,
        embedding: bool = False,
    ) -> None:
        super().__init__(features, branches)
        strides = tuple(feature.stride for feature in features)
        if len(strides) != NUM_MAPS or strides[0] < 2 or sorted(strides) != list(strides):
            raise ConfigError(
                "decoder 'pyramid' needs four feature maps whose strides begin at 2 or more and do not decrease, the "
                f"encoder's are {strides}; use another encoder, or decoder 'unetr'"
            )
        if strides[0] > 2 and detail == 0:
            message = f"decoder 'pyramid' has detail 0, but the finest map has stride {strides[0]}"
            raise ConfigError(f"{message}; give detail from 1")
        skips = [*([FeatureInfo(detail, 2)] if detail else []), *features[:-1]]
        convs = [shared_convs] * len(skips) if isinstance(shared_convs, int) else list(shared_convs)
        wrong = len(widths) != 1 + len(skips) or len(convs) != len(skips) or min(*widths, *convs, branch_width) < 1
        if wrong or min(detail, branch_convs) < 0:
            raise ConfigError(
                f"decoder 'pyramid' has widths {list(widths)}, detail {detail}, shared_convs {shared_convs}, "
                f"branch_convs {branch_convs}, branch_width {branch_width}; give {1 + len(skips)} widths, all from 1, "
                "detail and branch_convs from 0"
            )
        if embedding:
            check_embedding("pyramid", branches)
        self.embedding, self.branch_convs = embedding, branch_convs
        self.strides = [skip.stride for skip in reversed(skips)]
        self.out_channels = widths[0]
        self.detail = nn.Sequential(*_strided(detail)) if detail else None
        self.ups, self.levels = nn.ModuleList(), nn.ModuleList()
        below, stride = features[-1].channels, strides[-1]
        for skip, width, num_convs in zip(reversed(skips), reversed(widths[1:]), reversed(convs), strict=True):
            steps = (stride // skip.stride).bit_length() - 1
            self.ups.append(_ups(below, width, steps=steps))
            joined = skip.channels + (width if steps else below)
            self.levels.append(_convs([joined, *[width] * num_convs], dropout=dropout))
            below, stride = width, skip.stride
        self.paths = nn.ModuleDict(
            {
                branch: nn.Sequential(
                    *_convs([below, *[branch_width] * branch_convs], dropout=dropout),
                    nn.Conv2d(branch_width if branch_convs else below, 4 * widths[0], 1),
                    nn.PixelShuffle(2),
                )
                for branch in branches
            }
        )

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Decode a batch; see :class:`Decoder`."""
        x = features[-1]
        quarter: list[Tensor] = []
        skips = [*features[-2::-1], *([] if self.detail is None else [self.detail(image)])]
        for up, level, skip, stride in zip(self.ups, self.levels, skips, self.strides, strict=True):
            x = level(torch.cat([skip, up(x)], dim=1))
            quarter = [x] if stride == QUARTER else quarter
        paths = {branch: cast(nn.Sequential, path) for branch, path in self.paths.items()}
        inside = {branch: path[: self.branch_convs](x) for branch, path in paths.items()}
        maps = {branch: path[self.branch_convs :](inside[branch]) for branch, path in paths.items()}
        if self.embedding:
            maps[EMBEDDING_MAP] = join_embedding(x, inside[NUCLEI_TYPE_MAP], quarter=quarter)
        return maps


def _strided(channels: int) -> list[nn.Module]:
    """Return a convolution of the image whose output pixels are squares of 2 x 2 pixels with a rim of one."""
    return [nn.Conv2d(3, channels, 4, 2, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _ups(channels: int, width: int, *, steps: int) -> nn.Module:
    """Return transposed convolutions that enlarge ``2**steps`` times."""
    sizes = [channels, *[width] * steps]
    layers = [upsample(a, b) for a, b in itertools.pairwise(sizes)]
    return layers[0] if steps == 1 else nn.Sequential(*layers)


def _convs(sizes: Sequence[int], *, dropout: float) -> nn.Sequential:
    """Return 3x3 convolution blocks between the given numbers of channels."""
    return nn.Sequential(*(conv_block(a, b, dropout=dropout) for a, b in itertools.pairwise(sizes)))
