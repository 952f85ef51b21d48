"""Addresses at which the page changes labels, trains and applies a classifier, and asks what to label next."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cellvit.errors import CellViTError, ConfigError, DataError
from cellvit.labels.export import write_points
from cellvit.view.labeling import Labeling
from cellvit.view.labels import LabelConflictError, color_of

MAX_BODY = 16 << 20
"""Bytes of a request that changes labels."""

MAX_POINTS = 10_000
"""Points of the outline of a lasso."""

Given = Mapping[str, Any]


class RequestError(CellViTError, ValueError):
    """A request that cannot be answered.

    Args:
        status: Of HTTP.
        text: What is wrong.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def label_routes() -> list[Route]:
    """Return the routes, below the address of the viewer; ``app.state.viewer`` has its slides and their labels."""
    slide = "/api/slides/{slide}"
    return [
        Route(f"{slide}/labels", _answer(_labels)),
        Route(f"{slide}/labels", _answer(_give), methods=["POST"]),
        Route(f"{slide}/labels/undo", _answer(_undo), methods=["POST"]),
        Route(f"{slide}/labels/classes", _answer(_classes), methods=["POST"]),
        Route(f"{slide}/labels.geojson", _answer(_geojson)),
        Route(f"{slide}/suggestions", _answer(_suggestions)),
        Route("/api/train", _answer(_train), methods=["POST"]),
        Route("/api/apply", _answer(_apply), methods=["POST"]),
        Route("/api/jobs/{job}", _answer(_job)),
        Route("/api/classifier/report.html", _answer(_report)),
    ]


def _answer(handle: Callable[[Any, Request, Given], Any]) -> Callable[[Request], Any]:
    """Return an endpoint that hands the viewer, the request and its JSON to a function on another thread."""

    async def endpoint(request: Request) -> Response:
        try:
            given = await _body(request) if request.method == "POST" else {}
            found = await run_in_threadpool(handle, request.app.state.viewer, request, given)
        except CellViTError as error:
            return JSONResponse({"error": str(error), "hint": ""}, _status(error))
        return found if isinstance(found, Response) else JSONResponse(found)

    return endpoint


def _status(error: CellViTError) -> int:
    if isinstance(error, RequestError):
        return error.status
    return 409 if isinstance(error, LabelConflictError) else 404 if isinstance(error, LookupError) else 400


