"""Objects of QuPath, and of GeoJSON at large: what each is, where it lies and what class it has.

Regions of interest (:mod:`cellvit.io.regions`) and nuclei (:mod:`cellvit.io.geojson`) are both read through this
module, so that one file means the same to both: what is a region for the one is no nucleus for the other.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

ObjectKind = Literal["annotation", "detection", "cell", "tile", "TMA core", "root"]
"""Kinds of object in QuPath."""

RESULTS = ("detection", "cell")
"""What QuPath or another tool found; where a file has some, its annotations are regions and no nuclei."""

_KINDS: dict[str, ObjectKind] = {
    "annotation": "annotation",
    "detection": "detection",
    "cell": "cell",
    "tile": "tile",
    "tmacore": "TMA core",
    "root": "root",
}
_LONGEST_LITERAL = 10_000
_STATED_IN = ("objectType", "object_type")  # of today's QuPath, of older ones
_PARTS = {"MultiPolygon": "Polygon", "MultiPoint": "Point", "MultiLineString": "LineString"}
_SIMPLE = frozenset(_PARTS.values())
_GEOMETRIES = frozenset({*_PARTS, *_SIMPLE, "GeometryCollection"})


class QuPathObject(NamedTuple):
    """One object of a file.

    Attributes:
        kind: What it is in QuPath; None if the file does not say, as with GeoJSON of other programs.
        geometry: Its GeoJSON geometry; of a cell the outline of the cell. None if it has no place.
        nucleus: The geometry of the nucleus of a cell, or None.
        properties: Its properties.
        bbox: The box that the feature states, or None.
        parent: Whether other objects lie in it (``childObjects``).
        inside: What the object is that it lies in, if the file says so.
    """

    kind: ObjectKind | None
    geometry: Any
    nucleus: Any
    properties: Mapping[str, Any]
    bbox: Any
    parent: bool
    inside: ObjectKind | None

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return self.kind or "object"


def objects_of(data: Any) -> Iterator[QuPathObject]:
    """Yield every object of a file, an object before those in it.

    Args:
        data: Plain data: a FeatureCollection, a list of features or geometries, one feature, or one geometry.

    Raises:
        ValueError: If something else is among them.
        KeyError: If something among them has no type.
    """
    waiting: list[tuple[Any, ObjectKind | None]] = [(data, None)]
    while waiting:
        entry, inside = waiting.pop()
        if isinstance(entry, list):
            waiting.extend((one, inside) for one in reversed(entry))
        elif isinstance(entry, Mapping):
            if "geometry" not in entry and entry["type"] == "FeatureCollection":
                waiting.append((list(entry["features"]), inside))
            elif "geometry" not in entry and entry["type"] in _GEOMETRIES:
                yield QuPathObject(None, entry, None, {}, None, parent=False, inside=inside)
            else:
                found, children = _object(entry, inside)
                yield found
                if children:
                    waiting.append((children, found.kind))
        elif entry is not None:
            raise ValueError(f"{entry!r:.40} instead of a feature or a geometry")


def _object(feature: Mapping[str, Any], inside: ObjectKind | None) -> tuple[QuPathObject, list[Any]]:
    """Return the object that a feature is, and the features in it."""
    if feature.get("type", "Feature") != "Feature":
        raise ValueError(f"type {feature['type']!r} is unknown to GeoJSON")
    properties = plain(feature.get("properties")) or {}
    nucleus = feature.get("nucleusGeometry") or plain(properties.get("nucleusGeometry"))
    children = feature.get("childObjects") or plain(properties.get("childObjects")) or []
    kind = _kind(feature, properties)
    place, bbox = feature.get("geometry"), feature.get("bbox")
    found = QuPathObject(kind, place, nucleus, properties, bbox, parent=bool(children), inside=inside)
    return found, list(children)


def _kind(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> ObjectKind | None:
    """Return what an object is, wherever the versions of QuPath say so."""
    for key in _STATED_IN:
        stated = properties.get(key, feature.get(key))
        if stated is not None and (kind := _KINDS.get(stated) or _KINDS.get(_core(stated))):
            return kind
    for stated in (feature.get("id"), properties.get("id")):  # the oldest ones, such as "PathDetectionObject"
        if isinstance(stated, str) and stated.endswith("Object"):
            return _KINDS.get(_core(stated))
    return None


def _core(stated: Any) -> str:
    """Return the bare kind in a name such as "PathTMACoreObject" or "tma_core"."""
    letters = "".join(c for c in str(stated).lower() if c.isalpha())
    return letters.removeprefix("path").removesuffix("object")


def plain(value: Any) -> Any:
    """Return a value of a property as plain data: some programs write lists and objects as text.

    Example:
        >>> plain('{"name": "Tumor"}'), plain("{'name': 'Tumor'}"), plain("Tumor"), plain(3)
        ({'name': 'Tumor'}, {'name': 'Tumor'}, 'Tumor', 3)
    """
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    for parse in (json.loads, _python_literal):
        try:
            return parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def _python_literal(text: str) -> Any:
    """Return what Python itself makes text of, such as a dict; its parser is not made for long text of strangers."""
    if len(text) > _LONGEST_LITERAL:
        raise ValueError(f"{len(text)} characters")
    return ast.literal_eval(text)


def parts_of(geometry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the coordinates of every Polygon, Point and LineString in a geometry.

    Args:
        geometry: Plain data of any kind that GeoJSON knows. Of a MultiPolygon, polygons may lack one level of
            brackets, as some writers have it: they are their outer ring.

    Raises:
        ValueError: If the geometry is of another kind.
    """
    kind = geometry["type"]
    if kind in _SIMPLE:
        yield kind, geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from (("Polygon", [part] if _is_ring(part) else part) for part in geometry["coordinates"])
    elif kind in _PARTS:
        yield from ((_PARTS[kind], part) for part in geometry["coordinates"])
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from parts_of(part)
    else:
        raise ValueError(f"type {kind!r} is unknown to GeoJSON")


