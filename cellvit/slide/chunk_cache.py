"""Decoded pieces of an image file, kept while there is room: each is decoded once for all threads that want it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from cellvit.slide.reader import Rgb8

_LOCKS = 64


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
