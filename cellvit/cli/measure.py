"""``cellvit measure``: size, form, stain, texture and neighbours of nuclei that were found before, by any tool."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvit.cli.console import Output
from cellvit.cli.options import positive
from cellvit.cli.verb import add_limit_option, add_output_options, command, verb_parser
from cellvit.errors import OutputError

if TYPE_CHECKING:
    from cellvit.io.stream import NucleiStream
    from cellvit.measurement.slides import MeasuredNuclei
    from cellvit.types import Nuclei, NucleiClasses

EPILOG = """\
FILE holds outlines in pixels of the full resolution of SLIDE: a result folder or nuclei.parquet of 'cellvit segment',
or GeoJSON of any tool. Lengths are microns where the resolution is known (--mpp, --magnification, what the slide
states, what FILE states), else pixels, and the names of the columns say so. Stain vectors are those of FILE where it
states them, else they are estimated from the slide. The name of the file that is written says its format, as for
'cellvit convert-nuclei'; .parquet keeps all columns, .geojson has the names of QuPath. It is never FILE itself.

exit status: 0 done; 1 failed (with a line that says why); 2 wrong usage.
"""
_TABLE = "nuclei.parquet"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("measure", "Measure nuclei on their slide or image: a column for every number.", EPILOG)
    add = parser.add_argument
    add("slide", type=Path, metavar="SLIDE", help="the slide or image")
    add("--nuclei", type=Path, required=True, metavar="FILE", help="the nuclei: Parquet, GeoJSON, or a result folder")
    add("--out", type=Path, metavar="FILE", help="what to write (default: FILE with '-measured', as .parquet)")
    add("--mpp", type=positive(float), metavar="UM", help="microns per pixel of the slide")
    add("--magnification", type=positive(float), metavar="X", help="objective power instead: 40 is 0.25 microns")
    add("--scene", metavar="N", help="number or name of the image to read, where a file holds several")
    add("--overwrite", action="store_true", help="replace a file that exists")
    add_limit_option(parser)
    add_output_options(parser, json="print what was done as a JSON object")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    source = options.nuclei / _TABLE if options.nuclei.is_dir() else options.nuclei
    target = options.out or source.with_name(f"{source.name.split('.')[0]}-measured.parquet")
    _check_target(target, source, overwrite=options.overwrite)

    from cellvit.measurement.slides import measure_nuclei

    nuclei, facts = _read(source)
    with output.bars() as bars:
        task = bars.add_task("nuclei", total=len(nuclei))
        found = measure_nuclei(
            options.slide,
            nuclei,
            mpp=options.mpp,
            magnification=options.magnification,
            scene=options.scene,
            facts=facts,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    for text in found.notes:
        output.note(f"{str(options.slide)!r}: {text}", "warning")
    _write(target, source, found, facts)
    unit = "px" if found.mpp is None else "µm"
    output.row({"out": target, "nuclei": len(found.nuclei), "unit": unit, "measurement": found.facts()})
    output.line(f"{len(found.nuclei):,} nuclei, {len(found.nuclei.measurements)} measurements each, lengths in {unit}")
    output.line(f"wrote {target}")
    return 0


def _check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is computed, a file that cannot be written or would replace another."""
    from cellvit.io.convert import format_name

    format_name(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(f"out={str(target)!r} is the file of the nuclei itself; choose another name")
    if target.exists() and not overwrite:
        raise OutputError(f"{str(target)!r} exists; pass overwrite=True to replace it, or another out=FILE")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {str(target)!r}: its folder does not exist; create it first")


def _read(source: Path) -> "tuple[Nuclei, Mapping[str, Any]]":
    """Return the nuclei of a file, of Parquet without embeddings, and what it says about them."""
    from cellvit import io
    from cellvit.types import Nuclei

    if source.suffix.lower() != ".parquet":
        return io.read_nuclei(source), {}
    stream = io.ParquetStream(source, embedding=False)
    return Nuclei.concatenate([Nuclei.empty(classes=stream.classes), *stream]), stream.metadata


def _write(target: Path, source: Path, found: "MeasuredNuclei", facts: Mapping[str, Any]) -> None:
    from cellvit import io
    from cellvit.io.convert import format_name
    from cellvit.io.formats.base import FORMATS, ImageFacts

    given = io.ParquetStream(source) if source.suffix.lower() == ".parquet" else io.as_stream(found.nuclei)
    mpp = {} if found.nuclei.mpp is None else {"base_mpp": found.nuclei.mpp}
    image = ImageFacts(mpp=found.nuclei.mpp, metadata={**facts, "stains": found.stains.facts(), **mpp})
    FORMATS.get(format_name(target))().write(_Measured(given, found.nuclei), target, image)


@dataclass(frozen=True)
class _Measured:
    """The nuclei of a file, with embeddings, and what was measured of them."""

    given: "NucleiStream"
    measured: "Nuclei"

    def __iter__(self) -> "Iterator[Nuclei]":
        start = 0
        for chunk in self.given:
            stop = start + len(chunk)
            yield replace(chunk, measurements={name: v[start:stop] for name, v in self.measured.measurements.items()})
            start = stop

    def __len__(self) -> int:
        return len(self.measured)

    @property
    def classes(self) -> "NucleiClasses | None":
        """Names and colours of the types, or None if unnamed."""
        return self.given.classes

    @property
    def embedding_dim(self) -> int | None:
        """Width of the embedding column, or None without one."""
        return self.given.embedding_dim


main = command(build_parser, _run, failure=1)
