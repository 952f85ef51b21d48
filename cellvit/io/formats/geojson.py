"""GeoJSON, for QuPath and for programs that draw maps."""

from pathlib import Path
from typing import ClassVar

from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.io.stream import NucleiStream
from cellvit.types import Nuclei


@FORMATS.register("geojson")
class GeoJson(NucleiFormat):
    """GeoJSON for QuPath, compressed with gzip: one object per nucleus."""

    file = "nuclei.geojson.gz"
    suffixes: ClassVar[tuple[str, ...]] = (".geojson.gz",)
    priority = 40
    points: ClassVar[bool] = False

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Leave it to :func:`cellvit.io.nuclei.read_nuclei`: only the whole of JSON says whose it is."""
        return False

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.geojson import read_geojson

        return read_geojson(path)

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.geojson import write_geojson_stream

        write_geojson_stream(stream, path, points=self.points, simplify=image.simplify, mpp=image.mpp)


@FORMATS.register("geojson-plain")
class PlainGeoJson(GeoJson):
    """GeoJSON for QuPath, not compressed."""

    file = "nuclei.geojson"
    suffixes = (".geojson",)


@FORMATS.register("points")
class Points(GeoJson):
    """GeoJSON of centroids only, compressed with gzip: the light variant."""

    file = "points.geojson.gz"
    suffixes = (".points.geojson.gz", ".points.geojson")
    outlines = False
    points = True
