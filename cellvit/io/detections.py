"""Reading the nuclei that any tool found: label images, ``.mat`` files, and outlines in many layouts."""

import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.errors import DataError
from cellvit.geometry.polygons import ring_lengths
from cellvit.io.cells_json import nuclei_of_cells
from cellvit.io.coco import coco_images, is_coco, nuclei_of_coco
from cellvit.io.file_kind import file_kind
from cellvit.io.geojson import FoundNuclei, found_in_geojson, is_geojson
from cellvit.io.images import DAMAGE
from cellvit.io.imagescope import read_imagescope
from cellvit.io.label_maps import is_stack, separated
from cellvit.io.labels import read_label_map
from cellvit.io.loaded import LoadedNuclei, Types, dense, from_outlines
from cellvit.io.other_outlines import is_hovernet, is_labelme, nuclei_of_hovernet, nuclei_of_labelme, read_imagej
from cellvit.io.parquet import read_parquet
from cellvit.io.schema import load_json
from cellvit.types import Nuclei

__all__ = ["KINDS", "SUFFIXES", "LoadedNuclei", "Types", "images_in", "read_nuclei", "stem_of", "suffix_of"]
__all__ += ["translated_types"]

SUFFIXES = (
    *(".npz", ".mat", ".npy", ".parquet", ".geojson", ".geojson.gz", ".json", ".json.gz", ".xml", ".zip", ".roi"),
    *(".tif", ".tiff", ".png"),
)
"""What can be read. Of several files of one stem the first counts: pictures lie beside results more often than maps."""

KINDS = (
    "label maps (.npz, .npy, .png, .tif), .mat of HoVer-Net, CoNSeP or Lizard, GeoJSON, JSON of the released tools, "
    "HoVer-Net, COCO or LabelMe, .parquet of this package, .xml of ImageScope, .zip or .roi of ImageJ"
)
"""The same in words."""


def suffix_of(path: Path) -> str | None:
    """Return the suffix of a file that can be read, ``.geojson.gz`` as one, or None.

    Example:
        >>> suffix_of(Path("slide.v2.geojson.gz")), suffix_of(Path("notes.txt"))
        ('.geojson.gz', None)
    """
    name = path.name.lower()
    found = [suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix]
    return max(found, key=len, default=None)


def images_in(path: Path) -> tuple[str, ...]:
    """Return the names of the images of a file that holds several, else nothing.

    Args:
        path: JSON of COCO, whose images are called as their files, or an ``.npy`` of maps ``(N, H, W)`` or of
            PanNuke's masks ``(N, H, W, C)``, whose images are numbered from 0. A file that cannot be read is left to
            the reading to report.

    Raises:
        DataError: If two images of a file have the same name.
    """
    names: list[str] = []
    try:
        kind = file_kind(path)
        if kind == "npy":
            array = np.load(path, mmap_mode="r")
            names = [str(i) for i in range(len(array))] if is_stack(array.shape) and array.size else []
        elif kind == "json":
            data = cached_json(path)
            names = [one.name for one in coco_images(data)] if is_coco(data) else []
    except DAMAGE:  # DataError is a ValueError
        return ()
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"'{path}' holds several images called {repeated!r}; give each a name of its own")
    return tuple(names) if len(names) > 1 else ()


def read_nuclei(path: Path | Nuclei, *, image: str | None = None) -> LoadedNuclei:
    """Read the nuclei of one image; what a file is, its content says.

    Args:
        path: Nuclei with outlines, or a file. Maps: ``.npz`` with ``inst_map`` and perhaps ``inst_type`` indexed by
            label, ``.mat`` of HoVer-Net, CoNSeP or Lizard, ``.npy``, ``.png``, ``.tif``; a mask of 0 and one other
            value is taken apart into its pieces. Outlines: GeoJSON, JSON of the released tools, of HoVer-Net, COCO or
            LabelMe, each also compressed with gzip, Parquet of this package, XML of Aperio ImageScope, regions of
            ImageJ.
        image: Which image of a file that holds several; see :func:`images_in`. None is the one that is called as the
            file.

    Raises:
        ConfigError: If a package is needed that is not installed.
        DataError: If the file cannot be read, is of another kind, or holds points where outlines are needed.
    """
    if isinstance(path, Nuclei):
        return from_outlines(path, Path("nuclei in memory"), corners=True)
    kind = file_kind(path)
    if kind == "json":
        return _from_json(cached_json(path), path, image or stem_of(path))
    if kind in _OUTLINE_FILES:
        return _OUTLINE_FILES[kind](path)
    if kind is None:
        raise DataError(f"'{path}' is of no kind that can be read; give one of {KINDS}")
    found = read_label_map(path, index=None if image is None else int(image))
    found = separated(found, path)
    instances, given = found.instances, found.types
    if given is None:
        instances, _ = dense(instances, np.zeros(0, np.int64))
    elif int(instances.max()) >= len(given):
        message = f"'{path}' has the label {instances.max()} but inst_type of {len(given)} entries; "
        raise DataError(message + "give one type per label, the first for background")
    return LoadedNuclei(path, instances, None, given, found.names, found.notes)


