"""Files of annotations as labels in pixels of a slide: which objects count, what their classes are called."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.errors import CellViTError, DataError
from cellvit.io.annotations.base import Annotations, Unit, read_annotations

Objects = Literal["auto", "drawn", "found", "all"]
"""Of a file with annotations of people and detections of programs: the former where there are some, or which ones."""

_IGNORED = "*"  # at the end of a class of QuPath: of no interest, such as "Ignore*" and "Region*"


@dataclass(frozen=True)
class LabelSettings:
    """How annotations become labels.

    Attributes:
        class_map: Names in the files and what each is to be called; the empty name withdraws labels.
        class_name: Class of what states none.
        objects: Which objects of QuPath count.
        unit: Of the coordinates; None: as the files say, else pixels.
        scale: Coordinates are multiplied by it, as for files that were made on a smaller level of the slide.
        shift: ``(x, y)`` level-0 pixels, added after that.
        image: Name of the slide without suffix, where a file holds annotations of several.
        mpp: Micrometres per pixel of level 0; None where not known.
    """

    class_map: Mapping[str, str] = field(default_factory=dict)
    class_name: str = ""
    objects: Objects = "auto"
    unit: Unit | None = None
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    image: str = ""
    mpp: float | None = None


@dataclass(frozen=True, eq=False)
class GivenLabels:
    """The labels of several files, in level-0 pixels.

    Attributes:
        geometry: ``(K,)`` shapely geometries.
        class_name: ``(K,)`` object; the empty name withdraws.
        single: ``(K,)`` bool, whether it outlines one nucleus, as detections do.
        source: ``(K,)`` object, names of files.
        failed: Files that could not be used, and why.
        notes: What the user should know; sentences.
    """

    geometry: NDArray[Any]
    class_name: NDArray[np.object_]
    single: NDArray[np.bool_]
    source: NDArray[np.object_]
    failed: Mapping[str, str]
    notes: tuple[str, ...]


def read_given(files: Iterable[Path], settings: LabelSettings) -> GivenLabels:
    """Return the labels of files; one that cannot be used is kept with the reason, and the others are read.

    Args:
        files: See :func:`cellvit.io.annotations.base.read_annotations`.
        settings: How they become labels.

    Raises:
        DataError: If no file holds a label.
    """
    failed: dict[str, str] = {}
    notes: list[str] = []
    parts: list[tuple[str, Annotations]] = []
    for path in files:
        try:
            annotations = read_annotations(path, image=settings.image, class_name=settings.class_name)
            chosen, said = _chosen(annotations, settings.objects)
            parts.append((path.name, _placed(chosen, settings)))
            notes += [f"{path.name!r}: {text}" for text in (*annotations.notes, *said)]
        except (CellViTError, OSError) as error:
            failed[path.name] = str(error)
    if not any(len(part) for _, part in parts):
        reasons = [*failed.values(), *notes] or ["the files hold none with a class"]
        raise DataError(f"no labels: {'; '.join(reasons)}")
    names = np.concatenate([part.class_name for _, part in parts])
    return GivenLabels(
        geometry=np.concatenate([part.geometry for _, part in parts]),
        class_name=np.array([settings.class_map.get(name, name) for name in names.tolist()], object),
        single=np.concatenate([part.found for _, part in parts]),
        source=np.concatenate([np.full(len(part), name, object) for name, part in parts]),
        failed=failed,
        notes=tuple(notes),
    )


def _chosen(annotations: Annotations, objects: Objects) -> tuple[Annotations, list[str]]:
    """Return the annotations that are labels, and what is said of the others."""
    named = annotations.class_name != ""
    ignored = np.array([str(name).endswith(_IGNORED) for name in annotations.class_name], bool)
    useful, drawn = named & ~ignored, ~annotations.found
    notes = []
    if nameless := int((~named).sum()):
        notes.append(f"{nameless:,} annotations have no class and were left out; pass class_name='Tumor' to give one")
    if ignored.any():
        notes.append(f"{int(ignored.sum()):,} annotations have a class that ends in '*' and were left out")
    if objects == "all":
        return annotations.select(useful), notes
    people = objects == "drawn" or (objects == "auto" and bool((useful & drawn).any()))
    kept = useful & (drawn if people else ~drawn)
    if other := int((useful & ~kept).sum()):
        what = "detections" if people else "drawn annotations"
        notes.append(f"{other:,} {what} with a class were left out; pass objects='all' to take them in")
    return annotations.select(kept), notes


def _placed(annotations: Annotations, settings: LabelSettings) -> Annotations:
    """Return annotations in level-0 pixels."""
    factor = settings.scale
    if (settings.unit or annotations.unit) == "um":
        if settings.mpp is None:
            raise DataError("the coordinates are micrometres, and the nuclei state no resolution; pass mpp=0.25")
        factor /= settings.mpp
    if factor == 1 and settings.shift == (0, 0):
        return annotations
    moved = shapely.transform(annotations.geometry, lambda points: points * factor + settings.shift)
    return Annotations(moved, annotations.class_name, annotations.found)
