"""The Vision Transformers of the pathology foundation models, as their model cards describe them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from cellvit.encoders.base import ENCODERS
from cellvit.encoders.timm import TimmEncoder
from cellvit.weights.catalogue import FoundationModel as FoundationModel  # part of what this module offers
from cellvit.weights.catalogue import announce_hub, by_hub, foundation_models
from cellvit.weights.locate import WEIGHTS_VARIABLE, find_weights

FOUNDATION: Mapping[str, FoundationModel] = MappingProxyType(foundation_models())
"""The foundation models of the catalogue by the name of their encoder."""


class FoundationEncoder(TimmEncoder):
    """A network of :data:`FOUNDATION`; which one, a subclass says.

    Args:
        taps: Four blocks to tap, counted from 1; None spaces them evenly.
        pretrained: Take the weights from the folder that ``CELLVIT_WEIGHTS`` names, else from the hub or its cache.
        weights: Local weight file instead; environment variables in it are replaced.
        revision: Commit, tag or branch of the hub's repository, which is then asked alone.
        sha256: What the weight file must have.
        arguments: Arguments of the architecture that differ from the published ones, such as ``{"depth": 4}``.
        drop_path_rate: Stochastic depth of the last block.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.

    Raises:
        ConfigError: If arguments do not fit.
        WeightsError: If weights cannot be had, are not the expected ones or do not fit.
    """

    preset: ClassVar[FoundationModel]

    def __init__(
        self,
        *,
        taps: Sequence[int] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        revision: str | None = None,
        sha256: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            model=f"hf-hub:{self.preset.repo}",
            taps=taps,
            pretrained=pretrained,
            weights=weights,
            revision=revision,
            sha256=sha256,
            architecture=self.preset.architecture,
            arguments={**self.preset.arguments, **(arguments or {})},
            statistics=self.preset.statistics,
            drop_path_rate=drop_path_rate,
            gradient_checkpointing=gradient_checkpointing,
        )
        del self.init_args["statistics"]  # the preset's own
        if pretrained or weights is not None:
            announce_hub(self.preset.repo)  # a local file may have any name
            self.weights_licence = self.preset.licence

    def _fetch(self, model: str, hub: tuple[str, str | None] | None, revision: str | None) -> Path:
        entry = by_hub(self.preset.repo)
        found = find_weights(entry) if entry is not None and revision is None else None
        if found is not None and found.place == WEIGHTS_VARIABLE:
            return found.path
        return super()._fetch(model, hub, revision)


# Their publications are cited in the catalogue.
@ENCODERS.register("uni")
class UNIEncoder(FoundationEncoder):
    """UNI; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["uni"]


@ENCODERS.register("uni2-h")
class UNI2Encoder(FoundationEncoder):
    """UNI2-h, the successor of UNI; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["uni2-h"]


@ENCODERS.register("virchow2")
class Virchow2Encoder(FoundationEncoder):
    """Virchow2; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["virchow2"]


@ENCODERS.register("h-optimus-0")
class HOptimusEncoder(FoundationEncoder):
    """H-optimus-0; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["h-optimus-0"]


@ENCODERS.register("h0-mini")
class H0MiniEncoder(FoundationEncoder):
    """H0-mini, distilled from H-optimus-0; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["h0-mini"]


@ENCODERS.register("phikon")
class PhikonEncoder(FoundationEncoder):
    """Phikon, published in the naming of ``transformers``; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["phikon"]


@ENCODERS.register("phikon-v2")
class Phikon2Encoder(FoundationEncoder):
    """Phikon-v2, published in the naming of ``transformers``; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["phikon-v2"]


@ENCODERS.register("prov-gigapath")
class GigaPathEncoder(FoundationEncoder):
    """The tile encoder of Prov-GigaPath; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["prov-gigapath"]
