"""The plain Vision Transformer of CellViT-256."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.pretrained import rename
from cellvit.encoders.taps import choose_taps
from cellvit.errors import WeightsError
from cellvit.types import EncoderOutput, FeatureInfo

PRETRAINING_SIZE = 224


@ENCODERS.register("random")
@ENCODERS.register("vit-256")
class ViTEncoder(Encoder):
    """A plain ViT whose raw block outputs are tapped; ViT-S/16 by default.

    The four maps are the outputs of the tapped blocks without the final norm and without the class token. The
    pooled vector is the class token after the final norm. The position embedding belongs to the grid of a
    224 px image and is interpolated bicubically to any other grid with DINO's scale factor
    ``(n + 0.1) / n0`` [1], which is also the true sampling scale.

    ``vit-256`` and ``random`` name the same network: the published ``Random`` experiment only leaves out the
    pre-trained weights.

    Args:
        patch_size: Pixels per token side; a power of two up to 16.
        embed_dim: Channels ``D`` of a token.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        taps: Four blocks to tap, counted from 1; None spaces them evenly.
        drop_rate: Dropout after the position embedding and inside the blocks.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have linearly less.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.

    References:
        [1] Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021,
        DOI 10.1109/ICCV48922.2021.00951.
    """

    has_published_files: ClassVar[bool] = True
    exports_any_size = True

    def __init__(
        self,
        *,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        taps: Sequence[int] | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.1,
        drop_path_rate: float = 0.1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.taps = choose_taps(depth, taps=taps)
        self.vit: Any = VisionTransformer(
            img_size=PRETRAINING_SIZE,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_classes=0,
            pos_drop_rate=drop_rate,
            proj_drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        self.features = [FeatureInfo(embed_dim, patch_size)] * len(self.taps)
        self.pooled_channels = embed_dim
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        patches = self.vit.patch_embed.proj(image)
        grid = patches.shape[-2:]
        tokens = torch.cat([self.vit.cls_token.expand(image.shape[0], -1, -1), _as_tokens(patches)], dim=1)
        tokens = self.vit.pos_drop(tokens + interpolate_position(self.vit.pos_embed, grid))
        maps = []
        for number, block in enumerate(self.vit.blocks, start=1):
            if self.gradient_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if number in self.taps:
                maps.append(_as_map(tokens[:, 1:].transpose(1, 2), grid))
        return EncoderOutput(maps, self.vit.norm(tokens[:, :1])[:, 0])

    def pooled_parameters(self) -> list[nn.Parameter]:
        """Return what follows the last tap: the final norm, and blocks after it."""
        after = [*self.vit.blocks[self.taps[-1] :], self.vit.norm]
        return [parameter for module in after for parameter in module.parameters()]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the stem, then each block, then the final norm."""
        stem = [self.vit.cls_token, self.vit.pos_embed, *self.vit.patch_embed.parameters()]
        return [stem, *(list(block.parameters()) for block in self.vit.blocks), list(self.vit.norm.parameters())]

    def weights_from(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Read a file of DINO, such as HIPT's: the teacher without its projection head; or a backbone alone."""
        teacher = content.get("teacher", content)
        if not isinstance(teacher, Mapping):
            raise WeightsError(f"its 'teacher' is a {type(teacher).__name__}, not named tensors; give a file of DINO")
        return rename(teacher, _own_name)


def _as_tokens(patches: Tensor) -> Tensor:
    """Return a map ``(B, D, h, w)`` as tokens ``(B, h * w, D)``."""
    height, width = patches.shape[-2:]
    if torch.compiler.is_exporting():  # picked, as a view would ask how the sides lie in memory
        token = torch.arange(height * width, device=patches.device)
        row = token // width
        return patches[:, :, row, token - row * width].transpose(1, 2)
    return patches.flatten(2).transpose(1, 2)


def _as_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Return tokens ``(B, D, h * w)`` as ``(B, D, h, w)``."""
    if not torch.compiler.is_exporting():
        return tokens.reshape(*tokens.shape[:2], *grid)
    y, x = (torch.arange(side, device=tokens.device) for side in grid)
    return tokens[:, :, y[:, None] * grid[1] + x]


def interpolate_position(position: Tensor, grid: Sequence[int]) -> Tensor:
    """Return a position embedding for another grid, by DINO's rule.

    Args:
        position: ``(1, 1 + n0 * n0, D)``, class token first.
        grid: ``(h, w)`` of the image at hand.

    Returns:
        ``(1, 1 + h * w, D)``; unchanged if the grid is the stored one.
    """
    side = round((position.shape[1] - 1) ** 0.5)
    height, width = grid
    if torch.compiler.is_exporting():
        return _picked_position(position, side, grid)
    if (height, width) == (side, side):
        return position
    stored = position[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    # the 0.1 guards the output size against rounding, and because the factor is also the sampling scale it
    # shifts the samples a little: released weights were trained with exactly this
    factor = ((height + 0.1) / side, (width + 0.1) / side)
    scaled = F.interpolate(stored, scale_factor=factor, mode="bicubic", align_corners=False)
    return torch.cat([position[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)


def _picked_position(position: Tensor, side: int, grid: Sequence[int]) -> Tensor:
    """Return :func:`interpolate_position` in terms that hold for any grid, also the stored one."""
    height, width = grid
    is_stored = (torch.scalar_tensor(height) == side) & (torch.scalar_tensor(width) == side)
    more = torch.where(is_stored, 0.0, 0.1)
    down, across = (cubic_weights(n, side, (n + more) / side).to(position) for n in grid)
    token = torch.arange(height * width, device=position.device)
    row = token // width
    rows = down.index_select(0, row) @ position[0, 1:].reshape(side, -1)
    columns = across.index_select(0, token - row * width)
    scaled = (rows.reshape(height * width, side, -1) * columns[..., None]).sum(1)
    return torch.cat([position[:, :1], scaled[None]], dim=1)


def cubic_weights(size: int, side: int, factor: float | Tensor) -> Tensor:
    """Return the matrix ``(size, side)`` that resamples a line of values as ``F.interpolate`` does, bicubically.

    Args:
        size: Values of the result.
        side: Values of the line; beyond its ends it goes on with the last one.
        factor: By which it is enlarged.

    Example:
        >>> cubic_weights(4, 2, 2.0) @ torch.tensor([0.0, 1.0])
        tensor([-0.1055,  0.2266,  0.7734,  1.1055])
    """
    at = (torch.arange(size) + 0.5) / factor - 0.5
    taps = at.floor()[:, None] + torch.arange(-1, 3)
    far = (at[:, None] - taps).abs()
    a = -0.75  # as torch has it
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    weights = torch.where(far <= 1, near, outer)
    columns = taps.clamp(0, side - 1)[..., None] == torch.arange(side)
    return (weights[..., None] * columns).sum(1)


def _own_name(name: str) -> str | None:
    plain = name.removeprefix("module.").removeprefix("backbone.")
    return None if plain.startswith("head.") else f"vit.{plain}"
