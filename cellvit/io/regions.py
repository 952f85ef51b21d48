"""Reading regions of interest that were drawn in QuPath or elsewhere."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.geometry.regions import MAX_CORNERS, Region, simplified
from cellvit.io.limits import MALFORMED, brief
from cellvit.io.qupath import QuPathObject, objects_of, parts_of
from cellvit.io.schema import load_json
from cellvit.io.text import check_coordinates

_TOLERANCES = (1, 2, 4, 8)  # pixels
_NEVER = ("detection", "cell", "tile", "root")  # results, superpixels, and the slide itself: not drawn by anybody


def read_region(path: str | Path) -> tuple[Region, list[str]]:
    """Return the union of all regions of a GeoJSON file, such as QuPath exports of annotations.

    Regions are the polygons of annotations, and of objects that do not say what they are; where there is no such
    polygon, TMA cores that are not missing. Holes stay holes, polygons that cross themselves are repaired. A coordinate
    reference system is ignored.

    Args:
        path: A FeatureCollection, a list of features, one feature, or a bare geometry; also compressed with gzip.

    Returns:
        The region, and what the user should know: what else the file holds, by kind and number, and whether its
        borders were simplified, as those of more than 100,000 corners are.

    Raises:
        DataError: If the file is no such file, no polygon in it encloses an area, or the polygons are too many or cross
            themselves too often to be repaired.
    """
    name = repr(str(path))
    data = load_json(path, advice="export the regions as GeoJSON (in QuPath: File, Export objects as GeoJSON)")
    try:
        polygons, others = _drawn(list(objects_of(data)), name)
    except DataError:
        raise
    except MALFORMED as error:
        message = f"{name} is not GeoJSON of regions ({brief(error)}); export the regions again"
        raise DataError(message) from error
    found = ", ".join(f"{number:,} {what}" for what, number in sorted(others.items()))
    if not polygons:
        message = f"{name} holds no polygon but {found or 'nothing'}; draw areas (rectangle, ellipse, polygon or brush "
        raise DataError(message + "in QuPath) and export these annotations as GeoJSON")
    notes = [f"beside the regions, {name} holds {found}: left out"] if found else []
    polygons, remarks = _manageable(polygons, name)
    notes += remarks
    try:
        return Region.of_polygons(polygons), notes
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _manageable(polygons: list[Any], name: str) -> tuple[list[Any], list[str]]:
    """Return polygons simplified by as much as it takes, and what was done."""
    corners = fewer = int(shapely.get_num_coordinates(polygons).sum())
    tolerance, simpler = 0, polygons
    for tolerance in _TOLERANCES if corners > MAX_CORNERS else ():
        simpler = [simplified(polygon, tolerance) for polygon in polygons]
        fewer = int(shapely.get_num_coordinates(simpler).sum())
        if fewer <= MAX_CORNERS:
            break
    if fewer == corners:
        return polygons, []
    text = f"the regions in {name} have {corners:,} corners and were simplified to {fewer:,}"
    return simpler, [f"{text}; their borders moved by {tolerance} px at most"]


def _drawn(objects: Iterable[QuPathObject], name: str) -> tuple[list[Any], Counter[str]]:
    """Return the polygons that count, and the number of what does not, by kind."""
    annotations: list[Any] = []
    cores: list[Any] = []
    others = Counter[str]()
    for item in objects:
        if item.kind in _NEVER:
            others[f"of type {item.kind}"] += 1
        elif item.properties.get("isMissing") is True:
            others["of type missing TMA core"] += 1
        elif not item.geometry:
            others["without a place"] += 1
        elif item.kind == "TMA core":
            cores += _polygons(item, name, others)
        else:
            annotations += _polygons(item, name, others)
    if annotations and cores:
        others["of type TMA core"] += len(cores)
    return annotations or cores, others


def _polygons(item: QuPathObject, name: str, others: Counter[str]) -> list[Any]:
    """Return the polygons of an object; what else it consists of is counted."""
    found = []
    for kind, coordinates in parts_of(item.geometry):
        if kind != "Polygon":
            others[f"of type {kind}"] += 1
        elif coordinates:
            rings = [ring_points(ring, name) for ring in coordinates]
            found.append(shapely.Polygon(rings[0], rings[1:]))
    return found


def ring_points(ring: Any, name: str) -> NDArray[np.float64]:
    """Return the points of a ring of GeoJSON ``(K, 2)``; heights are dropped.

    Args:
        ring: Plain data.
        name: The file, in quotes; named in errors.

    Raises:
        DataError: If there are fewer than three, or one is not finite.
    """
    points = _points(ring)
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        message = f"point {row} of a polygon in {name} is {points[row].tolist()}; every coordinate must be finite"
        raise DataError(message)
    check_coordinates(points, f"a polygon in {name}")
    if len(points) < 3:
        raise DataError(f"a polygon in {name} has a ring of {len(points)} points; draw it with at least three")
    return points


def _points(ring: Any) -> NDArray[np.float64]:
    """Return points as an array; where some have a height, it is dropped."""
    try:
        points = np.array(ring, np.float64)
    except ValueError:  # not all of one length
        points = np.array([[float(x), float(y)] for x, y, *_ in ring])
    if points.size and (points.ndim != 2 or points.shape[1] < 2):
        raise ValueError(f"points of shape {points.shape}")
    return points[:, :2] if points.size else np.zeros((0, 2))
