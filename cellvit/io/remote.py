"""Files that lie at an address, such as ``https://`` or ``s3://``, as paths that are read in blocks through fsspec.

:func:`as_path` makes a path of what a user names: :class:`RemotePath` of an address, an ordinary one of anything else.
A remote path is a :class:`pathlib.Path` that knows what reading needs: whether it is there, its size, and its bytes.
Credentials are those of the environment, as the packages of fsspec read them.
"""

import hashlib
import io
import os
import re
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cellvit.errors import ConfigError, ImageError, SourceLostError
from cellvit.io.limits import stated_number
from cellvit.io.remote_requests import DeniedSourceError, MissingSourceError, patiently, timeout

CACHE_VARIABLE = "CELLVIT_REMOTE_CACHE_MB"
"""Environment variable with the memory for blocks of one remote file, in megabytes; processes inherit it."""

CACHE_MB = 64.0
"""Its default. Blocks of every file that is open are kept, and those of the one opened last."""

BLOCK_BYTES = 2**20
"""Read at once from a remote file."""

MARKERS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
"""A file of one of these names makes a folder a Zarr store; at an address it is what can be asked for."""

_END = 2**16  # bytes
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_COLLAPSED = re.compile(r"([a-z][a-z0-9+.-]+):/(?=[^/])")  # what `Path` makes of an address
_ETAGS = ("ETag", "etag", "md5Hash", "Content-MD5")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created")

if TYPE_CHECKING:
    _LocalPath = Path
else:
    _LocalPath = type(Path())  # before Python 3.12 `Path` itself cannot be derived from


def is_address(text: str) -> bool:
    """Tell whether a text is an address and not the path of a local file.

    Args:
        text: What a user names.

    Example:
        >>> [is_address(text) for text in ("s3://bucket/a.tif", "/data/a.tif", "C://a.tif")]
        [True, False, False]
    """
    return _ADDRESS.match(text) is not None


def as_path(path: str | Path) -> Path:
    """Return what a user names as a path; one that is a :class:`RemotePath` for an address.

    Args:
        path: A path, or an address such as ``https://host/a.ome.tif``, ``s3://bucket/a.zarr`` or ``file:///a.svs``.

    Raises:
        ImageError: If an address holds a password, or fsspec has no file system for it.
    """
    text = str(path)
    if isinstance(path, Path):
        if isinstance(path, RemotePath) or not _COLLAPSED.match(text) or path.exists():
            return path
        text = _COLLAPSED.sub(r"\1://", text, count=1)
    if not is_address(text):
        return Path(path)
    if urlsplit(text).scheme.lower() == "file":
        return Path(url2pathname(urlsplit(text).path))
    return RemotePath(text)


@dataclass(frozen=True)
class RemoteFacts:
    """What is known of a remote file without reading it; None where the place does not say so.

    Attributes:
        bytes: Its size.
        etag: A text that is another one when the content is.
        modified: When it was changed.
    """

    bytes: int | None
    etag: str | None
    modified: str | None

    @property
    def certain(self) -> bool:
        """Return whether another content would show."""
        return self.etag is not None or self.modified is not None


