"""The plain network: an encoder, a decoder and heads in one torch module, without a Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.classes import default_classes, default_tissues
from cellvit.decoders.base import DECODERS
from cellvit.encoders.base import ENCODERS
from cellvit.errors import ConfigError
from cellvit.heads.base import HEADS, Head, HeadSizes
from cellvit.model import build as assembly
from cellvit.model.checkpoint import PretrainedMixin
from cellvit.model.optimizers import ADAMW, EXPONENTIAL
from cellvit.plugins.components import ComponentSpec, build, built_spec, normalise_spec
from cellvit.postprocess.base import POSTPROCESSORS
from cellvit.types import (
    EMBEDDING_MAP,
    HV_MAP,
    NUCLEI_BINARY_MAP,
    NUCLEI_TYPE_MAP,
    TISSUE_TYPES,
    Fact,
    NucleiPrediction,
)

STRIDE = 16
LARGEST = 16.0
"""Largest value of an image that is not taken for bytes: one that was normalised before, for a network that then leaves
it as it is, has values up to 5, and an image of bytes this dark shows nothing."""

WAY_OUT = "divide by 255 (float in [0, 1]); the model normalises it itself"

DEFAULT_HEADS: dict[str, ComponentSpec] = {NUCLEI_BINARY_MAP: "binary", HV_MAP: "hv", NUCLEI_TYPE_MAP: "nuclei-type"}
DEFAULT_METRICS: tuple[ComponentSpec, ...] = ("panoptic-quality", "centroid-detection", "aggregated-jaccard")
TRAINING: dict[str, Any] = {
    "metrics": DEFAULT_METRICS,
    "optimizer": ADAMW,
    "lr_scheduler": EXPONENTIAL,
    "lr_interval": "epoch",
    "layer_decay": 1.0,
}
"""Settings of a training, which a network only keeps, with what they are where nobody states them."""


class CellViTNetwork(PretrainedMixin, nn.Module):
    """The network of :class:`cellvit.model.cellvit.CellViT`, for inference, ``torch.jit.trace`` and ``torch.export``.

    Args:
        encoder: Turns the image into feature maps.
        num_nuclei_classes: Nucleus types, background counted.
        num_tissue_classes: Tissue types; 0 leaves the tissue head out.
        decoder: Turns feature maps into one full-resolution map per branch.
        heads: One head per branch name; None gives the three branches of the paper and the tissue head.
        postprocessor: Turns maps into nuclei.
        class_names: Name per nucleus type, background first; None takes PanNuke's for six classes.
        class_colors: RGB per nucleus type, 0..255.
        tissue_names: Name per tissue type; None takes PanNuke's for 19, else none.
        mpp: Resolution the model is made for, in microns per pixel.
        mean: Mean of R, G, B in [0, 1] that is subtracted from the image; None takes the encoder's.
        std: Standard deviation of R, G, B that the image is divided by; None takes the encoder's.
        about: Free facts that travel with the weights: licence, data, origin, citation, and the tissue that the types
            were learnt on (``types_learnt_on``), which pictures, reports and tables then tell.
        **training: Settings of a training that are kept to be saved again: ``metrics``, ``optimizer``,
            ``lr_scheduler``, ``lr_interval`` and ``layer_decay`` of :class:`cellvit.model.cellvit.CellViT`.

    Attributes:
        settings: All arguments as plain data; they build the network again.

    Raises:
        ConfigError: If parts do not fit each other; the message names them.
        UnknownPluginError: If a part of that name does not exist.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: ComponentSpec = "vit-256",
        num_nuclei_classes: int = 6,
        num_tissue_classes: int = 0,
        *,
        decoder: ComponentSpec = "unetr",
        heads: Mapping[str, ComponentSpec] | None = None,
        postprocessor: ComponentSpec = "hv-watershed",
        class_names: Sequence[str] | None = None,
        class_colors: Sequence[Sequence[int]] | None = None,
        tissue_names: Sequence[str] | None = None,
        mpp: float = 0.25,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        about: Mapping[str, Fact] | None = None,
        **training: Any,
    ) -> None:
        super().__init__()
        trained_with = _training_settings(training)
        self.encoder = build(ENCODERS, encoder)
        mean = self.encoder.pixel_mean if mean is None else mean
        std = self.encoder.pixel_std if std is None else std
        if not mpp > 0 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"mpp {mpp} and std {std} must be above 0, mean {mean} and std have three numbers")
        learnt_on = str((about or {}).get("types_learnt_on") or "")
        self.classes = default_classes(num_nuclei_classes, names=class_names, colors=class_colors, learnt_on=learnt_on)
        self.tissue_names = default_tissues(num_tissue_classes, names=tissue_names)
        self.mpp = mpp
        self.about: dict[str, Any] = {**assembly.licence_of_weights(self.encoder), **(about or {})}
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

        head_specs = {**DEFAULT_HEADS, **({TISSUE_TYPES: "tissue"} if num_tissue_classes else {})}
        head_specs = dict(heads) if heads is not None else head_specs
        self.postprocessor = build(POSTPROCESSORS, postprocessor)
        assembly.check_branches(head_specs, self.postprocessor.needs, postprocessor)
        classes = {name: assembly.head_class(name, spec) for name, spec in head_specs.items()}
        dense = [name for name, cls in classes.items() if cls.source == "decoder"]
        self.decoder = build(DECODERS, decoder, self.encoder.features, dense)
        sizes = HeadSizes(
            self.decoder.out_channels, self.encoder.pooled_channels, num_nuclei_classes, num_tissue_classes
        )
        self.heads = nn.ModuleDict({name: build(HEADS, spec, sizes) for name, spec in head_specs.items()})
        if all(cls.source != "pooled" for cls in classes.values()):
            for parameter in self.encoder.pooled_parameters():  # without a gradient, DDP would wait for one
                parameter.requires_grad = False
        self.settings: dict[str, Any] = {
            "encoder": built_spec(encoder, self.encoder),
            "num_nuclei_classes": num_nuclei_classes,
            "num_tissue_classes": num_tissue_classes,
            "decoder": normalise_spec(decoder, what="decoder"),
            "heads": {name: normalise_spec(spec, what="head") for name, spec in head_specs.items()},
            "postprocessor": normalise_spec(postprocessor, what="postprocessor"),
            "class_names": list(self.classes.names),
            "class_colors": [list(color) for color in self.classes.colors],
            "tissue_names": list(self.tissue_names),
            "mpp": mpp,
            "mean": list(mean),
            "std": list(std),
            **trained_with,
            "about": self.about,
        }

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.mean.device

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the network.

        Args:
            image: ``(B, 3, H, W)`` float in [0, 1]; ``H`` and ``W`` are multiples of 16.

        Returns:
            Logits of every head, and ``embedding_map`` ``(B, D, H / s, W / s)``: that of the decoder where it makes
            one, else the encoder's deepest feature map, ``s`` 16.

        Raises:
            ConfigError: If the sides are no multiples of 16, or the values are not in [0, 1]: bytes, or floats up to
                255. On a GPU, where looking at values makes the program wait, they are looked at in the first batch.
        """
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE or not height or not width:
            message = (
                f"image of {height}x{width} px: the sides must be multiples of {STRIDE}; pad it or call predict_maps"
            )
            raise ConfigError(message)
        refuse_integers(image)
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):  # type: ignore[attr-defined, no-untyped-call]
            self._refuse_large_values(image)
        normalised = (image - self.mean) / self.std
        encoded = self.encoder(normalised)
        decoded = self.decoder(normalised, encoded.features)
        logits = {name: head(decoded.get(name, encoded.pooled)) for name, head in self._heads()}
        return {**logits, EMBEDDING_MAP: decoded.get(EMBEDDING_MAP, encoded.features[-1])}

    @torch.inference_mode()
    def predict_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Return the activated maps of images of any size.

        Args:
            image: ``(B, 3, H, W)`` float in [0, 1] on the model's device.

        Returns:
            ``nuclei_binary_map`` ``(B, 2, H, W)`` and ``nuclei_type_map`` ``(B, C, H, W)`` probabilities,
            ``hv_map`` ``(B, 2, H, W)``, ``tissue_types`` ``(B, T)`` if there is such a head, and
            ``embedding_map`` ``(B, D, h, w)`` of the image padded to multiples of 16.

        Raises:
            ConfigError: If the values are not in [0, 1], as :meth:`forward` says.
        """
        height, width = image.shape[-2:]
        return self._activate(self(pad_to_stride(image)), height, width)

    def postprocess(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Return the nuclei of one image.

        Args:
            maps: Activated maps without batch axis, as :meth:`predict_maps` makes them, by name.
        """
        prediction = self.postprocessor(maps)
        return replace(prediction, nuclei=replace(prediction.nuclei, classes=self.classes))

    _values_seen = False

    def _refuse_large_values(self, image: Tensor) -> None:
        if not image.numel() or image.is_meta or (image.device.type != "cpu" and self._values_seen):
            return
        largest = float(image.detach().amax())
        if largest > LARGEST:
            raise ConfigError(f"image has values up to {largest:g}; {WAY_OUT}")
        self._values_seen = True

    def _heads(self) -> Iterator[tuple[str, Head]]:
        return ((name, cast(Head, head)) for name, head in self.heads.items())

    def _activate(self, outputs: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        maps = {EMBEDDING_MAP: outputs[EMBEDDING_MAP]}
        for name, head in self._heads():
            # a softmax over channels that come last in memory would copy them once more
            logits = outputs[name].to(torch.float32, memory_format=torch.contiguous_format)
            activated = head.activate(logits)
            maps[name] = activated[..., :height, :width] if activated.ndim == 4 else activated
        return maps


def refuse_integers(image: Tensor) -> None:
    """Raise ConfigError, which says what to do, if an image is not float."""
    if not image.is_floating_point():
        raise ConfigError(f"image is {str(image.dtype).removeprefix('torch.')}; {WAY_OUT}")


def pad_to_stride(image: Tensor) -> Tensor:
    """Return images padded at the right and the bottom to sides that are multiples of 16, the border repeated.

    Args:
        image: ``(B, 3, H, W)`` float in [0, 1].

    Raises:
        ConfigError: If it is not float.
    """
    refuse_integers(image)
    height, width = image.shape[-2:]
    # written with //, for torch.export knows then that the sides are multiples, and asks no more of them
    down, across = ((side + STRIDE - 1) // STRIDE * STRIDE - side for side in (height, width))
    return F.pad(image, (0, across, 0, down), mode="replicate")


def _training_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a training as plain data.

    Raises:
        ConfigError: If there is no such setting.
    """
    unknown = sorted(set(given) - set(TRAINING))
    if unknown:
        raise ConfigError(f"a network has no setting {unknown}; of a training it keeps: {', '.join(TRAINING)}")
    settings = {name: default if given.get(name) is None else given[name] for name, default in TRAINING.items()}
    specs = {n: normalise_spec(settings[n] or TRAINING[n], what=n) for n in ("optimizer", "lr_scheduler")}
    return settings | specs | {"metrics": [normalise_spec(spec, what="metric") for spec in settings["metrics"]]}
