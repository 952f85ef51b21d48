"""CellViT: an encoder, a decoder and heads composed into one LightningModule."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor, nn

from cellvit.errors import ConfigError
from cellvit.model import build as assembly
from cellvit.model.metrics import ModelScores
from cellvit.model.network import DEFAULT_METRICS, CellViTNetwork, pad_to_stride
from cellvit.model.optimizers import build_optimisers
from cellvit.plugins.components import ComponentSpec
from cellvit.plugins.trust import loading_file, refuse_foreign
from cellvit.types import EMBEDDING_MAP, Batch, Fact, NucleiPrediction


class CellViT(CellViTNetwork, L.LightningModule):
    """Finds, outlines and types cell nuclei: the network with its training, validation and test.

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
        about: Free facts that travel with the weights: licence, data, origin, citation, ``types_learnt_on``.

    Raises:
        ConfigError: If parts do not fit each other; the message names them.
        UnknownPluginError: If a part of that name does not exist.

    References:
        Hörst et al., CellViT: Vision Transformers for precise cell segmentation and classification, Medical Image
        Analysis 94, 2024, DOI 10.1016/j.media.2024.103143.
    """

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
        super().__init__(
            encoder,
            num_nuclei_classes,
            num_tissue_classes,
            decoder=decoder,
            heads=heads,
            postprocessor=postprocessor,
            metrics=metrics,
            class_names=class_names,
            class_colors=class_colors,
            tissue_names=tissue_names,
            mpp=mpp,
            mean=mean,
            std=std,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            layer_decay=layer_decay,
            about=about,
        )
        if not 0 < layer_decay <= 1:
            raise ConfigError(f"layer_decay {layer_decay} must be above 0 and at most 1, which trains all layers alike")
        for name in ("optimizer", "lr_scheduler"):  # imported when training begins: a file is judged while it is loaded
            refuse_foreign(self.settings[name]["class_path"], what=name)
        self.layer_decay, self.lr_interval = layer_decay, lr_interval
        self.scores = ModelScores(
            metrics, class_names=self.classes.names, tissue_names=self.tissue_names, branches=list(self.heads)
        )
        self.save_hyperparameters(self.settings)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # what is not named here is passed on
        cls, checkpoint_path: Any, map_location: Any = None, *, trust: Sequence[str] = (), **options: Any
    ) -> Self:
        """Load a checkpoint of Lightning as Lightning does, but import no module that only the file names.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: Where its tensors go.
            trust: Packages whose classes the file may name, see :func:`cellvit.model.checkpoint.load`.
            **options: See Lightning. ``weights_only`` is True if it is not given: a file that holds code is refused.
        """
        with loading_file(trust):
            loaded: Self = super().load_from_checkpoint(
                checkpoint_path, map_location, **{"weights_only": True} | options
            )
        return loaded

    @property
    def network(self) -> CellViTNetwork:
        """The plain network, which shares its weights with this model, for ``torch.jit.trace`` and ``torch.export``.

        What a subclass adds or overrides is not in it.
        """
        plain = CellViTNetwork.__new__(CellViTNetwork)
        nn.Module.__init__(plain)
        for name in ("encoder", "decoder", "heads", "postprocessor", "classes", "tissue_names", "mpp", "about"):
            setattr(plain, name, getattr(self, name))
        for name in ("mean", "std"):
            plain.register_buffer(name, getattr(self, name), persistent=False)
        plain.settings, plain.training = self.settings, self.training
        return plain

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of all weighted losses and log each of them."""
        return self._log_losses(self(batch["image"]), batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log losses and update the metrics with one batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log losses and update the metrics with one batch."""
        self._evaluate(batch, "test")

    def on_fit_start(self) -> None:
        """Take back what the model states of its weights, which are trained now: bfloat16, and a commit on the hub."""
        for name in ("bfloat16", "hub"):
            self.about.pop(name, None)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the epoch."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch | Tensor | Sequence[Tensor], batch_idx: int) -> list[NucleiPrediction]:
        """Return the nuclei of every image of a batch.

        Args:
            batch: Its ``image`` is read; or the images alone, ``(B, 3, H, W)`` float in [0, 1], also as the first of
                several tensors, as a ``TensorDataset`` gives them.
            batch_idx: Number of the batch; not used.

        Raises:
            ConfigError: If there are no images in it.
        """
        return self._postprocess_batch(self.predict_maps(images_of(batch)))

    def configure_optimizers(self) -> Any:
        """Return the optimiser over all parameters and its schedule, as the settings say."""
        schedule = self.settings["lr_scheduler"]
        arguments = dict(schedule["init_args"])
        if arguments.get("total_steps", 0) is None:
            arguments["total_steps"] = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = build_optimisers(
            self,
            self.encoder,
            optimizer=self.settings["optimizer"],
            lr_scheduler={**schedule, "init_args": arguments},
            layer_decay=self.layer_decay,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.lr_interval}}

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
        outputs = self(pad_to_stride(batch["image"]))
        cropped = {k: v if v.ndim != 4 or k == EMBEDDING_MAP else v[..., :height, :width] for k, v in outputs.items()}
        self._log_losses(*assembly.select_valid(cropped, batch), stage)
        maps = self._activate(outputs, height, width)
        self.scores.update(batch, maps, self._postprocess_batch(maps))

    def _log_metrics(self, stage: str) -> None:
        self.log_dict({f"{stage}/{name}": value for name, value in self.scores.compute().items()}, sync_dist=False)

    def _postprocess_batch(self, maps: Mapping[str, Tensor]) -> list[NucleiPrediction]:
        return [self.postprocess(arrays) for arrays in assembly.image_arrays(maps, self.postprocessor)]


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch, ``(B, 3, H, W)``.

    Args:
        batch: A mapping with ``image``, the images alone, or a list or tuple that starts with them.

    Raises:
        ConfigError: If there are none in it.
    """
    found = batch.get("image") if isinstance(batch, Mapping) else batch
    if isinstance(found, list | tuple) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 4:
        what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(batch).__name__}"
        raise ConfigError(f"the loader gives {what}; give images (B, 3, H, W), alone or as 'image' of a mapping")
    return found
