"""Annotations in tables: places with a class, and the points and shapes of napari."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.io.annotations.base import ANNOTATIONS, AnnotationFile, AnnotationReader, Annotations, Unit

_WORD = r"(?:centroid|center|centre|position|pos|coordinate|coord)"
_PLACE = re.compile(
    rf"(?:(?:nucleus|cell|label)[ _:-]*)?(?:{_WORD}[ _-]*)?([xy])(?:[ _-]*{_WORD})?"
    r"[ _-]*[\[(]?(px|pixels?|[u\u00b5\u03bc]m|microns?|micromet(?:er|re)s?)?[\])]?"
)
_CLASSES = (
    *("class", "class_name", "classification", "type", "cell_type", "celltype", "category", "phenotype", "label"),
)
_AXIS = re.compile(r"axis-(\d+)")
_CIRCLE = np.linspace(0, 2 * np.pi, 64, endpoint=False)
_CLOSED = ("polygon", "rectangle", "ellipse")


@ANNOTATIONS.register("csv")
class Csv(AnnotationReader):
    """Table with a row per label: columns x, y (pixels, or micrometres by name) and class."""

    priority = 20

    @classmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether the first line names columns for x and y."""
        return {"x", "y"} <= {axis for axis, _ in _places(_heading(file.start))}

    def read(self, file: AnnotationFile) -> Annotations:
        """Return a point per row; a row without a class withdraws, where the table has a column for it."""
        heading = _heading(file.start)
        places = _places(heading)
        unit: Unit = "px" if {("x", "px"), ("y", "px")} <= places.keys() else "um"
        x, y = places.get(("x", unit)), places.get(("y", unit))
        if x is None or y is None:
            message = f"{str(file.path)!r} has the columns {heading}: x and y are of different units; "
            raise DataError(message + "name them x and y (pixels), or x_um and y_um")
        kind = _class_column(heading)
        if kind is None and not file.class_name:
            message = f"{str(file.path)!r} has the columns {heading}, none of which is a class; "
            raise DataError(message + "name one 'class', or say class_name='Tumor' for all rows")
        columns = _columns(file, text=[x, y, *([kind] if kind else [])])
        points = shapely.points(_numbers(columns[x]), _numbers(columns[y]))
        names = columns[kind] if kind else np.full(len(points), file.class_name, object)
        return Annotations.of(points, names, unit=unit)


@ANNOTATIONS.register("napari")
class Napari(AnnotationReader):
    """Points or shapes layer of napari as CSV; axis 0 is y, axis 1 is x, the name of the layer is the class."""

    priority = 50

    @classmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether the first line names axes."""
        return {"axis-0", "axis-1"} <= set(_heading(file.start))

    def read(self, file: AnnotationFile) -> Annotations:
        """Return points, or polygons, rectangles and ellipses; paths and lines are counted as left out.

        napari counts from the centres of pixels. Of layers with more than two axes the last two are taken.
        """
        heading = _heading(file.start)
        axes = sorted((name for name in heading if _AXIS.fullmatch(name)), key=lambda name: int(name[len("axis-") :]))
        kind = _class_column(heading)
        shaped = {"index", "shape-type", "vertex-index"} <= set(heading)
        columns = _columns(file, text=[*axes, *([kind] if kind else []), *(["index", "shape-type"] if shaped else [])])
        points = np.stack([_numbers(columns[axes[-1]]), _numbers(columns[axes[-2]])], axis=1) + 0.5
        layer = file.class_name or Path(file.path.name).stem
        names = columns[kind] if kind else np.full(len(points), layer, object)
        notes = [] if kind or file.class_name else [f"the name of the file, {layer!r}, was taken for the class of all"]
        if not shaped:
            return Annotations.of(shapely.points(points), names, notes=notes)
        _, first, which = np.unique(columns["index"], return_index=True, return_inverse=True)
        order = np.argsort(which, kind="stable")
        rings = np.split(points[order], np.cumsum(np.bincount(which))[:-1]) if len(points) else []
        drawn = [str(one).strip().lower() for one in columns["shape-type"][first]]
        closed = [i for i, one in enumerate(drawn) if one in _CLOSED and len(rings[i]) >= 3]
        lost = len(rings) - len(closed)
        notes += (
            [f"{lost:,} shapes are paths or lines, or have fewer than three points, and were left out"] if lost else []
        )
        shapes = [shapely.Polygon(_ellipse(rings[i]) if drawn[i] == "ellipse" else rings[i]) for i in closed]
        return Annotations.of(shapes, names[first][closed], notes=notes)


def _heading(start: bytes) -> list[str]:
    """Return the names in the first line of a table."""
    line = start.partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")
    return [name.strip().strip('"').strip() for name in line.split(_separator(line))]


def _separator(line: str) -> str:
    return max(",\t;", key=line.count)


def _places(heading: list[str]) -> dict[tuple[str, Unit], str]:
    """Return the columns of places by axis and unit."""
    found = [(_PLACE.fullmatch(name.casefold()), name) for name in heading]
    places: dict[tuple[str, Unit], str] = {}
    for match, name in found:
        if match:
            unit: Unit = "px" if (match[2] or "px").startswith("p") else "um"
            places.setdefault((match[1], unit), name)
    return places


def _class_column(heading: list[str]) -> str | None:
    """Return the column of classes, or None."""
    plain = {re.sub(r"[ -]", "_", name.casefold()): name for name in reversed(heading)}
    return next((plain[name] for name in _CLASSES if name in plain), None)


def _columns(file: AnnotationFile, *, text: list[str]) -> dict[str, NDArray[Any]]:
    """Return columns as text ``(N,)``."""
    import pyarrow as pa
    from pyarrow import csv

    heading = file.start.partition(b"\n")[0].decode("utf-8", "replace")
    names = _heading(file.start)
    options = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), include_columns=list(dict.fromkeys(text))
    )
    try:
        table = csv.read_csv(
            file.path,
            read_options=csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=csv.ParseOptions(delimiter=_separator(heading)),
            convert_options=options,
        )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(file.path)!r} is no readable table ({error}); write it again as CSV") from error
    return {name: np.array(table[name].to_pylist(), object) for name in table.column_names}


def _numbers(texts: NDArray[Any]) -> NDArray[np.float64]:
    """Return numbers, with a point or a comma; NaN for what is none."""
    from cellvit.io.lengths import number

    plain = [number(text) for text in texts.tolist()]
    return np.array([np.nan if value is None else value for value in plain], np.float64)


def _ellipse(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points on the ellipse in a box, perhaps a turned one, given by its four corners."""
    centre = corners.mean(axis=0)
    one, other = (corners[1] - corners[0]) / 2, (corners[-1] - corners[0]) / 2
    return np.asarray(centre + np.cos(_CIRCLE)[:, None] * one + np.sin(_CIRCLE)[:, None] * other)