async def _body(request: Request) -> Given:
    """Return the JSON object of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "labels are changed with JSON; send Content-Type: application/json")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise RequestError(413, f"the request has more than {MAX_BODY >> 20} MB; name fewer nuclei, or draw a lasso")
    try:
        given = json.loads(bytes(data) or b"{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the request is no JSON ({error})") from error
    if not isinstance(given, dict):
        raise RequestError(400, "the request is no JSON object")
    return given


def _labels(viewer: Any, request: Request, given: Given) -> Any:
    slide, labeling = _slide(viewer, request)
    session = labeling.session(slide)
    current = session.current
    pairs = zip(current.nucleus.tolist(), current.class_name.tolist(), strict=True)
    rows = [{"row": row, "class": name} for row, name in pairs]
    return {"classes": labeling.classes(slide), "labels": rows, "can_undo": session.can_undo}


def _give(viewer: Any, request: Request, given: Given) -> Any:
    slide, labeling = _slide(viewer, request)
    name = given.get("class")
    if name is not None and name not in labeling.colors(slide, labeling.session(slide).counts()):
        labeling.set_class(slide, name)
        name = name.strip()
    rows = _rows(slide, given)
    changed = labeling.session(slide).give(rows, slide.centroid[rows], name)
    return _changed(slide, labeling, changed)


def _undo(viewer: Any, request: Request, given: Given) -> Any:
    slide, labeling = _slide(viewer, request)
    return _changed(slide, labeling, labeling.session(slide).undo())


def _classes(viewer: Any, request: Request, given: Given) -> Any:
    slide, labeling = _slide(viewer, request)
    if (reason := labeling.session(slide).reason) is not None:
        raise LabelConflictError(reason)
    changed = 0
    if "rename" in given:
        changed = labeling.rename_class(str(given["rename"]), given.get("to", ""))
    elif "remove" in given:
        changed = labeling.remove_class(str(given["remove"]))
    else:
        color = given.get("color")
        labeling.set_class(slide, given.get("name", ""), None if color is None else color_of(color))
    return {**_changed(slide, labeling, changed), "classes": labeling.classes(slide)}


def _changed(slide: Any, labeling: Labeling, changed: int) -> dict[str, Any]:
    session = labeling.session(slide)
    facts = {"changed": changed, "count": len(session.current), "revision": slide.revision}
    return {**facts, "can_undo": session.can_undo}


def _geojson(viewer: Any, request: Request, given: Given) -> Response:
    slide, labeling = _slide(viewer, request)
    current = labeling.session(slide).current
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.geojson"
        write_points(current, path, colors=labeling.colors(slide, labeling.session(slide).counts()))
        data = path.read_bytes()
    headers = {"Content-Disposition": 'attachment; filename="labels.geojson"'}
    return Response(data, media_type="application/geo+json", headers=headers)


def _suggestions(viewer: Any, request: Request, given: Given) -> Any:
    slide, labeling = _slide(viewer, request)
    return {"rows": labeling.suggestions(slide)}


def _train(viewer: Any, request: Request, given: Given) -> Any:
    return {"job": viewer.labeling.train().id}


def _apply(viewer: Any, request: Request, given: Given) -> Any:
    names = given.get("slides") or []
    if not isinstance(names, list):
        raise ConfigError(f"slides {names!r:.200}; name them in a list, or none for all")
    slides = [viewer.slide(str(name)) for name in names]
    return {"job": viewer.labeling.apply(slides, pictures=given.get("pictures") is not False).id}


def _job(viewer: Any, request: Request, given: Given) -> Any:
    job = viewer.labeling.jobs.get(request.path_params["job"])
    if job is None:
        raise RequestError(404, "there is no such job; the viewer was started anew, or it is long done")
    return job.facts()


def _report(viewer: Any, request: Request, given: Given) -> Response:
    classifier = viewer.labeling.classifier
    page = None if classifier is None else classifier / "report.html"
    if page is None or not page.is_file():
        raise RequestError(404, "there is no report; train a classifier first")
    # its style is inside of it, and its pictures are; it runs nothing
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return Response(page.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": policy})


def _slide(viewer: Any, request: Request) -> tuple[Any, Labeling]:
    return viewer.slide(request.path_params["slide"]), viewer.labeling


def _rows(slide: Any, given: Given) -> NDArray[np.int64]:
    """Return the nuclei that a request names, or that lie in its lasso."""
    if "polygon" in given:
        try:
            polygon = np.array(given["polygon"], np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError("the polygon is no list of points; give [[x, y], ...]") from error
        if polygon.ndim != 2 or polygon.shape[1:] != (2,) or not 3 <= len(polygon) <= MAX_POINTS:
            raise ConfigError(f"a polygon of shape {polygon.shape}; give 3 to {MAX_POINTS:,} points [x, y]")
        if not np.isfinite(polygon).all():
            raise ConfigError("the polygon has points that are no numbers")
        chosen = given.get("filter") or {}
        if not isinstance(chosen, dict):
            raise ConfigError("the filter is no object of names and values")
        return np.asarray(slide.rows_in(polygon, {str(key): str(value) for key, value in chosen.items()}), np.int64)
    rows = given.get("rows")
    if not isinstance(rows, list) or not all(type(row) is int for row in rows):
        raise ConfigError("name nuclei by rows=[0, 1, ...], or draw a polygon")
    count = len(slide.centroid)
    if wrong := next((row for row in rows if not 0 <= row < count), None):
        raise DataError(f"row {wrong:d} of {count:,} nuclei; rows count from 0")
    return np.array(rows, np.int64)