class RemotePath(_LocalPath):
    """A file, or a Zarr store, at an address. As text it is the address without what follows a question mark.

    Args:
        address: Such as ``https://host/a.ome.tif``.

    Attributes:
        address: As it was given; may hold a key behind a question mark, so it is not written anywhere.

    Raises:
        ImageError: If the address holds a password.
    """

    def __new__(cls, address: str) -> Self:  # noqa: D102
        return super().__new__(cls, _plain_parts(address))

    def __init__(self, address: str) -> None:
        if sys.version_info >= (3, 12):  # where paths are made here
            super().__init__(_plain_parts(address))
        _refuse_secrets(address)
        self.address = address
        self._kind: str | None = None
        self._document: RemotePath | None = None  # of a store, the file at its root that describes it

    def __reduce__(self) -> tuple[type["RemotePath"], tuple[str]]:
        return RemotePath, (self.address,)

    def __str__(self) -> str:
        return re.split(r"[?#]", self.address, maxsplit=1)[0]

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __truediv__(self, name: Any) -> "RemotePath":
        """Return a file below, as in a store."""
        return RemotePath(f"{str(self).rstrip('/')}/{name}{self.address.removeprefix(str(self))}")

    @property
    def parent(self) -> Path:  # type: ignore[override]
        """Return what lies above; for names only."""
        return Path(_plain_parts(self.address).replace(":", "_")).parent  # of a port; a name of results may have none

    def resolve(self, strict: bool = False) -> "RemotePath":
        """Return the path itself."""
        return self

    def absolute(self) -> "RemotePath":
        """Return the path itself."""
        return self

    def exists(self, **_: Any) -> bool:
        """Tell whether a file or a Zarr store is there.

        Raises:
            ImageError: If it cannot be found out.
        """
        return self._what() is not None

    def is_file(self, **_: Any) -> bool:
        """Tell whether it is a file."""
        return self._what() == "file"

    def is_dir(self, **_: Any) -> bool:
        """Tell whether it is a Zarr store; other folders are none, as not every place can list them."""
        return self._what() == "store"

    def is_symlink(self) -> bool:
        """Return False."""
        return False

    def stat(self, **_: Any) -> os.stat_result:
        """Return the size; what else local files have is 0.

        Raises:
            ImageError: If it is not there.
        """
        return os.stat_result((0, 0, 0, 0, 0, 0, self.facts().bytes or 0, 0, 0, 0))

    def open(self, mode: str = "rb", **_: Any) -> IO[bytes]:  # type: ignore[override]
        """Return the file for reading its bytes.

        Args:
            mode: "rb".

        Raises:
            ImageError: If it is not there, or its size is not known.
        """
        if mode != "rb":
            raise ConfigError(f"mode {mode!r}: what lies at an address is only read; write to a local file")
        facts = self.facts()
        if facts.bytes is None:
            raise ImageError(f"{str(self)!r}: the server does not say how large the file is; copy the file here")
        return cast("IO[bytes]", RemoteFile(self, _blocks(self, facts, cache_bytes())))

    def facts(self) -> RemoteFacts:
        """Ask for size, ETag and time, and return them.

        Raises:
            ImageError: If it is not there, or does not answer.
        """
        info = self._ask("info")
        etag = next((str(info[name]) for name in _ETAGS if info.get(name)), None)
        moment = next((info[name] for name in _TIMES if info.get(name)), None)
        modified = moment.isoformat() if isinstance(moment, datetime) else moment
        return RemoteFacts(info.get("size"), etag, None if modified is None else str(modified))

    def described_by(self) -> "RemotePath":
        """Return the file that stands for all that lies here: of a store that at its root, else the file itself."""
        return (self._document if self.is_dir() else None) or self

    def read_range(self, start: int | None = None, end: int | None = None) -> bytes:
        """Return some of its bytes, or all of them.

        Args:
            start: The first.
            end: The one after the last.

        Raises:
            ImageError: If it is not there, or does not answer.
        """
        data: bytes = self._ask("cat_file", start=start, end=end)
        if start is not None and end is not None and len(data) != end - start:
            why = "gives the whole file where a part is asked for" if len(data) > end - start else "cut it short"
            raise SourceLostError(f"{str(self)!r}: the server {why} (HTTP ranges); copy the file here")
        return data

    def file_system(self) -> tuple[Any, str]:
        """Return the file system of fsspec, and what it calls the file.

        Raises:
            ImageError: If fsspec has none, or a package is missing.
        """
        import fsspec

        try:
            found: tuple[Any, str] = fsspec.url_to_fs(self.address)
        except ImportError as error:
            raise ImageError(
                f"{str(self)!r} needs a package: {error}; from a checkout: pip install '.[remote]'"
            ) from error
        except ValueError as error:
            raise ImageError(
                f"{str(self)!r}: no file system is called {urlsplit(self.address).scheme!r}; give a local file, or an "
                "address such as https://, s3:// or gs://"
            ) from error
        return found

    def _ask(self, method: str, **arguments: Any) -> Any:
        """Return what a method of the file system answers, asked again where it failed."""
        files, name = self.file_system()
        within = {"timeout": timeout()} if files.async_impl else {}
        if method == "info":  # which is asked for to see whether the file is still the same
            files.invalidate_cache()
        return patiently(lambda: getattr(files, method)(name, **arguments, **within), self)

    def _what(self) -> str | None:
        """Return "file", "store", or None for what is not there."""
        if self._kind is None:
            kinds = [("file", self._is_file), ("store", self._is_store)]
            if self.suffix.lower() == ".zarr":  # of a folder some servers send a page that looks like a file
                kinds.reverse()
            self._kind = next((kind for kind, found in kinds if found()), None)
        return self._kind

    def _is_file(self) -> bool:
        try:
            return bool(self._ask("info").get("type", "file") == "file")
        except MissingSourceError:
            return False

    def _is_store(self) -> bool:
        denied: DeniedSourceError | None = None
        for marker in MARKERS:
            document = self / marker
            try:
                found = document.read_range().lstrip()[:1] == b"{"
            except MissingSourceError:
                continue
            except DeniedSourceError as error:  # another may be there, and be read
                denied = denied or error
            else:
                self._document = document if found else None
                return found
        if denied is not None:
            raise denied
        return False


