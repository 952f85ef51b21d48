"""Zarr stores in folders, in archives and at addresses, opened to be read.

What a store does not hold is a missing chunk to zarr, which is no error. So a store that goes away while it is read
would turn into background; :class:`WatchedStore` sees to it that it is an error instead.
"""

import asyncio
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from cellvit.errors import ImageError
from cellvit.io.images import one_line
from cellvit.io.ngff import root_in
from cellvit.io.remote import MARKERS, RemotePath
from cellvit.io.remote_requests import DeniedSourceError, gone

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

_BATCH = 16
_DOCUMENTS = {*MARKERS, ".zmetadata"}


class WatchedStore(WrapperStore[Store]):
    """A store that is only read, and of which it is noticed when it goes away.

    Attributes:
        path: Where it lies.
        missing: Number of chunks that were asked for and are not stored.
    """

    def __init__(self, store: Store, path: Path) -> None:
        super().__init__(store)
        self.path, self.missing = path, 0
        self._marker: str | None = None

    def _with_store(self, store: Store) -> "WatchedStore":
        return WatchedStore(store, self.path)

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: ByteRequest | None = None
    ) -> "Buffer | None":
        """Return what is stored under a key, or None for a chunk that is missing.

        Raises:
            ImageError: If the whole store is missing.
        """
        found = await self._store.get(key, prototype, byte_range)
        is_document = key.rpartition("/")[2] in _DOCUMENTS
        if is_document and found is not None and self._marker is None:
            self._marker = key
        if found is None and not is_document and self._marker is not None:
            if await self._store.get(self._marker, prototype) is None:
                raise gone(self.path)
            self.missing += 1
        return found


class _RemoteStore(FsspecStore):
    """A store at an address, whose requests are repeated and end after a time, as those of remote files."""

    def __init__(self, place: RemotePath) -> None:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        files, name = place.file_system()
        super().__init__(AsyncFileSystemWrapper(files, asynchronous=True), read_only=True, path=name.rstrip("/"))
        self._place = place

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: ByteRequest | None = None
    ) -> "Buffer | None":
        start, end = _limits(byte_range)
        try:
            data = await asyncio.to_thread((self._place / key).read_range, start, end)
        except FileNotFoundError:
            return None
        except DeniedSourceError:
            if key.rpartition("/")[2] in _DOCUMENTS:  # that of another version: some servers deny what is not there
                return None
            raise
        return prototype.buffer.from_bytes(data)


class _ArchiveStore(FsspecStore):
    """A store in an archive that is open."""

    def __init__(self, files: Any, root: str, packed: IO[bytes]) -> None:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        super().__init__(AsyncFileSystemWrapper(files, asynchronous=True), read_only=True, path=root)
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def open_store(path: Path) -> tuple[Any, WatchedStore]:
    """Return the group at the root of a store, and the store.

    Args:
        path: A folder, an archive, or the address of one of them.

    Raises:
        ImageError: If there is none, or it is an array that no group describes.
    """
    store = WatchedStore(_store_of(path), path)
    try:
        return zarr.open_group(store, mode="r"), store
    except ImageError:
        store.close()
        raise
    except Exception as error:  # zarr has errors of its own, which differ between its versions
        what = "an array, which nothing describes as an image" if _is_array(store) else "no Zarr store that can be read"
        store.close()
        raise ImageError(
            f"{str(path)!r} is {what} ({one_line(error)}); name the folder of an OME-Zarr image, or write it again "
            "as OME-Zarr 0.4 or 0.5"
        ) from error


def open_array(group: Any, place: str) -> Any:
    """Return an array whose chunks are decoded several at a time, which saves a tenth of the time.

    Args:
        group: The group.
        place: Path of the array in it.

    Raises:
        KeyError: If there is none.
    """
    with zarr.config.set({"codec_pipeline.batch_size": _BATCH}):  # read when an array is opened
        return group[place]


def can_list(path: Path) -> bool:
    """Tell whether the place of a store says what lies in it; a web server does not.

    Args:
        path: The store.
    """
    return not (isinstance(path, RemotePath) and path.is_dir() and path.address.lower().startswith("http"))


def missing_chunks(array: Any, total: int) -> int:
    """Return how many chunks, or shards, of an array are not stored.

    Args:
        array: The array, in a store that can be listed.
        total: How many it would have.
    """

    async def count() -> int:
        keys = [key async for key in array.store.list_prefix(f"{array.path}/")]
        return sum(key.rpartition("/")[2] not in _DOCUMENTS for key in keys)

    return total - int(sync(count()))


def _is_array(store: Store) -> bool:
    try:
        zarr.open_array(store, mode="r")
    except Exception:  # see above
        return False
    return True


def _store_of(path: Path) -> Store:
    if path.is_dir():
        return _RemoteStore(path) if isinstance(path, RemotePath) else LocalStore(path, read_only=True)
    return _archive(path)


def _archive(path: Path) -> Store:
    """Return the store in a zip archive, at its root or in a folder of it."""
    from fsspec.implementations.zip import ZipFileSystem

    packed = path.open("rb")
    try:
        files = ZipFileSystem(packed)
    except zipfile.BadZipFile as error:
        packed.close()
        raise ImageError(f"{str(path)!r} is no zip archive, or cut short ({error}); copy it again") from error
    root = root_in(files.zip.namelist())
    if root is None:
        packed.close()
        raise ImageError(f"{str(path)!r} is an archive without a Zarr store in it; pack the folder of one")
    return _ArchiveStore(files, root, packed)


def _limits(byte_range: ByteRequest | None) -> tuple[int | None, int | None]:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, None
    return (-byte_range.suffix, None) if isinstance(byte_range, SuffixByteRequest) else (None, None)
