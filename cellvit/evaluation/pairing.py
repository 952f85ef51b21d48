"""Which prediction belongs to which ground truth."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellvit.errors import ConfigError, DataError
from cellvit.io.detections import SUFFIXES, images_in, stem_of, suffix_of
from cellvit.io.labels import MANIFEST, SPLITS, ImageRecord, find_records
from cellvit.types import Nuclei

_SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """Files of one image.

    Attributes:
        name: Name of the image; unique.
        pred: File of the prediction, or the nuclei themselves.
        truth: File of the ground truth, or the nuclei themselves.
        tissue: Name of its tissue, None if the truth states none.
        pred_image: Which image of a file of predictions that holds several.
        truth_image: Which image of a file of the truth that holds several.
    """

    name: str
    pred: Path | Nuclei
    truth: Path | Nuclei
    tissue: str | None = None
    pred_image: str | None = None
    truth_image: str | None = None


@dataclass(frozen=True)
class Pairing:
    """All images of a comparison.

    Attributes:
        pairs: Images with both sides.
        missing: Names of the images without a prediction.
        unused: Files of predictions without a truth.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]
    unused: tuple[Path, ...]


def find_pairs(pred: Path, truth: Path, *, split: str | None = None, datasets: Sequence[str] | None = None) -> Pairing:
    """Pair the files of a prediction with those of the truth by stem.

    Args:
        pred: File, or folder of files; of a data folder with several data sets, the predictions of each may lie in a
            folder of its name.
        truth: File; folder of files; a file of several images, whose predictions may be a folder, and the other way
            round; or a data folder as :func:`cellvit.io.labels.find_records` reads it, of which
            the labels count. Its manifest may have a column ``tissue``.
        split: ``train``, ``val`` or ``test`` of a data folder; None takes all.
        datasets: Names of data sets of a data folder; None takes all.

    Raises:
        ConfigError: If one is a file and the other a folder, or the split is needed or not usable.
        DataError: If something does not exist or nothing has the same stem.
    """
    for path, what in ((pred, "prediction"), (truth, "truth")):
        if not path.exists():
            raise DataError(f"{what} '{path}' does not exist; check the path")
    held = [() if path.is_dir() else images_in(path) for path in (pred, truth)]
    if any(held) and split is None and datasets is None:
        return _with_images(pred, truth, *held)
    if pred.is_dir() != truth.is_dir():
        raise ConfigError(f"'{pred}' and '{truth}' must both be files or both be folders")
    if truth.is_dir() and (split is not None or datasets is not None or _is_data_folder(truth)):
        return _with_records(pred, truth, split, datasets)
    if split is not None or datasets is not None:
        raise ConfigError(f"'{truth}' is a file: leave out split and datasets, or give a data folder")
    if truth.is_file():
        return Pairing((Pair(stem_of(truth), pred, truth),), (), ())
    found, true = _files_by_stem(pred, "prediction"), _files_by_stem(truth, "truth")
    names = sorted(true)
    _check_common(pred, truth, found, names)
    return Pairing(
        tuple(Pair(name, found[name], true[name]) for name in names if name in found),
        tuple(name for name in names if name not in found),
        tuple(found[stem] for stem in sorted(set(found) - set(true))),
    )


def _with_images(pred: Path, truth: Path, found: Sequence[str], true: Sequence[str]) -> Pairing:
    """Pair the images of files that hold several, with each other or with the files of a folder."""
    if truth.is_dir() and _is_data_folder(truth):
        raise ConfigError(
            f"'{pred}' is a file of several images and '{truth}' a data folder; give its folder of labels"
        )
    sides: list[dict[str, tuple[Path, str | None]]] = []
    for path, names, what in ((pred, found, "prediction"), (truth, true, "truth")):
        if path.is_dir():
            sides.append({stem: (file, None) for stem, file in _files_by_stem(path, what).items()})
        else:
            sides.append({name: (path, name) for name in names} or {stem_of(path): (path, None)})
    one, other = sides
    if not set(one) & set(other):
        message = f"no image of '{pred}' is called as one of '{truth}': {sorted(one)[:_SHOWN]} and "
        raise DataError(message + f"{sorted(other)[:_SHOWN]}; name predictions like the truth")
    return Pairing(
        tuple(
            Pair(name, one[name][0], path, pred_image=one[name][1], truth_image=image)
            for name, (path, image) in other.items()
            if name in one
        ),
        tuple(name for name in other if name not in one),
        tuple(path / name if image else path for name, (path, image) in one.items() if name not in other),
    )


