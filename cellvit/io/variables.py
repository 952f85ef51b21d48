"""Maps of nuclei and their types among the variables of ``.mat`` and ``.npz`` files: HoVer-Net, CoNSeP, Lizard."""

import io
import math
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from cellvit.errors import CellViTError, ConfigError, DataError
from cellvit.io.images import DAMAGE
from cellvit.io.label_maps import LabelMap, majority_types, plain_map
from cellvit.io.limits import MAX_TYPE, check_datasets, check_expanded, expanded_limit, zip_entries
from cellvit.io.loaded import Note, Types, dense, notes_of, numbered_kinds

Variables = Mapping[str, NDArray[Any]]

HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # of MATLAB 7.3, before the HDF5
_HEAD, _COMPRESSED = 128, 15  # bytes before the variables of MATLAB 5 to 7.2, and the number of a compressed one
_PIECE = 1 << 20
_LARGEST_ITEM = 8
_TYPES, _IDS = ("inst_type", "class"), ("inst_uid", "id")
_DERIVED = {"inst_map", *_TYPES, *_IDS, "type_map", "inst_centroid", "centroid", "bbox", "inst_bbox", "inst_box"}

_NO_ROW = "labels have no row of their own, so their type is unknown"
_NOT_THERE = "rows of types belong to labels that do not occur in the map and were left out"
_NO_NUCLEUS = "rows of types have an id below 1, which is no nucleus, and were left out"
_UNUSED = "variables of the file were not used: "


def read_mat(path: Path) -> LabelMap:
    """Read the nuclei of a ``.mat`` file of any version.

    Args:
        path: A file with ``inst_map`` and perhaps types: ``inst_type`` for ``inst_uid``, or ``class`` for ``id``. Types
            without ids are those of the ascending labels, or of every number from 1 to the highest label. Where there
            are none, a ``type_map`` gives them.

    Raises:
        ConfigError: If it is of version 7.3 and h5py is not installed.
        DataError: If it cannot be read, has no ``inst_map``, or types that do not belong to its labels.
    """
    try:
        content = _hdf5(path) if is_hdf5(path) else _matlab(path)
    except CellViTError:
        raise
    except (*DAMAGE, MatReadError, MemoryError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); it needs an instance map 'inst_map'") from error
    return nuclei_of_variables({k: np.asarray(v) for k, v in content.items() if not k.startswith(("__", "#"))}, path)


def is_hdf5(path: Path) -> bool:
    """Return whether a file is HDF5, also behind the block that MATLAB writes before it."""
    with path.open("rb") as file:
        start = file.read(_USER_BLOCK + len(HDF5))
    return start.startswith(HDF5) or start[_USER_BLOCK:] == HDF5


def read_npz(path: Path) -> LabelMap:
    """Read the nuclei of an ``.npz`` file.

    Args:
        path: A file with ``inst_map`` and perhaps ``inst_type`` indexed by label, the first for background; or with
            ``class`` and ``id``.

    Raises:
        DataError: If it cannot be read, or has no ``inst_map``.
    """
    try:
        content = {n.removesuffix(".npy"): npy_array(data) for n, data in zip_entries(path) if n.endswith(".npy")}
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"label '{path}' cannot be read ({error}); it needs an instance map 'inst_map'") from error
    if "inst_type" not in content or "inst_uid" in content:
        return nuclei_of_variables(content, path)
    instances = _map(content, path)
    return LabelMap(instances, _whole(content["inst_type"], "inst_type", path), None, _unused(content))


