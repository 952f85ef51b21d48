"""Write the compact form of a patch data set, one fold at a time, and know which folds are finished."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.atomic import atomic_path, atomic_text
from cellvit.data.patches import (
    DATASET_FILE,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    IMAGES,
    INSTANCE_MAPS,
    PATCHES,
    ROW_COLUMNS,
    TYPE_MAPS,
    PatchDataset,
    fold_folder,
    read_dataset,
    read_fold,
)
from cellvit.errors import DataError, OutputError

MADE_FROM = "source.json"
_TEMPORARY = ".cellvit-*"

AppendArray = Callable[[NDArray[Any]], None]
AppendPatches = Callable[[NDArray[np.uint8], NDArray[Any], NDArray[Any], Sequence[Mapping[str, Any]]], None]


@contextmanager
def npy_stream(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[AppendArray]:
    """Return a context that yields a function which appends rows to a new ``.npy`` file.

    The file appears under its name when the context ends without an error. Unlike a memory map, a full disk is an
    error here and not the end of the process.

    Args:
        path: The file.
        shape: Of the whole array.
        dtype: Of the whole array.

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unlisted = [out / DATASET_FILE] if _is_listed(out, number) else []
        for left in (*unlisted, folder / MADE_FROM, *folder.glob(_TEMPORARY)):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into '{folder}' ({error.strerror or error}); choose another --out") from error
    count, size = shape
    with ExitStack() as stack:
        images = stack.enter_context(npy_stream(folder / IMAGES, (count, size, size, 3), DTYPES[IMAGES]))
        labels = stack.enter_context(npy_stream(folder / INSTANCE_MAPS, (count, size, size), DTYPES[INSTANCE_MAPS]))
        types = stack.enter_context(npy_stream(folder / TYPE_MAPS, (count, size, size), DTYPES[TYPE_MAPS]))
        table = stack.enter_context(atomic_text(folder / PATCHES))
        writer = csv.DictWriter(table, [*ROW_COLUMNS, *class_names[1:]], lineterminator="\n")
        writer.writeheader()

        def append(
            image: NDArray[np.uint8],
            instance_map: NDArray[Any],
            type_map: NDArray[Any],
            rows: Sequence[Mapping[str, Any]],
        ) -> None:
            images(image)
            labels(instance_map)
            types(type_map)
            writer.writerows(rows)

        yield append


def finish_fold(out: Path, number: int, made_from: Mapping[str, Any]) -> None:
    """Mark a fold as finished.

    Args:
        out: Folder of the data set.
        number: Number of the fold.
        made_from: Plain data: ``made_with`` decides whether a later run may keep the fold.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(fold_folder(out, number) / MADE_FROM) as file:
        json.dump(made_from, file, indent=1)
        file.write("\n")


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
    _refuse_other(fold_folder(out, number), stored["made_with"], made_with, keys={**stored["made_with"], **made_with})
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
        _refuse_other(folder, stored["made_with"], made_with, keys=made_with)
        read_fold(out, number, dataset=dataset)
    except DataError as error:
        message = f"'{folder}' was finished before but does not fit, and its source is not there: {error}"
        raise OutputError(f"{message}. Put the source back, remove the folder, or choose another --out") from error
    return stored


def finished_numbers(out: Path) -> list[int]:
    """Return the numbers of the folds that are finished in a folder, ascending."""
    found = (re.fullmatch(r"fold([1-9]\d*)", path.parent.name) for path in out.glob(f"fold*/{MADE_FROM}"))
    return sorted(int(match[1]) for match in found if match)


def _is_listed(out: Path, number: int) -> bool:
    try:
        return number in read_dataset(out).folds
    except DataError:
        return True


def _stored(folder: Path) -> dict[str, Any] | None:
    """Return what :func:`finish_fold` stored in the folder of a fold, or None if the fold is not finished."""
    try:
        stored = dict(json.loads((folder / MADE_FROM).read_text(encoding="utf-8")))
        return {**stored, "made_with": dict(stored["made_with"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"'{folder / MADE_FROM}' cannot be read ({error!r}); remove the folder '{folder}'") from error


def _refuse_other(
    folder: Path, before: Mapping[str, Any], made_with: Mapping[str, Any], *, keys: Iterable[str]
) -> None:
    wanted = json.loads(json.dumps(made_with))
    changed = [f"{k} was {before.get(k)}, is {wanted.get(k)}" for k in keys if before.get(k) != wanted.get(k)]
    if changed:
        raise OutputError(
            f"'{folder}' was made with other settings or from other files: {'; '.join(changed)}. "
            "Remove the folder to make it anew, or choose another --out"
        )


def write_dataset(out: Path, dataset: PatchDataset) -> None:
    """Write ``dataset.json``, which makes a prepared folder complete.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(out / DATASET_FILE) as file:
        json.dump({"format": FORMAT, "version": FORMAT_VERSION, **asdict(dataset)}, file, indent=1)
        file.write("\n")
