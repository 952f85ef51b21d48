"""Maps of nuclei from arrays and pictures: one number per nucleus, masks, and channels of types."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import skimage.measure
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cellvit.classes import PANNUKE
from cellvit.errors import DataError
from cellvit.io.limits import MAX_TYPE, check_expanded
from cellvit.io.loaded import Note, Types, dense, notes_of
from cellvit.io.tiff_metadata import quiet_tifffile

_BYTES_OF_A_PIXEL = 8  # four channels of 16 bits
_EIGHT = np.ones((3, 3), bool)
_MASK_VALUES = (255, 65535)
_FEW_LABELS = 255
_PIECES_OF_A_CLASS = 3
_SPECK = 0.1
_SHARED_PIXELS = "pixels belong to nuclei of several types; the later type was taken"
MASK_NOTE = "pieces of a mask with one label were taken as one nucleus each, nuclei that touch as one"


@dataclass(frozen=True)
class LabelMap:
    """A map of nuclei.

    Attributes:
        instances: ``(H, W)`` integers, 0 is background.
        types: Type of label ``i`` at ``i``, where 0 or less says none; None if no types are stated.
        names: Name of every type id, background first; None if types are numbers only.
        notes: What was not used.
        flags: Whether the file holds flags, which cannot number nuclei.
    """

    instances: NDArray[Any]
    types: Types | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[Note, ...] = ()
    flags: bool = False


def read_picture(path: Path) -> NDArray[Any]:
    """Return the stored values of a PNG, of any depth; a palette gives its indices.

    Args:
        path: The file.

    Returns:
        ``(H, W)`` or ``(H, W, C)``; bool if it has one bit.
    """
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) == 26 and start[24] == 16:  # Pillow cuts colours of 16 bits down to 8
        width, height = struct.unpack(">II", start[16:24])
        check_expanded(width * height * _BYTES_OF_A_PIXEL, f"label '{path}'")
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    with Image.open(path) as image:
        return np.asarray(image)


def read_tiff(path: Path) -> NDArray[Any]:
    """Return the stored values of the first image of a TIFF at full size."""
    import tifffile

    with quiet_tifffile(), tifffile.TiffFile(path) as tiff:
        check_expanded(tiff.series[0].nbytes, f"label '{path}'")
        return np.asarray(tiff.asarray())


def plain_map(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return an array as a map of whole numbers.

    Axes of length 1 are dropped, and channels that all say the same become one, as do the colours of a mask that
    has black and one colour. Flags become 0 and 1.

    Args:
        array: What the file holds.
        path: The file; named in errors.

    Returns:
        ``(H, W)`` integers from 0.

    Raises:
        DataError: If it is no such map.
    """
    flat = _one_channel(array) if array.ndim == 3 else array
    whole = flat.dtype.kind in "biu" or (flat.dtype.kind == "f" and bool((flat == np.round(flat)).all()))
    what = f"label '{path}' has shape {array.shape} and type {array.dtype}"
    if flat.ndim != 2 or not whole or flat.size == 0:
        colour = " (colours do not say which pixels are one nucleus)" if array.shape[-1:] in ((3,), (4,)) else ""
        raise DataError(f"{what}{colour}; give (H, W) whole numbers from 0, one per nucleus")
    low, high = flat.min(), flat.max()
    minus_one = flat.dtype.kind == "u" and flat.dtype.itemsize >= 4 and high == np.iinfo(flat.dtype).max
    if low < 0 or high >= 2**53 or minus_one:
        wrong = f"{low if low < 0 else high}{', which is -1 without its sign' if minus_one else ''}"
        raise DataError(f"{what} and holds {wrong}; give (H, W) whole numbers from 0, 0 where there is no nucleus")
    return flat if flat.dtype.kind in "iu" else flat.astype(np.uint8 if flat.dtype.kind == "b" else np.int64)


