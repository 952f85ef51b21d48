"""Nuclei in chunks: what the writers of whole slides read, so that a slide need not fit into memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.types import Nuclei, NucleiClasses


class NucleiStream(Protocol):
    """Nuclei that come chunk by chunk, as often as asked for.

    Chunks have any size, also none, and the same classes, width of embedding and measurements; their order is that of
    the rows.
    """

    def __iter__(self) -> Iterator[Nuclei]:
        """Yield the chunks."""
        ...

    def __len__(self) -> int:
        """Return the number of nuclei."""
        ...

    @property
    def classes(self) -> NucleiClasses | None:
        """Names and colours of the types, or None if unnamed."""
        ...

    @property
    def embedding_dim(self) -> int | None:
        """Width of the embedding column, or None without one."""
        ...


class Patches(NamedTuple):
    """Where nuclei lie in the tiles of a slide, in the terms of the released JSON layout.

    Attributes:
        coordinates: ``(N, 2)`` integers, row and column of the tile.
        status: ``(N,)`` integers, 0 inside of the tile, 1 to 8 near its edge, clockwise from the top left corner.
        offset: ``(N, 2)`` integers, the tile's corner, (row, column) in pixels.
    """

    coordinates: NDArray[np.int64]
    status: NDArray[np.int64]
    offset: NDArray[np.int64]


@dataclass(frozen=True)
class TableStream:
    """A table in memory as a stream of one chunk.

    Attributes:
        nuclei: The table.
    """

    nuclei: Nuclei

    def __iter__(self) -> Iterator[Nuclei]:
        yield self.nuclei

    def __len__(self) -> int:
        return len(self.nuclei)

    @property
    def classes(self) -> NucleiClasses | None:
        """Names and colours of the types, or None if unnamed."""
        return self.nuclei.classes

    @property
    def embedding_dim(self) -> int | None:
        """Width of the embedding column, or None without one."""
        return None if self.nuclei.embedding is None else self.nuclei.embedding.shape[1]


def as_stream(nuclei: NucleiStream | Nuclei) -> NucleiStream:
    """Return a table as a stream of one chunk, and a stream as it is."""
    return TableStream(nuclei) if isinstance(nuclei, Nuclei) else nuclei


def blocks(
    chunks: Iterable[Nuclei],
    size: int,
    *,
    classes: NucleiClasses | None,
    embedding_dim: int | None,
    measurements: Sequence[str] | None = None,
) -> Iterator[tuple[int, Nuclei]]:
    """Yield the nuclei cut anew, so that what is written does not depend on how the chunks were cut.

    Args:
        chunks: Tables of any size. At most one of them, and one block, are held.
        size: Rows of a block; the last may have fewer, none has zero.
        classes: The types that every chunk must name.
        embedding_dim: The width of embedding that every chunk must have; None leaves embeddings out.
        measurements: The measurements that every chunk must have, in this order; None keeps those that all have.

    Yields:
        The number of the block's first row, and the block.

    Raises:
        DataError: If a chunk names its types differently, its embedding is missing or of another width, or it lacks a
            measurement.
    """
    held: list[Nuclei] = []
    first, count = 0, 0
    for chunk in chunks:
        start = 0
        fitting = _measured(_checked(chunk, first + count, classes, embedding_dim), first + count, measurements)
        while count + len(fitting) - start >= size:
            stop = start + size - count
            held.append(fitting[start:stop])
            yield first, _join(held)
            first, count, start = first + size, 0, stop
        if start < len(fitting):
            held.append(fitting[start:])
            count += len(fitting) - start
    if held:
        yield first, _join(held)


def _join(held: list[Nuclei]) -> Nuclei:
    """Return pieces as one table and let go of them."""
    joined = held[0] if len(held) == 1 else Nuclei.concatenate(held)
    held.clear()
    return joined


def _measured(chunk: Nuclei, row: int, names: Sequence[str] | None) -> Nuclei:
    """Return a chunk with the measurements of its stream; raise if it lacks one."""
    if names is None or tuple(chunk.measurements) == tuple(names):
        return chunk
    missing = [name for name in names if name not in chunk.measurements]
    if missing and len(chunk):
        raise DataError(f"the chunk at nucleus {row} lacks the measurements {missing}; measure all or none")
    return replace(chunk, measurements={n: chunk.measurements.get(n, np.zeros(0, np.float32)) for n in names})


def _checked(chunk: Nuclei, row: int, classes: NucleiClasses | None, embedding_dim: int | None) -> Nuclei:
    """Return a chunk with the classes and the embedding of its stream; raise if it has others."""
    if not isinstance(chunk, Nuclei):
        raise DataError(f"the chunk at nucleus {row} is no table of nuclei but {chunk!r}; pass a list of tables")
    if len(chunk) and chunk.classes != classes:
        names = [None if c is None else c.names for c in (chunk.classes, classes)]
        raise DataError(
            f"the chunk at nucleus {row} has the types {names[0]}, the stream {names[1]}; convert one first"
        )
    if embedding_dim is None or not len(chunk):
        return replace(chunk, embedding=None, classes=classes)
    width = None if chunk.embedding is None else chunk.embedding.shape[1]
    if width != embedding_dim:
        found = "no embedding" if width is None else f"embeddings of width {width}"
        raise DataError(f"the chunk at nucleus {row} has {found}, the stream {embedding_dim}; give all the same")
    return chunk
