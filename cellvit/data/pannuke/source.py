"""PanNuke's folds as they are distributed: names of types and tissues, where files lie, arrays read by block."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import PANNUKE, PANNUKE_TISSUES
from cellvit.data.pannuke.storage import ROW_COLUMNS
from cellvit.errors import DataError
from cellvit.io.tables import read_csv

NAMES_FILE = "names.json"
SOURCES_FILE = "sources.csv"
FOLDS = (1, 2, 3)
KINDS = ("images", "masks", "types")
_SHOWN = 10
_FOLD = re.compile(r"fold[ _-]?(\d+)", re.IGNORECASE)
_SEARCHED = ("", "images", "masks", "types")
_MAX_TYPES = 255


@dataclass(frozen=True)
class SourceNames:
    """What a folder in PanNuke's layout holds.

    Attributes:
        name: Name of the data set.
        mpp: Resolution in microns per pixel.
        class_names: Names of the nucleus types, background first; the masks have one channel per type and one more.
        tissue_names: Names of the tissues.
        about: Free facts: licence, source.
    """

    name: str
    mpp: float
    class_names: tuple[str, ...]
    tissue_names: tuple[str, ...]
    about: dict[str, Any]


PANNUKE_NAMES = SourceNames(
    "pannuke",
    0.25,
    PANNUKE.names,
    PANNUKE_TISSUES,
    {"licence": "CC BY-NC-SA 4.0", "cite": "Gamper et al., PanNuke, ECDP 2019, DOI 10.1007/978-3-030-23937-4_2"},
)


def read_names(root: Path) -> SourceNames:
    """Return the names in ``names.json``, or PanNuke's where there is no such file.

    Raises:
        DataError: If the file is broken or its names cannot be used.
    """
    path = root / NAMES_FILE
    if not path.is_file():
        return PANNUKE_NAMES
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        names = SourceNames(
            name=str(stored["name"]),
            mpp=float(stored["mpp"]),
            class_names=tuple(map(str, stored["class_names"])),
            tissue_names=tuple(map(str, stored["tissue_names"])),
            about=dict(stored.get("about", {})),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' cannot be read ({error!r}); it needs name, mpp, class_names and tissue_names"
        ) from error
    columns = [*ROW_COLUMNS, *names.class_names]
    unique = len(set(columns)) == len(columns) and len(set(names.tissue_names)) == len(names.tissue_names)
    if not unique or not names.tissue_names or not 2 <= len(names.class_names) <= _MAX_TYPES:
        raise DataError(
            f"'{path}' names the classes {names.class_names} and the tissues {names.tissue_names}; give each once, "
            f"background first, at least one of each and none of {', '.join(ROW_COLUMNS)}"
        )
    if not 0 < names.mpp < float("inf"):
        raise DataError(f"'{path}' says mpp {names.mpp}; give microns per pixel above 0")
    return names


@dataclass(frozen=True)
class FoldFiles:
    """Where a fold lies.

    Attributes:
        root: Folder of the data set.
        number: Number of the fold.
        paths: Files of ``images``, ``masks`` and ``types``.
    """

    root: Path
    number: int
    paths: dict[str, Path]

    def label(self, kind: str) -> str:
        """Return the name of a file for messages: its path within the data set."""
        return str(self.paths[kind].relative_to(self.root))


@dataclass(frozen=True, eq=False)
class SourceFold:
    """An opened fold; row ``i`` of everything is patch ``i``.

    Attributes:
        files: Where it lies.
        images: ``(N, S, S, 3)`` numbers 0..255, memory-mapped.
        masks: ``(N, S, S, C)`` ids of nuclei, one channel per type and one for background, memory-mapped.
        tissues: Name of each patch's tissue.
        sources: The image each patch was cut from; the patch itself where that is not known.
        faults: What is wrong with tissues and sources.
    """

    files: FoldFiles
    images: NDArray[Any]
    masks: NDArray[Any]
    tissues: tuple[str, ...]
    sources: tuple[str, ...]
    faults: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side of the patches in pixels."""
        return int(self.images.shape[1])

    def read(self, kind: str, block: slice) -> NDArray[Any]:
        """Return images or masks of some patches in memory.

        The file is mapped anew each time, so that pages which were read do not add up in the process.

        Raises:
            DataError: If the file cannot be read any more.
        """
        path = self.files.paths[kind]
        try:
            return np.array(np.lib.format.open_memmap(path, mode="r")[block])
        except (OSError, ValueError) as error:
            raise DataError(f"'{path}' cannot be read any more ({error}); was it changed meanwhile?") from error

    @property
    def number(self) -> int:
        """Number of the fold."""
        return self.files.number

    def label(self, kind: str) -> str:
        """Return the name of one of its files for messages."""
        return self.files.label(kind)


