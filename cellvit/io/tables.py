"""Scores as files: JSON, CSV and Markdown tables."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellvit.io.atomic import atomic_text

DIGITS = 6
"""Digits after the point in files that programs read."""

Cell = str | int | float | None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain data as JSON; numbers are rounded, and nan becomes null, as JSON has none.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(path) as file:
        json.dump(_plain(content), file, indent=2, allow_nan=False)
        file.write("\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Cell]]) -> None:
    """Write rows with the columns of the first; nan and None become empty.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(path) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)


def write_text(path: Path, text: str) -> None:
    """Write a text that ends with a line break.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(path) as file:
        file.write(text.rstrip("\n") + "\n")


def markdown_table(rows: Sequence[Mapping[str, Cell]], *, digits: int = 4) -> str:
    """Return rows as a Markdown table with the columns of the first row; numbers stand right.

    Args:
        rows: At least one.
        digits: Digits after the point.

    Example:
        >>> print(markdown_table([{"model": "a", "bPQ": 0.5}, {"model": "b", "bPQ": float("nan")}], digits=2))
        | model | bPQ |
        |---|---:|
        | a | 0.50 |
        | b | - |
    """
    columns = list(rows[0])
    numeric = {c for c in columns if any(isinstance(row[c], int | float) for row in rows)}
    lines = [columns, ["---:" if c in numeric else "---" for c in columns]]
    head = [f"| {' | '.join(lines[0])} |", f"|{'|'.join(lines[1])}|"]
    return "\n".join([*head, *(f"| {' | '.join(shown(row[c], digits=digits) for c in columns)} |" for row in rows)])


def shown(value: Cell, *, digits: int = 4) -> str:
    """Return a value for a reader: numbers with fixed digits, a dash for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else value.replace("|", "\\|")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, DIGITS)
    return str(value) if isinstance(value, Path) else value
