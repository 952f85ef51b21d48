"""The compact form of a patch data set on disk: what a prepared folder says of itself, its folds, and their writing.

::

    prepared/dataset.json           PatchDataset; written last, makes the folder complete
    prepared/fold1/images.npy       (N, S, S, 3) uint8
    prepared/fold1/instance_maps.npy, type_maps.npy
    prepared/fold1/patches.csv      name, source, tissue and number of nuclei per type of each patch
    prepared/fold1/source.json      what the fold was made from; written last, makes the fold finished
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError, OutputError
from cellvit.io.atomic import atomic_path, atomic_text, keep_aside, make_folder, remove_temporaries
from cellvit.io.provenance import differences, read_record, write_record
from cellvit.io.tables import csv_writer, read_csv

PREPARED = "prepared"
DATASET_FILE = "dataset.json"
FORMAT = "cellvit-patches"
FORMAT_VERSION = 1
IMAGES, INSTANCE_MAPS, TYPE_MAPS, PATCHES = "images.npy", "instance_maps.npy", "type_maps.npy", "patches.csv"
DTYPES = {IMAGES: np.uint8, INSTANCE_MAPS: np.uint16, TYPE_MAPS: np.uint8}
ROW_COLUMNS = ("name", "source", "tissue")
MADE_FROM = "source.json"

AppendArray = Callable[[NDArray[Any]], None]
AppendPatches = Callable[[NDArray[np.uint8], NDArray[Any], NDArray[Any], Sequence[Mapping[str, Any]]], None]


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


def write_dataset(out: Path, dataset: PatchDataset) -> None:
    """Write ``dataset.json``, which makes a prepared folder complete.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_record(out / DATASET_FILE, {"format": FORMAT, "version": FORMAT_VERSION, **asdict(dataset)})