def _one_channel(array: NDArray[Any]) -> NDArray[Any]:
    """Return ``(H, W)`` of an array of three axes, or the array itself if it cannot be."""
    if array.shape[0] == 1 or array.shape[2] == 1:
        return array[0] if array.shape[0] == 1 else array[..., 0]
    if array.shape[0] in (3, 4) and array.shape[2] not in (3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.shape[2] in (2, 4) and (array[..., -1] == array[..., -1].flat[0]).all() and array[..., -1].flat[0] > 0:
        array = array[..., :-1]  # opaque everywhere
    if array.shape[2] == 1:
        return array[..., 0]
    if array.shape[2] != 3:
        return array
    if (array == array[..., :1]).all():
        return array[..., 0]
    painted = np.asarray(array.any(axis=-1))
    colours = array[painted]
    return painted if bool((colours == colours[0]).all()) else array


def is_mask(instances: NDArray[Any], *, flags: bool = False, pieces: int = 2) -> bool:
    """Return whether a map says where nuclei are but not which: all have one label, and lie apart.

    Args:
        instances: ``(H, W)`` integers from 0.
        flags: Whether it was an array of flags, which cannot number nuclei.
        pieces: How many pieces, specks aside, are more than one nucleus has; of 255 and 65535 one is enough.

    Example:
        >>> is_mask(np.array([[1, 0, 1]])), is_mask(np.array([[1, 0, 2]])), is_mask(np.array([[0, 1, 1]]))
        (True, False, False)
    """
    label = instances.max(initial=0)
    if not label or ((instances > 0) & (instances != label)).any():
        return False
    if flags or int(label) in _MASK_VALUES:
        return True
    parts, _ = ndimage.label(instances, _EIGHT)
    return _whole_pieces(np.bincount(parts.ravel())[1:]) >= pieces


def separated(found: LabelMap, path: Path) -> LabelMap:
    """Return a map in which every piece of a mask is a nucleus; others as they are.

    Args:
        found: The map.
        path: The file; named in errors.

    Raises:
        DataError: If labels are those of classes, each in many places, or a mask is 0 where nuclei are.
    """
    if not is_mask(found.instances, flags=found.flags):
        _check_no_classes(found.instances, path)
        return found
    mask = found.instances > 0
    _check_not_inverted(mask, path)
    pieces, count = ndimage.label(mask, _EIGHT)
    types = None
    if found.types is not None:
        types = np.full(count + 1, found.types[int(found.instances.max())])
        types[0] = 0
    return LabelMap(pieces.astype(np.int32), types, found.names, (*found.notes, Note(count, MASK_NOTE)))


def _whole_pieces(sizes: NDArray[Any]) -> int:
    """Return how many pieces are more than specks beside the largest."""
    return int((sizes >= _SPECK * sizes.max(initial=1)).sum())


def _check_no_classes(instances: NDArray[Any], path: Path) -> None:
    """Raise if most of the labelled area has labels that occur in many places."""
    labels = np.unique(instances[instances > 0])
    if not 2 <= len(labels) <= _FEW_LABELS:
        return
    parts = skimage.measure.label(instances, background=0, connectivity=2)  # type: ignore[no-untyped-call]
    sizes = np.bincount(parts.ravel())[1:]
    owner = np.zeros(len(sizes) + 1, instances.dtype)
    owner[parts.ravel()] = instances.ravel()
    place = np.searchsorted(labels, owner[1:])
    largest = np.zeros(len(labels), np.int64)
    np.maximum.at(largest, place, sizes)
    whole = np.bincount(place[sizes >= _SPECK * largest[place]], minlength=len(labels))
    area = np.bincount(place, sizes, minlength=len(labels))
    many = whole >= _PIECES_OF_A_CLASS
    if area[many].sum() * 2 <= area.sum() or whole.sum() < _PIECES_OF_A_CLASS * len(labels):
        return
    shown = ", ".join(map(str, labels[many][:5])) + (", ..." if many.sum() > 5 else "")
    raise DataError(
        f"'{path}' is no map of nuclei: its {len(labels)} labels ({shown}) lie in {whole.sum()} separate pieces, as "
        "those of types, borders or shades do; give one number per nucleus, and types beside it as inst_type"
    )


def _check_not_inverted(mask: NDArray[np.bool_], path: Path) -> None:
    corners = mask[[0, 0, -1, -1], [0, -1, 0, -1]]
    if not corners.all():
        return
    holes, _ = ndimage.label(~mask)
    if _whole_pieces(np.bincount(holes.ravel())[1:]) > 1 and mask.mean() > 0.5:
        raise DataError(
            f"'{path}' is a mask that seems inverted: {mask.mean():.0%} of it and every corner are not 0, and it is 0 "
            f"in {holes.max()} places inside; make nuclei 255 and the rest 0"
        )


def is_stack(shape: tuple[int, ...]) -> bool:
    """Return whether an array holds several images: ``(N, H, W, C)``, or ``(N, H, W)`` that cannot be channels.

    Example:
        >>> is_stack((9, 256, 256, 6)), is_stack((9, 256, 256)), is_stack((256, 256, 6)), is_stack((3, 256, 256))
        (True, True, False, False)
    """
    return len(shape) == 4 or (len(shape) == 3 and shape[0] not in (1, 3, 4) and shape[2] > len(PANNUKE.names))


def merged_channels(array: NDArray[Any], path: Path) -> LabelMap | None:
    """Return the map that the channels of one image hold, or None if it has no such channels.

    Args:
        array: ``(H, W, 6)`` as PanNuke has it: ids of nuclei in the channel of their type, background last; or
            ``(H, W, 2)`` as CoNIC has it: ids and types.
        path: The file; named in errors.

    Raises:
        DataError: If ids are no whole numbers from 0.
    """
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        return None
    if array.shape[-1] == len(PANNUKE.names):
        return _merged_types(array[..., :-1], path)
    if array.shape[-1] != 2 or not 0 < array[..., 1].max(initial=0) < _MASK_VALUES[0]:
        return None
    instances, _ = dense(plain_map(array[..., 0], path), np.zeros(0, np.int64))
    return LabelMap(instances, majority_types(instances, plain_map(array[..., 1], path)))


def _merged_types(channels: NDArray[Any], path: Path) -> LabelMap:
    """Return one map of channels of ids; the same id in two channels is two nuclei."""
    plain_map(channels.reshape(-1, channels.shape[-1]), path)
    covered = channels > 0
    shared = int((covered.sum(axis=-1) > 1).sum())
    kinds = np.where(covered, np.arange(1, channels.shape[-1] + 1), 0).max(axis=-1)
    ids = np.take_along_axis(channels, np.maximum(kinds - 1, 0)[..., None], axis=-1)[..., 0].astype(np.int64)
    inside = kinds > 0
    pairs, inverse = np.unique(np.stack([kinds[inside], ids[inside]], axis=1), axis=0, return_inverse=True)
    instances = np.zeros(kinds.shape, np.int32)
    instances[inside] = inverse.ravel() + 1
    types = np.concatenate([[0], pairs[:, 0]]).astype(np.int64)
    return LabelMap(instances, types, PANNUKE.names, notes_of({_SHARED_PIXELS: shared}))


def majority_types(instances: NDArray[Any], type_map: NDArray[Any]) -> Types:
    """Return the most frequent type of the pixels of each label, 0 where none has one.

    Args:
        instances: ``(H, W)`` integers from 0.
        type_map: ``(H, W)`` types from 0.

    Example:
        >>> majority_types(np.array([[2, 2, 2, 0]]), np.array([[1, 3, 3, 0]])).tolist()
        [0, 0, 3]

    Raises:
        DataError: If a type is larger than :data:`cellvit.io.limits.MAX_TYPE`.
    """
    count = int(type_map.max(initial=0)) + 1
    if count > MAX_TYPE:
        raise DataError(f"a map of types holds {count - 1}; numbers of types are below {MAX_TYPE}, export it again")
    voting = (instances > 0) & (type_map > 0)
    # pairs that occur: a table of all labels by all types could be a million times as large as the map
    pairs, votes = np.unique(
        instances[voting].astype(np.int64) * count + type_map[voting].astype(np.int64), return_counts=True
    )
    label, kind = np.divmod(pairs, count)
    order = np.lexsort((-kind, votes, label))  # of each label, the last is the most frequent, and the lowest of equals
    types = np.zeros(int(instances.max(initial=0)) + 1, np.int64)
    types[label[order]] = kind[order]
    return types
