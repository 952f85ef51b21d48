"""Regions of ImageJ and Fiji as annotations."""

import re
from collections import Counter
from typing import Any

import numpy as np
import shapely

from cellvit.io.annotations.base import ANNOTATIONS, AnnotationFile, AnnotationReader, Annotations
from cellvit.io.loaded import notes_of
from cellvit.io.other_outlines import OUTLINES, imagej_regions

_MEANINGLESS = re.compile(r"[\d\s.-]*")  # names that ImageJ gives: places and numbers
_REPEATED = re.compile(r"-\d+$")
_TYPE = re.compile(r"^\s*type\s*:\s*(.+?)\s*$", re.MULTILINE)


@ANNOTATIONS.register("imagej")
class ImageJ(AnnotationReader):
    """Regions of ImageJ: points and areas; the class is the name, where people gave one, else the group."""

    priority = 50

    @classmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether a file is a region, or a zip of regions."""
        from cellvit.io.formats.imagej import ImageJ as Regions

        return Regions.accepts(file.path, file.start)

    def read(self, file: AnnotationFile) -> Annotations:
        """Return points and areas; lines and angles are counted as left out."""
        counts = Counter[str]()
        shapes: list[Any] = []
        names: list[str] = []
        for region in imagej_regions(file.path):
            kind = region.roitype.name.lower()
            if kind == "point":
                points = np.asarray(region.coordinates(), np.float64).reshape(-1, 2)
                found = list(shapely.points(points + (0 if region.subpixelresolution else 0.5)))
            elif kind in OUTLINES:
                parts = [np.asarray(part, np.float64) for part in region.coordinates(multi=True)]
                polygons = [shapely.Polygon(part) for part in parts if len(part) >= 3]
                found = polygons if len(polygons) < 2 else [shapely.MultiPolygon(polygons)]
            else:
                counts[f"regions of the kind {kind!r} are no points or areas and were left out"] += 1
                continue
            shapes += found
            names += [_class_of(region) or file.class_name] * len(found)
        return Annotations.of(shapes, names, notes=notes_of(counts))


def _class_of(region: Any) -> str:
    """Return what our own files state, the name of a region without the number of a repetition, or its group."""
    stated = _TYPE.search(region.props or "")
    if stated:
        return stated[1]
    name = str(region.name or "").strip()
    if not _MEANINGLESS.fullmatch(name):
        return _REPEATED.sub("", name)
    return f"Group {region.group}" if region.group else ""
