"""How large the file of a stranger may become while it is read, and how far its numbers may go."""

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellvit.errors import CellViTError, ConfigError, DataError
from cellvit.io.format import readable_size

VARIABLE = "CELLVIT_MAX_EXPANDED_GB"
"""Environment variable with the limit in gigabytes; processes that are started inherit it."""

DEFAULT_GB = 4.0
"""A slide of a million nuclei takes 0.6 GB as GeoJSON."""

HONEST_RATIO = 100
"""Nuclei and their embeddings shrink to a half up to a fifth in Parquet and HDF5."""

MAX_COORDINATE = 2.0**31
"""Pixels; a slide has some hundred thousand per axis, and drawing counts with 32-bit integers."""

MAX_TYPE = 2**16
"""Tables by type are made as long as the highest number of a type."""

MALFORMED: tuple[type[Exception], ...] = (
    *(TypeError, KeyError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError, MemoryError),
)
"""What Python raises for plain data that are not what they should be: of another form, or with numbers too large."""

_BLOCK = 1 << 20
_SHOWN = 200


def stated_number(variable: str, default: float, unit: str, *, example: float | None = None) -> float:
    """Return the number that an environment variable states.

    Args:
        variable: Its name.
        default: Without it.
        unit: Of the number, for the message.
        example: A number that the message gives; None gives the default.

    Raises:
        ConfigError: If it is no number greater than 0.
    """
    stated = os.environ.get(variable) or str(default)
    try:
        value = float(stated)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        shown = default if example is None else example
        raise ConfigError(f"{variable}={stated!r} is no number of {unit} greater than 0; set for example {shown:g}")
    return value


def expanded_limit() -> int:
    """Return how many bytes a file may have after it was expanded.

    Raises:
        ConfigError: If the environment variable is no number of gigabytes greater than 0.
    """
    return int(stated_number(VARIABLE, DEFAULT_GB, "gigabytes", example=8) * 1e9)


@contextmanager
def max_expanded(max_expanded_gb: float) -> Iterator[None]:
    """Return a context in which files may expand to another size, also in processes that are started in it.

    Args:
        max_expanded_gb: The limit in gigabytes, greater than 0; the default is :data:`DEFAULT_GB`.

    Example:
        >>> with max_expanded(16):
        ...     expanded_limit()
        16000000000
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(max_expanded_gb)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def check_expanded(size: float, what: str, *, packed: int = 0, error: type[CellViTError] = DataError) -> None:
    """Raise if a file becomes too large.

    Args:
        size: Bytes that it has when expanded, or claims to have.
        what: The file; the message begins with it.
        packed: Bytes on the disk, for formats of whole slides, whose files may be larger than the limit; what they hold
            may be :data:`HONEST_RATIO` times as large.
        error: What is raised.

    Raises:
        CellViTError: Of the kind ``error``.
    """
    limit = max(expanded_limit(), HONEST_RATIO * packed)
    if size > limit:
        gigabytes = math.ceil(size / 1e9)
        advice = f"if you trust the file, allow max_expanded_gb={gigabytes} or set {VARIABLE}={gigabytes}"
        raise error(f"{what} expands to {readable_size(int(size))}, allowed are {readable_size(limit)}; {advice}")


def read_expanded(path: str | Path, *, what: str, advice: str, error: type[CellViTError] = DataError) -> bytes:
    """Return the bytes of a file, expanded if it is compressed with gzip; never more of them than the limit.

    Args:
        path: The file.
        what: What to call it; messages begin with it.
        advice: What to do if it is damaged; messages end with it.
        error: What is raised.

    Raises:
        CellViTError: Of the kind ``error``, if the file is missing, damaged or too large.
    """
    limit, data = expanded_limit(), bytearray()
    try:
        with Path(path).open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            while len(data) <= limit and (block := stream.read(_BLOCK)):
                data += block
    except FileNotFoundError as fault:
        raise error(f"{what} does not exist; check the path") from fault
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise error(f"{what} is not JSON that can be read ({fault}); {advice}") from fault
    except OSError as fault:
        raise error(f"{what} cannot be read ({fault.strerror or fault}); check the file") from fault
    check_expanded(len(data), what if len(data) <= limit else f"{what} is too large: it", error=error)
    return bytes(data)


def zip_entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of every entry of a zip archive.

    What the entries say of their size is checked before, and no more of each is expanded than it says.

    Args:
        path: The archive; its entries are stored or deflated.

    Raises:
        DataError: If it becomes larger than the limit.
        zipfile.BadZipFile: If it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        check_expanded(sum(entry.file_size for entry in entries), f"'{path}'")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{entry.filename!r} is compressed by a method other than deflate")
            data = bytearray()
            with archive.open(entry) as stream:
                while block := stream.read(_BLOCK):  # in one go it would expand past the size that is stated
                    data += block
            yield entry.filename, bytes(data)


def check_datasets(group: Any, what: str, *, packed: int = 0) -> None:
    """Raise if the data sets of a file of HDF5 become too large together, or lie in other files.

    Args:
        group: An open file of h5py.
        what: The file; the message begins with it.
        packed: See :func:`check_expanded`.

    Raises:
        DataError: In both cases.
    """
    sizes: list[int] = []

    def look(name: str, item: Any) -> None:
        if getattr(item, "external", None) or getattr(item, "is_virtual", False):
            raise DataError(f"{what} keeps {name!r} in another file, which is not read; write it into one file")
        sizes.append(int(getattr(item, "nbytes", 0)))

    group.visititems(look)  # which does not follow links to other files
    check_expanded(sum(sizes), what, packed=packed)


def brief(fault: BaseException) -> str:
    """Return what is wrong in a line of no more than some words, as data of strangers may be quoted in it.

    Example:
        >>> brief(KeyError("type")), len(brief(ValueError("9" * 5000)))
        ("KeyError: 'type'", 216)
    """
    text = str(fault)
    return f"{type(fault).__name__}: {text if len(text) <= _SHOWN else f'{text[:_SHOWN]} ...'}"
