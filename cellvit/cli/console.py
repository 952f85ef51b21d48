"""What verbs print: the console of standard output, and options that several of them share."""

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cellvit.errors import OutputError
from cellvit.io.tables import Cell, console_table

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
    output_console(width=SCORES_WIDTH).print(console_table(rows))


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


Advance = Callable[[str, int, int], None]
"""Takes what was done last, how much is done, and of how much."""


@contextmanager
def progress_bar(what: str) -> Iterator[Advance]:
    """Show a bar on standard error where that is a terminal.

    Args:
        what: What is counted.

    Yields:
        A function to be called after each step.
    """
    console = Console(stderr=True)
    if not console.is_terminal:  # a bar that is only switched off leaves an empty line in older versions of rich
        yield lambda last, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(last: str, done: int, total: int) -> None:
            bar.update(task, description=escape(f"{what}: {last}" if last else what), completed=done, total=total)

        yield advance
