"""Annotations in the layout of COCO."""

from pathlib import Path
from typing import Any

import numpy as np
import shapely

from cellvit.io.annotations.base import ANNOTATIONS, AnnotationFile, AnnotationReader, Annotations
from cellvit.io.annotations.nuclei import polygons_of
from cellvit.io.coco import chosen_image, is_coco, nuclei_of_coco


@ANNOTATIONS.register("coco")
class Coco(AnnotationReader):
    """JSON of COCO: polygons and masks, and boxes where there is neither; categories are classes."""

    priority = 70

    @classmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether a file holds images and annotations of COCO."""
        return file.json is not None and is_coco(file.json)

    def read(self, file: AnnotationFile) -> Annotations:
        """Return areas, and the middle of boxes that have none, of one image."""
        name = file.image or Path(file.path.name).stem
        image = chosen_image(file.json, file.path, name)
        loaded = nuclei_of_coco(file.json, file.path, name=name)
        polygons, kinds, notes = polygons_of(loaded)
        boxes, of = _boxes(file.json, image.id)
        notes = [note for note in notes if "without a polygon" not in note] if boxes else notes
        found = np.zeros(len(polygons) + len(boxes), bool)
        names = [name or file.class_name for name in [*kinds, *of]]
        return Annotations.of([*polygons, *boxes], names, found=found, notes=notes)


def _boxes(data: Any, image: Any) -> tuple[list[Any], list[str]]:
    """Return the middle of boxes of annotations that have no outline, and their classes."""
    if isinstance(data, list):
        return [], []
    categories = {entry["id"]: str(entry["name"]) for entry in data.get("categories") or ()}
    bare = [
        entry
        for entry in data["annotations"]
        if entry["image_id"] == image
        and entry.get("bbox")
        and not entry.get("segmentation")
        and not entry.get("iscrowd")
    ]
    points = [shapely.Point(x + width / 2, y + height / 2) for x, y, width, height in (one["bbox"] for one in bare)]
    return points, [categories.get(entry.get("category_id"), "") for entry in bare]
