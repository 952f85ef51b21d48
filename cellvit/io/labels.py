"""Where the images and labels of a data set lie, and how labels are read from disk."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.classes import PANNUKE
from cellvit.errors import DataError
from cellvit.io.file_kind import file_kind
from cellvit.io.images import DAMAGE
from cellvit.io.label_maps import LabelMap, is_mask, is_stack, merged_channels, plain_map, read_picture, read_tiff
from cellvit.io.paths import SPLITS as SPLITS
from cellvit.io.variables import read_mat, read_npz

MANIFEST = "manifest.csv"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LABEL_SUFFIXES = (".npz", ".mat", ".npy", ".png", ".tif", ".tiff")
_COLUMNS = ("dataset", "image", "split")
_SHOWN = 20
_PIECES = 3  # of one label in a data set's map: the only nucleus of an image may be in two


@dataclass(frozen=True)
class ImageRecord:
    """Files of one image.

    Attributes:
        name: ``dataset/stem``, unique within a data set.
        dataset: Data set the image belongs to; the folder's name for plain folders.
        image: Image file.
        label: Label file; it may not exist.
        mpp: Microns per pixel, None if unknown.
    """

    name: str
    dataset: str
    image: Path
    label: Path
    mpp: float | None = None


def raise_problems(problems: Sequence[str], *, where: Path) -> None:
    """Raise one DataError that lists all problems; return if there are none."""
    if not problems:
        return
    more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    lines = "\n  ".join([*problems[:_SHOWN], *more])
    raise DataError(f"{len(problems)} problem(s) with the data in '{where}'; repair or remove these files:\n  {lines}")


def find_records(root: Path, *, split: str | None, datasets: Sequence[str] | None = None) -> list[ImageRecord]:
    """Return the records of one split, in the order of the manifest or of the file names.

    Args:
        root: Folder with ``manifest.csv``, or with ``<split>/images`` and ``<split>/labels``, or, where ``split`` is
            None, with ``images`` and ``labels``.
        split: ``"train"``, ``"val"`` or ``"test"``; None takes all.
        datasets: Names of data sets to keep; None keeps all.

    Raises:
        DataError: If the folder or a named data set does not exist, or the manifest is broken.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    if not root.is_dir():
        raise DataError(
            f"data folder '{root}' does not exist; give a folder with {MANIFEST}, or with train/images, train/labels, "
            "val/images and val/labels (an environment variable in the path must be set)"
        )
    manifest = root / MANIFEST
    records = _from_manifest(manifest, split) if manifest.is_file() else _from_folder(root, split)
    if datasets is None:
        return records
    known = sorted({r.dataset for r in records})
    unknown = sorted(set(datasets) - set(known))
    if unknown:
        raise DataError(f"data sets {unknown} have no images in split {split!r} of '{root}'; it has: {known}")
    return [r for r in records if r.dataset in datasets]


def has_split(root: Path, split: str) -> bool:
    """Return whether the data in a folder has images of a split."""
    return bool(root.is_dir() and find_records(root, split=split))


def _from_manifest(manifest: Path, split: str | None) -> list[ImageRecord]:
    with manifest.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [c for c in _COLUMNS if c not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"manifest '{manifest}' lacks the columns {missing}; it needs {', '.join(_COLUMNS)}")
        rows = list(reader)
    problems, records = [], []
    for number, row in enumerate(rows, start=2):
        if row["split"] not in SPLITS:
            problems.append(f"{manifest.name} line {number}: split {row['split']!r} is none of {', '.join(SPLITS)}")
            continue
        try:
            mpp = _parse_mpp(row.get("mpp"))
        except ValueError:
            problems.append(f"{manifest.name} line {number}: mpp {row['mpp']!r} is no positive number or 'unknown'")
            continue
        if split in (None, row["split"]):
            records.append(_manifest_record(manifest.parent, row, mpp))
    raise_problems(problems, where=manifest.parent)
    return records


def _manifest_record(root: Path, row: dict[str, str], mpp: float | None) -> ImageRecord:
    folder, stem = root / row["dataset"], row["image"]
    image = _first_existing(folder / "images", stem, IMAGE_SUFFIXES, default=".jpg")
    label = _first_existing(folder / "labels", stem, LABEL_SUFFIXES, default=".npz")
    return ImageRecord(f"{row['dataset']}/{stem}", row["dataset"], image, label, mpp)


def _parse_mpp(text: str | None) -> float | None:
    if text is None or text.strip().lower() in ("", "unknown"):
        return None
    mpp = float(text)
    if not 0 < mpp < float("inf"):
        raise ValueError(text)
    return mpp


