"""Addresses at which the page changes labels, trains and applies a classifier, and asks what to label next."""

import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import shapely
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from cellvit.errors import ConfigError
from cellvit.labels.export import write_points
from cellvit.viewer.api import NotThereError
from cellvit.viewer.gallery import Gallery, ViewedSlide
from cellvit.viewer.labeling import Labeling
from cellvit.viewer.labels import LabelConflictError, LabelSession, class_name, color_of
from cellvit.viewer.requests import filter_of, json_response, polygon_of

MAX_BODY = 16 << 20
"""Bytes of a request that changes labels."""

MAX_POINTS = 10_000
"""Points of the outline of a lasso."""

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request and what it is about.

    Attributes:
        gallery: The slides.
        labeling: Their labels.
        request: The request.
        given: Its JSON.
    """

    gallery: Gallery
    labeling: Labeling
    request: Request
    given: Given

    @property
    def slide(self) -> ViewedSlide:
        """The slide in the address."""
        return self.gallery.slide(self.request.path_params["id"])

    @property
    def session(self) -> LabelSession:
        """The labels of that slide."""
        return self.labeling.session(self.slide)


Handle = Callable[[Asked], Any]


class LabelExtension:
    """What labels, training and suggestions add to the server of a viewer.

    Args:
        gallery: The slides.
        moved: Where slides are, if not where they were.

    Attributes:
        labeling: The labels.
        routes: Their addresses.
    """

    def __init__(self, gallery: Gallery, *, moved: Path | None = None) -> None:
        self._gallery = gallery
        self.labeling = Labeling(gallery.slides.values(), moved=moved)
        slide = "/api/slides/{id}"
        self.routes: list[BaseRoute] = [
            Route(f"{slide}/labels", self._answer(_labels)),
            Route(f"{slide}/labels", self._answer(_give), methods=["POST"]),
            Route(f"{slide}/labels/undo", self._answer(_undo), methods=["POST"]),
            Route(f"{slide}/labels/classes", self._answer(_classes), methods=["POST"]),
            Route(f"{slide}/labels.geojson", self._answer(_geojson)),
            Route(f"{slide}/suggestions", self._answer(_suggestions)),
            Route("/api/train", self._answer(_train), methods=["POST"]),
            Route("/api/apply", self._answer(_apply), methods=["POST"]),
            Route("/api/jobs/{job}", self._answer(_job)),
            Route("/api/classifier/report.html", self._answer(_report)),
        ]

    def listed(self, slide: ViewedSlide) -> Given:
        """Return how many labels a slide has."""
        return {"labels": self.labeling.count(slide)}

    def about(self, slide: ViewedSlide) -> Given:
        """Return what the page needs to know of labels when it opens a slide."""
        facts = {"labels": self.labeling.state(slide), "suggestions": self.labeling.suggested(slide)}
        return {**facts, "classifier": self.labeling.classifier is not None}

    def nucleus(self, slide: ViewedSlide, row: int) -> Given:
        """Return the label of a nucleus."""
        return {"label": self.labeling.label_of(slide, row)}

    def _answer(self, handle: Handle) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that does the work on another thread."""

        async def endpoint(request: Request) -> Response:
            given = await _body(request) if request.method == "POST" else {}
            found = await run_in_threadpool(handle, Asked(self._gallery, self.labeling, request, given))
            return found if isinstance(found, Response) else json_response(found)

        return endpoint


async def _body(request: Request) -> Given:
    """Return the JSON object of a request.

    Raises:
        ConfigError: If it is none, or too large.
    """
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise ConfigError(f"the request has more than {MAX_BODY >> 20} MB; name fewer nuclei, or draw a lasso")
    try:
        given = json.loads(bytes(data) or b"{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the request is no JSON ({error}); send an object") from error
    if not isinstance(given, dict):
        raise ConfigError("the request is no JSON object; send {}, or what is asked for")
    return given


def _labels(asked: Asked) -> Any:
    session = asked.session
    current = session.current
    pairs = zip(current.nucleus.tolist(), current.class_name.tolist(), strict=True)
    rows = [{"row": row, "class": name} for row, name in pairs]
    return {"classes": asked.labeling.classes(asked.slide), "labels": rows, "can_undo": session.can_undo}


