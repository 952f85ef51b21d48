"""Nuclei as SpatialData: a Zarr store of polygons, and a table that annotates them."""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import CellViTError, ConfigError, OutputError
from cellvit.io import text as tables
from cellvit.io.atomic import is_store, temporary_path
from cellvit.io.spatial import Annotations, as_text, require
from cellvit.io.stream import NucleiStream, as_stream, blocks
from cellvit.io.valid_polygons import polygons_from_rings, valid_rings
from cellvit.types import Nuclei

SHAPES, TABLE, IMAGE = "nuclei", "table", "thumbnail"
"""Names of the elements."""


def write_spatialdata(
    stream: NucleiStream | Nuclei,
    path: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    image: NDArray[np.uint8] | None = None,
    bounds: tuple[float, float, float, float] | None = None,
) -> None:
    """Write nuclei as a SpatialData store: polygons ``nuclei``, and a ``table`` that annotates them.

    The table is what :func:`cellvit.io.anndata.write_anndata` writes, with the columns ``region`` and ``nucleus``
    that tie a row to its polygon. Polygons are valid (see :func:`cellvit.io.valid_polygons.valid_rings`). All nuclei
    and embeddings are held in memory, which for large slides takes several gigabytes. Without nuclei there is no
    element ``nuclei``, as SpatialData has no empty ones.

    Args:
        stream: The nuclei, iterated once; or a table.
        path: The folder, ``.zarr``. A store that is already there is replaced when the new one is complete.
        metadata: Further facts to keep with the nuclei, plain data.
        image: ``(h, w, 3)`` RGB picture to store beside them as ``thumbnail``.
        bounds: The box ``(x, y, width, height)`` that the picture covers, in the coordinates of the nuclei; None: one
            pixel is one unit, as in the image the nuclei are from.

    Raises:
        ConfigError: If the extra ``spatial`` is not installed, or bounds come without a picture.
        DataError: If a coordinate is not finite or the metadata are not plain data.
        OutputError: If the store cannot be written, or something else of that name exists.
    """
    if bounds is not None and image is None:
        raise ConfigError(f"bounds {bounds} of no image; pass image=... too, or leave them out")
    spatialdata, text = require("spatialdata"), as_text(metadata)
    with _atomic_store(Path(path)) as temporary:
        shapes, table = _elements(as_stream(stream), text)
        images = {} if image is None else {IMAGE: _picture(image, bounds)}
        with warnings.catch_warnings():
            # of the packages below to each other; nothing that whoever writes nuclei could act on
            warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)
            warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
            spatialdata.SpatialData(images=images, shapes=shapes, tables={TABLE: table}).write(temporary)


def _elements(stream: NucleiStream, metadata_text: str) -> tuple[dict[str, Any], Any]:
    """Return the polygons by name, if there are any, and the table."""
    anndata, geopandas, models = require("anndata"), require("geopandas"), require("spatialdata.models")
    found = Annotations()
    shapes: list[NDArray[Any]] = []
    embeddings: list[Any] = []
    dim = stream.embedding_dim
    for row, block in blocks(stream, tables.CHUNK, classes=stream.classes, embedding_dim=dim):
        tables.check_finite(block, first=row)
        points, offsets = valid_rings(block)
        found.add(block, points, offsets)
        shapes.append(polygons_from_rings(points, offsets))
        embeddings.append(block.embedding)
    frame = found.frame(stream.classes)
    number = np.arange(1, len(frame) + 1)
    frame["region"], frame["nucleus"] = require("pandas").Categorical([SHAPES] * len(frame)), number
    # a table without rows can annotate nothing
    tie = {"region": SHAPES, "region_key": "region", "instance_key": "nucleus"} if len(frame) else {}
    obsm = {"spatial": found.column("centroid"), "bbox": found.column("bbox")}
    if dim is not None:
        obsm["embedding"] = np.concatenate([np.zeros((0, dim), np.float32), *embeddings])
    data = anndata.AnnData(obs=frame, obsm=obsm, uns=found.facts(stream.classes, metadata_text))
    polygons = {}
    if shapes:
        frame_of_shapes = geopandas.GeoDataFrame(geometry=np.concatenate(shapes), index=number)
        polygons[SHAPES] = models.ShapesModel.parse(frame_of_shapes)
    return polygons, models.TableModel.parse(data, **tie)


def _picture(image: NDArray[np.uint8], bounds: tuple[float, float, float, float] | None) -> Any:
    """Return a picture as an element that lies where its nuclei do."""
    models, moves = require("spatialdata.models"), require("spatialdata.transformations")
    height, width = image.shape[:2]
    x, y, across, down = bounds or (0, 0, width, height)
    scale = moves.Scale([across / width, down / height], axes=("x", "y"))
    shift = moves.Translation([x, y], axes=("x", "y"))
    place = {"global": moves.Sequence([scale, shift])}
    channels = ["r", "g", "b"]
    return models.Image2DModel.parse(image, dims=("y", "x", "c"), c_coords=channels, transformations=place)


@contextmanager
def _atomic_store(path: Path) -> Iterator[Path]:
    """Return a context that yields the name for a new store, which takes the place of ``path`` at the end."""
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


def _check_place(target: Path) -> None:
    """Raise where a store cannot be, or would replace what is not one."""
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {str(target)!r}: its folder does not exist; create it first")
    if target.exists() and not is_store(target):
        raise OutputError(f"cannot write {str(target)!r}: it exists and is no Zarr store; choose another name")
