"""Annotations of LabelMe."""

from collections import Counter
from typing import Any

import shapely

from cellvit.io.annotations.base import ANNOTATIONS, AnnotationFile, AnnotationReader, Annotations
from cellvit.io.loaded import notes_of, points_of
from cellvit.io.other_outlines import is_labelme, labelme_ring


@ANNOTATIONS.register("labelme")
class LabelMe(AnnotationReader):
    """JSON of LabelMe: points, polygons, rectangles and circles with a label."""

    priority = 60

    @classmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether a file holds shapes of LabelMe."""
        return is_labelme(file.json)

    def read(self, file: AnnotationFile) -> Annotations:
        """Return points and areas; lines are counted as left out."""
        counts = Counter[str]()
        shapes: list[Any] = []
        names: list[str] = []
        for shape in file.json["shapes"]:
            kind, points = str(shape.get("shape_type") or "polygon"), points_of(shape["points"])
            ring = labelme_ring(kind, points)
            if kind == "point":
                shapes.append(shapely.Point(points[0]))
            elif ring is not None and len(ring) >= 3:
                shapes.append(shapely.Polygon(ring))
            else:
                counts[f"shapes of the kind {kind[:20]!r} are no points or areas and were left out"] += 1
                continue
            names.append(str(shape.get("label") or "").strip() or file.class_name)
        return Annotations.of(shapes, names, notes=notes_of(counts))
