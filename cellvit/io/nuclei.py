"""Nuclei from any file that this package writes."""

import gzip
import reprlib
import zlib
from collections.abc import Mapping
from pathlib import Path

from cellvit.errors import DataError
from cellvit.io.cells_json import nuclei_of_cells
from cellvit.io.formats.base import FORMATS, NucleiFormat
from cellvit.io.formats.coco import is_coco, nuclei_of_coco_file
from cellvit.io.geojson import is_geojson, nuclei_of_geojson
from cellvit.io.schema import load_json
from cellvit.io.stream import NucleiStream, TableStream
from cellvit.types import Nuclei

_TABLE = "nuclei.parquet"
_KINDS = "Parquet, AnnData (.h5ad), GeoJSON or cells JSON (also .gz), and what else 'cellvit plugins format' lists"
_START = 4096


def read_nuclei(path: str | Path) -> Nuclei:
    """Read nuclei from a file of this package, of QuPath or of the released tools; its content says what it is.

    Args:
        path: A file of any format in :data:`cellvit.io.formats.base.FORMATS`, such as Parquet, AnnData, GeoJSON or
            cells JSON, text formats also compressed with gzip; or the result folder of a slide, whose
            ``nuclei.parquet`` is read.

    Returns:
        The nuclei, with what the format keeps: only Parquet holds all; see :mod:`cellvit.io`.

    Raises:
        ConfigError: If the format needs a package that is not installed.
        DataError: If there is no such file, or it is damaged or of another kind.
    """
    path = Path(path)
    format_ = format_of(path)
    return _nuclei_of_json(path) if format_ is None else format_.read(path)


def stream_nuclei(path: str | Path, *, embedding: bool = True) -> NucleiStream:
    """Return the nuclei of a file as :func:`read_nuclei` does, in chunks where the format has them.

    Args:
        path: As for :func:`read_nuclei`.
        embedding: Whether embeddings are needed, which are most of a table.

    Raises:
        ConfigError: If the format needs a package that is not installed.
        DataError: If there is no such file, or it is damaged or of another kind.
    """
    path = Path(path)
    format_ = format_of(path)
    return TableStream(_nuclei_of_json(path)) if format_ is None else format_.stream(path, embedding=embedding)


def format_of(path: Path) -> NucleiFormat | None:
    """Return the format that takes a file for its own; None for text whose whole content says what it is.

    Args:
        path: The file or the folder.

    Raises:
        DataError: If there is no such file, or no format takes the folder.
    """
    start = b"" if path.is_dir() else _start(path)
    classes = [entry.cls for entry in FORMATS.entries() if entry.cls is not None]
    for cls in sorted(classes, key=lambda cls: -cls.priority):
        if cls.accepts(path, start):
            return cls()
    if path.is_dir():
        raise DataError(
            f"{str(path)!r} is a folder without {_TABLE!r}; give the result folder of a slide or a file: {_KINDS} "
            "(other SpatialData is read with spatialdata.read_zarr)"
        )
    return None


def _nuclei_of_json(path: Path) -> Nuclei:
    try:
        data = load_json(path)
    except DataError as error:
        raise DataError(f"{error}; nuclei are read from {_KINDS}") from error
    if isinstance(data, Mapping) and "cells" in data:
        return nuclei_of_cells(data, path)
    if is_coco(data):
        return nuclei_of_coco_file(data, path)
    if is_geojson(data):
        return nuclei_of_geojson(data, path, stacklevel=4)
    found = sorted(data) if isinstance(data, Mapping) else data
    shown = found[:80] if isinstance(found, str) else reprlib.repr(found)
    raise DataError(f"{str(path)!r} is JSON of {shown}, neither GeoJSON nor cells; give {_KINDS}")


def _start(path: Path) -> bytes:
    """Return the first bytes of a file, those inside where it is compressed with gzip."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                start = packed.read(_START)
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist; check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""  # whoever reads all of it tells what is wrong
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}; check the file") from error
    return start
