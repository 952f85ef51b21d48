"""Outlines in XML of Aperio ImageScope: MoNuSeg, MoNuSAC and others."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.io.limits import brief
from cellvit.io.loaded import LoadedNuclei, from_rings

_NO_NAMES = ("", "description")
EXCLUDED = "regions marked as excluded (NegativeROA) were left out"
_ONE_LAYER = "outlines have no type: their only layer is called "


@dataclass(frozen=True)
class Region:
    """One region of an annotation.

    Attributes:
        points: ``(K, 2)`` as (x, y) in pixels.
        layer: Name of its annotation, None if it has none.
        excluded: Whether the region is marked as a part that does not count.
    """

    points: NDArray[np.float64]
    layer: str | None
    excluded: bool


def read_regions(path: Path) -> list[Region]:
    """Read the regions of all annotations.

    Args:
        path: XML with ``Annotation/Regions/Region/Vertices/Vertex`` with ``X`` and ``Y``. An annotation may be named
            by its ``Name`` or by its first attribute that says something, as MoNuSAC names types.

    Raises:
        DataError: If the file is broken, declares a document type, has no annotation, or has points that are no
            numbers.
    """
    try:
        tree = ElementTree.parse(path, ElementTree.XMLParser(target=NoDocumentType()))
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"outlines '{path}' cannot be read ({error}); replace the file") from error
    annotations = list(tree.getroot().iter("Annotation"))
    if not annotations:
        raise DataError(f"outlines '{path}' hold no Annotation; give the XML files of MoNuSeg")
    regions: list[Region] = []
    for annotation in annotations:
        layer = _layer_name(annotation)
        for region in annotation.iterfind("./Regions/Region"):
            points = _points(region, len(regions) + 1, path)
            regions.append(Region(points, layer, region.get("NegativeROA") == "1"))
    return regions


def read_imagescope(path: Path) -> LoadedNuclei:
    """Read the outlines of one image; the names of several layers are types.

    Args:
        path: The file; see :func:`read_regions`.

    Raises:
        DataError: If it cannot be read, or has no outline of three points or more.
    """
    regions = read_regions(path)
    used = [region for region in regions if not region.excluded]
    layers = sorted({region.layer for region in used if region.layer})
    skipped = {EXCLUDED: len(regions) - len(used)}
    if len(layers) == 1:
        skipped[f"{_ONE_LAYER}{layers[0]}"] = len(used)
    kinds = [region.layer if len(layers) > 1 else None for region in used]
    return from_rings(path, [region.points for region in used], kinds, skipped=skipped)


def _points(region: ElementTree.Element, number: int, path: Path) -> NDArray[np.float64]:
    vertices = region.findall("./Vertices/Vertex")
    try:
        points = np.array([(float(v.attrib["X"]), float(v.attrib["Y"])) for v in vertices]).reshape(-1, 2)
    except (KeyError, ValueError) as error:
        raise DataError(f"outlines '{path}': region {number} has a point that is none ({brief(error)})") from error
    if not np.isfinite(points).all():
        raise DataError(f"outlines '{path}': region {number} has a point that is not finite; repair it")
    return points


def _layer_name(annotation: ElementTree.Element) -> str | None:
    """Return what an annotation is called, or None."""
    texts = [annotation.get("Name", "")]
    for attribute in annotation.iterfind("./Attributes/Attribute"):
        texts += [attribute.get("Name", ""), attribute.get("Value", "")]
    return next((text.strip() for text in texts if text.strip().lower() not in _NO_NAMES), None)


class NoDocumentType(ElementTree.TreeBuilder):
    """Builds a tree, and refuses a document type, with which a small file can become a huge one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse it."""
        raise ValueError(f"it declares the document type {name!r}, which is not allowed")