class RemoteFile(io.RawIOBase):
    """A remote file that is open. Threads may call :meth:`read_at` at the same time.

    Args:
        path: Where it lies.
        blocks: What keeps its blocks, of fsspec.
    """

    def __init__(self, path: RemotePath, blocks: Any) -> None:
        self.path, self._blocks, self._place = path, blocks, 0

    @property
    def name(self) -> str:
        """Return its address."""
        return str(self.path)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte that is read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Choose the next byte, and return its offset.

        Args:
            offset: Bytes.
            whence: From where they count: the start, here, or the end.
        """
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._blocks.size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes, and return how many there were."""
        data = self.read_at(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def read_at(self, offset: int, count: int) -> bytes:
        """Return bytes from a place; fewer where the file ends.

        Args:
            offset: The first of them.
            count: How many.

        Raises:
            ImageError: If the file is no longer there, or does not answer.
        """
        data: bytes = self._blocks._fetch(offset, min(offset + count, self._blocks.size))
        return data


@lru_cache(maxsize=1)
def _blocks(path: RemotePath, facts: RemoteFacts, room: int) -> Any:
    """Return what keeps blocks of a file; the same as before where it is the file that was opened last, unchanged."""
    from fsspec.caching import BlockCache

    return BlockCache(
        BLOCK_BYTES,
        lambda start, end: path.read_range(start, min(end, facts.bytes or 0)),
        facts.bytes,
        maxblocks=max(1, room // BLOCK_BYTES),
    )


def forget_blocks() -> None:
    """Free the blocks of the file that was opened last."""
    _blocks.cache_clear()


def cache_bytes() -> int:
    """Return the memory for blocks of one remote file.

    Raises:
        ConfigError: If the environment variable is no number of megabytes greater than 0.
    """
    return int(stated_number(CACHE_VARIABLE, CACHE_MB, "megabytes") * 1e6)


def identity_of(path: RemotePath) -> dict[str, Any]:
    """Return what a remote file or store is known by, as plain data.

    Args:
        path: A file; of a store, the description at its root stands for all.

    Returns:
        Size, ETag and time of change, as :class:`RemoteFacts`; where neither of the last two is known, the SHA-256 of
        the beginning and the end as well.

    Raises:
        ImageError: If it is not there, or does not answer.
    """
    file = path.described_by()
    facts = file.facts()
    known = asdict(facts) | ({"of": file.name} if file is not path else {})
    if facts.certain:
        return known
    size = facts.bytes or 0
    parts = [file.read_range(start, end) for start, end in ((0, min(size, _END)), (max(0, size - _END), size))]
    return known | {"ends_sha256": hashlib.sha256(b"".join(parts)).hexdigest()}


def remote_remarks(path: Path) -> list[str]:
    """Return a sentence where a slide may change without notice, as its place does not say when it was changed.

    Args:
        path: The slide; of a local one there is nothing to say.
    """
    if not isinstance(path, RemotePath) or path.described_by().facts().certain:
        return []
    return [
        "its server states neither an ETag nor a time of change: if the slide is replaced by one of the same size "
        "before a stopped run goes on, that may not be noticed"
    ]


def _plain_parts(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}:/{parts.netloc.rpartition('@')[2]}{parts.path}"


def _refuse_secrets(address: str) -> None:
    """Raise where an address holds a password, which would end up in records; the message does not repeat it."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    if "::" in address:
        raise ImageError("an address with '::' joins several; give one, such as https://host/a.ome.tif")
    if at and (":" in user or parts.scheme.lower() in ("http", "https")):
        raise ImageError(
            f"the address at {host!r} holds a user or a password; leave them out: credentials are taken from the "
            "environment"
        )
