"""COCO, for the tools of computer vision: polygons, or masks by run length."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cellvit.classes import classes_to_list, type_label
from cellvit.errors import DataError
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat, Size, image_size
from cellvit.io.provenance import with_mpp
from cellvit.io.stream import NucleiStream, blocks
from cellvit.types import Nuclei

_MASK_PIXELS = 2**32
_IMAGE = 1
_AT_ONCE = 255  # pycocotools 2.0.11 asks numpy 2 for the area of more, which fails


@FORMATS.register("coco")
class Coco(NucleiFormat):
    """COCO with a polygon per nucleus."""

    file = "nuclei.coco.json"
    suffixes: ClassVar[tuple[str, ...]] = (".coco.json", ".coco.json.gz")
    priority = 40

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Leave it to :func:`cellvit.io.nuclei.read_nuclei`: only the whole of JSON says whose it is."""
        return False

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.schema import load_json

        return nuclei_of_coco_file(load_json(path), path)

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.atomic import atomic_text
        from cellvit.io.text import encode, write_lines

        width, height = image_size(stream, image)
        self._check_size(width, height)
        kinds = {0, *range(1, len(stream.classes or ()))}
        for chunk in stream:
            kinds.update(np.unique(np.maximum(chunk.type, 0)).tolist())
        names = {kind: type_label(stream.classes, kind) for kind in sorted(kinds)}
        name = str(image.metadata.get("image", "image")) if image.path is None else image.path.name
        head = {
            "info": {"description": "nuclei", "version": "1.0"},
            "cellvit": with_mpp({"version": 1, "classes": classes_to_list(stream.classes)}, image.mpp),
            "images": [{"id": _IMAGE, "file_name": name, "width": width, "height": height}],
            "categories": [{"id": kind, "name": name, "supercategory": "nucleus"} for kind, name in names.items()],
        }
        with atomic_text(path) as file:
            file.write(f'{encode(head)[:-1]},"annotations":[')
            write_lines(file, self._entries(stream, (width, height)))

    def _check_size(self, width: int, height: int) -> None:
        """Raise where an image is too large for the shapes."""

    def _entries(self, stream: NucleiStream, size: Size) -> Iterator[Iterator[str]]:
        from cellvit.io.text import CHUNK, check_finite

        for row, block in blocks(stream, CHUNK, classes=stream.classes, embedding_dim=None):
            check_finite(block, first=row)
            yield self._annotations(block, row, size)

    def _annotations(self, nuclei: Nuclei, row: int, size: Size) -> Iterator[str]:
        """Yield the annotations of some nuclei; ``row`` is the number of the first. Ids count from 1: 0 is no id."""
        from cellvit.io.data_frames import numbers_of
        from cellvit.io.text import encode

        kinds, numbers = np.maximum(nuclei.type, 0).tolist(), numbers_of(nuclei)
        columns = zip(nuclei.label.tolist(), kinds, numbers, self._shapes(nuclei, size), strict=True)
        for i, (label, kind, known, shape) in enumerate(columns, start=row + 1):
            score = known.pop("type_prob", None)
            stated = "" if score is None else f',"score":{score}'
            measured = ",".join(f"{encode(name)}:{value}" for name, value in known.items())
            stated += f',"measurements":{{{measured}}}' if measured else ""
            yield f'{{"id":{i},"image_id":{_IMAGE},"category_id":{kind},{shape},"iscrowd":0,"label":{label}{stated}}}'

    def _shapes(self, nuclei: Nuclei, size: Size) -> Iterator[str]:
        """Yield segmentation, area and box of every nucleus, as text."""
        from cellvit.geometry.polygons import polygon_area, ring_bounds
        from cellvit.io.text import plain_numbers, ring_texts
        from cellvit.io.valid_polygons import valid_rings

        points, offsets = valid_rings(nuclei)  # of three points at least: four numbers in a row would be a box
        bounds = ring_bounds(points, offsets)
        bounds[:, 2:] -= bounds[:, :2]
        areas, boxes = polygon_area(points, offsets).tolist(), plain_numbers(bounds).tolist()
        for ring, area, box in zip(ring_texts(points, offsets), areas, boxes, strict=True):
            flat = ring[1:-1].replace("],[", ",")
            yield f'"segmentation":[{flat}],"area":{area},"bbox":[{",".join(map(repr, box))}]'


