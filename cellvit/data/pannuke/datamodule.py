"""PanNuke and other data sets of equal patches in folds, as ``cellvit prepare`` writes them."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cellvit.data.augmentation.transforms import AugmentationConfig, build_augmentation
from cellvit.data.folder import augment, make_item, short_labels
from cellvit.data.loading import base_seed, check_numbers, make_loader
from cellvit.data.pannuke.storage import PatchDataset, PatchFold, find_prepared, read_dataset, read_fold
from cellvit.data.sampler import (
    Draw,
    EpochDraws,
    EvaluationShard,
    Repeat,
    ShuffledDraws,
    WeightedDraws,
    balanced_weights,
    check_gamma,
    draw_seed,
    read_key,
)
from cellvit.errors import ConfigError, DataError
from cellvit.io.paths import expand_path
from cellvit.types import TISSUE_TYPES

_SUBSETS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
_MPP_TOLERANCE = 0.01


class PanNukeDataset(Dataset[dict[str, Any]]):
    """The patches of some folds.

    Items are the entries of :class:`cellvit.types.Batch` without the batch axis. Pixels are read from memory-mapped
    files when an item is asked for; what is sent to a loader process is the path, and the files are opened there
    again. Targets are derived after augmentation.

    Args:
        root: Prepared folder, or the folder with ``prepared`` in it.
        folds: Numbers of the folds.
        train: Augment the patches.
        augmentation: Transforms by name with their arguments, for
            :func:`cellvit.data.augmentation.transforms.build_augmentation`; None is the published set.

    Attributes:
        info: What the data set says of itself.
        tissue: ``(N,)`` int64, index into ``info.tissue_names``.
        counts: ``(N, C - 1)`` int64, nuclei per type without background.
        names: Name of each patch.

    Raises:
        DataError: If something is wrong with the data, or the folds hold no patch.
        ConfigError: If the augmentation cannot work.
    """

    def __init__(
        self,
        root: str | Path,
        folds: Sequence[int],
        *,
        train: bool = False,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        self.root = find_prepared(Path(root))
        self.info = read_dataset(self.root)
        self.train = train
        self.augmentation = None if augmentation is None else {k: dict(v or {}) for k, v in augmentation.items()}
        self._augment = build_augmentation(self.augmentation, size=self.info.patch_size) if train else None
        self._folds = _open_folds(self.root, folds, info=self.info)
        self.names = tuple(name for fold in self._folds for name in fold.names)
        if not self.names:
            raise DataError(f"the folds {list(folds)} of '{self.root}' hold no patch; choose others")
        self.tissue = np.concatenate([fold.tissue for fold in self._folds])
        self.counts = np.concatenate([fold.counts for fold in self._folds])
        self._ends = np.cumsum([len(fold) for fold in self._folds])

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the files again where a copy is made: a pickled memory map takes all of its data along."""
        folds = [fold.number for fold in self._folds]
        opened = partial(type(self), folds=folds, train=self.train, augmentation=self.augmentation)
        return opened, (self.root,)

    def __getitem__(self, key: int | Draw | Repeat) -> dict[str, Any]:
        """Return one item.

        Args:
            key: Number of a patch; a draw, whose seed decides the augmentation (without one torch's generator does);
                or a repeat, whose item says ``valid`` False.
        """
        number, valid = read_key(key)
        index = range(len(self))[number]
        place = int(np.searchsorted(self._ends, index, side="right"))
        fold = self._folds[place]
        row = index - int(self._ends[place]) + len(fold)
        image: NDArray[np.uint8] = np.array(fold.images[row])
        instance_map: NDArray[Any] = fold.instance_maps[row]
        type_map: NDArray[Any] = fold.type_maps[row]
        if self._augment is not None:
            labels, types = short_labels(instance_map), type_map.astype(np.int16)
            image, instance_map, type_map = augment(
                self._augment, image, instance_map=labels, type_map=types, seed=draw_seed(key)
            )
        return make_item(
            image,
            instance_map=instance_map,
            type_map=type_map,
            name=self.names[index],
            valid=valid,
            tissue_type=int(self.tissue[index]),
        )


