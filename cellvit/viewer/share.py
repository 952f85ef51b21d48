"""A part of a slide as a page that opens from the disk, without a server: its pixels, its nuclei, and the viewer."""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ConfigError, DataError, OutputError
from cellvit.geometry.polygons import select_rings
from cellvit.io.atomic import atomic_folder
from cellvit.io.format import plain_data, visible
from cellvit.io.parquet import ParquetStream
from cellvit.viewer.bundle import PAGE, page_script
from cellvit.viewer.gallery import Gallery, ViewedSlide
from cellvit.viewer.image import TILE, DeepZoom
from cellvit.viewer.serve import check_page
from cellvit.viewer.table import NucleiTable
from cellvit.viewer.vendor import FOLDER as VENDOR

Box = tuple[float, float, float, float]
Progress = Callable[[int, int], None]

MAX_TILES = 20_000
"""Tiles of pixels of a share; more would be slow to copy, and some 1.5 GB."""

MAX_MB = 500.0
"""Megabytes of a share, unless more are allowed."""

OVERVIEW = 2048
"""Pixels: levels of the slide whose longer side has no more are in a share as a whole."""

OUTLINES = 2048
"""Side of the squares, in level-0 pixels, whose outlines lie in one file."""

_MODULE = '<script type="module" src="static/main.js"></script>'
_PRELOAD = re.compile(r'<link rel="modulepreload"[^>]*>\n?')
_SCRIPTS = ("data/facts.js", "data/share.js", "data/page.js")


@dataclass(frozen=True)
class Share:
    """What was written.

    Attributes:
        page: What a browser opens.
        nuclei: How many it shows.
        tiles: Tiles of pixels.
        size: Bytes of all files.
    """

    page: Path
    nuclei: int
    tiles: int
    size: int


def write_share(
    inputs: Iterable[str | Path],
    out: str | Path,
    *,
    region: Sequence[float] | None = None,
    max_mb: float = MAX_MB,
    slides: str | Path | None = None,
    progress: Progress | None = None,
) -> Share:
    """Write a page of a slide that opens from the disk.

    Outside of the region the slide is shown as an overview, without nuclei. The page holds names of files as the viewer
    shows them, and no path; it cannot be labelled, and knows types of nuclei but no measurements.

    Args:
        inputs: What stands for one slide or image, see :func:`cellvit.viewer.sources.find_sources`.
        out: The folder to make.
        region: ``(x, y, width, height)`` in level-0 pixels; None is the whole slide.
        max_mb: Megabytes that it may have.
        slides: Where the slide is, if not where it was.
        progress: Called with the number of finished tiles and of all.

    Raises:
        ConfigError: If there are several slides, the region lies outside, it would be too large, or the page lacks
            scripts of others.
        DataError: If there is nothing to show, or the nuclei are damaged.
        OutputError: If the folder exists or cannot be written; nothing is left of it then.
    """
    check_page()
    folder, gallery = Path(out), Gallery(inputs, slides=slides)
    if folder.exists():
        raise OutputError(f"{str(folder)!r} exists; choose another folder for the share")
    if len(gallery.slides) != 1:
        raise ConfigError(f"{len(gallery.slides)} slides; a share holds one: name its result folder")
    (slide,) = gallery.slides.values()
    about = slide.about()
    if about["error"]:
        raise DataError(f"{slide.source.name!r}: {about['error']}")
    box = _box(region, about["width"], about["height"])
    places = list(_tiles(slide.image(), box))
    if len(places) > MAX_TILES:
        raise ConfigError(
            f"{len(places):,} tiles of pixels, and a share has at most {MAX_TILES:,}; choose a smaller region=(0, 0, "
            "20000, 20000)"
        )
    with atomic_folder(folder) as temporary:
        writer = _Writer(temporary, max_mb)
        facts = _write_nuclei(slide, about, box, writer)
        middle = {"x": (box[0] + box[2]) / 2, "y": (box[1] + box[3]) / 2}
        seen = {"slide": slide.id, **middle, "width": box[2] - box[0], "height": box[3] - box[1]}
        facts["start"] = None if region is None else seen
        _write_page(slide, about, facts, writer)
        for done, (level, column, row) in enumerate(places, start=1):
            writer.write(
                f"api/slides/{slide.id}/image/{level}/{column}_{row}.jpg", slide.tile(level, column, row) or b""
            )
            if progress is not None:
                progress(done, len(places))
    return Share(folder / "index.html", facts["count"], len(places), writer.size)


