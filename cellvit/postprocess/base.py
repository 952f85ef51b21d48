"""The postprocessor contract and its registry."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.plugins.components import Configurable
from cellvit.plugins.registry import Registry
from cellvit.types import EMBEDDING_MAP, NUCLEI_TYPE_MAP, NucleiPrediction

if TYPE_CHECKING:  # who has the maps as arrays needs no torch
    from torch import Tensor


class Postprocessor(Configurable, ABC):
    """Turns the maps of one image into nuclei.

    Attributes:
        needs: Names of the maps without which it cannot work.
        takes: Names of other maps that it reads where the model has them. What it neither needs nor takes, a map of a
            further head, is not moved off the device for it.
        takes_labels: Names of the maps of which it needs no more than the most probable class: it also takes them
            as integers ``(H, W)``, so that the argmax can be taken on the device and less is moved off it.
        takes_half: Names of the maps of which half floats are enough: those that are averaged, not compared pixel by
            pixel. They are made on the device, and half as many bytes leave it and go to a worker.
    """

    needs: ClassVar[frozenset[str]]
    takes: ClassVar[frozenset[str]] = frozenset({NUCLEI_TYPE_MAP, EMBEDDING_MAP})
    takes_labels: frozenset[str] = frozenset()
    takes_half: frozenset[str] = frozenset()

    @abstractmethod
    def __call__(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Find the nuclei of one image.

        Args:
            maps: Activated maps keyed by name, without a batch axis: ``nuclei_binary_map`` ``(2, H, W)`` and
                ``nuclei_type_map`` ``(C, H, W)`` probabilities, ``hv_map`` ``(2, H, W)``, and optionally
                ``embedding_map`` ``(D, h, w)``, a feature map, averaged per nucleus.

        Returns:
            The instance map and the table of nuclei.
        """

    def on_device(self, maps: Mapping[str, "Tensor"]) -> Mapping[str, "Tensor"]:
        """Return what is to leave the device of a batch: here all maps, as they are.

        A post-processor that works on the device overrides it; its call then gets what this returns.

        Args:
            maps: Activated maps ``(B, C, H, W)`` by name, those it needs and takes.
        """
        return maps

    def check_maps(self, maps: Mapping[str, NDArray[Any]]) -> None:
        """Raise where a map that is needed is missing.

        Raises:
            DataError: With the names of the missing maps.
        """
        missing = sorted(self.needs - set(maps))
        if missing:
            got = ", ".join(sorted(maps)) or "no maps"
            message = (
                f"{type(self).__name__} lacks {', '.join(missing)}, got {got}; give the model the heads of these maps"
            )
            raise DataError(message)


def postprocessor_of(model: object) -> Postprocessor | None:
    """Return the post-processor of a model; None for one that has none of this kind, as a stand-in may."""
    found = getattr(model, "postprocessor", None)
    return found if isinstance(found, Postprocessor) else None


OWN = {
    "hv-torch": "hv_torch",
    "hv-watershed": "hv",
    "star-nms": "star",
}
"""Module that registers each name of ours; it is imported when the name is asked for."""

POSTPROCESSORS: Registry[Postprocessor] = Registry(
    "postprocessor", Postprocessor, package="cellvit.postprocess", own=OWN
)
"""Post-processors by name."""
