"""The Vision Transformers of the pathology foundation models, as their model cards describe them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from cellvit.encoders.base import ENCODERS
from cellvit.encoders.timm import TimmEncoder
from cellvit.weights.catalogue import announce_hub, by_hub
from cellvit.weights.locate import WEIGHTS_VARIABLE, find_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
SWIGLU: Mapping[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}


@dataclass(frozen=True)
class FoundationModel:
    """A published network.

    Attributes:
        title: Its name in print.
        repo: Repository on the Hugging Face hub.
        architecture: Architecture of timm.
        parameters: Number of parameters in millions.
        licence: Licence of the weights, as the model card states it.
        gated: Whether the hub asks to log in and to accept terms.
        statistics: Mean and standard deviation of R, G, B in [0, 1].
        arguments: Arguments of the architecture.
    """

    title: str
    repo: str
    architecture: str
    parameters: int
    licence: str
    gated: bool = True
    statistics: tuple[tuple[float, float, float], tuple[float, float, float]] = IMAGENET
    arguments: Mapping[str, Any] = field(default_factory=dict)


NO_DERIVATIVES = "CC-BY-NC-ND-4.0"
OWKIN = "Owkin non-commercial licence"

FOUNDATION: Mapping[str, FoundationModel] = MappingProxyType(
    {
        "uni": FoundationModel(
            "UNI",
            "MahmoodLab/UNI",
            "vit_large_patch16_224",
            303,
            NO_DERIVATIVES,
            arguments={"init_values": 1e-5},
        ),
        "uni2-h": FoundationModel(
            "UNI2-h",
            "MahmoodLab/UNI2-h",
            "vit_giant_patch14_224",
            681,
            NO_DERIVATIVES,
            arguments={
                **SWIGLU,
                "embed_dim": 1536,
                "depth": 24,
                "num_heads": 24,
                "mlp_ratio": 2.66667 * 2,
                "init_values": 1e-5,
                "reg_tokens": 8,
                "no_embed_class": True,
            },
        ),
        "virchow2": FoundationModel(
            "Virchow2",
            "paige-ai/Virchow2",
            "vit_huge_patch14_224",
            631,
            NO_DERIVATIVES,
            arguments={**SWIGLU, "mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4},
        ),
        "h-optimus-0": FoundationModel(
            "H-optimus-0",
            "bioptimus/H-optimus-0",
            "vit_giant_patch14_reg4_dinov2",
            1135,
            "Apache-2.0",
            statistics=BIOPTIMUS,
            arguments={"img_size": 224, "init_values": 1e-5},
        ),
        "h0-mini": FoundationModel(
            "H0-mini",
            "bioptimus/H0-mini",
            "vit_base_patch14_reg4_dinov2",
            86,
            NO_DERIVATIVES,
            statistics=BIOPTIMUS,
            arguments={**SWIGLU, "img_size": 224, "mlp_ratio": 5.33334, "init_values": 1e-5},
        ),
        "phikon": FoundationModel(
            "Phikon",
            "owkin/phikon",
            "vit_base_patch16_224",
            86,
            OWKIN,
            gated=False,
        ),
        "phikon-v2": FoundationModel(
            "Phikon-v2",
            "owkin/phikon-v2",
            "vit_large_patch16_224",
            303,
            OWKIN,
            gated=False,
            arguments={"init_values": 1.0},
        ),
        "prov-gigapath": FoundationModel(
            "Prov-GigaPath, tile encoder",
            "prov-gigapath/prov-gigapath",
            "vit_giant_patch14_dinov2",
            1135,
            "Apache-2.0, for research only",
            arguments={"img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334, "init_values": 1e-5},
        ),
    }
)
"""The foundation models by the name of their encoder."""


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


@ENCODERS.register("uni")
class UNIEncoder(FoundationEncoder):
    """UNI [1]; see :class:`FoundationEncoder`.

    References:
        [1] Chen et al., Towards a general-purpose foundation model for computational pathology, Nature Medicine 2024,
        DOI 10.1038/s41591-024-02857-3.
    """

    preset = FOUNDATION["uni"]


@ENCODERS.register("uni2-h")
class UNI2Encoder(FoundationEncoder):
    """UNI2-h, the successor of UNI; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["uni2-h"]


@ENCODERS.register("virchow2")
class Virchow2Encoder(FoundationEncoder):
    """Virchow2 [1]; see :class:`FoundationEncoder`.

    References:
        [1] Zimmermann et al., Virchow2: Scaling self-supervised mixed magnification models in pathology, 2024,
        arXiv 2408.00738.
    """

    preset = FOUNDATION["virchow2"]


@ENCODERS.register("h-optimus-0")
class HOptimusEncoder(FoundationEncoder):
    """H-optimus-0; see :class:`FoundationEncoder`."""

    preset = FOUNDATION["h-optimus-0"]


@ENCODERS.register("h0-mini")
class H0MiniEncoder(FoundationEncoder):
    """H0-mini, distilled from H-optimus-0 [1]; see :class:`FoundationEncoder`.

    References:
        [1] Filiot et al., Distilling foundation models for robust and efficient models in digital pathology, 2025,
        arXiv 2501.16239.
    """

    preset = FOUNDATION["h0-mini"]


@ENCODERS.register("phikon")
class PhikonEncoder(FoundationEncoder):
    """Phikon [1], published in the naming of ``transformers``; see :class:`FoundationEncoder`.

    References:
        [1] Filiot et al., Scaling self-supervised learning for histopathology with masked image modeling, 2023,
        DOI 10.1101/2023.07.21.23292757.
    """

    preset = FOUNDATION["phikon"]


@ENCODERS.register("phikon-v2")
class Phikon2Encoder(FoundationEncoder):
    """Phikon-v2 [1], published in the naming of ``transformers``; see :class:`FoundationEncoder`.

    References:
        [1] Filiot et al., Phikon-v2, a large and public feature extractor for biomarker prediction, 2024,
        arXiv 2409.09173.
    """

    preset = FOUNDATION["phikon-v2"]


@ENCODERS.register("prov-gigapath")
class GigaPathEncoder(FoundationEncoder):
    """The tile encoder of Prov-GigaPath [1]; see :class:`FoundationEncoder`.

    References:
        [1] Xu et al., A whole-slide foundation model for digital pathology from real-world data, Nature 630, 2024,
        DOI 10.1038/s41586-024-07441-w.
    """

    preset = FOUNDATION["prov-gigapath"]
