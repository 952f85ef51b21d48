"""What there is to look at: results of slides, cohorts, images with their nuclei, slides and images alone."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cellvit.errors import CellViTError, DataError
from cellvit.inference.assemble import TABLE
from cellvit.inference.resume import SUMMARY, ResumeFolder, read_summary
from cellvit.inference.verify import result_folders, slide_path
from cellvit.io.atomic import is_store
from cellvit.io.detections import stem_of
from cellvit.io.format import visible
from cellvit.io.parquet import ParquetStream
from cellvit.io.provenance import size_of
from cellvit.io.remote import as_path
from cellvit.io.schema import checked
from cellvit.labels.table import LABELS_FILE
from cellvit.slide.naming import expand_inputs
from cellvit.slide.open import is_slide
from cellvit.viewer.table import stated_size

Kind = Literal["slide", "image"]

_NUCLEI_SUFFIXES = (".parquet", ".h5ad", ".geojson", ".geojson.gz", ".json", ".json.gz")  # the best first


@dataclass(frozen=True)
class Source:
    """A slide or an image to look at.

    Attributes:
        name: What it is called.
        kind: A whole slide, or an image.
        image: The file with the pixels; None if it is not known or not there.
        image_note: Why there are no pixels; empty if there are.
        size: ``(width, height)`` that the image had when nuclei were found; None where not known.
        nuclei: The file of the nuclei; None without.
        folder: The result folder of a slide; None without.
        summary: What ``summary.json`` of the folder holds; empty without.
        error: Why nothing can be shown; empty if something can.
    """

    name: str
    kind: Kind
    image: Path | None = None
    image_note: str = ""
    size: tuple[int, int] | None = None
    nuclei: Path | None = None
    folder: Path | None = None
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    error: str = ""

    @property
    def place(self) -> Path:
        """Return the folder or the file by which it is known."""
        found = self.folder or self.nuclei or self.image
        assert found is not None
        return found

    @property
    def id(self) -> str:
        """Return what it is called in addresses: the same in every run, and nothing of a path."""
        return hashlib.sha256(str(self.place.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class _ShownSlide:
    """What is shown of the slide in a summary."""

    path: str
    name: str
    size_bytes: int | None
    width: int
    height: int
    bounds: tuple[int, int, int, int]


@dataclass(frozen=True)
class _ShownTypes:
    """What is shown of a model or a classifier in a summary."""

    classes: list[str] = field(default_factory=list)
    colors: list[tuple[int, int, int]] | None = None


@dataclass(frozen=True)
class _ShownCounts:
    """What is shown of the nuclei in a summary."""

    total: int
    by_type: dict[str, int]


@dataclass(frozen=True)
class _ShownResolution:
    """What is shown of the resolution in a summary."""

    mpp: tuple[float, float]


@dataclass(frozen=True)
class _ShownTissue:
    """What is shown of the tissue in a summary."""

    area_mm2: float | None = None


@dataclass(frozen=True)
class _Shown:
    """What is shown of a summary; the rest may have any form."""

    slide: _ShownSlide
    nuclei: _ShownCounts
    model: _ShownTypes
    classification: _ShownTypes | None = None
    resolution: _ShownResolution | None = None
    tissue: _ShownTissue | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def find_sources(paths: Iterable[str | Path], *, slides: str | Path | None = None) -> list[Source]:
    """Return what paths stand for, each thing once.

    Args:
        paths: Result folders of ``cellvit segment``, folders of these, files of nuclei, slides, images, or folders.
        slides: A slide, or a folder with the slides and images that are not where they were.

    Returns:
        The sources. What is damaged or not finished is among them, with its reason as ``error``.

    Raises:
        DataError: If a path does not exist, or holds nothing to look at.
    """
    found: dict[str, Source] = {}
    for path in map(as_path, paths):
        if not path.exists():
            raise DataError(f"{str(path)!r} does not exist; check the path")
        here = list(_sources_of(path, None if slides is None else as_path(slides)))
        if not here:
            raise DataError(f"{str(path)!r} holds no results, slides or images; give a result folder or a slide")
        for source in here:
            found.setdefault(source.id, source)
    if not found:
        raise DataError("nothing to look at; give a result folder or a slide")
    return list(found.values())


def _sources_of(path: Path, slides: Path | None) -> Iterator[Source]:
    if path.is_file() or is_store(path):
        yield _nuclei_source(path, slides) if _is_nuclei(path) else _bare(path)
        return
    folders = result_folders(path)
    if folders != [path] or (path / SUMMARY).exists() or ResumeFolder(path).begun:
        yield from (_result(folder, slides) for folder in folders)
        return
    tables: dict[str, Path] = {}
    for file in sorted((p for p in path.iterdir() if _is_nuclei(p)), key=_rank):
        tables.setdefault(stem_of(file), file)
    sources = [_nuclei_source(file, slides) for file in sorted(tables.values())]
    shown = {source.image.resolve() for source in sources if source.image is not None}
    # pictures of results lie beside the tables of images and are called as these
    files = [file for file in expand_inputs([str(path)])[0] if file.resolve() not in shown and file.stem not in tables]
    yield from (*sources, *map(_bare, files))


def _is_nuclei(path: Path) -> bool:
    name = path.name.lower()
    return path.is_file() and name.endswith(_NUCLEI_SUFFIXES) and not name.endswith(LABELS_FILE) and name[0] != "."


def _rank(path: Path) -> int:
    return next((i for i, suffix in enumerate(_NUCLEI_SUFFIXES) if path.name.lower().endswith(suffix)), -1)


def _bare(path: Path) -> Source:
    return Source(visible(path.name), "slide" if path.is_dir() or is_slide(path) else "image", image=path)


def shown_summary(folder: Path) -> dict[str, Any] | None:
    """Return what ``summary.json`` of a result folder holds, what is shown of it in the form it should have.

    Args:
        folder: Of the results of a slide.

    Returns:
        The summary; None where the slide is not finished.

    Raises:
        CellViTError: If it cannot be read, or what is shown has another form.
    """
    summary = read_summary(folder)
    if summary is None:
        return None
    shown = asdict(checked(dict(summary), _Shown, what=SUMMARY, advice="run `cellvit segment` again"))
    return {**summary, **{name: value for name, value in shown.items() if value is not None}}


def _result(folder: Path, slides: Path | None) -> Source:
    """Return the source of the result folder of a slide."""
    source = Source(visible(folder.name), "slide", folder=folder)
    try:
        summary = shown_summary(folder)
        if summary is None:
            return replace(source, error="the slide is not finished; run `cellvit segment` to the end")
        known = summary["slide"]
        size = (known["width"], known["height"])
        source = replace(source, name=visible(known["name"]), summary=summary, size=size)
        table = folder / TABLE
        if not table.is_file():
            return replace(source, error=f"{TABLE} is gone; put a copy back, or run `cellvit segment` again")
        path = slide_path(summary, slides)
        source = replace(source, nuclei=table, image=path)
        if path is None:
            note = f"the slide {known['path']!r} is not there; say where it is with slides=DIR"
            return replace(source, image_note=note)
        if path.is_file() and known["size_bytes"] not in (None, size_of(path)):
            note = f"the slide {str(path)!r} is another file than was segmented; say where that is with slides=DIR"
            return replace(source, image=None, image_note=note)
    except (CellViTError, OSError) as error:
        return replace(source, error=visible(error))
    return source


def _nuclei_source(path: Path, slides: Path | None) -> Source:
    """Return the source of a file of nuclei, with its image where that lies beside it or in the folder of slides."""
    stem = stem_of(path)
    facts: Mapping[str, Any] = {}
    with suppress(CellViTError):  # another format, or damaged: which is said when it is opened
        facts = ParquetStream(path, outlines=False).metadata
    name = str(facts.get("image") or stem)
    places = [path.parent] if slides is None else [slides, path.parent]
    files = [place / name for place in places if Path(name).name == name]
    if slides is not None and slides.is_file() and (slides.name == name or slides.stem == stem):
        files.insert(0, slides)
    image = next((file for file in files if file.is_file() and file != path), None)
    note = "" if image else f"the image {name!r} is not beside the nuclei; say where it is with slides=DIR"
    kind: Kind = "slide" if image is not None and is_slide(image) else "image"
    return Source(visible(name), kind, image=image, image_note=note, size=stated_size(facts), nuclei=path)
