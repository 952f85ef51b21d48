"""Building blocks of the decoder."""

from torch import nn


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
