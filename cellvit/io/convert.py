"""From one format of nuclei to another, in pieces, so that a table of a whole slide need not fit into memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cellvit.errors import ConfigError, DataError, OutputError
from cellvit.io.formats.base import FORMATS, ImageFacts, NucleiFormat, Pixels
from cellvit.io.nuclei import stream_nuclei
from cellvit.io.parquet import ParquetStream
from cellvit.io.provenance import mpp_of
from cellvit.io.stream import NucleiStream, TableStream
from cellvit.types import Nuclei, NucleiClasses

Report = Callable[[int, int], None]
"""Takes the number of nuclei that were read, and of all nuclei."""


@dataclass(frozen=True)
class Converted:
    """What became of a file.

    Attributes:
        path: The new file.
        format: Name of its format.
        nuclei: How many it holds.
        left_out: What it cannot hold of what was there.
    """

    path: Path
    format: str
    nuclei: int
    left_out: tuple[str, ...]


def convert_nuclei(
    source: str | Path,
    target: str | Path,
    *,
    format: str | None = None,
    mpp: float | None = None,
    image_size: tuple[int, int] | None = None,
    slide: str | Path | Pixels | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Converted:
    """Write the nuclei of a file in another format.

    A Parquet table is read row group by row group, other files as a whole; what the writers hold is said on the page
    of formats. Labels, types and coordinates stay as they are.

    Args:
        source: Any file that :func:`cellvit.io.nuclei.read_nuclei` reads.
        target: The new file; its name says the format.
        format: Key of :data:`cellvit.io.formats.base.FORMATS`; None takes the one that the name of the target says.
        mpp: Microns per pixel; None takes what the source says, if it does.
        image_size: Width and height of the image; None takes what the source says, if it does.
        slide: The image: its file, for formats that refer to it, as DICOM does; or what :func:`cellvit.open_slide`
            returns, whose pixels formats keep that can hold them, as SpatialData does.
        overwrite: Replace a target that exists.
        progress: Called after every piece.

    Raises:
        ConfigError: If no format has such a name, or a package is missing.
        DataError: If the source cannot be read, or the format cannot hold what is in it.
        OutputError: If the target exists, or cannot be written.
    """
    source, target = Path(source), Path(target)
    name = format_name(target) if format is None else format
    chosen = FORMATS.get(name)()
    pixels = None if slide is None or isinstance(slide, str | Path) else slide
    file = pixels.path if pixels else Path(slide) if isinstance(slide, str | Path) else None
    chosen.check_image(file)
    if target.exists() and (not overwrite or target.samefile(source)):
        raise OutputError(f"{str(target)!r} exists; pass overwrite=True to replace it, or choose another name")
    found = stream_nuclei(source, embedding=chosen.embeddings)
    stream = _Reported(found, progress)
    image = _image_of(found)
    image = ImageFacts(
        mpp=mpp or image.mpp,
        size=image_size or image.size,
        path=file,
        pixels=pixels,
        metadata={**image.metadata, **({} if mpp is None else {"base_mpp": mpp})},
    )
    first = next((chunk for chunk in found if len(chunk)), Nuclei.empty())
    if chosen.outlines and len(first) and not len(first.contour_points):
        points = ", ".join(repr(other) for other in FORMATS.names() if not FORMATS.get(other).outlines)
        raise DataError(f"{str(source)!r} holds no outlines, of which {name!r} is made; choose one of {points}")
    chosen.write(stream, target, image)
    return Converted(target, name, len(found), tuple(_left_out(source, found, first, chosen)))


def format_name(path: Path) -> str:
    """Return the name of the format that the name of a file says: that of a slide's file, or one with such an end.

    Raises:
        ConfigError: If no format has such a name.
    """
    usable = [(entry.name, entry.cls) for entry in FORMATS.entries() if entry.cls is not None]
    files = {cls.file: name for name, cls in usable}
    if path.name in files:
        return files[path.name]
    ends = {end: name for name, cls in usable for end in cls.suffixes}
    fitting = [end for end in ends if path.name.lower().endswith(end)]
    if not fitting:
        known = ", ".join(sorted(ends))
        raise ConfigError(f"the name {path.name!r} says no format; end it in one of {known}, or say format='geojson'")
    return ends[max(fitting, key=len)]


def _image_of(stream: NucleiStream) -> ImageFacts:
    """Return what a file says of the image."""
    if isinstance(stream, TableStream):
        return ImageFacts(mpp=stream.nuclei.mpp)
    if not isinstance(stream, ParquetStream):
        return ImageFacts()
    facts = stream.metadata
    sides = facts["bounds"][2:] if facts.get("origin") == "bounds" else (facts.get("width"), facts.get("height"))
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return ImageFacts(mpp=mpp_of(facts), size=(width, height) if width and height else None, metadata=facts)


def _left_out(source: Path, stream: NucleiStream, first: Nuclei, chosen: NucleiFormat) -> Iterator[str]:
    if not chosen.outlines and len(first.contour_points):
        yield "outlines"
    if not chosen.embeddings and stream_nuclei(source).embedding_dim is not None:
        yield "embeddings"


@dataclass(frozen=True)
class _Reported:
    """A stream that says how far it is."""

    stream: NucleiStream
    report: Report | None

    def __iter__(self) -> Iterator[Nuclei]:
        done = 0
        for chunk in self.stream:
            yield chunk
            done += len(chunk)
            if self.report is not None:
                self.report(done, len(self.stream))

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def classes(self) -> NucleiClasses | None:
        """Names and colours of the types, or None if unnamed."""
        return self.stream.classes

    @property
    def embedding_dim(self) -> int | None:
        """Width of the embedding column, or None without one."""
        return self.stream.embedding_dim
