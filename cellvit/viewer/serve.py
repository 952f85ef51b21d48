"""The server of viewers: on this machine only, on a thread of its own, each viewer behind a secret in its address."""

import errno
import logging
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvit.errors import ConfigError, OutputError
from cellvit.io.spatial import require

if TYPE_CHECKING:
    from cellvit.viewer.gallery import Gallery
    from cellvit.viewer.labeling import Labeling

HOST = "127.0.0.1"
"""The only address that is listened at: other machines cannot reach it."""

_START_SECONDS, _STOP_SECONDS = 30.0, 3
_QUEUE = 256  # connections that wait to be accepted: a page asks for many tiles at once

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class ServedView:
    """A viewer that is served.

    Attributes:
        address: What a browser opens.
        gallery: Its slides.
        labeling: Their labels.
    """

    address: str
    gallery: "Gallery"
    labeling: "Labeling"


def check_page() -> None:
    """Refuse to show a page that lacks what it stands on.

    Raises:
        ConfigError: If scripts of others were not fetched, as in a fresh checkout.
    """
    from cellvit.viewer.vendor import FETCH_COMMAND, missing

    if lost := missing():
        raise ConfigError(
            f"the page lacks {', '.join(lost)}, which a wheel holds; from a checkout run: {FETCH_COMMAND}"
        )


class ViewServer:
    """A running server; use it as a context, or call :meth:`stop`.

    Args:
        port: The port; None or 0 takes a free one.

    Attributes:
        port: The port it listens at.

    Raises:
        ConfigError: If the port cannot be had, or the extra ``view`` is not installed.
        OutputError: If the server does not start.
    """

    def __init__(self, port: int | None = None) -> None:
        uvicorn = require("uvicorn", extra="view")
        require("starlette", extra="view")
        self._socket = _bound(port or 0)
        self.port: int = self._socket.getsockname()[1]
        self._views: dict[str, tuple[App, ServedView]] = {}
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what users need to know, the page shows
        config = uvicorn.Config(
            self._serve,
            interface="asgi3",
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="cellvit view", daemon=True
        )
        self._thread.start()
        self._wait_until_started()

    def __enter__(self) -> "ViewServer":
        return self

    def __exit__(self, *stop: object) -> None:
        self.stop()

    def show(
        self, inputs: Iterable[str | Path], *, slides: str | Path | None = None, title: str | None = None
    ) -> ServedView:
        """Serve a viewer, behind a new secret.

        Args:
            inputs: What there is to look at, see :func:`cellvit.viewer.sources.find_sources`.
            slides: A slide, or a folder with those that are not where they were.
            title: What the page is called.

        Raises:
            DataError: If a path does not exist, or holds nothing to look at.
        """
        from cellvit.viewer.app import create_app
        from cellvit.viewer.gallery import Gallery
        from cellvit.viewer.label_routes import LabelExtension

        gallery, token = Gallery(inputs, slides=slides, title=title), secrets.token_urlsafe(24)
        labels = LabelExtension(gallery, moved=None if slides is None else Path(slides))
        shown = ServedView(f"http://{HOST}:{self.port}/t/{token}/", gallery, labels.labeling)
        self._views[token] = create_app(gallery, token=token, extensions=[lambda _: labels]), shown
        return shown

    def hide(self, shown: ServedView) -> None:
        """Serve a viewer no more, and let others change its labels."""
        self._views.pop(_token(shown.address.partition(f":{self.port}")[2]), None)
        shown.labeling.close()
        shown.gallery.close()

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait until it is stopped; a signal ends the waiting."""
        while self._thread.is_alive():
            self._thread.join(0.5)  # Python handles signals between two of them

    def stop(self) -> None:
        """Answer what is under way, and end; files of outlines that are made are not waited for."""
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS + 2)
        self._socket.close()
        for _, shown in self._views.values():
            shown.gallery.close()

    async def _serve(self, scope: Scope, receive: Any, send: Any) -> None:
        """Hand a request to the viewer that its address names."""
        found = self._views.get(_token(str(scope.get("path", ""))))
        if found is not None:
            await found[0](scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"no viewer here; use the address that cellvit printed"})

    def _wait_until_started(self) -> None:
        waiting = threading.Event()
        for _ in range(int(_START_SECONDS / 0.01)):
            if self._server.started or not self._thread.is_alive():
                break
            waiting.wait(0.01)
        if not self._server.started:
            self.stop()
            raise OutputError(f"the server at {HOST}:{self.port} does not start; try another port=8000")


def _token(path: str) -> str:
    """Return the secret in a path ``/t/SECRET/...``."""
    parts = path.split("/", 3)
    return parts[2] if len(parts) == 4 and parts[:2] == ["", "t"] else ""


def _bound(port: int) -> socket.socket:
    """Return a socket that listens at a port of this machine, for itself only."""
    if not 0 <= port < 2**16:
        raise ConfigError(f"port={port} is no port; give 1024 to 65535, or none for a free one")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((HOST, port))
        found.listen(_QUEUE)
    except OSError as error:
        found.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror or error})"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
            other.bind((HOST, 0))
            free = other.getsockname()[1]
        raise ConfigError(f"port={port} {reason}; pass port={free}, or none for a free one") from error
    return found
