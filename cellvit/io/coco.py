"""Nuclei in JSON of COCO: polygons and run-length masks, of one image of those that a file holds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.classes import NO_TYPE
from cellvit.errors import DataError
from cellvit.io.limits import MALFORMED, brief, check_expanded
from cellvit.io.loaded import MIN_POINTS, LoadedNuclei, from_rings, notes_of, numbered_kinds

_SHIFT = 4  # outlines are drawn in steps of 1/16 pixel
_SHOWN = 5
_BYTES_OF_A_PIXEL = 16  # while masks are decoded
_CROWD = "annotations of crowds (iscrowd) were left out"
_BARE = "annotations without a polygon or a mask were left out"
_SHORT = "polygons of fewer than three points were left out"
_OTHER = "annotations name a category that the file does not list, so their type is unknown"
_HIDDEN = "annotations lie wholly under later ones, or hold no pixel, and count nowhere"


@dataclass(frozen=True)
class CocoImage:
    """One image of a file.

    Attributes:
        id: What annotations call it.
        name: Name of its file without folder and suffix.
        shape: Height and width, or None if the file does not say.
    """

    id: Any
    name: str
    shape: tuple[int, int] | None


def is_coco(data: Any) -> bool:
    """Return whether plain data are those of COCO: a data set, or a list of results."""
    if isinstance(data, Mapping):
        return "annotations" in data and "images" in data
    return isinstance(data, list) and bool(data) and isinstance(data[0], Mapping) and "image_id" in data[0]


def coco_images(data: Any) -> list[CocoImage]:
    """Return the images of a file; of results, which list none, those that they name.

    Args:
        data: Plain data of COCO.
    """
    if isinstance(data, list):
        return [CocoImage(one, _stem(str(one)), None) for one in dict.fromkeys(entry["image_id"] for entry in data)]
    return [
        CocoImage(
            entry["id"],
            _stem(str(entry.get("file_name", entry["id"]))),
            (int(entry["height"]), int(entry["width"])) if entry.get("height") and entry.get("width") else None,
        )
        for entry in data["images"]
    ]


def nuclei_of_coco(data: Any, path: Path, *, name: str) -> LoadedNuclei:
    """Return the nuclei of one image.

    Polygons are outlines. Where a mask or a nucleus of several polygons is among them, all are drawn into a map, later
    ones over earlier ones.

    Args:
        data: Plain data of COCO. Each category is a type.
        path: The file; named in errors.
        name: Name of the image without folder and suffix; of a file with one image that one is taken.

    Raises:
        DataError: If there is no such image, or an annotation cannot be read.
    """
    try:
        image = chosen_image(data, path, name)
        entries = data if isinstance(data, list) else data["annotations"]
        own = [entry for entry in entries if entry["image_id"] == image.id]
        counts: Counter[str] = Counter()
        used = [entry for entry in own if _is_used(entry, counts)]
        kinds = _kinds(used, data, counts)
        shapes = [_parts(entry["segmentation"], counts) for entry in used]
        rings = [shape[0] for shape in shapes if isinstance(shape, list) and len(shape) == 1]
        if len(rings) == len(shapes):
            return from_rings(path, rings, kinds, skipped=counts)
        return _drawn(shapes, kinds, image, path, counts)
    except DataError:
        raise
    except MALFORMED as error:
        message = f"'{path}' is not in the layout of COCO ({brief(error)}); "
        raise DataError(message + "it needs images, annotations and categories") from error


def decoded_runs(mask: Mapping[str, Any]) -> tuple[NDArray[np.intp], tuple[int, int]]:
    """Return the pixels of a mask by run length, numbered down the columns, and the shape of its image.

    Args:
        mask: ``size`` (height, width), and ``counts`` of pixels off and on in turn, as numbers or as COCO's text.

    Raises:
        ValueError: If the runs do not fill the image.

    Example:
        >>> decoded_runs({"size": [2, 3], "counts": [1, 2, 3]})[0]
        array([1, 2])
        >>> decoded_runs({"size": [2, 3], "counts": "123"})[0]
        array([1, 2])
    """
    height, width = (int(n) for n in mask["size"])
    counts = mask["counts"]
    runs = _unpacked(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
    if ((runs < 0) | (runs > height * width)).any() or int(runs.sum()) != height * width:
        raise ValueError(f"runs of {runs.sum()} pixels in a mask of {height}x{width}")
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2]
    check_expanded(int(lengths.sum()) * _BYTES_OF_A_PIXEL, f"a mask of {height}x{width}")
    first = np.repeat(ends - np.cumsum(lengths), lengths)
    return first + np.arange(int(lengths.sum())), (height, width)


def _unpacked(text: str | bytes) -> NDArray[np.int64]:
    """Return the runs of COCO's text: groups of 5 bits, lowest first, each run less the one before the last."""
    raw = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if not len(raw):
        return np.zeros(0, np.int64)
    if ((raw < 0) | (raw > 63)).any() or raw[-1] & 32:
        raise ValueError("counts hold characters that are none of COCO's runs")
    last = np.flatnonzero((raw & 32) == 0)
    starts = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(raw)) - np.repeat(starts, last - starts + 1)
    runs = np.add.reduceat((raw & 31) << (5 * place), starts)
    runs = np.where(raw[last] & 16, runs - (1 << (5 * (last - starts + 1))), runs)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _stem(name: str) -> str:
    return PureWindowsPath(name).stem  # which knows both kinds of slash


