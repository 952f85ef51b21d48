"""Nuclei as GeoJSON that QuPath reads: one object per nucleus, so each can be selected and edited."""

import hashlib
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from cellvit.classes import classes_from_list, classes_to_list, type_color, type_name
from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import FurtherRings, close_rings, polygon_area, ring_bounds, ring_offsets
from cellvit.io import text as tables
from cellvit.io.atomic import atomic_text
from cellvit.io.frames import PIXEL_CENTRES, stated_frame
from cellvit.io.limits import MALFORMED, brief
from cellvit.io.measurement_names import name_from_qupath, qupath_name
from cellvit.io.provenance import mpp_of, with_mpp
from cellvit.io.qupath import (
    RESULTS,
    QuPathObject,
    class_of,
    has_results,
    listed,
    mapping_of,
    measurements_of,
    objects_of,
    parts_of,
    plain,
)
from cellvit.io.schema import load_json
from cellvit.io.stated_types import StatedTypes
from cellvit.io.stream import NucleiStream, TableStream, blocks
from cellvit.io.text import (
    Rows,
    encode,
    plain_numbers,
    ring_texts,
    shortest_floats,
    write_lines,
)
from cellvit.io.valid_polygons import simplified_rings, valid_rings
from cellvit.types import PIXEL_CORNERS, Nuclei, NucleiClasses

ObjectType = Literal["annotation", "detection", "cell"]
"""Kinds of object in QuPath: a detection is light, an annotation can be edited, a cell has a nucleus."""

PROBABILITY = "Type probability"
AREA = "Area px^2"
LABEL = "Nucleus: Label"
"""A measurement, for other programs keep these. Files that count from the centres of pixels have none."""

_NAMESPACE = uuid.UUID("6d0a8f0e-3c50-5b0c-9a53-2f6c5e1f7a11")


def write_geojson(
    nuclei: Nuclei,
    path: str | Path,
    *,
    object_type: ObjectType = "detection",
    points: bool = False,
    simplify: float = 0.0,
) -> None:
    """Write nuclei as a GeoJSON FeatureCollection for QuPath; one feature per nucleus, one per line.

    Every polygon is closed and valid (see :func:`cellvit.io.valid_polygons.valid_rings`). Ids depend on the nuclei
    alone, so the same nuclei give the same bytes. Nuclei without a known type have no classification. Measurements have
    the names of QuPath where it has one; a value that is not known is left out. Coordinates count as QuPath counts
    them: pixel ``i`` covers ``[i, i + 1)``.

    Args:
        nuclei: The nuclei, in pixels of the full-resolution image; embeddings are not written.
        path: The file, ``.geojson`` or ``.geojson.gz``.
        object_type: What QuPath makes of a feature.
        points: The light variant: only a point at each centroid, without box, area and further measurements.
        simplify: Pixels by which an outline may deviate to have fewer points; areas stay the same. 0 writes it exactly.

    Raises:
        ConfigError: If the object type is unknown, or ``simplify`` is below 0.
        DataError: If a coordinate is not finite.
        OutputError: If the file cannot be written.
    """
    write_geojson_stream(
        TableStream(nuclei), path, object_type=object_type, points=points, simplify=simplify, mpp=nuclei.mpp
    )


def write_geojson_stream(
    stream: NucleiStream,
    path: str | Path,
    *,
    object_type: ObjectType = "detection",
    points: bool = False,
    simplify: float = 0.0,
    mpp: float | None = None,
) -> None:
    """Write nuclei that come in chunks as :func:`write_geojson` does: the same nuclei give the same bytes.

    Args:
        stream: The nuclei; of embeddings it is best read without. Iterated once.
        path: The file, ``.geojson`` or ``.geojson.gz``.
        object_type: What QuPath makes of a feature.
        points: The light variant: only a point at each centroid, without box, area and further measurements.
        simplify: Pixels by which an outline may deviate to have fewer points; areas stay the same.
        mpp: Microns per pixel, which the head of the file states; None where not known.

    Raises:
        ConfigError: If the object type is unknown, or ``simplify`` is below 0.
        DataError: If a coordinate is not finite.
        OutputError: If the file cannot be written.
    """
    if not 0 <= simplify < float("inf"):
        raise ConfigError(f"simplify {simplify} is no distance; give 0 or more")
    if object_type not in get_args(ObjectType):
        raise ConfigError(f"object_type {object_type!r} is unknown to QuPath; choose from {get_args(ObjectType)}")
    facts = {"version": 2, "frame": PIXEL_CORNERS, "classes": classes_to_list(stream.classes)}
    head = encode(with_mpp(facts, mpp))
    with atomic_text(path) as file:
        file.write(f'{{"type":"FeatureCollection","cellvit":{head},"features":[')
        write_lines(file, _entries(stream, object_type, points=points, simplify=simplify))