def _from_folder(root: Path, split: str | None) -> list[ImageRecord]:
    folder = root if split is None else root / split
    if not (folder / "images").is_dir():
        return []
    records = []
    for image in list_images(folder / "images"):
        label = _first_existing(folder / "labels", image.stem, LABEL_SUFFIXES, default=".npz")
        records.append(ImageRecord(f"{root.name}/{image.stem}", root.name, image, label))
    return records


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder that are not hidden, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _first_existing(folder: Path, stem: str, suffixes: Sequence[str], *, default: str) -> Path:
    candidates = [folder / f"{stem}{suffix}" for suffix in suffixes]
    return next((c for c in candidates if c.is_file()), folder / f"{stem}{default}")


def read_label(path: Path) -> tuple[NDArray[Any], NDArray[np.int32] | None]:
    """Read an instance map and, where the file has them, the types of its nuclei.

    The content of a file says what it is. See :func:`read_label_map` for what is read.

    Args:
        path: ``.npz`` with ``inst_map`` and perhaps ``inst_type``, ``.mat`` in the layout of HoVer-Net, CoNSeP or
            Lizard, or ``.npy``, ``.png``, ``.tif`` with the map alone.

    Returns:
        ``(H, W)`` uint16 (int32 where labels need it), 0 is background; and ``(N + 1,)`` types by label or None.

    Raises:
        DataError: If the file cannot be read, is no two-dimensional map of whole numbers from 0, or is a mask, which
            does not say which pixels are one nucleus.
    """
    found = read_label_map(path)
    instances = found.instances
    if instances.max() > np.iinfo(np.int32).max:
        raise DataError(f"label '{path}' has the label {instances.max()}; give labels up to {np.iinfo(np.int32).max}")
    if is_mask(instances, flags=found.flags, pieces=_PIECES):
        raise DataError(
            f"label '{path}' is a mask: all its nuclei have the label {instances.max()}; give one number per nucleus "
            "(skimage.measure.label numbers those that do not touch)"
        )
    types = _numbered_types(found, path)
    return instances.astype(np.uint16 if instances.max() < 2**16 else np.int32), types


def _numbered_types(found: LabelMap, path: Path) -> NDArray[np.int32] | None:
    """Return types by label; where 0 says that a type is unknown, as in files of other tools, -1 says it."""
    if found.types is None:
        return None
    if found.names is not None and found.names != PANNUKE.names:
        message = f"label '{path}' calls its types {list(found.names[1:])}; give numbers from 1, "
        raise DataError(message + "which mean the same in every file of a data set")
    types = found.types.astype(np.int32)
    if file_kind(path) == "matlab":
        types[1:][types[1:] <= 0] = -1
    return types


def read_label_map(path: Path, *, index: int | None = None) -> LabelMap:
    """Read a map of nuclei of any tool, as it is.

    Args:
        path: ``.npz`` or ``.mat`` with ``inst_map``, perhaps with types; ``.npy``, ``.png`` or ``.tif`` with the map;
            ``.npy`` with the channels of PanNuke ``(H, W, 6)`` or of CoNIC ``(H, W, 2)``.
        index: Which image of an ``.npy`` of several, ``(N, H, W)`` or ``(N, H, W, C)``; None for files of one.

    Raises:
        ConfigError: If a package is needed that is not installed.
        DataError: If the file cannot be read or is no map of whole numbers from 0.
    """
    kind = file_kind(path)
    if kind == "matlab":
        return read_mat(path)
    if kind == "npz":
        return read_npz(path)
    try:
        array = _READERS[kind or ""](path)
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"label '{path}' cannot be read ({error}); it needs an instance map 'inst_map'") from error
    if not array.size:
        raise DataError(f"label '{path}' has shape {array.shape}: no pixel; give (H, W) whole numbers from 0")
    stack = is_stack(array.shape)
    if stack and index is None and len(array) > 1:
        message = f"label '{path}' holds {len(array)} images of shape {array.shape[1:]}; give one file per image, "
        raise DataError(message + "or one such file each as prediction and as truth")
    if stack:
        array = array[index or 0]
    return merged_channels(array, path) or LabelMap(plain_map(array, path), flags=array.dtype.kind == "b")


def _read_npy(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r"))


_READERS: dict[str, Callable[[Path], NDArray[Any]]] = {"npy": _read_npy, "png": read_picture, "tiff": read_tiff}


def resample(
    image: NDArray[np.uint8], instance_map: NDArray[Any], *, factor: float
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return image and labels with ``factor`` times as many pixels per axis.

    The image is averaged over areas when it shrinks and interpolated linearly when it grows; labels are nearest.
    """
    height, width = instance_map.shape
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return image, instance_map
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8), nearest(instance_map, (size[1], size[0]))


def nearest(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return labels at another size ``(H, W)``, each taken from the pixel that holds the new pixel's centre.

    Example:
        >>> nearest(np.array([[1, 2, 3, 4]]), (1, 2))
        array([[2, 4]])
    """
    rows, cols = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.intp), old - 1)
        for new, old in zip(size, labels.shape, strict=True)
    )
    taken: NDArray[Any] = labels[rows[:, None], cols]
    return taken
