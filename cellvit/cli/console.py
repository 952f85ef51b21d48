"""What verbs print: tables or JSON lines on standard output; errors, notes and bars on standard error."""

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cellvit.cli.flags import as_flags
from cellvit.io.format import visible

if TYPE_CHECKING:  # the help of a verb needs no rich
    from rich.console import Console, RenderableType
    from rich.progress import Progress

    from cellvit.io.tables import Row

WIDTH = 160
"""Columns where there is no terminal."""
SCORES_WIDTH = 120
"""The same for a table of scores."""
NARROW = 120
"""Columns; on less, a row of a wide table takes two lines."""

Advance = Callable[[str, int, int], None]
"""Takes what was done last, how much is done, and of how much."""


def output_console(*, width: int | None = None, highlight: bool = True) -> "Console":
    """Return the console of standard output, as wide as the terminal.

    Args:
        width: Columns where there is no terminal; None is :data:`WIDTH`.
        highlight: Colour numbers and strings in plain text.
    """
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold what UTF-8 cannot
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(width=None if sys.stdout.isatty() else width or WIDTH, highlight=highlight)


def write_json(data: Any) -> None:
    """Write data to standard output as indented JSON, in which control characters are escapes."""
    sys.stdout.write(visible(json.dumps(data, indent=2, ensure_ascii=False), keep="\n") + "\n")


@dataclass
class Output:
    """Where a verb's results and messages go.

    Attributes:
        quiet: Print errors only.
        json: Print results as JSON, one object per line, in place of tables.
        flags: Option of each Python name, such as ``--tile-size`` of ``tile_size``; messages are given in options.
    """

    quiet: bool = False
    json: bool = False
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def tables(self) -> bool:
        """Whether results are printed for a reader."""
        return not (self.quiet or self.json)

    @cached_property
    def errors(self) -> "Console":
        """The console of standard error."""
        from rich.console import Console

        return Console(stderr=True)

    def error(self, text: str) -> None:
        """Print an error in one line."""
        self._line(f"error: {as_flags(text, self.flags)}")

    def note(self, text: str, kind: str = "note") -> None:
        """Print a line that is not about a failure, unless the user wants silence.

        Args:
            text: What to say.
            kind: Word before it, such as "warning"; empty for none.
        """
        if not self.quiet:
            self._line(f"{kind}: {as_flags(text, self.flags)}" if kind else text)

    def show(self, *content: "RenderableType", **layout: Any) -> None:
        """Print results for a reader.

        Args:
            *content: Texts with markup, and tables.
            **layout: Of :meth:`rich.console.Console.print`.
        """
        if self.tables:
            output_console().print(*content, **layout)

    def line(self, text: str) -> None:
        """Print a line of plain text for a reader."""
        if self.tables:
            sys.stdout.write(visible(text, keep="\n") + "\n")

    def row(self, row: Mapping[str, Any]) -> None:
        """Print a result for a program, as a JSON object in a line; nan becomes null, as JSON has none."""
        if self.json:
            from cellvit.io.format import plain_data

            sys.stdout.write(json.dumps(plain_data(row)) + "\n")
            sys.stdout.flush()

    def scores(self, rows: "Sequence[Row]", *, title: str = "") -> None:
        """Print rows of scores, at least one, as a table below a title for a reader."""
        if not self.tables:
            return
        from cellvit.io.tables import console_table

        if title:
            self.line(title)
        output_console(width=SCORES_WIDTH).print(console_table(rows))

    def bars(self) -> "Progress":
        """Return bars on standard error, which are seen where that is a terminal and the user wants no silence."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = self.quiet or not self.errors.is_terminal
        return Progress(*columns, console=self.errors, transient=True, disable=hidden, redirect_stdout=False)

    @contextmanager
    def progress(self, what: str) -> Iterator[Advance]:
        """Show one bar.

        Args:
            what: What is counted.

        Yields:
            A function to be called after each step.
        """
        if self.quiet or not self.errors.is_terminal:  # a hidden bar leaves an empty line in older versions of rich
            yield lambda last, done, total: None
            return
        from cellvit.io.tables import console_text

        with self.bars() as bars:
            task = bars.add_task(what, total=None)

            def advance(last: str, done: int, total: int) -> None:
                text = console_text(f"{what}: {last}" if last else what)
                bars.update(task, description=text, completed=done, total=total)

            yield advance

    def _line(self, text: str) -> None:
        text = " ".join(visible(text, keep="\n").split())
        self.errors.print(text, markup=False, highlight=False, soft_wrap=True)
