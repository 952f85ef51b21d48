"""What verbs print: the console of standard output, and options that several of them share."""

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cellvit.errors import OutputError
from cellvit.evaluation.tables import Cell, shown

WIDTH = 160
"""Columns where there is no terminal."""
SCORES_WIDTH = 120
"""The same for a table of scores."""
DTYPES = ("float32", "float16", "bfloat16")


def output_console(*, width: int | None = None, highlight: bool = True) -> Console:
    """Return the console of standard output, as wide as the terminal.

    Args:
        width: Columns where there is no terminal; None is :data:`WIDTH`.
        highlight: Colour numbers and strings in plain text.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold what UTF-8 cannot
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(width=None if sys.stdout.isatty() else width or WIDTH, highlight=highlight)


def print_scores(rows: Sequence[dict[str, Cell]], *, title: str = "") -> None:
    """Print rows of scores, at least one, as a table, below a title if there is one."""
    if title:
        sys.stdout.write(f"{title}\n")
    table = Table()
    for column in rows[0]:
        table.add_column(escape(column), justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(escape(shown(value)) for value in row.values()))
    output_console(width=SCORES_WIDTH).print(table)


def check_out_is_no_input(out: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse to write results into a folder that is read.

    Raises:
        OutputError: If one of the inputs is that folder.
    """
    for path in inputs:
        if path is not None and path.is_dir() and out.exists() and out.samefile(path):
            raise OutputError(f"--out '{out}' is also an input; choose another folder")


def add_model_output(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--out`` and ``--dtype`` of a verb that writes a model folder."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the stored weights")
