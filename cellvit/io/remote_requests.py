"""Requests to places elsewhere: asked again where they fail, given up after a time, and what their failures mean."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.limits import stated_number

TIMEOUT_VARIABLE = "CELLVIT_REMOTE_TIMEOUT"
"""Environment variable with the seconds that an answer may take; processes inherit it."""

TIMEOUT = 60.0
"""Its default."""

PAUSE = 0.5
"""Seconds before a request that failed is made again; twice as many before the last time."""

TRIES = 3
"""How often a request is made at most."""

_QUERY = re.compile(r"\?[^\s'\")]*")
_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or FSSPEC_S3_ANON=true if it is public",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon if it is public",
    "http": "FSSPEC_HTTP with the headers that it wants, see the page on whole slides",
}
_DENIED = (401, 403)
_GONE = (404, 410)
_AGAIN = "; finished parts of a slide are kept: the same call goes on with them"
_Found = TypeVar("_Found")


class MissingSourceError(SourceLostError, FileNotFoundError):
    """Nothing is, or is any longer, where a slide should be."""


class DeniedSourceError(SourceLostError):
    """A place does not let itself be read; some servers say so of what is not there, too."""


def gone(path: Path) -> SourceLostError:
    """Return the error for what is not, or no longer, where it should be."""
    return MissingSourceError(f"{str(path)!r} is not there, or no longer there; check the spelling{_AGAIN}")


def patiently(ask: Callable[[], _Found], path: Path) -> _Found:
    """Return an answer; where none comes, ask again before it is an error.

    Args:
        ask: Makes the request.
        path: What is asked for, for the message.

    Raises:
        ImageError: If nothing is there, access is denied, or no answer comes.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return ask()
        except ImageError:
            raise
        except Exception as error:  # each package of fsspec has errors of its own
            refusal = _refusal(path, error)
            if attempt == TRIES or refusal is not None:
                raise refusal or _no_answer(path, error) from error
            time.sleep(PAUSE * attempt)
    raise AssertionError


def _refusal(path: Path, error: Exception) -> ImageError | None:
    """Return the error for an answer that is not to be asked for again, or None."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in _GONE:
        return gone(path)
    denied = isinstance(error, PermissionError) or status in _DENIED or "Credentials" in type(error).__name__
    if not denied:
        return None
    scheme = urlsplit(str(path)).scheme.lower()
    how = _ENVIRONMENT.get({"https": "http", "s3a": "s3", "gcs": "gs"}.get(scheme, scheme), "its variables")
    return DeniedSourceError(
        f"{str(path)!r} may not be read ({_said(error)}); credentials are taken from the environment: set {how}{_AGAIN}"
    )


def _no_answer(path: Path, error: Exception) -> SourceLostError:
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return SourceLostError(
            f"{str(path)!r} gave no answer within {timeout():g} s; if the network is slow, set "
            f"{TIMEOUT_VARIABLE}={2 * timeout():g}{_AGAIN}"
        )
    return SourceLostError(f"{str(path)!r} cannot be reached ({_said(error)}); check the network{_AGAIN}")


def _said(error: Exception) -> str:
    """Return what an error says, without keys that addresses may hold."""
    text = _QUERY.sub("?...", " ".join(str(error).split()))[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def timeout() -> float:
    """Return the seconds that an answer may take.

    Raises:
        ConfigError: If the environment variable is no number of seconds greater than 0.
    """
    return stated_number(TIMEOUT_VARIABLE, TIMEOUT, "seconds")
