"""Nuclei as data frames of other packages, and back; what the methods of :class:`cellvit.types.Nuclei` call."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.classes import PANNUKE, classes_from_list, classes_from_map, classes_to_list, type_name
from cellvit.errors import DataError
from cellvit.geometry.polygons import MIN_CONTOUR_POINTS, Floats, ring_bounds, ring_offsets
from cellvit.io.anndata import anndata_of, nuclei_of_anndata
from cellvit.io.geojson import nuclei_of_geojson
from cellvit.io.provenance import mpp_of, with_mpp
from cellvit.io.qupath import StatedClass
from cellvit.io.spatial import require
from cellvit.io.spatialdata import nuclei_of_spatialdata, spatialdata_of
from cellvit.io.stated_types import StatedTypes
from cellvit.io.text import check_finite, shortest_floats
from cellvit.io.valid_polygons import polygons_from_rings, rings_from_polygons, valid_rings
from cellvit.types import Nuclei, NucleiClasses

_BOX = ("xmin", "ymin", "xmax", "ymax")
_OF_QUPATH = {"objectType", "object_type", "classification"}
_ATTRIBUTE = "cellvit"
LEARNT_ON = "types_learnt_on"
"""Column of text for tables that have no other place to say what types were learnt on."""
_OURS = {"label", "type", "type_id", "type_prob", "x", "y", *_BOX, "area_px", LEARNT_ON}


def columns_of(nuclei: Nuclei) -> dict[str, NDArray[Any]]:
    """Return nuclei as named columns ``(N,)``: all but outlines and embeddings, measurements last.

    Args:
        nuclei: The nuclei.

    Returns:
        ``label``, ``type`` (names; None where no type is known), ``type_id``, ``type_prob``, ``x``, ``y``, ``xmin``,
        ``ymin``, ``xmax``, ``ymax``, ``area_px``, where the resolution is known ``area_um2``, and the measurements.

    Raises:
        DataError: If a measurement has the name of another column.
    """
    kinds, inverse = np.unique(nuclei.type, return_inverse=True)
    names = np.array([type_name(nuclei.classes, kind) for kind in kinds.tolist()] or [None], dtype=object)
    columns = {
        "label": nuclei.label,
        "type": names[inverse],
        "type_id": nuclei.type,
        "type_prob": nuclei.type_prob,
        "x": nuclei.centroid[:, 0],
        "y": nuclei.centroid[:, 1],
        **dict(zip(_BOX, nuclei.bbox.T, strict=True)),
        "area_px": nuclei.area,
    }
    if taken := sorted({*columns, LEARNT_ON} & nuclei.measurements.keys() - {"area_px"}):
        raise DataError(f"measurements {taken} have names of other columns; rename them")
    area = {} if nuclei.mpp is None else {"area_um2": nuclei.area_um2}
    return {**columns, **area, **nuclei.measurements}


def columns_in_full(nuclei: Nuclei) -> dict[str, NDArray[Any]]:
    """Return the columns of :func:`columns_of` and, where it is known, ``types_learnt_on``, the same in every row."""
    columns = columns_of(nuclei)
    if nuclei.classes is None or not nuclei.classes.learnt_on:
        return columns
    return {**columns, LEARNT_ON: np.full(len(nuclei), nuclei.classes.learnt_on, dtype=object)}


def numbers_of(nuclei: Nuclei) -> Iterator[dict[str, str]]:
    """Yield what is known of every nucleus as numbers by name, as JSON: probability and measurements."""
    columns = {"type_prob": nuclei.type_prob, **nuclei.measurements}
    texts = [shortest_floats(np.where(np.isfinite(values), values, np.nan)) for values in columns.values()]
    for row in zip(*texts, strict=True):
        yield {name: text for name, text in zip(columns, row, strict=True) if text is not None}


def nuclei_of_columns(
    columns: Mapping[str, NDArray[Any]],
    *,
    source: str,
    about: Mapping[str, Any] | None = None,
    shapes: NDArray[Any] | None = None,
) -> Nuclei:
    """Return the nuclei that columns hold; the inverse of :func:`columns_of`.

    Args:
        columns: By name, ``(N,)`` each. ``x`` and ``y`` are needed where there are no outlines; the others are filled
            in, a box with the pixel of the centroid. The name of a type wins over its number. Further columns of
            numbers are measurements.
        source: What they are from; named in errors.
        about: ``classes``, ``measurements`` and resolution, as :func:`about_of` has them, or None.
        shapes: ``(N,)`` shapely geometries; polygons are outlines, of one in several pieces the largest.

    Raises:
        DataError: If there are no coordinates, or a column holds something else.
    """
    about = about or {}
    try:
        if shapes is None:
            shapes = np.full(len(columns["x"]), None, dtype=object)
        count, (points, offsets) = len(shapes), rings_from_polygons(shapes)
        around = ring_bounds(points, offsets)
        centroid = _centroids(columns, shapes, around)
        pixel = np.floor(np.tile(centroid, 2)) + np.array([0, 0, 1, 1])
        given = np.stack([_numbers(columns[name]) for name in _BOX], axis=1) if set(_BOX) <= set(columns) else pixel
        ids, classes = _types_of(columns, count, about, source)
        return Nuclei(
            centroid=centroid,
            bbox=np.where(np.isnan(around) | (np.abs(given - around) <= 1), given, around),
            type=ids,
            type_prob=_numbers(columns.get("type_prob", np.full(count, np.nan))).astype(np.float32),
            contour_offsets=offsets,
            contour_points=points,
            label=_numbers(columns.get("label", np.arange(1, count + 1))).astype(np.int32),
            classes=classes,
            measurements={name: _numbers(columns[name]).astype(np.float32) for name in _measured(columns, about)},
            mpp=mpp_of(about),
        )
    except (KeyError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{source} holds no nuclei ({reason}); it needs columns x and y, or polygons") from error


def nuclei_of_rings(
    rings: Sequence[NDArray[Any]],
    columns: Mapping[str, NDArray[Any]],
    *,
    source: str,
    about: Mapping[str, Any] | None = None,
) -> Nuclei:
    """Return the nuclei that outlines and further columns hold; centroids and boxes are those of the outlines.

    Args:
        rings: Points ``(K, 2)`` of each; one of fewer than three points is a point.
        columns: As for :func:`nuclei_of_columns`.
        source: What they are from; named in errors.
        about: As for :func:`nuclei_of_columns`.

    Raises:
        DataError: If a column holds something else.
    """
    lengths = np.array([len(ring) for ring in rings], np.int64)
    shapes: NDArray[Any] = np.full(len(rings), None, dtype=object)
    long = lengths >= MIN_CONTOUR_POINTS
    drawn = [ring for ring, keep in zip(rings, long.tolist(), strict=True) if keep]
    shapes[long] = polygons_from_rings(np.concatenate([np.zeros((0, 2)), *drawn]), ring_offsets(lengths[long]))
    for row in np.flatnonzero(~long & (lengths > 0)).tolist():
        shapes[row] = shapely.Point(rings[row].mean(axis=0))
    return nuclei_of_columns(columns, source=source, about=about, shapes=shapes)


def _measured(columns: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> list[str]:
    """Return the names of measurements: those that are listed, else all columns of numbers that are none of ours."""
    if "measurements" in about:
        return [name for name in about["measurements"] if name in columns]
    return [name for name, values in columns.items() if name not in _OURS and np.asarray(values).dtype.kind in "iuf"]


def _types_of(
    columns: Mapping[str, NDArray[Any]], count: int, about: Mapping[str, Any], source: str
) -> tuple[NDArray[np.int32], NucleiClasses | None]:
    """Return the type of every nucleus and the classes; a column ``type`` of numbers is one of numbers."""
    names, numbers = columns.get("type"), columns.get("type_id")
    if names is not None and np.asarray(names).dtype.kind in "iu":
        names, numbers = None, names
    ids = np.zeros(count, np.int64) if numbers is None else np.nan_to_num(_numbers(numbers)).astype(np.int64)
    classes = classes_from_list(about.get("classes"), source=source)
    if names is None:
        return ids.astype(np.int32), classes
    texts = [name if isinstance(name, str) else None for name in names]
    if "classes" not in about:
        classes = _paired(texts, ids.tolist())
    types = StatedTypes(classes, listed="classes" in about or classes is not None)
    said = (StatedClass(text, given=True, color=None) for text in texts)
    codes = [types.code(one, number) for one, number in zip(said, ids.tolist(), strict=True)]
    found, classes, _ = types.resolve(np.array(codes, np.int64))
    if classes is not None and not classes.learnt_on:
        places = dict.fromkeys(place for place in columns.get(LEARNT_ON, ()) if isinstance(place, str))
        classes = replace(classes, learnt_on=", ".join(places))
    return found, classes


def _paired(names: list[str | None], numbers: list[int]) -> NucleiClasses | None:
    """Return the classes that pairs of a name and a number say, or None where they disagree or are PanNuke's."""
    pairs = {pair for pair in set(zip(names, numbers, strict=True)) if pair[0] is not None}
    given = {number: str(name) for name, number in pairs}
    if len(given) < len(pairs) or min(given, default=0) < 1 or set(given.values()) <= set(PANNUKE.names):
        return None
    return classes_from_map(given)


