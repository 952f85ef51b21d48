"""What the text formats share: a check before writing, chunks while writing, and columns after reading."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, pairwise
from types import MappingProxyType
from typing import Any, TextIO, cast

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.geometry.polygons import Floats, Offsets, open_rings, polygon_centroid, ring_bounds, ring_offsets
from cellvit.io.frames import PIXEL_CENTRES, from_pixel_centres
from cellvit.io.limits import MAX_COORDINATE
from cellvit.types import PIXEL_CORNERS, Nuclei, NucleiClasses

CHUNK = 4096
"""Nuclei that are Python objects at the same time while a text file is written."""

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""Compact JSON in ASCII, which also holds file names that are not valid Unicode; refuses NaN, which is not JSON."""


def check_finite(nuclei: Nuclei, *, first: int = 0) -> None:
    """Raise if coordinates are not finite numbers, which no text format can hold.

    Args:
        nuclei: The nuclei. A probability may be NaN: not known.
        first: Number of the first row, where the nuclei are a part of more.

    Raises:
        DataError: If a coordinate is NaN or infinite, or a probability infinite; names column and row.
    """
    if np.isinf(nuclei.type_prob).any():
        row = int(np.flatnonzero(np.isinf(nuclei.type_prob))[0])
        raise DataError(f"type_prob of nucleus {first + row} is infinite; probabilities lie in [0, 1]")
    for name in ("centroid", "bbox", "contour_points"):
        bad = np.flatnonzero(~np.isfinite(getattr(nuclei, name)).all(axis=1))
        if len(bad):
            row = int(bad[0])
            if name == "contour_points":
                row = int(np.searchsorted(nuclei.contour_offsets, row, side="right")) - 1
            place = f"{name} of nucleus {first + row}"
            message = f"{place} holds a coordinate that is not finite; remove the nucleus or repair it"
            raise DataError(message)


def check_coordinates(points: NDArray[np.float64], what: str) -> None:
    """Raise if coordinates are not finite, or so large that they are of no image.

    Args:
        points: ``(N, K)`` coordinates in pixels.
        what: What they belong to; the message begins with it.

    Raises:
        DataError: Names the first of them.
    """
    far = ~(np.abs(points) <= MAX_COORDINATE)  # also where it is NaN
    if far.any():
        row = int(np.flatnonzero(far.any(axis=1))[0])
        shown = f"coordinates such as {points[row].tolist()} in row {row}"
        if not np.isfinite(points).all():
            raise DataError(f"{what} has {shown}: some are not finite; export it again")
        raise DataError(f"{what} has {shown}, which lie in no image (at most {MAX_COORDINATE:.0f}); export it again")


