"""Nuclei from any file that this package writes."""

import reprlib
from collections.abc import Mapping
from pathlib import Path

from cellvit.errors import DataError
from cellvit.io.anndata import read_anndata
from cellvit.io.cells_json import nuclei_of_cells
from cellvit.io.geojson import is_geojson, nuclei_of_geojson
from cellvit.io.parquet import read_parquet
from cellvit.io.schema import load_json
from cellvit.types import Nuclei

_TABLE = "nuclei.parquet"
_KINDS = "Parquet, AnnData (.h5ad), GeoJSON or cells JSON (also .gz)"


def read_nuclei(path: str | Path) -> Nuclei:
    """Read nuclei from a file of this package, of QuPath or of the released tools; its content says what it is.

    Args:
        path: Parquet, AnnData (``.h5ad``), GeoJSON or cells JSON, the latter two also compressed with gzip; or the
            result folder of a slide, whose ``nuclei.parquet`` is read.

    Returns:
        The nuclei, with what the format keeps: only Parquet holds all; see :mod:`cellvit.io`.

    Raises:
        ConfigError: If AnnData is read without the extra ``spatial``.
        DataError: If there is no such file, or it is damaged or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        if (path / _TABLE).is_file():
            return read_parquet(path / _TABLE)
        raise DataError(
            f"{str(path)!r} is a folder without {_TABLE!r}; give the result folder of a slide or a file: {_KINDS} "
            "(SpatialData is read with spatialdata.read_zarr)"
        )
    start = _start(path)
    if start[:4] == b"PAR1":
        return read_parquet(path)
    if start == b"\x89HDF\r\n\x1a\n":
        return read_anndata(path)
    try:
        data = load_json(path)
    except DataError as error:
        raise DataError(f"{error}; nuclei are read from {_KINDS}") from error
    if isinstance(data, Mapping) and "cells" in data:
        return nuclei_of_cells(data, path)
    if is_geojson(data):
        return nuclei_of_geojson(data, path)
    found = sorted(data) if isinstance(data, Mapping) else data
    shown = found[:80] if isinstance(found, str) else reprlib.repr(found)
    raise DataError(f"{str(path)!r} is JSON of {shown}, neither GeoJSON nor cells; give {_KINDS}")


def _start(path: Path) -> bytes:
    """Return the first eight bytes of a file."""
    try:
        with path.open("rb") as file:
            return file.read(8)
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist; check the path") from error
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}; check the file") from error
