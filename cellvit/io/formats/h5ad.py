"""AnnData, for scanpy and squidpy."""

from pathlib import Path

from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.io.stream import NucleiStream
from cellvit.types import Nuclei


@FORMATS.register("h5ad")
class H5ad(NucleiFormat):
    """AnnData for scanpy and squidpy: types, centroids, embeddings, no outlines."""

    file = "nuclei.h5ad"
    suffixes = (".h5ad",)
    extra = "spatial"
    packages = ("anndata", "h5py")
    outlines = False
    embeddings = True
    priority = 50

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is HDF5."""
        return start.startswith(b"\x89HDF\r\n\x1a\n")

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.anndata import read_anndata

        return read_anndata(path)

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.anndata import write_anndata

        write_anndata(stream, path, metadata=image.facts)
