"""The UNETR-style decoder of CellViT."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cellvit.decoders.base import DECODERS, Decoder
from cellvit.errors import ConfigError
from cellvit.types import FeatureInfo


def conv_block(channels: int, out_channels: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Return 3x3 convolution, batch norm, ReLU, dropout: ``(B, C, H, W)`` to ``(B, C', H, W)``."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def up_block(channels: int, out_channels: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Return 2x2 stride-2 transposed convolution and a convolution block: ``(B, C, H, W)`` to ``(B, C', 2H, 2W)``."""
    return nn.Sequential(upsample(channels, out_channels), *conv_block(out_channels, out_channels, dropout=dropout))


def upsample(channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Return a 2x2 stride-2 transposed convolution: ``(B, C, H, W)`` to ``(B, C', 2H, 2W)``."""
    return nn.ConvTranspose2d(channels, out_channels, 2, stride=2)


NUM_LEVELS = 4
"""Levels at strides 1, 2, 4 and 8; level 0 is full resolution."""


@DECODERS.register("unetr")
class UNETRDecoder(Decoder):
    """Upsamples the deepest feature map in four steps, joined at each by a skip that all branches share.

    Level ``k`` works at stride ``2**k``: the skip from the encoder (from the image at level 0) is concatenated in
    front of what comes from below, convolved (three times at level 3, twice elsewhere) and upsampled. Skips
    of a plain ViT all have stride 16 and are brought to their level by transposed convolutions; a pyramid whose
    map already has the level's stride needs one convolution. Skips are computed once for all branches.

    The defaults are the published widths; smaller ones make a narrower network of the same shape.

    Args:
        features: The encoder's four maps, finest skip first, the deepest at stride 16.
        branches: Names of the branches.
        widths: Channels at levels 0, 1, 2 and 3; None is the published ``(64, 128, 256, n)`` with ``n`` 312 for
            encoders narrower than 512 channels and 512 otherwise.
        skip_widths: Channels of a skip on its way up, by step; None is the published (256, 128) or (512, 256).
        image_width: Channels of the first convolution on the image.
        shared_levels: Levels that the branches share, counted from the deepest: 0 is the published network, 4 its
            'shared decoder' ablation with nothing but the heads apart.
        dropout: Dropout in every convolution block.

    Raises:
        ConfigError: If the strides of the features do not fit, naming the feature.
    """

    def __init__(
        self,
        features: Sequence[FeatureInfo],
        branches: Sequence[str],
        *,
        widths: Sequence[int] | None = None,
        skip_widths: Sequence[int] | None = None,
        image_width: int = 32,
        shared_levels: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(features, branches)
        _check_strides(features)
        narrow = features[-1].channels < 512
        sizes = tuple(widths) if widths is not None else (64, 128, 256, 312 if narrow else 512)
        steps = tuple(skip_widths) if skip_widths is not None else ((256, 128) if narrow else (512, 256))
        if len(sizes) != NUM_LEVELS or not 0 <= shared_levels <= NUM_LEVELS:
            message = (
                f"widths {sizes} need {NUM_LEVELS} numbers, shared_levels {shared_levels} is from 0 to {NUM_LEVELS}"
            )
            raise ConfigError(message)
        self.out_channels = sizes[0]
        image_skip = nn.Sequential(
            conv_block(3, image_width, dropout=dropout), conv_block(image_width, sizes[0], dropout=dropout)
        )
        self.skips = nn.ModuleList([image_skip])
        for level, feature in enumerate(features[:-1], start=1):
            self.skips.append(_skip(feature, steps, sizes[level], level=level, dropout=dropout))
        paths = [*range(NUM_LEVELS - 1, -1, -1)]
        self.trunk = _UpPath(features[-1].channels, sizes, paths[:shared_levels], dropout=dropout)
        self.paths = nn.ModuleDict(
            {
                branch: _UpPath(features[-1].channels, sizes, paths[shared_levels:], dropout=dropout)
                for branch in branches
            }
        )

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Decode a batch; see :class:`Decoder`."""
        skips = [skip(x) for skip, x in zip(self.skips, [image, *features[:-1]], strict=True)]
        trunk = self.trunk(features[-1], skips)
        return {branch: path(trunk, skips) for branch, path in self.paths.items()}


class _UpPath(nn.Module):
    """Some consecutive levels of the way up; the path that starts at the deepest level owns the first upsampling."""

    def __init__(self, channels: int, widths: Sequence[int], levels: Sequence[int], *, dropout: float) -> None:
        super().__init__()
        deepest = NUM_LEVELS - 1
        self.bottleneck = upsample(channels, widths[deepest]) if deepest in levels else nn.Identity()
        self.levels = nn.ModuleDict()
        for level in levels:
            width, convs = widths[level], 3 if level == deepest else 2
            layers: list[nn.Module] = [conv_block(2 * width, width, dropout=dropout)]
            layers += [conv_block(width, width, dropout=dropout) for _ in range(convs - 1)]
            if level:
                layers.append(upsample(width, widths[level - 1]))
            self.levels[str(level)] = nn.Sequential(*layers)

    def forward(self, below: Tensor, skips: Sequence[Tensor]) -> Tensor:
        below = self.bottleneck(below)
        for level, layers in self.levels.items():
            below = layers(torch.cat([skips[int(level)], below], dim=1))
        return below


def _skip(feature: FeatureInfo, steps: Sequence[int], width: int, *, level: int, dropout: float) -> nn.Sequential:
    ups = feature.stride.bit_length() - 1 - level
    if not ups:
        return conv_block(feature.channels, width, dropout=dropout)
    sizes = [feature.channels, *steps[: ups - 1], width]
    return nn.Sequential(*(up_block(a, b, dropout=dropout) for a, b in itertools.pairwise(sizes)))


def _check_strides(features: Sequence[FeatureInfo]) -> None:
    if len(features) != NUM_LEVELS:
        raise ConfigError(f"decoder 'unetr' needs {NUM_LEVELS} feature maps, the encoder gives {len(features)}")
    for level, feature in enumerate(features, start=1):
        wanted = 2**level
        power = feature.stride & (feature.stride - 1) == 0
        if not power or feature.stride < wanted or feature.stride > 2**NUM_LEVELS:
            message = (
                f"feature {level} has stride {feature.stride}; decoder 'unetr' needs a power of two from {wanted} to 16"
            )
            raise ConfigError(message)
    if features[-1].stride != 2**NUM_LEVELS:
        raise ConfigError(f"the deepest feature has stride {features[-1].stride}; decoder 'unetr' needs 16")
