"""A small encoder that learns from little data: a convolutional pyramid with a windowed ViT on top."""

import itertools
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.errors import ConfigError
from cellvit.types import EncoderOutput, FeatureInfo


@ENCODERS.register("hybrid")
class HybridEncoder(Encoder):
    """Strided convolutions down to 16 px, then transformer blocks on windows of tokens.

    A ViT cut into 16 px patches needs millions of images; early convolutions replace that need [1]. The skips of
    the decoder are the convolutional maps at strides 2, 4 and 8, so the decoder has nothing to invent. Positions
    come from a depthwise 3x3 convolution before every block [2] and attention stays within windows, so cost grows
    linearly with the image and a model trained at 256 px means the same at 1024 px.

    Args:
        widths: Channels at strides 2, 4 and 8.
        residual_blocks: Residual blocks of two convolutions [3] that follow the two convolutions of each stage: at
            strides 2, 4 and 8.
        embed_dim: Channels ``D`` of a token at stride 16.
        depth: Number of transformer blocks.
        num_heads: Attention heads per block.
        window: Tokens per window side.
        mlp_ratio: Hidden width of a block's MLP over ``D``.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have linearly less.

    Raises:
        ConfigError: If there is not one number of residual blocks for each width.

    References:
        [1] Xiao et al., Early convolutions help transformers see better, NeurIPS 2021.
        [2] Chu et al., Conditional positional encodings for vision transformers, ICLR 2023.
        [3] He et al., Deep residual learning for image recognition, CVPR 2016.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (24, 48, 96),
        embed_dim: int = 192,
        depth: int = 4,
        num_heads: int = 6,
        window: int = 16,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        residual_blocks: Sequence[int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        if len(residual_blocks) != len(widths) or min(residual_blocks, default=0) < 0:
            message = f"residual_blocks {list(residual_blocks)} do not fit widths {list(widths)}"
            raise ConfigError(f"{message}; give one number from 0 for each width")
        sizes = [3, *widths, embed_dim]
        self.window = window
        blocks = [*residual_blocks, 0]
        self.stages = nn.ModuleList(
            _stage(a, b, residual_blocks=n) for (a, b), n in zip(itertools.pairwise(sizes), blocks, strict=True)
        )
        rates = torch.linspace(0, drop_path_rate, depth).tolist()
        self.positions = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, 1, 1, groups=embed_dim) for _ in rates)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=True, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.features = [FeatureInfo(c, 2 ** (i + 1)) for i, c in enumerate(sizes[1:])]
        self.pooled_channels = embed_dim

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        tokens = image
        for position, block in zip(self.positions, self.blocks, strict=True):
            tokens = attend_in_windows(tokens + position(tokens), block, window=self.window)
        tokens = self.norm(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return EncoderOutput([*maps[:-1], tokens], tokens.mean((2, 3)))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return each convolutional stage, then each block with its position, then the norm."""
        pairs = zip(self.positions, self.blocks, strict=True)
        return [
            *(list(stage.parameters()) for stage in self.stages),
            *([*position.parameters(), *block.parameters()] for position, block in pairs),
            list(self.norm.parameters()),
        ]


def attend_in_windows(tokens: Tensor, block: nn.Module, *, window: int) -> Tensor:
    """Run a transformer block on each window of a token map by itself.

    Args:
        tokens: ``(B, D, h, w)``. As few windows as possible share each side evenly; the one or two tokens that may
            lack are repeated from the right and bottom edges.
        block: Maps ``(B', rows * cols, D)`` to the same shape.
        window: Most tokens per window side.

    Returns:
        ``(B, D, h, w)``.
    """
    batch, channels, height, width = tokens.shape
    rows, cols = (-(-side // -(-side // window)) for side in (height, width))
    missing = (0, -width % cols, 0, -height % rows)
    padded = F.pad(tokens, missing, mode="replicate") if any(missing) else tokens
    down, across = padded.shape[2] // rows, padded.shape[3] // cols
    split = padded.reshape(batch, channels, down, rows, across, cols).permute(0, 2, 4, 3, 5, 1)
    done: Tensor = block(split.reshape(-1, rows * cols, channels))
    joined = done.reshape(batch, down, across, rows, cols, channels).permute(0, 5, 1, 3, 2, 4)
    return joined.reshape(padded.shape)[:, :, :height, :width]


class _Residual(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_conv(channels, channels, 1), *_conv(channels, channels, 1)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


def _stage(channels: int, out_channels: int, *, residual_blocks: int) -> nn.Sequential:
    residual = [_Residual(out_channels) for _ in range(residual_blocks)]
    return nn.Sequential(*_conv(channels, out_channels, 2), *_conv(out_channels, out_channels, 1), *residual)


def _conv(channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
