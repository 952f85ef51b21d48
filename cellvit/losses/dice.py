"""Dice loss of a class map."""

from torch import Tensor

from cellvit.losses._pixels import class_sums


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
