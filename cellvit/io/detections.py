"""Reading the nuclei that any tool found: label images, ``.mat`` files in the layout of HoVer-Net, and outlines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from cellvit.errors import DataError
from cellvit.geometry.polygons import FurtherRings, ring_lengths
from cellvit.io.cells_json import nuclei_of_cells
from cellvit.io.geojson import FoundNuclei, found_in_geojson, is_geojson
from cellvit.io.images import DAMAGE
from cellvit.io.labels import LABEL_SUFFIXES, read_label
from cellvit.io.parquet import read_parquet
from cellvit.io.text import load_json
from cellvit.types import Nuclei

Types = NDArray[np.int64]


def _read_json(path: Path) -> FoundNuclei | Nuclei:
    """Return what a JSON file says; its content tells GeoJSON from the layout of the released tools."""
    data = load_json(path)
    return _scorable(found_in_geojson(data, path)) if is_geojson(data) else nuclei_of_cells(data, path)


def _read_geojson(path: Path) -> FoundNuclei:
    return _scorable(found_in_geojson(load_json(path), path))


OUTLINE_READERS: dict[str, Callable[[Path], FoundNuclei | Nuclei]] = {
    ".parquet": read_parquet,
    ".geojson": _read_geojson,
    ".geojson.gz": _read_geojson,
    ".json": _read_json,
    ".json.gz": _read_json,
}
"""Files of outlines by suffix; ``.json`` is the layout of the released tools, or GeoJSON."""

SUFFIXES = (".npz", ".mat", ".npy", *OUTLINE_READERS, ".tif", ".tiff", ".png")
"""What can be read. Of several files of one stem the first counts: pictures lie beside results more often than maps."""


@dataclass(frozen=True)
class LoadedNuclei:
    """What a file says of the nuclei of one image.

    Attributes:
        path: The file; of nuclei that come from none, what to call them.
        instance_map: ``(H, W)`` integers, 0 is background; None where the file holds outlines.
        outlines: The outlines; None where the file holds a map. Row ``i`` is label ``i + 1``.
        types: Type of label ``i`` at ``i``, where 0 or less says none; None if the file states no types:
            a map without them, or outlines of which none has a type and that name no classes.
        names: Name of every type id, background first; None if types are numbers only.
        further: Holes and further pieces of the nuclei, beside the outlines; None where there are none.
        notes: What of the file was not used, for the user.
    """

    path: Path
    instance_map: NDArray[Any] | None
    outlines: Nuclei | None
    types: Types | None
    names: tuple[str, ...] | None = None
    further: FurtherRings | None = None
    notes: tuple[str, ...] = ()


def suffix_of(path: Path) -> str | None:
    """Return the suffix of a file that can be read, ``.geojson.gz`` as one, or None.

    Example:
        >>> suffix_of(Path("slide.v2.geojson.gz")), suffix_of(Path("notes.txt"))
        ('.geojson.gz', None)
    """
    name = path.name.lower()
    found = [suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix]
    return max(found, key=len, default=None)


def read_nuclei(path: Path | Nuclei) -> LoadedNuclei:
    """Read the nuclei of one image.

    Args:
        path: Nuclei with outlines, or a file: a label map (``.npz`` with ``inst_map`` and perhaps ``inst_type`` indexed
            by label, ``.npy``, ``.png``, ``.tif``), a ``.mat`` file with ``inst_map`` and perhaps ``inst_type``, or
            outlines (``.geojson`` or ``.json`` of QuPath and others, ``.json`` of the released tools, both also
            ``.gz``; ``.parquet`` of this package).

    Raises:
        DataError: If the file cannot be read, has another suffix, or holds points where outlines are needed.
    """
    if isinstance(path, Nuclei):
        return _from_outlines(path, Path("nuclei in memory"))
    suffix = suffix_of(path)
    if suffix in OUTLINE_READERS:
        return _from_outlines(OUTLINE_READERS[suffix](path), path)
    if suffix == ".mat":
        instances, given = _read_mat(path)
    elif suffix in LABEL_SUFFIXES:
        instances, listed = read_label(path)
        given = None if listed is None else listed.astype(np.int64)
    else:
        raise DataError(f"'{path}' is of no kind that can be read; give one of {', '.join(SUFFIXES)}")
    if given is not None and int(instances.max()) >= len(given):
        message = f"'{path}' has the label {instances.max()} but inst_type of {len(given)} entries; "
        raise DataError(message + "give one type per label, the first for background")
    return LoadedNuclei(path, instances, None, given)


def _from_outlines(found: FoundNuclei | Nuclei, path: Path) -> LoadedNuclei:
    nuclei, further, notes = found if isinstance(found, FoundNuclei) else (found, None, ())
    _check_outlines(nuclei, path)
    types = np.concatenate([[0], nuclei.type]).astype(np.int64)
    names = None if nuclei.classes is None else nuclei.classes.names
    stated = names is not None or bool((types > 0).any())
    return LoadedNuclei(path, None, nuclei, types if stated else None, names, further, notes)


def _scorable(found: FoundNuclei) -> FoundNuclei:
    """Return nuclei without the points among them, which have no pixels; all of them if there are only points."""
    drawn = ring_lengths(found.nuclei.contour_offsets) > 0
    if drawn.all() or not drawn.any():
        return found
    note = f"{np.count_nonzero(~drawn):,} of {len(drawn):,} nuclei are points, which cannot be scored, and left out"
    return FoundNuclei(found.nuclei.select(drawn), found.further.select(drawn), (*found.notes, note))


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


def _read_mat(path: Path) -> tuple[NDArray[Any], Types | None]:
    """Return map and types by label of a ``.mat`` file; its types follow ``inst_uid``, else the ascending labels."""
    try:
        content = scipy.io.loadmat(path)
        instances = np.asarray(content["inst_map"])
        kinds = np.asarray(content["inst_type"]).ravel().astype(np.int64) if "inst_type" in content else None
        uids = np.asarray(content["inst_uid"]).ravel().astype(np.int64) if "inst_uid" in content else None
    except (*DAMAGE, MatReadError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); it needs an instance map 'inst_map'") from error
    whole = instances.dtype.kind in "iuf" and bool((instances == np.round(instances)).all())
    if instances.ndim != 2 or not instances.size or not whole or instances.min() < 0:
        message = f"'{path}' has inst_map {instances.shape} of {instances.dtype}; give (H, W) whole numbers from 0"
        raise DataError(message)
    labels = np.unique(instances)[np.unique(instances) > 0].astype(np.int64) if uids is None else uids
    if kinds is None or not len(labels):
        return instances.astype(np.int32), None
    if len(kinds) != len(labels):
        labels = np.arange(1, len(kinds) + 1)  # some list a type for every number up to the highest label
    types = np.zeros(int(max(labels.max(), instances.max())) + 1, np.int64)
    types[labels] = kinds
    if int(instances.max()) > int(labels.max()):
        raise DataError(f"'{path}' has the label {instances.max():g} but {len(kinds)} types; give one per nucleus")
    return instances.astype(np.int32), types


def _check_outlines(nuclei: Nuclei, path: Path) -> None:
    bare = np.flatnonzero(ring_lengths(nuclei.contour_offsets) == 0)
    if len(bare):
        message = f"'{path}' has {len(bare)} of {len(nuclei)} nuclei without an outline, the first is {bare[0]}; "
        raise DataError(message + "points cannot be scored, export polygons")
    if not np.isfinite(nuclei.contour_points).all():
        raise DataError(f"'{path}' has coordinates that are not finite; export it again")
