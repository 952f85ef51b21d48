"""Nuclei as GeoJSON that QuPath reads: one object per nucleus, so each can be selected and edited."""

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cellvit.classes import PANNUKE_COLORS, classes_from_list, classes_to_list, standard_colors, type_color, type_name
from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import close_rings, polygon_area
from cellvit.io import text as tables
from cellvit.io.atomic import atomic_text
from cellvit.io.stream import NucleiStream, TableStream, blocks
from cellvit.io.text import (
    Rows,
    encode,
    load_json,
    plain_numbers,
    ring_texts,
    shortest_floats,
    write_lines,
)
from cellvit.io.valid_polygons import valid_rings
from cellvit.types import Nuclei, NucleiClasses

ObjectType = Literal["annotation", "detection", "cell"]
"""Kinds of object in QuPath: a detection is light, an annotation can be edited, a cell has a nucleus."""

PROBABILITY = "Type probability"
AREA = "Area px^2"

_NAMESPACE = uuid.UUID("6d0a8f0e-3c50-5b0c-9a53-2f6c5e1f7a11")


def write_geojson(
    nuclei: Nuclei, path: str | Path, *, object_type: ObjectType = "detection", points: bool = False
) -> None:
    """Write nuclei as a GeoJSON FeatureCollection for QuPath; one feature per nucleus, one per line.

    Every polygon is closed and valid (see :func:`cellvit.io.valid_polygons.valid_rings`). Ids depend on the nuclei
    alone, so the same nuclei give the same bytes. Nuclei without a known type have no classification.

    Args:
        nuclei: The nuclei, in pixels of the full-resolution image; embeddings are not written.
        path: The file, ``.geojson`` or ``.geojson.gz``.
        object_type: What QuPath makes of a feature.
        points: The light variant: only a point at each centroid, without box and area.

    Raises:
        ConfigError: If the object type is unknown.
        DataError: If a coordinate is not finite.
        OutputError: If the file cannot be written.
    """
    write_geojson_stream(TableStream(nuclei), path, object_type=object_type, points=points)


def write_geojson_stream(
    stream: NucleiStream, path: str | Path, *, object_type: ObjectType = "detection", points: bool = False
) -> None:
    """Write nuclei that come in chunks as :func:`write_geojson` does: the same nuclei give the same bytes.

    Args:
        stream: The nuclei; of embeddings it is best read without. Iterated once.
        path: The file, ``.geojson`` or ``.geojson.gz``.
        object_type: What QuPath makes of a feature.
        points: The light variant: only a point at each centroid, without box and area.

    Raises:
        ConfigError: If the object type is unknown.
        DataError: If a coordinate is not finite.
        OutputError: If the file cannot be written.
    """
    if object_type not in get_args(ObjectType):
        raise ConfigError(f"object_type {object_type!r} is unknown to QuPath; choose from {get_args(ObjectType)}")
    head = encode({"version": 1, "classes": classes_to_list(stream.classes)})
    with atomic_text(path) as file:
        file.write(f'{{"type":"FeatureCollection","cellvit":{head},"features":[')
        write_lines(file, _entries(stream, object_type, points=points))


def _entries(stream: NucleiStream, object_type: str, *, points: bool) -> Iterator[Iterator[str]]:
    """Yield the features of all nuclei, some at a time."""
    for row, block in blocks(stream, tables.CHUNK, classes=stream.classes, embedding_dim=None):
        tables.check_finite(block, first=row)
        yield _features(block, row, object_type, points=points)


def _features(nuclei: Nuclei, row: int, object_type: str, *, points: bool) -> Iterator[str]:
    """Yield the features of some nuclei as text; ``row`` is the number of the first."""
    kinds = {kind: _classification_text(nuclei.classes, kind) for kind in np.unique(nuclei.type).tolist()}
    boxes = plain_numbers(nuclei.bbox).tolist()
    shapes = None if points else _polygons(nuclei, row)
    probabilities = shortest_floats(nuclei.type_prob)
    columns = zip(nuclei.label.tolist(), nuclei.type.tolist(), nuclei.centroid.tolist(), boxes, strict=True)
    for i, (label, kind, (x, y), (left, top, right, bottom)) in enumerate(columns):
        identity = _identity(f"{row + i} {label} [{x}, {y}] [{left}, {top}, {right}, {bottom}]")
        measured = "" if probabilities[i] is None else f'"{PROBABILITY}":{probabilities[i]}'
        # QuPath ignores what it does not know; read_geojson needs "nucleus" to be exact
        exact = f'"label":{label},"type":{kind}'
        box, geometry = "", f'"Point","coordinates":[{x},{y}]'
        if shapes is not None:
            ring, area = next(shapes)
            measured += f'{"," if measured else ""}"{AREA}":{area}'
            exact += f',"centroid":[{x},{y}]'
            box, geometry = f'"bbox":[{left},{top},{right},{bottom}],', f'"Polygon","coordinates":[{ring}]'
        yield (
            f'{{"type":"Feature","id":"{identity}","properties":{{"objectType":"{object_type}",{kinds[kind]}'
            f'"measurements":{{{measured}}},"nucleus":{{{exact}}}}},{box}"geometry":{{"type":{geometry}}}}}'
        )


def _identity(name: str) -> str:
    """Return the UUID of version 5 of a name; several times as fast as :func:`uuid.uuid5`."""
    value = hashlib.sha1(_NAMESPACE.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(value[16], 16) & 3]
    return f"{value[:8]}-{value[8:12]}-5{value[13:16]}-{variant}{value[17:20]}-{value[20:32]}"


