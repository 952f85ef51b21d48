"""CellViT: an encoder, a decoder and heads composed into one LightningModule."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import lightning as L
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
from cellvit.model.metrics import ModelScores
from cellvit.model.optimizers import ADAMW, EXPONENTIAL, build_optimisers
from cellvit.plugins.components import ComponentSpec, build, built_spec, normalise_spec
from cellvit.postprocess.base import POSTPROCESSORS
from cellvit.types import (
    EMBEDDING_MAP,
    HV_MAP,
    NUCLEI_BINARY_MAP,
    NUCLEI_TYPE_MAP,
    TISSUE_TYPES,
    Batch,
    Fact,
    NucleiPrediction,
)

STRIDE = 16
DEFAULT_HEADS: dict[str, ComponentSpec] = {NUCLEI_BINARY_MAP: "binary", HV_MAP: "hv", NUCLEI_TYPE_MAP: "nuclei-type"}
DEFAULT_METRICS: tuple[ComponentSpec, ...] = ("panoptic-quality", "centroid-detection", "aggregated-jaccard")


class CellViT(PretrainedMixin, L.LightningModule):
    """Finds, outlines and types cell nuclei.

    Parts are given as a registered name, a dotted path, ``{"class_path": ..., "init_args": {...}}`` or, for the
    encoder and the postprocessor, an instance. All settings are saved in checkpoints as plain data.

    Args:
        encoder: Turns the image into feature maps.
        num_nuclei_classes: Nucleus types, background counted.
        num_tissue_classes: Tissue types; 0 leaves the tissue head out.
        decoder: Turns feature maps into one full-resolution map per branch.
        heads: One head per branch name; None gives the three branches of the paper and the tissue head.
        postprocessor: Turns maps into nuclei.
        metrics: Metrics on nuclei of validation and test.
        class_names: Name per nucleus type, background first; None takes PanNuke's for six classes.
        class_colors: RGB per nucleus type, 0..255.
        tissue_names: Name per tissue type; None takes PanNuke's for 19, else none. Metrics then average over tissues.
        mpp: Resolution the model is made for, in microns per pixel.
        mean: Mean of R, G, B in [0, 1] that is subtracted from the image; None takes the encoder's.
        std: Standard deviation of R, G, B that the image is divided by; None takes the encoder's.
        optimizer: Optimiser as ``{class_path, init_args}``; None is the published AdamW.
        lr_scheduler: Schedule as ``{class_path, init_args}``; None is the published exponential decay.
        lr_interval: Whether the schedule steps each ``"epoch"`` or each optimiser ``"step"``.
        layer_decay: Learning rate of each layer group of the encoder over that of the next one; 1 trains all alike.
        about: Free facts that travel with the weights: licence, data, origin, citation.

    Raises:
        ConfigError: If parts do not fit each other; the message names them.
        UnknownPluginError: If a part of that name does not exist.

    References:
        Hörst et al., CellViT: Vision Transformers for precise cell segmentation and classification, Medical Image
        Analysis 94, 2024, DOI 10.1016/j.media.2024.103143.
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
        metrics: Sequence[ComponentSpec] = DEFAULT_METRICS,
        class_names: Sequence[str] | None = None,
        class_colors: Sequence[Sequence[int]] | None = None,
        tissue_names: Sequence[str] | None = None,
        mpp: float = 0.25,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        optimizer: ComponentSpec | None = None,
        lr_scheduler: ComponentSpec | None = None,
        lr_interval: str = "epoch",
        layer_decay: float = 1.0,
        about: Mapping[str, Fact] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = build(ENCODERS, encoder)
        mean = self.encoder.pixel_mean if mean is None else mean
        std = self.encoder.pixel_std if std is None else std
        if not mpp > 0 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"mpp {mpp} and std {std} must be above 0, mean {mean} and std have three numbers")
        if not 0 < layer_decay <= 1:
            raise ConfigError(f"layer_decay {layer_decay} must be above 0 and at most 1, which trains all layers alike")
        self.classes = default_classes(num_nuclei_classes, names=class_names, colors=class_colors)
        self.tissue_names = default_tissues(num_tissue_classes, names=tissue_names)
        self.mpp = mpp
        self.optimizer_spec = normalise_spec(optimizer or ADAMW, what="optimizer")
        self.scheduler_spec = normalise_spec(lr_scheduler or EXPONENTIAL, what="lr_scheduler")
        self.lr_interval = lr_interval
        self.layer_decay = layer_decay
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
        self.scores = ModelScores(
            metrics, class_names=self.classes.names, tissue_names=self.tissue_names, branches=head_specs
        )
        self.settings: dict[str, Any] = {
            "encoder": built_spec(encoder, self.encoder),
            "num_nuclei_classes": num_nuclei_classes,
            "num_tissue_classes": num_tissue_classes,
            "decoder": normalise_spec(decoder, what="decoder"),
            "heads": {name: normalise_spec(spec, what="head") for name, spec in head_specs.items()},
            "postprocessor": normalise_spec(postprocessor, what="postprocessor"),
            "metrics": [normalise_spec(spec, what="metric") for spec in metrics],
            "class_names": list(self.classes.names),
            "class_colors": [list(color) for color in self.classes.colors],
            "tissue_names": list(self.tissue_names),
            "mpp": mpp,
            "mean": list(mean),
            "std": list(std),
            "optimizer": self.optimizer_spec,
            "lr_scheduler": self.scheduler_spec,
            "lr_interval": lr_interval,
            "layer_decay": layer_decay,
            "about": self.about,
        }
        self.save_hyperparameters(self.settings)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the network.

        Args:
            image: ``(B, 3, H, W)`` float in [0, 1]; ``H`` and ``W`` are multiples of 16.

        Returns:
            Logits of every head, and ``embedding_map`` ``(B, D, H / 16, W / 16)``, the deepest feature map.

        Raises:
            ConfigError: If the sides are no multiples of 16.
        """
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE or not height or not width:
            message = (
                f"image of {height}x{width} px: the sides must be multiples of {STRIDE}; pad it or call predict_maps"
            )
            raise ConfigError(message)
        normalised = (image - self.mean) / self.std
        encoded = self.encoder(normalised)
        decoded = self.decoder(normalised, encoded.features)
        logits = {name: head(decoded.get(name, encoded.pooled)) for name, head in self._heads()}
        return {**logits, EMBEDDING_MAP: encoded.features[-1]}

    @torch.inference_mode()
    def predict_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Return the activated maps of images of any size.

        Args:
            image: ``(B, 3, H, W)`` float in [0, 1] on the model's device.

        Returns:
            ``nuclei_binary_map`` ``(B, 2, H, W)`` and ``nuclei_type_map`` ``(B, C, H, W)`` probabilities,
            ``hv_map`` ``(B, 2, H, W)``, ``tissue_types`` ``(B, T)`` if there is such a head, and
            ``embedding_map`` ``(B, D, h, w)`` of the image padded to multiples of 16.
        """
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        return self._activate(self(padded), height, width)

    def postprocess(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Return the nuclei of one image from its activated maps without batch axis; see :class:`Postprocessor`."""
        prediction = self.postprocessor(maps)
        return replace(prediction, nuclei=replace(prediction.nuclei, classes=self.classes))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of all weighted losses and log each of them."""
        return self._log_losses(self(batch["image"]), batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log losses and update the metrics with one batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log losses and update the metrics with one batch."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the epoch."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[NucleiPrediction]:
        """Return the nuclei of every image of a batch."""
        return self._postprocess_batch(self.predict_maps(batch["image"]))

    def configure_optimizers(self) -> Any:
        """Return the optimiser over all parameters and its schedule, as the settings say."""
        arguments = dict(self.scheduler_spec["init_args"])
        if arguments.get("total_steps", 0) is None:
            arguments["total_steps"] = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = build_optimisers(
            self,
            self.encoder,
            optimizer=self.optimizer_spec,
            lr_scheduler={**self.scheduler_spec, "init_args": arguments},
            layer_decay=self.layer_decay,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

    def _heads(self) -> Iterator[tuple[str, Head]]:
        return ((name, cast(Head, head)) for name, head in self.heads.items())

    def _activate(self, outputs: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
        maps = {EMBEDDING_MAP: outputs[EMBEDDING_MAP]}
        for name, head in self._heads():
            activated = head.activate(outputs[name].float())
            maps[name] = activated[..., :height, :width] if activated.ndim == 4 else activated
        return maps

    def _log_losses(self, outputs: Mapping[str, Tensor], batch: Batch, stage: str) -> Tensor:
        terms = {
            f"{stage}/{name}/{term}": value
            for name, head in self._heads()
            for term, value in head.losses(outputs[name], batch).items()
        }
        total = torch.stack(list(terms.values())).sum()
        training = stage == "train"
        size = len(batch["image"]) if training else assembly.number_valid(batch)
        self.log_dict(terms, on_step=False, on_epoch=True, batch_size=size, sync_dist=not training)
        self.log(
            f"{stage}/loss",
            total,
            prog_bar=True,
            on_step=training,
            on_epoch=True,
            batch_size=size,
            sync_dist=not training,
        )
        return total

    def _evaluate(self, batch: Batch, stage: str) -> None:
        height, width = batch["image"].shape[-2:]
        pad = (0, -width % STRIDE, 0, -height % STRIDE)
        outputs = self(F.pad(batch["image"], pad, mode="replicate"))
        cropped = {k: v if v.ndim != 4 or k == EMBEDDING_MAP else v[..., :height, :width] for k, v in outputs.items()}
        self._log_losses(*assembly.select_valid(cropped, batch), stage)
        maps = self._activate(outputs, height, width)
        self.scores.update(batch, maps, self._postprocess_batch(maps))

    def _log_metrics(self, stage: str) -> None:
        self.log_dict({f"{stage}/{name}": value for name, value in self.scores.compute().items()}, sync_dist=False)

    def _postprocess_batch(self, maps: Mapping[str, Tensor]) -> list[NucleiPrediction]:
        return [self.postprocess(arrays) for arrays in assembly.image_arrays(maps, self.postprocessor)]