class PanNukeDataModule(LightningDataModule):
    """Patches of PanNuke, or of another data set in the same prepared form, by folds.

    Run ``cellvit prepare`` first. The draws of an epoch depend on the seed and the epoch alone: not on workers, nor on
    the number of processes. Several processes evaluate equal shares of the patches; what fills up a share is marked by
    ``valid`` in the batch. Nothing is divided among processes but the draws: n of them with batches of 16 take steps
    of 16 n patches. ``predict`` runs over the test folds.

    Args:
        root: Folder that ``cellvit prepare`` was given or wrote; environment variables in it are expanded.
        train_folds: Folds to train on.
        val_folds: Folds to validate on; none trains without validation.
        test_folds: Folds to test on.
        batch_size: Training patches per batch and process; the last batch of an epoch may be smaller.
        val_batch_size: Patches per evaluation batch and process.
        sampling_gamma: Strength in [0, 1] with which patches of rare tissues and types are drawn more often, see
            :func:`cellvit.data.sampler.balanced_weights`. None draws no patch twice: all in a new order each epoch.
        samples_per_epoch: Training patches per epoch, over all processes; None is the number of patches there are.
        augmentation: Names and arguments, see
            :func:`cellvit.data.augmentation.transforms.build_augmentation`; None is the published one, ``{}`` none.
        num_workers: Loader processes.
        seed: Base of the draws; None takes the seed of ``seed_everything``, or 0.

    Raises:
        ConfigError: If a number cannot work or a fold is given twice.
    """

    def __init__(
        self,
        root: str,
        train_folds: Sequence[int] = (1,),
        val_folds: Sequence[int] = (2,),
        test_folds: Sequence[int] = (3,),
        batch_size: int = 16,
        val_batch_size: int = 16,
        sampling_gamma: float | None = 0.85,
        samples_per_epoch: int | None = None,
        augmentation: dict[str, dict[str, Any]] | None = None,
        num_workers: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        samples = {} if samples_per_epoch is None else {"samples_per_epoch": samples_per_epoch}
        check_numbers(batch_size=batch_size, val_batch_size=val_batch_size, num_workers=num_workers, **samples)
        if sampling_gamma is not None:
            check_gamma(sampling_gamma)
        self.root = expand_path(root)
        self.folds = {"train": tuple(train_folds), "val": tuple(val_folds), "test": tuple(test_folds)}
        given = [number for folds in self.folds.values() for number in folds]
        twice = sorted({number for number in given if given.count(number) > 1})
        if twice:
            roles = ", ".join(f"{role}_folds {list(folds)}" for role, folds in self.folds.items())
            raise ConfigError(f"folds {twice} are given more than once: {roles}; give each fold once, in one role")
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.sampling_gamma, self.samples_per_epoch = sampling_gamma, samples_per_epoch
        self.augmentation, self.seed = augmentation, seed
        self._sets: dict[str, PanNukeDataset] = {}

    @cached_property
    def info(self) -> PatchDataset:
        """What the data set says of itself."""
        return read_dataset(find_prepared(self.root))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the nucleus types, background first."""
        return self.info.class_names

    @property
    def tissue_names(self) -> tuple[str, ...]:
        """Names of the tissues."""
        return self.info.tissue_names

    @property
    def mpp(self) -> float:
        """Resolution in microns per pixel."""
        return self.info.mpp

    def setup(self, stage: str) -> None:
        """Open the folds that a stage needs: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ConfigError: If no fold is given for it, or the model does not fit the data.
            DataError: If the data are not prepared, lack a fold or are broken.
        """
        if stage != "predict":
            self._check_model()
        for subset in _SUBSETS[stage]:
            folds = self.folds[subset]
            if not folds and (stage, subset) == ("fit", "val"):
                continue
            if not folds and stage == "predict" and self.trainer is not None:
                continue  # the Trainer may have been given loaders; if not, it asks for ours, which raises
            if not folds:
                raise self._no_folds(subset)
            if subset not in self._sets:
                train = subset == "train"
                self._sets[subset] = PanNukeDataset(
                    self.root, folds, train=train, augmentation=self.augmentation if train else None
                )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of drawn, augmented patches."""
        data = self._sets["train"]
        return make_loader(data, batch_size=self.batch_size, num_workers=self.num_workers, sampler=self._draws(data))

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Return the loader of the validation folds, or no loader where there is none."""
        return self._evaluation_loader("val") if "val" in self._sets else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of the test folds."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of the test folds; the trainer divides it among processes."""
        if "test" not in self._sets:
            raise self._no_folds("test")
        return make_loader(self._sets["test"], batch_size=self.val_batch_size, num_workers=self.num_workers)

    def _no_folds(self, subset: str) -> ConfigError:
        return ConfigError(f"{subset}_folds is empty; give at least one fold of {list(self.info.folds)}")

    def _draws(self, data: PanNukeDataset) -> EpochDraws:
        seed = base_seed(self.seed)
        if self.sampling_gamma is None:
            return ShuffledDraws(len(data), num_samples=self.samples_per_epoch, seed=seed)
        weights = balanced_weights(data.tissue, data.counts > 0, gamma=self.sampling_gamma)
        return WeightedDraws(weights, num_samples=self.samples_per_epoch or len(data), seed=seed)

    def _evaluation_loader(self, subset: str) -> DataLoader[dict[str, Any]]:
        data = self._sets[subset]
        shard = EvaluationShard(len(data))
        return make_loader(data, batch_size=self.val_batch_size, num_workers=self.num_workers, sampler=shard)

    def _check_model(self) -> None:
        """Hold resolution and names of the trained model, as far as it states them, against those of the data."""
        model = getattr(self.trainer, "lightning_module", None)
        problems = []
        mpp = getattr(model, "mpp", None)
        if mpp is not None and abs(mpp / self.mpp - 1) > _MPP_TOLERANCE:
            problems.append(
                f"the model is made for {mpp} microns per pixel but the data have {self.mpp}: set model.mpp"
            )
        classes = getattr(model, "classes", None)
        if classes is not None and tuple(classes.names) != self.class_names:
            problems.append(f"model.class_names are {list(classes.names)} but the data have {list(self.class_names)}")
        tissues = tuple(getattr(model, "tissue_names", ()))
        if (tissues or TISSUE_TYPES in getattr(model, "heads", ())) and tissues != self.tissue_names:
            problems.append(f"model.tissue_names are {list(tissues)} but the data have {list(self.tissue_names)}")
        if problems:
            raise ConfigError(f"the model does not fit '{self.root}': {'; '.join(problems)}")


def _open_folds(root: Path, numbers: Sequence[int], *, info: PatchDataset) -> list[PatchFold]:
    folds, problems = [], []
    for number in numbers:
        try:
            folds.append(read_fold(root, number, dataset=info))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("; ".join(problems))
    return folds