def _centroids(columns: Mapping[str, NDArray[Any]], shapes: NDArray[Any], around: Floats) -> Floats:
    """Return the centroids that are stated, and those of shapes where none is, or where it lies outside of its shape.

    Raises:
        KeyError: If there is neither.
    """
    middle = shapely.centroid(shapes)
    centroid = np.stack([shapely.get_x(middle), shapely.get_y(middle)], axis=1)
    if not {"x", "y"} <= set(columns):
        if np.isnan(centroid).any():
            raise KeyError("x")
        return centroid
    stated = np.stack([_numbers(columns[name]) for name in "xy"], axis=1)
    outside = (stated < around[:, :2]) | (stated > around[:, 2:]) | np.isnan(stated)
    stale: NDArray[np.bool_] = outside.any(axis=1, keepdims=True) & ~np.isnan(centroid)
    return np.where(stale, centroid, stated)


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, np.float64)


def about_of(nuclei: Nuclei) -> dict[str, Any]:
    """Return names and colours of types, names of measurements, and the resolution, as plain data."""
    facts = {"classes": classes_to_list(nuclei.classes), "measurements": list(nuclei.measurements)}
    return with_mpp(facts, nuclei.mpp)


def to_pandas(nuclei: Nuclei) -> Any:
    """Return nuclei as a ``pandas.DataFrame``; see :meth:`cellvit.types.Nuclei.to_pandas`."""
    pandas = require("pandas", extra="formats")
    columns: dict[str, Any] = dict(columns_of(nuclei))
    known = dict.fromkeys([*(nuclei.classes.names[1:] if nuclei.classes else ()), *columns["type"]])
    known.pop(None, None)
    columns["type"] = pandas.Categorical(columns["type"], categories=list(known))
    frame = pandas.DataFrame(columns)
    frame.attrs[_ATTRIBUTE] = about_of(nuclei)
    return frame


