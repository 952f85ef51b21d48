"""JSON as plain data and as dataclasses, which pydantic checks; every fault is one line of our own error."""

import json
from pathlib import Path
from typing import Any, TypeVar

from cellvit.errors import CellViTError, DataError
from cellvit.io.limits import brief, read_expanded

T = TypeVar("T")

SHOWN = 80
"""Longer values are cut in messages."""


def load_json(
    path: str | Path, *, what: str | None = None, advice: str = "write it again", error: type[CellViTError] = DataError
) -> Any:
    """Return the content of a JSON file of whoever wrote it, compressed with gzip or not, as plain data.

    Args:
        path: The file; expanded it is no larger than :func:`cellvit.io.limits.expanded_limit`.
        what: What to call it; None quotes the path. Messages begin with it.
        advice: What to do; messages end with it.
        error: What is raised.

    Raises:
        CellViTError: Of the kind ``error``, if the file is missing, damaged, too large, nested too deep or not JSON.
    """
    what = repr(str(path)) if what is None else what
    return parsed_json(
        read_expanded(path, what=what, advice=advice, error=error), what=what, advice=advice, error=error
    )


def parsed_json(content: str | bytes, *, what: str, advice: str, error: type[CellViTError] = DataError) -> Any:
    """Return JSON as plain data.

    Args:
        content: The text.
        what: What was read; the message begins with it.
        advice: What to do; the message ends with it.
        error: What is raised.

    Raises:
        CellViTError: Of the kind ``error``, in one line.

    Example:
        >>> parsed_json("[" * 100_000, what="a.json", advice="write it again")
        Traceback (most recent call last):
        ...
        cellvit.errors.DataError: a.json is not JSON that can be read (brackets nested too deep); write it again
    """
    if not content.strip():
        raise error(f"{what} is empty; {advice}")
    try:
        return json.loads(content)
    except RecursionError as fault:
        raise error(f"{what} is not JSON that can be read (brackets nested too deep); {advice}") from fault
    except ValueError as fault:
        raise error(f"{what} is not JSON that can be read ({brief(fault)}); {advice}") from fault


def checked(content: Any, kind: type[T], *, what: str, advice: str, error: type[CellViTError] = DataError) -> T:
    """Return data as a value of a type, after its fields were checked.

    pydantic is imported by the first call: it takes a tenth of a second, and most programs read no such data.

    Args:
        content: JSON as text or bytes, or plain data that were read already.
        kind: A dataclass, or another type that pydantic knows, such as ``dict[str, Size]``. A dataclass refuses fields
            it does not know if its ``__pydantic_config__`` says ``{"extra": "forbid"}``.
        what: What was read, such as ``"config.json"``; the message begins with it.
        advice: What to do; the message ends with it.
        error: What is raised.

    Raises:
        CellViTError: Of the kind ``error``, if the data do not fit: one line per fault, with field and value.

    Example:
        >>> checked('{"mpp": "fine"}', dict[str, float], what="a.json", advice="export it again")
        Traceback (most recent call last):
        ...
        cellvit.errors.DataError: a.json: mpp is 'fine': input should be a valid number, unable to parse string as a \
number; export it again
    """
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_json(content) if isinstance(content, str | bytes) else adapter.validate_python(content)
    except ValidationError as refusal:
        faults = ";\n".join(_line(fault) for fault in refusal.errors(include_url=False))
        raise error(f"{what}: {faults}; {advice}") from refusal


def _line(fault: Any) -> str:
    """Return one fault: field, value, and what pydantic says of it."""
    field, shown = ".".join(map(str, fault["loc"])) or "content", repr(fault["input"])
    text = fault["msg"][0].lower() + fault["msg"][1:]
    if fault["type"] in ("missing", "missing_argument"):
        return f"{field} is missing"
    return f"{field} is {shown if len(shown) <= SHOWN else f'{shown[:SHOWN]} ...'}: {text}"
