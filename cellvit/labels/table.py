"""The table of labels beside the nuclei of a slide: who called which nucleus what, when, and where it stands."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from cellvit.errors import DataError
from cellvit.io.atomic import atomic_path
from cellvit.types import PIXEL_CORNERS

LABELS_FILE = "labels.parquet"
"""What the table is called in the folder of a slide's results."""

UNMATCHED = -1
"""In place of a row of nuclei: no nucleus lies at the label."""

WITHDRAWN = ""
"""In place of a class: whoever said it takes back what was said before."""

_VERSION = 1
_KEY = b"cellvit-labels"
_SCHEMA = pa.schema(
    [
        pa.field("nucleus", pa.int64(), nullable=False),
        pa.field("x", pa.float64(), nullable=False),
        pa.field("y", pa.float64(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("who", pa.string(), nullable=False),
        pa.field("when", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
_TEXT = ("class_name", "who", "source")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of the nuclei of one slide as columns; row ``i`` of every column is label ``i``, the oldest first.

    Attributes:
        nucleus: ``(N,)`` int64 row of the nucleus in the table that the labels were matched to; -1 matches none.
        x: ``(N,)`` float64, where the label stands: level-0 pixels, counted from the corners of pixels.
        y: ``(N,)`` float64, as ``x``.
        class_name: ``(N,)`` object, name of the class; the empty name withdraws what was said of the nucleus before.
        who: ``(N,)`` object, who gave the label.
        when: ``(N,)`` datetime64[ms], when it was taken in, UTC.
        source: ``(N,)`` object, name of the file it came from.
        matched_to: :func:`nuclei_digest` of the nuclei that ``nucleus`` counts; empty if unknown.

    Example:
        >>> labels = Labels.of(nucleus=[4, 7, 4], x=[1, 2, 1], y=[0, 0, 0], class_name=["A", "B", "B"])
        >>> labels.current().nucleus.tolist(), labels.current().class_name.tolist()
        ([4, 7], ['B', 'B'])
    """

    nucleus: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    class_name: NDArray[np.object_]
    who: NDArray[np.object_]
    when: NDArray[np.datetime64]
    source: NDArray[np.object_]
    matched_to: str = ""

    def __len__(self) -> int:
        return len(self.nucleus)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in _columns()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"columns of labels have different lengths {lengths}; every label needs one value of each")

    @classmethod
    def of(
        cls,
        *,
        nucleus: ArrayLike,
        x: ArrayLike,
        y: ArrayLike,
        class_name: Sequence[str] | NDArray[np.object_],
        who: str = "",
        when: np.datetime64 | None = None,
        source: str = "",
        matched_to: str = "",
    ) -> "Labels":
        """Return labels that one person gave at one time.

        Args:
            nucleus: ``(N,)`` rows of nuclei, -1 for none.
            x: ``(N,)`` level-0 pixels.
            y: ``(N,)`` level-0 pixels.
            class_name: ``(N,)`` names.
            who: Who gave them.
            when: UTC; None is 1970, before all others.
            source: Name of the file they came from.
            matched_to: Digest of the nuclei.
        """
        rows = np.array(nucleus, np.int64)
        return cls(
            nucleus=rows,
            x=np.array(x, np.float64),
            y=np.array(y, np.float64),
            class_name=np.array(class_name, object),
            who=np.full(len(rows), who, object),
            when=np.full(len(rows), np.datetime64(0, "ms") if when is None else when, "datetime64[ms]"),
            source=np.full(len(rows), source, object),
            matched_to=matched_to,
        )

    @classmethod
    def empty(cls) -> "Labels":
        """Return no labels."""
        return cls.of(nucleus=[], x=[], y=[], class_name=[])

    @classmethod
    def concatenate(cls, parts: "Sequence[Labels]") -> "Labels":
        """Return the labels of all parts, in order.

        Args:
            parts: Labels; those of several slides no longer say which nucleus they mean.

        Returns:
            The labels; ``matched_to`` is empty if the parts differ in it.
        """
        if not parts:
            return cls.empty()
        known = {part.matched_to for part in parts if len(part)}
        columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _columns()}
        return cls(**columns, matched_to=known.pop() if len(known) == 1 else "")

    def __getitem__(self, rows: slice | NDArray[Any]) -> "Labels":
        """Return the labels of a slice, a mask ``(N,)`` or indices ``(K,)``."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _columns()}
        return Labels(**columns, matched_to=self.matched_to)

    def current(self) -> "Labels":
        """Return what holds: the last label of each nucleus, unless it withdraws, in the order of the nuclei.

        A label that another one contradicts later is history. Of labels of the same time the later row is the last.
        Labels that match no nucleus are left out.
        """
        order = np.lexsort((np.arange(len(self)), self.when, self.nucleus))
        nucleus = self.nucleus[order]
        last = np.append(nucleus[1:] != nucleus[:-1], True)[: len(nucleus)]
        keep = last & (nucleus != UNMATCHED) & (self.class_name[order] != WITHDRAWN)
        return self[order[keep]]


def _columns() -> list[str]:
    return [field.name for field in fields(Labels) if field.name != "matched_to"]


def nuclei_digest(centroid: NDArray[np.float64]) -> str:
    """Return a digest of where nuclei lie, by which labels know whether they still mean the same rows.

    Types, embeddings and measurements do not enter: a table whose types were written anew keeps its labels.

    Args:
        centroid: ``(N, 2)`` ``(x, y)``, in the order of the table.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(str(len(centroid)).encode())
    digest.update(np.ascontiguousarray(centroid, "<f8").tobytes())
    return digest.hexdigest()


def write_labels(path: str | Path, labels: Labels) -> None:
    """Write labels as Parquet, complete or not at all.

    Columns: ``nucleus`` int64, ``x`` and ``y`` double, ``class``, ``who``, ``when`` (UTC) and ``source``. The metadata
    of the schema hold under ``cellvit-labels`` a JSON object with ``version``, ``frame`` (of coordinates) and
    ``nuclei``, the digest of the nuclei that the rows were matched to.

    Args:
        path: The file; of a slide :data:`LABELS_FILE` beside its nuclei.
        labels: The labels.

    Raises:
        DataError: If a coordinate is not finite.
        OutputError: If the file cannot be written.
    """
    if not (np.isfinite(labels.x).all() and np.isfinite(labels.y).all()):
        raise DataError(f"labels for {str(path)!r} stand at places that are no numbers (NaN or inf); leave those out")
    facts = {"version": _VERSION, "frame": PIXEL_CORNERS, "nuclei": labels.matched_to}
    columns = [labels.nucleus, labels.x, labels.y, labels.class_name, labels.who, labels.when, labels.source]
    columns[5] = labels.when.astype("datetime64[ms]")
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata({_KEY: json.dumps(facts)}))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_labels(path: str | Path) -> Labels:
    """Read labels.

    Args:
        path: A file of :func:`write_labels`, or the folder of a slide's results that has one.

    Raises:
        DataError: If there is none, or it is damaged, of a newer version, or not of labels.
    """
    path = Path(path)
    path = path / LABELS_FILE if path.is_dir() else path
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError as error:
        message = f"{str(path)!r} does not exist; cellvit.labels.import_labels makes it from annotations"
        raise DataError(message) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(path)!r} is no readable table of labels ({error}); import the labels again") from error
    facts = _facts(table.schema, path)
    try:
        columns = table.select(_SCHEMA.names).cast(_SCHEMA.remove_metadata())
    except (KeyError, ValueError) as error:  # Arrow's errors of a column that lacks or has another type
        raise DataError(f"{str(path)!r} is no table of labels ({error}); import the labels again") from error
    values: dict[str, Any] = {
        ("class_name" if name == "class" else name): columns[name].to_numpy() for name in _SCHEMA.names
    }
    values |= {name: values[name].astype(object) for name in _TEXT}
    values["when"] = values["when"].astype("datetime64[ms]")
    return Labels(**values, matched_to=facts["nuclei"])


def _facts(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Return what the file says of itself."""
    stored = (schema.metadata or {}).get(_KEY)
    if stored is None:
        raise DataError(f"{str(path)!r} is no table of labels; give one that `cellvit label import` has written")
    facts: dict[str, Any] = json.loads(stored)
    if facts["version"] > _VERSION:
        raise DataError(f"{str(path)!r} has version {facts['version']} of labels, this is {_VERSION}; update cellvit")
    return facts