def _give(asked: Asked) -> Any:
    slide, session, name = asked.slide, asked.session, asked.given.get("class")
    name = None if name is None else class_name(name)
    changed = session.give(_rows(slide, asked.given), name)
    if changed and name is not None and name not in asked.labeling.own.all():
        asked.labeling.set_class(slide, name)  # it keeps its colour, also when its labels are gone
    return _changed(asked, changed)


def _undo(asked: Asked) -> Any:
    return _changed(asked, asked.session.undo())


def _classes(asked: Asked) -> Any:
    slide, given, labeling = asked.slide, asked.given, asked.labeling
    if (reason := asked.session.reason) is not None:
        raise LabelConflictError(reason)
    changed = 0
    if "rename" in given:
        changed = labeling.rename_class(str(given["rename"]), given.get("to", ""))
    elif "remove" in given:
        changed = labeling.remove_class(str(given["remove"]))
    else:
        color = given.get("color")
        labeling.set_class(slide, given.get("name", ""), None if color is None else color_of(color))
    return {**_changed(asked, changed), "classes": labeling.classes(slide)}


def _changed(asked: Asked, changed: int) -> dict[str, Any]:
    session = asked.session
    facts = {"changed": changed, "count": len(session.current), "revision": asked.slide.revision}
    return {**facts, "can_undo": session.can_undo}


def _geojson(asked: Asked) -> Response:
    session = asked.session
    colors = asked.labeling.colors(asked.slide, session.counts())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.geojson"
        write_points(session.current, path, colors=colors)
        data = path.read_bytes()
    headers = {"content-disposition": 'attachment; filename="labels.geojson"', "cache-control": "no-store"}
    return Response(data, media_type="application/geo+json", headers=headers)


def _suggestions(asked: Asked) -> Any:
    return {"rows": asked.labeling.suggestions(asked.slide)}


def _train(asked: Asked) -> Any:
    return {"job": asked.labeling.train().id}


def _apply(asked: Asked) -> Any:
    names = asked.given.get("slides") or []
    if not isinstance(names, list):
        raise ConfigError(f"slides {names!r:.200}; name them in a list, or none for all")
    slides = [asked.gallery.slide(str(name)) for name in names]
    return {"job": asked.labeling.apply(slides, pictures=asked.given.get("pictures") is not False).id}


def _job(asked: Asked) -> Any:
    job = asked.labeling.jobs.get(asked.request.path_params["job"])
    if job is None:
        raise NotThereError("there is no such job: the viewer was started anew, or it is long done")
    return job.facts()


def _report(asked: Asked) -> Response:
    classifier = asked.labeling.classifier
    page = None if classifier is None else classifier / "report.html"
    if page is None or not page.is_file():
        raise NotThereError("there is no report; train a classifier first")
    return FileResponse(page, headers={"cache-control": "no-store"})


def _rows(slide: ViewedSlide, given: Given) -> NDArray[np.int64]:
    """Return the nuclei that a request names, or that lie in its lasso and pass its filter."""
    if "polygon" in given:
        table, everything = slide.table(), given.get("filter") or {}
        if not isinstance(everything, dict):
            raise ConfigError("the filter is no object of names and values; send what the addresses of tiles hold")
        query = urlencode({str(name): str(value) for name, value in everything.items()}).encode()
        chosen = filter_of(Request({"type": "http", "query_string": query, "headers": []}))
        lasso = polygon_of(_ring(given["polygon"]))
        area = lasso if chosen.area is None else shapely.intersection(lasso, chosen.area)
        mask = table.chosen(replace(chosen, area=area), slice(0, len(table)))
        return table.row[mask].astype(np.int64)
    rows = given.get("rows")
    if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < 2**32 for row in rows):
        raise ConfigError("name nuclei by rows=[0, 1, ...], or draw a polygon")
    return np.array(rows, np.int64)


def _ring(given: Any) -> NDArray[np.float64]:
    """Return the points ``(K, 2)`` of a lasso."""
    try:
        ring = np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError("the polygon is no list of points; give [[x, y], ...]") from error
    if ring.ndim != 2 or ring.shape[1:] != (2,) or not 3 <= len(ring) <= MAX_POINTS or not np.isfinite(ring).all():
        raise ConfigError(f"a polygon of shape {ring.shape}; give 3 to {MAX_POINTS:,} points [x, y] that are numbers")
    return ring
