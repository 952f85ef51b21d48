"""Losses as pure functions: probabilities or maps in, one differentiable number out."""

from cellvit.losses.cross_entropy import cross_entropy_loss, partial_label_loss
from cellvit.losses.forgiving import focal_cross_entropy_loss, forgiven_pixels
from cellvit.losses.gradient import hv_gradient_loss, hv_mse_loss
from cellvit.losses.overlap import binary_focal_tversky_loss, dice_loss, focal_tversky_loss
from cellvit.losses.star import background_distance_loss, object_probability_loss, radial_distance_loss

__all__ = [
    "background_distance_loss",
    "binary_focal_tversky_loss",
    "cross_entropy_loss",
    "dice_loss",
    "focal_cross_entropy_loss",
    "focal_tversky_loss",
    "forgiven_pixels",
    "hv_gradient_loss",
    "hv_mse_loss",
    "object_probability_loss",
    "partial_label_loss",
    "radial_distance_loss",
]
