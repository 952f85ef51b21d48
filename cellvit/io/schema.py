"""Plain data as dataclasses: pydantic checks them, and every fault is one line of our own error."""

from typing import Any, TypeVar

from cellvit.errors import CellViTError, DataError

T = TypeVar("T")

SHOWN = 80
"""Longer values are cut in messages."""


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
