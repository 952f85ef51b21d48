"""The progress bar of verbs that do one thing many times."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
