"""Files that are either complete or not there: written beside their place under another name, then renamed."""

import errno
import gzip
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TextIO

from cellvit.errors import CellViTError, OutputError

_TEMPORARY = re.compile(r"\.cellvit-[0-9a-f]{16}(\.[^.]+)?")
_STORE = (".zarr", ("zarr.json", ".zgroup"))  # what a folder that is one result is called, and what lies in it

_ADVICE = {
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of its folder's path is a file; choose another folder",
    errno.EISDIR: "a folder of that name exists; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Return a context that yields a temporary path to write to and renames it to ``path`` at the end.

    The temporary file lies in the same folder and has the same suffix. If the block raises, it is removed and
    whatever was at ``path`` before stays untouched.

    Args:
        path: Where the finished file is to be. A symbolic link is followed.

    Yields:
        The temporary path; an empty file is already there.

    Raises:
        OutputError: If the file cannot be created, written or renamed; the message says what to do.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target = Path(os.path.realpath(target))
        _refuse_special(target)
        # the mode lets the user's umask decide, which tempfile.mkstemp would not
        temporary = temporary_path(target)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        temporary = None
        with suppress(OSError):  # the file is complete; not every file system lets a folder be synced
            _sync(target.parent)
    except CellViTError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the folder and the disk")
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {str(path)!r}: {reason}; {advice}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def atomic_text(path: str | Path) -> Iterator[TextIO]:
    """Return a context that yields a UTF-8 text stream to a file which appears when complete.

    Args:
        path: Where the finished file is to be; a name that ends in ``.gz`` is compressed. The same text gives the
            same bytes, as neither name nor time enter the compressed file. What UTF-8 cannot hold, such as a file name
            of another encoding, is written as an escape, which JSON reads back.

    Yields:
        The stream.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        if Path(path).suffix == ".gz":
            with (
                gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=5, mtime=0) as packed,
                io.TextIOWrapper(packed, encoding="utf-8", errors="backslashreplace", newline="\n") as stream,
            ):
                yield stream
        else:
            with io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
                yield stream


@contextmanager
def atomic_store(path: Path) -> Iterator[Path]:
    """Return a context that yields the name for a new Zarr store, which takes the place of ``path`` at the end.

    Args:
        path: The folder; a store that is there is replaced, anything else is not.

    Yields:
        The temporary path, where nothing is yet.

    Raises:
        OutputError: If the store cannot be written, or something else of that name exists.
    """
    target = Path(os.path.realpath(path))
    temporary, old = temporary_path(target), temporary_path(target)
    try:
        _check_place(target)
        yield temporary
        with suppress(FileNotFoundError):
            target.rename(old)
        temporary.rename(target)
    except CellViTError:
        raise
    except OSError as error:
        message = f"cannot write {str(path)!r}: {error.strerror or error}; check the folder and the disk"
        raise OutputError(message) from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Return a context that yields an empty folder, which is called ``path`` at the end.

    Args:
        path: What must not exist; the folders above it are made. If the block raises, nothing is there.

    Yields:
        The temporary folder.

    Raises:
        OutputError: If something of that name exists, or the folder cannot be written.
    """
    target = Path(path)
    if os.path.lexists(target):
        raise OutputError(f"cannot write the folder {str(path)!r}: it exists; choose another name, or remove it first")
    make_folder(target.parent)
    temporary = temporary_path(target)
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(target)
    except CellViTError:
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the folder and the disk")
        raise OutputError(f"cannot write the folder {str(path)!r}: {error.strerror or error}; {advice}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Args:
        folder: The folder.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot make the folder {str(folder)!r} ({reason}); choose another out=FOLDER") from error


def temporary_path(target: Path) -> Path:
    """Return a new name beside a file; a process that is killed leaves what it has written there behind."""
    return target.with_name(f".cellvit-{secrets.token_hex(8)}{target.suffix}")


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left: files and Zarr stores with a name of :func:`temporary_path`, and no link.

    Args:
        folder: One that is ours, in which no other process works.

    Raises:
        OSError: If a file cannot be removed.
    """
    for path in folder.glob(".cellvit-*"):
        if not _TEMPORARY.fullmatch(path.name) or is_link(path):
            continue
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.suffix == _STORE[0]:
            shutil.rmtree(path, ignore_errors=True)


def is_link(path: Path) -> bool:
    """Tell whether a path is a symbolic link, also one that leads nowhere, or a junction of Windows."""
    return path.is_symlink() or bool(getattr(os.path, "isjunction", lambda path: False)(path))


def is_store(path: Path) -> bool:
    """Tell whether a folder is a Zarr store."""
    return any((path / name).is_file() for name in _STORE[1])


def keep_aside(path: Path) -> Path:
    """Rename a file, so that another may have its name, and return what it is called then.

    Args:
        path: What exists; of a link, the link is renamed.

    Raises:
        OSError: If it cannot be renamed.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.csv")
        >>> file.touch()
        >>> keep_aside(file).name
        'a.csv.1'
    """
    names = (path.with_name(f"{path.name}.{number}") for number in count(1))
    return path.rename(next(name for name in names if not os.path.lexists(name)))


def _refuse_special(target: Path) -> None:
    """Raise where renaming would replace something that is not a plain file, such as a folder or a device."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        raise OutputError(f"cannot write {str(target)!r}: it is not a plain file; choose another name")


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_place(target: Path) -> None:
    """Raise where a store cannot be, or would replace what is not one."""
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {str(target)!r}: its folder does not exist; create it first")
    if target.exists() and not is_store(target):
        raise OutputError(f"cannot write {str(target)!r}: it exists and is no Zarr store; choose another name")