def _entries(stream: NucleiStream, object_type: str, *, points: bool, simplify: float) -> Iterator[Iterator[str]]:
    """Yield the features of all nuclei, some at a time."""
    for row, block in blocks(stream, tables.CHUNK, classes=stream.classes, embedding_dim=None):
        tables.check_finite(block, first=row)
        shapes = None if points else _polygons(block, row, simplify)
        yield _features(block, row, object_type, shapes)


def _features(nuclei: Nuclei, row: int, object_type: str, shapes: Iterator[tuple[str, float]] | None) -> Iterator[str]:
    """Yield the features of some nuclei as text; ``row`` is the number of the first."""
    kinds = {kind: _classification_text(nuclei.classes, kind) for kind in np.unique(nuclei.type).tolist()}
    boxes = plain_numbers(nuclei.bbox).tolist()
    probabilities = shortest_floats(nuclei.type_prob)
    further = [""] * len(nuclei) if shapes is None else _measurement_texts(nuclei)
    columns = zip(nuclei.label.tolist(), nuclei.type.tolist(), nuclei.centroid.tolist(), boxes, strict=True)
    for i, (label, kind, (x, y), (left, top, right, bottom)) in enumerate(columns):
        identity = _identity(f"{row + i} {label} [{x}, {y}] [{left}, {top}, {right}, {bottom}]")
        measured = f'"{LABEL}":{label}'
        if probabilities[i] is not None:
            measured += f',"{PROBABILITY}":{probabilities[i]}'
        # QuPath ignores what it does not know; read_geojson needs "nucleus" to be exact
        exact = f'"type":{kind}'
        box, geometry = "", f'"Point","coordinates":[{x},{y}]'
        if shapes is not None:
            ring, area = next(shapes)
            measured += f',"{AREA}":{area}{further[i]}'
            exact += f',"centroid":[{x},{y}]'
            box, geometry = f'"bbox":[{left},{top},{right},{bottom}],', f'"Polygon","coordinates":[{ring}]'
        yield (
            f'{{"type":"Feature","id":"{identity}","properties":{{"objectType":"{object_type}",{kinds[kind]}'
            f'"measurements":{{{measured}}},"nucleus":{{{exact}}}}},{box}"geometry":{{"type":{geometry}}}}}'
        )


def _measurement_texts(nuclei: Nuclei) -> list[str]:
    """Return the measurements of every nucleus as members of an object, each behind a comma."""
    if not nuclei.measurements:
        return [""] * len(nuclei)
    import pyarrow as pa  # here: not every reader of GeoJSON needs it
    import pyarrow.compute as pc

    columns = [pa.array([""] * len(nuclei))]
    for name, values in nuclei.measurements.items():
        known = pa.array(values.astype(np.float32), mask=~np.isfinite(values)).cast(pa.string())
        columns.append(pc.binary_join_element_wise(encode(qupath_name(name)), known, ":"))
    return cast("list[str]", pc.binary_join_element_wise(*columns, ",", null_handling="skip").to_pylist())


def _identity(name: str) -> str:
    """Return the UUID of version 5 of a name; several times as fast as :func:`uuid.uuid5`."""
    value = hashlib.sha1(_NAMESPACE.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(value[16], 16) & 3]
    return f"{value[:8]}-{value[8:12]}-5{value[13:16]}-{variant}{value[17:20]}-{value[20:32]}"


def _polygons(nuclei: Nuclei, row: int, simplify: float) -> Iterator[tuple[str, float]]:
    """Return the closed ring as text and the area of every outline."""
    points, offsets = valid_rings(nuclei)
    area = polygon_area(points, offsets)
    if not np.isfinite(area).all():
        broken = row + int(np.flatnonzero(~np.isfinite(area))[0])
        raise DataError(f"the outline of nucleus {broken} is too large to have an area; remove the nucleus")
    if simplify:
        points, offsets = simplified_rings(points, offsets, simplify)
        points = points.round(2)
    return zip(ring_texts(*close_rings(points, offsets)), area.tolist(), strict=True)


