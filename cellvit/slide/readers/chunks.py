"""What readers of tiles share: a region put together from chunks, and the chunks that were decoded last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from cellvit.io.images import Rgb8
from cellvit.slide.readers.base import Box, Size

_LOCKS = 64


def chunks_of(box: Box, chunk: Size) -> list[tuple[int, int]]:
    """Return ``(column, row)`` of each chunk that a region touches, row by row.

    Args:
        box: ``(x, y, width, height)`` in pixels of the level.
        chunk: ``(width, height)`` of a chunk.

    Example:
        >>> chunks_of((250, 10, 20, 20), (256, 256))
        [(0, 0), (1, 0)]
    """
    x, y, width, height = box
    columns = range(x // chunk[0], -(-(x + width) // chunk[0]))
    rows = range(y // chunk[1], -(-(y + height) // chunk[1]))
    return [(column, row) for row in rows for column in columns]


def assemble(box: Box, chunk: Size, get: Callable[[int, int], Rgb8]) -> Rgb8:
    """Return a region that lies inside a level, put together from its chunks, as a new array.

    Args:
        box: ``(x, y, width, height)`` in pixels of the level.
        chunk: ``(width, height)`` of a chunk.
        get: Returns the pixels ``(h, w, 3)`` of a chunk by column and row; at the edges it may be smaller or larger
            than the level.
    """
    x, y, width, height = box
    region = np.empty((height, width, 3), np.uint8)
    for column, row in chunks_of(box, chunk):
        left, top = column * chunk[0], row * chunk[1]
        pixels = get(column, row)
        x0, y0 = max(left, x), max(top, y)
        x1, y1 = min(left + pixels.shape[1], x + width), min(top + pixels.shape[0], y + height)
        region[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
    return region


class ChunkCache:
    """The chunks used last, up to a number of bytes.

    Args:
        max_bytes: Room for chunks.
        largest: The room may grow to this, where one region alone needs more than ``max_bytes``.
    """

    def __init__(self, max_bytes: int, *, largest: int) -> None:
        self._room, self._largest = max_bytes, largest
        self._chunks: OrderedDict[Hashable, Rgb8] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._decoding = [threading.Lock() for _ in range(_LOCKS)]

    def region(self, box: Box, chunk: Size, get: Callable[[int, int], Rgb8]) -> Rgb8:
        """Return a region as :func:`assemble` does, with room for its chunks and those of the next one in the row.

        Args:
            box: ``(x, y, width, height)`` in pixels of the level.
            chunk: ``(width, height)`` of a chunk.
            get: Returns the pixels of a chunk by column and row, by way of :meth:`get`.
        """
        self.reserve(2 * len(chunks_of(box, chunk)) * chunk[0] * chunk[1] * 3)
        return assemble(box, chunk, get)

    def reserve(self, needed: int) -> None:
        """Make room for the chunks of one region, so that the next region in the row finds them.

        Args:
            needed: Bytes of these chunks.
        """
        with self._lock:
            self._room = max(self._room, min(needed, self._largest))

    def get(self, key: Hashable, decode: Callable[[], Rgb8]) -> Rgb8:
        """Return a chunk; not to be changed.

        Args:
            key: Which chunk.
            decode: Makes it; called by one thread while others that want the same chunk wait.
        """
        found = self._look_up(key)
        if found is not None:
            return found
        with self._decoding[hash(key) % _LOCKS]:
            found = self._look_up(key)
            if found is None:
                found = decode()
                self._keep(key, found)
            return found

    def clear(self) -> None:
        """Forget all chunks."""
        with self._lock:
            self._chunks.clear()
            self._bytes = 0

    def _look_up(self, key: Hashable) -> Rgb8 | None:
        with self._lock:
            found = self._chunks.get(key)
            if found is not None:
                self._chunks.move_to_end(key)
            return found

    def _keep(self, key: Hashable, chunk: Rgb8) -> None:
        with self._lock:
            self._chunks[key] = chunk
            self._bytes += chunk.nbytes
            while self._bytes > self._room and len(self._chunks) > 1:
                self._bytes -= self._chunks.popitem(last=False)[1].nbytes