@FORMATS.register("coco-rle")
class CocoRle(Coco):
    """COCO with a mask by run length per nucleus, made by pycocotools."""

    file = "nuclei.rle.json"
    suffixes = (".rle.json", ".rle.json.gz")
    extra = "formats"
    packages = ("pycocotools",)

    def _check_size(self, width: int, height: int) -> None:
        # pycocotools numbers pixels with 32 bits, and places what is beyond somewhere else without a word
        if width * height >= _MASK_PIXELS:
            raise DataError(
                f"an image of {width} x {height} px is too large for masks by run length, whose 32 bits number less "
                f"than {_MASK_PIXELS:,} px; choose 'coco' for polygons"
            )

    def _shapes(self, nuclei: Nuclei, size: Size) -> Iterator[str]:
        from pycocotools import mask

        from cellvit.io.text import encode
        from cellvit.io.valid_polygons import valid_rings

        points, offsets = valid_rings(nuclei)
        rings = [ring.ravel().tolist() for ring in np.split(points, offsets[1:-1])] if len(nuclei) else []
        for start in range(0, len(rings), _AT_ONCE):
            masks = mask.frPyObjects(rings[start : start + _AT_ONCE], size[1], size[0])
            for one, area, box in zip(masks, mask.area(masks).tolist(), mask.toBbox(masks).tolist(), strict=True):
                shape = encode({"size": one["size"], "counts": one["counts"].decode("ascii")})
                yield f'"segmentation":{shape},"area":{area},"bbox":{encode(box)}'


def is_coco(data: Any) -> bool:
    """Return whether plain data are a data set of COCO."""
    return isinstance(data, dict) and "annotations" in data and "images" in data


def nuclei_of_coco_file(data: Any, path: Path) -> Nuclei:
    """Return the nuclei of plain data of COCO with one image.

    Args:
        data: Of this package, which keep labels and classes, or of others.
        path: The file; named in errors.

    Raises:
        DataError: If the data are not of this layout, or of several images.
    """
    from cellvit.io.coco import decoded_runs, nuclei_of_coco
    from cellvit.io.data_frames import nuclei_of_rings
    from cellvit.io.formats.label_maps import nuclei_of_loaded, ring_of_pixels

    own = data.get("cellvit") if isinstance(data, dict) else None
    if own is None:
        return nuclei_of_loaded(nuclei_of_coco(data, path, name=path.name.partition(".")[0]))
    try:
        entries = data["annotations"]
        names = {entry["id"]: entry["name"] for entry in data["categories"]}
        shapes = (entry["segmentation"] for entry in entries)
        rings = [
            ring_of_pixels(*decoded_runs(shape)) if isinstance(shape, dict) else np.reshape(shape[0], (-1, 2))
            for shape in shapes
        ]
        kinds = [int(entry["category_id"]) for entry in entries]
        columns = {
            "type": np.array([names[kind] if kind else None for kind in kinds], object),
            "type_id": np.array(kinds),
            "type_prob": np.array([entry.get("score", np.nan) for entry in entries], np.float64),
            "label": np.array([entry["label"] for entry in entries], np.int64),
        }
        measured = [entry.get("measurements", {}) for entry in entries]
        for name in dict.fromkeys(name for one in measured for name in one):
            columns[name] = np.array([one.get(name, np.nan) for one in measured], np.float64)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"{str(path)!r} is not the COCO of this package ({type(error).__name__}: {error}); write it again"
        raise DataError(message) from error
    return nuclei_of_rings(rings, columns, source=repr(str(path)), about=own)
