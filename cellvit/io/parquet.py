"""Nuclei as Parquet: every column, the embeddings, and polygons for GIS tools; whole or in chunks."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from cellvit.classes import classes_from_list
from cellvit.errors import DataError
from cellvit.io import text as tables
from cellvit.io.arrow import from_arrow, read_facts, to_arrow
from cellvit.io.atomic import atomic_path
from cellvit.io.geojson import nuclei_of_geojson
from cellvit.io.limits import check_expanded
from cellvit.io.provenance import with_mpp
from cellvit.io.stream import TableStream, blocks
from cellvit.io.valid_polygons import valid_rings, wkb_of_rings
from cellvit.types import Nuclei, NucleiClasses

__all__ = [
    "ParquetStream",
    "from_arrow",
    "read_facts",
    "read_parquet",
    "to_arrow",
    "write_parquet",
    "write_parquet_stream",
]

_ROW_GROUP = 65_536
_BYTES_OF_A_VALUE = 8
_EMBEDDING_BYTES = 16 << 20
"""Most of embeddings in a row group: readers and writers hold some ten times as much in memory."""

_ENCODING: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["classification"]}
"""Tables of the values of other columns, which Parquet tries first, take time and make files of nuclei larger."""

_NEEDED = {"label", "type_prob", "classification", "geometry"}
"""Columns by which a table of this package is known that other programs have written."""

_LIGHT = {"label", "type", "type_prob", "classification", "centroid"}

_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    # pixels of an image have no place on Earth: "crs" null says so
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
}


def write_parquet(
    nuclei: Nuclei, path: str | Path, *, metadata: Mapping[str, Any] | None = None, geometry: bool = True
) -> None:
    """Write nuclei as Parquet: the columns of :func:`to_arrow`, and valid polygons as GeoParquet.

    Args:
        nuclei: The nuclei.
        path: The file.
        metadata: Further facts to keep with the table, plain data.
        geometry: Add a column ``geometry`` that GeoPandas, QGIS and DuckDB read; it about doubles the outlines' size.

    Raises:
        DataError: If the metadata are not plain data, or, with ``geometry``, a coordinate is not finite.
        OutputError: If the file cannot be written.
    """
    write_parquet_stream(
        [nuclei],
        path,
        classes=nuclei.classes,
        embedding_dim=TableStream(nuclei).embedding_dim,
        measurements=tuple(nuclei.measurements),
        metadata=with_mpp(metadata, nuclei.mpp),
        geometry=geometry,
    )


def write_parquet_stream(
    chunks: Iterable[Nuclei],
    path: str | Path,
    *,
    classes: NucleiClasses | None,
    embedding_dim: int | None = None,
    measurements: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    geometry: bool = True,
) -> int:
    """Write nuclei that come in chunks as Parquet, as :func:`write_parquet` does, and return how many there were.

    A chunk and a row group are held in memory: at most 65,536 nuclei and 16 MB of embeddings. The bytes of the file
    do not depend on how the chunks are cut.

    Args:
        chunks: Tables of any size, in the order of the rows.
        path: The file.
        classes: Names and colours of the types, as the chunks have them.
        embedding_dim: Width of the embedding column; None leaves embeddings out.
        measurements: Names of what is measured; all others are left out.
        metadata: Further facts to keep with the table, plain data.
        geometry: Add a column of polygons that GeoPandas, QGIS and DuckDB read.

    Returns:
        Number of rows.

    Raises:
        DataError: As :func:`write_parquet`, or if a chunk has other classes, another width of embedding, or lacks a
            measurement.
        OutputError: If the file cannot be written.
    """
    empty = Nuclei.empty(embedding_dim=embedding_dim, classes=classes, measurements=measurements)
    first = _table(empty, 0, metadata, geometry)
    size = _ROW_GROUP if not embedding_dim else max(1, min(_ROW_GROUP, _EMBEDDING_BYTES // (4 * embedding_dim)))
    count = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, first.schema, **_ENCODING) as writer:
        for row, block in blocks(chunks, size, classes=classes, embedding_dim=embedding_dim, measurements=measurements):
            writer.write_table(_table(block, row, metadata, geometry), row_group_size=size)
            count = row + len(block)
        if not count:
            writer.write_table(first)
    return count


def _table(nuclei: Nuclei, row: int, metadata: Mapping[str, Any] | None, geometry: bool) -> pa.Table:
    """Return a row group; ``row`` is the number of its first nucleus."""
    table = to_arrow(nuclei, metadata=metadata)
    if not geometry:
        return table
    tables.check_finite(nuclei, first=row)
    table = table.append_column("geometry", _geometry(nuclei))
    return table.replace_schema_metadata({**table.schema.metadata, b"geo": json.dumps(_GEO).encode()})


def _geometry(nuclei: Nuclei) -> pa.Array:
    """Return valid polygons as well-known binary."""
    pieces = [pa.array([], pa.binary())]
    for rows in tables.chunks(len(nuclei)):
        starts, wkb = wkb_of_rings(*valid_rings(nuclei[rows.start : rows.stop]))
        offsets = pa.py_buffer(starts.astype(np.int32))
        pieces.append(pa.Array.from_buffers(pa.binary(), len(starts) - 1, [None, offsets, pa.py_buffer(wkb)]))
    return pa.concat_arrays(pieces)


def read_parquet(path: str | Path) -> Nuclei:
    """Read nuclei from a file of :func:`write_parquet`, also after GeoPandas has written it again.

    Args:
        path: The file.

    Returns:
        The nuclei, with embeddings if the file has them; arrays may be read-only. Of GeoParquet of other programs the
        outlines are the geometries, and types are known by the name in ``classification``.

    Raises:
        DataError: If the file is missing, damaged, or not of nuclei.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
        if b"cellvit" not in (schema.metadata or {}) and not _NEEDED - set(schema.names):
            return nuclei_of_geojson(_features(file), path)
        # a single file, opened as such: a name like "type=1" in its path must not become a column
        return from_arrow(file.read(columns=_columns(file, embedding=True)))


