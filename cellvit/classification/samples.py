"""Labelled nuclei of many slides as a matrix to learn from; of a table only what is needed is held in memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classification.features import (
    NEIGHBORHOOD,
    Floats,
    assemble,
    embedded_columns,
    neighborhood_means,
    neighbors,
    uses_embedding,
)
from cellvit.errors import DataError
from cellvit.inference.assemble import TABLE
from cellvit.io.parquet import ParquetStream
from cellvit.labels.match import labels_of
from cellvit.labels.table import LABELS_FILE
from cellvit.types import Nuclei

_FACTS = ("model", "weights_hash", "embedding")


@dataclass(frozen=True)
class Sample:
    """Labelled nuclei of all slides.

    Attributes:
        x: ``(N, F)`` features.
        name: ``(N,)`` object, types.
        group: ``(N,)`` number of the slide.
        nuclei: The nuclei; types are those that the table had.
        tables: The table of each slide.
        model: What made the embeddings; None where no table says.
        notes: What the user should know.
    """

    x: Floats
    name: NDArray[np.object_]
    group: NDArray[np.int64]
    nuclei: Nuclei
    tables: tuple[Path, ...]
    model: Mapping[str, Any] | None
    notes: tuple[str, ...]


def embedding_model(metadata: Mapping[str, Any], width: int | None) -> dict[str, Any] | None:
    """Return what made the embeddings of a table, from its metadata: ``model``, ``weights_hash`` and their width.

    Args:
        metadata: Of the table.
        width: Numbers of an embedding; None without any.

    Returns:
        The facts; None where the table does not say, or has no embeddings.
    """
    if width is None or not metadata.get("model"):
        return None
    return {**{name: metadata[name] for name in _FACTS if metadata.get(name)}, "width": width}


def refuse_other_model(known: Mapping[str, Any] | None, other: Mapping[str, Any] | None, *, source: str) -> list[str]:
    """Raise DataError if embeddings are of different models; return what is to be said if that is not known.

    Args:
        known: Of the classifier, or of the labels before.
        other: Of a table.
        source: The table, for the message.
    """
    if known is None or other is None:
        return [f"{source}: by which model the embeddings were made is not known, and was not compared"]
    differs = [
        name for name in (*_FACTS[1:], "width") if name in known and name in other and known[name] != other[name]
    ]
    compared = "weights_hash" in known and "weights_hash" in other
    if differs or (not compared and known["model"] != other["model"]):
        raise DataError(
            f"{source} holds embeddings of model {_named(other)}, and the classifier is for those of "
            f"{_named(known)}: they have nothing in common; segment these slides with that model, or train on labels "
            "of these"
        )
    return []


def _named(model: Mapping[str, Any]) -> str:
    weights = str(model.get("weights_hash", ""))[:12]
    return f"{model['model']!r} ({f'weights {weights}, ' if weights else ''}{model['width']} numbers)"


def read_sample(sources: Sequence[str | Path], features: Sequence[str], *, without: Sequence[str] = ()) -> Sample:
    """Read the labelled nuclei of slides.

    Args:
        sources: Result folders with labels, or the labels beside the nuclei.
        features: What the classifier is told, see :mod:`cellvit.classification.features`.
        without: Types to leave out.

    Returns:
        The nuclei that have a label which holds now.

    Raises:
        DataError: If a folder lacks nuclei, labels or features, no label is of a nucleus, or embeddings are of
            different models.
    """
    parts: list[tuple[Nuclei, Floats, NDArray[np.object_]]] = []
    tables, notes, model = list[Path](), list[str](), None
    for source in sources:
        table = _table_of(Path(source))
        if table.resolve() in [other.resolve() for other in tables]:
            continue
        labels = labels_of(table).current()
        labels = labels[~np.isin(labels.class_name, list(without))]
        if not len(labels):
            notes.append(f"{str(source)!r}: no label is of a nucleus; see `cellvit label import`")
            continue
        stream = ParquetStream(table, embedding=uses_embedding(features))
        found = embedding_model(stream.metadata, stream.embedding_dim)
        if parts and uses_embedding(features):
            notes += refuse_other_model(model, found, source=repr(str(table)))
        model = model or found
        nuclei, x = rows_of(stream, labels.nucleus, features)
        known = np.asarray(np.isfinite(x[:, : embedded_columns(nuclei, features)]).all(axis=1))
        if not known.all():
            text = f"{int((~known).sum())} labelled nuclei have embeddings that are no numbers and are left out"
            notes.append(f"{str(source)!r}: {text}")
        parts.append((nuclei.select(known), x[known], labels.class_name[known]))
        tables.append(table)
    if not parts:
        raise DataError(
            f"no labelled nucleus in {[str(s) for s in sources]}; take labels in with `cellvit label import`"
        )
    names, said = one_spelling(np.concatenate([name for _, _, name in parts]))
    return Sample(
        x=np.concatenate([x for _, x, _ in parts]),
        name=names,
        group=np.repeat(np.arange(len(parts)), [len(x) for _, x, _ in parts]),
        nuclei=Nuclei.concatenate([_plain(nuclei) for nuclei, _, _ in parts]),
        tables=tuple(tables),
        model=model,
        notes=(*notes, *said),
    )


def _plain(nuclei: Nuclei) -> Nuclei:
    """Return nuclei without types, whose names may differ among slides."""
    return replace(nuclei, classes=None, measurements={}, type=np.zeros(len(nuclei), np.int32))


def _table_of(path: Path) -> Path:
    """Return the table of nuclei that a source of labels stands for."""
    if path.is_dir():
        table = path / TABLE
    elif path.name == LABELS_FILE:
        table = path.with_name(TABLE)
    else:
        table = path.with_name(path.name.replace(".labels.parquet", ".parquet"))
    if table.suffix != ".parquet" or not table.is_file():
        raise DataError(
            f"{str(path)!r}: no table of nuclei {str(table)!r}; give the result folder of a slide, or labels"
        )
    return table


def one_spelling(names: NDArray[np.object_]) -> tuple[NDArray[np.object_], list[str]]:
    """Return names of types of which none differ in case, spaces and marks only, and what was made one.

    Args:
        names: ``(N,)``; of several spellings the most frequent counts.

    Example:
        >>> one_spelling(np.array(["Tumour", "tumour ", "Tumour", "stroma"], object))
        (array(['Tumour', 'Tumour', 'Tumour', 'stroma'], dtype=object), ["'tumour ' is taken for 'Tumour'"])
    """
    counted = Counter(names.tolist())
    chosen: dict[str, str] = {}
    for name, _ in counted.most_common():
        chosen.setdefault(_letters(name), name)
    said = [f"{name!r} is taken for {chosen[_letters(name)]!r}" for name in counted if chosen[_letters(name)] != name]
    return np.array([chosen[_letters(name)] for name in names], object), said


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name


def rows_of(stream: ParquetStream, rows: NDArray[np.int64], features: Sequence[str]) -> tuple[Nuclei, Floats]:
    """Return some nuclei of a table and their features; of the others only centres, and neighbours, are held.

    Args:
        stream: The table.
        rows: ``(R,)`` ascending.
        features: What the classifier is told.

    Raises:
        DataError: If a row is not there, or features are missing.
    """
    source = repr(str(stream.path))
    if len(rows) and rows[-1] >= len(stream):
        raise DataError(f"labels mean nucleus {rows[-1]} of {len(stream)} in {source}; match them again")
    if NEIGHBORHOOD not in features:
        nuclei = _gathered(stream, rows)
        return nuclei, assemble(nuclei, features, source=source)
    everywhere = Nuclei.concatenate([_centers(chunk) for chunk in ParquetStream(stream.path, embedding=False)])
    found = neighbors(everywhere, rows)
    needed = np.unique(np.append(rows, found[found < len(everywhere)]))
    nearby = _gathered(stream, needed)
    if nearby.embedding is None:
        return nearby, assemble(nearby, features, source=source)  # raises what is missing
    place = np.where(found < len(everywhere), np.searchsorted(needed, found), len(needed))
    own = np.searchsorted(needed, rows)
    nuclei = nearby.select(own)
    around = neighborhood_means(nearby.embedding, place, own)
    return nuclei, assemble(nuclei, features, around, source=source)


def _gathered(stream: ParquetStream, rows: NDArray[np.int64]) -> Nuclei:
    """Return some nuclei of a stream."""
    parts, start = list[Nuclei](), 0
    for chunk in stream:
        inside = rows[(rows >= start) & (rows < start + len(chunk))] - start
        parts.append(chunk.select(inside))
        start += len(chunk)
    return Nuclei.concatenate(parts)


def _centers(nuclei: Nuclei) -> Nuclei:
    """Return nuclei without what takes memory."""
    offsets, points = np.zeros(len(nuclei) + 1, np.int64), np.zeros((0, 2))
    return replace(nuclei, measurements={}, embedding=None, contour_offsets=offsets, contour_points=points)
