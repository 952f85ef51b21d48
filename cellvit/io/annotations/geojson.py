"""Annotations of QuPath, and GeoJSON of other programs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely

from cellvit.io.annotations.base import ANNOTATIONS, AnnotationFile, AnnotationReader, Annotations
from cellvit.io.coco import is_coco
from cellvit.io.frames import PIXEL_CENTRES, stated_frame
from cellvit.io.geojson import is_geojson
from cellvit.io.loaded import notes_of
from cellvit.io.qupath import RESULTS, QuPathObject, class_of, objects_of, parts_of
from cellvit.io.regions import ring_points


@ANNOTATIONS.register("geojson")
class GeoJson(AnnotationReader):
    """GeoJSON of QuPath: points, areas, and detections, each with its class."""

    priority = 50

    @classmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether a file holds features or geometries."""
        data = file.json
        return data is not None and is_geojson(data) and not is_coco(data)

    def read(self, file: AnnotationFile) -> Annotations:
        """Return points and areas; of a cell its nucleus. Lines, tiles and cores of a TMA are counted as left out."""
        counts = Counter[str]()
        shapes: list[Any] = []
        names: list[str] = []
        found: list[bool] = []
        for item in objects_of(file.json):
            if item.kind in ("tile", "TMA core", "root") or item.inside in RESULTS:
                counts[f"objects of the kind {item.kind} were left out"] += 1
                continue
            parts = _shapes(item, str(file.path), counts)
            shapes += parts
            names += [class_of(item.properties).name or file.class_name] * len(parts)
            found += [item.kind in RESULTS] * len(parts)
        own = file.json.get("cellvit") if isinstance(file.json, Mapping) else None
        if own is not None and stated_frame(own, repr(str(file.path))) == PIXEL_CENTRES:
            shapes = list(shapely.transform(np.array(shapes, object), lambda points: points + 0.5))
        return Annotations.of(shapes, names, found=found, notes=notes_of(counts))


def _shapes(item: QuPathObject, source: str, counts: Counter[str]) -> list[Any]:
    """Return the area of an object, of several pieces as one, and each of its points."""
    polygons: list[Any] = []
    points: list[Any] = []
    place = item.nucleus or item.geometry
    for kind, coordinates in parts_of(place) if place else ():
        if kind == "Polygon" and coordinates:
            outer, *holes = (ring_points(ring, repr(source)) for ring in coordinates)
            polygons.append(shapely.Polygon(outer, holes))
        elif kind == "Point" and coordinates:
            points.append(shapely.Point(*map(float, coordinates[:2])))
        else:
            counts["lines were left out" if kind == "LineString" else "objects without a place were left out"] += 1
    if not place:
        counts["objects without a place were left out"] += 1
    area = polygons if len(polygons) < 2 else [shapely.MultiPolygon(polygons)]
    return area + points