@contextmanager
def fold_stream(
    out: Path, number: int, *, shape: tuple[int, int], class_names: Sequence[str]
) -> Iterator[AppendPatches]:
    """Return a context that yields a function which appends patches to a new fold.

    The function takes images ``(B, S, S, 3)``, instance maps and type maps ``(B, S, S)`` and one row per patch with
    ``name``, ``source``, ``tissue`` and the number of nuclei under the name of each type. What an interrupted run left
    behind is removed; the fold counts as finished only after :func:`finish_fold`. A ``dataset.json`` that names the
    fold is removed first, so that nobody opens a fold of which some files are new and some are not.

    Args:
        out: Folder of the data set; made if missing.
        number: Number of the fold.
        shape: Number of patches, and their side in pixels.
        class_names: Names of the types, background first.

    Raises:
        OutputError: If a file cannot be written.
    """
    folder = fold_folder(out, number)
    make_folder(folder)
    try:
        _unlist(out, number)
        (folder / MADE_FROM).unlink(missing_ok=True)
        remove_temporaries(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write into '{folder}' ({reason}); choose another out=FOLDER") from error
    count, size = shape
    with ExitStack() as stack:
        images = stack.enter_context(npy_stream(folder / IMAGES, (count, size, size, 3), DTYPES[IMAGES]))
        labels = stack.enter_context(npy_stream(folder / INSTANCE_MAPS, (count, size, size), DTYPES[INSTANCE_MAPS]))
        types = stack.enter_context(npy_stream(folder / TYPE_MAPS, (count, size, size), DTYPES[TYPE_MAPS]))
        table = stack.enter_context(atomic_text(folder / PATCHES))
        write_rows = csv_writer(table, [*ROW_COLUMNS, *class_names[1:]])

        def append(
            image: NDArray[np.uint8],
            instance_map: NDArray[Any],
            type_map: NDArray[Any],
            rows: Sequence[Mapping[str, Any]],
        ) -> None:
            images(image)
            labels(instance_map)
            types(type_map)
            write_rows(rows)

        yield append


@contextmanager
def npy_stream(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[AppendArray]:
    """Return a context that yields a function which appends rows to a new ``.npy`` file.

    The file appears under its name when the context ends without an error. Unlike a memory map, a full disk is an
    error here and not the end of the process.

    Args:
        path: The file.
        shape: Shape of the whole array, rows first.
        dtype: Its type, as numpy names it.

    Raises:
        OutputError: If the file cannot be written.
    """
    kind = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        rows = 0

        def append(block: NDArray[Any]) -> None:
            nonlocal rows
            assert block.shape[1:] == shape[1:], (block.shape, shape)
            file.write(np.ascontiguousarray(block, kind).data)
            rows += len(block)

        yield append
        assert rows == shape[0], (rows, shape)


def finish_fold(out: Path, number: int, made_from: Mapping[str, Any]) -> None:
    """Mark a fold as finished.

    Args:
        out: Folder of the data set.
        number: Number of the fold.
        made_from: Plain data: ``made_with`` decides whether a later run may keep the fold.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_record(fold_folder(out, number) / MADE_FROM, made_from)


def finished_fold(
    out: Path, number: int, *, made_with: Mapping[str, Any], dataset: PatchDataset
) -> dict[str, Any] | None:
    """Return what :func:`finish_fold` stored, or None if the fold has to be written.

    Args:
        out: Folder of the data set.
        number: Number of the fold.
        made_with: Plain data: settings and fingerprints of the files.
        dataset: What the whole data set is to be.

    Raises:
        OutputError: If the fold was made with other settings or from other files.
    """
    stored = _stored(fold_folder(out, number))
    if stored is None:
        return None
    _refuse_other(fold_folder(out, number), stored["made_with"], made_with)
    try:
        read_fold(out, number, dataset=dataset)
    except DataError:  # files of a finished fold were removed or damaged
        return None
    return stored


def earlier_fold(out: Path, number: int, *, made_with: Mapping[str, Any], dataset: PatchDataset) -> dict[str, Any]:
    """Return what :func:`finish_fold` stored of a fold whose source is not at hand.

    Args:
        out: Folder of the data set.
        number: Number of the fold, one of :func:`finished_numbers`.
        made_with: Plain data: settings, without fingerprints of files.
        dataset: What the whole data set is to be.

    Raises:
        OutputError: If the fold was made with other settings or does not fit the data set.
    """
    folder = fold_folder(out, number)
    try:
        stored = _stored(folder)
        if stored is None:
            raise DataError(f"'{folder / MADE_FROM}' is gone")
        _refuse_other(folder, {name: stored["made_with"].get(name) for name in made_with}, made_with)
        read_fold(out, number, dataset=dataset)
    except DataError as error:
        message = f"'{folder}' was finished before but does not fit, and its source is not there: {error}"
        raise OutputError(f"{message}. Put the source back, remove the folder, or choose another out=FOLDER") from error
    return stored


def finished_numbers(out: Path) -> list[int]:
    """Return the numbers of the folds that are finished in a folder, ascending."""
    found = (re.fullmatch(r"fold([1-9]\d*)", path.parent.name) for path in out.glob(f"fold*/{MADE_FROM}"))
    return sorted(int(match[1]) for match in found if match)


def _read_rows(path: Path, dataset: PatchDataset) -> list[dict[str, str]]:
    needed = [*ROW_COLUMNS, *dataset.class_names[1:]]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            columns, rows = read_csv(file)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); prepare the data again") from error
    missing = [column for column in needed if column not in columns]
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


def _unlist(out: Path, number: int) -> None:
    """Remove a ``dataset.json`` that names a fold; one that is not ours gets another name."""
    path = out / DATASET_FILE
    try:
        if number in read_dataset(out).folds:
            path.unlink()
    except DataError:
        if path.exists():
            keep_aside(path)


def _stored(folder: Path) -> dict[str, Any] | None:
    """Return what :func:`finish_fold` stored in the folder of a fold, or None if the fold is not finished."""
    path, advice = folder / MADE_FROM, f"remove the folder '{folder}'"
    stored = read_record(path, advice=advice)
    if stored is not None and not isinstance(stored.get("made_with"), dict):
        raise OutputError(f"{str(path)!r} does not say what the fold was made with; {advice}")
    return stored


def _refuse_other(folder: Path, before: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    changed = differences(before, made_with)
    if changed:
        raise OutputError(
            f"'{folder}' was made with other settings or from other files: {'; '.join(changed)}. "
            "Remove the folder to make it anew, or choose another out=FOLDER"
        )
