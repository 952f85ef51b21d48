"""The nuclei of a slide for drawing: few bytes of each in memory, in the order of a quadtree, and which are shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from cellvit.classes import NucleiClasses, hex_color, type_color, type_label
from cellvit.errors import ConfigError, DataError
from cellvit.io.format import visible
from cellvit.io.measurement_names import readable_name
from cellvit.io.parquet import ParquetStream
from cellvit.io.provenance import mpp_of
from cellvit.labels.table import nuclei_digest
from cellvit.viewer.cache import BoundedCache
from cellvit.viewer.quadtree import Codes, Quadtree

MAX_CLASSES = 256
"""Types are sent as one byte; those of higher numbers share the last one."""

Floats = NDArray[np.float32]
Stamp = tuple[int, int, int]

_OTHER_COLUMNS = {"label", "type", "classification", "centroid", "bbox", "contour", "embedding", "geometry", "tile"}
_FARTHEST = 2.0**31  # level-0 pixels; no image has as many
_MAX_VALUES = 64  # of a column that is a category
_SAMPLED_GROUPS = 3


@dataclass(frozen=True)
class Column:
    """A column by which nuclei are coloured or filtered.

    Attributes:
        name: Its name in the table.
        label: What people read.
        unit: Of its numbers; empty without.
        kind: ``"number"`` or ``"category"``.
        low: 2nd percentile, of a large table of a part of the nuclei; None where there is no number.
        high: 98th percentile.
        min: Smallest number.
        max: Largest number.
        values: What the numbers of a category stand for.
    """

    name: str
    label: str
    unit: str
    kind: str
    low: float | None = None
    high: float | None = None
    min: float | None = None
    max: float | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Filter:
    """Which nuclei are shown; what is None shows all.

    Attributes:
        classes: Ids of classes.
        ranges: Lowest and highest value by name of the column; a nucleus without a number is not shown.
        area: A shapely polygon in level-0 pixels that holds the centroid.
    """

    classes: frozenset[int] | None = None
    ranges: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    area: Any = None


Derived = tuple[Column, Callable[[], Floats]]


class NucleiTable:
    """The nuclei of a table that :func:`cellvit.io.parquet.write_parquet` has written, in the order of a quadtree.

    17 bytes per nucleus are in memory, and the columns that are asked for, in ``kept``. Nuclei whose centroid is not
    finite, or lies on no slide, are left out.

    Args:
        path: The table.
        size: ``(width, height)`` of the slide in level-0 pixels; None takes what the table states.
        kept: Keeps columns that were used, ``(N,)`` float32 each.

    Attributes:
        path: The table.
        stamp: Which file it is; another one after the table was written anew.
        metadata: The facts that were stored with the table.
        shift: ``(x, y)`` from the coordinates of the table to level-0 pixels.
        count: Rows of the table, with those that are left out.
        tree: The squares.
        codes: ``(N,)`` number of the cell of each nucleus, ascending.
        row: ``(N,)`` uint32 row of each in the table.
        x: ``(N,)`` float32, level-0 pixels.
        y: ``(N,)`` float32, level-0 pixels.
        kind: ``(N,)`` uint8 class.
        digest: Of all centroids, as labels know the nuclei by; see :func:`cellvit.labels.table.nuclei_digest`.
        named: Names and colours of the types; None if unnamed.

    Raises:
        DataError: If it is no such table.
    """

    def __init__(self, path: Path, *, size: tuple[int, int] | None, kept: BoundedCache[Floats]) -> None:
        self.path, self._kept, self._derived = path, kept, dict[str, Derived]()
        self.stamp = stamp_of(path)
        stream = ParquetStream(path, outlines=False)
        self.metadata, self.named, self.count = stream.metadata, stream.classes, len(stream)
        self.shift = _shift(self.metadata)
        place, kind = _places_and_types(stream)
        self.digest = nuclei_digest(place)
        place += self.shift
        known = np.flatnonzero((np.abs(place) < _FARTHEST).all(axis=1))
        x, y = place[known, 0].astype(np.float32), place[known, 1].astype(np.float32)
        self.bounds = _bounds(x, y)
        self.size = size or stated_size(self.metadata) or (int(np.ceil(self.bounds[2])), int(np.ceil(self.bounds[3])))
        covered = np.maximum(self.size, self.bounds[2:])
        self.tree = Quadtree.covering(float(covered[0]), float(covered[1]))
        codes = self.tree.codes(x, y)
        order = np.argsort(codes, kind="stable")
        self.codes: Codes = codes[order]
        self.row = known[order].astype(np.uint32)
        self.x, self.y, self.kind = x[order], y[order], kind[known[order]]
        self.check()

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """Return the bytes in memory without further columns."""
        return sum(array.nbytes for array in (self.codes, self.row, self.x, self.y, self.kind))

    @cached_property
    def classes(self) -> list[dict[str, Any]]:
        """Return id, name, colour and count of every class: the named ones, and others that occur."""
        return class_facts(self.kind, self.named)

    @property
    def num_classes(self) -> int:
        """Return one more than the highest id of a class."""
        return max((entry["id"] for entry in self.classes), default=0) + 1

    @cached_property
    def mpp(self) -> float | None:
        """Return the micrometres per pixel that the table states."""
        return mpp_of(self.metadata)

    @property
    def columns(self) -> list[Column]:
        """Return the columns by which nuclei can be coloured and filtered."""
        return [*self._own_columns, *(column for column, _ in self._derived.values())]

    @cached_property
    def _own_columns(self) -> list[Column]:
        with self.opened() as file:
            fields = [field for field in file.schema_arrow if field.name not in _OTHER_COLUMNS]
            floats = [field.name for field in fields if pa.types.is_floating(field.type)]
            groups = np.unique(np.linspace(0, file.num_row_groups - 1, _SAMPLED_GROUPS).round().astype(int)).tolist()
            sample = file.read_row_groups(groups if file.num_row_groups else [], columns=floats)
            limits = _limits(file, floats)
            found = [
                _of_numbers(field.name, _as_floats(sample[field.name]), limits[field.name])
                if field.name in limits
                else _of_values(field.name, file.read(columns=[field.name])[field.name])
                for field in fields
                if _is_plain(field.type)
            ]
        return [column for column in found if column is not None]

    def column(self, name: str) -> Column:
        """Return a column by its name.

        Raises:
            ConfigError: If there is none.
        """
        columns = self.columns
        for column in columns:
            if column.name == name:
                return column
        known = ", ".join(repr(column.name) for column in columns)
        raise ConfigError(f"no column {name!r}; choose from {known}")

    def values(self, name: str) -> Floats:
        """Return a column ``(N,)`` float32 in the order of the quadtree; NaN where there is no number.

        Args:
            name: Of one of :attr:`columns`; of a category the number of the value.

        Raises:
            ConfigError: If there is no such column.
            DataError: If the table is damaged, or was written anew since it was opened.
        """
        column = self.column(name)
        derived = self._derived.get(name)
        make = derived[1] if derived else lambda: self._read(column)[self.row]
        return self._kept.get((str(self.path), self.stamp, name), make)

    def derive(self, name: str, make: Callable[[], Floats]) -> None:
        """Add a column of numbers that the table does not hold.

        Args:
            name: Of the column.
            make: Returns its values ``(N,)`` in the order of the quadtree.
        """
        column = _of_numbers(name, make())
        if column is not None:
            self._derived[name] = (column, make)

    def rows_of(self, zoom: int, column: int, row: int) -> slice:
        """Return where the nuclei of a square are in the columns."""
        return self.tree.rows(self.codes, zoom, column, row)

    def chosen(self, filter: Filter, rows: slice) -> NDArray[np.bool_] | None:
        """Return which of some nuclei are shown, or None for all.

        Args:
            filter: Which.
            rows: Of the columns.
        """
        masks = list(self._masks(filter, rows))
        return None if not masks else np.logical_and.reduce(masks)

    def position(self, row: int) -> int | None:
        """Return where a row of the table is in the columns, or None if it is left out or not there."""
        if not 0 <= row < self.count:
            return None
        found = np.flatnonzero(self.row == np.uint32(row))
        return int(found[0]) if len(found) else None

    def facts(self, row: int) -> dict[str, Any]:
        """Return all that the table holds of a nucleus but outline, box and embedding, by column.

        Args:
            row: Of the table.
        """
        with self.opened() as file:
            names = [f.name for f in file.schema_arrow if f.name not in ("contour", "bbox", "embedding", "geometry")]
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
            group = int(np.searchsorted(ends, row, side="right"))
            table = file.read_row_group(group, columns=names)
        place = row - (int(ends[group - 1]) if group else 0)
        found: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
        return found

    def _masks(self, filter: Filter, rows: slice) -> Iterator[NDArray[np.bool_]]:
        if filter.classes is not None:
            shown = np.zeros(MAX_CLASSES, bool)
            shown[[i for i in filter.classes if 0 <= i < MAX_CLASSES]] = True
            yield shown[self.kind[rows]]
        for name, (low, high) in filter.ranges.items():
            values = self.values(name)[rows]
            if low is not None:
                yield values >= np.float32(low)
            if high is not None:
                yield values <= np.float32(high)
        if filter.area is not None:
            yield inside(filter.area, self.x[rows], self.y[rows])

    def _read(self, column: Column) -> Floats:
        """Return a column in the order of the table."""
        with self.opened() as file:
            values = file.read(columns=[column.name])[column.name]
        if column.kind == "number":
            return _as_floats(values)
        return _as_floats(pc.index_in(_texts(values), pa.array(column.values, pa.string())))

    @contextmanager
    def opened(self) -> Iterator[pq.ParquetFile]:
        """Return a context with the open file, in which what is damaged is an error of ours.

        Raises:
            DataError: If it is damaged.
            TableChangedError: If it was written anew since this was made.
        """
        try:
            with pq.ParquetFile(self.path) as file:
                self.check()
                yield file
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{str(self.path)!r} is damaged ({error}); put a copy back") from error

    def check(self) -> None:
        """Refuse to go on where the table is another file than the one that was opened.

        Raises:
            TableChangedError: If it was written anew.
        """
        if stamp_of(self.path) != self.stamp:
            raise TableChangedError(f"{str(self.path)!r} was written anew meanwhile; ask again")


class TableChangedError(DataError):
    """A table is another file than the one that was opened."""


def stamp_of(path: Path) -> Stamp:
    """Return which file lies at a path: another one after it was replaced.

    Raises:
        DataError: If there is none.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{str(path)!r} is not there ({error.strerror}); check the path") from error
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def class_facts(kind: NDArray[np.uint8], named: NucleiClasses | None) -> list[dict[str, Any]]:
    """Return id, name, colour and count of every class: the named ones, and others that occur.

    Args:
        kind: ``(N,)`` class of each nucleus.
        named: Names and colours.
    """
    counts = np.bincount(kind, minlength=len(named or ()))
    first = 0 if counts[:1].sum() else 1
    ids = [i for i in range(first, len(counts)) if counts[i] or i < len(named or ())]
    return [
        {
            "id": i,
            "name": visible(type_label(named, i)),
            "color": hex_color(type_color(named, i)),
            "count": int(counts[i]),
        }
        for i in ids
    ]


