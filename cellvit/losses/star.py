"""Losses of star-convex shapes."""

from torch import Tensor
from torch.nn import functional as F

from cellvit.errors import DataError
from cellvit.losses._pixels import at_least_float32


def object_probability_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the binary cross-entropy of the object probability, averaged over all pixels.

    The target is not 0 or 1 but in between, so even a perfect prediction costs its entropy.

    Args:
        logits: ``(B, 1, H, W)``.
        target: ``(B, H, W)`` in [0, 1].

    Returns:
        Scalar, not negative.

    Raises:
        DataError: If the shapes do not match.

    Example:
        >>> import torch
        >>> round(object_probability_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[0.0, 1.0]]])).item(), 4)  # log 2
        0.6931
    """
    if logits.ndim != 4 or logits.shape[1] != 1 or target.shape != (logits.shape[0], *logits.shape[2:]):
        message = f"logits {tuple(logits.shape)} and probabilities {tuple(target.shape)} do not fit; "
        raise DataError(message + "pass (B, 1, H, W) and (B, H, W)")
    return F.binary_cross_entropy_with_logits(at_least_float32(logits).squeeze(1), at_least_float32(target))


def radial_distance_loss(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute the absolute error of the distances, averaged over the rays and, by weight, over the pixels.

    ``Σ w · mean_k |p_k - t_k| / Σ w``. With the true object probability as weight, pixels in the middle of a nucleus
    count most, from which it will be drawn, and background does not count.

    Args:
        pred: ``(B, K, H, W)``.
        target: ``(B, K, H, W)``.
        weight: ``(B, H, W)``, not negative.

    Returns:
        Scalar in pixels, not negative; 0 where all weights are 0.

    Raises:
        DataError: If the shapes do not match.

    Example:
        >>> import torch
        >>> pred, target = torch.tensor([4.0, 9.0]).view(1, 1, 1, 2), torch.full((1, 1, 1, 2), 5.0)
        >>> radial_distance_loss(pred, target, torch.tensor([[[1.0, 0.5]]])).item()  # (1 · 1 + 0.5 · 4) / 1.5
        2.0
    """
    _check_distances(pred, target, weight)
    weight = at_least_float32(weight)
    error = (at_least_float32(pred) - at_least_float32(target)).abs().mean(1)
    total = weight.sum()
    return (error * weight).sum() / total.masked_fill(total == 0, 1.0)


def background_distance_loss(pred: Tensor, weight: Tensor) -> Tensor:
    """Compute the mean distance where nothing is to be found, which keeps it from growing there.

    Args:
        pred: ``(B, K, H, W)``, not negative.
        weight: ``(B, H, W)``; pixels of weight 0 count.

    Returns:
        Scalar in pixels, not negative; 0 without such pixels.

    Raises:
        DataError: If the shapes do not match.

    Example:
        >>> import torch
        >>> background_distance_loss(torch.tensor([4.0, 9.0]).view(1, 1, 1, 2), torch.tensor([[[0.0, 0.5]]])).item()
        4.0
    """
    _check_distances(pred, pred, weight)
    outside = weight == 0
    return (at_least_float32(pred).abs().mean(1) * outside).sum() / outside.sum().clamp_min(1)


def _check_distances(pred: Tensor, target: Tensor, weight: Tensor) -> None:
    if pred.ndim != 4 or target.shape != pred.shape or weight.shape != (pred.shape[0], *pred.shape[2:]):
        shapes = f"{tuple(pred.shape)}, true ones {tuple(target.shape)} and weights {tuple(weight.shape)}"
        raise DataError(f"distances {shapes} do not fit; pass (B, K, H, W) twice and (B, H, W)")
