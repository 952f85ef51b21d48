"""The head that every verb of ours has: arguments, what is printed, interruptions, errors in words of the user."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cellvit.cli.console import Output
from cellvit.cli.flags import as_flags, flags_of
from cellvit.cli.options import positive
from cellvit.errors import CellViTError

Main = Callable[[Sequence[str] | None], int]
Run = Callable[[argparse.Namespace, Output], int]


class UsageError(Exception):
    """Arguments that do not go together; the user reads the usage and why."""


def verb_parser(verb: str, description: str, epilog: str = "", **settings: Any) -> argparse.ArgumentParser:
    """Return an empty parser of a verb.

    Args:
        verb: Its name.
        description: What it does, in one sentence.
        epilog: Text below the options, printed as it is.
        **settings: Further ones of :class:`argparse.ArgumentParser`.
    """
    shape = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        f"cellvit {verb}", description=description, epilog=epilog, formatter_class=shape, **settings
    )


def add_output_options(parser: argparse.ArgumentParser, *, json: str = "") -> None:
    """Add ``--quiet`` and, where there is something to say about it, ``--json``.

    Args:
        parser: Of a verb.
        json: What is printed with ``--json``; empty for no such option.
    """
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and what --json asks for")
    if json:
        parser.add_argument("--json", action="store_true", help=json)


def add_limit_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-expanded-gb``, for verbs that read outlines, labels and tables of strangers."""
    parser.add_argument(
        "--max-expanded-gb",
        type=positive(float),
        metavar="GB",
        help="refuse files of outlines, labels or tables that expand to more gigabytes (default: 4)",
    )


def class_map(texts: Sequence[str]) -> dict[str, str]:
    """Return the new names of classes by the old ones.

    Args:
        texts: What is given to ``--class-map``: ``OLD=NEW`` each.

    Raises:
        UsageError: If one is no pair.
    """
    pairs = [text.partition("=") for text in texts]
    if wrong := [old for old, sign, _ in pairs if not (old and sign)]:
        raise UsageError(f"--class-map {wrong[0]!r} is no pair; give OLD=NEW")
    return {old: new for old, _, new in pairs}


@contextmanager
def _limits(options: argparse.Namespace) -> Iterator[None]:
    """Return a context in which files may expand as far as the user allows."""
    gigabytes = getattr(options, "max_expanded_gb", None)
    if gigabytes is None:
        yield
        return
    from cellvit.io.limits import max_expanded

    with max_expanded(gigabytes):
        yield


def command(
    build_parser: Callable[[], argparse.ArgumentParser],
    run: Run,
    *,
    failure: int | None = None,
    resumes: bool = False,
    rest: bool = False,
) -> Main:
    """Return the ``main`` of a verb: it takes arguments (None: those of the process) and returns an exit code.

    It returns 2 for wrong usage, 130 if the user interrupts it, 143 if the system asks it to end and 129 if its
    terminal is closed. Errors carry options in place of the names of Python.

    Args:
        build_parser: Returns the parser of the verb's arguments.
        run: Does the work.
        failure: Exit code of an error, which is then printed; None raises it.
        resumes: Whether the same command goes on where it was stopped.
        rest: Whether arguments that the parser does not know are kept, as ``others``.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser, output, options = build_parser(), Output(), argparse.Namespace()
        try:
            options, others = parser.parse_known_args(argv)
            if others and not rest:
                parser.error(f"unrecognized arguments: {' '.join(others)}")
            options.others = others
            output.quiet, output.json = getattr(options, "quiet", False), getattr(options, "json", False)
            output.flags = flags_of(parser)
            with terminable(), _limits(options):
                return run(options, output)
        except SystemExit as stop:  # argparse has printed why, or the help
            return int(stop.code or 0)
        except UsageError as error:
            parser.print_usage(sys.stderr)
            sys.stderr.write(f"{parser.prog}: error: {error}\n")
            return 2
        except CellViTError as error:
            error.args = (as_flags(str(error), output.flags),)
            if failure is None or getattr(options, "debug", False):
                raise
            output.error(str(error))
            return failure
        except KeyboardInterrupt as stop:
            more = "; what is finished is kept, and the same command goes on with the rest" if resumes else ""
            sys.stderr.write(f"interrupted{more}\n")
            return 128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)

    return main


class Terminated(KeyboardInterrupt):
    """The process was asked to end, as Slurm does before it kills, or its terminal was closed.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Let a request to end, or a closed terminal, stop the work as Ctrl+C does; only the main thread can.

    A signal that is ignored, as ``nohup`` has it, stays so. Work that has taken SIGTERM over, as Lightning's loops do,
    is left to stop at a moment of its own, and hears of a closed terminal as SIGTERM.

    Yields:
        The signals that have come, the first one first.

    Raises:
        Terminated: Where the signal comes, unless it was taken over.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def stop(number: int, frame: object) -> None:
        came.append(number)
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)  # shell and system may both tell of a closed terminal
            _leave_closed_terminal()
        if signal.getsignal(signal.SIGTERM) in (stop, signal.SIG_IGN):
            raise Terminated(number)
        if number != signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heard = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in heard:
            signal.signal(number, stop)
        yield came
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """Let what is printed from now on go nowhere if it would fail, so that it does not hide why the work stops."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), stream)
