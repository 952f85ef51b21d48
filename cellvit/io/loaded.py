"""What a file says of the nuclei of one image, and what of the file was not used."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import NucleiClasses, standard_colors
from cellvit.errors import DataError
from cellvit.geometry.polygons import FurtherRings, ring_lengths
from cellvit.io.limits import MAX_TYPE
from cellvit.io.text import Rows, check_coordinates
from cellvit.types import Nuclei

Types = NDArray[np.int64]
Ring = Sequence[Sequence[float]] | NDArray[Any]

BACKGROUND = "Background"
MIN_POINTS = 3
_LABELS_IN_A_TABLE = 2**24


@dataclass(frozen=True)
class Note:
    """Something of a file that was not used, or was taken for something it does not say.

    Attributes:
        count: How many.
        what: Of what, and what became of them; a sentence without its first word and its full stop.
    """

    count: int
    what: str

    def __str__(self) -> str:
        return f"{self.count:,} {self.what}"


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
        notes: What of the file was not used: counted notes, which are added up over files, and sentences.
        corners: Whether outlines count pixels from their corners, as files of this package and ImageJ do; False where
            nobody knows.
        further: Holes and further pieces of the nuclei, beside the outlines; None where there are none.
    """

    path: Path
    instance_map: NDArray[Any] | None
    outlines: Nuclei | None
    types: Types | None
    names: tuple[str, ...] | None = None
    notes: tuple[Note | str, ...] = ()
    corners: bool = False
    further: FurtherRings | None = None


def notes_of(counts: Mapping[str, int]) -> tuple[Note, ...]:
    """Return a note for everything that occurs.

    Example:
        >>> notes_of({"points were left out": 2, "lines were left out": 0})
        (Note(count=2, what='points were left out'),)
    """
    return tuple(Note(count, what) for what, count in counts.items() if count)


def from_outlines(
    nuclei: Nuclei,
    path: Path,
    *,
    notes: tuple[Note | str, ...] = (),
    corners: bool = False,
    further: FurtherRings | None = None,
) -> LoadedNuclei:
    """Return outlines as what a file says.

    Args:
        nuclei: The outlines; names of types are those of its classes.
        path: The file.
        notes: What of the file was not used.
        corners: Whether they count pixels from their corners.
        further: Holes and further pieces of the nuclei.

    Raises:
        DataError: If a nucleus has no outline, or a coordinate is not finite or lies in no image.
    """
    _check_outlines(nuclei, path)
    types = np.concatenate([[0], nuclei.type]).astype(np.int64)
    names = None if nuclei.classes is None else nuclei.classes.names
    stated = names is not None or bool((types > 0).any())
    return LoadedNuclei(path, None, nuclei, types if stated else None, names, notes, corners, further)


def from_rings(
    path: Path,
    rings: Sequence[Ring],
    kinds: Sequence[str | int | None],
    *,
    skipped: Mapping[str, int] | None = None,
    corners: bool = False,
) -> LoadedNuclei:
    """Return rings of points as what a file says; those of fewer than three points are left out and counted.

    Args:
        path: The file.
        rings: Points ``(K, 2)`` as (x, y) in pixels of each nucleus.
        kinds: Type of each: a name, a number, or None for unknown.
        skipped: What else of the file was left out, and how often.
        corners: Whether outlines count pixels from their corners.

    Raises:
        DataError: If nothing is left of a file that holds something, or a coordinate is not finite.
    """
    whole = [len(ring) >= MIN_POINTS for ring in rings]
    counts = Counter(skipped or {})
    counts["outlines of fewer than three points were left out"] += whole.count(False)
    if not any(whole) and counts.total():
        listed = "; ".join(f"{note.count} {note.what}" for note in notes_of(counts))
        raise DataError(f"'{path}' holds no outline of a nucleus ({listed}); points cannot be scored, export polygons")
    types, names = numbered_kinds([kind for kind, good in zip(kinds, whole, strict=True) if good])
    rows = Rows()
    for ring, kind in zip((r for r, good in zip(rings, whole, strict=True) if good), types, strict=True):
        rows.add(contour=[(float(p[0]), float(p[1])) for p in ring], type=kind)
    classes = None if names is None else NucleiClasses(names, standard_colors(names))
    try:
        nuclei = rows.to_nuclei(classes)
    except ValueError as error:
        raise DataError(f"'{path}' has {error}; export it again") from error
    return from_outlines(nuclei, path, notes=notes_of(counts), corners=corners)


def points_of(given: Any) -> NDArray[np.float64]:
    """Return a list of points as an array ``(K, 2)``; further numbers of a point, such as z, are dropped.

    Raises:
        ValueError: If it is no list of points.
    """
    points = np.asarray(given, np.float64)
    if not points.size:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"points of shape {points.shape}")
    return points[:, :2]


def numbered_kinds(kinds: Sequence[str | int | None]) -> tuple[list[int], tuple[str, ...] | None]:
    """Return types as numbers, and their names by number if they are named.

    Example:
        >>> numbered_kinds(["b", None, "a", "b"])
        ([1, 0, 2, 1], ('Background', 'b', 'a'))
        >>> numbered_kinds([3, None])
        ([3, 0], None)
    """
    named = [kind for kind in kinds if isinstance(kind, str)]
    if not named:
        return [kind if isinstance(kind, int) else 0 for kind in kinds], None
    table = {BACKGROUND.casefold(): 0}
    names = [BACKGROUND]
    for name in named:
        if table.setdefault(name.casefold(), len(names)) == len(names):
            names.append(name)
    return [table[str(kind).casefold()] if kind is not None else 0 for kind in kinds], tuple(names)


def dense(instances: NDArray[Any], ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a map and the ids that a file lists, renumbered where labels are too large for a table by label.

    Args:
        instances: ``(H, W)`` integers from 0.
        ids: ``(N,)`` labels that may occur in it; one that does not becomes -1 where labels are renumbered.

    Example:
        >>> dense(np.array([[0, 2**40], [7, 7]]), np.array([2**40, 9]))
        (array([[0, 2],
               [1, 1]]), array([ 2, -1]))
    """
    if int(instances.max(initial=0)) < _LABELS_IN_A_TABLE:
        return instances, ids
    labels, inverse = np.unique(np.concatenate([[0], instances.ravel()]), return_inverse=True)
    place = np.minimum(np.searchsorted(labels, ids), len(labels) - 1)
    return inverse[1:].reshape(instances.shape), np.where(labels[place] == ids, place, -1)


def _check_outlines(nuclei: Nuclei, path: Path) -> None:
    bare = np.flatnonzero(ring_lengths(nuclei.contour_offsets) == 0)
    if len(bare):
        message = f"'{path}' has {len(bare)} of {len(nuclei)} nuclei without an outline, the first is {bare[0]}; "
        raise DataError(message + "points cannot be scored, export polygons")
    check_coordinates(nuclei.contour_points, f"'{path}'")
    if int(nuclei.type.max(initial=0)) > MAX_TYPE:
        raise DataError(f"'{path}' has the type {nuclei.type.max()}; number types from 1, at most to {MAX_TYPE}")
