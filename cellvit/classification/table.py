"""Other types in a table of nuclei, row group by row group; the former ones stay in columns and can be brought back."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cellvit.classes import NucleiClasses, classes_from_list, classes_to_list
from cellvit.classification.classifier import UNSURE, TypeClassifier
from cellvit.classification.features import (
    NEIGHBORHOOD,
    Floats,
    assemble,
    measured_columns,
    neighborhood_means,
    neighbors,
    no_embeddings,
    uses_embedding,
)
from cellvit.classification.samples import embedding_model, refuse_other_model
from cellvit.errors import DataError
from cellvit.io.arrow import matrix_of, read_facts
from cellvit.io.atomic import atomic_path
from cellvit.io.parquet import ParquetStream
from cellvit.io.provenance import mpp_of
from cellvit.measurement.neighbors import nearest_of_types, neighbor_columns
from cellvit.types import Nuclei

Progress = Callable[[int, int], None]

PROBABILITIES = "type_probabilities"
BEFORE = "_before"
"""What the names of columns of former types end in."""

_KEY, _BEFORE_KEY = b"cellvit", b"cellvit-before"
_TYPES = ("type", "classification", "type_prob")


@dataclass(frozen=True)
class Scores:
    """Types of all nuclei of a table.

    Attributes:
        kind: ``(N,)`` ids of the new classes.
        probabilities: ``(N, K)`` float32 of the types of the classifier.
        centroid: ``(N, 2)``.
        notes: What the user should know.
    """

    kind: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    centroid: NDArray[np.float64]
    notes: tuple[str, ...]


class TypedTable:
    """A table of nuclei as the model wrote it, whatever types it has now.

    Args:
        path: The file.

    Attributes:
        path: The file.
        facts: What the table said of itself before other types were applied.
        columns: Its columns then, and what each is called now.
        width: Numbers of an embedding; None without any.
        classifier: What is noted of the classifier whose types it has now; None for those of the model.

    Raises:
        DataError: If it is no table of nuclei.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ParquetStream(path)  # refuses what is missing, damaged, not of nuclei or too large
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            self.rows: int = file.metadata.num_rows
            self.groups: int = file.num_row_groups
        now = read_facts(schema)
        self.classifier: Mapping[str, Any] | None = now["metadata"].get("classifier")
        before = json.loads((schema.metadata or {}).get(_BEFORE_KEY, b"null"))
        self._facts_text: str = before["facts"] if before else schema.metadata[_KEY].decode()
        self.facts: dict[str, Any] = json.loads(self._facts_text)
        names: list[str] = before["columns"] if before else schema.names
        self.columns = {name: name + BEFORE if before and name + BEFORE in schema.names else name for name in names}
        place = self.columns.get("embedding")
        self.width: int | None = None if place is None else schema.field(place).type.list_size

    @property
    def measurements(self) -> list[str]:
        """Names of what was measured."""
        return [name for name in self.facts.get("measurements", ()) if name in self.columns]

    @property
    def by_type(self) -> list[str]:
        """Names of measurements that depend on the former types."""
        classes = classes_from_list(self.facts["classes"], source=str(self.path))
        start = len(neighbor_columns(None))
        names = [name for unit in ("um", "px") for name in neighbor_columns(classes, unit=unit)[start:]]
        return [name for name in self.measurements if name in names]

    def former(self, table: pa.Table) -> pa.Table:
        """Return a row group, or some of its columns, as it was before other types were applied."""
        chosen = {now: name for name, now in self.columns.items() if now in table.column_names}
        metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != _BEFORE_KEY}
        kept = table.select(list(chosen)).rename_columns(list(chosen.values()))
        return kept.replace_schema_metadata({**metadata, _KEY: self._facts_text.encode()})

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the row groups as they were; the next one is read while one is worked on.

        Args:
            columns: Former names of the columns to read; None reads all.
        """
        wanted = None if columns is None else [self.columns[name] for name in columns]
        with pq.ParquetFile(self.path) as file, ThreadPoolExecutor(1) as ahead:
            if not self.groups:
                yield self.former(file.schema_arrow.empty_table())
                return

            def read(group: int) -> pa.Table:
                try:
                    return self.former(file.read_row_group(group, columns=wanted))
                except (OSError, pa.ArrowException) as error:
                    raise DataError(f"{str(self.path)!r} is damaged ({error}); put a copy back") from error

            following = ahead.submit(read, 0)
            for group in range(self.groups):
                table = following.result()
                if group + 1 < self.groups:
                    following = ahead.submit(read, group + 1)
                yield table


def score_table(table: TypedTable, classifier: TypeClassifier, *, progress: Progress | None = None) -> Scores:
    """Return what a classifier says of all nuclei of a table; of embeddings few are in memory.

    Args:
        table: The table.
        classifier: Fitted.
        progress: Called with the number of nuclei that are done and of all.

    Raises:
        DataError: If embeddings are of another model, or features are missing.
    """
    source, features = repr(str(table.path)), classifier.features
    measured = measured_columns(features, table.measurements, source=source)
    metadata = table.facts["metadata"]
    notes = []
    if uses_embedding(features):
        if table.width is None:
            raise no_embeddings(source)
        known = getattr(classifier, "embedding_model_", None)
        notes = refuse_other_model(known, embedding_model(metadata, table.width), source=source)
    columns = ["centroid", *(["embedding"] if uses_embedding(features) else []), *measured]
    around = _around(table, metadata) if NEIGHBORHOOD in features else None
    centroid, found, done = [np.zeros((0, 2))], [np.zeros((0, len(classifier.classes_)), np.float32)], 0
    for chunk in table.chunks(columns):
        nuclei = _light(chunk, measured)
        nearby = None if around is None else around(done, len(nuclei))
        features_of = assemble(nuclei, features, nearby, source=source)
        found.append(classifier.probabilities(features_of).astype(np.float32))
        centroid.append(nuclei.centroid)
        done += len(nuclei)
        if progress is not None:
            progress(done, table.rows)
    probabilities = np.concatenate(found)
    kind = classifier.codes_of(probabilities)
    if unknown := int((kind == 0).sum()):
        notes.append(f"{source}: {unknown:,} nuclei have no type, as their embeddings are no numbers (NaN or inf)")
    return Scores(kind, probabilities, np.concatenate(centroid), tuple(notes))


def _light(chunk: pa.Table, measured: Sequence[str]) -> Nuclei:
    """Return the nuclei of a row group without outlines and boxes."""
    count = len(chunk)
    centroid = matrix_of(chunk["centroid"], np.float64)
    embedding = matrix_of(chunk["embedding"], np.float32) if "embedding" in chunk.column_names else None
    return replace(
        Nuclei.empty(),
        centroid=centroid,
        bbox=np.zeros((count, 4)),
        type=np.zeros(count, np.int32),
        type_prob=np.zeros(count, np.float32),
        label=np.zeros(count, np.int32),
        contour_offsets=np.zeros(count + 1, np.int64),
        embedding=embedding,
        measurements={name: chunk[name].to_numpy() for name in measured},
    )


def _around(table: TypedTable, metadata: Mapping[str, Any]) -> Callable[[int, int], Floats]:
    """Return what gives the mean embeddings around a run of nuclei; embeddings lie in a file that is removed."""
    first = table.width or 0
    everywhere: Any = np.zeros((0, first), np.float32)
    if table.rows:
        with TemporaryFile(dir=table.path.parent) as file:  # the array keeps it until nobody needs it
            file.truncate(table.rows * first * 4)
            everywhere = np.memmap(file, np.float32, "r+", shape=(table.rows, first))
    centers, start = [np.zeros((0, 2))], 0
    for chunk in table.chunks(["embedding", "centroid"]):
        nuclei = _light(chunk, ())
        assert nuclei.embedding is not None
        everywhere[start : start + len(nuclei)] = nuclei.embedding
        centers.append(nuclei.centroid)
        start += len(nuclei)
    points = np.concatenate(centers)
    count = len(points)
    whole = _light(pa.table({"centroid": pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), 2)}), ())
    found = neighbors(replace(whole, mpp=mpp_of(metadata)), np.arange(count))

    def means(start: int, number: int) -> Floats:
        rows = np.arange(start, start + number)
        return neighborhood_means(everywhere, found[start : start + number], rows)

    return means


def write_types(
    table: TypedTable,
    scores: Scores,
    classifier: TypeClassifier,
    *,
    about: Mapping[str, Any],
    mpp: tuple[float, float] | None,
    progress: Progress | None = None,
) -> None:
    """Write a table anew with other types; nothing else in it changes but what depends on types.

    ``type``, ``classification`` and ``type_prob`` are the new ones, and ``type_probabilities`` are of every type of
    the classifier. What the table had before is in columns whose names end in ``_before``: these three, and the
    distances to the nearest nucleus of each type, which are measured anew.

    Args:
        table: The table.
        scores: From :func:`score_table`.
        classifier: What they are from.
        about: What is noted of the classifier in the metadata of the table.
        mpp: ``(x, y)`` microns per pixel; None where not known.
        progress: Called with the number of nuclei that are done and of all.

    Raises:
        OutputError: If it cannot be written; the table is then as it was.
    """
    classes, by_type = classifier.nuclei_classes, table.by_type
    nearest = {}
    if by_type:
        in_microns = by_type[0].endswith("_um")
        count = len(classifier.classes_) + 1
        named = NucleiClasses(classes.names[:count], classes.colors[:count])  # of unsure ones nobody asks who is near
        nearest = nearest_of_types(scores.centroid, scores.kind, classes=named, mpp=mpp if in_microns else None)
    facts = {**table.facts, "classes": classes_to_list(classes)}
    facts["metadata"] = {**facts["metadata"], "classifier": dict(about)}
    if "measurements" in facts:
        facts["measurements"] = [*(name for name in table.measurements if name not in by_type), *nearest]
    before = {"facts": table._facts_text, "columns": list(table.columns)}
    texts = {_KEY: json.dumps(facts).encode(), _BEFORE_KEY: json.dumps(before).encode()}
    new = _Columns(scores, classes, nearest, (*_TYPES, *by_type))

    def retyped() -> Iterator[pa.Table]:
        start = 0
        for chunk in table.chunks():
            found = new.replace(chunk, start)
            yield found.replace_schema_metadata({**(chunk.schema.metadata or {}), **texts})
            start += len(chunk)

    _write(retyped(), table, progress)


def write_former(table: TypedTable, *, progress: Progress | None = None) -> None:
    """Write a table anew with the types that its model gave, and all else as it was then.

    Args:
        table: One with types of a classifier.
        progress: Called with the number of nuclei that are done and of all.

    Raises:
        OutputError: If it cannot be written; the table is then as it was.
    """
    _write(table.chunks(), table, progress)


@dataclass(frozen=True)
class _Columns:
    """The columns that replace others."""

    scores: Scores
    classes: NucleiClasses
    nearest: Mapping[str, NDArray[np.float32]]
    former: tuple[str, ...]

    def replace(self, chunk: pa.Table, start: int) -> pa.Table:
        """Return a row group with the new types; ``start`` is the number of its first nucleus."""
        rows = slice(start, start + len(chunk))
        kind, found = self.scores.kind[rows], self.scores.probabilities[rows]
        best = np.where(kind > 0, found.max(axis=1, initial=0) if len(found) else 0, np.nan).astype(np.float32)
        names = pa.array(self.classes.names[1:], pa.string())
        codes = pa.array((kind - 1).astype(np.int32), mask=kind < 1)
        values = {
            "type": pa.array(kind, pa.int32()),
            "classification": pa.DictionaryArray.from_arrays(codes, names),
            "type_prob": pa.array(best),
        }
        gone = set(self.former) - set(_TYPES)
        columns = {name: values.get(name, chunk[name]) for name in chunk.column_names if name not in gone}
        columns |= {name: pa.array(column[rows]) for name, column in self.nearest.items()}
        flat = pa.array(np.ascontiguousarray(found).reshape(-1), pa.float32())
        columns[PROBABILITIES] = pa.FixedSizeListArray.from_arrays(flat, found.shape[1])
        return pa.table(
            {**columns, **{name + BEFORE: chunk[name] for name in self.former if name in chunk.column_names}}
        )


def _write(chunks: Iterator[pa.Table], table: TypedTable, progress: Progress | None) -> None:
    """Write row groups in place of a table."""
    first = next(chunks)
    # as in the table of a slide: to look for numbers that repeat would take most of the time
    texts = [field.name for field in first.schema if pa.types.is_dictionary(field.type)]
    settings: dict[str, Any] = {"compression": "zstd", "use_dictionary": texts}
    done = 0
    with atomic_path(table.path) as temporary, pq.ParquetWriter(temporary, first.schema, **settings) as writer:
        while first is not None:
            writer.write_table(first, row_group_size=max(1, len(first)))
            done += len(first)
            if progress is not None:
                progress(done, table.rows)
            first = next(chunks, None)


def counts_of(kind: NDArray[np.int32], classes: NucleiClasses) -> NDArray[np.int64]:
    """Return the number of nuclei of every class, ``(C,)``."""
    return np.bincount(kind, minlength=len(classes)).astype(np.int64)


def unsure_of(kind: NDArray[np.int32], classes: NucleiClasses) -> int:
    """Return the number of nuclei of which the classifier is not sure."""
    return int((kind == len(classes) - 1).sum()) if classes.names[-1] == UNSURE else 0
