"""Nuclei as an Arrow table: every column, sharing memory with the arrays."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cellvit.classes import classes_from_list, classes_to_list, type_name
from cellvit.errors import DataError
from cellvit.io.frames import from_frame, stated_frame
from cellvit.io.provenance import mpp_of, with_mpp
from cellvit.io.qupath import StatedClass
from cellvit.io.stated_types import StatedTypes
from cellvit.types import PIXEL_CORNERS, Nuclei

SCHEMA_VERSION = 2
_KEY = b"cellvit"
_PLAIN = {"label", "type", "classification", "type_prob", "centroid", "bbox", "contour", "embedding"}
_COLUMNS = _PLAIN | {"geometry", "tile"}


def to_arrow(nuclei: Nuclei, *, metadata: Mapping[str, Any] | None = None) -> pa.Table:
    """Return nuclei as an Arrow table that shares memory with them.

    Columns: ``label`` int32, ``type`` int32, ``classification`` (name of the type, missing where none is known),
    ``type_prob`` float32, ``centroid`` 2 doubles ``(x, y)``, ``bbox`` 4 doubles ``(xmin, ymin, xmax, ymax)``,
    ``contour`` list of 2 doubles, and, where there is one, ``embedding`` D floats; then one float32 for every
    measurement, under its name. The schema metadata hold under ``cellvit`` a JSON object with ``version``, ``frame``
    (of coordinates; see :mod:`cellvit.types`), ``classes``, ``measurements`` (the names of those columns) and
    ``metadata``.

    Args:
        nuclei: The nuclei. Contiguous columns of the documented dtypes are not copied.
        metadata: Further facts to keep with the table, plain data.

    Returns:
        One row per nucleus.

    Raises:
        DataError: If the metadata are not plain data, or a measurement has the name of another column.
    """
    taken = sorted(_COLUMNS & set(nuclei.measurements))
    if taken:
        raise DataError(f"measurements {taken} have names of other columns of the table; rename them")
    columns = {
        "label": pa.array(np.ascontiguousarray(nuclei.label, np.int32)),
        "type": pa.array(np.ascontiguousarray(nuclei.type, np.int32)),
        "classification": _names(nuclei),
        "type_prob": pa.array(np.ascontiguousarray(nuclei.type_prob, np.float32)),
        "centroid": _fixed(nuclei.centroid, np.float64),
        "bbox": _fixed(nuclei.bbox, np.float64),
        "contour": pa.LargeListArray.from_arrays(
            pa.array(np.ascontiguousarray(nuclei.contour_offsets, np.int64)), _fixed(nuclei.contour_points, np.float64)
        ),
    }
    if nuclei.embedding is not None:
        columns["embedding"] = _fixed(nuclei.embedding, np.float32)
    columns |= {name: pa.array(np.ascontiguousarray(v, np.float32)) for name, v in nuclei.measurements.items()}
    facts = _facts_text(nuclei, with_mpp(metadata, nuclei.mpp))
    return pa.table(columns).replace_schema_metadata({_KEY: facts})


def _names(nuclei: Nuclei) -> pa.Array:
    """Return the names of types, which survive programs that lose the list of classes."""
    kinds, inverse = np.unique(nuclei.type, return_inverse=True)
    found = [type_name(nuclei.classes, kind) for kind in kinds.tolist()]
    names = list(dict.fromkeys(name for name in found if name is not None))
    codes = np.array([-1 if name is None else names.index(name) for name in found], np.int32)[inverse]
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(names, pa.string()))


def _facts_text(nuclei: Nuclei, metadata: Mapping[str, Any] | None) -> bytes:
    """Return what :func:`read_facts` reads."""
    facts: dict[str, Any] = {
        "version": SCHEMA_VERSION,
        "frame": PIXEL_CORNERS,
        "classes": classes_to_list(nuclei.classes),
        "metadata": dict(metadata or {}),
    }
    if nuclei.measurements:
        facts["measurements"] = list(nuclei.measurements)
    try:
        return json.dumps(facts).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata {metadata!r} cannot be stored as JSON ({error}); use plain data") from error


def from_arrow(table: pa.Table, *, outlines: bool = True) -> Nuclei:
    """Return the nuclei of a table made by :func:`to_arrow`, of a slice of one, or of several concatenated.

    Args:
        table: Other columns are ignored.
        outlines: Without, boxes and outlines are empty, and the table need not have them.

    Returns:
        The nuclei. Columns share the memory of the table where it holds one chunk, and are then read-only. The name of
        a type wins over its number. Coordinates of a table of version 1, which counts from the centres of pixels, are
        converted.

    Raises:
        DataError: If columns are missing or of another type, or the table is of a newer version.
    """
    facts = read_facts(table)
    shapes = {"bbox", "contour"} if outlines else set()
    missing = {"label", "type", "type_prob", "centroid", *shapes} - set(table.column_names)
    if missing:
        raise DataError(f"the table lacks the columns {sorted(missing)}; write it with cellvit.io.write_parquet")
    try:
        nuclei = Nuclei(
            centroid=matrix_of(table["centroid"], np.float64),
            type=_vector(table["type"], np.int32),
            type_prob=_vector(table["type_prob"], np.float32),
            **(_shapes(table) if outlines else _no_shapes(len(table))),
            label=_vector(table["label"], np.int32),
            embedding=matrix_of(table["embedding"], np.float32) if "embedding" in table.column_names else None,
            classes=classes_from_list(facts["classes"], source="the table"),
            measurements={
                name: _vector(table[name], np.float32)
                for name in facts.get("measurements", ())
                if name in table.column_names
            },
            mpp=mpp_of(facts["metadata"]),
        )
        nuclei = from_frame(nuclei, stated_frame(facts, "the table"))
        return _corrected(nuclei, table["classification"]) if "classification" in table.column_names else nuclei
    except DataError:
        raise
    except (AttributeError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"the table's columns are not those of nuclei ({error}); write it again") from error


def _shapes(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return boxes and outlines."""
    contour = _one_chunk(table["contour"])
    offsets = contour.offsets.to_numpy().astype(np.int64, copy=False)
    return {
        "bbox": matrix_of(table["bbox"], np.float64),
        "contour_offsets": offsets - offsets[0] if offsets[0] else offsets,
        "contour_points": matrix_of(contour.flatten(), np.float64),
    }


