"""CoNSeP in PanNuke's layout: real, typed patches in three folds, cut from images without rescaling them."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.data.pannuke.source import FOLDS, NAMES_FILE, SOURCES_FILE
from cellvit.data.pannuke.storage import npy_stream
from cellvit.errors import DataError, ImageError, OutputError
from cellvit.io.atomic import atomic_text, make_folder
from cellvit.io.images import read_image
from cellvit.io.labels import LABEL_SUFFIXES, list_images, raise_problems, read_label
from cellvit.io.provenance import differences, file_state, read_record, write_record
from cellvit.io.tables import csv_writer

CLASS_NAMES = ("Background", "Other", "Inflammatory", "Epithelial", "Spindle-shaped")
TISSUE = "Colon"
MPP = 0.25
PATCH_SIZE = 256
_UNFINISHED = ".unfinished"
_SHOWN = 5  # differences in a message


@dataclass(frozen=True)
class TypedImage:
    """An image whose nuclei have types.

    Attributes:
        image: Image file.
        label: Label file.
        shape: Height and width in pixels.
        nuclei: Number of nuclei.
    """

    image: Path
    label: Path
    shape: tuple[int, int]
    nuclei: int


@dataclass(frozen=True)
class CutFolds:
    """What was written.

    Attributes:
        out: Folder in PanNuke's layout.
        images: Names of the images of each fold.
        patches: Number of patches of each fold.
        left_out: Images without a label or without types.
        kept: Whether an earlier call had written the same.
    """

    out: Path
    images: dict[int, tuple[str, ...]]
    patches: dict[int, int]
    left_out: tuple[str, ...]
    kept: bool


def cut_folds(root: Path, out: Path, *, report: Callable[[int, int], None] = lambda done, total: None) -> CutFolds:
    """Write the patches of CoNSeP in the layout in which PanNuke is distributed.

    Each image is covered by a grid of patches of 256 px that overlap as little as they can: 4 x 4 patches with 8 px
    for 1000 px. The three folds are split by image and balanced by the number of nuclei. Beside the folds lie
    ``names.json``, with the names of types and tissue, and ``sources.csv``, with the place of each patch.

    Args:
        root: The folder ``consep`` with ``images`` and ``labels``, or the one it lies in.
        out: Folder to write.
        report: Called after each image with the number done and the number of all.

    Raises:
        DataError: If something is wrong with the data; one error lists everything.
        OutputError: If the folder cannot be written, or holds something made from other files.
    """
    folder = root if (root / "images").is_dir() else root / "consep"
    images, left_out = find_typed_images(folder)
    folds = deal_folds(images)
    patches = {number: sum(len(patch_corners(one.shape)) for one in folds[number]) for number in FOLDS}
    cut = CutFolds(
        out, {k: tuple(one.image.stem for one in folds[k]) for k in FOLDS}, patches, left_out, _is_current(out, images)
    )
    if cut.kept:
        return cut
    _mark(out)
    done = count(1)
    for number in FOLDS:
        _write_fold(out, number, folds[number], patches=patches[number], tick=lambda: report(next(done), len(images)))
    with atomic_text(out / SOURCES_FILE) as file:
        columns = ("fold", "index", "source", "row", "col")
        write = csv_writer(file, columns)
        for number in FOLDS:
            places = [(one.image.stem, *corner) for one in folds[number] for corner in patch_corners(one.shape)]
            write(dict(zip(columns, (number, index, *place), strict=True)) for index, place in enumerate(places))
    write_record(out / NAMES_FILE, _names(images))
    (out / _UNFINISHED).unlink(missing_ok=True)
    return cut


def find_typed_images(folder: Path) -> tuple[list[TypedImage], tuple[str, ...]]:
    """Find the images whose nuclei have types, and the names of those that have no label or no types.

    Args:
        folder: Folder with ``images`` and ``labels``.

    Raises:
        DataError: If there are fewer than three such images, or something is wrong with one.
    """
    if not (folder / "images").is_dir():
        raise DataError(f"'{folder}' has no folder 'images'; give the folder of CoNSeP with images and labels")
    found: list[TypedImage] = []
    left_out, problems = [], []
    for image in list_images(folder / "images"):
        labels = [p for suffix in LABEL_SUFFIXES if (p := folder / "labels" / f"{image.stem}{suffix}").is_file()]
        try:
            typed = _check(image, labels[0]) if labels else None
        except (DataError, ImageError) as error:
            problems.append(str(error))
            continue
        if typed is None:
            left_out.append(image.name)
        else:
            found.append(typed)
    raise_problems(problems, where=folder)
    if len(found) < len(FOLDS):
        raise DataError(f"'{folder}' has {len(found)} images with types; three folds need at least {len(FOLDS)}")
    return found, tuple(left_out)


def deal_folds(images: Sequence[TypedImage]) -> dict[int, list[TypedImage]]:
    """Return the images of each fold: sorted by nuclei and dealt 1 2 3, 3 2 1, 1 2 3, ...; by name within a fold."""
    order = sorted(images, key=lambda one: (-one.nuclei, one.image.name))
    folds: dict[int, list[TypedImage]] = {number: [] for number in FOLDS}
    for i, one in enumerate(order):
        lap, place = divmod(i, len(FOLDS))
        folds[FOLDS[place if lap % 2 == 0 else len(FOLDS) - 1 - place]].append(one)
    return {number: sorted(dealt, key=lambda one: one.image.name) for number, dealt in folds.items()}


def patch_corners(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return row and column of the patches that cover an image, row by row.

    Example:
        >>> patch_corners((1000, 256))
        [(0, 0), (248, 0), (496, 0), (744, 0)]
    """
    rows, cols = ([round(x) for x in np.linspace(0, n - PATCH_SIZE, -(-n // PATCH_SIZE))] for n in shape)
    return [(row, col) for row in rows for col in cols]


def channels_from_instances(instance_map: NDArray[Any], types: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return PanNuke's masks: ids of nuclei in the channel of their type, and 1 for background in the last.

    Args:
        instance_map: ``(H, W)``, 0 is background.
        types: ``(N + 1,)`` types 1..4 by label.

    Returns:
        ``(H, W, 5)``.
    """
    per_pixel = np.where(instance_map > 0, types[instance_map], 0)[..., None]
    kinds = np.arange(1, len(CLASS_NAMES))
    ids = np.where(per_pixel == kinds, instance_map[..., None], 0)
    return np.concatenate((ids, per_pixel == 0), axis=-1).astype(np.int32)


def _check(image: Path, label: Path) -> TypedImage | None:
    """Return the image, or None if its nuclei have no types."""
    pixels = read_image(image)
    instance_map, types = read_label(label)
    if types is None:
        return None
    if pixels.shape[:2] != instance_map.shape:
        raise DataError(f"image '{image}' is {pixels.shape[:2]} but its label is {instance_map.shape}")
    if min(instance_map.shape) < PATCH_SIZE:
        raise DataError(f"image '{image}' is {instance_map.shape}; patches need at least {PATCH_SIZE} px")
    labels = np.unique(instance_map)
    labels = labels[labels > 0]
    if types.ndim != 1 or len(types) <= labels.max(initial=0):
        raise DataError(f"label '{label}' has labels up to {labels.max(initial=0)} but {types.shape} types")
    used = types[labels]
    if (used < 0).any():
        return None
    wrong = used[(used < 1) | (used >= len(CLASS_NAMES))]
    if len(wrong):
        raise DataError(
            f"label '{label}' has type {wrong[0]}; types are 1..{len(CLASS_NAMES) - 1}: {CLASS_NAMES[1:]}; "
            "of the seven that CoNSeP was published with, make 3 and 4 type 3, and 5, 6 and 7 type 4"
        )
    height, width = instance_map.shape
    return TypedImage(image, label, (height, width), len(labels))


def _write_fold(
    out: Path, number: int, images: Sequence[TypedImage], *, patches: int, tick: Callable[[], None]
) -> None:
    """Write the arrays of one fold; ``tick`` is called after each image."""
    places = {kind: out / f"Fold {number}" / kind / f"fold{number}" for kind in ("images", "masks")}
    for place in places.values():
        make_folder(place)
    shape = (patches, PATCH_SIZE, PATCH_SIZE)
    with ExitStack() as stack:
        add = stack.enter_context
        append_image = add(npy_stream(places["images"] / "images.npy", (*shape, 3), np.float32))
        append_types = add(npy_stream(places["images"] / "types.npy", (patches,), f"<U{len(TISSUE)}"))
        append_mask = add(npy_stream(places["masks"] / "masks.npy", (*shape, len(CLASS_NAMES)), np.int32))
        for one in images:
            pixels = read_image(one.image)
            instance_map, types = read_label(one.label)
            masks = channels_from_instances(instance_map, types if types is not None else np.zeros(0, np.int32))
            for row, col in patch_corners(one.shape):
                window = (slice(row, row + PATCH_SIZE), slice(col, col + PATCH_SIZE))
                append_image(pixels[window][None])
                append_mask(masks[window][None])
                append_types(np.array([TISSUE]))
            tick()


def _names(images: Sequence[TypedImage]) -> dict[str, Any]:
    fingerprints = {}
    for one in images:
        for path in (one.image, one.label):
            fingerprints[f"{path.parent.name}/{path.name}"] = list(file_state(path).values())
    about = {
        "data": "CoNSeP cut into patches in the layout of PanNuke",
        "licence": "not stated by the authors of CoNSeP",
        "cite": "Graham et al., HoVer-Net, Medical Image Analysis 2019, DOI 10.1016/j.media.2019.101563",
    }
    return {
        "name": "pannuke-like",
        "mpp": MPP,
        "class_names": list(CLASS_NAMES),
        "tissue_names": [TISSUE],
        "about": about,
        "made_from": fingerprints,
    }


def _mark(out: Path) -> None:
    """Say that the folds that follow are ours, for a later call to go on with if this one is stopped."""
    make_folder(out)
    with atomic_text(out / _UNFINISHED) as file:
        file.write("cellvit prepare pannuke-like is writing folds here\n")


def _refuse_foreign(out: Path) -> None:
    if not out.is_dir() or (out / _UNFINISHED).is_file():
        return
    foreign = sorted(path.name for path in out.iterdir() if re.fullmatch(r"fold ?\d+", path.name, re.IGNORECASE))
    if foreign:
        raise OutputError(f"'{out}' holds the folds {foreign} of another data set; choose another out=FOLDER")


def _is_current(out: Path, images: Sequence[TypedImage]) -> bool:
    """Return whether an earlier call has written the same folds.

    Raises:
        OutputError: If the folder holds folds made from other files, or by somebody else.
    """
    path = out / NAMES_FILE
    if not path.is_file():
        _refuse_foreign(out)
        return False
    stored = read_record(path, advice="remove the folder or choose another out=FOLDER")
    changed = differences(stored or {}, _names(images))
    if changed:
        raise OutputError(
            f"'{out}' holds folds made from other files ({'; '.join(changed[:_SHOWN])}); remove the folder or choose "
            "another out=FOLDER"
        )
    return True