def _classification_text(classes: NucleiClasses | None, kind: int) -> str:
    """Return the classification property of a type with a comma behind; empty for nuclei without a type."""
    name = type_name(classes, kind)
    color = [int(c) for c in type_color(classes, kind)]
    return "" if name is None else f'"classification":{encode({"name": name, "color": color})},'


class FoundNuclei(NamedTuple):
    """What a file of outlines says.

    Attributes:
        nuclei: The nuclei; of several pieces the outline is the largest, without its holes.
        further: The other pieces, and the holes.
        notes: What was left out, for the user.
        framed: Whether the file says how it counts coordinates; those of others are taken as QuPath has them.
    """

    nuclei: Nuclei
    further: FurtherRings
    notes: tuple[str, ...] = ()
    framed: bool = False


def is_geojson(data: Any) -> bool:
    """Return whether plain data look like GeoJSON rather than the layout of another tool."""
    return isinstance(data, list) or (isinstance(data, Mapping) and ("type" in data or "geometry" in data))


def read_geojson(path: str | Path) -> Nuclei:
    """Read nuclei from GeoJSON of this package, of QuPath, or of the released tools.

    What is left out is counted in a warning (:class:`UserWarning`): objects that are no nuclei, holes, and all pieces
    of a nucleus but the largest. :func:`found_in_geojson` returns these, too.

    Args:
        path: A FeatureCollection, a bare list of features, one feature, or one geometry; also compressed with gzip. In
            QuPath's words: detections and cells are nuclei, of a cell its ``nucleusGeometry``. Annotations, and objects
            that do not say what they are, are nuclei only where there are no detections and no cells. Tiles, TMA cores,
            lines and what has no place are none. A MultiPolygon is one nucleus, save where every feature is one and
            has a class of its own, as the released tools write it; a MultiPoint is one nucleus per point.

    Returns:
        The nuclei, without embeddings. A file of this package gives back what was written, save repaired outlines.
        Every number among the measurements of an object is kept, under our name where we have one.
        Elsewhere centroids and boxes come from the outlines, a probability not stated is NaN, and classes are those
        of PanNuke if the file names no others, else numbered in the order of their appearance. The name of a class
        wins over the number of a type.

    Raises:
        DataError: If the file is not of this form, or holds objects but no nuclei.
    """
    return nuclei_of_geojson(load_json(path), path)


def nuclei_of_geojson(data: Any, path: str | Path, *, stacklevel: int = 3) -> Nuclei:
    """Return the nuclei of GeoJSON as :func:`read_geojson` does.

    Args:
        data: Plain data: a collection, a list of features, a feature, or a geometry.
        path: The file they are from; named in errors and warnings.
        stacklevel: How many callers up warnings point.

    Raises:
        DataError: If the data are not of this form, or hold objects but no nuclei.
    """
    found = found_in_geojson(data, path)
    for text in (*found.notes, *_lost_rings(found.further, len(found.nuclei))):
        warnings.warn(f"{str(path)!r}: {text}", stacklevel=stacklevel)
    return found.nuclei


def _lost_rings(further: FurtherRings, count: int) -> list[str]:
    """Return what is to be said where each nucleus keeps one outline only."""
    several, holed = (len(np.unique(further.owner[which])) for which in (further.piece > 0, further.piece == 0))
    notes = [f"of nuclei of several pieces the largest is kept ({several:,} of {count:,} nuclei)"] if several else []
    return notes + ([f"holes in nuclei are filled ({holed:,} of {count:,} nuclei)"] if holed else [])


def found_in_geojson(data: Any, path: str | Path) -> FoundNuclei:
    """Return what GeoJSON says of nuclei, with further pieces, holes, and what was left out; warns of nothing.

    Args:
        data: Plain data: a collection, a list of features, a feature, or a geometry.
        path: The file they are from; named in errors.

    Raises:
        DataError: If the data are not of this form, or hold objects but no nuclei.
    """
    try:
        return _found(data, str(path))
    except DataError:
        raise
    except MALFORMED as error:
        message = f"{str(path)!r} is not GeoJSON of nuclei ({brief(error)}); export it again"
        raise DataError(message) from error