def count_classes(path: Path) -> list[dict[str, Any]]:
    """Return what :func:`class_facts` says of a table, of which nothing is kept.

    Raises:
        DataError: If it is no table of nuclei.
    """
    stream = ParquetStream(path, outlines=False)
    return class_facts(_places_and_types(stream)[1], stream.classes)


def inside(area: Any, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Return which points lie in a polygon ``(N,)``."""
    if area.is_empty:
        return np.zeros(len(x), bool)
    left, top, right, bottom = area.bounds
    near: NDArray[np.bool_] = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    if shapely.box(left, top, right, bottom).equals(area):
        return near
    shapely.prepare(area)
    index = np.flatnonzero(near)
    near[index] = shapely.contains_xy(area, x[index], y[index])
    return near


def _places_and_types(stream: ParquetStream) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the centroids ``(N, 2)`` and classes ``(N,)`` of all nuclei."""
    place, kind, start = np.empty((len(stream), 2)), np.empty(len(stream), np.uint8), 0
    for chunk in stream:
        rows = slice(start, start + len(chunk))
        place[rows], kind[rows], start = chunk.centroid, np.clip(chunk.type, 0, MAX_CLASSES - 1), rows.stop
    pa.default_memory_pool().release_unused()
    return place, kind


def _shift(metadata: Mapping[str, Any]) -> tuple[float, float]:
    """Return what is added to coordinates that count from the corner of the scanned part."""
    if metadata.get("origin") != "bounds":
        return 0.0, 0.0
    try:
        x, y = (float(value) for value in metadata["bounds"][:2])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the table counts from the scanned part and does not say where it is ({error})") from error
    return x, y


def stated_size(metadata: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the ``(width, height)`` of the image that a table states, or None.

    Args:
        metadata: The facts that are stored with the table.
    """
    try:
        size = int(metadata["width"]), int(metadata["height"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 and max(size) < _FARTHEST else None


def _bounds(x: Floats, y: Floats) -> tuple[float, float, float, float]:
    if not len(x):
        return 0.0, 0.0, 0.0, 0.0
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _is_plain(kind: pa.DataType) -> bool:
    """Tell whether a column holds one number or one text per nucleus."""
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or text)


def _limits(file: pq.ParquetFile, names: Sequence[str]) -> dict[str, tuple[float, float] | None]:
    """Return the smallest and largest number of columns, from what the file notes of every row group."""
    facts, wanted = file.metadata, set(names)
    found: dict[str, tuple[float, float] | None] = dict.fromkeys(names)
    for group in range(facts.num_row_groups):
        for index in range(facts.num_columns):
            chunk = facts.row_group(group).column(index)
            stated = chunk.statistics if chunk.path_in_schema in wanted else None
            if stated is None or not stated.has_min_max or isinstance(stated.min, str | bytes):
                continue
            low, high = found[chunk.path_in_schema] or (np.inf, -np.inf)
            found[chunk.path_in_schema] = (min(low, float(stated.min)), max(high, float(stated.max)))
    return found


def _of_numbers(name: str, values: Floats, limits: tuple[float, float] | None = None) -> Column | None:
    """Return a column of numbers from some of its values; None if none is a number."""
    label, unit = readable_name(name)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = (float(v) for v in np.percentile(values, (2, 98)))
    least, most = limits or (float(values.min()), float(values.max()))
    return Column(name, label, unit, "number", low, high, least, most)


def _of_values(name: str, column: pa.ChunkedArray) -> Column | None:
    """Return a column of whole numbers or texts, a category if few of them differ; None if it is of no use."""
    if pa.types.is_dictionary(column.type):  # of which every row group has its own
        column = _texts(column)
    distinct = [value for value in pc.unique(column).to_pylist() if value is not None]
    if pa.types.is_integer(column.type) and len(distinct) > _MAX_VALUES:
        return _of_numbers(name, _as_floats(column))
    if not 0 < len(distinct) <= _MAX_VALUES:
        return None
    label, unit = readable_name(name)
    return Column(name, label, unit, "category", values=tuple(map(_text, sorted(distinct))))


def _as_floats(column: pa.ChunkedArray) -> Floats:
    """Return numbers as float32; NaN where there is none."""
    return np.asarray(pc.cast(column, pa.float32()).to_numpy(zero_copy_only=False))


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as text."""
    plain = pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return pc.cast(plain, pa.string())


def _text(value: Any) -> str:
    """Return a value as Arrow writes it as text."""
    return str(pc.cast(pa.scalar(value), pa.string()).as_py())
