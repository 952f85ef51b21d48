"""Nuclei of other formats as a table that can be looked at: written once into the user's folder of caches."""

import warnings
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from cellvit.errors import DataError
from cellvit.io.atomic import make_folder
from cellvit.io.format import visible
from cellvit.io.nuclei import stream_nuclei
from cellvit.io.parquet import ParquetStream, write_parquet_stream
from cellvit.io.paths import cache_folder
from cellvit.io.provenance import content_of


def as_table(path: Path) -> tuple[Path, list[str]]:
    """Return the table that holds the nuclei of a file, and what was said when it was read.

    Args:
        path: A table of this package, which is returned, or a file that :func:`cellvit.io.nuclei.read_nuclei` reads.

    Raises:
        ConfigError: If the format needs a package that is not installed.
        DataError: If it is damaged or holds no nuclei.
        OutputError: If the table cannot be written.
    """
    try:
        ParquetStream(path, outlines=False)
    except DataError as error:
        ours = error
    else:
        return path, []
    # named by what the file holds and by what reads it: another content leads to another table
    content = f"{content_of(path)['sha256']} {version('cellvit-lightning')}"
    table = cache_folder() / f"{sha256(content.encode()).hexdigest()[:32]}.parquet"
    if table.is_file():
        return table, []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        try:
            stream = stream_nuclei(path, embedding=False)
        except DataError as error:
            raise (ours if path.suffix == ".parquet" else error) from error
        chunks = list(stream)
        make_folder(table.parent)
        names = tuple(chunks[0].measurements) if chunks else ()
        facts = {} if not chunks or chunks[0].mpp is None else {"base_mpp": chunks[0].mpp}
        write_parquet_stream(chunks, table, classes=stream.classes, measurements=names, metadata=facts, geometry=False)
    return table, [visible(one.message) for one in told if issubclass(one.category, UserWarning)]
