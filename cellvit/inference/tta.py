"""Test-time augmentation: maps averaged over an image and its mirrored, turned and transposed views."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from cellvit.errors import ConfigError
from cellvit.geometry.symmetry import Symmetry, symmetries
from cellvit.inference.protocol import NucleiModel, heads_of
from cellvit.model.network import pad_to_stride
from cellvit.types import EMBEDDING_MAP, NucleiPrediction


class TestTimeAugmentation:
    """A model that averages its activated maps over several views of each image.

    Each view goes through the model alone; its maps are brought back to the image by the heads, which know what their
    channels mean (:meth:`cellvit.heads.base.Head.restore`). Only the running mean and the maps of one view are in
    memory. It takes as many times as long as there are views. All else is the model's.

    Args:
        model: The model; its ``heads`` own every map but the embeddings.
        views: 1, 2, 4 or 8, see :func:`cellvit.geometry.symmetry.symmetries`.

    Attributes:
        model: The model.
        views: Number of views.
        classes: Names and colours of the types of the model.
        mpp: Resolution of the model in microns per pixel.

    Raises:
        ConfigError: If the number of views is another one, the model has no heads or averages already, or a head cannot
            bring back its map.
    """

    __test__ = False  # not a test, whatever its name tells pytest

    def __init__(self, model: NucleiModel, views: int = 8) -> None:
        self._symmetries, self.views = symmetries(views), views
        if isinstance(model, TestTimeAugmentation):
            raise ConfigError(f"the model averages {model.views} views already; pass the model that is in it, .model")
        heads = heads_of(model)
        if heads is None:
            raise ConfigError(
                f"model {type(model).__name__} has no heads, which say how maps are turned back; use tta 1"
            )
        self.model, self.classes, self.mpp = model, model.classes, model.mpp
        self._heads = heads
        for head in self._heads.values():
            if head.source == "decoder":  # a head that cannot do it is refused here, not at the first tile
                for symmetry in self._symmetries:
                    head.restore(torch.zeros(1, head.out_channels, 1, 1), symmetry)

    def __getattr__(self, name: str) -> Any:
        """Return what else the model has."""
        if name == "model" or name.startswith("__"):  # there is no model yet while a copy is made
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.model.train(mode)

    def to(self, device: torch.device) -> "TestTimeAugmentation":
        """Move the model."""
        self.model.to(device)
        return self

    def train(self, mode: bool = True) -> "TestTimeAugmentation":
        """Set or leave training mode."""
        self.model.train(mode)
        return self

    @torch.inference_mode()
    def predict_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Return the mean of the activated maps over the views, in the frame of the image.

        Args:
            image: ``(B, 3, H, W)`` float in [0, 1] on the model's device; padded here to multiples of 16, so that the
                tokens of all views lie on each other.

        Returns:
            Maps as :meth:`cellvit.model.network.CellViTNetwork.predict_maps` returns them, float32.

        Raises:
            ConfigError: If the model returns a map that no head of it makes.
        """
        height, width = image.shape[-2:]
        padded = pad_to_stride(image)
        mean: dict[str, Tensor] = {}
        for number, symmetry in enumerate(self._symmetries, start=1):
            for name, values in self.model.predict_maps(symmetry.apply(padded)).items():
                restored = self._restore(name, values.float(), symmetry)
                if number == 1:
                    mean[name] = restored.clone()  # the model may use its memory again
                else:
                    mean[name].lerp_(restored, 1 / number)  # exact where all views agree
        full = {name for name, values in mean.items() if values.ndim == 4 and name != EMBEDDING_MAP}
        return {name: values[..., :height, :width] if name in full else values for name, values in mean.items()}

    def postprocess(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Return the nuclei of one image from its maps, as the model does."""
        return self.model.postprocess(maps)

    def _restore(self, name: str, values: Tensor, symmetry: Symmetry) -> Tensor:
        if name == EMBEDDING_MAP:
            return symmetry.undo(values)
        if name not in self._heads:
            raise ConfigError(
                f"map {name!r} of model {type(self.model).__name__} has no head, which says how it is turned back; "
                f"add one (heads: {', '.join(self._heads)}), or use tta 1"
            )
        restored: Tensor = self._heads[name].restore(values, symmetry)
        return restored


def with_tta(model: NucleiModel, views: int) -> NucleiModel:
    """Return a model that averages its maps over views; the model as it is for one view.

    Args:
        model: A model. One that averages already stays so if ``views`` is 1, the default of all options.
        views: 1, 2, 4 or 8.

    Raises:
        ConfigError: If the number is another one, a map cannot be brought back, or the model averages already and
            ``views`` is not 1.
    """
    network, count = unwrap_tta(model, views)
    return network if count == 1 else TestTimeAugmentation(network, count)


def unwrap_tta(model: NucleiModel, views: int) -> "tuple[NucleiModel, int]":
    """Return a model that averages nothing by itself, and the number of views to average over.

    Args:
        model: A model, also one that averages.
        views: 1, 2, 4 or 8, as an option states it.

    Raises:
        ConfigError: If the number is another one, or both the model and the option ask for views.
    """
    symmetries(views)
    if not isinstance(model, TestTimeAugmentation):
        return model, views
    if views != 1:
        raise ConfigError(f"the model averages {model.views} views already; leave out tta {views}")
    return model.model, model.views
