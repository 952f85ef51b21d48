"""The encoder contract and its registry."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from cellvit.plugins.components import Configurable
from cellvit.plugins.registry import Registry
from cellvit.types import EncoderOutput, FeatureInfo


class Encoder(Configurable, nn.Module, ABC):
    """Turns an image into four feature maps and one vector.

    A subclass sets the attributes below in ``__init__`` and takes its configuration as keyword-only arguments. What it
    settles while it is built, such as the revision of weights it has fetched, it adds to ``init_args``: a model saves
    them as they are then.

    Attributes:
        features: Four :class:`FeatureInfo`, in the order :meth:`forward` returns the maps. Strides are powers
            of two from 2 to 16 and do not decrease.
        pooled_channels: Length ``P`` of the pooled vector.
        pixel_mean: Mean of R, G, B in [0, 1] that the encoder's input was made with; a model whose settings state none
            takes it.
        pixel_std: Standard deviation, likewise.
        weights_licence: Licence of the weights of others that it was built with, if any; a model's ``about`` states it.
        exports_any_size: Whether an exported graph of it takes images of all sizes: under ``torch.export`` nothing may
            then branch, split or slice by the size of the image. Others are exported for one size.
        has_published_files: Whether it was made for the files that
            :func:`cellvit.weights.catalogue.published_files` lists, and errors name them.
    """

    features: list[FeatureInfo]
    pooled_channels: int
    pixel_mean: Sequence[float] = (0.5, 0.5, 0.5)
    pixel_std: Sequence[float] = (0.5, 0.5, 0.5)
    weights_licence: str = ""
    exports_any_size: bool = False
    has_published_files: ClassVar[bool] = False

    @abstractmethod
    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch.

        Args:
            image: Normalised image ``(B, 3, H, W)``; ``H`` and ``W`` are multiples of 16.

        Returns:
            Feature maps ``(B, C_i, H / stride_i, W / stride_i)`` and the pooled vector ``(B, P)``.
        """

    def pooled_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that serve nothing but the pooled vector; a model without a use for it freezes them."""
        return []

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters in groups from input to output, for freezing and layer-wise learning rates."""
        return [list(self.parameters())]

    def weights_from(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tensors of a pre-trained weight file under the names of this encoder's state dict.

        A subclass whose published files spell names in their own way, or carry more than the encoder, translates here.

        Args:
            content: What the file holds, by name.

        Raises:
            WeightsError: If the names cannot be translated.
        """
        return dict(content)


OWN = {
    **dict.fromkeys(("random", "vit-256"), "vit"),
    **dict.fromkeys(("sam-b", "sam-l", "sam-h"), "sam"),
    **dict.fromkeys(("uni", "uni2-h", "virchow2", "h-optimus-0", "h0-mini"), "foundation"),
    **dict.fromkeys(("phikon", "phikon-v2", "prov-gigapath"), "foundation"),
    "efficientnet-lite": "efficientnet",
    "hybrid": "hybrid",
    "lora": "lora",
    "timm": "timm",
}
"""Module that registers each name of ours; it is imported when the name is asked for."""

ENCODERS: Registry[Encoder] = Registry("encoder", Encoder, package="cellvit.encoders", own=OWN)
"""Encoders by name."""