def from_pandas(frame: Any) -> Nuclei:
    """Return the nuclei of a ``pandas.DataFrame``; see :meth:`cellvit.types.Nuclei.from_pandas`."""
    return nuclei_of_columns(_columns(frame), source="the frame", about=frame.attrs.get(_ATTRIBUTE))


def to_polars(nuclei: Nuclei) -> Any:
    """Return nuclei as a ``polars.DataFrame``; see :meth:`cellvit.types.Nuclei.to_polars`."""
    polars = require("polars", extra="formats")
    columns = columns_in_full(nuclei)
    texts = {name: columns[name].tolist() for name in ("type", LEARNT_ON) if name in columns}
    return polars.DataFrame({**columns, **{n: polars.Series(t, dtype=polars.String) for n, t in texts.items()}})


def from_polars(frame: Any) -> Nuclei:
    """Return the nuclei of a ``polars.DataFrame``; see :meth:`cellvit.types.Nuclei.from_polars`."""
    return nuclei_of_columns({name: frame[name].to_numpy() for name in frame.columns}, source="the frame")


def to_geopandas(nuclei: Nuclei) -> Any:
    """Return nuclei as a ``geopandas.GeoDataFrame``; see :meth:`cellvit.types.Nuclei.to_geopandas`."""
    geopandas = require("geopandas", extra="formats")
    check_finite(nuclei)
    frame = to_pandas(nuclei)
    found = geopandas.GeoDataFrame(frame, geometry=polygons_from_rings(*valid_rings(nuclei)))
    found.attrs = frame.attrs
    return found


def from_geopandas(frame: Any) -> Nuclei:
    """Return the nuclei of a ``geopandas.GeoDataFrame``; see :meth:`cellvit.types.Nuclei.from_geopandas`."""
    if _OF_QUPATH & set(frame.columns):
        return nuclei_of_geojson(json.loads(frame.to_json()), "the frame")
    columns = _columns(frame.drop(columns=frame.geometry.name))
    shapes, about = frame.geometry.to_numpy(), frame.attrs.get(_ATTRIBUTE)
    return nuclei_of_columns(columns, source="the frame", about=about, shapes=shapes)


def _columns(frame: Any) -> dict[str, NDArray[Any]]:
    return {str(name): frame[name].to_numpy() for name in frame.columns}


to_anndata: Callable[[Nuclei], Any] = anndata_of
to_spatialdata: Callable[[Nuclei], Any] = spatialdata_of


def from_anndata(data: Any) -> Nuclei:
    """Return the nuclei of an ``anndata.AnnData``; see :meth:`cellvit.types.Nuclei.from_anndata`."""
    return nuclei_of_anndata(data, "the AnnData")


def from_spatialdata(data: Any) -> Nuclei:
    """Return the nuclei of a ``spatialdata.SpatialData``; see :meth:`cellvit.types.Nuclei.from_spatialdata`."""
    return nuclei_of_spatialdata(data, "the SpatialData")