def plain_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers as integers, which are shorter in a file; other values as they are."""
    if values.size and np.abs(values).max() < 2**53 and not np.mod(values, 1).any():
        return values.astype(np.int64)
    return values


def shortest_floats(values: NDArray[np.float32]) -> list[str | None]:
    """Return float32 values as the shortest decimals that read back the same; None for NaN."""
    return [None if text == "nan" else repr(float(text)) for text in values.astype(str).tolist()]


def ring_texts(points: Floats, offsets: Offsets) -> list[str]:
    """Return every outline as JSON, ``[[x,y],[x,y]]``.

    Args:
        points: ``(P, 2)``, finite; see :func:`plain_numbers`.
        offsets: ``(N + 1,)``.

    Example:
        >>> ring_texts(np.array([[1.0, 2], [3, 4]]), np.array([0, 2, 2]))
        ['[[1,2],[3,4]]', '[]']
    """
    plain = plain_numbers(points)
    if plain.dtype.kind == "i" and len(plain) and not offsets[0]:
        return _whole_ring_texts(plain, offsets)
    numbers = plain.reshape(-1).tolist()  # flat: a list for every point would take most of the time
    return [_ring_form(b - a) % tuple(numbers[2 * a : 2 * b]) for a, b in pairwise(offsets.tolist())]


def _whole_ring_texts(points: NDArray[np.int64], offsets: Offsets) -> list[str]:
    """Return outlines of whole numbers, which Arrow writes as Python does and in half the time."""
    import pyarrow as pa  # here: not every writer of text needs it
    import pyarrow.compute as pc

    x, y = (pa.array(np.ascontiguousarray(column)).cast(pa.string()) for column in points.T)
    pairs = pc.binary_join_element_wise("[", x, ",", y, "]", "")
    rings = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pairs), ",")
    return cast("list[str]", pc.binary_join_element_wise("[", rings, "]", "").to_pylist())


@lru_cache(maxsize=1024)
def _ring_form(count: int) -> str:
    """Return what formats the numbers of an outline: ``%r`` writes numbers as JSON does."""
    return f"[{','.join(['[%r,%r]'] * count)}]"


def chunks(count: int) -> Iterator[slice]:
    """Yield slices that cover ``range(count)``, at most :data:`CHUNK` rows each."""
    for start in range(0, count, CHUNK):
        yield slice(start, min(start + CHUNK, count))


def write_lines(file: TextIO, lines: Iterable[Iterable[str]]) -> None:
    """Write the rest of a JSON document: the entries of its last list, one per line, then what closes both.

    Args:
        file: The stream, after the bracket that opens the list.
        lines: The entries, some at a time. While some are written, and maybe compressed, in a thread of their own,
            the next are made.
    """
    with ThreadPoolExecutor(1) as writer:
        written, separator = writer.submit(file.write, ""), "\n"
        for some in lines:
            text = separator + ",\n".join(some)
            written.result()
            written, separator = writer.submit(file.write, text), ",\n"
        written.result()
    file.write("\n]}\n")


@dataclass
class Rows:
    """Columns of nuclei that grow row by row while a text file is read.

    Attributes:
        contour: One list of ``[x, y]`` per nucleus, open or closed, maybe empty.
        centroid: ``[x, y]``, or None to compute it from the outline.
        bbox: ``[xmin, ymin, xmax, ymax]`` half-open, or None to compute it from the outline.
        type: Class id.
        type_prob: Probability; NaN if the file does not say.
        label: Id in the instance map, or None for the number of the row counted from 1.
        measured: Measurements by name; those that a row lacks are NaN.
    """

    contour: list[Sequence[Sequence[float]]] = field(default_factory=list)
    centroid: list[Sequence[float] | None] = field(default_factory=list)
    bbox: list[Sequence[float] | None] = field(default_factory=list)
    type: list[int] = field(default_factory=list)
    type_prob: list[float] = field(default_factory=list)
    label: list[int | None] = field(default_factory=list)
    measured: list[Mapping[str, float]] = field(default_factory=list)

    def add(
        self,
        *,
        contour: Sequence[Sequence[float]] = (),
        centroid: Sequence[float] | None = None,
        bbox: Sequence[float] | None = None,
        type: int = 0,
        type_prob: float | None = None,
        label: int | None = None,
        measured: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Append one nucleus; see the attributes of the class."""
        if not contour and centroid is None:
            raise ValueError("a nucleus has neither an outline nor a centroid")
        self.contour.append(contour)
        self.centroid.append(centroid)
        self.bbox.append(bbox)
        self.type.append(int(type))
        self.type_prob.append(float("nan") if type_prob is None else float(type_prob))
        self.label.append(None if label is None else int(label))
        self.measured.append(measured)

    def to_nuclei(self, classes: NucleiClasses | None, *, frame: str = PIXEL_CORNERS) -> Nuclei:
        """Return the rows as a table.

        Args:
            classes: Names and colours of the types.
            frame: In which the rows count coordinates; see :mod:`cellvit.io.frames`.

        Returns:
            The nuclei; a centroid or a box that was not given comes from the outline.

        Raises:
            ValueError: If coordinates are not pairs.
        """
        offsets = ring_offsets([len(c) for c in self.contour])
        points, offsets = open_rings(_pairs(list(chain.from_iterable(self.contour)), 2), offsets)
        centroid, boxes = np.full((len(self.type), 2), np.nan), np.full((len(self.type), 4), np.nan)
        _fill(self.centroid, centroid)
        _fill(self.bbox, boxes)
        if frame == PIXEL_CENTRES:
            centroid += 0.5
            points, offsets = from_pixel_centres(points, offsets, boxes)
        numbered = np.arange(1, len(self.type) + 1).tolist()
        label = [n if given is None else given for n, given in zip(numbered, self.label, strict=True)]
        return Nuclei(
            centroid=np.where(np.isnan(centroid), polygon_centroid(points, offsets), centroid),
            bbox=np.where(np.isnan(boxes), _boxes(centroid, points, offsets), boxes),
            type=np.asarray(self.type, np.int32),
            type_prob=np.asarray(self.type_prob, np.float32),
            contour_offsets=offsets,
            contour_points=points,
            label=np.asarray(label, np.int32),
            classes=classes,
            measurements={
                name: np.array([row.get(name, np.nan) for row in self.measured], np.float32)
                for name in dict.fromkeys(chain.from_iterable(self.measured))
            },
        )


def _pairs(values: Sequence[Any], width: int) -> Floats:
    """Return rows of coordinates as an array ``(K, width)``."""
    numbers = set(map(len, values)) or {width}
    if min(numbers) < width:
        raise ValueError(f"coordinates have {min(numbers)} numbers, need {width}")
    if len(numbers) > 1:  # some points have a height
        return _pairs([value[:width] for value in values], width)
    # flat: numpy takes several times as long for a list of lists
    array = np.fromiter(chain.from_iterable(values), np.float64, len(values) * min(numbers))
    if not (np.abs(array) <= MAX_COORDINATE).all():
        bad = array[~(np.abs(array) <= MAX_COORDINATE)][0]
        raise ValueError(f"coordinates that are not finite or lie in no image, such as {bad}")
    return array.reshape(len(values), -1)[:, :width] if len(values) else np.zeros((0, width))


def _fill(given: Sequence[Sequence[float] | None], column: Floats) -> None:
    """Write the rows that are given into a column."""
    known = [i for i, row in enumerate(given) if row is not None]
    if known:
        column[known] = _pairs([given[i] for i in known], column.shape[1])


def _boxes(centroid: Floats, points: Floats, offsets: Offsets) -> Floats:
    """Return the box around every outline; of the centroid's pixel without outline."""
    boxes = ring_bounds(points, offsets)
    corner = np.floor(centroid)
    return np.where(np.isnan(boxes), np.concatenate([corner, corner + 1], axis=1), boxes)