def stem_of(path: Path) -> str:
    """Return the name of a file without its suffix, ``.geojson.gz`` as one.

    Example:
        >>> stem_of(Path("slide.v2.geojson.gz"))
        'slide.v2'
    """
    return path.name[: -len(suffix_of(path) or path.suffix) or None]


def _from_json(data: Any, path: Path, name: str) -> LoadedNuclei:
    """Return the nuclei of JSON, whose keys say whose it is."""
    if is_coco(data):
        return nuclei_of_coco(data, path, name=name)
    if is_hovernet(data):
        return nuclei_of_hovernet(data, path)
    if is_labelme(data):
        return nuclei_of_labelme(data, path)
    if isinstance(data, Mapping) and "cells" in data:
        return from_outlines(nuclei_of_cells(data, path), path, corners=True)
    if is_geojson(data):
        found = _scorable(found_in_geojson(data, path))
        return from_outlines(found.nuclei, path, notes=found.notes, further=found.further, corners=found.framed)
    keys = sorted(map(str, data)) if isinstance(data, Mapping) else data
    raise DataError(f"'{path}' is JSON of {reprlib.repr(keys)}, which is no kind that can be read; give one of {KINDS}")


def _scorable(found: FoundNuclei) -> FoundNuclei:
    """Return nuclei without the points among them, which have no pixels; all of them if there are only points."""
    drawn = ring_lengths(found.nuclei.contour_offsets) > 0
    if drawn.all() or not drawn.any():
        return found
    note = f"{np.count_nonzero(~drawn):,} of {len(drawn):,} nuclei are points, which cannot be scored, and left out"
    notes = (*found.notes, note)
    return found._replace(nuclei=found.nuclei.select(drawn), further=found.further.select(drawn), notes=notes)


def cached_json(path: Path) -> Any:
    """Return the content of a JSON file; that of the last two is kept, as one file may hold many images.

    Args:
        path: The file.

    Raises:
        DataError: If it is no JSON.
    """
    state = path.stat()
    return _loaded(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2)
def _loaded(path: Path, modified: int, size: int) -> Any:
    return load_json(path)


def _read_parquet(path: Path) -> LoadedNuclei:
    return from_outlines(read_parquet(path), path, corners=True)


_OUTLINE_FILES: dict[str, Callable[[Path], LoadedNuclei]] = {
    "parquet": _read_parquet,
    "xml": read_imagescope,
    "imagej": read_imagej,
}


def translated_types(
    stated: LoadedNuclei,
    class_names: Sequence[str],
    *,
    class_map: Mapping[str, str] | None = None,
    numbered: bool = True,
) -> Types | None:
    """Return the types of a file as ids of the classes that are scored.

    Names are compared without regard to case.

    Args:
        stated: What the file says.
        class_names: The classes, background first.
        class_map: Names in the file and what each is called among the classes.
        numbered: Whether a type number means a place among the classes, for a file that names no types.

    Returns:
        Type of label ``i`` at ``i``, 0 where none is stated; None if the file states none at all.

    Raises:
        DataError: If a name or a number is not among the classes.
    """
    if stated.types is None:
        return None
    types = np.maximum(stated.types, 0)
    occurring = np.unique(types[1:])
    occurring = occurring[occurring > 0]
    if stated.names is None:
        return _numbered_types(stated.path, types, class_names, numbered=numbered)
    table = {name.casefold(): i for i, name in enumerate(class_names)}
    renamed = {old.casefold(): new for old, new in (class_map or {}).items()}
    names = {int(kind): stated.names[kind] for kind in occurring}
    ids = {k: table.get(renamed.get(name.casefold(), name).casefold()) for k, name in names.items()}
    unknown = sorted(names[kind] for kind, found in ids.items() if found is None)
    if unknown:
        raise DataError(
            f"'{stated.path}' has the classes {unknown}, which are not among {list(class_names)}; translate each with "
            "class_map, name the truth's types with class_names, or leave types out with binary=True"
        )
    lookup = np.zeros(len(stated.names), np.int64)
    lookup[list(ids)] = [found or 0 for found in ids.values()]
    return lookup[types]


def _numbered_types(path: Path, types: Types, class_names: Sequence[str], *, numbered: bool) -> Types:
    if not numbered and (types > 0).any():
        message = f"'{path}' numbers its types, but only the names {list(class_names)[1:]} are known; "
        raise DataError(message + "pass class_names, background first, in the order of the numbers, or binary=True")
    if int(types.max(initial=0)) >= len(class_names):
        message = f"'{path}' has the type {types.max()}, but the classes are {list(class_names)}; "
        raise DataError(message + "pass class_names with a name for every type, background first")
    return types