def patch_name(fold: int, index: int) -> str:
    """Return the name of a patch, unique within a data set.

    Example:
        >>> patch_name(1, 7)
        'fold1/0007'
    """
    return f"fold{fold}/{index:04d}"


def find_folds(root: Path, *, numbers: Sequence[int] | None = None) -> tuple[list[FoldFiles], list[str]]:
    """Find the folds of a folder, in either layout.

    Two layouts are known, with upper or lower case: ``Fold 1/images/fold1/{images,types}.npy`` with
    ``Fold 1/masks/fold1/masks.npy``, and ``fold1/{images,masks,types}.npy``. Types may also lie beside the masks.

    Args:
        root: The folder.
        numbers: Folds that are wanted; None wants all, at least 1, 2 and 3.

    Returns:
        The folds that are complete, by number, and what is wrong with the others.

    Raises:
        DataError: If the folder does not exist or has no folds.
    """
    if not root.is_dir():
        raise DataError(f"'{root}' is no folder; give the one with 'Fold 1', 'Fold 2' and 'Fold 3' of PanNuke")
    folders: dict[int, list[Path]] = {}
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        if match := _FOLD.fullmatch(folder.name):
            folders.setdefault(int(match[1]), []).append(folder)
    if not folders:
        raise DataError(f"'{root}' holds no fold; give the folder with 'Fold 1', 'Fold 2' and 'Fold 3' of PanNuke")
    wanted = sorted(set(folders) | set(FOLDS)) if numbers is None else sorted(set(numbers))
    problems = []
    if numbers is not None and len(wanted) < len(numbers):
        problems.append(f"folds {list(numbers)} name one twice; name each once")
    found = []
    for number in wanted:
        places = folders.get(number, [])
        if number < 1:
            problems.append(f"{places[0].name if places else number}: folds are numbered from 1; rename the folders")
        elif not places:
            others = sorted(n for n in folders if n > 0)
            problems.append(f"fold {number} is missing; there are {others}: name those wanted, as in folds=[1, 2]")
        elif len(places) > 1:
            names = " and ".join(f"'{p.name}'" for p in places)
            problems.append(f"fold {number} is there twice: {names}; keep one")
        else:
            paths, faults = _find_files(places[0], number)
            problems += faults
            found += [] if faults else [FoldFiles(root, number, paths)]
    return found, problems


def _find_files(folder: Path, number: int) -> tuple[dict[str, Path], list[str]]:
    """Return the three files of a fold and what is wrong with them."""
    paths: dict[str, Path] = {}
    problems = []
    files = _fold_files(folder)
    for kind in KINDS:
        matching = [p for p in files if p.name.lower() == f"{kind}.npy"]
        if len(matching) == 1:
            paths[kind] = matching[0]
            inner = _FOLD.fullmatch(matching[0].parent.name)
            if inner and int(inner[1]) != number:
                where = matching[0].relative_to(folder.parent)
                problems.append(f"{where}: the folders name two folds; move the file where it belongs")
        elif matching:
            names = " and ".join(str(p.relative_to(folder.parent)) for p in matching)
            problems.append(f"{folder.name}: {kind}.npy is there {len(matching)} times ({names}); keep one")
        else:
            problems.append(f"{folder.name}: {kind}.npy is missing")
    return paths, problems


def _fold_files(folder: Path) -> list[Path]:
    """Return the files where a fold's arrays may lie: in it, in its parts, and in the fold folder within a part."""
    parts = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name.lower() in _SEARCHED]
    inner = [p for part in parts for p in sorted(part.iterdir()) if p.is_dir() and _FOLD.fullmatch(p.name)]
    return [p for place in (folder, *parts, *inner) for p in sorted(place.iterdir()) if p.is_file()]


def open_folds(files: Sequence[FoldFiles], *, root: Path, names: SourceNames) -> tuple[list[SourceFold], list[str]]:
    """Open folds and hold their shapes, tissues and sources against each other; no pixel is read.

    Args:
        files: What :func:`find_folds` returned.
        root: The folder, which may hold ``sources.csv`` with the columns ``fold,index,source``.
        names: Names of types and tissues.

    Returns:
        The folds whose pixels can be read, each with what else is wrong with it, and what is wrong with the others.
    """
    problems: list[str] = []
    sources = _read_sources(root / SOURCES_FILE, problems)
    folds: list[SourceFold] = []
    for one in files:
        arrays = {kind: array for kind in KINDS if (array := _open(one, kind, problems)) is not None}
        mild = _tissue_faults(one, arrays["types"], names) if "types" in arrays else []
        severe = _shape_faults(one, arrays, names) if len(arrays) == len(KINDS) else []
        if len(arrays) == len(KINDS) and not severe and folds and arrays["images"].shape[1] != folds[0].size:
            expected = f"{folds[0].size} px as in fold {folds[0].number}"
            severe.append(f"{one.label('images')}: patches of {arrays['images'].shape[1]} px, not {expected}")
        if severe or len(arrays) < len(KINDS):
            problems += severe + mild
            continue
        named = _sources(one, len(arrays["images"]), sources, mild)
        tissues = tuple(map(str, arrays["types"].tolist()))
        folds.append(SourceFold(one, arrays["images"], arrays["masks"], tissues, tuple(named), tuple(mild)))
    return folds, problems


