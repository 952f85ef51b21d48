"""The compact form of a data set of equal patches in folds, written once by ``cellvit prepare``.

A folder holds ``dataset.json`` and, per fold, ``fold<k>/images.npy`` ``(N, H, W, 3)`` uint8, ``instance_maps.npy``
``(N, H, W)`` uint16, ``type_maps.npy`` ``(N, H, W)`` uint8 and ``patches.csv`` with one row per patch: its name, the
image it was cut from, its tissue, and the number of nuclei of each type. Arrays are memory-mapped, so a data set
larger than the memory can be read, and several processes share what is in it.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError

DATASET_FILE = "dataset.json"
PREPARED = "prepared"
FORMAT = "cellvit-patches"
FORMAT_VERSION = 1
IMAGES, INSTANCE_MAPS, TYPE_MAPS, PATCHES = "images.npy", "instance_maps.npy", "type_maps.npy", "patches.csv"
DTYPES = {IMAGES: np.uint8, INSTANCE_MAPS: np.uint16, TYPE_MAPS: np.uint8}
ROW_COLUMNS = ("name", "source", "tissue")


@dataclass(frozen=True)
class PatchDataset:
    """What a prepared folder says of itself.

    Attributes:
        name: Name of the data set, such as ``pannuke``.
        mpp: Resolution in microns per pixel.
        class_names: Names of the nucleus types, background first.
        tissue_names: Names of the tissues.
        folds: Numbers of the folds, ascending.
        patch_size: Side of the square patches in pixels.
        about: Free facts: where it came from, licence, what was done to it.
    """

    name: str
    mpp: float
    class_names: tuple[str, ...]
    tissue_names: tuple[str, ...]
    folds: tuple[int, ...]
    patch_size: int
    about: dict[str, Any]


@dataclass(frozen=True)
class PatchFold:
    """One fold; row ``i`` of every column is patch ``i``.

    Attributes:
        number: Number of the fold, from 1.
        images: ``(N, H, W, 3)`` uint8 RGB, memory-mapped.
        instance_maps: ``(N, H, W)`` uint16, 0 is background, 1..n without gaps per patch; memory-mapped.
        type_maps: ``(N, H, W)`` uint8, 0 is background; memory-mapped.
        tissue: ``(N,)`` int64, index into the tissue names.
        counts: ``(N, C - 1)`` int64, nuclei per type without background.
        names: Name of each patch, unique within the data set.
        sources: The image each patch was cut from.
    """

    number: int
    images: NDArray[np.uint8]
    instance_maps: NDArray[np.uint16]
    type_maps: NDArray[np.uint8]
    tissue: NDArray[np.int64]
    counts: NDArray[np.int64]
    names: tuple[str, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def fold_folder(root: Path, number: int) -> Path:
    """Return the folder of a fold."""
    return root / f"fold{number}"


def find_prepared(root: Path) -> Path:
    """Return the prepared folder: ``root`` itself, or ``root/prepared`` where ``cellvit prepare`` puts it.

    A folder of another resolution, ``root/prepared-mpp<mpp>``, is never taken by itself, as it would change what a
    model is trained on.

    Raises:
        DataError: If neither holds a prepared data set.
    """
    for folder in (root, root / PREPARED):
        if (folder / DATASET_FILE).is_file():
            return folder
    others = [f"'{path.parent}'" for path in sorted(root.glob(f"{PREPARED}-mpp*/{DATASET_FILE}"))]
    if others:
        raise DataError(f"'{root}' is prepared for another resolution only; give {' or '.join(others)}")
    raise DataError(
        f"'{root}' holds no prepared data set ({DATASET_FILE}); run 'cellvit prepare pannuke {root}' first "
        "(an environment variable in the path must be set)"
    )


def read_dataset(root: Path) -> PatchDataset:
    """Read what a prepared folder says of itself.

    Args:
        root: Folder with ``dataset.json``.

    Raises:
        DataError: If the file is missing, broken or of a newer version.
    """
    path = root / DATASET_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored["format"], stored["version"]) != (FORMAT, FORMAT_VERSION):
            found = f"{stored['format']} {stored['version']}"
            message = f"'{path}' is {found}, this version reads {FORMAT} {FORMAT_VERSION}"
            raise DataError(f"{message}; prepare the data again")
        return PatchDataset(
            name=stored["name"],
            mpp=float(stored["mpp"]),
            class_names=tuple(stored["class_names"]),
            tissue_names=tuple(stored["tissue_names"]),
            folds=tuple(stored["folds"]),
            patch_size=int(stored["patch_size"]),
            about=dict(stored["about"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"'{path}' cannot be read ({error!r}); run 'cellvit prepare' again") from error


def read_fold(root: Path, number: int, *, dataset: PatchDataset) -> PatchFold:
    """Open one fold; pixels are read when they are asked for.

    Args:
        root: Folder with ``dataset.json``.
        number: Number of the fold.
        dataset: What :func:`read_dataset` returned.

    Raises:
        DataError: If there is no such fold, a file is missing or broken, or the files do not fit each other.
    """
    if number not in dataset.folds:
        raise DataError(f"'{root}' has no fold {number}; it has {list(dataset.folds)}")
    folder = fold_folder(root, number)
    rows = _read_rows(folder / PATCHES, dataset)
    size = dataset.patch_size
    shapes = {IMAGES: (len(rows), size, size, 3)} | dict.fromkeys((INSTANCE_MAPS, TYPE_MAPS), (len(rows), size, size))
    arrays = {name: _open(folder / name, shape, DTYPES[name]) for name, shape in shapes.items()}
    tissue_id = {name: i for i, name in enumerate(dataset.tissue_names)}
    try:
        tissue = np.array([tissue_id[row["tissue"]] for row in rows], np.int64)
        counts = np.array([[int(row[c]) for c in dataset.class_names[1:]] for row in rows], np.int64)
    except (KeyError, ValueError, TypeError) as error:  # TypeError: a row ends early
        raise DataError(f"'{folder / PATCHES}' holds {error} where it should not; prepare the data again") from error
    return PatchFold(
        number=number,
        images=arrays[IMAGES],
        instance_maps=arrays[INSTANCE_MAPS],
        type_maps=arrays[TYPE_MAPS],
        tissue=tissue,
        counts=counts.reshape(len(rows), len(dataset.class_names) - 1),
        names=tuple(row["name"] for row in rows),
        sources=tuple(row["source"] for row in rows),
    )


def _read_rows(path: Path, dataset: PatchDataset) -> list[dict[str, str]]:
    needed = [*ROW_COLUMNS, *dataset.class_names[1:]]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [c for c in needed if c not in (reader.fieldnames or ())]
            rows = list(reader)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); prepare the data again") from error
    if missing:
        raise DataError(f"'{path}' lacks the columns {missing}; prepare the data again")
    return rows


def _open(path: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); prepare the data again") from error
    if array.shape != shape or array.dtype != dtype:
        found = f"shape {array.shape} and type {array.dtype}"
        raise DataError(f"'{path}' has {found} where {shape} {np.dtype(dtype)} is due; prepare the data again")
    return array
