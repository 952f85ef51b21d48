"""Regions in OME-XML, for OMERO, Bio-Formats and what reads their model."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import type_color, type_label
from cellvit.errors import DataError
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat, image_size
from cellvit.io.imagescope import NoDocumentType
from cellvit.io.provenance import with_mpp
from cellvit.io.stream import NucleiStream, blocks
from cellvit.types import Nuclei

_TAG = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_NAMESPACE = "cellvit"


@FORMATS.register("ome-xml")
class OmeXml(NucleiFormat):
    """Regions in OME-XML for OMERO: a polygon per nucleus, its type as an annotation."""

    file = "nuclei.ome.xml"
    suffixes = (".ome.xml",)
    priority = 50

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is OME-XML."""
        return start.lstrip()[:1] == b"<" and b"<OME" in start

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.data_frames import nuclei_of_rings

        try:
            root = ElementTree.parse(path, ElementTree.XMLParser(target=NoDocumentType())).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            raise DataError(f"{str(path)!r} cannot be read as OME-XML ({error}); write it again") from error
        notes = {
            note.get("ID"): {entry.get("K"): entry.text for entry in note.iter(f"{_TAG}M")}
            for note in root.iter(f"{_TAG}MapAnnotation")
        }
        regions = list(root.iter(f"{_TAG}ROI"))
        polygons = [region.find(f"{_TAG}Union/{_TAG}Polygon") for region in regions]
        drawn = [(region, shape) for region, shape in zip(regions, polygons, strict=True) if shape is not None]
        if len(drawn) < len(regions):
            what = f"{len(regions) - len(drawn):,} of {len(regions):,} regions are no polygons and left out"
            warnings.warn(f"{str(path)!r}: {what}", stacklevel=4)
        try:
            said = [_said(region, notes) for region, _ in drawn]
            labels = [region.get("Name", "") for region, _ in drawn]
            numbered = [int(text) if text.isdecimal() else row for row, text in enumerate(labels, start=1)]
            columns = {
                "label": np.array(numbered, np.int64),
                "type": np.array([one.pop("type", None) for one in said], object),
                "type_id": np.array([int(one.pop("type_id", 0)) for one in said], np.int64),
            }
            for name in dict.fromkeys(name for one in said for name in one):
                columns[name] = np.array([one.get(name, np.nan) for one in said], np.float64)
            rings = [_points(shape) for _, shape in drawn]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{str(path)!r} is no OME-XML of nuclei ({error}); write it again") from error
        return nuclei_of_rings(rings, columns, source=repr(str(path)), about=with_mpp(None, _mpp(root)))

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.atomic import atomic_text
        from cellvit.io.text import CHUNK, check_finite

        width, height = image_size(stream, image)
        kinds = {*range(1, len(stream.classes or ()))}
        for chunk in stream:
            kinds.update(np.unique(chunk.type[chunk.type > 0]).tolist())
        name = quoteattr(_clean(str(image.metadata.get("image", "image")) if image.path is None else image.path.name))
        mpp = "" if image.mpp is None else f' PhysicalSizeX="{image.mpp!r}" PhysicalSizeY="{image.mpp!r}"'
        with atomic_text(path) as file:
            file.write(
                f'<?xml version="1.0" encoding="UTF-8"?>\n<OME xmlns="{_SCHEMA}" '
                'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
                f'xsi:schemaLocation="{_SCHEMA} {_SCHEMA}/ome.xsd" Creator="cellvit">\n'
                f'<Image ID="Image:0" Name={name}><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
                f'SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1"{mpp}><MetadataOnly/></Pixels>\n'
            )
            file.writelines(f'<ROIRef ID="ROI:{row}"/>\n' for row in range(len(stream)))
            file.write("</Image>\n<StructuredAnnotations>\n")
            file.writelines(
                f'<MapAnnotation ID="Annotation:{kind}" Namespace="{_NAMESPACE}"><Value>'
                f'<M K="type">{escape(_clean(type_label(stream.classes, kind)))}</M><M K="type_id">{kind}</M>'
                "</Value></MapAnnotation>\n"
                for kind in sorted(kinds)
            )
            file.write("</StructuredAnnotations>\n")
            for row, block in blocks(stream, CHUNK, classes=stream.classes, embedding_dim=None):
                check_finite(block, first=row)
                file.writelines(_regions(block, row))
            file.write("</OME>\n")


def _regions(nuclei: Nuclei, row: int) -> Iterator[str]:
    """Yield the region of every nucleus; ``row`` is the number of the first."""
    from cellvit.io.data_frames import numbers_of
    from cellvit.io.text import encode, plain_numbers
    from cellvit.io.valid_polygons import valid_rings

    points, offsets = valid_rings(nuclei)
    numbers = plain_numbers(points).tolist()
    looks = {kind: _look(nuclei, kind) for kind in np.unique(nuclei.type).tolist()}
    columns = zip(nuclei.label.tolist(), nuclei.type.tolist(), numbers_of(nuclei), strict=True)
    for i, (label, kind, known) in enumerate(columns):
        ring = " ".join(f"{x!r},{y!r}" for x, y in numbers[offsets[i] : offsets[i + 1]])
        reference = f'<AnnotationRef ID="Annotation:{kind}"/>' if kind > 0 else ""
        facts = ",".join(f"{encode(name)}:{value}" for name, value in known.items())
        facts = f"<Description>{{{escape(_clean(facts))}}}</Description>" if facts else ""
        shape = f'<Polygon ID="Shape:{row + i}" Points="{ring}"{looks[kind]}/>'
        yield f'<ROI ID="ROI:{row + i}" Name="{label}"><Union>{shape}</Union>{reference}{facts}</ROI>\n'


def _look(nuclei: Nuclei, kind: int) -> str:
    """Return the attributes of a shape that show its type: text, and the colour as a signed number."""
    red, green, blue = (int(part) for part in type_color(nuclei.classes, kind))
    color = int.from_bytes(bytes((red, green, blue, 255)), "big", signed=True)
    return f' Text={quoteattr(_clean(type_label(nuclei.classes, kind)))} StrokeColor="{color}" FillColor="0"'


def _said(region: ElementTree.Element, notes: dict[str | None, dict[str | None, str | None]]) -> dict[str, Any]:
    """Return what is said of a nucleus: of its type, and facts of its description."""
    said: dict[str, Any] = {}
    for reference in region.iter(f"{_TAG}AnnotationRef"):
        note = notes.get(reference.get("ID"), {})
        said |= {str(name): note[name] for name in ("type", "type_id") if note.get(name) is not None}
    described = region.findtext(f"{_TAG}Description", "")
    return said | (json.loads(described) if described.startswith("{") else {})


def _points(shape: ElementTree.Element) -> NDArray[np.float64]:
    pairs = [pair.split(",") for pair in shape.attrib["Points"].split()]
    return np.array(pairs, np.float64).reshape(-1, 2)


def _mpp(root: ElementTree.Element) -> float | None:
    pixels = root.find(f"{_TAG}Image/{_TAG}Pixels")
    stated = None if pixels is None or pixels.get("PhysicalSizeXUnit", "µm") != "µm" else pixels.get("PhysicalSizeX")
    return None if stated is None else float(stated)


def _clean(text: str) -> str:
    """Return text without characters that XML cannot hold."""
    return "".join(c for c in text if c in "\t\n\r" or (c >= " " and not "\ud800" <= c <= "\udfff" and c < "\ufffe"))