@dataclass
class _Writer:
    """Writes files into a folder, up to a limit."""

    folder: Path
    max_mb: float
    size: int = field(default=0, init=False)

    def write(self, name: str, data: bytes | str) -> None:
        content = data.encode() if isinstance(data, str) else data
        self.check(len(content))
        self.size += len(content)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def check(self, more: int) -> None:
        """Raise ConfigError if more bytes would be too many."""
        if self.size + more > self.max_mb * 1e6:
            raise ConfigError(
                f"the share has more than {self.max_mb:g} MB; choose a smaller region=(0, 0, 9000, 9000), or raise "
                "max_mb=1000"
            )


def _box(region: Sequence[float] | None, width: int, height: int) -> Box:
    """Return left, top, right and bottom of what is shown in full."""
    if region is None:
        return 0.0, 0.0, float(width), float(height)
    x, y, wide, high = map(float, region)
    box = max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + high, float(height))
    if not (box[0] < box[2] and box[1] < box[3]):
        raise ConfigError(
            f"region {x:g}, {y:g}, {wide:g} x {high:g} lies outside of the {width} x {height} px of the slide"
        )
    return box


def _tiles(image: DeepZoom | None, box: Box) -> Iterator[tuple[int, int, int]]:
    """Yield level, column and row of the tiles of pixels: all of small levels, and those in the box of others."""
    if image is None:
        return
    for level in range(image.max_level + 1):
        size, factor = image.size(level), 2 ** (image.max_level - level) * TILE
        whole = max(size) <= OVERVIEW
        columns, rows = (-(-side // TILE) for side in size)
        left, top, right, bottom = (0, 0, columns, rows) if whole else (int(side // factor) for side in box)
        for row in range(top, min(bottom + 1, rows)):
            yield from ((level, column, row) for column in range(left, min(right + 1, columns)))


def _write_nuclei(slide: ViewedSlide, about: dict[str, Any], box: Box, writer: _Writer) -> dict[str, Any]:
    """Write the nuclei in a box and change what is said of them; return what the page needs to know."""
    about |= {
        "labels": {"editable": False, "reason": "a share cannot be labelled", "count": 0, "classes": []},
        "classifier": False,
        "suggestions": 0,
        "revision": 0,
        "layers": [one for one in about["layers"] if one["name"] != "region"],
    }
    about["layers"].append({"name": "region", "label": "What this page holds", "polygons": [_ring(box)]})
    if (image := slide.image()) is not None:
        whole = image.level_within(OVERVIEW)
        about["image"] |= {"region": box, "whole_level": whole}
    else:
        about["image_note"] = "the image is not part of this page"
    if not about["nuclei"]:
        return {"count": 0, "points": _base64(np.zeros(1, np.uint32)), "classes": 1, "base": 256, "squares": []}
    table = slide.table()
    shown = np.flatnonzero(
        (table.x >= box[0])
        & (table.x < box[2])
        & (table.y >= box[1])
        & (table.y < box[3])  # the page has the same ones
    )
    row, kind = table.row[shown], table.kind[shown]
    counts = np.bincount(kind, minlength=table.num_classes).tolist()
    classes = [{**one, "count": counts[one["id"]]} for one in about["nuclei"]["classes"]]
    place = np.full(table.count, -1, np.int64)
    place[row] = np.arange(len(row))
    squares = list(_write_outlines(table, place, writer))
    bounds = (*(float(side) for side in np.maximum(box[:2], table.bounds[:2])),)
    bounds += (*(float(side) for side in np.minimum(box[2:], table.bounds[2:])),)
    about["nuclei"] |= {"count": len(row), "bounds": bounds, "classes": classes, "columns": []}
    about["nuclei"] |= {"outlines": bool(squares), "outlines_note": None if squares else "the nuclei have no outlines"}
    points = [np.array([len(row)], np.uint32), row, table.x[shown], table.y[shown], kind]
    facts = {"count": len(row), "points": _base64(*points), "classes": table.num_classes}
    return {**facts, "base": table.tree.base, "squares": squares}


def _write_outlines(table: NucleiTable, place: NDArray[np.int64], writer: _Writer) -> Iterator[str]:
    """Write the outlines of nuclei, a script per square, and yield the names of the squares.

    Args:
        table: The nuclei.
        place: ``(N,)`` number of each nucleus among those of the share, -1 for one that is not in it.
        writer: Takes the files.
    """
    parts: dict[tuple[int, int], list[tuple[NDArray[Any], ...]]] = {}
    start = held = 0
    for chunk in ParquetStream(table.path, embedding=False):
        among = place[start : start + len(chunk)]
        start += len(chunk)
        lengths = np.diff(chunk.contour_offsets)
        chosen = np.flatnonzero((among >= 0) & (lengths > 0))
        squares = ((chunk.centroid[chosen] + table.shift) // OUTLINES).astype(np.int64)
        for x, y in np.unique(squares, axis=0).tolist():
            rows = chosen[(squares == (x, y)).all(axis=1)]
            points, offsets = select_rings(chunk.contour_points, chunk.contour_offsets, rows)
            moved = (points + table.shift - (x * OUTLINES, y * OUTLINES)).astype(np.float32)
            parts.setdefault((x, y), []).append((among[rows].astype(np.uint32), np.diff(offsets), moved))
            held += moved.nbytes
        writer.check(held)  # before more is held in memory than may be written
    for (x, y), found in parts.items():
        index, lengths, points = (np.concatenate(column) for column in zip(*found, strict=True))
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
        text = _base64(np.array([len(index), len(points)], np.uint32), index, ends, points)
        writer.write(f"data/outlines-{x}_{y}.js", f'CELLVIT_STATIC.take("{x}_{y}","{text}");\n')
        yield f"{x}_{y}"


def _write_page(slide: ViewedSlide, about: dict[str, Any], facts: dict[str, Any], writer: _Writer) -> None:
    """Write the page and its scripts, and those of others with their licences."""
    title = visible(slide.source.name)
    listed = {**slide.listed(), "nuclei": facts["count"], "labels": 0}
    answers = {"api/slides": {"title": title, "slides": [listed]}, f"api/slides/{slide.id}": about}
    data = {**facts, "width": OUTLINES, "json": plain_data(answers)}
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    if _MODULE not in html:
        raise OutputError(f"{str(PAGE / 'index.html')!r} does not load {_MODULE}; install cellvit again")
    scripts = "".join(f'<script defer src="{name}"></script>' for name in _SCRIPTS)
    writer.write("index.html", _PRELOAD.sub("", html).replace(_MODULE, scripts))
    writer.write("data/facts.js", f"globalThis.CELLVIT_FACTS = {json.dumps(data, allow_nan=False)};\n")
    writer.write("data/share.js", Path(__file__).with_name("share.js").read_bytes())
    writer.write("data/page.js", page_script())
    for folder, name in ((PAGE, "static"), (VENDOR, "vendor")):
        for path in sorted(folder.glob("*")):
            if path.is_file() and (folder == VENDOR or path.suffix not in (".js", ".html")):
                writer.write(f"{name}/{path.name}", path.read_bytes())
    if (picture := slide.thumbnail()) is not None:
        writer.write(f"api/slides/{slide.id}/thumbnail.jpg", picture)


def _ring(box: Box) -> list[list[float]]:
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _base64(*arrays: NDArray[Any]) -> str:
    """Return arrays one after the other, little-endian, as base64."""
    parts = (array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays)
    return base64.b64encode(b"".join(parts)).decode()
