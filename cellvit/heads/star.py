"""Radial distances: how far is the outline of the nucleus along each ray?"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.geometry.rays import NUM_RAYS, ray_directions
from cellvit.geometry.star import object_probability, radial_distances
from cellvit.geometry.symmetry import Symmetry
from cellvit.heads.base import HEADS, Head, HeadSizes
from cellvit.losses import background_distance_loss, object_probability_loss, radial_distance_loss
from cellvit.types import OBJECT_PROBABILITY, RADIAL_DISTANCES, Batch

FIRST_LOGIT = -2.0
"""An untrained head answers 0.12 everywhere, not 0.5, of which half the image would be candidates."""


@HEADS.register("object-probability")
class ObjectProbabilityHead(Head):
    """One channel: the distance to the rim of the nucleus over its maximum, trained with binary cross-entropy.

    The target is made from the instance map of the batch, see :func:`cellvit.geometry.star.object_probability`.

    Args:
        sizes: Channels and numbers of classes that flow in from the decoder, the encoder and the data.
        losses: Weight of ``cross_entropy``; None is 1.

    References:
        Schmidt et al., Cell detection with star-convex polygons, MICCAI 2018, DOI 10.1007/978-3-030-00934-2_30
    """

    branch = OBJECT_PROBABILITY
    default_losses: ClassVar[Mapping[str, float]] = {"cross_entropy": 1.0}

    def __init__(self, sizes: HeadSizes, *, losses: Mapping[str, float] | None = None) -> None:
        super().__init__(sizes, losses=losses)
        self.out_channels = 1
        self.output = nn.Conv2d(sizes.decoder_channels, 1, 1)
        nn.init.constant_(self.output.bias, FIRST_LOGIT)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, 1, H, W)``."""
        return self.output(features)  # type: ignore[no-any-return]

    def activate(self, logits: Tensor) -> Tensor:
        """Return probabilities ``(B, 1, H, W)``."""
        return logits.sigmoid()

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy."""
        return {"cross_entropy": object_probability_loss(logits, object_probability(batch["instance_map"]))}


UNIT = 10.0
"""Pixels; the order of a nucleus's radius, so that logits around 0 are a sensible start: 10 · log 2 = 6.9 px."""


@HEADS.register("radial-distances")
class RadialDistancesHead(Head):
    """One channel per ray: the distance from the pixel to the outline of its nucleus, in pixels.

    A logit ``z`` becomes ``10 · softplus(z)``, which is positive, as a distance is, and nearly linear for large ones.
    Targets are made from the instance map of the batch, see :func:`cellvit.geometry.star.radial_distances`. The
    absolute error is weighted by the true object probability, as published; in the background distances are drawn to 0,
    very weakly.

    Args:
        sizes: Channels and numbers of classes that flow in from the decoder, the encoder and the data.
        losses: Weights of ``absolute_error`` and ``background``; None is 1 and 0.0001.
        num_rays: Rays; 32 in the paper.

    Raises:
        ConfigError: If there are fewer than three rays.

    References:
        Schmidt et al., Cell detection with star-convex polygons, MICCAI 2018, DOI 10.1007/978-3-030-00934-2_30
    """

    branch = RADIAL_DISTANCES
    default_losses: ClassVar[Mapping[str, float]] = {"absolute_error": 1.0, "background": 1e-4}

    def __init__(
        self, sizes: HeadSizes, *, losses: Mapping[str, float] | None = None, num_rays: int = NUM_RAYS
    ) -> None:
        super().__init__(sizes, losses=losses)
        self.out_channels = len(ray_directions(num_rays))
        self.output = nn.Conv2d(sizes.decoder_channels, self.out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(B, K, H, W)``."""
        return self.output(features)  # type: ignore[no-any-return]

    def activate(self, logits: Tensor) -> Tensor:
        """Return distances ``(B, K, H, W)`` in pixels, above 0."""
        return UNIT * F.softplus(logits)

    def restore(self, activated: Tensor, symmetry: Symmetry) -> Tensor:
        """Return the distances in an image from those in a view of it: moved, and each ray in its own channel again.

        Raises:
            ConfigError: If the rays do not fall onto each other: mirrored views need an even number of them, transposed
                ones a multiple of four.
        """
        rays = symmetry.directions(activated.shape[-3]).to(activated.device)
        return symmetry.undo(activated).index_select(-3, rays)

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the absolute error in nuclei and the mean distance outside."""
        instances, pred = batch["instance_map"], self.activate(logits)
        weight = object_probability(instances)
        return {
            "absolute_error": radial_distance_loss(pred, radial_distances(instances, self.out_channels), weight),
            "background": background_distance_loss(pred, weight),
        }
