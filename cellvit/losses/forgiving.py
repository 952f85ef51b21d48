"""Losses of a foreground whose labels lack some nuclei and are uncertain at the outlines."""

from torch import Tensor

from cellvit.errors import ConfigError
from cellvit.losses._pixels import at_least_float32, check_class_maps


def forgiven_pixels(probs: Tensor, target: Tensor, *, threshold: float) -> Tensor:
    """Return where a model is so certain of a nucleus that none is labelled that the label is doubted.

    Training on what a model believes once it believes it firmly is known as bootstrapping [1]; here such pixels are
    merely left out.

    Args:
        probs: Probabilities ``(B, 2, H, W)``, channel 1 is nucleus.
        target: ``(B, H, W)``, 1 is nucleus.
        threshold: Probability from which a pixel of the background is forgiven; above 1 none is.

    Returns:
        ``(B, H, W)`` boolean; no gradient passes.

    References:
        [1] Reed et al., Training deep neural networks on noisy labels with bootstrapping, ICLR workshop 2015.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.02, 0.5, 0.02], [0.98, 0.5, 0.98]]).view(1, 2, 1, 3)
        >>> forgiven_pixels(probs, torch.tensor([[[0, 0, 1]]]), threshold=0.95).tolist()
        [[[True, False, False]]]
    """
    check_class_maps(probs, target, ignore_index=None)
    if not threshold > 0.5:
        raise ConfigError(f"threshold {threshold} forgives what is no nucleus; give one above 0.5, above 1 for none")
    return (target == 0) & (probs.detach()[:, 1] >= threshold)


def focal_cross_entropy_loss(
    probs: Tensor,
    target: Tensor,
    *,
    gamma: float = 1.0,
    smoothing: float = 0.0,
    ignored: Tensor | None = None,
    epsilon: float = 1e-6,
) -> Tensor:
    """Compute the cross-entropy of a foreground, pixels weighted by how wrong they are, averaged over the pixels.

    With ``y`` the label, moved by ``smoothing`` towards one half: ``-|y - p|^gamma (y log p + (1 - y) log(1 - p))``
    [1, 2]. The weight makes pixels that are hard, such as red cells taken for nuclei, count more than the many that
    are easy; no gradient passes through it.

    Args:
        probs: Probabilities ``(B, 2, H, W)``, channel 1 is nucleus.
        target: ``(B, H, W)``, 1 is nucleus.
        gamma: Exponent, from 0, which weights all alike.
        smoothing: In [0, 1); labels become ``smoothing / 2`` and ``1 - smoothing / 2``.
        ignored: ``(B, H, W)`` boolean, pixels that are left out.
        epsilon: Probabilities are clamped to [ε, 1 - ε].

    Returns:
        Scalar, not negative; 0 if all pixels are ignored.

    Raises:
        ConfigError: If a number is out of range.
        DataError: If the shapes do not match or an id is outside 0 and 1.

    References:
        [1] Lin et al., Focal loss for dense object detection, ICCV 2017.
        [2] Li et al., Generalized focal loss, NeurIPS 2020.

    Example:
        >>> import torch
        >>> probs = torch.tensor([[0.5, 1.0], [0.5, 0.0]]).view(1, 2, 1, 2)
        >>> round(focal_cross_entropy_loss(probs, torch.tensor([[[1, 0]]])).item(), 4)  # 0.5 log 2 / 2
        0.1733
    """
    check_class_maps(probs, target, ignore_index=None)
    if not (gamma >= 0 and 0 <= smoothing < 1):
        raise ConfigError(f"gamma {gamma} must be at least 0 and smoothing {smoothing} in [0, 1)")
    p = at_least_float32(probs)[:, 1].clamp(epsilon, 1 - epsilon)
    y = target.to(p.dtype) * (1 - smoothing) + smoothing / 2
    cost = -(y * p.log() + (1 - y) * (1 - p).log())
    if gamma:
        cost = cost * (y - p).detach().abs().pow(gamma)
    if ignored is None:
        return cost.mean()
    return cost.masked_fill(ignored, 0.0).sum() / (~ignored).sum().clamp_min(1)
