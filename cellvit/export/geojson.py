"""Nuclei as GeoJSON that QuPath reads: one object per nucleus, so each can be selected and edited."""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cellvit.atomic import atomic_text
from cellvit.classes import PANNUKE_COLORS, standard_colors
from cellvit.errors import ConfigError, DataError
from cellvit.export.palette import (
    classes_from_list,
    classes_to_list,
    type_color,
    type_name,
)
from cellvit.export.polygons import valid_rings
from cellvit.export.tables import Rows, check_finite, chunks, encode, load_json, plain_numbers, shortest_floats
from cellvit.geometry import Floats, Offsets, close_rings, polygon_area
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

    Every polygon is closed and valid (see :func:`cellvit.export.polygons.valid_rings`). Ids depend on the nuclei
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
    if object_type not in get_args(ObjectType):
        raise ConfigError(f"object_type {object_type!r} is unknown to QuPath; choose from {get_args(ObjectType)}")
    check_finite(nuclei)
    head = encode({"version": 1, "classes": classes_to_list(nuclei.classes)})
    outlines = None if points else valid_rings(nuclei)
    with atomic_text(path) as file:
        file.write(f'{{"type":"FeatureCollection","cellvit":{head},"features":[')
        separator = "\n"
        for rows in chunks(len(nuclei)):
            features = _features(nuclei, rows, object_type, outlines)
            file.write(separator + ",\n".join(map(encode, features)))
            separator = ",\n"
        file.write("\n]}\n")


def _features(
    nuclei: Nuclei, rows: slice, object_type: str, outlines: tuple[Floats, Offsets] | None
) -> Iterator[dict[str, Any]]:
    """Yield the features of some rows: polygons of the outlines, or points if there are none."""
    classification = _classifications(nuclei)
    centroid, labels, kinds = nuclei.centroid[rows].tolist(), nuclei.label[rows].tolist(), nuclei.type[rows].tolist()
    probabilities = shortest_floats(nuclei.type_prob[rows])
    bbox = plain_numbers(nuclei.bbox[rows]).tolist()
    shapes = None if outlines is None else _polygons(*outlines, rows)
    for i, (label, kind, probability) in enumerate(zip(labels, kinds, probabilities, strict=True)):
        identity = str(uuid.uuid5(_NAMESPACE, f"{rows.start + i} {label} {centroid[i]} {bbox[i]}"))
        measurements = {} if probability is None else {PROBABILITY: probability}
        # QuPath ignores what it does not know; read_geojson needs "nucleus" to be exact
        exact = {"label": label, "type": kind}
        properties = {"objectType": object_type, **classification[kind], "measurements": measurements, "nucleus": exact}
        feature = {"type": "Feature", "id": identity, "properties": properties}
        if shapes is None:
            yield {**feature, "geometry": {"type": "Point", "coordinates": centroid[i]}}
            continue
        ring, measurements[AREA] = next(shapes)
        exact["centroid"] = centroid[i]
        yield {**feature, "bbox": bbox[i], "geometry": {"type": "Polygon", "coordinates": [ring]}}


def _polygons(points: Floats, offsets: Offsets, rows: slice) -> Iterator[tuple[list[list[float]], float]]:
    """Yield the closed ring and the area of some outlines."""
    limits = offsets[rows.start : rows.stop + 1]
    part, local = points[limits[0] : limits[-1]], limits - limits[0]
    closed, bounds = close_rings(part, local)
    coordinates, ends = plain_numbers(closed).tolist(), bounds.tolist()
    for i, area in enumerate(polygon_area(part, local).tolist()):
        yield coordinates[ends[i] : ends[i + 1]], area


def _classifications(nuclei: Nuclei) -> dict[int, dict[str, Any]]:
    """Return the classification property of every type that occurs; empty for nuclei without a type."""
    found: dict[int, dict[str, Any]] = {}
    for kind in np.unique(nuclei.type).tolist():
        name = type_name(nuclei.classes, kind)
        color = [int(c) for c in type_color(nuclei.classes, kind)]
        found[kind] = {} if name is None else {"classification": {"name": name, "color": color}}
    return found


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
    data = load_json(path)
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
