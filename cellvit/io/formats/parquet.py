"""The table that everything else is made from: Parquet."""

from pathlib import Path

from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.io.stream import NucleiStream
from cellvit.types import Nuclei


@FORMATS.register("parquet")
class Parquet(NucleiFormat):
    """Parquet: every column, embeddings, and polygons as GeoParquet."""

    file = "nuclei.parquet"
    suffixes = (".parquet",)
    embeddings = True
    priority = 50

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is Parquet, or a folder holds the table of a slide."""
        return start[:4] == b"PAR1" or (path / cls.file).is_file()

    def stream(self, path: str | Path, *, embedding: bool = True) -> NucleiStream:
        """Return the nuclei row group by row group."""
        from cellvit.io.parquet import ParquetStream

        return ParquetStream(self._table(Path(path)), embedding=embedding)

    def _table(self, path: Path) -> Path:
        return path / self.file if path.is_dir() else path

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.parquet import read_parquet

        return read_parquet(self._table(path))

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.parquet import write_parquet_stream

        first = next((chunk for chunk in stream if len(chunk)), Nuclei.empty())
        write_parquet_stream(
            stream,
            path,
            classes=stream.classes,
            embedding_dim=stream.embedding_dim,
            measurements=tuple(first.measurements),
            metadata=image.facts,
        )