def npy_array(data: bytes) -> NDArray[Any]:
    """Return the array of an ``.npy`` file, whose head is checked before memory is taken for what it claims.

    Args:
        data: The content of the file.

    Raises:
        ValueError: If it is damaged, or claims to hold another number of bytes than follow.

    Example:
        >>> np.save(stream := io.BytesIO(), np.arange(3)), npy_array(stream.getvalue())
        (None, array([0, 1, 2]))
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    heads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in heads:
        raise ValueError(f"version {version} of the format .npy is not read")
    shape, _, dtype = heads[version](stream)
    claimed, held = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if min(shape, default=0) < 0 or (claimed != held and not dtype.hasobject):
        raise ValueError(f"its head claims {shape} of {dtype}, {claimed} bytes, but {held} follow")
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def nuclei_of_variables(content: Variables, path: Path) -> LabelMap:
    """Return the nuclei that variables describe; see :func:`read_mat`.

    Args:
        content: Arrays by name.
        path: The file; named in errors.

    Raises:
        DataError: If there is no ``inst_map``, or types do not belong to its labels.
    """
    instances, notes = _map(content, path), _unused(content)
    key = next((name for name in _TYPES if name in content), None)
    if key is None:
        return LabelMap(instances, _mapped_types(content, instances, path), None, notes)
    kinds, names = _kinds(content[key], key, path)
    labels = np.unique(instances[instances > 0]).astype(np.int64)
    id_key = next((name for name in _IDS if name in content), None)
    if id_key is not None:
        ids = _whole(content[id_key], id_key, path)
        if len(ids) != len(kinds):
            message = f"'{path}' has {len(kinds)} entries in '{key}' but {len(ids)} in '{id_key}'; "
            raise DataError(message + "give one of each per nucleus")
        _check_unique(ids, id_key, path)
    else:
        ids = _ids_of_rows(labels, kinds, path)
    there = np.isin(ids, labels)
    counts = Counter({_NO_ROW: int((~np.isin(labels, ids)).sum())})
    if id_key is not None:
        counts[_NO_NUCLEUS] = int((ids < 1).sum())
        counts[_NOT_THERE] = int((~there & (ids >= 1)).sum())
    instances, places = dense(instances, ids[there])
    types = np.zeros(int(instances.max(initial=0)) + 1, np.int64)
    types[places] = kinds[there]
    return LabelMap(instances, types if len(labels) else None, names, (*notes, *notes_of(counts)))


def _ids_of_rows(labels: Types, kinds: Types, path: Path) -> Types:
    """Return the label of each row of types, for a file that does not list them."""
    highest = int(labels.max(initial=0))
    if len(kinds) == len(labels):
        return labels
    if len(kinds) == highest + 1 and kinds[0] == 0:
        return np.arange(len(kinds))  # indexed by label, the first for background
    if len(kinds) >= highest:
        return np.arange(1, len(kinds) + 1)  # some list a type for every number up to the highest label
    raise DataError(f"'{path}' has the label {highest} but {len(kinds)} types; give one per nucleus")


def _map(content: Variables, path: Path) -> NDArray[Any]:
    if "inst_map" not in content:
        held = ", ".join(f"{name} {array.shape}" for name, array in content.items()) or "nothing"
        raise DataError(f"label '{path}' cannot be read: it holds {held}; it needs an instance map 'inst_map'")
    return plain_map(content["inst_map"], path)


def _mapped_types(content: Variables, instances: NDArray[Any], path: Path) -> Types | None:
    if "type_map" not in content or not instances.any():
        return None
    type_map = plain_map(content["type_map"], path)
    if type_map.shape != instances.shape:
        message = f"'{path}' has an inst_map of {instances.shape} but a type_map of {type_map.shape}; "
        raise DataError(message + "both must show the same pixels")
    labels, inverse = np.unique(np.concatenate([[0], instances.ravel()]), return_inverse=True)
    found = majority_types(inverse[1:].reshape(instances.shape), type_map)
    highest = int(labels[-1])
    if highest >= len(instances.ravel()) + MAX_TYPE:
        raise DataError(f"'{path}' has the label {highest} in {instances.size} pixels; number nuclei from 1")
    types = np.zeros(highest + 1, np.int64)
    types[labels] = found
    return types


def _kinds(array: NDArray[Any], key: str, path: Path) -> tuple[Types, tuple[str, ...] | None]:
    """Return types as numbers, and their names where the file has words."""
    if array.dtype.kind not in "OU":
        return _whole(array, key, path), None
    words = [str(np.asarray(entry).ravel()[0]).strip() if np.size(entry) else None for entry in array.ravel()]
    kinds, names = numbered_kinds(words)
    return np.asarray(kinds, np.int64), names


def _whole(array: NDArray[Any], key: str, path: Path) -> Types:
    flat = array.ravel()
    if flat.dtype.kind not in "biuf" or not (np.abs(flat) < 2**53).all() or (flat != np.round(flat)).any():
        raise DataError(f"'{path}' has '{key}' of {array.dtype}, not all of it whole numbers; give one per nucleus")
    return flat.astype(np.int64)


def _check_unique(ids: Types, key: str, path: Path) -> None:
    found, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"'{path}' lists {found[counts > 1][0]} several times in '{key}'; give every nucleus one row")


def _unused(content: Variables) -> tuple[Note, ...]:
    names = sorted(set(content) - _DERIVED)
    return (Note(len(names), _UNUSED + ", ".join(names)),) if names else ()


def _matlab(path: Path) -> Mapping[str, Any]:
    """Return the variables of a file older than MATLAB 7.3, after a look at how large they are and claim to be."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head.startswith(b"MATLAB"):
            _check_compressed(file, "<" if head[-2:] == b"IM" else ">", path)
    named = scipy.io.whosmat(path)
    check_expanded(sum(math.prod(shape) * _LARGEST_ITEM for _, shape, _ in named), f"'{path}'")
    return cast("Mapping[str, Any]", scipy.io.loadmat(path))


def _check_compressed(file: BinaryIO, order: str, path: Path) -> None:
    """Raise if the compressed variables of a file become too large; they are expanded piece by piece, and not kept."""
    expanded, limit = 0, expanded_limit()
    while len(tag := file.read(8)) == 8:
        kind, count = struct.unpack(f"{order}II", tag)
        stop = file.tell() + count
        stream = zlib.decompressobj()
        while kind == _COMPRESSED and file.tell() < stop and not stream.eof:
            data = file.read(min(stop - file.tell(), _PIECE)) or b""
            if not data:
                return  # cut short, as reading will tell
            while data and expanded <= limit:
                expanded += len(stream.decompress(data, _PIECE))
                data = stream.unconsumed_tail
            if expanded > limit:
                check_expanded(expanded, f"'{path}' has variables too large: it")
        file.seek(stop)


def _hdf5(path: Path) -> dict[str, NDArray[Any]]:
    """Return the numbers of a file of MATLAB 7.3, which has the axes of arrays the other way round."""
    try:
        import h5py
    except ImportError as error:
        message = f"'{path}' is a file of MATLAB 7.3; to read it, install h5py: pip install h5py, "
        raise ConfigError(message + "or write it with save(..., '-v7')") from error
    found = {}
    with h5py.File(path, "r") as file:
        check_datasets(file, f"'{path}'")
        for name, item in file.items():
            linked = not isinstance(file.get(name, getlink=True), h5py.HardLink)
            if linked or not isinstance(item, h5py.Dataset) or item.dtype.kind not in "biuf":
                continue
            empty = bool(item.attrs.get("MATLAB_empty", 0))
            found[name] = np.zeros((0, 0)) if empty else np.asarray(item).T
    return found
