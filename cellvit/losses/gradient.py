"""Losses of the horizontal and vertical distance maps."""

import torch
from torch import Tensor
from torch.nn import functional

from cellvit.errors import DataError
from cellvit.losses._pixels import at_least_float32

_RADIUS = 2  # pixels; the kernels are 5 x 5


def hv_mse_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of the HV maps over all pixels, background included.

    Args:
        pred: Predicted maps ``(B, 2, H, W)``.
        target: True maps ``(B, 2, H, W)`` in [-1, 1], 0 in the background.

    Returns:
        Scalar, not negative.

    Raises:
        DataError: If the shapes are not ``(B, 2, H, W)`` both.

    Example:
        >>> import torch
        >>> hv_mse_loss(torch.zeros(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)).item()
        0.5
    """
    _check_hv(pred, target)
    return functional.mse_loss(at_least_float32(pred), at_least_float32(target))


def hv_gradient_loss(pred: Tensor, target: Tensor, mask: Tensor, *, swap_axes: bool = False) -> Tensor:
    """Compute the mean squared error of the HV maps' derivatives inside the nuclei.

    Channel 0 (horizontal) is differentiated along x and channel 1 (vertical) along y, each with a 5 x 5 kernel
    ``k = d / (h² + v²)``, ``d`` the offset along the axis, and zero padding. Squared differences are summed over
    the mask in both channels and divided by its size in both channels, plus 1e-8.

    Args:
        pred: Predicted maps ``(B, 2, H, W)``.
        target: True maps ``(B, 2, H, W)``.
        mask: True nuclei ``(B, H, W)``, boolean or 0 and 1.
        swap_axes: Differentiate channel 0 along y and channel 1 along x, which the released checkpoints were
            trained with. The true maps are smooth along the swapped axes, so this asks less of the outlines.

    Returns:
        Scalar, not negative; 0 without nuclei.

    Raises:
        DataError: If the shapes do not match.

    Example:
        An error of 1 in one pixel of the horizontal map is seen by its neighbours through the kernel: by 1 at
        distance 1 and by 1/2 at distance 2, on either side.

        >>> import torch
        >>> pred = torch.zeros(1, 2, 1, 5)
        >>> pred[0, 0, 0, 2] = 1.0
        >>> hv_gradient_loss(pred, torch.zeros(1, 2, 1, 5), torch.ones(1, 1, 5)).item()  # 2 · (1 + 1/4) / 10
        0.25
    """
    _check_hv(pred, target)
    if mask.shape != (pred.shape[0], *pred.shape[2:]):
        raise DataError(f"the mask {tuple(mask.shape)} does not fit maps {tuple(pred.shape)}; pass (B, H, W)")
    # The derivative is linear: one convolution of the difference replaces two.
    difference = at_least_float32(pred) - at_least_float32(target)
    kernels = _derivative_kernels(difference, swap_axes=swap_axes)
    with torch.autocast(difference.device.type, enabled=False):  # half-precision kernels would blur small errors
        error = functional.conv2d(difference, kernels, padding=_RADIUS, groups=2)
    inside = mask.unsqueeze(1).to(error.dtype)
    return (error.square() * inside).sum() / (2.0 * inside.sum() + 1e-8)


def _derivative_kernels(like: Tensor, *, swap_axes: bool) -> Tensor:
    """Return the kernels of channel 0 and channel 1, ``(2, 1, 5, 5)``."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, device=like.device, dtype=like.dtype)
    down, right = torch.meshgrid(offsets, offsets, indexing="ij")
    along = (down, right) if swap_axes else (right, down)
    # 1e-15 settles 0 / 0 in the middle of the kernel.
    return torch.stack(along).unsqueeze(1) / (down.square() + right.square() + 1e-15)


def _check_hv(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 2:
        message = f"predicted HV maps {tuple(pred.shape)} and true ones {tuple(target.shape)} do not fit; "
        raise DataError(message + "pass (B, 2, H, W) for both")
