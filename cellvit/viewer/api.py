"""What the page asks of the server: slides, tiles of images, nuclei of squares, single ones, counts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import anyio
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cellvit.errors import ConfigError
from cellvit.inference.settings import available_cores
from cellvit.viewer.details import nucleus_at, nucleus_facts
from cellvit.viewer.gallery import Gallery, NotReadyError, ViewedSlide
from cellvit.viewer.outlines import OutlineFile
from cellvit.viewer.requests import (
    Handler,
    binary_response,
    box_of,
    filter_of,
    in_thread,
    json_response,
    lasting,
    number,
    numbers,
    tile_of,
)
from cellvit.viewer.table import NucleiTable

_MOST_THREADS = 4  # of each kind; every one holds some memory
_MOST_OUTLINES = 50_000
_RADIUS = 32.0  # level-0 pixels

SLIDE = "/api/slides/{id}"


class Extension(Protocol):
    """Further addresses, and what they add to the facts about slides."""

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Addresses, without ``/t/TOKEN``."""

    def listed(self, slide: ViewedSlide) -> Mapping[str, Any]:
        """Return what replaces facts in the list of slides."""

    def about(self, slide: ViewedSlide) -> Mapping[str, Any]:
        """Return what replaces facts about one slide."""

    def nucleus(self, slide: ViewedSlide, row: int) -> Mapping[str, Any]:
        """Return what replaces facts about one nucleus, by its row in the table."""


class NotThereError(ConfigError):
    """There is nothing at an address."""


