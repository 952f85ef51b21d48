"""The JSON of the released tools."""

from pathlib import Path

from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.io.stream import NucleiStream
from cellvit.types import Nuclei


@FORMATS.register("json")
class CellsJson(NucleiFormat):
    """JSON in the layout of the released tools (``cells.json``)."""

    file = "cells.json.gz"
    suffixes = (".json", ".json.gz")
    priority = 40

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Leave it to :func:`cellvit.io.nuclei.read_nuclei`: only the whole of JSON says whose it is."""
        return False

    def _read(self, path: Path) -> Nuclei:
        from cellvit.io.cells_json import read_json

        return read_json(path)

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.cells_json import write_json_stream

        write_json_stream(stream, path, metadata=image.facts, patches=image.patches, pixel=image.pixel)
