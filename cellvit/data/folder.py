"""Data sets in folders: any images with instance maps, and images alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cellvit.data.augmentation.transforms import AugmentationConfig, build_augmentation, seed_augmentation
from cellvit.data.balance import TypeBalance, count_types
from cellvit.data.sampler import Draw, Repeat, draw_seed, read_key
from cellvit.data.targets import make_targets, relabel, separate_mirrored, type_map_from_instances
from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.io.images import read_image
from cellvit.io.labels import ImageRecord, find_records, list_images, raise_problems, read_label, resample

_MAX_INT16 = 2**15 - 1
_Loaded = tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.int32] | None]


class FolderDataset(Dataset[dict[str, Any]]):
    """Images with instance maps; the types of nuclei may be known.

    Two layouts are read. With ``manifest.csv`` (columns ``dataset,image,split`` and perhaps ``mpp``): image at
    ``<root>/<dataset>/images/<image>.jpg`` (or another image suffix), label at ``<root>/<dataset>/labels/<image>.npz``.
    Without: ``<root>/<split>/images/*`` and ``<root>/<split>/labels/<stem>.npz`` (``.npy``, ``.png``, ``.tif``); with
    ``split=None`` the folders lie in ``<root>`` itself. An ``.npz`` holds ``inst_map`` and perhaps ``inst_type``, the
    type of each nucleus indexed by label, where a negative entry means unknown.

    Items are the entries of :class:`cellvit.types.Batch` without the batch axis. With ``crop_size`` an item is a random
    augmented patch, otherwise the whole image as it is. Targets are derived after augmentation. A nucleus that a crop
    cuts into parts stays one nucleus with one centre, as published.

    Args:
        root: Folder of the data.
        split: ``"train"``, ``"val"``, ``"test"``; None takes everything.
        datasets: Keep only these data sets; None keeps all.
        crop_size: Side of random patches in pixels; None gives whole images. Smaller images are padded by reflection.
        augmentation: Names and arguments, see
            :func:`cellvit.data.augmentation.transforms.build_augmentation`; None is the published one. Whole
            images are never augmented.
        dataset_weights: Share of the draws, from 0, by name of each data set; None draws in proportion to area.
        type_balance: Share of the patches, in [0, 1], that lie around a nucleus of a type drawn evenly among all types
            of the data sets that are drawn, so that rare types are seen as often as common ones.
        num_nuclei_classes: Number of types with background; a larger type id is an error. None checks nothing.
        mpp: Resample images of another known resolution to this many microns per pixel; None leaves all as they are.
        cache: Keep decoded images and labels in memory (5 bytes per pixel). Either way all are read once at the start,
            for the checks.

    Raises:
        DataError: If something is wrong with the data; one error lists every file.
        ConfigError: If a setting cannot work, the weights do not name each data set once, or ``type_balance`` finds no
            nucleus of known type.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = "train",
        datasets: Sequence[str] | None = None,
        crop_size: int | None = None,
        augmentation: AugmentationConfig | None = None,
        dataset_weights: Mapping[str, float] | None = None,
        type_balance: float = 0.0,
        num_nuclei_classes: int | None = None,
        mpp: float | None = None,
        cache: bool = True,
    ) -> None:
        if crop_size is not None and crop_size < 1:
            raise ConfigError(f"crop_size is {crop_size}; give at least 1 pixel, or None for whole images")
        if mpp is not None and not mpp > 0:
            raise ConfigError(f"mpp is {mpp}; give microns per pixel above 0, or None to leave images as they are")
        if not 0 <= type_balance <= 1:
            raise ConfigError(f"type_balance is {type_balance}; give a share of the patches from 0 to 1")
        self.root, self.crop_size, self.num_nuclei_classes, self.mpp = Path(root), crop_size, num_nuclei_classes, mpp
        self.augmentation: Any = None if crop_size is None else build_augmentation(augmentation, size=crop_size)
        self.records = find_records(self.root, split=split, datasets=datasets)
        if not self.records:
            raise DataError(f"split {split!r} of '{self.root}' has no images; add some or choose another split")
        self._cache: list[_Loaded] | None = None
        self.shapes: list[tuple[int, int]] = []
        labels = self._load_all(keep=cache)
        weights = self._image_weights(dataset_weights)
        self._balance = TypeBalance(count_types(labels), weights, share=type_balance)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | Draw | Repeat) -> dict[str, Any]:
        """Return one item.

        Args:
            key: Number of an image; a draw, whose seed decides crop and augmentation (without one torch's generator
                does); or a repeat, whose item says ``valid`` False.
        """
        index, valid = read_key(key)
        image, instance_map, types = self._cache[index] if self._cache is not None else self._load(self.records[index])
        if self.crop_size is None:
            type_map = type_map_from_instances(instance_map, types)
        else:
            image, instance_map, type_map = self._patch(index, image, instance_map, types, seed=draw_seed(key))
        name = self.records[index].name
        return make_item(image, instance_map=instance_map, type_map=type_map, name=name, valid=valid)

    def draw_weights(self) -> NDArray[np.float64]:
        """Return the probability of each image to be drawn.

        Within a data set images are drawn in proportion to their area, and so are all if the data sets have no weights.
        To that ``type_balance`` adds images with rare types.
        """
        return self._balance.weights

    def _image_weights(self, dataset_weights: Mapping[str, float] | None) -> NDArray[np.float64]:
        area: NDArray[np.float64] = np.array([height * width for height, width in self.shapes], np.float64)
        if dataset_weights is None:
            return np.asarray(area / area.sum())
        names = sorted({r.dataset for r in self.records})
        if set(names) != set(dataset_weights):
            message = f"dataset_weights names {sorted(dataset_weights)} but the data sets are {names}; name each once"
            raise ConfigError(f"{message}, 0 leaves one out")
        if min(dataset_weights.values()) < 0 or not sum(dataset_weights.values()) > 0:
            raise ConfigError(f"dataset_weights are {dict(dataset_weights)}; give numbers from 0, one of them above 0")
        totals = {name: sum(area[i] for i, r in enumerate(self.records) if r.dataset == name) for name in names}
        weights = np.array([dataset_weights[r.dataset] / totals[r.dataset] for r in self.records]) * area
        return np.asarray(weights / weights.sum())

    def _patch(
        self,
        index: int,
        image: NDArray[np.uint8],
        instance_map: NDArray[Any],
        types: NDArray[np.int32] | None,
        *,
        seed: int,
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
        """Return an augmented random patch: image, instance map, type map."""
        rng = np.random.default_rng(seed)
        size = self.crop_size or 0
        top, left = self._balance.corner(index, instance_map, types, size=size, rng=rng)
        window = (slice(top, top + size), slice(left, left + size))
        image, instance_map = image[window], instance_map[window]
        type_map = type_map_from_instances(instance_map, types).astype(np.int16)
        image, instance_map, type_map = _pad(image, short_labels(instance_map), type_map, size=size)
        seed = int(rng.integers(2**31))
        return augment(self.augmentation, image, instance_map=instance_map, type_map=type_map, seed=seed)

    def _load(self, record: ImageRecord) -> _Loaded:
        if not record.label.is_file():
            raise DataError(f"image '{record.image}' has no label '{record.label}'")
        image = read_image(record.image)
        instance_map, types = read_label(record.label)
        self._check(record, image, instance_map, types)
        if self.mpp is not None and record.mpp is not None:
            image, instance_map = resample(image, instance_map, factor=record.mpp / self.mpp)
        return image, instance_map, types

    def _check(
        self, record: ImageRecord, image: NDArray[Any], instance_map: NDArray[Any], types: NDArray[np.int32] | None
    ) -> None:
        if image.shape[:2] != instance_map.shape:
            raise DataError(f"image '{record.image}' is {image.shape[:2]} but its label is {instance_map.shape}")
        if types is None:
            return
        largest = int(instance_map.max())
        if types.ndim != 1 or len(types) <= largest:
            raise DataError(
                f"label '{record.label}' has labels up to {largest} but inst_type of shape {types.shape}; "
                f"it needs {largest + 1} entries, the first for background"
            )
        present = np.unique(instance_map)
        used = types[present[present > 0]]
        if (used == 0).any():
            raise DataError(f"label '{record.label}' has a nucleus of type 0, background; use -1 for unknown types")
        if self.num_nuclei_classes is not None and used.max(initial=0) >= self.num_nuclei_classes:
            raise DataError(
                f"label '{record.label}' has type {used.max()} but there are {self.num_nuclei_classes} classes "
                "with background; name more classes or correct the label"
            )

    def _load_all(self, *, keep: bool) -> list[tuple[NDArray[Any], NDArray[np.int32] | None]]:
        """Read and check everything; return the labels that occur in each image, and their types."""
        loaded: list[_Loaded] = []
        labels: list[tuple[NDArray[Any], NDArray[np.int32] | None]] = []
        problems = []
        for record in self.records:
            try:
                item = self._load(record)
            except (DataError, ImageError) as error:
                problems.append(str(error))
                continue
            self.shapes.append(item[1].shape)
            labels.append((np.empty(0, np.int64) if item[2] is None else np.unique(item[1]), item[2]))
            if keep:
                loaded.append(item)
        raise_problems(problems, where=self.root)
        self._cache = loaded if keep else None
        return labels


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of a folder without labels; items have ``image`` and ``name``.

    Args:
        folder: Folder of images.

    Raises:
        DataError: If the folder does not exist or has no image.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        if not path.is_dir():
            raise DataError(f"image folder '{path}' does not exist; give a folder of PNG, JPEG or TIFF images")
        self.files = list_images(path)
        if not self.files:
            raise DataError(f"image folder '{path}' has no PNG, JPEG or TIFF image; give another")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image and its file name."""
        return {"image": image_tensor(read_image(self.files[index])), "name": self.files[index].name}


def _pad(
    image: NDArray[np.uint8], instance_map: NDArray[Any], type_map: NDArray[Any], *, size: int
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """Pad to at least ``size`` by reflection; mirror images apart from their nucleus become nuclei of their own."""
    missing = [max(size - length, 0) for length in instance_map.shape]
    if not any(missing):
        return image, instance_map, type_map
    widths = [(m // 2, m - m // 2) for m in missing]
    real = np.pad(np.ones(instance_map.shape, bool), widths)
    mirrored = separate_mirrored(np.pad(instance_map, widths, "reflect"), real)
    return np.pad(image, [*widths, (0, 0)], "reflect"), mirrored, np.pad(type_map, widths, "reflect")


def short_labels(instance_map: NDArray[Any]) -> NDArray[np.int16]:
    """Return an instance map ``(H, W)`` as int16, which OpenCV warps, with room for the labels of mirror images.

    Args:
        instance_map: ``(H, W)`` integers, 0 is background; large labels are numbered anew.

    Example:
        >>> short_labels(np.array([[0, 70_000, 3]]))
        array([[0, 2, 1]], dtype=int16)
    """
    large = int(instance_map.max(initial=0)) > _MAX_INT16 // 2
    return (relabel(instance_map) if large else instance_map).astype(np.int16)


def augment(
    augmentation: Any,
    image: NDArray[np.uint8],
    *,
    instance_map: NDArray[np.int16],
    type_map: NDArray[np.int16],
    seed: int,
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """Return an augmented image with its instance map and type map.

    Args:
        augmentation: What :func:`cellvit.data.augmentation.transforms.build_augmentation` returned.
        image: ``(H, W, 3)`` RGB.
        instance_map: ``(H, W)``, 0 is background.
        type_map: ``(H, W)``, 0 is background.
        seed: Decides everything that is random.
    """
    seed_augmentation(augmentation, seed)
    done = augmentation(image=image, masks=[instance_map, type_map])
    return done["image"], done["masks"][0], done["masks"][1]


def make_item(
    image: NDArray[np.uint8],
    *,
    instance_map: NDArray[Any],
    type_map: NDArray[Any],
    name: str,
    valid: bool,
    tissue_type: int = -1,
) -> dict[str, Any]:
    """Return the entries of :class:`cellvit.types.Batch` for one image, without the batch axis.

    Args:
        image: ``(H, W, 3)`` RGB.
        instance_map: ``(H, W)`` integers, 0 is background.
        type_map: ``(H, W)`` integers, 0 is background and -1 a nucleus of unknown type.
        name: Name of the image.
        valid: Whether metrics take it into account.
        tissue_type: Class of the tissue; -1 is unknown.
    """
    return {
        "image": image_tensor(image),
        **make_targets(instance_map, type_map, tissue_type=tissue_type),
        "name": name,
        "valid": torch.tensor(valid),
    }


def image_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Return an image ``(H, W, 3)`` uint8 as ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
