"""The image encoders of Segment Anything: SAM-B, SAM-L and SAM-H."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.pretrained import rename
from cellvit.encoders.taps import choose_taps
from cellvit.errors import ConfigError
from cellvit.types import EncoderOutput, FeatureInfo

MAX_BIAS = 2**21
"""Entries of the position bias made at once, per head and image: 8 MiB in float32, 512 queries of a 1024 px image."""


class RelativeAttention(nn.Module):
    """Global self-attention on a token grid whose logits depend on the distance of query and key.

    To ``q . k / sqrt(d)`` come ``q . r_h(row distance)`` and ``q . r_w(column distance)``, both with the unscaled
    ``q`` [1]. The bias is made for a few rows of queries at a time, so memory grows with the number of tokens and not
    with its square, unless gradients are kept.

    Args:
        plain: ``segment_anything``'s attention; its parameters are taken over under their names.

    References:
        [1] Li et al., MViTv2: Improved multiscale vision transformers for classification and detection, CVPR 2022,
        DOI 10.1109/CVPR52688.2022.00476.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.num_heads: int = plain.num_heads
        self.qkv, self.proj = plain.qkv, plain.proj
        self.rel_pos_h, self.rel_pos_w = plain.rel_pos_h, plain.rel_pos_w

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the attended tokens; ``(B, h, w, D)`` in and out."""
        batch, height, width, channels = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        grid = query.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hck->bnhwk", grid, distance_table(self.rel_pos_h, height))
        by_column = torch.einsum("bnhwc,wck->bnhwk", grid, distance_table(self.rel_pos_w, width))
        rows = max(1, MAX_BIAS // (height * width * width))
        parts = [
            F.scaled_dot_product_attention(q.flatten(2, 3), key, value, attn_mask=_bias(a, b))
            for q, a, b in zip(*(x.split(rows, dim=2) for x in (grid, by_row, by_column)), strict=True)
        ]
        attended = torch.cat(parts, dim=2).transpose(1, 2).reshape(batch, height, width, channels)
        return self.proj(attended)  # type: ignore[no-any-return]


def distance_table(table: Tensor, side: int) -> Tensor:
    """Return the embedding of the distance of every query to every key along one side.

    Args:
        table: ``(L, C)``, one row per distance from ``-(L - 1) / 2`` up; interpolated linearly to the ``2 * side - 1``
            distances that occur.
        side: Tokens ``n`` along the side.

    Returns:
        ``(n, C, n)``; entry ``[i, :, j]`` belongs to distance ``i - j``.

    Example:
        >>> distance_table(torch.tensor([[-1.0], [0.0], [1.0]]), 2)[:, 0]
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    distances = 2 * side - 1
    if len(table) != distances:
        table = F.interpolate(table.T[None], size=distances, mode="linear")[0].T
    return table.unfold(0, side, 1).flip(-1)


def _bias(by_row: Tensor, by_column: Tensor) -> Tensor:
    """Return ``(B, heads, queries, keys)`` from ``(B, heads, rows, w, h)`` and ``(B, heads, rows, w, w)``."""
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(4).flatten(2, 3)


STRIDE = 16
IMAGE_ENCODER = "image_encoder."
OTHER_PARTS = ("prompt_encoder.", "mask_decoder.")


class SAMSize(NamedTuple):
    """Published width, number of blocks and heads."""

    embed_dim: int
    depth: int
    num_heads: int