class Api:
    """The addresses under ``api/`` that only read.

    Args:
        gallery: The slides.
        extensions: What adds to the facts about slides.
    """

    def __init__(self, gallery: Gallery, extensions: Sequence[Extension] = ()) -> None:
        self._gallery, self._extensions = gallery, extensions
        number = max(2, min(_MOST_THREADS, available_cores()))
        # outlines that are prepared for the first time keep nobody waiting but those who ask for them
        pixels, nuclei, rings = (anyio.CapacityLimiter(number) for _ in range(3))
        of_slide: dict[str, tuple[Handler, anyio.CapacityLimiter]] = {
            "": (self._slide, nuclei),
            "/thumbnail.jpg": (self._thumbnail, pixels),
            "/image/{zoom:int}/{place}.jpg": (self._image, pixels),
            "/points/{zoom:int}/{place}": (self._points, nuclei),
            "/density/{zoom:int}/{place}": (self._density, nuclei),
            "/outlines/{zoom:int}/{place}": (self._outlines, rings),
            "/counts": (self._counts, nuclei),
            "/nuclei/{row:int}": (self._nucleus, nuclei),
            "/at": (self._at, nuclei),
        }
        self.routes: list[BaseRoute] = [Route("/api/slides", in_thread(self._slides, nuclei))]
        self.routes += [Route(SLIDE + path, in_thread(*pair)) for path, pair in of_slide.items()]

    def slide_of(self, request: Request) -> ViewedSlide:
        """Return the slide of an address.

        Raises:
            UnknownSlideError: If there is none.
        """
        return self._gallery.slide(request.path_params["id"])

    def _slides(self, request: Request) -> Response:
        slides = []
        for slide in self._gallery.slides.values():
            entry = slide.listed()
            for extension in self._extensions:
                entry.update(extension.listed(slide))
            slides.append(entry)
        return json_response({"title": self._gallery.title, "slides": slides})

    def _slide(self, request: Request) -> Response:
        slide = self.slide_of(request)
        facts = slide.about()
        for extension in self._extensions:
            facts.update(extension.about(slide))
        return json_response(facts)

    def _thumbnail(self, request: Request) -> Response:
        return _jpeg(request, self.slide_of(request).thumbnail())

    def _image(self, request: Request) -> Response:
        return _jpeg(request, self.slide_of(request).tile(*tile_of(request)))

    def _outlines(self, request: Request) -> Response:
        table, rows, corner = self._square(request)
        chosen = _limited(request, np.arange(rows.start, rows.stop), table.chosen(filter_of(request), rows))
        if len(chosen) > _MOST_OUTLINES:
            raise ConfigError(f"{len(chosen):,} outlines are too many at once; ask for a smaller square, or limit=5000")
        outlines = self.slide_of(request).outlines(table)
        if outlines is None:
            raise NotThereError("the table holds no outlines; ask for points")
        points, start = outlines.read(chosen)
        place = np.stack([table.x[chosen], table.y[chosen]], axis=1) - np.array(corner, np.float32)
        points += np.repeat(place, np.diff(start), axis=0)
        parts: list[NDArray[Any]] = [np.array([len(chosen), len(points)], np.uint32), table.row[chosen]]
        parts += [start.astype(np.uint32), points]
        if name := request.query_params.get("column"):
            parts.append(table.values(name)[chosen])
        return binary_response(request, [*parts, table.kind[chosen]])

    def _nucleus(self, request: Request) -> Response:
        slide = self.slide_of(request)
        table = slide.table()
        row = request.path_params["row"]
        place = table.position(row)
        if place is None:
            raise NotThereError(f"no nucleus {row}; rows go from 0 to {table.count - 1}")
        return self._facts(slide, table, place)

    def _at(self, request: Request) -> Response:
        slide = self.slide_of(request)
        table = slide.table()
        x, y, radius = (number(request, name) for name in ("x", "y", "radius"))
        if x is None or y is None:
            raise ConfigError("no place is given; ask for at?x=..&y=..")
        place = nucleus_at(table, _outlines_now(slide, table), (x, y), radius=_RADIUS if radius is None else radius)
        if place is None:
            raise NotThereError("no nucleus is there; click nearer to one")
        return self._facts(slide, table, place)

    def _facts(self, slide: ViewedSlide, table: NucleiTable, place: int) -> Response:
        """Return all about one nucleus."""
        facts = nucleus_facts(table, _outlines_now(slide, table), place, mpp=slide.mpp)
        for extension in self._extensions:
            facts.update(extension.nucleus(slide, facts["row"]))
        return json_response(facts)

    def _points(self, request: Request) -> Response:
        table, rows, corner = self._square(request)
        chosen = _limited(request, np.arange(rows.start, rows.stop), table.chosen(filter_of(request), rows))
        left, top = np.float32(corner[0]), np.float32(corner[1])
        parts: list[NDArray[Any]] = [np.array([len(chosen)], np.uint32), table.row[chosen]]
        parts += [table.x[chosen] - left, table.y[chosen] - top]
        if name := request.query_params.get("column"):
            parts.append(table.values(name)[chosen])
        return binary_response(request, [*parts, table.kind[chosen]])

    def _density(self, request: Request) -> Response:
        table, rows, _ = self._square(request)
        shown, classes = table.chosen(filter_of(request), rows), table.num_classes
        codes, kind = table.codes[rows], table.kind[rows]
        if shown is not None:
            codes, kind = codes[shown], kind[shown]
        counts = table.tree.density(codes, kind, tile_of(request)[0], classes)
        return binary_response(request, [np.array(counts.shape[:2], np.uint32), counts])

    def _counts(self, request: Request) -> Response:
        table, filter = self.slide_of(request).table(), filter_of(request)
        everything = slice(0, len(table))
        shown = np.ones(len(table), bool) if (mask := table.chosen(filter, everything)) is None else mask
        if (box := numbers(request, "box")) is not None:
            left, top, right, bottom = box_of(box).bounds
            shown = shown & (table.x >= left) & (table.x < right) & (table.y >= top) & (table.y < bottom)
        counts = np.bincount(table.kind[shown], minlength=table.num_classes)
        return json_response({"total": int(counts.sum()), "classes": dict(enumerate(counts.tolist()))})

    def _square(self, request: Request) -> tuple[NucleiTable, slice, tuple[int, int]]:
        """Return the table of a request, the rows of its square, and the corner of this.

        Raises:
            NotThereError: If there is no such square.
        """
        table, place = self.slide_of(request).table(), tile_of(request)
        if not table.tree.has(*place):
            raise NotThereError(f"no square {place}; zoom goes from 0 to {table.tree.max_zoom}")
        return table, table.rows_of(*place), table.tree.corner(*place)


def _limited(request: Request, rows: NDArray[np.int64], shown: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Return the rows that are shown; of more than the limit of the request some that are spread over all."""
    chosen = rows if shown is None else rows[shown]
    limit = number(request, "limit")
    if limit is None or len(chosen) <= limit:
        return chosen
    return chosen[np.linspace(0, len(chosen) - 1, max(0, int(limit))).astype(np.int64)]


def _outlines_now(slide: ViewedSlide, table: NucleiTable) -> OutlineFile | None:
    """Return the outlines, or None while they are prepared, or where there are none."""
    try:
        return slide.outlines(table, wait=0)
    except NotReadyError:
        return None


def _jpeg(request: Request, content: bytes | None) -> Response:
    if content is None:
        raise NotThereError("there is no picture at this address; the slide has no such tile")
    return Response(content, 200, {"cache-control": lasting(request)}, "image/jpeg")