def check_complete(pairing: Pairing, *, pred: Path) -> None:
    """Raise DataError if a prediction is missing: the means over the others would not be those of the data."""
    if not pairing.missing:
        return
    names = ", ".join(pairing.missing[:20]) + (", ..." if len(pairing.missing) > 20 else "")
    total = len(pairing.pairs) + len(pairing.missing)
    message = f"{len(pairing.missing)} of {total} images have no prediction in '{pred}': {names}; "
    raise DataError(message + "add them, or pass skip_missing=True to score the others alone")


def _is_data_folder(path: Path) -> bool:
    split_folders = [path / split / "images" for split in SPLITS]
    return (path / MANIFEST).is_file() or any(folder.is_dir() for folder in (path / "images", *split_folders))


def _with_records(pred: Path, truth: Path, split: str | None, datasets: Sequence[str] | None) -> Pairing:
    records = find_records(truth, split=split, datasets=datasets)
    if not records:
        wanted = "no split" if split is None else f"split {split!r}"
        raise DataError(f"data folder '{truth}' has no images of {wanted}; choose a split of {', '.join(SPLITS)}")
    absent = [str(record.label) for record in records if not record.label.is_file()]
    if absent:
        shown = ", ".join(absent[:20]) + (", ..." if len(absent) > 20 else "")
        raise DataError(f"{len(absent)} of {len(records)} images of '{truth}' have no label: {shown}; add them")
    tissues = _tissues(truth)
    folders = {record.dataset: pred / record.dataset for record in records}
    own = {name: _files_by_stem(path, "prediction") for name, path in folders.items() if path.is_dir()}
    shared = {} if len(own) == len(folders) else _files_by_stem(pred, "prediction")
    found = {record.name: own.get(record.dataset, shared).get(record.label.stem) for record in records}
    _check_unambiguous(records, found)
    _check_common(
        pred,
        truth,
        {stem: path for files in (shared, *own.values()) for stem, path in files.items()},
        [record.label.stem for record in records],
    )
    pairs = [(record, path) for record in records if (path := found[record.name]) is not None]
    used = {path for _, path in pairs}
    every = [path for files in (shared, *own.values()) for path in files.values()]
    return Pairing(
        tuple(Pair(record.name, path, record.label, tissues.get(record.name)) for record, path in pairs),
        tuple(name for name, path in found.items() if path is None),
        tuple(sorted(set(every) - used)),
    )


def _check_unambiguous(records: Sequence[ImageRecord], found: dict[str, Path | None]) -> None:
    uses = Counter(path for path in found.values() if path is not None)
    shared = next((path for path, count in uses.items() if count > 1), None)
    if shared is not None:
        names = [record.name for record in records if found[record.name] == shared]
        message = f"'{shared}' would be the prediction of {' and '.join(names)}; "
        way = "put the predictions of each data set into a folder of its name, or choose some: datasets=['NAME']"
        raise DataError(message + way)


def _check_common(pred: Path, truth: Path, found: dict[str, Path], names: Sequence[str]) -> None:
    if not set(found) & set(names):
        message = f"no file in '{pred}' has the stem of one in '{truth}': {sorted(found)[:_SHOWN]} and "
        raise DataError(message + f"{sorted(names)[:_SHOWN]}; name predictions like the truth")


def _tissues(truth: Path) -> dict[str, str]:
    """Return the tissue of every image that the manifest states one for."""
    manifest = truth / MANIFEST
    if not manifest.is_file():
        return {}
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        f"{row['dataset']}/{row['image']}": row["tissue"].strip() for row in rows if (row.get("tissue") or "").strip()
    }


def _files_by_stem(folder: Path, what: str) -> dict[str, Path]:
    """Return the file of every stem; of several the one whose suffix stands first."""
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and suffix_of(p)]
    if not files:
        raise DataError(f"{what} folder '{folder}' holds none of {', '.join(SUFFIXES)}; give the folder with the files")
    files.sort(key=lambda path: (SUFFIXES.index(suffix_of(path) or ""), path.name), reverse=True)
    return {stem_of(path): path for path in files}