def _found(data: Any, path: str) -> FoundNuclei:
    objects = list(objects_of(data))
    own = data.get("cellvit") if isinstance(data, Mapping) else None
    classes = None if own is None else classes_from_list(own["classes"], source=path)
    types, left_out = StatedTypes(classes, listed=own is not None), Counter[str]()
    chosen = _nuclei_among(objects, left_out)
    frame = _frame_of(own, chosen, path)
    collector = _Collector(types, left_out, frame or PIXEL_CORNERS, separate=_one_feature_per_class(chosen))
    for item in chosen:
        collector.add(item)
    if not collector.rows.type and left_out:
        advice = "export detections, cells, or annotations that outline nuclei"
        raise DataError(f"{path!r} holds no nuclei but {listed(left_out)}; {advice}")
    nuclei = collector.nuclei(trusted=own is not None)
    ids, classes, notes = types.resolve(nuclei.type.astype(np.int64))
    notes += _cells_without_nuclei(chosen)
    if left_out:
        notes.append(f"{left_out.total():,} of {len(objects):,} objects are no nuclei and left out: {listed(left_out)}")
    nuclei = replace(nuclei, type=ids, classes=classes, mpp=mpp_of(own))
    return FoundNuclei(nuclei, collector.further(), tuple(notes), framed=frame is not None)


def _frame_of(own: Mapping[str, Any] | None, chosen: Sequence[QuPathObject], path: str) -> str | None:
    """Return the frame of a file of this package, or None: by its head, or what other programs have left of it."""
    if own is not None:
        return stated_frame(own, repr(path))
    if any(LABEL in measurements_of(item.properties) or _is_row(item.properties) for item in chosen):
        return PIXEL_CORNERS
    return PIXEL_CENTRES if any("label" in mapping_of(item.properties, "nucleus") for item in chosen) else None


def _is_row(properties: Mapping[str, Any]) -> bool:
    """Return whether properties are the columns of a table of this package."""
    return {"label", "type_prob", "classification"} <= properties.keys()


def _nuclei_among(objects: Sequence[QuPathObject], left_out: Counter[str]) -> list[QuPathObject]:
    """Return the objects that are nuclei; the others are counted by kind and reason."""
    results = has_results(objects)
    nucleated = any(item.kind == "cell" and item.nucleus for item in objects)
    chosen = []
    for item in objects:
        reason = _why_no_nucleus(item, results=results, nucleated=nucleated)
        if reason is None:
            chosen.append(item)
        else:
            left_out[f"{item.name} {reason}".rstrip()] += 1
    return chosen


def _why_no_nucleus(item: QuPathObject, *, results: bool, nucleated: bool) -> str | None:
    """Return why an object is no nucleus, or None; ``nucleated``: there are cells that state their nucleus."""
    if item.inside in RESULTS:
        return f"inside a {item.inside}"
    if item.kind in ("tile", "TMA core", "root"):
        return ""
    if item.kind not in RESULTS and (results or item.parent):
        return "around other objects" if item.parent else "beside detections or cells"
    if not (item.nucleus or item.geometry):
        return "without a place"
    return "without a nucleus" if item.kind == "cell" and nucleated and not item.nucleus else None


def _cells_without_nuclei(chosen: Sequence[QuPathObject]) -> list[str]:
    """Return what is to be said of cells of other programs whose outline is all there is."""
    wide = sum(i.kind == "cell" and not i.nucleus and "nucleus" not in i.properties for i in chosen)
    if not wide:
        return []
    share = f"{wide:,} of {len(chosen):,} nuclei"
    return [
        f"of cells that state no nucleus (nucleusGeometry) the outline of the cell is taken, which is wider ({share})"
    ]


def _one_feature_per_class(chosen: Sequence[QuPathObject]) -> bool:
    """Return whether each feature holds all nuclei of one class, as the released tools write it."""
    released = all(
        item.kind not in RESULTS and item.geometry["type"] in ("MultiPolygon", "MultiPoint") for item in chosen
    )
    return released and len({class_of(item.properties).name for item in chosen}) == len(chosen)


