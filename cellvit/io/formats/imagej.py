"""Regions of ImageJ and Fiji."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.classes import type_color, type_label
from cellvit.errors import DataError
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.io.stream import NucleiStream, blocks
from cellvit.types import Nuclei

_REACH = 60_535
"""The largest coordinate: ImageJ takes the 16 bits of what is beyond for a negative number."""
_GROUPS = 255


@FORMATS.register("imagej")
class ImageJ(NucleiFormat):
    """Regions of ImageJ and Fiji in a zip: a polygon per nucleus, its type as group and colour."""

    file = "nuclei.rois.zip"
    suffixes = (".rois.zip", ".zip")
    extra = "formats"
    packages = ("roifile",)
    max_nuclei = 65_535  # entries of a zip that every program reads
    priority = 50

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is a region, or a zip of regions."""
        if start[:4] == b"Iout" or start[:4] == b"PK\x05\x06":  # the second: of none
            return True
        if start[:2] != b"PK":
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.lower().endswith(".roi") for name in archive.namelist())
        except (zipfile.BadZipFile, OSError):
            return False

    def _read(self, path: Path) -> Nuclei:
        import roifile

        from cellvit.io.data_frames import nuclei_of_rings
        from cellvit.io.limits import zip_entries
        from cellvit.io.other_outlines import read_imagej

        try:
            entries = zip_entries(path) if zipfile.is_zipfile(path) else iter([(".roi", path.read_bytes())])
            regions = [roifile.ImagejRoi.frombytes(data) for name, data in entries if name.lower().endswith(".roi")]
        except DataError:
            raise
        except (OSError, ValueError, struct.error, zipfile.BadZipFile) as error:
            raise DataError(f"{str(path)!r} cannot be read as regions of ImageJ ({error}); save them again") from error
        said = [_said(region.props) for region in regions]
        if not all("label" in one for one in said):
            from cellvit.io.formats.label_maps import nuclei_of_loaded

            return nuclei_of_loaded(read_imagej(path))
        columns = {
            "label": np.array([int(one["label"]) for one in said], np.int64),
            "type": np.array([one.get("type") for one in said], object),
            "type_id": np.array([region.group for region in regions], np.int64),
        }
        for name in dict.fromkeys(name for one in said for name in one if name not in ("label", "type")):
            columns[name] = np.array([float(one.get(name, "nan")) for one in said])
        rings = [np.asarray(region.coordinates(), np.float64) for region in regions]
        return nuclei_of_rings(rings, columns, source=repr(str(path)))

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.atomic import atomic_path
        from cellvit.io.text import CHUNK, check_finite

        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for row, block in blocks(stream, CHUNK, classes=stream.classes, embedding_dim=None):
                check_finite(block, first=row)
                for name, region in _regions(block, row):
                    # a fixed time: the same nuclei give the same bytes
                    archive.writestr(zipfile.ZipInfo(f"{name}.roi"), region, zipfile.ZIP_DEFLATED)


def _regions(nuclei: Nuclei, row: int) -> Any:
    """Yield the name and the bytes of the region of every nucleus; ``row`` is the number of the first."""
    import roifile

    from cellvit.io.data_frames import numbers_of
    from cellvit.io.valid_polygons import valid_rings

    points, offsets = valid_rings(nuclei)
    _check_reach(points, offsets, row)
    columns = zip(nuclei.label.tolist(), nuclei.type.tolist(), numbers_of(nuclei), strict=True)
    for i, (label, kind, known) in enumerate(columns):
        name = f"{row + i + 1:05d}-{label}"
        region = roifile.ImagejRoi.frompoints(points[offsets[i] : offsets[i + 1]], name=name)
        region.roitype = roifile.ROI_TYPE.POLYGON
        region.group = kind if 0 < kind <= _GROUPS else 0
        region.stroke_color = bytes((255, *type_color(nuclei.classes, kind)))
        stated = {"label": str(label), **({"type": type_label(nuclei.classes, kind)} if kind > 0 else {}), **known}
        region.props = "".join(
            f"{name.replace(':', ' ')}: {' '.join(value.split())}\n" for name, value in stated.items()
        )
        yield name, region.tobytes()


def _check_reach(points: Any, offsets: Any, row: int) -> None:
    outside = np.flatnonzero(((points < 0) | (points > _REACH)).any(axis=1))
    if len(outside):
        nucleus = row + int(np.searchsorted(offsets, outside[0], side="right")) - 1
        x, y = points[outside[0]].tolist()
        raise DataError(
            f"nucleus {nucleus} reaches x={x:g}, y={y:g}: regions of ImageJ hold coordinates from 0 to {_REACH:,}; "
            "choose 'geojson', or write the nuclei of a part of the slide, moved by Nuclei.transform"
        )


def _said(text: str) -> dict[str, str]:
    """Return what the properties of a region say, by name."""
    pairs = (line.partition(":") for line in (text or "").splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}