def _no_shapes(count: int) -> dict[str, NDArray[Any]]:
    points = np.zeros((0, 2))
    return {"bbox": np.zeros((count, 4)), "contour_offsets": np.zeros(count + 1, np.int64), "contour_points": points}


def _corrected(nuclei: Nuclei, names: Any) -> Nuclei:
    """Return nuclei with the types whose names a column holds, where someone has changed these."""
    column = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    column = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    values = column.dictionary.to_pylist()
    codes = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False).astype(np.int64)
    low = int(nuclei.type.min(initial=0))
    span = int(nuclei.type.max(initial=0)) - low + 1
    pairs, inverse = np.unique(codes * span + (nuclei.type - low), return_inverse=True)
    said = [((*values, None)[code], kind + low) for code, kind in (divmod(pair, span) for pair in pairs.tolist())]
    if all(type_name(nuclei.classes, kind) == name for name, kind in said):
        return nuclei
    types = StatedTypes(nuclei.classes, listed=True)
    found = np.array([types.code(StatedClass(name, given=True, color=None), kind) for name, kind in said], np.int64)
    kinds, classes, _ = types.resolve(found[inverse])
    return replace(nuclei, type=kinds, classes=classes)


def read_facts(table: pa.Table | pa.Schema) -> dict[str, Any]:
    """Return the ``version``, ``classes``, ``metadata`` and, if there are any, ``measurements`` stored with a table.

    Args:
        table: Made by :func:`to_arrow`, or read from Parquet; or the schema of such a table.

    Raises:
        DataError: If there are none, or they are of a newer version.
    """
    schema = table if isinstance(table, pa.Schema) else table.schema
    stored = (schema.metadata or {}).get(_KEY)
    if stored is None:
        raise DataError("the table holds no cellvit metadata; write it with cellvit.io.write_parquet")
    try:
        facts: dict[str, Any] = json.loads(stored)
        version = int(facts["version"])
        facts["classes"], facts["metadata"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"the table's cellvit metadata {stored[:80]!r} are damaged; write it again") from error
    if version > SCHEMA_VERSION:
        raise DataError(f"the table is of version {version}, this is for version {SCHEMA_VERSION}; update cellvit")
    return facts


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


def matrix_of(column: Any, dtype: Any) -> NDArray[Any]:
    """Return a column of fixed-size lists as ``(N, W)``.

    Args:
        column: An array of Arrow, or a chunked one.
        dtype: Of the result; where the column has it, memory is shared if it is one chunk.

    Raises:
        ValueError: If values are missing.
    """
    array = _one_chunk(column)
    return _vector(array.flatten(), dtype).reshape(len(array), array.type.list_size)
