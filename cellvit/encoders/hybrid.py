"""A small encoder that learns from little data: a convolutional pyramid with a windowed ViT on top."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.resolution import DEEPEST, enlarged, shrunk
from cellvit.errors import ConfigError
from cellvit.types import EncoderOutput, FeatureInfo


@ENCODERS.register("hybrid")
class HybridEncoder(Encoder):
    """Strided convolutions down to 16 px, then transformer blocks on windows of tokens.

    A ViT cut into 16 px patches needs millions of images; early convolutions replace that need [1]. The skips of
    the decoder are the convolutional maps at strides 2, 4 and 8, so the decoder has nothing to invent. Positions
    come from a depthwise 3x3 convolution before every block [2] and attention stays within windows, so cost grows
    linearly with the image and a model trained at 256 px means the same at 1024 px.

    With ``shrink`` 2 the image is averaged over 2 x 2 pixels first, so that all of this works at half the resolution,
    for a quarter of the cost: the convolutional maps have strides 4, 8 and 16, and a transposed convolution brings the
    tokens from stride 32 to 16.

    Args:
        widths: Channels at strides 2, 4 and 8.
        residual_blocks: Residual blocks of two convolutions [3] that follow the two convolutions of each stage: at
            strides 2, 4 and 8.
        embed_dim: Channels ``D`` of a token.
        depth: Number of transformer blocks.
        num_heads: Attention heads per block.
        window: Tokens per window side.
        mlp_ratio: Hidden width of a block's MLP over ``D``.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have linearly less.
        shrink: 1, or 2 for half the resolution.
        neck_channels: Channels of the deepest map with ``shrink`` 2; None takes ``embed_dim``.

    Raises:
        ConfigError: If there is not one number of residual blocks for each width, the heads do not divide a token, or
            shrink and neck do not fit.

    References:
        [1] Xiao et al., Early convolutions help transformers see better, NeurIPS 2021.
        [2] Chu et al., Conditional positional encodings for vision transformers, ICLR 2023.
        [3] He et al., Deep residual learning for image recognition, CVPR 2016.
    """

    exports_any_size = True

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
        shrink: int = 1,
        neck_channels: int | None = None,
    ) -> None:
        super().__init__()
        if len(residual_blocks) != len(widths) or min(residual_blocks, default=0) < 0:
            message = f"residual_blocks {list(residual_blocks)} do not fit widths {list(widths)}"
            raise ConfigError(f"{message}; give one number from 0 for each width")
        if num_heads < 1 or embed_dim % num_heads:
            raise ConfigError(f"embed_dim {embed_dim} cannot be shared by {num_heads} heads; give a multiple of them")
        if shrink not in (1, 2) or (neck_channels is not None and (shrink == 1 or neck_channels < 1)):
            raise ConfigError(
                f"encoder 'hybrid' has shrink {shrink}, neck_channels {neck_channels}; give shrink 1, which has no "
                "neck, or shrink 2 and channels from 1"
            )
        sizes = [3, *widths, embed_dim]
        self.window = window
        blocks = [*residual_blocks, 0]
        self.stages = nn.ModuleList(
            _stage(a, b, residual_blocks=n) for (a, b), n in zip(itertools.pairwise(sizes), blocks, strict=True)
        )
        rates = torch.linspace(0, drop_path_rate, depth).tolist()
        self.positions = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, 1, 1, groups=embed_dim) for _ in rates)
        self.blocks = nn.ModuleList(
            _Block(embed_dim, num_heads, hidden=int(embed_dim * mlp_ratio), drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.shrink = shrink
        neck = neck_channels or embed_dim
        self.neck = nn.ConvTranspose2d(embed_dim, neck, shrink, shrink) if shrink > 1 else None
        maps = [FeatureInfo(channels, shrink * 2 ** (i + 1)) for i, channels in enumerate(widths)]
        self.features = [*maps, FeatureInfo(neck, DEEPEST)]
        self.pooled_channels = embed_dim

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        size = (image.shape[-2] // DEEPEST, image.shape[-1] // DEEPEST)
        tokens, maps = shrunk(image, self.shrink), []
        for stage in self.stages:
            tokens = stage(tokens)
            maps.append(tokens)
        for position, block in zip(self.positions, self.blocks, strict=True):
            tokens = attend_in_windows(tokens + position(tokens), block, window=self.window)
        tokens = self.norm(tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        deepest = tokens if self.neck is None else enlarged(self.neck(tokens), 1, size)
        return EncoderOutput([*maps[:-1], deepest], tokens.mean((2, 3)))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return each convolutional stage, then each block with its position, then the norm and the neck."""
        pairs = zip(self.positions, self.blocks, strict=True)
        return [
            *(list(stage.parameters()) for stage in self.stages),
            *([*position.parameters(), *block.parameters()] for position, block in pairs),
            [*self.norm.parameters(), *([] if self.neck is None else self.neck.parameters())],
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
    if torch.compiler.is_exporting():
        return _attend_in_square_windows(tokens, block, window)
    batch, channels, height, width = tokens.shape
    rows, cols = (-(-side // -(-side // window)) for side in (height, width))
    missing = (0, -width % cols, 0, -height % rows)
    # a traced network pads always, by nothing where nothing is missing, and so does for every size
    always = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    padded = F.pad(tokens, missing, mode="replicate") if always or any(missing) else tokens
    down, across = padded.shape[2] // rows, padded.shape[3] // cols
    split = padded.reshape(batch, channels, down, rows, across, cols).permute(0, 2, 4, 3, 5, 1)
    done: Tensor = block(split.reshape(-1, rows * cols, channels))
    joined = done.reshape(batch, down, across, rows, cols, channels).permute(0, 5, 1, 3, 2, 4)
    return joined.reshape(padded.shape)[:, :, :height, :width]


def _attend_in_square_windows(tokens: Tensor, block: nn.Module, window: int) -> Tensor:
    """Return what :func:`attend_in_windows` does, for graphs whose sizes are not known yet.

    Sides of windows depend on the image, and no exporter can divide by such. Here every window has ``window``
    places each way, and those beyond its rows and columns are no keys.
    """
    batch, channels, height, width = tokens.shape
    down, across = ((side + window - 1) // window for side in (height, width))
    rows, cols = (height + down - 1) // down, (width + across - 1) // across
    places = window * window
    windows = down * across + 1  # one more than there are: an exporter treats a size of 1 as another case
    which, place = _divided(torch.arange(windows * places, device=tokens.device), places)
    (i, j), (top, left) = _divided(which, across), _divided(place, window)
    y, x = (i * rows + top).clamp(max=height - 1), (j * cols + left).clamp(max=width - 1)
    split = tokens[:, :, y, x].transpose(1, 2)
    top, left = _divided(torch.arange(places, device=tokens.device), window)
    is_key = ((top < rows) & (left < cols))[None]
    done: Tensor = block(split.reshape(batch * windows, places, channels), is_key)
    y, x = (torch.arange(side, device=tokens.device) for side in (height, width))
    (i, top), (j, left) = _divided(y, rows), _divided(x, cols)
    at = (i * across * places + top * window)[:, None] + (j * places + left)
    return done.reshape(batch, windows * places, channels).transpose(1, 2)[:, :, at]


def _divided(numbers: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Return quotient and remainder; ``%`` by a size that is not known yet cannot be written as ONNX."""
    whole = numbers // by
    return whole, numbers - whole * by


class _Block(nn.Module):
    """Attention and an MLP, each normalised before, beside an identity: ``(B, N, D)`` to the same shape.

    Here and not from timm, whose import takes longer than a small image. Names of weights are those of timm's block.
    """

    def __init__(self, channels: int, num_heads: int, *, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = _Attention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        layers = {"fc1": nn.Linear(channels, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, channels)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, is_key: Tensor | None = None) -> Tensor:
        tokens = tokens + self._dropped(self.attn(self.norm1(tokens), is_key))
        return tokens + self._dropped(self.mlp(self.norm2(tokens)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Return a branch with some rows of the batch at 0 and the others scaled up for it: stochastic depth."""
        if not self.training or not self.drop_path:
            return branch
        kept = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(kept).div_(kept)


class _Attention(nn.Module):
    """Self-attention of several heads: ``(B, N, D)`` to the same shape."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, is_key: Tensor | None = None) -> Tensor:
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed: Tensor = self.proj(
            F.scaled_dot_product_attention(query, key, value, attn_mask=is_key).transpose(1, 2).flatten(2)
        )
        return mixed


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
