"""Cross-entropy of a class map, from probabilities."""

from torch import Tensor

from cellvit.losses._pixels import at_least_float32, check_class_maps


def cross_entropy_loss(
    probs: Tensor, target: Tensor, *, epsilon: float = 1e-7, ignore_index: int | None = None
) -> Tensor:
    """Compute ``-Σ y log p``, averaged over the pixels.

    Probabilities are divided by their sum over the channels and clamped to [ε, 1 - ε].

    Args:
        probs: Probabilities ``(B, C, H, W)``, not negative.
        target: Class ids ``(B, H, W)``, integers 0..C-1.
        epsilon: ``ε``; a pixel costs at most ``-log ε`` (16.1), and its gradient vanishes beyond the clamp.
        ignore_index: Pixels of this id are left out of the mean; if that is all of them, the loss is 0.

    Returns:
        Scalar, not negative.

    Raises:
        DataError: If the shapes do not match or an id is outside 0..C-1.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[1.0, 0.5], [0.0, 0.5]]).view(1, 2, 1, 2)
        >>> round(cross_entropy_loss(probs, torch.tensor([[[0, 1]]])).item(), 4)  # (0 + log 2) / 2
        0.3466
    """
    check_class_maps(probs, target, ignore_index=ignore_index)
    probs = at_least_float32(probs)
    ids = target.long()
    ignored = None if ignore_index is None else target == ignore_index
    if ignored is not None:
        ids = ids.masked_fill(ignored, 0)
    # Only the true class has y = 1, so one channel is read instead of a one-hot product over all.
    true = probs.gather(1, ids.unsqueeze(1)).squeeze(1)
    total = probs.sum(1).clamp_min(epsilon)
    cost = -(true / total).clamp(epsilon, 1.0 - epsilon).log()
    if ignored is None:
        return cost.mean()
    return cost.masked_fill(ignored, 0.0).sum() / (~ignored).sum().clamp_min(1)


def partial_label_loss(probs: Tensor, target: Tensor, *, index: int, epsilon: float = 1e-7) -> Tensor:
    """Compute ``-log(1 - p_0)`` where all that is known is that a pixel is not of class 0, averaged over all pixels.

    The likelihood of a label that names several classes is the sum of their probabilities [1].

    Args:
        probs: Probabilities ``(B, C, H, W)`` whose sum over the channels is 1; channel 0 is background.
        target: Class ids ``(B, H, W)``, integers 0..C-1 or ``index``.
        index: Id of the pixels that are of some class other than 0.
        epsilon: Probabilities are clamped to [ε, 1].

    Returns:
        Scalar, not negative; 0 if no pixel has that id.

    Raises:
        DataError: If the shapes do not match or an id is outside 0..C-1 and not ``index``.

    References:
        [1] Jin and Ghahramani, Learning with multiple labels, NeurIPS 2002.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).view(1, 2, 1, 2)
        >>> round(partial_label_loss(probs, torch.tensor([[[0, -1]]]), index=-1).item(), 4)  # log 2 / 2
        0.3466
    """
    check_class_maps(probs, target, ignore_index=index)
    cost = -at_least_float32(probs)[:, 1:].sum(1).clamp(epsilon, 1.0).log()
    return cost.masked_fill(target != index, 0.0).mean()
