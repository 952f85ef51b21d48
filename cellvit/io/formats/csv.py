"""CSV, for spreadsheets and statistics."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import DataError
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat
from cellvit.io.stream import NucleiStream, blocks
from cellvit.types import Nuclei


@FORMATS.register("csv")
class Csv(NucleiFormat):
    """CSV for spreadsheets and statistics: a row per nucleus with its measurements, no outlines."""

    file = "nuclei.csv"
    suffixes = (".csv",)
    outlines = False
    priority = 50

    @classmethod
    def accepts(cls, path: Path, start: bytes) -> bool:
        """Tell whether a file is CSV with columns ``x`` and ``y``."""
        heading = start.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].strip().replace(b'"', b"").split(b",")
        return path.name.lower().endswith(cls.suffixes) and {b"x", b"y"} <= set(heading)

    def _read(self, path: Path) -> Nuclei:
        import pyarrow as pa
        from pyarrow import csv

        from cellvit.io.data_frames import LEARNT_ON, nuclei_of_columns
        from cellvit.io.tables import plain_cell

        try:
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{str(path)!r} is not readable CSV ({error}); write it again") from error
        columns = {plain_cell(name): table[name].to_numpy() for name in table.column_names}
        for column in columns.keys() & {"type", LEARNT_ON}:
            if (texts := columns[column]).dtype == object:
                columns[column] = np.array([None if text is None else plain_cell(text) for text in texts], object)
        return nuclei_of_columns(columns, source=repr(str(path)))

    def _write(self, stream: NucleiStream, path: Path, image: ImageFacts) -> None:
        from cellvit.io.data_frames import columns_in_full
        from cellvit.io.tables import write_csv
        from cellvit.io.text import CHUNK, check_finite

        def parts() -> Iterator[dict[str, NDArray[Any]]]:
            for row, block in blocks(stream, CHUNK, classes=stream.classes, embedding_dim=None):
                check_finite(block, first=row)
                yield columns_in_full(replace(block, mpp=image.mpp))

        found = parts()
        first = next(found, None)
        if first is None:
            first = columns_in_full(replace(Nuclei.empty(), mpp=image.mpp))
        write_csv(path, _rows(chain([first], found)), columns=list(first))


def _rows(parts: Iterable[dict[str, NDArray[Any]]]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for values in zip(*(column.tolist() for column in part.values()), strict=True):
            yield dict(zip(part, values, strict=True))
