"""The server of the viewer as an ASGI application: the page, what it asks for, and who is answered."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cellvit.errors import CellViTError
from cellvit.io.format import visible
from cellvit.io.spatial import require

require("starlette", extra="view")

from starlette.applications import Starlette  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import FileResponse, Response  # noqa: E402
from starlette.routing import Mount, Route  # noqa: E402
from starlette.staticfiles import StaticFiles  # noqa: E402
from starlette.types import ASGIApp  # noqa: E402

from cellvit.viewer.api import Api, Extension, NotThereError  # noqa: E402
from cellvit.viewer.bundle import PAGE  # noqa: E402
from cellvit.viewer.gallery import Gallery, NotReadyError, UnknownSlideError  # noqa: E402
from cellvit.viewer.labels import LabelConflictError  # noqa: E402
from cellvit.viewer.security import HOSTS, Guard, refusal  # noqa: E402
from cellvit.viewer.sources import Source  # noqa: E402
from cellvit.viewer.table import TableChangedError  # noqa: E402
from cellvit.viewer.vendor import FOLDER as VENDOR  # noqa: E402

_STATUS = {
    UnknownSlideError: 404,
    NotThereError: 404,
    TableChangedError: 409,
    LabelConflictError: 409,
    NotReadyError: 503,
}

_LOG = logging.getLogger(__name__)


def create_app(
    sources: Gallery | Iterable[Source | str | Path],
    *,
    token: str,
    slides: str | Path | None = None,
    title: str | None = None,
    extensions: Iterable[Callable[[Gallery], Extension]] = (),
    hosts: Sequence[str] = HOSTS,
) -> ASGIApp:
    """Return the server for some slides; it is to be bound to 127.0.0.1.

    Args:
        sources: The slides, or paths of results, slides and images.
        token: What every address begins with, after ``/t/``; long and made by chance.
        slides: A slide, or a folder with those that are not where they were.
        title: What the page is called.
        extensions: Make further addresses, as for labels.
        hosts: Names of this machine under which the server answers.

    Raises:
        ConfigError: If the extra ``view`` is missing.
        DataError: If a path does not exist, or holds nothing to look at.
    """
    gallery = sources if isinstance(sources, Gallery) else Gallery(sources, slides=slides, title=title)
    made = [extension(gallery) for extension in extensions]
    routes = [
        *(route for extension in made for route in extension.routes),
        *Api(gallery, made).routes,
        Route("/", _page),
        *(
            Mount(f"/{name}", StaticFiles(directory=folder))
            for name, folder in (("static", PAGE), ("vendor", VENDOR))
            if folder.is_dir()
        ),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={CellViTError: _explained, HTTPException: _plain, Exception: _unexpected},
    )
    return Guard(app, token=token, hosts=hosts)


def _page(request: Request) -> Response:
    if not (PAGE / "index.html").is_file():
        raise NotThereError("the page of the viewer is not there; install the package again")
    return FileResponse(PAGE / "index.html", headers={"cache-control": "no-store"})


def _explained(request: Request, error: Exception) -> Response:
    """Return what an error of ours says: what was wrong, and after the last semicolon what to do."""
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 422)
    what, _, hint = visible(error).rpartition("; ")
    answer = refusal(status, what or hint, hint if what else "")
    if isinstance(error, NotReadyError):
        answer.headers["retry-after"] = "1"
    return answer


def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, visible(error.detail), "")


def _unexpected(request: Request, error: Exception) -> Response:
    _LOG.error("a request failed", exc_info=error)
    return refusal(500, f"the server failed: {type(error).__name__}", "load the page again; report it if it stays")
