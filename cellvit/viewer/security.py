"""Who is answered: requests to this machine by its own names, with the token in the address.

The server is for one person. Whoever starts it binds it to 127.0.0.1, and every address begins with ``/t/TOKEN/``.
"""

import hmac
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine in the header ``Host``."""

_READ = ("GET", "HEAD")
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self' {frames}"
)


class Guard:
    """Lets requests through that may be answered, and adds headers to the answers.

    Args:
        app: What answers; it sees addresses without ``/t/TOKEN``.
        token: What addresses must hold.
        hosts: Names of this machine; the port of the server is added.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Sequence[str] = HOSTS) -> None:
        self._app, self._token, self._hosts = app, token, tuple(hosts)
        # notebooks of this machine may show the page in a frame; a policy knows no addresses of IPv6
        frames = " ".join(f"http://{name}:*" for name in hosts if not name.startswith("["))
        self._headers = {
            "content-security-policy": _POLICY.format(frames=frames),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            answer = self._refusal(scope) or self._app
            await answer(self._inside(scope) if answer is self._app else scope, receive, self._with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that may not be answered otherwise; None lets it through."""
        headers = Headers(scope=scope)
        names = headers.getlist("host")
        if len(names) != 1 or names[0].lower() not in self._names(scope):
            return refusal(403, "this server answers to its own name only", "open the address that it printed")
        given = scope["path"].removeprefix("/t/").partition("/")[0]
        known = scope["path"].startswith("/t/") and hmac.compare_digest(given.encode(), self._token.encode())
        if not known:
            return refusal(404, "there is nothing at this address", "open the address that the server printed")
        if scope["method"] in _READ:
            return RedirectResponse(f"/t/{self._token}/") if scope["path"] == f"/t/{self._token}" else None
        return self._refusal_of_change(scope["method"], headers, names[0])

    def _refusal_of_change(self, method: str, headers: Headers, host: str) -> Response | None:
        if method != "POST":
            return refusal(405, f"{method} is not known here", "use GET, or POST where labels change")
        if headers.get("origin", f"http://{host}").lower() != f"http://{host.lower()}":
            return refusal(403, "another page asks for a change", "use the page of this server")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return refusal(415, f"the content is {kind or 'of no stated type'}", "send application/json")
        return None

    def _names(self, scope: Scope) -> set[str]:
        """Return what the header ``Host`` may hold."""
        port = (scope.get("server") or (None, None))[1]
        plain = set(self._hosts) if port == 80 else set()
        return {f"{name}:{port}" for name in self._hosts} | plain

    def _inside(self, scope: Scope) -> dict[str, Any]:
        return {**scope, "root_path": f"{scope.get('root_path', '')}/t/{self._token}"}

    def _with_headers(self, send: Send) -> Send:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
            await send(message)

        return answer


def refusal(status: int, error: str, hint: str) -> JSONResponse:
    """Return an answer that says what was wrong and what to do.

    Args:
        status: Of HTTP, 4xx.
        error: What was wrong.
        hint: What to do.
    """
    return JSONResponse({"error": error, "hint": hint}, status_code=status)
