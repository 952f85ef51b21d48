"""Rows of named values as Markdown, CSV and console tables, and pages made from templates."""

import base64
import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from cellvit.io.atomic import atomic_text
from cellvit.io.format import plain_data, readable_number, visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table

DIGITS = 6
"""Digits after the point in files that programs read."""

Cell = str | int | float | None
Row = Mapping[str, Cell]

_FORMULA = re.compile(r"'*[=+\-@]")  # after apostrophes, so that what is taken away when reading was put there
_PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_LOOKS_ESCAPED = re.compile(r"\\(?=u[0-9a-f]{4})")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_NUMBER = re.compile(r"[+-]?\d[\d.,:]*( .*)?")


def csv_cell(value: Cell) -> Cell:
    """Return a value as a cell of CSV: text that a spreadsheet would take for a formula begins with an apostrophe.

    Control characters are shown as by :func:`cellvit.io.format.visible`; :func:`plain_cell` undoes both.

    Args:
        value: Numbers, and texts that are numbers, stay as they are.

    Example:
        >>> csv_cell("=1+1"), csv_cell("-1.5"), csv_cell(-1.5), csv_cell("a.svs")
        ("'=1+1", '-1.5', -1.5, 'a.svs')
    """
    if not isinstance(value, str):
        return value
    text = visible(_LOOKS_ESCAPED.sub(r"\\u005c", value))
    return f"'{text}" if _FORMULA.match(text) and not _PLAIN_NUMBER.fullmatch(text) else text


def plain_cell(text: str) -> str:
    """Return the text that :func:`csv_cell` was given.

    Example:
        >>> plain_cell("'=1+1"), plain_cell("it's")
        ('=1+1', "it's")
    """
    text = text[1:] if text.startswith("'") and _FORMULA.match(text) else text
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def csv_writer(file: TextIO, columns: Iterable[str]) -> Callable[[Iterable[Row]], None]:
    """Write a line of headings, and return a function that writes rows by column below it."""
    writer = csv.DictWriter(file, columns := list(columns), lineterminator="\n")
    writer.writerow({column: csv_cell(column) for column in columns})

    def write(rows: Iterable[Row]) -> None:
        writer.writerows({column: csv_cell(value) for column, value in row.items()} for row in rows)

    return write


def read_csv(file: TextIO) -> tuple[list[str], list[dict[str, str]]]:
    """Return the headings and the rows of a table that :func:`csv_writer` has written.

    Args:
        file: The stream, opened with ``newline=""``. Of a row that is too long or too short, the key or the values are
            None, as the module csv has it.

    Raises:
        csv.Error: If it is no CSV.
    """
    reader = csv.DictReader(file, strict=True)
    plain: dict[str | None, str | None] = {name: plain_cell(name) for name in reader.fieldnames or ()} | {None: None}
    rows = [
        {plain[name]: plain_cell(cell) if isinstance(cell, str) else cell for name, cell in row.items()}
        for row in reader
    ]
    return [plain_cell(name) for name in reader.fieldnames or ()], cast("list[dict[str, str]]", rows)


def write_csv(path: str | Path, rows: Iterable[Row], *, columns: Sequence[str] | None = None) -> None:
    """Write rows as UTF-8 CSV that appears when complete; nan and None become empty.

    Args:
        path: The file; replaced if it exists.
        rows: Values by column; fractions are rounded to six digits. With columns they may come one by one.
        columns: Headings in order; None takes those of the first row, which there must then be.

    Raises:
        OutputError: If the file cannot be written.
    """
    if columns is None:
        rows = list(rows)
        columns = list(rows[0])
    with atomic_text(path) as file:
        csv_writer(file, columns)(plain_data(row, digits=DIGITS) for row in rows)


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
    return " ".join(visible(value, keep="\n").split()).replace("<", "&lt;")


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
    from rich.table import Table

    table = Table(title=None if title is None else console_text(title))
    cells = [[readable_number(value, digits=digits) for value in row.values()] for row in rows]
    for column, number in zip(rows[0], _numeric(cells, "-"), strict=True):
        table.add_column(console_text(column), justify="right" if number else "left")
    for line in cells:
        table.add_row(*map(console_text, line))
    return table


def console_text(value: object, *, keep: str = "") -> str:
    """Return text for a table or a line with markup that rich prints; it has no markup and no control characters.

    Args:
        value: The text.
        keep: Control characters that stay; see :func:`cellvit.io.format.visible`.
    """
    from rich.markup import escape

    return escape(visible(value, keep=keep))


def data_uri(content: bytes, kind: str) -> str:
    """Return the address of a file that a page holds itself.

    Args:
        content: The file.
        kind: Its media type, such as ``"image/png"``.

    Example:
        >>> data_uri(b"nucleus", "text/plain")
        'data:text/plain;base64,bnVjbGV1cw=='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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

    def in_html(value: object) -> object:
        return visible(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value

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
        finalize=in_html if html else in_markdown,
    )
    environment.filters |= {"table": table, "number": readable_number}
    return environment


def _numeric(cells: Sequence[Sequence[str]], missing: str) -> list[bool]:
    """Return for every column whether all that is there is a number, maybe with words behind it."""
    columns = [[cell for cell in column if cell != missing] for column in zip(*cells, strict=True)]
    return [bool(column) and all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]