def _polygons(nuclei: Nuclei, row: int) -> Iterator[tuple[str, float]]:
    """Return the closed ring as text and the area of every outline."""
    points, offsets = valid_rings(nuclei)
    area = polygon_area(points, offsets)
    if not np.isfinite(area).all():
        broken = row + int(np.flatnonzero(~np.isfinite(area))[0])
        raise DataError(f"the outline of nucleus {broken} is too large to have an area; remove the nucleus")
    return zip(ring_texts(*close_rings(points, offsets)), area.tolist(), strict=True)


def _classification_text(classes: NucleiClasses | None, kind: int) -> str:
    """Return the classification property of a type with a comma behind; empty for nuclei without a type."""
    name = type_name(classes, kind)
    color = [int(c) for c in type_color(classes, kind)]
    return "" if name is None else f'"classification":{encode({"name": name, "color": color})},'


def read_geojson(path: str | Path) -> Nuclei:
    """Read nuclei from GeoJSON of this package, of QuPath, or of the released tools.

    Args:
        path: A FeatureCollection, a bare list of features, or one feature; also compressed with gzip. A feature is a
            Polygon or a Point, or a MultiPolygon or MultiPoint that holds the nuclei of one class. Holes are ignored.

    Returns:
        The nuclei, without embeddings. A file of this package gives back what was written, save repaired outlines.
        Elsewhere centroids and boxes come from the outlines, a probability not stated is NaN, and classes are those
        of PanNuke if the file names no others, else numbered in the order of their appearance.

    Raises:
        DataError: If the file is not of this form.
    """
    return nuclei_of_geojson(load_json(path), path)


def nuclei_of_geojson(data: Any, path: str | Path) -> Nuclei:
    """Return the nuclei of GeoJSON as :func:`read_geojson` does.

    Args:
        data: Plain data: a collection, a list of features, or a feature.
        path: The file they are from; named in errors.

    Raises:
        DataError: If the data are not of this form.
    """
    try:
        features = _feature_list(data)
        known = data.get("cellvit") if isinstance(data, Mapping) else None
        if known is None:
            classes, ids = _named_classes(features)
        else:
            classes, ids = classes_from_list(known["classes"], source=str(path)), {}
        rows = Rows()
        for feature in features:
            _add_feature(rows, feature, ids)
        return rows.to_nuclei(classes)
    except DataError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        message = f"{str(path)!r} is not GeoJSON of nuclei ({type(error).__name__}: {error}); export it again"
        raise DataError(message) from error


def _feature_list(data: Any) -> list[Any]:
    """Return the features of a collection, a list or a single feature."""
    if isinstance(data, list):
        return data
    if data["type"] == "FeatureCollection":
        return list(data["features"])
    if data["type"] == "Feature":
        return [data]
    raise ValueError(f"type {data['type']!r} instead of FeatureCollection")


def _classification(feature: Any) -> Mapping[str, Any]:
    """Return the classification of a feature, empty if it has none."""
    properties = feature.get("properties") or {}
    return properties.get("classification") or {}


def _named_classes(features: list[Any]) -> tuple[NucleiClasses | None, dict[str, int]]:
    """Return classes for the names that occur in features, and the id of each name."""
    found: dict[str, Any] = {}
    for feature in features:
        entry = _classification(feature)
        if entry.get("name") is not None:
            found.setdefault(str(entry["name"]), entry.get("color"))
    if not found:
        return None, {}
    pannuke = set(found) <= set(PANNUKE_COLORS)
    names = ["Background", *(PANNUKE_COLORS if pannuke else found)]
    colors = list(standard_colors(names))
    for i, name in enumerate(names[1:], start=1):
        stated = found.get(name)
        if isinstance(stated, list) and len(stated) == 3:
            colors[i] = (int(stated[0]), int(stated[1]), int(stated[2]))
    return NucleiClasses(tuple(names), tuple(colors)), {name: i for i, name in enumerate(names) if i}


def _add_feature(rows: Rows, feature: Any, ids: Mapping[str, int]) -> None:
    """Append the nuclei of one feature."""
    geometry, properties = feature["geometry"], feature.get("properties") or {}
    kind, coordinates = geometry["type"], geometry["coordinates"]
    exact = properties.get("nucleus") or {}
    common: dict[str, Any] = {
        "type": exact.get("type", ids.get(str(_classification(feature).get("name")), 0)),
        "type_prob": _measurement(properties, PROBABILITY),
    }
    if kind == "MultiPolygon":
        for polygon in coordinates:
            # some writers leave out one level of brackets, so that a polygon is its outer ring
            rows.add(contour=polygon if isinstance(polygon[0][0], int | float) else polygon[0], **common)
    elif kind == "MultiPoint":
        for point in coordinates:
            rows.add(centroid=point, **common)
    elif kind in ("Polygon", "Point"):
        shape = {"contour": coordinates[0]} if kind == "Polygon" else {"centroid": coordinates}
        given = {key: exact[key] for key in ("centroid", "label") if key in exact}
        rows.add(bbox=feature.get("bbox"), **{**common, **shape, **given})
    else:
        raise ValueError(f"geometry {kind!r}; only polygons and points are nuclei")


def _measurement(properties: Mapping[str, Any], name: str) -> float | None:
    """Return a measurement from either form QuPath has used, or None."""
    measurements = properties.get("measurements") or {}
    if isinstance(measurements, list):
        measurements = {entry["name"]: entry["value"] for entry in measurements}
    value = measurements.get(name)
    return None if value is None else float(value)
