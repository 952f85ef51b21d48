"""Nuclei as SpatialData: a Zarr store of polygons, and a table that annotates them."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, DataError
from cellvit.io import text as tables
from cellvit.io.anndata import nuclei_of_anndata
from cellvit.io.atomic import atomic_store as _atomic_store
from cellvit.io.formats.base import Pixels
from cellvit.io.provenance import with_mpp
from cellvit.io.spatial import Annotations, as_text, require
from cellvit.io.stream import NucleiStream, as_stream, blocks
from cellvit.io.valid_polygons import polygons_from_rings, rings_from_polygons, valid_rings
from cellvit.types import Nuclei

SHAPES, TABLE, THUMBNAIL, IMAGE = "nuclei", "table", "thumbnail", "image"
"""Names of the elements."""

_CHUNK = 1024
_STEP = 4  # from one level of a whole image to the next: each is computed from the file


def write_spatialdata(
    stream: NucleiStream | Nuclei,
    path: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    image: NDArray[np.uint8] | Pixels | None = None,
    bounds: tuple[float, float, float, float] | None = None,
) -> None:
    """Write nuclei as a SpatialData store: polygons ``nuclei``, and a ``table`` that annotates them.

    The table is what :func:`cellvit.io.anndata.write_anndata` writes, with the columns ``region`` and ``nucleus``
    that tie a row to its polygon. Polygons are valid (see :func:`cellvit.io.valid_polygons.valid_rings`). All nuclei
    and embeddings are held in memory, which for large slides takes several gigabytes. Without nuclei there is no
    element ``nuclei``, as SpatialData has no empty ones.

    Polygons have the columns ``class`` and ``prob`` by which lazyslide colours them, and the attributes of the store
    name them, and the whole image, as sopa does.

    Args:
        stream: The nuclei, iterated once; or a table.
        path: The folder, ``.zarr``. A store that is already there is replaced when the new one is complete.
        metadata: Further facts to keep with the nuclei, plain data.
        image: ``(h, w, 3)`` RGB picture to store beside them as ``thumbnail``; or a slide that is open, which is stored
            whole as ``image``, in pieces, with smaller levels.
        bounds: The box ``(x, y, width, height)`` that the picture covers, in the coordinates of the nuclei; None: one
            pixel is one unit, as in the image the nuclei are from.

    Raises:
        ConfigError: If the extra ``spatial`` is not installed, or bounds come without a picture.
        DataError: If a coordinate is not finite or the metadata are not plain data.
        OutputError: If the store cannot be written, or something else of that name exists.
    """
    if bounds is not None and image is None:
        raise ConfigError(f"bounds {bounds} of no image; pass image=... too, or leave them out")
    spatialdata = require("spatialdata")
    text = as_text(with_mpp(metadata, stream.mpp if isinstance(stream, Nuclei) else None))
    with _atomic_store(Path(path)) as temporary:
        shapes, table = _elements(as_stream(stream), text)
        images = _images(image, bounds)
        sopa = {"boundaries_shapes": SHAPES} if shapes else {}
        sopa |= {"cell_segmentation_image": IMAGE} if IMAGE in images else {}
        with warnings.catch_warnings():
            # of the packages below to each other; nothing that whoever writes nuclei could act on
            warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)
            warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
            spatialdata.SpatialData(images=images, shapes=shapes, tables={TABLE: table}, attrs=sopa).write(temporary)


def spatialdata_of(nuclei: Nuclei) -> Any:
    """Return nuclei as ``spatialdata.SpatialData``, with the elements that :func:`write_spatialdata` writes.

    Raises:
        ConfigError: If the extra ``spatial`` is not installed.
        DataError: If a coordinate is not finite.
    """
    shapes, table = _elements(as_stream(nuclei), as_text(with_mpp(None, nuclei.mpp)))
    return require("spatialdata").SpatialData(shapes=shapes, tables={TABLE: table})


def read_spatialdata(path: str | Path) -> Nuclei:
    """Read nuclei from a store of :func:`write_spatialdata`.

    Args:
        path: The folder.

    Raises:
        ConfigError: If the extra ``spatial`` is not installed.
        DataError: If it is no such store.
    """
    spatialdata = require("spatialdata")
    try:
        data = spatialdata.read_zarr(path)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{str(path)!r} is no store of SpatialData ({error}); write it again") from error
    return nuclei_of_spatialdata(data, str(path))


def nuclei_of_spatialdata(data: Any, source: str) -> Nuclei:
    """Return the nuclei of SpatialData: of the table, and the outlines of the polygons that it annotates.

    Args:
        data: A ``spatialdata.SpatialData``.
        source: The store it is from, or what it is; named in errors.

    Raises:
        DataError: If it is not of nuclei.
    """
    if TABLE not in data.tables:
        raise DataError(f"{source!r} has no table {TABLE!r}; write it with cellvit.io.write_spatialdata")
    table = data.tables[TABLE]
    nuclei = nuclei_of_anndata(table, source)
    if SHAPES not in data.shapes:
        return nuclei
    try:
        shapes = data.shapes[SHAPES].geometry.loc[table.obs["nucleus"]].to_numpy()
    except KeyError as error:
        raise DataError(f"{source!r} lacks polygons or their numbers ({error}); write it again") from error
    points, offsets = rings_from_polygons(shapes)
    return replace(nuclei, contour_points=points, contour_offsets=offsets)


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
    obsm = found.places(metadata_text)
    if dim is not None:
        obsm["embedding"] = np.concatenate([np.zeros((0, dim), np.float32), *embeddings])
    data = anndata.AnnData(obs=frame, obsm=obsm, uns=found.facts(stream.classes, metadata_text))
    polygons = {}
    if shapes:
        columns = {"class": frame["type"].astype(object).to_numpy(), "prob": frame["type_prob"].to_numpy()}
        frame_of_shapes = geopandas.GeoDataFrame(columns, geometry=np.concatenate(shapes), index=number)
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


def _images(
    image: NDArray[np.uint8] | Pixels | None, bounds: tuple[float, float, float, float] | None
) -> dict[str, Any]:
    """Return the pictures by name."""
    if image is None:
        return {}
    return {THUMBNAIL: _picture(image, bounds)} if isinstance(image, np.ndarray) else {IMAGE: _whole(image)}


def _whole(image: Pixels) -> Any:
    """Return a whole image as an element of several levels, whose pixels are read when it is written."""
    da, models = require("dask.array"), require("spatialdata.models")
    width, height = image.level_sizes[0]

    def read(block_info: Mapping[Any, Any]) -> NDArray[np.uint8]:
        _, (top, bottom), (left, right) = block_info[None]["array-location"]
        return image.read_region(left, top, right - left, bottom - top).transpose(2, 0, 1)

    chunks = da.core.normalize_chunks((3, _CHUNK, _CHUNK), (3, height, width))
    pixels = da.map_blocks(read, chunks=chunks, dtype=np.uint8, meta=np.zeros((0, 0, 0), np.uint8))
    levels = max(0, math.ceil(math.log(max(width, height) / _CHUNK, _STEP)))
    return models.Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], scale_factors=[_STEP] * levels or None
    )
