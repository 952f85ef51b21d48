"""Attention with decomposed relative positions on the fused kernels of torch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
