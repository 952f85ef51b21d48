"""Maps of an encoder that works at half the resolution of the image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

DEEPEST = 16
"""Stride of the deepest map."""


def shrunk(image: Tensor, shrink: int) -> Tensor:
    """Return an image averaged over squares of ``shrink`` pixels: ``(B, C, H, W)`` to ``(B, C, H / s, W / s)``."""
    if shrink == 1:
        return image
    # a pooling of few channels takes three times as long on a CPU
    places = [image[..., y::shrink, x::shrink] for y in range(shrink) for x in range(shrink)]
    return sum(places[1:], start=places[0]) * (1 / shrink**2)


def enlarged(x: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Return a map enlarged by a whole factor, nearest pixel, and cut: ``(B, C, h, w)`` to ``(B, C, *size)``."""
    if torch.compiler.is_exporting():  # which would have to prove that what is cut is there
        for axis in (-2, -1):
            x = x.index_select(axis, torch.arange(size[axis], device=x.device) // factor)
        return x
    x = F.interpolate(x, scale_factor=factor, mode="nearest") if factor > 1 else x
    return x[..., : size[0], : size[1]]
