"""Callbacks of a cross-validation: where a fold resumes, and what its test leaves behind."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from cellvit.callbacks import item_with_nuclei
from cellvit.data.pannuke.datamodule import PanNukeDataset
from cellvit.errors import ConfigError
from cellvit.evaluation.cross_validation.scores import LAST
from cellvit.io.atomic import atomic_path
from cellvit.io.format import write_json
from cellvit.model.build import number_valid
from cellvit.model.cellvit import CellViT


class ResumePoint(Checkpoint):
    """Keeps the state at the end of the last finished epoch in one file, ``last.ckpt``, replaced in one step.

    It takes the place of checkpoints of the configuration that keep each epoch whatever its scores.

    Args:
        dirpath: Folder of the file.
    """

    def __init__(self, dirpath: str) -> None:
        self.path = Path(dirpath) / LAST

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove what would write the same a second time."""
        kept = [c for c in _callbacks(trainer) if not (isinstance(c, ModelCheckpoint) and c.monitor is None)]
        _callbacks(trainer)[:] = kept

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; being a ``Checkpoint``, this comes after the other callbacks have their state."""
        new = self.path.with_suffix(".new")
        trainer.save_checkpoint(new, weights_only=False)
        if trainer.is_global_zero:  # the Trainer's way to write may copy; renaming leaves the old file or the new one
            new.replace(self.path)
        trainer.strategy.barrier()


class TestScores(L.Callback):
    """Writes the scores of a test, and image, truth and prediction of one patch per tissue.

    Args:
        path: JSON file of the scores; nan is written as null.
        samples: Folder for the patches, one ``.npz`` each; None keeps none.
    """

    __test__ = False  # no test class, whatever its name

    def __init__(self, path: str, samples: str | None = None) -> None:
        self.path = Path(path)
        self.samples = None if samples is None else Path(samples)
        self._wanted: dict[str, str] = {}
        self._patches = 0

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the patches to keep."""
        self._patches = 0
        self._wanted = {} if self.samples is None else _examples(_data(trainer))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the patches of this batch that stand for a tissue."""
        self._patches += number_valid(batch)
        for index, name in enumerate(batch["name"]):
            if name in self._wanted and self.samples is not None:
                tissue = self._wanted[name]
                number = _data(trainer).info.tissue_names.index(tissue)
                safe = "".join(c if c.isalnum() else "_" for c in tissue)
                path = self.samples / f"{number:02d}_{safe}.npz"
                with trainer.precision_plugin.forward_context():  # the picture shows what was scored
                    _write_sample(_module(pl_module), batch, index, path, tissue=tissue)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add up over the processes how many patches were tested."""
        number = torch.tensor(self._patches, device=pl_module.device)
        self._patches = int(trainer.strategy.reduce(number, reduce_op="sum"))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the scores."""
        if not trainer.is_global_zero:
            return
        model, data = _module(pl_module), _data(trainer)
        values = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items()}
        found = {
            "class_names": list(model.classes.names),
            "tissue_names": list(model.tissue_names),
            "dataset": {"name": data.info.name, "mpp": data.info.mpp, "patches": self._patches},
            "scores": {k: v if np.isfinite(v) else None for k, v in sorted(values.items())},
        }
        write_json(self.path, found)


def _write_sample(model: CellViT, batch: Any, index: int, path: Path, *, tissue: str) -> None:
    image, truth, pred = item_with_nuclei(model, batch, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            image=image,
            true_instances=truth.instance_map,
            pred_instances=pred.instance_map,
            true_types=truth.nuclei.type,
            pred_types=pred.nuclei.type,
            name=np.array(batch["name"][index]),
            tissue=np.array(tissue),
        )


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]


def _module(module: L.LightningModule) -> CellViT:
    if not isinstance(module, CellViT):
        raise ConfigError(f"TestScores works on CellViT, not {type(module).__name__}; remove the callback")
    return module


def _data(trainer: L.Trainer) -> PanNukeDataset:
    data = getattr(trainer.test_dataloaders, "dataset", None)
    if not isinstance(data, PanNukeDataset):
        raise ConfigError("a cross-validation needs data in folds; set data.class_path to PanNukeDataModule")
    return data


def _examples(data: PanNukeDataset) -> dict[str, str]:
    """Return one patch per tissue, the one with the median number of nuclei, as tissue by name of the patch."""
    found = {}
    nuclei = data.counts.sum(axis=1)
    for tissue in np.unique(data.tissue):
        rows = np.flatnonzero(data.tissue == tissue)
        middle = rows[np.argsort(nuclei[rows], kind="stable")[len(rows) // 2]]
        found[data.names[middle]] = data.info.tissue_names[tissue]
    return found
