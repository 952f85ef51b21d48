"""SpatialData, for the packages around scverse."""

from pathlib import Path

from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.io.stream import NucleiStream
from cellvit.types import Nuclei


@FORMATS.register("spatialdata")
class SpatialData(NucleiFormat):
    """SpatialData: a Zarr store of polygons, a table that annotates them, and a thumbnail or the whole image."""

    file = "nuclei.zarr"
    suffixes = (".zarr",)
    extra = "spatial"
    packages = ("anndata", "spatialdata", "geopandas")
    embeddings = True
    priority = 40

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a folder is a store of SpatialData."""
        return (path / "zarr.json").is_file() and (path / "tables").is_dir()

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.spatialdata import read_spatialdata

        return read_spatialdata(path)

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.spatialdata import write_spatialdata

        picture = {"image": image.picture, "bounds": image.bounds} if image.pixels is None else {"image": image.pixels}
        write_spatialdata(stream, path, metadata=image.facts, **picture)