@dataclass
class _Collector:
    """The nuclei of a file, one after the other."""

    types: StatedTypes
    left_out: Counter[str]
    frame: str
    separate: bool
    rows: Rows = field(default_factory=Rows)
    rings: list[tuple[int, int, Any]] = field(default_factory=list)

    def add(self, item: QuPathObject) -> None:
        """Append the nuclei of an object: one, save for points and where every polygon is one."""
        polygons, points = self._shapes(item)
        exact = item.properties if _is_row(item.properties) else mapping_of(item.properties, "nucleus")
        measured = measurements_of(item.properties)
        label, prob = measured.pop(LABEL, None), measured.pop(PROBABILITY, None)
        label = exact.get("label") if label is None else int(label)
        common: dict[str, Any] = {
            "type": self.types.code(class_of(item.properties), exact.get("type")),
            "type_prob": exact.get("type_prob") if prob is None else prob,
            "measured": {name_from_qupath(name): value for name, value in measured.items() if name != AREA},
        }
        if len(polygons) + len(points) == 1 and not item.nucleus:
            common |= {"bbox": item.bbox, "label": label, "centroid": _stated_point(exact)}
        elif not self.separate and polygons:
            common["label"] = label
        if len(polygons) > 1 and not self.separate:
            polygons.sort(key=lambda rings: _ring_area(rings[0]), reverse=True)
            self._add_rings(polygons)
            self.rows.add(contour=polygons[0][0], **common)
            return
        for rings in polygons:
            self._add_rings([rings])
            self.rows.add(contour=rings[0], **common)
        for point in points:
            self.rows.add(**{**common, "centroid": common.get("centroid") or point})

    def _shapes(self, item: QuPathObject) -> tuple[list[Any], list[Any]]:
        """Return the polygons of an object, or its points if it has none; all else is counted as left out."""
        found: dict[str, list[Any]] = {"Polygon": [], "Point": [], "LineString": []}
        for kind, coordinates in parts_of(item.nucleus or item.geometry):
            if coordinates and (kind != "Polygon" or coordinates[0]):
                found[kind].append(coordinates)
        used = "Polygon" if found["Polygon"] else "Point"
        if not found[used] and not found["LineString"]:
            self.left_out[f"{item.name} without a place"] += 1
        for kind in found.keys() - {used}:
            if found[kind]:
                self.left_out[f"{item.name} ({kind})"] += len(found[kind])
        return (found["Polygon"], []) if found["Polygon"] else ([], found["Point"])

    def _add_rings(self, polygons: Sequence[Any]) -> None:
        """Keep all rings of the next nucleus but its outline."""
        row = len(self.rows.type)
        for piece, rings in enumerate(polygons):
            self.rings += [(row, piece, ring) for ring in rings[piece == 0 :] if ring]

    def nuclei(self, *, trusted: bool) -> Nuclei:
        """Return the nuclei, whose types are codes still.

        Args:
            trusted: False where another program wrote the file and may have moved the outlines: centroids and boxes
                that do not fit to them are computed anew.
        """
        nuclei = self.rows.to_nuclei(None, frame=self.frame)
        if trusted:
            return nuclei
        around = ring_bounds(nuclei.contour_points, nuclei.contour_offsets)
        drawn = ~np.isnan(around[:, 0])
        outside = (nuclei.centroid < around[:, :2]) | (nuclei.centroid > around[:, 2:])
        for column, stale in ((self.rows.centroid, outside), (self.rows.bbox, np.abs(nuclei.bbox - around) > 1)):
            for row in np.flatnonzero(stale.any(axis=1) & drawn).tolist():
                column[row] = None
        return self.rows.to_nuclei(None, frame=self.frame)

    def further(self) -> FurtherRings:
        """Return holes and further pieces."""
        points = [np.asarray(ring, np.float64)[:, :2] for _, _, ring in self.rings]
        if self.frame == PIXEL_CENTRES:
            points = [ring + 0.5 for ring in points]
        owner, piece = (np.array([entry[i] for entry in self.rings], np.int64) for i in (0, 1))
        offsets = ring_offsets([len(ring) for ring in points])
        return FurtherRings(np.concatenate([np.zeros((0, 2)), *points]), offsets, owner, piece)


def _stated_point(exact: Mapping[str, Any]) -> Any:
    """Return a centroid, unless another program has made of it what cannot be read."""
    stated = plain(exact.get("centroid"))
    return stated if isinstance(stated, list) else None


def _ring_area(ring: Any) -> float:
    """Return the area that a ring of plain data encloses."""
    points = np.asarray(ring, np.float64)
    return float(polygon_area(points, np.array([0, len(points)]))[0])
