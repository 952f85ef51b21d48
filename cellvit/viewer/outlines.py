"""The outlines of a slide in the order of a quadtree: a file beside the table from which a square reads only its own.

The file is made once for a table. It holds arrays of numpy, one after the other: facts, where each outline begins, the
area inside of each, and the points in whole sixteenths of a pixel from the centroid of the nucleus, which no screen
tells from the outlines themselves. What the table says of centroids and outlines is its key, so that other outlines in
the table lead to another file; types and measurements do not enter. Nothing in it is larger than the file itself says.
"""

import hashlib
import json
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib import format as npy
from numpy.typing import NDArray

from cellvit.errors import CellViTError, DataError, OutputError
from cellvit.geometry.polygons import polygon_area, ring_lengths, ring_offsets, select_rings
from cellvit.inference.resources import release_memory
from cellvit.io.arrow import from_arrow
from cellvit.io.atomic import atomic_path, make_folder
from cellvit.io.paths import cache_folder
from cellvit.viewer.table import Floats, NucleiTable

SUFFIX = ".outlines.npy"
"""What the name of the file ends in, after the stem of the table."""

_VERSION = 1
_STEPS = 16  # of a pixel
_TOGETHER = 8192  # nuclei that are read or worked on together
_MAPPED = 4  # times as many are read from one map of a file
_MOST_FACTS = 4096  # bytes
_COLUMNS = ["label", "type", "type_prob", "centroid", "bbox", "contour"]

Steps = type[np.int16] | type[np.int32]


class StoppedError(CellViTError):
    """Somebody ended what takes seconds."""