@ENCODERS.register("sam-b")
class SAMEncoder(Encoder):
    """The image encoder of ``segment-anything`` [1]; SAM-B by default.

    The four maps are raw block outputs; the pooled vector is the mean over the image of the neck's output, which
    serves nothing else. Most blocks attend within windows, padded at the right and the bottom with zero tokens that
    take part; the global blocks interpolate their relative positions linearly to the grid at hand.

    The absolute position embedding belongs to the grid of a 1024 px image. Smaller images get its top left corner, as
    released weights were trained. Larger ones are an extension of ours: the embedding is stretched bicubically along
    the sides that are too long.

    Args:
        embed_dim: Channels ``D`` of a token; None is the published size, as for the next two.
        depth: Number of blocks.
        num_heads: Attention heads per block.
        taps: Four blocks to tap, counted from 1; None spaces them evenly.
        global_attention: Blocks without windows, counted from 0; None spaces four evenly, the last block among them.
        window_size: Tokens per window side.
        pretrained_grid: Tokens per side of the position embedding.
        out_chans: Channels ``P`` of the neck.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.

    Raises:
        ConfigError: If sizes do not fit each other or are not positive.

    References:
        [1] Kirillov et al., Segment Anything, ICCV 2023, DOI 10.1109/ICCV51070.2023.00371.
    """

    size: ClassVar[SAMSize] = SAMSize(768, 12, 12)
    has_published_files: ClassVar[bool] = True

    def __init__(
        self,
        *,
        embed_dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        taps: Sequence[int] | None = None,
        global_attention: Sequence[int] | None = None,
        window_size: int = 14,
        pretrained_grid: int = 64,
        out_chans: int = 256,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        given = (embed_dim, depth, num_heads)
        size = SAMSize(*(own if own is not None else usual for own, usual in zip(given, self.size, strict=True)))
        _check_sizes(size, window_size=window_size, pretrained_grid=pretrained_grid, out_chans=out_chans)
        self.taps = choose_taps(size.depth, taps=taps)
        self.net: Any = ImageEncoderViT(
            img_size=pretrained_grid * STRIDE,
            patch_size=STRIDE,
            **size._asdict(),
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window_size,
            global_attn_indexes=_global_blocks(size.depth, chosen=global_attention),
            out_chans=out_chans,
        )
        for block in self.net.blocks:
            block.attn = RelativeAttention(block.attn)
        self.features = [FeatureInfo(size.embed_dim, STRIDE)] * len(self.taps)
        self.pooled_channels = out_chans
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        tokens = self.net.patch_embed(image)
        tokens = tokens + fit_position(self.net.pos_embed, tokens.shape[1:3])
        maps = []
        for number, block in enumerate(self.net.blocks, start=1):
            if self.gradient_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if number in self.taps:
                maps.append(tokens.permute(0, 3, 1, 2))
        return EncoderOutput(maps, self.net.neck(tokens.permute(0, 3, 1, 2)).mean((2, 3)))

    def pooled_parameters(self) -> list[nn.Parameter]:
        """Return what follows the last tap: the neck, and blocks before it."""
        after = [*self.net.blocks[self.taps[-1] :], self.net.neck]
        return [parameter for module in after for parameter in module.parameters()]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the stem, then each block, then the neck."""
        stem = [self.net.pos_embed, *self.net.patch_embed.parameters()]
        return [stem, *(list(block.parameters()) for block in self.net.blocks), list(self.net.neck.parameters())]

    def weights_from(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Read a file of SAM, whose prompt encoder and mask decoder are left out, or its image encoder alone."""
        return rename(content, _own_name)


@ENCODERS.register("sam-l")
class SAMLargeEncoder(SAMEncoder):
    """SAM-L; see :class:`SAMEncoder`."""

    size: ClassVar[SAMSize] = SAMSize(1024, 24, 16)


@ENCODERS.register("sam-h")
class SAMHugeEncoder(SAMEncoder):
    """SAM-H; see :class:`SAMEncoder`."""

    size: ClassVar[SAMSize] = SAMSize(1280, 32, 16)


def fit_position(position: Tensor, grid: Sequence[int]) -> Tensor:
    """Return a position embedding for another grid: cut along a shorter side, stretched along a longer one.

    Args:
        position: ``(1, n0, n0, D)``.
        grid: ``(h, w)`` of the image at hand.

    Returns:
        ``(1, h, w, D)``.
    """
    height, width = grid
    corner = position[:, :height, :width]
    if corner.shape[1:3] == (height, width):
        return corner
    stretched = F.interpolate(corner.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False)
    return stretched.permute(0, 2, 3, 1)


def _own_name(name: str) -> str | None:
    return None if name.startswith(OTHER_PARTS) else f"net.{name.removeprefix(IMAGE_ENCODER)}"


def _global_blocks(depth: int, *, chosen: Sequence[int] | None) -> tuple[int, ...]:
    blocks = tuple(chosen) if chosen is not None else tuple(tap - 1 for tap in choose_taps(depth, taps=None))
    outside = [block for block in blocks if not 0 <= block < depth]
    if outside:
        raise ConfigError(f"global_attention {outside} must be block numbers from 0 to {depth - 1}")
    return blocks


def _check_sizes(size: SAMSize, **others: int) -> None:
    sizes = {**size._asdict(), **others}
    wrong = {name: value for name, value in sizes.items() if value < 1}
    if wrong:
        raise ConfigError(f"sizes {wrong} must be at least 1")
    if size.embed_dim % size.num_heads:
        raise ConfigError(f"embed_dim {size.embed_dim} must be a multiple of num_heads {size.num_heads}")
