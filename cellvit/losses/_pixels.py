"""Checks and sums that the losses on class maps share."""

from typing import NamedTuple

import torch
from torch import Tensor

from cellvit.errors import DataError


class ClassSums(NamedTuple):
    """Sums over batch and pixels, one number per class ``(C,)``.

    Attributes:
        prob: Σ p, the predicted area.
        truth: Σ y, the true area.
        hit: Σ p·y, the overlap.
    """

    prob: Tensor
    truth: Tensor
    hit: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return half-precision values as float32 and wider ones unchanged: sums over a million pixels need the digits."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def check_class_maps(probs: Tensor, target: Tensor, *, ignore_index: int | None) -> None:
    """Raise unless the probabilities and the class ids describe the same pixels.

    Ids are looked at on the CPU only, and not in compiled code; elsewhere the look would stall the device.

    Args:
        probs: ``(B, C, H, W)``.
        target: ``(B, H, W)`` integer class ids.
        ignore_index: Id that is allowed beside 0..C-1.

    Raises:
        DataError: If the shapes do not match, the ids are not integers, or an id is outside 0..C-1.
    """
    if probs.ndim != 4 or target.shape != (probs.shape[0], *probs.shape[2:]):
        message = f"probabilities {tuple(probs.shape)} and class ids {tuple(target.shape)} do not fit; "
        raise DataError(message + "pass (B, C, H, W) and (B, H, W)")
    if target.is_floating_point() or target.is_complex():
        raise DataError(f"class ids are {target.dtype}; pass integers")
    if target.device.type != "cpu" or not target.numel() or torch.compiler.is_compiling():
        return
    ids = target if ignore_index is None else target.masked_fill(target == ignore_index, 0)
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < 0 or high >= probs.shape[1]:
        message = f"class ids span {low}..{high}, but there are {probs.shape[1]} channels; "
        raise DataError(message + "ids count from 0, and an id to leave out is passed as ignore_index")


def class_sums(probs: Tensor, target: Tensor, *, ignore_index: int | None) -> ClassSums:
    """Compute predicted area, true area and overlap of every class.

    Args:
        probs: Probabilities ``(B, C, H, W)``.
        target: Class ids ``(B, H, W)``.
        ignore_index: Pixels of this id are left out.

    Returns:
        The sums; the gradient of an ignored pixel is zero.

    Raises:
        DataError: If the shapes do not match or an id is outside 0..C-1.
    """
    check_class_maps(probs, target, ignore_index=ignore_index)
    probs = at_least_float32(probs)
    pixels = (0, 2, 3)
    if ignore_index is not None:
        ignored = target == ignore_index
        probs = probs.masked_fill(ignored.unsqueeze(1), 0.0)
        target = target.long().masked_fill(ignored, -1)  # -1 equals no class
    truth = target.unsqueeze(1) == torch.arange(probs.shape[1], device=target.device).view(1, -1, 1, 1)
    return ClassSums(prob=probs.sum(pixels), truth=truth.sum(pixels).to(probs.dtype), hit=probs.mul(truth).sum(pixels))
