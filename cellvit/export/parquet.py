"""Nuclei as an Arrow table and as Parquet: every column, the embeddings, and polygons for GIS tools."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from cellvit.atomic import atomic_path
from cellvit.errors import DataError
from cellvit.export.palette import classes_from_list, classes_to_list
from cellvit.export.polygons import polygons_from_rings, valid_rings
from cellvit.export.tables import check_finite
from cellvit.types import Nuclei

SCHEMA_VERSION = 1
_KEY = b"cellvit"
_ROW_GROUP = 65_536
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    # pixels of an image have no place on Earth: "crs" null says so
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None}},
}


def to_arrow(nuclei: Nuclei, *, metadata: Mapping[str, Any] | None = None) -> pa.Table:
    """Return nuclei as an Arrow table that shares memory with them.

    Columns: ``label`` int32, ``type`` int32, ``type_prob`` float32, ``centroid`` 2 doubles ``(x, y)``, ``bbox`` 4
    doubles ``(xmin, ymin, xmax, ymax)``, ``contour`` list of 2 doubles, and, where there is one, ``embedding`` D
    floats. The schema metadata hold under ``cellvit`` a JSON object with ``version``, ``classes`` and ``metadata``.

    Args:
        nuclei: The nuclei. Contiguous columns of the documented dtypes are not copied.
        metadata: Further facts to keep with the table, plain data.

    Returns:
        One row per nucleus.

    Raises:
        DataError: If the metadata are not plain data.
    """
    columns = {
        "label": pa.array(np.ascontiguousarray(nuclei.label, np.int32)),
        "type": pa.array(np.ascontiguousarray(nuclei.type, np.int32)),
        "type_prob": pa.array(np.ascontiguousarray(nuclei.type_prob, np.float32)),
        "centroid": _fixed(nuclei.centroid, np.float64),
        "bbox": _fixed(nuclei.bbox, np.float64),
        "contour": pa.LargeListArray.from_arrays(
            pa.array(np.ascontiguousarray(nuclei.contour_offsets, np.int64)), _fixed(nuclei.contour_points, np.float64)
        ),
    }
    if nuclei.embedding is not None:
        columns["embedding"] = _fixed(nuclei.embedding, np.float32)
    facts = {"version": SCHEMA_VERSION, "classes": classes_to_list(nuclei.classes), "metadata": dict(metadata or {})}
    try:
        text = json.dumps(facts).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata {metadata!r} cannot be stored as JSON ({error}); use plain data") from error
    return pa.table(columns).replace_schema_metadata({_KEY: text})


def from_arrow(table: pa.Table) -> Nuclei:
    """Return the nuclei of a table made by :func:`to_arrow`, of a slice of one, or of several concatenated.

    Args:
        table: Other columns are ignored.

    Returns:
        The nuclei. Columns share the memory of the table where it holds one chunk, and are then read-only.

    Raises:
        DataError: If columns are missing or of another type, or the table is of a newer version.
    """
    facts = read_facts(table)
    missing = {"label", "type", "type_prob", "centroid", "bbox", "contour"} - set(table.column_names)
    if missing:
        raise DataError(f"the table lacks the columns {sorted(missing)}; write it with cellvit.export.write_parquet")
    try:
        contour = _one_chunk(table["contour"])
        offsets = contour.offsets.to_numpy().astype(np.int64, copy=False)
        return Nuclei(
            centroid=_matrix(table["centroid"], np.float64),
            bbox=_matrix(table["bbox"], np.float64),
            type=_vector(table["type"], np.int32),
            type_prob=_vector(table["type_prob"], np.float32),
            contour_offsets=offsets - offsets[0] if offsets[0] else offsets,
            contour_points=_matrix(contour.flatten(), np.float64),
            label=_vector(table["label"], np.int32),
            embedding=_matrix(table["embedding"], np.float32) if "embedding" in table.column_names else None,
            classes=classes_from_list(facts["classes"], source="the table"),
        )
    except DataError:
        raise
    except (AttributeError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"the table's columns are not those of nuclei ({error}); write it again") from error


def read_facts(table: pa.Table) -> dict[str, Any]:
    """Return the ``version``, ``classes`` and ``metadata`` stored with a table.

    Args:
        table: Made by :func:`to_arrow`, or read from Parquet.

    Raises:
        DataError: If there are none, or they are of a newer version.
    """
    stored = (table.schema.metadata or {}).get(_KEY)
    if stored is None:
        raise DataError("the table holds no cellvit metadata; write it with cellvit.export.write_parquet")
    try:
        facts: dict[str, Any] = json.loads(stored)
        version = int(facts["version"])
        facts["classes"], facts["metadata"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"the table's cellvit metadata {stored[:80]!r} are damaged; write it again") from error
    if version > SCHEMA_VERSION:
        raise DataError(f"the table is of version {version}, this is for version {SCHEMA_VERSION}; update cellvit")
    return facts


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
    table = to_arrow(nuclei, metadata=metadata)
    if geometry:
        check_finite(nuclei)
        shapes = shapely.to_wkb(polygons_from_rings(*valid_rings(nuclei)))
        table = table.append_column("geometry", pa.array(shapes, pa.binary()))
        table = table.replace_schema_metadata({**table.schema.metadata, b"geo": json.dumps(_GEO).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_ROW_GROUP)


def read_parquet(path: str | Path) -> Nuclei:
    """Read nuclei from a file of :func:`write_parquet`.

    Args:
        path: The file.

    Returns:
        The nuclei, with embeddings if the file has them; arrays may be read-only.

    Raises:
        DataError: If the file is missing, damaged, or not of nuclei.
    """
    try:
        # a single file, opened as such: a name like "type=1" in its path must not become a column
        with pq.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name != "geometry"]
            table = file.read(columns=wanted)
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist; check the path") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(path)!r} is not a readable Parquet file ({error}); write it again") from error
    try:
        return from_arrow(table)
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error


def _fixed(values: NDArray[Any], dtype: Any) -> pa.Array:
    """Return a matrix ``(K, W)`` as fixed-size lists over its memory."""
    flat = np.ascontiguousarray(values, dtype).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def _one_chunk(column: Any) -> Any:
    """Return a column as a single array, copying only if it has several chunks."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.null_count:
        raise ValueError("a column has missing values")
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _vector(column: Any, dtype: Any) -> NDArray[Any]:
    """Return a column of numbers ``(N,)``."""
    return np.asarray(_one_chunk(column).to_numpy(zero_copy_only=False).astype(dtype, copy=False))


def _matrix(column: Any, dtype: Any) -> NDArray[Any]:
    """Return a column of fixed-size lists as ``(N, W)``."""
    array = _one_chunk(column)
    return _vector(array.flatten(), dtype).reshape(len(array), array.type.list_size)
