"""All about one nucleus, and which nucleus lies at a place."""

import math
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.classes import type_label
from cellvit.geometry.polygons import ring_lengths, select_rings
from cellvit.io.format import visible
from cellvit.io.valid_polygons import polygons_from_rings
from cellvit.viewer.outlines import OutlineFile
from cellvit.viewer.table import NucleiTable

_NEIGHBORS = 6
_REACH = 128.0  # level-0 pixels from its centroid that a nucleus may extend
_PROBABILITIES = "type_probabilities"


def nucleus_facts(
    table: NucleiTable, outlines: OutlineFile | None, place: int, *, mpp: tuple[float, float] | None
) -> dict[str, Any]:
    """Return what is known of a nucleus.

    Args:
        table: The nuclei.
        outlines: Their outlines; None without.
        place: Of the nucleus in the columns of the table.
        mpp: ``(x, y)`` micrometres per pixel; None where not known.
    """
    row, kind = int(table.row[place]), int(table.kind[place])
    stated = table.facts(row)
    outline = None if outlines is None else _outline(table, outlines, place)
    area = stated.get("area_um2")
    if area is None and outline is not None and mpp is not None and len(outline) > 2:
        area = float(shapely.Polygon(outline).area * mpp[0] * mpp[1])
    found = stated.get(_PROBABILITIES)
    found = found if isinstance(found, list) else None
    names = (table.named.names if table.named else ())[1:]
    return {
        "row": row,
        "id": stated.get("label"),
        "x": float(table.x[place]),
        "y": float(table.y[place]),
        "class": kind,
        "class_name": visible(type_label(table.named, kind)),
        "probability": stated.get("type_prob"),
        "probabilities": None if found is None else dict(zip(map(visible, names), found, strict=False)),
        "area_um2": area,
        "outline": None if outline is None else outline.round(2),
        "measurements": _measurements(table, stated),
        "neighbors": _neighbors(table, place, mpp),
        "label": None,
    }


def nucleus_at(
    table: NucleiTable, outlines: OutlineFile | None, point: tuple[float, float], *, radius: float
) -> int | None:
    """Return the place in the columns of the nucleus at a point: the one around it, else the nearest; None for none.

    Args:
        table: The nuclei.
        outlines: Their outlines; None without.
        point: ``(x, y)`` level-0 pixels.
        radius: Pixels within which the centroid must lie where no outline is around the point.
    """
    x, y = point
    reach = max(radius, _REACH)
    near = np.flatnonzero((np.abs(table.x - np.float32(x)) <= reach) & (np.abs(table.y - np.float32(y)) <= reach))
    distance = np.hypot(table.x[near] - x, table.y[near] - y)
    if outlines is not None and len(near):
        around = _contains(table, outlines, near, point)
        if around.any():
            return int(near[around][np.argmin(distance[around])])
    inside = distance <= radius
    return int(near[inside][np.argmin(distance[inside])]) if inside.any() else None


def _outline(table: NucleiTable, outlines: OutlineFile, place: int) -> NDArray[np.float64]:
    points, _ = outlines.read(np.array([place]))
    centre = np.array([table.x[place], table.y[place]], np.float64)
    return centre + points


def _contains(
    table: NucleiTable, outlines: OutlineFile, near: NDArray[np.int64], point: tuple[float, float]
) -> NDArray[np.bool_]:
    """Return which outlines are around a point."""
    points, offsets = outlines.read(near)
    lengths = ring_lengths(offsets)
    placed = points + np.repeat(np.stack([table.x[near], table.y[near]], axis=1), lengths, axis=0)
    drawn = np.flatnonzero(lengths > 2)
    found = np.zeros(len(near), bool)
    shapes = polygons_from_rings(*select_rings(placed.astype(np.float64), offsets, drawn))
    found[drawn] = shapely.intersects_xy(shapes, *point)
    return found


def _measurements(table: NucleiTable, stated: dict[str, Any]) -> list[dict[str, Any]]:
    """Return name, value and unit of what was measured, in the order of the table."""
    found = []
    for column in table.columns:
        value = stated.get(column.name)
        if column.name == "type_prob" or value is None:
            continue
        if isinstance(value, float):
            value = value if math.isfinite(value) else None
        shown = visible(value) if column.kind == "category" else value
        found.append({"name": column.name, "label": column.label, "value": shown, "unit": column.unit})
    return found


def _neighbors(table: NucleiTable, place: int, mpp: tuple[float, float] | None) -> list[dict[str, Any]]:
    """Return the nearest other nuclei, the nearest first."""
    across, down = mpp or (1.0, 1.0)
    squared = ((table.x - table.x[place]) * across) ** 2 + ((table.y - table.y[place]) * down) ** 2
    squared[place] = np.inf
    count = min(_NEIGHBORS, len(table) - 1)
    nearest = np.argpartition(squared, count - 1)[:count] if count > 0 else np.zeros(0, np.int64)
    nearest = nearest[np.argsort(squared[nearest], kind="stable")]
    length = "distance_px" if mpp is None else "distance_um"
    return [
        {
            "row": int(table.row[i]),
            "distance_um": None,
            length: round(float(np.sqrt(squared[i])), 2),
            "class": int(table.kind[i]),
            "x": float(table.x[i]),
            "y": float(table.y[i]),
        }
        for i in nearest.tolist()
    ]
