"""Nuclei as AnnData (``.h5ad``): types, centroids and embeddings for scanpy, squidpy and whoever reads HDF5."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import classes_from_list
from cellvit.errors import DataError
from cellvit.io import text as tables
from cellvit.io.atomic import atomic_path
from cellvit.io.frames import from_frame, stated_frame
from cellvit.io.limits import check_datasets
from cellvit.io.provenance import mpp_of, with_mpp
from cellvit.io.spatial import SCHEMA_VERSION, Annotations, as_text, require, stated_types
from cellvit.io.stream import NucleiStream, as_stream, blocks
from cellvit.io.valid_polygons import valid_rings
from cellvit.types import Nuclei

_TREE = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


def write_anndata(
    stream: NucleiStream | Nuclei, path: str | Path, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write nuclei as AnnData: one observation per nucleus, no variables.

    ``obs`` holds ``label``, ``type`` (categorical: the types that occur, and ``"No type"``), ``type_id``,
    ``type_prob``, ``area_px`` and the measurements; ``obsm`` holds ``spatial`` (centroids, ``(x, y)`` in pixels), where
    the metadata state the resolution ``spatial_um`` (the same in µm), ``bbox`` and, where there is one, ``embedding``;
    ``uns`` holds ``type_colors`` (one per category, as scanpy has it) and ``cellvit``: the version of this layout, the
    frame of coordinates (see :mod:`cellvit.types`) and the unit of ``spatial``, and classes, names of measurements and
    metadata as JSON text. Embeddings are written block by block; of all nuclei only the small columns are held in
    memory, about 200 bytes each. The same nuclei give the same bytes.

    Args:
        stream: The nuclei, iterated once; or a table.
        path: The file, ``.h5ad``.
        metadata: Further facts to keep with the nuclei, plain data.

    Raises:
        ConfigError: If the extra ``spatial`` is not installed.
        DataError: If a coordinate is not finite, the metadata are not plain data, or the stream does not hold as many
            nuclei as it says.
        OutputError: If the file cannot be written.
    """
    h5py, write_elem = require("h5py"), require("anndata.io").write_elem
    text = as_text(with_mpp(metadata, stream.mpp if isinstance(stream, Nuclei) else None))
    stream = as_stream(stream)
    with atomic_path(path) as temporary:
        try:
            with h5py.File(temporary, "w") as file:
                file.attrs.update(_TREE)
                write_elem(file, "obsm", {})
                found = _stream_rows(stream, file["obsm"])
                for name, places in found.places(text).items():
                    write_elem(file["obsm"], name, places)
                frame = found.frame(stream.classes)
                write_elem(file, "obs", frame)
                write_elem(file, "var", frame.iloc[:0, :0])
                write_elem(file, "uns", found.facts(stream.classes, text))
                for name in ("layers", "obsp", "varm", "varp"):
                    write_elem(file, name, {})
        except RuntimeError as error:  # how h5py tells that a file could not be closed, as on a full disk
            code = re.search(r"errno = (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _stream_rows(stream: NucleiStream, group: Any) -> Annotations:
    """Write the embeddings of a stream into a group of a file and return the small columns."""
    count, width = len(stream), stream.embedding_dim
    data = None
    if width is not None:
        data = group.create_dataset("embedding", (count, width), np.float32)
        data.attrs.update(_ARRAY)
    found, stop = Annotations(), 0
    for row, block in blocks(stream, tables.CHUNK, classes=stream.classes, embedding_dim=width):
        tables.check_finite(block, first=row)
        found.add(block, *valid_rings(block))
        stop = row + len(block)
        if data is not None and stop <= count:
            data[row:stop] = block.embedding
    if stop != count:
        raise DataError(f"the stream says that it holds {count} nuclei but gave {stop}; write its file again")
    return found


def read_anndata(path: str | Path) -> Nuclei:
    """Read nuclei from a file of :func:`write_anndata`.

    Args:
        path: The file, maybe with fewer observations and further columns.

    Returns:
        The nuclei, without outlines; with embeddings if the file has them.

    Raises:
        ConfigError: If the extra ``spatial`` is not installed.
        DataError: If the file is missing, damaged, or not of nuclei.
    """
    anndata = require("anndata")
    if not Path(path).is_file():
        raise DataError(f"{str(path)!r} does not exist or is no file; check the path")
    try:
        with require("h5py").File(path, "r") as file:
            check_datasets(file, repr(str(path)), packed=Path(path).stat().st_size)
        data = anndata.read_h5ad(path)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        message = f"{str(path)!r} is not AnnData of nuclei ({type(error).__name__}: {error}); write it again"
        raise DataError(message) from error
    return nuclei_of_anndata(data, str(path))


def nuclei_of_anndata(data: Any, source: str) -> Nuclei:
    """Return the nuclei of AnnData as :func:`read_anndata` does.

    Args:
        data: An ``anndata.AnnData``.
        source: The file it is from, or what it is; named in errors.

    Raises:
        DataError: If it is not of nuclei.
    """
    try:
        about, obs, obsm = data.uns["cellvit"], data.obs, data.obsm
        if int(about["version"]) > SCHEMA_VERSION:
            raise DataError(f"{source!r} is of a newer version {about['version']}; update cellvit")
        types, classes = stated_types(obs, classes_from_list(json.loads(about["classes"]), source=source))
        nuclei = Nuclei(
            centroid=_array(obsm["spatial"], np.float64),
            bbox=_array(obsm["bbox"], np.float64),
            type=types,
            type_prob=_array(obs["type_prob"], np.float32),
            contour_offsets=np.zeros(data.n_obs + 1, np.int64),
            contour_points=np.zeros((0, 2)),
            label=_array(obs["label"], np.int32),
            embedding=_array(obsm["embedding"], np.float32) if "embedding" in obsm else None,
            classes=classes,
            measurements={
                name: _array(obs[name], np.float32)
                for name in json.loads(about.get("measurements", "[]"))
                if name in obs
            },
            mpp=mpp_of(json.loads(about["metadata"])),
        )
        return from_frame(nuclei, stated_frame(about, source))
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        message = f"{source!r} is not AnnData of nuclei ({type(error).__name__}: {error}); write it again"
        raise DataError(message) from error


def anndata_of(nuclei: Nuclei) -> Any:
    """Return nuclei as ``anndata.AnnData``, with the content of a file of :func:`write_anndata`.

    Raises:
        ConfigError: If the extra ``spatial`` is not installed.
        DataError: If a coordinate is not finite.
    """
    tables.check_finite(nuclei)
    found = Annotations()
    found.add(nuclei, *valid_rings(nuclei))
    text = as_text(with_mpp(None, nuclei.mpp))
    obsm = found.places(text)
    if nuclei.embedding is not None:
        obsm["embedding"] = nuclei.embedding
    facts = found.facts(nuclei.classes, text)
    return require("anndata").AnnData(obs=found.frame(nuclei.classes), obsm=obsm, uns=facts)


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    """Return a column as an array."""
    return np.ascontiguousarray(values, dtype)
