"""The outlines of a slide in the order of a quadtree: a file beside the table from which a square reads only its own.

The file is made once for a table, in the format of Arrow. It holds whole sixteenths of a pixel from the centroid of
each nucleus, which no screen tells from the outlines themselves. What the table says of centroids and outlines is its
key, so that other outlines in the table lead to another file; types and measurements do not enter.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellvit.errors import CellViTError, DataError, OutputError
from cellvit.geometry.polygons import polygon_area, ring_lengths, ring_offsets, select_rings
from cellvit.inference.resources import release_memory
from cellvit.io.arrow import from_arrow
from cellvit.io.atomic import atomic_path, make_folder
from cellvit.view.cache import BoundedCache
from cellvit.view.table import Floats, NucleiTable

SUFFIX = ".outlines.arrow"
"""What the name of the file ends in, after the stem of the table."""

CACHE_BYTES = 32_000_000
"""Memory for outlines that were read last."""

_VERSION = 1
_STEPS = 16  # of a pixel
_BATCH = 2048  # nuclei that are read together
_MAPPED = 16  # times as many are read from one map of the file
_SPOOLED = 8192  # nuclei that are worked on together
_KEY = b"cellvit-outlines"
_COLUMNS = ["label", "type", "type_prob", "centroid", "bbox", "contour"]


class Rings(NamedTuple):
    """Outlines of nuclei that follow each other.

    Attributes:
        points: ``(P, 2)`` integers, sixteenths of a pixel from the centroid.
        offsets: ``(K + 1,)`` int64; outline ``i`` has the points ``offsets[i]:offsets[i + 1]``.
    """

    points: NDArray[np.signedinteger[Any]]
    offsets: NDArray[np.int64]


class StoppedError(CellViTError):
    """Somebody ended what takes seconds."""


class OutlineFile:
    """The outlines of a table. Threads may read at the same time.

    Args:
        path: A file that :func:`write_outlines` made.
        table: The table.
        cache: Keeps what was read last.

    Raises:
        DataError: If it was made for another table, or is damaged.
    """

    def __init__(self, path: Path, table: NucleiTable, cache: BoundedCache[Rings]) -> None:
        self._cache, self._key = cache, key_of(table)
        self._lock = threading.Lock()
        try:
            self._file = pa.OSFile(str(path))
            self._reader = pa.ipc.open_file(self._file)
            stated = (self._reader.schema.metadata or {}).get(_KEY, b"").decode()
            batches = self._reader.num_record_batches
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{str(path)!r} holds no outlines ({error})") from error
        if stated != self._key or batches != -(-len(table) // _BATCH):
            raise DataError(f"{str(path)!r} holds outlines of another table")

    def read(self, chosen: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        """Return outlines in level-0 pixels.

        Args:
            chosen: ``(K,)`` places in the columns of the table, ascending.

        Returns:
            Points ``(P, 2)`` float32 from the centroid of each nucleus, and offsets ``(K + 1,)``.
        """
        limits = np.flatnonzero(np.diff(chosen // _BATCH, prepend=-1, append=-1))
        points, lengths = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.int64)]
        for first, stop in pairwise(limits) if len(chosen) else ():
            number = int(chosen[first]) // _BATCH
            rings = self._cache.get((self._key, number), partial(self._rings, number))
            found, offsets = select_rings(rings.points, rings.offsets, chosen[first:stop] - number * _BATCH)
            points.append(found.astype(np.float32) * np.float32(1 / _STEPS))
            lengths.append(ring_lengths(offsets))
        return np.concatenate(points), ring_offsets(np.concatenate(lengths))

    def areas(self) -> Floats:
        """Return the area inside of every outline in pixels, ``(N,)`` float32; NaN without an outline."""
        with self._lock:
            options = pa.ipc.IpcReadOptions(included_fields=[1])
            reader = pa.ipc.open_file(self._file, options=options)
            parts = [reader.get_batch(i)["area"].to_numpy() for i in range(reader.num_record_batches)]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _rings(self, number: int) -> Rings:
        with self._lock:
            contour = self._reader.get_batch(number)["contour"]
        offsets = contour.offsets.to_numpy().astype(np.int64)
        points = contour.flatten().flatten().to_numpy().reshape(-1, 2)
        return Rings(points.copy(), offsets - offsets[0])  # else the whole batch stays in memory


def rings_bytes(rings: Rings) -> int:
    """Return the bytes of outlines in memory."""
    return rings.points.nbytes + rings.offsets.nbytes


def key_of(table: NucleiTable) -> str:
    """Return a digest of the outlines and centroids of a table, and of the order of the file."""
    digest = hashlib.sha256(f"{_VERSION} {_STEPS} {_BATCH} {table.tree.cell} {table.digest}".encode())
    with pq.ParquetFile(table.path) as file:
        for chunk in _contour_chunks(file):
            stated = chunk.statistics
            limits = (stated.min, stated.max) if stated is not None and stated.has_min_max else None
            digest.update(repr((chunk.num_values, chunk.total_uncompressed_size, limits)).encode())
            digest.update(repr(chunk.total_compressed_size).encode())
    return digest.hexdigest()


def has_outlines(path: Path) -> bool:
    """Tell whether any nucleus of a table has an outline, from what the file notes of its parts."""
    with pq.ParquetFile(path) as file:
        return any(
            chunk.statistics is None or chunk.statistics.has_min_max or not chunk.is_stats_set
            for chunk in _contour_chunks(file)
        )


def _contour_chunks(file: pq.ParquetFile) -> Iterator[Any]:
    facts = file.metadata
    places = [i for i in range(facts.num_columns) if facts.schema.column(i).path.startswith("contour.")]
    yield from (facts.row_group(group).column(i) for group in range(facts.num_row_groups) for i in places)


def open_outlines(
    table: NucleiTable, cache: BoundedCache[Rings], *, make: bool = True, stop: threading.Event | None = None
) -> OutlineFile | None:
    """Return the outlines of a table; their file is made if there is none that fits.

    It lies beside the table, or, where nothing can be written there, in the user's folder of caches.

    Args:
        table: The table.
        cache: Keeps what was read last.
        make: Make the file; without, None is returned where it would have to be made.
        stop: When it is set, the file is not finished, and there is none.

    Raises:
        StoppedError: If it was stopped.
        DataError: If the table is damaged.
        OutputError: If the file can be written nowhere.
    """
    key = key_of(table)
    beside = table.path.with_name(table.path.name.removesuffix(".parquet") + SUFFIX)
    places = [beside, cache_folder() / f"{key[:32]}{SUFFIX}"]
    for path in places:
        try:
            return OutlineFile(path, table, cache)
        except DataError:
            continue  # not there, or of another table
    if not make:
        return None
    with suppress(OutputError):
        write_outlines(table, beside, stop)
        return OutlineFile(beside, table, cache)
    try:
        make_folder(places[1].parent)
        write_outlines(table, places[1], stop)
    except OutputError as error:
        raise OutputError(
            f"the outlines can be kept neither beside {str(table.path)!r} nor in {str(places[1].parent)!r} ({error}); "
            "name a folder with some room in the environment variable XDG_CACHE_HOME"
        ) from error
    return OutlineFile(places[1], table, cache)


def cache_folder() -> Path:
    """Return the folder for files that can be made again: ``cellvit`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "cellvit"


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
        for kind in (np.int16, np.int32):
            spool = stack.enter_context(TemporaryFile(dir=path.parent))
            found = _spooled(table, spool, kind, stop)
            if found is not None:
                break
        assert found is not None
        offsets, area = found
        rings = pa.list_(pa.list_(pa.from_numpy_dtype(kind), 2))
        schema = pa.schema({"contour": rings, "area": pa.float32()}, metadata={_KEY: key_of(table)})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
            for start in range(0, len(table), _BATCH):
                _go_on(stop)
                if start % (_MAPPED * _BATCH) == 0:  # a new map, so that what was read of the last one is let go
                    points = _mapped(spool, kind, int(offsets[-1]))
                rows = table.row[start : start + _BATCH].astype(np.int64)
                chosen, at = select_rings(points, offsets, rows)
                flat = pa.FixedSizeListArray.from_arrays(pa.array(chosen.reshape(-1)), 2)
                contour = pa.ListArray.from_arrays(pa.array(at.astype(np.int32)), flat)
                writer.write_batch(pa.record_batch([contour, pa.array(area[rows])], schema=schema))
    release_memory()
    table.check()


def _mapped(spool: IO[bytes], kind: type[np.signedinteger[Any]], count: int) -> NDArray[np.signedinteger[Any]]:
    """Return the points in a file ``(count, 2)`` without reading them."""
    return np.memmap(spool, kind, "r", shape=(count, 2)) if count else np.zeros((0, 2), kind)


def _spooled(
    table: NucleiTable, spool: IO[bytes], kind: type[np.signedinteger[Any]], stop: threading.Event | None
) -> tuple[NDArray[np.int64], Floats] | None:
    """Write the points of all outlines in the order of the table; return where each begins, and its area.

    Returns:
        Offsets ``(N + 1,)`` and areas ``(N,)`` in pixels; None if the type of the points is too small.
    """
    centre = np.zeros((table.count, 2), np.float32)  # of those that are left out nobody asks for the outline
    centre[table.row, 0], centre[table.row, 1] = table.x, table.y
    lengths, areas, start = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)], 0
    for part in _parts(table.path):
        _go_on(stop)
        nuclei = from_arrow(part)
        number = ring_lengths(nuclei.contour_offsets)
        around = nuclei.contour_points + table.shift
        around -= np.repeat(centre[start : start + len(nuclei)], number, axis=0)
        steps = np.rint(np.nan_to_num(around * _STEPS, nan=0.0, posinf=0.0, neginf=0.0))
        if np.abs(steps).max(initial=0) > np.iinfo(kind).max:
            return None
        spool.write(steps.astype(kind).tobytes())
        lengths.append(number)
        areas.append(np.where(number > 0, polygon_area(nuclei.contour_points, nuclei.contour_offsets), np.nan))
        start += len(nuclei)
    spool.flush()
    return ring_offsets(np.concatenate(lengths)), np.concatenate(areas).astype(np.float32)


def _go_on(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise StoppedError("the viewer is closed; open it again")


def _parts(path: Path) -> Iterator[pa.Table]:
    """Yield a table in parts, with what outlines need."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    with file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):  # file.iter_batches needs three times the memory of a row group
            try:
                table = file.read_row_group(group, columns=columns)
            except (OSError, pa.ArrowException) as error:
                raise _damaged(path, error) from error
            yield from (table.slice(first, _SPOOLED) for first in range(0, len(table), _SPOOLED))
            del table
            pa.default_memory_pool().release_unused()


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{str(path)!r} is damaged ({error}); put a copy back")
