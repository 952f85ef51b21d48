"""What the addresses of the viewer mean: numbers, filters and areas in them, and answers in the form of the page."""

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import shapely
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from cellvit.errors import ConfigError
from cellvit.io.format import plain_data
from cellvit.viewer.table import Filter

Handler = Callable[[Request], Response]
Endpoint = Callable[[Request], Awaitable[Response]]

FOREVER = "private, max-age=31536000, immutable"
"""For what has its version in its address."""

_GONE = 499
_PLAIN = {"classes", "min_prob", "column", "region", "polygon", "box", "x", "y", "radius", "limit", "v", "revision"}


def in_thread(handle: Handler, limiter: anyio.CapacityLimiter) -> Endpoint:
    """Return an endpoint that answers in a thread of its own, few at a time; who has gone away meanwhile is left out.

    Args:
        handle: Answers a request without a body.
        limiter: Number of threads.
    """

    async def endpoint(request: Request) -> Response:
        async with limiter:
            if await request.is_disconnected():
                return Response(status_code=_GONE)
            return await anyio.to_thread.run_sync(handle, request)

    return endpoint


def json_response(content: Any, *, status: int = 200) -> Response:
    """Return plain data as JSON; what is not a number is null."""
    text = json.dumps(plain_data(content), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    return Response(text, status, {"cache-control": "no-store"}, "application/json")


def binary_response(request: Request, parts: Sequence[NDArray[Any]]) -> Response:
    """Return arrays one after the other, little-endian.

    Args:
        request: If its address holds a version, the answer may be kept.
        parts: Arrays of the types that are sent.
    """
    content = b"".join(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes() for part in parts)
    return Response(content, 200, {"cache-control": lasting(request)}, "application/octet-stream")


def lasting(request: Request) -> str:
    """Return how long an answer may be kept."""
    return FOREVER if {"v", "revision"} & set(request.query_params) else "no-store"


def number(request: Request, name: str) -> float | None:
    """Return a number of the query, or None if it is not there.

    Raises:
        ConfigError: If it is none, or not finite.
    """
    text = request.query_params.get(name)
    return None if text is None else _number(name, text)


def numbers(request: Request, name: str) -> list[float] | None:
    """Return numbers of the query that commas part, or None if they are not there.

    Raises:
        ConfigError: If one is none.
    """
    text = request.query_params.get(name)
    return None if text is None else [_number(name, part) for part in text.split(",")]


def tile_of(request: Request) -> tuple[int, int, int]:
    """Return zoom, column and row of a square in the path ``/Z/X_Y``."""
    column, _, row = request.path_params["place"].partition("_")
    try:
        return int(request.path_params["zoom"]), int(column), int(row)
    except ValueError:
        raise ConfigError(f"{request.path_params['place']!r} is no tile; ask for X_Y") from None


def filter_of(request: Request) -> Filter:
    """Return which nuclei a request asks for.

    Raises:
        ConfigError: If the query cannot be understood.
    """
    ranges: dict[str, tuple[float | None, float | None]] = {}
    for name in request.query_params:
        column, _, end = name.rpartition(".")
        if name in _PLAIN:
            continue
        if not column or end not in ("min", "max"):
            raise ConfigError(f"the query {name!r} is not known; use NAME.min and NAME.max for columns")
        low, high = ranges.get(column, (None, None))
        value = number(request, name)
        ranges[column] = (value, high) if end == "min" else (low, value)
    if (least := number(request, "min_prob")) is not None:
        ranges["type_prob"] = (least, ranges.get("type_prob", (None, None))[1])
    classes = numbers(request, "classes") if request.query_params.get("classes") else None
    if "classes" in request.query_params and classes is None:
        classes = []
    chosen = None if classes is None else frozenset(int(kind) for kind in classes)
    return Filter(chosen, ranges, area_of(request))


def area_of(request: Request) -> Any:
    """Return the area of the query as a shapely polygon, or None."""
    box = numbers(request, "region")
    if box is not None:
        return box_of(box)
    ring = numbers(request, "polygon")
    if ring is None:
        return None
    if len(ring) < 6 or len(ring) % 2:
        raise ConfigError(f"a polygon of {len(ring)} numbers; give x,y of three points or more")
    return polygon_of(np.reshape(ring, (-1, 2)))


def box_of(sides: Sequence[float]) -> Any:
    """Return a box ``x0, y0, x1, y1`` as a polygon.

    Raises:
        ConfigError: If it is none.
    """
    if len(sides) != 4:
        raise ConfigError(f"a box of {len(sides)} numbers; give x0,y0,x1,y1")
    x, y = sorted(sides[::2]), sorted(sides[1::2])
    return shapely.box(x[0], y[0], x[1], y[1])


def polygon_of(points: NDArray[np.float64]) -> Any:
    """Return points ``(K, 2)`` as a valid polygon."""
    polygon = shapely.Polygon(points)
    return polygon if polygon.is_valid else shapely.make_valid(polygon)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{name}={text!r} is no number; give one")
    return value
