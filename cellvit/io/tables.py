"""Rows of named values as Markdown, CSV and console tables, and pages made from templates."""

import csv
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvit.io.atomic import atomic_text
from cellvit.io.format import plain_data, readable_number

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table

DIGITS = 6
"""Digits after the point in files that programs read."""

Cell = str | int | float | None
Row = Mapping[str, Cell]

_NUMBER = re.compile(r"[+-]?\d[\d.,:]*( .*)?")


def write_csv(path: str | Path, rows: Sequence[Row], *, columns: Sequence[str] | None = None) -> None:
    """Write rows as UTF-8 CSV that appears when complete; nan and None become empty.

    Args:
        path: The file; replaced if it exists.
        rows: Values by column; fractions are rounded to six digits.
        columns: Headings in order; None takes those of the first row, which there must then be.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(path) as file:
        writer = csv.DictWriter(file, list(rows[0]) if columns is None else columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain_data(row, digits=DIGITS) for row in rows)


def write_text(path: str | Path, text: str) -> None:
    """Write a text that ends with a line break.

    Raises:
        OutputError: If the file cannot be written.
    """
    with atomic_text(path) as file:
        file.write(text.rstrip("\n") + "\n")


def markdown_text(value: object) -> str:
    """Return text on one line that Markdown shows as it is, HTML too.

    Example:
        >>> markdown_text("<b>two words</b>")
        '&lt;b>two words&lt;/b>'
    """
    return " ".join(str(value).split()).replace("<", "&lt;")


def markdown_table(rows: Sequence[Row], *, digits: int = 4, missing: str = "-") -> str:
    """Return rows as a Markdown table with the columns of the first row; numbers stand right.

    Args:
        rows: Values by column, at least one row.
        digits: Digits of fractions after the point.
        missing: What stands for a value that is not there.

    Example:
        >>> print(markdown_table([{"model": "a", "bPQ": 0.5}, {"model": "b", "bPQ": float("nan")}], digits=2))
        | model | bPQ |
        |---|---:|
        | a | 0.50 |
        | b | - |
    """
    columns = list(rows[0])
    cells = [[readable_number(row[column], digits=digits, missing=missing) for column in columns] for row in rows]
    return markdown_lines(columns, cells, missing=missing)


def markdown_lines(head: Sequence[str], cells: Sequence[Sequence[str]], *, missing: str = "-") -> str:
    """Return texts as a Markdown table, also where columns share a heading; numbers stand right.

    Args:
        head: Headings.
        cells: Rows as long as the head.
        missing: What stands for a value that is not there.
    """
    lines = [[markdown_text(cell).replace("|", "\\|") for cell in line] for line in (head, *cells)]
    first, *body = (f"| {' | '.join(line)} |" for line in lines)
    marks = "|".join("---:" if number else "---" for number in _numeric(cells, missing))
    return "\n".join([first, f"|{marks}|", *body])


def console_table(rows: Sequence[Row], *, title: str | None = None, digits: int = 4) -> "Table":
    """Return rows as a table for :meth:`rich.console.Console.print`; numbers stand right.

    Args:
        rows: Values by column, at least one row.
        title: Heading of the table.
        digits: Digits of fractions after the point.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=None if title is None else escape(title))
    cells = [[readable_number(value, digits=digits) for value in row.values()] for row in rows]
    for column, number in zip(rows[0], _numeric(cells, "-"), strict=True):
        table.add_column(escape(column), justify="right" if number else "left")
    for line in cells:
        table.add_row(*map(escape, line))
    return table


def render(template: str, **values: Any) -> str:
    """Return a page made from a template of the package; what is put into it is escaped.

    Args:
        template: Path inside the package, such as ``"inference/cohort/report.html.jinja"``. Where it ends in
            ``.html.jinja`` values are escaped as HTML, else as :func:`markdown_text` does.
        values: By the names that the template uses; ``markupsafe.Markup`` is put in as it is.
    """
    return _environment(html=template.endswith(".html.jinja")).get_template(template).render(**values)


@lru_cache(maxsize=2)
def _environment(*, html: bool) -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def in_markdown(value: object) -> Markup:
        return value if isinstance(value, Markup) else Markup(markdown_text(value))

    def table(rows: Sequence[Row], digits: int = 4, missing: str = "-") -> Markup:
        return Markup(markdown_table(rows, digits=digits, missing=missing))

    environment = Environment(
        loader=PackageLoader("cellvit", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if html else in_markdown,
    )
    environment.filters |= {"table": table, "number": readable_number}
    return environment


def _numeric(cells: Sequence[Sequence[str]], missing: str) -> list[bool]:
    """Return for every column whether all that is there is a number, maybe with words behind it."""
    columns = [[cell for cell in column if cell != missing] for column in zip(*cells, strict=True)]
    return [bool(column) and all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]