def _features(file: pq.ParquetFile) -> list[dict[str, Any]]:
    """Return the rows of GeoParquet as features of GeoJSON; missing geometries are left out."""
    rows = file.read(columns=[name for name in file.schema_arrow.names if name not in ("contour", "embedding")])
    shapes = shapely.from_wkb(rows["geometry"].to_pylist())
    properties = rows.drop_columns(["geometry"]).to_pylist()
    return [
        {"type": "Feature", "geometry": shapely.geometry.mapping(shape), "properties": row}
        for shape, row in zip(shapes, properties, strict=True)
        if shape is not None
    ]


class ParquetStream:
    """The nuclei of a file of :func:`write_parquet`, row group by row group.

    Args:
        path: The file.
        embedding: Read the embeddings, if the file has them. They are most of a file: leave them out where they are
            not used.
        outlines: Without, only centroids and types are read: boxes and outlines are empty, nothing was measured, and
            there are no embeddings.

    Attributes:
        path: The file.
        classes: Names and colours of the types, or None if unnamed.
        embedding_dim: Width of the embedding column; None if there is none or it is left out.
        measurements: Names of what was measured.
        metadata: The facts that were stored with the table.

    Raises:
        DataError: If the file is missing, damaged, or not of nuclei; also later, while it is iterated.
    """

    def __init__(self, path: str | Path, *, embedding: bool = True, outlines: bool = True) -> None:
        self.path, self._outlines = Path(path), outlines
        with _opened(path) as file:
            self._count: int = file.metadata.num_rows
            facts = read_facts(file.schema_arrow)
            self._columns = _columns(file, embedding=embedding)
            if not outlines:
                self._columns = [name for name in self._columns if name in _LIGHT]
            none = from_arrow(file.schema_arrow.empty_table().select(self._columns), outlines=outlines)
        self.classes = classes_from_list(facts["classes"], source=str(path))
        self.embedding_dim = TableStream(none).embedding_dim
        self.measurements = tuple(none.measurements)
        self.metadata: dict[str, Any] = facts["metadata"]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Nuclei]:
        with _opened(self.path) as file:
            for group in range(file.num_row_groups):
                yield from_arrow(file.read_row_group(group, columns=self._columns), outlines=self._outlines)


def _columns(file: pq.ParquetFile, *, embedding: bool) -> list[str]:
    """Return the columns to read."""
    left_out = {"geometry"} if embedding else {"geometry", "embedding"}
    return [name for name in file.schema_arrow.names if name not in left_out]


@contextmanager
def _opened(path: str | Path) -> Iterator[pq.ParquetFile]:
    """Return a context with an open file, which turns errors of reading into those of this package."""
    try:
        with pq.ParquetFile(path) as file:
            groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
            values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
            check_expanded(values * _BYTES_OF_A_VALUE, "the file", packed=Path(path).stat().st_size)
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist; check the path") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(path)!r} is not a readable Parquet file ({error}); write it again") from error
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error
