"""What a check finds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: What it is about, such as ``"machine"``.
        name: What was looked at.
        status: ``"ok"``; ``"note"``, which is worth knowing and stops nothing; or ``"problem"``.
        text: What was found.
        advice: What to do; empty for most that is well.
        facts: The same as plain data, for programs.
    """

    section: str
    name: str
    status: Status
    text: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def noted(section: str, name: str, text: str, advice: str, facts: Mapping[str, Any]) -> Finding:
    """Return a finding that is a note if there is advice, else well.

    Args:
        section: What it is about.
        name: What was looked at.
        text: What was found.
        advice: What to do; an empty text if nothing is to be done.
        facts: The same as plain data.
    """
    return Finding(section, name, "note" if advice else "ok", text, advice, facts)


def guarded(section: str, name: str, check: Callable[[], Iterable[Finding]], advice: str) -> Iterator[Finding]:
    """Yield what a check finds; if it fails, that is one more finding.

    Args:
        section: Section of the finding about a check that fails.
        name: What is then said to have been looked at.
        check: Any of its errors is a problem of the installation, for it has no input.
        advice: What to do if it fails.
    """
    try:
        yield from check()
    except (Exception, SystemExit) as error:  # a broken package may raise anything at all
        yield Finding(section, name, "problem", first_line(error), advice)


def first_line(error: BaseException) -> str:
    r"""Return the kind of an error and the first line of its text.

    Example:
        >>> first_line(ValueError("no such level\nmore"))
        'ValueError: no such level'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
