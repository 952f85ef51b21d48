"""Callbacks for the Trainer: loading and freezing the encoder, seeding epochs, pictures, writing predictions.

Those for fine-tuning are in :mod:`cellvit.training.freezing` and :mod:`cellvit.training.finetuning`.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from cellvit.data.loading import base_seed
from cellvit.encoders.pretrained import load_encoder_weights
from cellvit.errors import ConfigError, OutputError
from cellvit.io.cells_json import write_json
from cellvit.io.geojson import write_geojson
from cellvit.io.parquet import write_parquet
from cellvit.io.paths import expand_path, unset_variables
from cellvit.model.build import true_nuclei
from cellvit.model.cellvit import CellViT
from cellvit.plotting.overlay import draw_comparison
from cellvit.training.freezing import EncoderFreezing as EncoderFreezing  # under the name that configurations use
from cellvit.training.freezing import as_cellvit
from cellvit.types import NucleiPrediction
from cellvit.weights.catalogue import published_files

WRITERS: dict[str, Callable[..., None]] = {"geojson": write_geojson, "json": write_json, "parquet": write_parquet}


class PretrainedEncoder(L.Callback):
    """Fills the encoder with published weights before training, unless a checkpoint is resumed.

    Every process reads the file. It need not be there to resume: the checkpoint holds the weights.

    Args:
        path: Weight file, ``.safetensors`` or a file of ``torch.save``; environment variables in it are replaced.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the weights; in :meth:`setup` the Trainer would not yet know of a checkpoint.

        Raises:
            ConfigError: If an environment variable in the path is not set.
            WeightsError: If the file does not fit the encoder or cannot be read.
        """
        if not trainer.ckpt_path and not trainer.global_step:
            load_encoder_weights(as_cellvit(pl_module, self).encoder, _expand(self.path))


class EpochSeeds(L.Callback):
    """Seeds dropout and everything else random anew at each epoch.

    A training that was stopped and resumed at the end of an epoch then goes on as if nothing had happened: what an
    epoch draws depends on the seed, the epoch and the process alone.

    Args:
        seed: Base of the seeds; None takes the one of ``seed_everything``, or 0.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed for this epoch at its first batch: loaders, too, draw a number when they start, some before an epoch."""
        if batch_idx > 0:
            return
        entropy = [base_seed(self.seed), trainer.current_epoch, trainer.global_rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


class SamplePictures(L.Callback):
    """Draws image, truth and prediction of a few validation images into the log.

    PNGs go to ``<log_dir>/pictures/epoch_<n>/`` and, if there is one, to TensorBoard.

    Args:
        num_images: Number of images to draw.
        every_n_epochs: Draw only each n-th epoch with validation.
        max_size: Longest side of a drawn image in pixels; larger images are cropped at the top left.
    """

    def __init__(self, num_images: int = 4, every_n_epochs: int = 1, max_size: int = 512) -> None:
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self.max_size = max_size
        self._drawn = 0
        self._validations = 0
        self._folder: str | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting anew."""
        self._drawn = 0 if self._validations % self.every_n_epochs == 0 else self.num_images
        self._validations += not trainer.sanity_checking
        self._folder = trainer.log_dir  # asks the other processes, so every one has to be here

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the images of this batch while there is room."""
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(pl_module, CellViT):
            return
        for index in range(min(len(batch["image"]), self.num_images - self._drawn)):
            image, truth, pred = item_with_nuclei(pl_module, _crop(batch, index, self.max_size), 0)
            picture = draw_comparison(image, replace(truth.nuclei, classes=pl_module.classes), pred.nuclei)
            self._write(trainer, picture, f"{self._drawn:02d}_{batch['name'][index]}")
            self._drawn += 1

    def _write(self, trainer: L.Trainer, picture: np.ndarray[Any, Any], name: str) -> None:
        if self._folder is not None:
            folder = Path(self._folder) / "pictures" / f"epoch_{trainer.current_epoch:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{_safe(name)}.png"), picture[..., ::-1])
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"samples/{name}", picture, trainer.current_epoch, dataformats="HWC")


class PredictionWriter(BasePredictionWriter):
    """Writes the nuclei that ``cellvit predict`` finds, one set of files per image, named after the image file.

    Images of a loader that gives no names are called by their number in it: ``000000``, ``000001``. ``predict`` runs
    whole images at the model's resolution; for others, and for large ones, use ``cellvit segment``.

    Args:
        out: Folder; made if it does not exist.
        formats: Any of ``geojson``, ``json`` and ``parquet``.

    Raises:
        ConfigError: If a format is unknown.
    """

    def __init__(self, out: str, formats: Sequence[str] = ("geojson", "parquet")) -> None:
        super().__init__(write_interval="batch")
        unknown = sorted(set(formats) - set(WRITERS))
        if unknown:
            raise ConfigError(f"formats {unknown} cannot be written; choose from {', '.join(WRITERS)}")
        self.out = Path(out)
        self.formats = tuple(formats)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the images of this batch."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write into {str(self.out)!r} ({error.strerror}); choose another out") from error
        named = isinstance(batch, Mapping) and "name" in batch
        names = batch["name"] if named else [f"{index:06d}" for index in batch_indices]
        for name, found in zip(names, prediction, strict=True):
            for format_ in self.formats:
                WRITERS[format_](found.nuclei, self.out / f"{name}.{format_}")


def item_with_nuclei(
    model: CellViT, batch: Any, index: int
) -> tuple[NDArray[np.uint8], NucleiPrediction, NucleiPrediction]:
    """Return one image of a batch ``(H, W, 3)`` with its true nuclei and those that the model finds."""
    row = slice(index, index + 1)
    one: Any = {key: value[row] for key, value in batch.items()}
    image = (one["image"][0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return image, true_nuclei(one)[0], model.predict_step(one, 0)[0]


def _expand(path: str) -> Path:
    unset = unset_variables(path)
    if unset:
        raise ConfigError(
            f"path {path!r} names {', '.join(unset)}, which is not set; set it or write a path ({published_files()})"
        )
    return expand_path(path)


def _crop(batch: Any, index: int, size: int) -> Any:
    row = slice(index, index + 1)
    return {k: v[row][..., :size, :size] if torch.is_tensor(v) and v.ndim > 1 else v[row] for k, v in batch.items()}


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