def _is_ring(polygon: Any) -> bool:
    return bool(polygon) and bool(polygon[0]) and isinstance(polygon[0][0], int | float)


class StatedClass(NamedTuple):
    """What an object says of its class.

    Attributes:
        name: The whole path, ``"Tumor: Positive"``; None if the object has no class.
        given: Whether the object says anything, if only that it has none.
        color: Red, green and blue, 0 to 255, or None.
    """

    name: str | None
    given: bool
    color: tuple[int, int, int] | None


_NO_CLASS = StatedClass(None, given=False, color=None)


def class_of(properties: Mapping[str, Any]) -> StatedClass:
    """Return the class of an object.

    Args:
        properties: Of the object. Its ``classification`` is a name or an object; that has a ``name``, which may be the
            whole path or have its ``parentClass`` beside it, or ``names``, from the outer to the inner class.

    Example:
        >>> class_of({"classification": {"names": ["Tumor", "Positive"], "color": [200, 0, 0]}})
        StatedClass(name='Tumor: Positive', given=True, color=(200, 0, 0))
    """
    if "classification" not in properties:
        flat = next((properties[k] for k in ("classification.name", "classification_name") if k in properties), None)
        return _NO_CLASS if flat is None else StatedClass(_path(flat), given=True, color=None)
    stated = plain(properties["classification"])
    return StatedClass(_path(stated), given=True, color=_color(stated) if isinstance(stated, Mapping) else None)


def _path(stated: Any) -> str | None:
    """Return the path of a class, from any form in which it is written."""
    if isinstance(stated, str):
        return stated or None
    if isinstance(stated, list):
        return ": ".join(str(name) for name in stated if name is not None) or None
    if not isinstance(stated, Mapping):
        return None
    if names := plain(stated.get("names")):
        return _path(names)
    name, outer = stated.get("name"), stated.get("parentClass")
    if name is None or not outer:
        return None if name is None else str(name)
    above = _path(plain(outer))
    return str(name) if above is None or str(name).startswith(f"{above}:") else f"{above}: {name}"


def _color(stated: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Return the colour of a class: three numbers, or one as older versions write it."""
    color, packed = stated.get("color"), stated.get("colorRGB")
    if isinstance(color, list) and len(color) >= 3:
        red, green, blue = (min(max(int(value), 0), 255) for value in color[:3])
        return red, green, blue
    if isinstance(packed, int):
        return packed >> 16 & 255, packed >> 8 & 255, packed & 255
    return None


def measurements_of(properties: Mapping[str, Any]) -> dict[str, float]:
    """Return the measurements of an object that are numbers, from either form QuPath has used."""
    measurements = plain(properties.get("measurements")) or {}
    if isinstance(measurements, list):
        measurements = {entry["name"]: entry["value"] for entry in measurements}
    return {name: number for name, value in measurements.items() if (number := _number(value)) is not None}


def _number(value: Any) -> float | None:
    """Return a value as a number, also one that is written as text; None if it is none."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def listed(left_out: Mapping[str, int]) -> str:
    """Return counted things as words, the most first.

    Example:
        >>> listed({"tile": 1, "annotation without a place": 2})
        '2 x annotation without a place, 1 x tile'
    """
    return ", ".join(f"{count:,} x {what}" for what, count in Counter(left_out).most_common())


def has_results(objects: Iterable[QuPathObject]) -> bool:
    """Return whether there are detections or cells among objects."""
    return any(item.kind in RESULTS for item in objects)


def mapping_of(properties: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a property that is an object, empty if there is none of that name."""
    value = plain(properties.get(name))
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