class _Stored(NamedTuple):
    """Where an array lies in a file."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class OutlineFile:
    """The outlines of a table. Threads may read at the same time.

    Args:
        path: A file that :func:`write_outlines` made.
        table: The table.

    Raises:
        DataError: If it was made for another table, or is damaged.
    """

    def __init__(self, path: Path, table: NucleiTable) -> None:
        count = len(table)
        try:
            with path.open("rb") as file:
                facts, self._offsets, self._areas, self._points = (_stored(file) for _ in range(4))
                self._handle = os.dup(file.fileno())
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{str(path)!r} holds no outlines ({error})") from error
        weakref.finalize(self, os.close, self._handle)
        shapes = (self._offsets.shape, self._areas.shape, self._points.shape[1:])
        kinds = (self._offsets.dtype, self._areas.dtype, self._points.dtype)
        known = (np.dtype(np.int64), np.dtype(np.float32))
        fits = shapes == ((count + 1,), (count,), (2,)) and kinds[:2] == known
        if not fits or kinds[2] not in (np.int16, np.int32) or facts.shape[0] > _MOST_FACTS:
            raise DataError(f"{str(path)!r} holds no outlines of {count} nuclei")
        if self._read(facts, 0, facts.shape[0]).tobytes() != _facts(table):
            raise DataError(f"{str(path)!r} holds outlines of another table")

    def read(self, chosen: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        """Return outlines in level-0 pixels.

        Args:
            chosen: ``(K,)`` places in the columns of the table, ascending.

        Returns:
            Points ``(P, 2)`` float32 from the centroid of each nucleus, and offsets ``(K + 1,)``.

        Raises:
            DataError: If the file is damaged.
        """
        limits = np.flatnonzero(np.diff(chosen // _TOGETHER, prepend=-1, append=-1))
        points, lengths = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.int64)]
        for begin, end in pairwise(limits) if len(chosen) else ():
            part = chosen[begin:end]
            first, stop = int(part[0]), int(part[-1]) + 1
            offsets = self._read(self._offsets, first, stop + 1)
            if (np.diff(offsets) < 0).any() or not 0 <= offsets[0] <= offsets[-1] <= self._points.shape[0]:
                raise DataError("the file of outlines is damaged; remove it and open the viewer again")
            rings = self._read(self._points, int(offsets[0]), int(offsets[-1]))
            found, at = select_rings(rings, offsets - offsets[0], part - first)
            points.append(found.astype(np.float32) * np.float32(1 / _STEPS))
            lengths.append(ring_lengths(at))
        return np.concatenate(points), ring_offsets(np.concatenate(lengths))

    def areas(self) -> Floats:
        """Return the area inside of every outline in pixels, ``(N,)`` float32; NaN without an outline."""
        return self._read(self._areas, 0, self._areas.shape[0])

    def _read(self, stored: _Stored, first: int, stop: int) -> NDArray[Any]:
        """Return some rows of an array."""
        row = stored.dtype.itemsize * int(np.prod(stored.shape[1:]))
        content = os.pread(self._handle, (stop - first) * row, stored.start + first * row)
        return np.frombuffer(content, stored.dtype).reshape(stop - first, *stored.shape[1:])


def _stored(file: IO[bytes]) -> _Stored:
    """Return the array that begins here, and go to its end.

    Raises:
        ValueError: If there is none, or the file ends before it does.
    """
    if npy.read_magic(file) != (1, 0):
        raise ValueError("it is no array of numpy")
    shape, fortran, dtype = npy.read_array_header_1_0(file)
    start, size = file.tell(), dtype.itemsize * int(np.prod(shape, dtype=object))
    if fortran or dtype.hasobject or start + size > os.fstat(file.fileno()).st_size:
        raise ValueError("it is cut off")
    file.seek(start + size)
    return _Stored(start, dtype, shape)


def _facts(table: NucleiTable) -> bytes:
    return json.dumps({"cellvit": "outlines", "key": key_of(table)}).encode()


def key_of(table: NucleiTable) -> str:
    """Return a digest of the outlines and centroids of a table, and of the order of the file."""
    digest = hashlib.sha256(f"{_VERSION} {_STEPS} {table.tree.cell} {table.digest}".encode())
    with table.opened() as file:
        for chunk in _contour_chunks(file):
            stated = chunk.statistics
            limits = (stated.min, stated.max) if stated is not None and stated.has_min_max else None
            sizes = (chunk.num_values, chunk.total_uncompressed_size, chunk.total_compressed_size)
            digest.update(repr((sizes, limits)).encode())
    return digest.hexdigest()


def has_outlines(table: NucleiTable) -> bool:
    """Tell whether any nucleus of a table has an outline, from what the file notes of its parts."""
    with table.opened() as file:
        return any(
            chunk.statistics is None or chunk.statistics.has_min_max or not chunk.is_stats_set
            for chunk in _contour_chunks(file)
        )


def _contour_chunks(file: pq.ParquetFile) -> Iterator[Any]:
    facts = file.metadata
    places = [i for i in range(facts.num_columns) if facts.schema.column(i).path.startswith("contour.")]
    yield from (facts.row_group(group).column(i) for group in range(facts.num_row_groups) for i in places)


def open_outlines(table: NucleiTable, *, make: bool = True, stop: threading.Event | None = None) -> OutlineFile | None:
    """Return the outlines of a table; their file is made if there is none that fits.

    It lies beside the table, or, where nothing can be written there, in the user's folder of caches.

    Args:
        table: The table.
        make: Make the file; without, None is returned where it would have to be made.
        stop: When it is set, the file is not finished, and there is none.

    Raises:
        StoppedError: If it was stopped.
        DataError: If the table is damaged.
        OutputError: If the file can be written nowhere.
    """
    beside = table.path.with_name(table.path.name.removesuffix(".parquet") + SUFFIX)
    cached = cache_folder() / f"{key_of(table)[:32]}{SUFFIX}"
    for path in (beside, cached):
        with suppress(DataError):  # not there, or of another table
            return OutlineFile(path, table)
    if not make:
        return None
    with suppress(OutputError):
        write_outlines(table, beside, stop)
        return OutlineFile(beside, table)
    try:
        make_folder(cached.parent)
        write_outlines(table, cached, stop)
    except OutputError as error:
        raise OutputError(
            f"the outlines can be kept neither beside {str(table.path)!r} nor in {str(cached.parent)!r} ({error}); "
            "name a folder with some room in the environment variable XDG_CACHE_HOME"
        ) from error
    return OutlineFile(cached, table)


def write_outlines(table: NucleiTable, path: Path, stop: threading.Event | None = None) -> None:
    """Write the outlines of a table in the order of its quadtree; few are in memory.

    Args:
        table: The table.
        path: The file.
        stop: When it is set, the file is not finished, and there is none.

    Raises:
        DataError: If the table is damaged.
        StoppedError: If it was stopped.
        OutputError: If the file cannot be written.
    """
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        sink = stack.enter_context(temporary.open("wb"))
        kinds: tuple[Steps, ...] = (np.int16, np.int32)
        for kind in kinds:
            spool = stack.enter_context(TemporaryFile(dir=path.parent))
            found = _spooled(table, spool, kind, stop)
            if found is not None:
                break
        assert found is not None
        offsets, area = found
        order = table.row.astype(np.int64)
        placed = ring_offsets(ring_lengths(offsets)[order])
        for array in (np.frombuffer(_facts(table), np.uint8), placed, area[order]):
            npy.write_array(sink, array, version=(1, 0), allow_pickle=False)
        head = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (int(placed[-1]), 2)}
        npy.write_array_header_1_0(sink, head)
        for start in range(0, len(order), _TOGETHER):
            _go_on(stop)
            if start % (_MAPPED * _TOGETHER) == 0:  # a new map, so that what was read of the last one is let go
                points = _mapped(spool, kind, int(offsets[-1]))
            chosen, _ = select_rings(points, offsets, order[start : start + _TOGETHER])
            sink.write(np.ascontiguousarray(chosen).tobytes())
    release_memory()
    table.check()


def _mapped(spool: IO[bytes], kind: Steps, count: int) -> NDArray[Any]:
    """Return the points in a file ``(count, 2)`` without reading them."""
    return np.memmap(spool, kind, "r", shape=(count, 2)) if count else np.zeros((0, 2), kind)


def _spooled(
    table: NucleiTable, spool: IO[bytes], kind: Steps, stop: threading.Event | None
) -> tuple[NDArray[np.int64], Floats] | None:
    """Write the points of all outlines in the order of the table; return where each begins, and its area.

    Returns:
        Offsets ``(N + 1,)`` and areas ``(N,)`` in pixels; None if the type of the points is too small.
    """
    centre = np.zeros((table.count, 2), np.float32)  # of those that are left out nobody asks for the outline
    centre[table.row, 0], centre[table.row, 1] = table.x, table.y
    lengths, areas, start = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)], 0
    for part in _parts(table):
        _go_on(stop)
        nuclei = from_arrow(part)
        number = ring_lengths(nuclei.contour_offsets)
        around = nuclei.contour_points + table.shift
        around -= np.repeat(centre[start : start + len(nuclei)], number, axis=0)
        steps = np.rint(np.nan_to_num(around * _STEPS, nan=0.0, posinf=0.0, neginf=0.0))
        if np.abs(steps).max(initial=0) > np.iinfo(kind).max:
            if kind is np.int16:
                return None
            steps = np.clip(steps, np.iinfo(kind).min, np.iinfo(kind).max)  # a hundred million pixels away
        spool.write(steps.astype(kind).tobytes())
        lengths.append(number)
        areas.append(np.where(number > 0, polygon_area(nuclei.contour_points, nuclei.contour_offsets), np.nan))
        start += len(nuclei)
    spool.flush()
    return ring_offsets(np.concatenate(lengths)), np.concatenate(areas).astype(np.float32)


def _go_on(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise StoppedError("the viewer is closed; open it again")


def _parts(table: NucleiTable) -> Iterator[pa.Table]:
    """Yield a table in parts, with what outlines need."""
    with table.opened() as file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        groups = file.num_row_groups
    for number in range(groups):  # file.iter_batches needs three times the memory of a row group
        with table.opened() as file:  # anew, so that what goes wrong with a part is not taken for damage of the table
            group = file.read_row_group(number, columns=columns)
        yield from (group.slice(first, _TOGETHER) for first in range(0, len(group), _TOGETHER))
        del group
        pa.default_memory_pool().release_unused()
