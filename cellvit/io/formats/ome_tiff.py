"""Label images as OME-TIFF, for QuPath, Fiji and what reads Bio-Formats."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat, image_size
from cellvit.io.stream import NucleiStream
from cellvit.types import Nuclei

_NAMESPACE = uuid.UUID("0a5a1a0e-6f7b-5d5e-8e0b-5b8a2c1d9f42")


@FORMATS.register("ome-tiff")
class OmeTiff(NucleiFormat):
    """Label image as OME-TIFF, a pyramid of tiles: every pixel has the label of its nucleus, no types."""

    file = "labels.ome.tif"
    suffixes = (".labels.ome.tif", ".ome.tif", ".ome.tiff", ".tif", ".tiff")
    priority = 30

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is TIFF."""
        return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.formats.label_maps import nuclei_of_map
        from cellvit.io.images import read_mpp
        from cellvit.io.labels import read_label_map

        return nuclei_of_map(read_label_map(path).instances, source=repr(str(path)), mpp=read_mpp(path))

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        import tifffile

        from cellvit.io.atomic import atomic_path
        from cellvit.io.formats.label_maps import TILE, LabelImage

        labels = LabelImage(stream, image_size(stream, image))
        name = f"{labels.size} {len(labels.labels)}"
        about: dict[str, Any] = {"axes": "YX", "Name": "nuclei", "UUID": f"urn:uuid:{uuid.uuid5(_NAMESPACE, name)}"}
        if image.mpp is not None:
            about |= {f"PhysicalSize{axis}": image.mpp for axis in "XY"}
            about |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        common: dict[str, Any] = {"dtype": np.uint32, "tile": (TILE, TILE), "compression": "zlib"}
        with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as writer:
            for level in range(labels.levels):
                more = {"subfiletype": 1} if level else {"subifds": labels.levels - 1, "metadata": about}
                writer.write(_whole_tiles(labels, level), shape=labels.level_shape(level), **common, **more)


def _whole_tiles(labels: Any, level: int) -> Iterator[NDArray[np.uint32]]:
    """Yield the tiles of a level, those at the edges filled up to their full size."""
    from cellvit.io.formats.label_maps import TILE

    for _, _, tile in labels.tiles(level):
        missing = [(0, TILE - side) for side in tile.shape]
        yield np.ascontiguousarray(np.pad(tile, missing))
