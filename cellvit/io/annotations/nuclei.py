"""Typed nuclei of any tool as annotations: one outline is one nucleus."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import type_name
from cellvit.io.annotations.base import ANNOTATIONS, AnnotationFile, AnnotationReader, Annotations
from cellvit.io.detections import read_nuclei
from cellvit.io.file_kind import file_kind
from cellvit.io.formats.label_maps import nuclei_of_loaded
from cellvit.io.loaded import LoadedNuclei
from cellvit.io.valid_polygons import polygons_from_rings, valid_rings


@ANNOTATIONS.register("nuclei")
class TypedNuclei(AnnotationReader):
    """Nuclei with types of any tool: Parquet, label images, .mat, JSON of HoVer-Net, XML of ImageScope."""

    priority = 10

    @classmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether a file is of a kind that nuclei are read from."""
        return file_kind(file.path) is not None

    def read(self, file: AnnotationFile) -> Annotations:
        """Return outlines that a program found."""
        polygons, names, notes = polygons_of(read_nuclei(file.path, image=file.image or None))
        classes = [name or file.class_name for name in names]
        return Annotations.of(polygons, classes, found=np.ones(len(classes), bool), notes=notes)


def polygons_of(loaded: LoadedNuclei) -> tuple[NDArray[Any], list[str], list[str]]:
    """Return the outlines of nuclei, their classes (empty for none), and what the user should know.

    A type that is only a number is called "Type 3".

    Args:
        loaded: What a file says.
    """
    nuclei = nuclei_of_loaded(loaded)
    names = {kind: type_name(nuclei.classes, kind) or "" for kind in np.unique(nuclei.type).tolist()}
    polygons = polygons_from_rings(*valid_rings(nuclei))
    return polygons, [names[kind] for kind in nuclei.type.tolist()], list(map(str, loaded.notes))