def listed(indices: Sequence[int]) -> str:
    """Return numbers of patches as text.

    Example:
        >>> listed([3, 7])
        'patches 3, 7'
    """
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return f"{'patch' if len(indices) == 1 else 'patches'} {', '.join(map(str, indices[:_SHOWN]))}{more}"


def _open(files: FoldFiles, kind: str, problems: list[str]) -> NDArray[Any] | None:
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(files.paths[kind], mode="r")  # never unpickles, unlike np.load
    except (OSError, ValueError, EOFError, SyntaxError, TypeError) as error:
        hint = "it holds Python objects, which are not opened: store it as an array of text or numbers"
        reason = hint if "Python objects" in str(error) else f"{error}; replace the file"
        problems.append(f"{files.label(kind)} cannot be read: {' '.join(reason.split())}")
        return None
    return array


def _shape_faults(files: FoldFiles, arrays: dict[str, NDArray[Any]], names: SourceNames) -> list[str]:
    images, masks, types = (arrays[kind] for kind in KINDS)
    label = {kind: files.label(kind) for kind in KINDS}
    channels, faults = len(names.class_names), []
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype.kind not in "uif":
        faults.append(f"{label['images']}: shape {images.shape}, type {images.dtype}; give (N, S, S, 3) numbers 0..255")
    elif images.shape[1] != images.shape[2] or images.shape[1] == 0:
        faults.append(f"{label['images']}: patches of {images.shape[1]}x{images.shape[2]} px; give square ones")
    if masks.ndim != 4 or masks.dtype.kind not in "uif":
        faults.append(f"{label['masks']}: shape {masks.shape}, type {masks.dtype}; give (N, S, S, {channels}) numbers")
    elif masks.shape[3] != channels:
        types_named = ", ".join(names.class_names[1:])
        faults.append(f"{label['masks']}: {masks.shape[3]} channels; {channels} are due: {types_named} and background")
    elif images.ndim == masks.ndim and masks.shape[1:3] != images.shape[1:3]:
        faults.append(f"{label['masks']}: {masks.shape[1:3]} px but the images have {images.shape[1:3]}")
    if types.ndim != 1 or types.dtype.kind != "U":
        faults.append(f"{label['types']}: shape {types.shape}, type {types.dtype}; give (N,) text")
    lengths = {label[kind]: len(arrays[kind]) for kind in KINDS if arrays[kind].ndim}
    if len(set(lengths.values())) > 1:
        faults.append("different numbers of patches: " + ", ".join(f"{name} {n}" for name, n in lengths.items()))
    elif 0 in lengths.values():
        faults.append(f"{label['images']}: no patches")
    return faults


def _tissue_faults(files: FoldFiles, types: NDArray[Any], names: SourceNames) -> list[str]:
    if types.ndim != 1 or types.dtype.kind != "U":
        return []
    return [
        f"{files.label('types')}: {listed(np.flatnonzero(types == tissue).tolist())}: "
        f"tissue {str(tissue)!r} is unknown; known are {', '.join(names.tissue_names)}"
        for tissue in np.unique(types)
        if tissue not in names.tissue_names
    ]


def _sources(files: FoldFiles, count: int, known: dict[tuple[int, int], str] | None, faults: list[str]) -> list[str]:
    """Return the image each patch was cut from, or its own name where no sources are known."""
    keys = [(files.number, i) for i in range(count)]
    if known is None:
        return [patch_name(*key) for key in keys]
    if lacking := [index for fold, index in keys if (fold, index) not in known]:
        faults.append(f"{SOURCES_FILE}: fold {files.number} lacks {listed(lacking)}")
    return [known.get(key, "") for key in keys]


def _read_sources(path: Path, problems: list[str]) -> dict[tuple[int, int], str] | None:
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {(int(row["fold"]), int(row["index"])): row["source"] for row in read_csv(file)[1]}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        problems.append(f"{path.name} cannot be read ({error!r}); it needs the columns fold, index and source")
        return {}
