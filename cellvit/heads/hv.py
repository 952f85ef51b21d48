"""HV: how far is a pixel from the centre of its nucleus?"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from cellvit.geometry.symmetry import Symmetry
from cellvit.heads.base import HEADS, HeadSizes, MapHead
from cellvit.losses import hv_gradient_loss, hv_mse_loss
from cellvit.types import HV_MAP, Batch


@HEADS.register("hv")
class HVHead(MapHead):
    """Horizontal and vertical distances in [-1, 1], trained on their values and their gradients.

    The released variant differentiates each map along the other axis.
    """

    branch = HV_MAP
    default_losses: ClassVar[Mapping[str, float]] = {"mse": 2.5, "msge": 8.0}

    @staticmethod
    def channels(sizes: HeadSizes) -> int:
        """Return 2; channel 0 is horizontal, 1 vertical."""
        return 2

    def activate(self, logits: Tensor) -> Tensor:
        """Return the maps as they are; the published network bounds them by nothing."""
        return logits

    def restore(self, activated: Tensor, symmetry: Symmetry) -> Tensor:
        """Return the maps of an image from those of a view: moved, exchanged if transposed, negated if mirrored.

        Mirrored, this is approximate: the published target is 1 px, not 0, in the pixel at the centre (see
        :func:`cellvit.data.targets.hv_map_from_instances`), whichever way the image is turned. So targets lie up to
        1 px to one side of the true distance and restored ones up to 1 px to the other; their mean lies between.
        """
        return symmetry.undo_vectors(activated)

    def loss_terms(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared errors of the maps and, inside nuclei, of their gradients."""
        target, mask = batch["hv_map"], batch["nuclei_binary_map"]
        return {
            "mse": hv_mse_loss(logits, target),
            "msge": hv_gradient_loss(logits, target, mask, swap_axes=self.variant == "released"),
        }