def chosen_image(data: Any, path: Path, name: str) -> CocoImage:
    """Return the image of a name, or the only one of a file.

    Args:
        data: Plain data of COCO.
        path: The file; named in errors.
        name: Name of the image without folder and suffix.

    Raises:
        DataError: If there is none, or there are several.
    """
    images = coco_images(data)
    found = [image for image in images if image.name == name] or (images if len(images) == 1 else [])
    if len(found) == 1:
        return found[0]
    shown = ", ".join(image.name for image in images[:_SHOWN]) + (", ..." if len(images) > _SHOWN else "")
    how = f"{len(found)} of which are called" if found else "none of which is called"
    message = f"'{path}' holds {len(images)} images ({shown}), {how} {name!r}; "
    raise DataError(message + "name the other file like one of them, or give one file per image")


def _is_used(entry: Mapping[str, Any], counts: Counter[str]) -> bool:
    if entry.get("iscrowd"):
        counts[_CROWD] += 1
    elif not entry.get("segmentation"):
        counts[_BARE] += 1
    else:
        return True
    return False


def _kinds(used: Sequence[Mapping[str, Any]], data: Any, counts: Counter[str]) -> list[str | int | None]:
    """Return the name of each annotation's category; its number where the file names none."""
    ids = [entry.get("category_id") for entry in used]
    if isinstance(data, list) or not data.get("categories"):
        return [None if one is None else int(one) for one in ids]
    names = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
    counts[_OTHER] += sum(one not in names for one in ids)
    return [None if names.get(one) == NO_TYPE else names.get(one) for one in ids]  # what our files call it


def _parts(shape: Any, counts: Counter[str]) -> Mapping[str, Any] | list[NDArray[np.float64]]:
    """Return a mask as it is, and polygons as points; at least one polygon, which may be empty."""
    if isinstance(shape, Mapping):
        return shape
    flat = [shape] if isinstance(shape[0], int | float) else shape
    rings = [np.asarray(part, np.float64).reshape(-1, 2) for part in flat]
    whole = [ring for ring in rings if len(ring) >= MIN_POINTS]
    if not whole:
        return [np.zeros((0, 2))]
    counts[_SHORT] += len(rings) - len(whole)
    return whole


def _drawn(
    shapes: Sequence[Mapping[str, Any] | list[NDArray[np.float64]]],
    kinds: Sequence[str | int | None],
    image: CocoImage,
    path: Path,
    counts: Counter[str],
) -> LoadedNuclei:
    sizes = {tuple(int(n) for n in one["size"]) for one in shapes if isinstance(one, Mapping)}
    sizes |= {image.shape} if image.shape else set()
    if len(sizes) != 1:
        message = f"'{path}' states the sizes {sorted(sizes)} for the image {image.name!r}; "
        raise DataError(message + "give it one height and width, which its masks have too")
    height, width = sizes.pop()
    if min(height, width) < 1:
        raise DataError(f"'{path}' states the size {height}x{width} for the image {image.name!r}; correct it")
    check_expanded(height * width * _BYTES_OF_A_PIXEL, f"the image {image.name!r} of {height}x{width} in '{path}'")
    canvas = np.zeros((height, width), np.int32)
    for label, shape in enumerate(shapes, start=1):
        if isinstance(shape, Mapping):
            pixels, (height, _) = decoded_runs(shape)
            canvas[pixels % height, pixels // height] = label
        else:
            _fill(canvas, shape, label)
    counts[_HIDDEN] += len(shapes) - len(np.unique(canvas[canvas > 0]))
    types, names = numbered_kinds(kinds)
    stated = names is not None or any(types)
    return LoadedNuclei(
        path, canvas, None, np.array([0, *types], np.int64) if stated else None, names, notes_of(counts)
    )


def _fill(canvas: NDArray[np.int32], rings: Iterable[NDArray[np.float64]], label: int) -> None:
    for ring in rings:
        if len(ring):
            cv2.fillPoly(canvas, [np.rint(ring * 2**_SHIFT).astype(np.int32)], label, cv2.LINE_8, _SHIFT)
