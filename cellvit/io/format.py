"""Numbers, sizes, durations and JSON as people and programs read them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellvit.io.atomic import atomic_text

UNITS = ("B", "kB", "MB", "GB")

# C0, DEL and C1; marks that turn the direction of text; separators of lines; halves of characters, as in file names
# that are no UTF-8
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object, *, keep: str = "") -> str:
    r"""Return text of which nothing acts on a terminal or hides: control characters are shown as JSON writes them.

    Every name and every message of strangers goes through here before it is printed or stands in a table or a page.

    Args:
        text: The text.
        keep: Control characters that stay, such as line breaks between sentences of our own.

    Example:
        >>> print(visible("slide\x1b[2J\n1"))
        slide\u001b[2J\u000a1
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", str(text))


def readable_size(size: int) -> str:
    """Return a number of bytes in a unit that suits it.

    Example:
        >>> readable_size(7006394)
        '7.0 MB'
    """
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{size} B"


def readable_duration(seconds: float) -> str:
    """Return a time in its two largest units.

    Example:
        >>> readable_duration(5.2), readable_duration(75), readable_duration(4000)
        ('5 s', '1 min 15 s', '1 h 06 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def rough_duration(seconds: float) -> str:
    """Return an estimated time: to a minute from ten minutes on, without units that are zero.

    Example:
        >>> rough_duration(70), rough_duration(4000), rough_duration(3599)
        ('1 min 10 s', '1 h 7 min', '1 h')
    """
    whole = round(seconds) if seconds < 600 else round(seconds / 60) * 60
    parts = [(whole // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"


def clock_duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds.

    Example:
        >>> clock_duration(90061)
        '25:01:01'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def readable_number(value: float | str | None, *, digits: int = 4, missing: str = "-") -> str:
    """Return a value for a reader: fixed digits, thousands set apart, a dash for what is not there.

    Args:
        value: Number or text; None and nan are not there.
        digits: Digits of fractions after the point.
        missing: What stands for a value that is not there.

    Example:
        >>> [readable_number(value) for value in (0.5, 1234, None, float("nan"), "text")]
        ['0.5000', '1,234', '-', '-', 'text']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return missing
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else value


def plain_data(value: Any, *, digits: int | None = None) -> Any:
    """Return data as JSON can hold them: nan becomes None, values and arrays of numpy and paths become plain.

    Args:
        value: Mappings, lists, tuples, arrays, numbers, texts and paths, nested as they like.
        digits: Round fractions to so many digits after the point; None keeps all.

    Example:
        >>> import numpy as np
        >>> plain_data({"a": np.float32("nan"), 1: (np.arange(2), Path("x"))})
        {'a': None, '1': [[0, 1], 'x']}
    """
    if type(value).__module__ == "numpy":  # asked without importing it: the command line writes sizes long before
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain_data(entry, digits=digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(entry, digits=digits) for entry in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value if digits is None else round(value, digits)
    return str(value) if isinstance(value, Path) else value


def write_json(path: str | Path, content: Any, *, digits: int | None = None) -> None:
    """Write data as indented JSON that appears when complete.

    Args:
        path: The file; replaced if it exists.
        content: What :func:`plain_data` takes.
        digits: Round fractions to so many digits after the point; None keeps all.

    Raises:
        ValueError: If a number is infinite, which is not JSON.
        OutputError: If the file cannot be written.
    """
    text = json.dumps(plain_data(content, digits=digits), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_text(path) as file:
        file.write(text + "\n")
