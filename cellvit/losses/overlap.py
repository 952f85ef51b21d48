"""Focal Tversky losses of a class map."""

from torch import Tensor

from cellvit.errors import ConfigError
from cellvit.losses._pixels import ClassSums, class_sums


def dice_loss(probs: Tensor, target: Tensor, *, smooth: float = 1e-3, ignore_index: int | None = None) -> Tensor:
    """Compute the Dice loss, summed over the channels.

    Per channel ``1 - (2 Σpy + s) / (Σp + Σy + s)``, with the sums over batch and pixels. Background counts as a
    channel, and a class that neither occurs nor is predicted adds 0.

    Args:
        probs: Probabilities ``(B, C, H, W)`` in [0, 1].
        target: Class ids ``(B, H, W)``, integers 0..C-1.
        smooth: ``s``; keeps the ratio defined for absent classes.
        ignore_index: Pixels of this id are left out of every sum; if that is all of them, the loss is 0.

    Returns:
        Scalar in [0, C].

    Raises:
        DataError: If the shapes do not match or an id is outside 0..C-1.

    Example:
        One of two pixels of each class is right: per channel ``1 - (2 · 1) / (2 + 2)``.

        >>> import torch
        >>> probs = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).view(1, 2, 1, 4)
        >>> dice_loss(probs, torch.tensor([[[0, 1, 0, 1]]]), smooth=0.0).item()
        1.0
    """
    sums = class_sums(probs, target, ignore_index=ignore_index)
    return (1.0 - (2.0 * sums.hit + smooth) / (sums.prob + sums.truth + smooth)).sum()


GAMMA = 4 / 3
"""Exponent of the released configurations; the paper prints its inverse."""


def binary_focal_tversky_loss(
    probs: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.7,
    beta: float = 0.3,
    gamma: float = GAMMA,
    epsilon: float = 1e-6,
    ignore_index: int | None = None,
) -> Tensor:
    """Compute the focal Tversky loss with the sums taken over all channels at once.

    ``(1 - T)^gamma`` with ``T = (TP + epsilon) / (TP + alpha FN + beta FP + epsilon)``. With probabilities that sum
    to 1 the false negatives of one channel are the false positives of the others, so for ``alpha + beta = 1`` this
    is ``(1 - mean probability of the true class)^gamma`` and the weights have no effect.

    Args:
        probs: Probabilities ``(B, C, H, W)``; the released code passes them through a softmax once more.
        target: Class ids ``(B, H, W)``, integers 0..C-1.
        alpha: Weight of the false negatives.
        beta: Weight of the false positives.
        gamma: Exponent, at least 1.
        epsilon: Keeps the ratio defined where nothing is to be found.
        ignore_index: Pixels of this id are left out of every sum; if that is all of them, the loss is 0.

    Returns:
        Scalar in [0, 1].

    Raises:
        ConfigError: If ``gamma`` is below 1.
        DataError: If the shapes do not match or an id is outside 0..C-1.

    Example:
        The true classes have the probabilities 1 and 0.5, so ``T = 0.75``.

        >>> import torch
        >>> probs = torch.tensor([[1.0, 0.5], [0.0, 0.5]]).view(1, 2, 1, 2)
        >>> round(binary_focal_tversky_loss(probs, torch.tensor([[[0, 1]]]), gamma=1.0).item(), 4)
        0.25
    """
    _check_gamma(gamma)
    sums = ClassSums(*(s.sum() for s in class_sums(probs, target, ignore_index=ignore_index)))
    return _focal_tversky(sums, alpha=alpha, beta=beta, gamma=gamma, epsilon=epsilon)


def focal_tversky_loss(
    probs: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.7,
    beta: float = 0.3,
    gamma: float = GAMMA,
    epsilon: float = 1e-6,
    ignore_index: int | None = None,
) -> Tensor:
    """Compute the focal Tversky loss per channel and sum it over the channels.

    Per channel ``(1 - T)^gamma`` with ``T = (TP + epsilon) / (TP + alpha FN + beta FP + epsilon)``, the counts over
    batch and pixels. Background counts as a channel; a class that neither occurs nor is predicted adds 0.

    Args:
        probs: Probabilities ``(B, C, H, W)``; the released code passes them through a softmax once more.
        target: Class ids ``(B, H, W)``, integers 0..C-1.
        alpha: Weight of the false negatives.
        beta: Weight of the false positives.
        gamma: Exponent, at least 1.
        epsilon: Keeps the ratio defined where nothing is to be found.
        ignore_index: Pixels of this id are left out of every sum; if that is all of them, the loss is 0.

    Returns:
        Scalar in [0, C].

    Raises:
        ConfigError: If ``gamma`` is below 1.
        DataError: If the shapes do not match or an id is outside 0..C-1.

    Example:
        Class 0: TP 1, FP 0.5, ``T = 1 / 1.15``; class 1: TP 0.5, FN 0.5, ``T = 0.5 / 0.85``.

        >>> import torch
        >>> probs = torch.tensor([[1.0, 0.5], [0.0, 0.5]]).view(1, 2, 1, 2)
        >>> round(focal_tversky_loss(probs, torch.tensor([[[0, 1]]]), gamma=1.0).item(), 4)
        0.5422
    """
    _check_gamma(gamma)
    sums = class_sums(probs, target, ignore_index=ignore_index)
    return _focal_tversky(sums, alpha=alpha, beta=beta, gamma=gamma, epsilon=epsilon).sum()


def _focal_tversky(sums: ClassSums, *, alpha: float, beta: float, gamma: float, epsilon: float) -> Tensor:
    missed, wrong = sums.truth - sums.hit, sums.prob - sums.hit
    overlap = (sums.hit + epsilon) / (sums.hit + alpha * missed + beta * wrong + epsilon)
    # Rounding can push a perfect overlap above 1, and a fractional power of a negative number is nan.
    return (1.0 - overlap).clamp_min(0.0) ** gamma


def _check_gamma(gamma: float) -> None:
    if gamma < 1:
        raise ConfigError(f"gamma {gamma} makes the gradient infinite where the overlap is perfect; pass gamma >= 1")
