"""The Lightning data module of folders."""

from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from cellvit.data.folder import FolderDataset, ImageDataset
from cellvit.data.loading import base_seed, check_numbers, make_loader
from cellvit.data.sampler import EvaluationShard, WeightedDraws
from cellvit.errors import ConfigError
from cellvit.io.labels import find_records, has_split
from cellvit.io.paths import expand_path
from cellvit.types import TISSUE_TYPES


class FolderDataModule(LightningDataModule):
    """Patches for training and whole images for evaluation from a folder.

    Training draws ``samples_per_epoch`` random augmented patches of ``split`` train; validation and test take whole
    images, one at a time because their sizes differ. Test uses the split test where there is one, else val. The
    draws of an epoch depend on the seed and the epoch alone: not on workers, nor on the number of processes. Several
    processes evaluate equal shares of the images; what fills up a share is marked by ``valid`` in the batch.

    Args:
        root: Folder as :class:`FolderDataset` reads it; environment variables in it are expanded.
        datasets: Train and evaluate on these data sets; None takes all.
        val_datasets: Evaluate on these data sets; None takes ``datasets`` as far as they have images of that split.
        crop_size: Side of training patches in pixels.
        batch_size: Training patches per batch and process.
        samples_per_epoch: Training patches per epoch, over all processes.
        dataset_weights: Share of the draws, from 0, by name of each training data set; None draws by area of images.
        type_balance: Share of the training patches, in [0, 1], around a nucleus of a type drawn evenly among all types.
        augmentation: Names and arguments, see
            :func:`cellvit.data.augmentation.transforms.build_augmentation`; None is the published one, ``{}`` none.
        num_workers: Loader processes.
        class_names: Names of the types, background first; type ids beyond them are errors. None takes the model's.
        mpp: Resample images of another known resolution to this many microns per pixel.
        cache: Keep decoded images in memory.
        val_batch_size: Images per evaluation batch; above 1 all must be of one size.
        predict_dir: Folder of images without labels for ``predict``, at the model's resolution and small enough to be
            run whole (``cellvit segment`` resamples and tiles); environment variables are expanded.
        seed: Base of the draws; None takes the seed of ``seed_everything``, or 0.

    Raises:
        ConfigError: If a number is below 1 (workers: below 0). Once the data are read also if ``dataset_weights`` or
            ``type_balance`` do not fit them, see :class:`FolderDataset`.
    """

    def __init__(
        self,
        root: str,
        datasets: list[str] | None = None,
        val_datasets: list[str] | None = None,
        crop_size: int = 256,
        batch_size: int = 16,
        samples_per_epoch: int = 1000,
        dataset_weights: dict[str, float] | None = None,
        augmentation: dict[str, dict[str, Any]] | None = None,
        type_balance: float = 0.0,
        num_workers: int = 1,
        class_names: list[str] | None = None,
        mpp: float | None = None,
        cache: bool = True,
        val_batch_size: int = 1,
        predict_dir: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_numbers(
            crop_size=crop_size,
            batch_size=batch_size,
            samples_per_epoch=samples_per_epoch,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
        )
        self.root = expand_path(root)
        self.datasets, self.val_datasets = datasets, val_datasets
        self.crop_size, self.batch_size, self.samples_per_epoch = crop_size, batch_size, samples_per_epoch
        self.dataset_weights, self.augmentation, self.num_workers = dataset_weights, augmentation, num_workers
        self.type_balance = type_balance
        self.class_names, self.mpp, self.cache, self.val_batch_size = class_names, mpp, cache, val_batch_size
        self.predict_dir = None if predict_dir is None else expand_path(predict_dir)
        self.seed = seed
        self._sets: dict[str, Dataset[dict[str, Any]]] = {}

    def setup(self, stage: str) -> None:
        """Read the data that a stage needs: ``fit``, ``validate``, ``test`` or ``predict``."""
        heads = getattr(getattr(self.trainer, "lightning_module", None), "heads", ())
        if stage == "fit" and TISSUE_TYPES in heads:
            raise ConfigError("the model has a tissue head but folders state no tissue; set num_tissue_classes to 0")
        if stage == "fit" and "train" not in self._sets:
            self._sets["train"] = self._folder("train", crop_size=self.crop_size, datasets=self.datasets)
        if stage in ("fit", "validate") and "val" not in self._sets:
            self._sets["val"] = self._evaluation("val")
        if stage == "test" and "test" not in self._sets:
            self._sets["test"] = self._evaluation("test" if has_split(self.root, "test") else "val")
        # A Trainer that was given loaders calls this too: what is missing is then told if our own loader is asked for.
        if stage == "predict" and (self.predict_dir is not None or self.trainer is None):
            self._predict_images()

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of random patches."""
        data = self._sets["train"]
        assert isinstance(data, FolderDataset)
        sampler = WeightedDraws(data.draw_weights(), num_samples=self.samples_per_epoch, seed=base_seed(self.seed))
        return make_loader(data, batch_size=self.batch_size, num_workers=self.num_workers, sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of whole validation images."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of whole test images."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of the images of ``predict_dir``; batches have ``image`` and ``name``."""
        return make_loader(self._predict_images(), batch_size=1, num_workers=self.num_workers)

    def _predict_images(self) -> Dataset[dict[str, Any]]:
        if "predict" not in self._sets:
            if self.predict_dir is None:
                raise ConfigError("predict_dir is not set; give a folder of images")
            self._sets["predict"] = ImageDataset(self.predict_dir)
        return self._sets["predict"]

    def _num_nuclei_classes(self) -> int | None:
        """Return the number of types that labels may have: as told here, else as the trained model knows them."""
        if self.class_names is not None:
            return len(self.class_names)
        classes = getattr(getattr(self.trainer, "lightning_module", None), "classes", None)
        return None if classes is None else len(classes)

    def _evaluation(self, split: str) -> FolderDataset:
        if self.val_datasets is not None or self.datasets is None:
            return self._folder(split, datasets=self.val_datasets)
        return self._folder(split, datasets=self._present(split))

    def _present(self, split: str) -> list[str] | None:
        present = {r.dataset for r in find_records(self.root, split=split)}
        return [name for name in self.datasets or () if name in present]

    def _folder(self, split: str, *, datasets: list[str] | None, crop_size: int | None = None) -> FolderDataset:
        training = crop_size is not None
        return FolderDataset(
            self.root,
            split=split,
            datasets=datasets,
            crop_size=crop_size,
            dataset_weights=self.dataset_weights if training else None,
            type_balance=self.type_balance if training else 0.0,
            augmentation=self.augmentation,
            num_nuclei_classes=self._num_nuclei_classes(),
            mpp=self.mpp,
            cache=self.cache,
        )

    def _evaluation_loader(self, split: str) -> DataLoader[dict[str, Any]]:
        data = self._sets[split]
        assert isinstance(data, FolderDataset)
        shard = EvaluationShard(len(data))
        return make_loader(data, batch_size=self.val_batch_size, num_workers=self.num_workers, sampler=shard)
