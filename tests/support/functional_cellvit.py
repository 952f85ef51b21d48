"""CellViT stated a second time, plainly, on a state dict with the names of the released files.

It follows the published description and shares no code with the package or the libraries that the package builds on:
what it computes is an independent answer to what a released file means. Attention runs head by head, resampling is
written out as a matrix, batch norm as one multiplication and one addition.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
PATCH, WINDOW = 16, 14


class Size(NamedTuple):
    """Sizes of an encoder; blocks with global attention are counted from 0, tapped blocks from 1."""

    width: int
    depth: int
    heads: int
    taps: tuple[int, ...]
    global_blocks: tuple[int, ...] = ()  # none: a plain ViT, all of whose blocks are global

    @property
    def is_sam(self) -> bool:
        return bool(self.global_blocks)


SIZES = {
    "vit-256": Size(384, 12, 6, (3, 6, 9, 12)),
    "sam-b": Size(768, 12, 12, (3, 6, 9, 12), (2, 5, 8, 11)),
    "sam-l": Size(1024, 24, 16, (6, 12, 18, 24), (5, 11, 17, 23)),
    "sam-h": Size(1280, 32, 16, (8, 16, 24, 32), (7, 15, 23, 31)),
}


def network(w: State, image: Tensor, size: Size, *, mean: float = 0.5, std: float = 0.5) -> dict[str, Tensor]:
    """Return every output for images ``(B, 3, H, W)`` in [0, 1]."""
    x = (image - mean) / std
    taps, tissue = encode(w, x, size)
    maps = decode(w, x, taps)
    return {**maps, "tissue_types": tissue, "embedding_map": taps[3]}


def encode(w: State, x: Tensor, size: Size) -> tuple[list[Tensor], Tensor]:
    """Return four maps ``(B, D, H / 16, W / 16)`` and the tissue logits."""
    return sam_encoder(w, x, size) if size.is_sam else vit_encoder(w, x, size)


# The plain vision transformer.


def vit_encoder(w: State, x: Tensor, size: Size) -> tuple[list[Tensor], Tensor]:
    patches = F.conv2d(x, w["encoder.patch_embed.proj.weight"], w["encoder.patch_embed.proj.bias"], stride=PATCH)
    batch, width, rows, columns = patches.shape
    classes = w["encoder.cls_token"].expand(batch, 1, width)
    tokens = torch.cat([classes, patches.reshape(batch, width, rows * columns).transpose(1, 2)], dim=1)
    tokens = tokens + vit_position(w["encoder.pos_embed"], rows, columns)
    taps = []
    for i in range(size.depth):
        block = f"encoder.blocks.{i}"
        tokens = tokens + vit_attention(w, f"{block}.attn", norm(w, f"{block}.norm1", tokens), size.heads)
        hidden = F.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", tokens)))
        tokens = tokens + linear(w, f"{block}.mlp.fc2", hidden)
        if i + 1 in size.taps:
            taps.append(tokens[:, 1:].transpose(1, 2).reshape(batch, width, rows, columns))
    return taps, linear(w, "encoder.head", norm(w, "encoder.norm", tokens)[:, 0])


def vit_attention(w: State, name: str, x: Tensor, heads: int) -> Tensor:
    query, key, value = linear(w, f"{name}.qkv", x).chunk(3, dim=-1)
    parts = []
    for q, k, v in zip(*(t.chunk(heads, dim=-1) for t in (query, key, value)), strict=True):
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
        parts.append(weights @ v)
    return linear(w, f"{name}.proj", torch.cat(parts, dim=-1))


def vit_position(position: Tensor, rows: int, columns: int) -> Tensor:
    """Return the position embedding, bicubic on a grid whose step is that of a grid larger by 0.1."""
    side = math.isqrt(position.shape[1] - 1)
    grid = position[0, 1:].reshape(side, side, -1)
    down, across = (cubic_matrix(side, n, side / (n + 0.1)).to(grid) for n in (rows, columns))
    resampled = torch.einsum("ri,ijd,cj->rcd", down, grid, across)
    return torch.cat([position[:, :1], resampled.reshape(1, rows * columns, -1)], dim=1)


def cubic_matrix(stored: int, wanted: int, step: float) -> Tensor:
    """Return ``(wanted, stored)``: cubic convolution with a = -0.75, samples at pixel centres, borders repeated."""
    matrix = torch.zeros(wanted, stored, dtype=torch.float64)
    for i in range(wanted):
        place = (i + 0.5) * step - 0.5
        first = math.floor(place)
        for j in range(first - 1, first + 3):
            matrix[i, min(max(j, 0), stored - 1)] += cubic_kernel(place - j)
    return matrix


def cubic_kernel(distance: float, a: float = -0.75) -> float:
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


# The image encoder of SAM. Tokens are (B, h, w, D).


def sam_encoder(w: State, x: Tensor, size: Size) -> tuple[list[Tensor], Tensor]:
    patches = F.conv2d(x, w["encoder.patch_embed.proj.weight"], w["encoder.patch_embed.proj.bias"], stride=PATCH)
    tokens = patches.permute(0, 2, 3, 1)
    tokens = tokens + w["encoder.pos_embed"][:, : tokens.shape[1], : tokens.shape[2]]  # the top left corner
    taps = []
    for i in range(size.depth):
        block = f"encoder.blocks.{i}"
        attend = sam_attention if i in size.global_blocks else window_attention
        tokens = tokens + attend(w, f"{block}.attn", norm(w, f"{block}.norm1", tokens), size.heads)
        hidden = F.gelu(linear(w, f"{block}.mlp.lin1", norm(w, f"{block}.norm2", tokens)))
        tokens = tokens + linear(w, f"{block}.mlp.lin2", hidden)
        if i + 1 in size.taps:
            taps.append(tokens.permute(0, 3, 1, 2))
    neck = F.conv2d(taps[3], w["encoder.neck.0.weight"])
    neck = channel_norm(w, "encoder.neck.1", neck)
    neck = F.conv2d(neck, w["encoder.neck.2.weight"], padding=1)
    neck = channel_norm(w, "encoder.neck.3", neck)
    return taps, linear(w, "classifier_head", neck.mean((2, 3)))


def window_attention(w: State, name: str, x: Tensor, heads: int) -> Tensor:
    """Attend within windows of 14 x 14 tokens; the grid is filled up with zeros, which take part."""
    batch, rows, columns, _ = x.shape
    padded = F.pad(x, (0, 0, 0, -columns % WINDOW, 0, -rows % WINDOW))
    corners = [(r, c) for r in range(0, padded.shape[1], WINDOW) for c in range(0, padded.shape[2], WINDOW)]
    windows = torch.cat([padded[:, r : r + WINDOW, c : c + WINDOW] for r, c in corners])
    attended = sam_attention(w, name, windows, heads)
    result = torch.empty_like(padded)
    for (r, c), window in zip(corners, attended.split(batch), strict=True):
        result[:, r : r + WINDOW, c : c + WINDOW] = window
    return result[:, :rows, :columns]


def sam_attention(w: State, name: str, x: Tensor, heads: int) -> Tensor:
    batch, rows, columns, width = x.shape
    query, key, value = linear(w, f"{name}.qkv", x).chunk(3, dim=-1)
    down = distances(w[f"{name}.rel_pos_h"], rows)
    across = distances(w[f"{name}.rel_pos_w"], columns)
    parts = []
    for q, k, v in zip(*(t.chunk(heads, dim=-1) for t in (query, key, value)), strict=True):
        scaled = (q / math.sqrt(q.shape[-1])).flatten(1, 2)
        logits = (scaled @ k.flatten(1, 2).transpose(1, 2)).reshape(batch, rows, columns, rows, columns)
        logits += torch.einsum("brcd,rkd->brck", q, down)[..., :, None]  # q as it is, not scaled
        logits += torch.einsum("brcd,ckd->brck", q, across)[..., None, :]
        weights = torch.softmax(logits.flatten(3).flatten(1, 2), dim=-1)
        parts.append(weights @ v.flatten(1, 2))
    attended = torch.cat(parts, dim=-1).reshape(batch, rows, columns, width)
    return linear(w, f"{name}.proj", attended)


def distances(table: Tensor, side: int) -> Tensor:
    """Return ``(side, side, C)``: the entry of the table for query ``i`` and key ``j``, at distance ``i - j``."""
    wanted = 2 * side - 1
    if len(table) != wanted:
        table = linear_matrix(len(table), wanted).to(table) @ table
    place = torch.arange(side)
    return table[place[:, None] - place[None, :] + side - 1]


def linear_matrix(stored: int, wanted: int) -> Tensor:
    """Return ``(wanted, stored)``: linear interpolation, samples at pixel centres, borders repeated."""
    matrix = torch.zeros(wanted, stored, dtype=torch.float64)
    for i in range(wanted):
        place = max((i + 0.5) * stored / wanted - 0.5, 0.0)
        first = math.floor(place)
        matrix[i, first] += 1 - (place - first)
        matrix[i, min(first + 1, stored - 1)] += place - first
    return matrix


# The decoder.


def decode(w: State, x: Tensor, taps: list[Tensor]) -> dict[str, Tensor]:
    """Return the raw maps of the three branches."""
    z1, z2, z3, z4 = taps
    skip0 = conv_block(w, "decoder0.1", conv_block(w, "decoder0.0", x))
    skip1 = up_block(w, "decoder1.2", up_block(w, "decoder1.1", up_block(w, "decoder1.0", z1)))
    skip2 = up_block(w, "decoder2.1", up_block(w, "decoder2.0", z2))
    skip3 = up_block(w, "decoder3.0", z3)
    names = {
        "nuclei_binary_map": "nuclei_binary_map_decoder",
        "hv_map": "hv_map_decoder",
        "nuclei_type_map": "nuclei_type_maps_decoder",
    }
    maps = {}
    for output, branch in names.items():
        below = up(w, f"{branch}.bottleneck_upsampler", z4)
        below = torch.cat([skip3, below], dim=1)
        for i in range(3):
            below = conv_block(w, f"{branch}.decoder3_upsampler.{i}", below)
        below = torch.cat([skip2, up(w, f"{branch}.decoder3_upsampler.3", below)], dim=1)
        for i in range(2):
            below = conv_block(w, f"{branch}.decoder2_upsampler.{i}", below)
        below = torch.cat([skip1, up(w, f"{branch}.decoder2_upsampler.2", below)], dim=1)
        for i in range(2):
            below = conv_block(w, f"{branch}.decoder1_upsampler.{i}", below)
        below = torch.cat([skip0, up(w, f"{branch}.decoder1_upsampler.2", below)], dim=1)
        for i in range(2):
            below = conv_block(w, f"{branch}.decoder0_header.{i}", below)
        last = f"{branch}.decoder0_header.2"
        maps[output] = F.conv2d(below, w[f"{last}.weight"], w[f"{last}.bias"])
    return maps


def conv_block(w: State, name: str, x: Tensor) -> Tensor:
    """3 x 3 convolution, batch norm, ReLU."""
    x = F.conv2d(x, w[f"{name}.block.0.weight"], w[f"{name}.block.0.bias"], padding=1)
    return torch.relu_(batch_norm(w, f"{name}.block.1", x))


def up_block(w: State, name: str, x: Tensor) -> Tensor:
    """Transposed convolution, 3 x 3 convolution, batch norm, ReLU."""
    x = up(w, f"{name}.block.0", x)
    x = F.conv2d(x, w[f"{name}.block.1.weight"], w[f"{name}.block.1.bias"], padding=1)
    return torch.relu_(batch_norm(w, f"{name}.block.2", x))


def up(w: State, name: str, x: Tensor) -> Tensor:
    """Transposed convolution that doubles the sides."""
    return F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2)


# Layers.


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def channel_norm(w: State, name: str, x: Tensor) -> Tensor:
    """Normalise every pixel over its channels."""
    centred = x - x.mean(1, keepdim=True)
    unit = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-6)
    return unit * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def batch_norm(w: State, name: str, x: Tensor) -> Tensor:
    """Normalise every channel by its stored statistics."""
    factor = w[f"{name}.weight"] / torch.sqrt(w[f"{name}.running_var"] + 1e-5)
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * factor
    return torch.addcmul(shift[:, None, None], x, factor[:, None, None])
