"""The head that every verb of ours has: arguments, what is printed, interruptions, errors in words of the user."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cellvit.cli.console import Output
from cellvit.cli.flags import as_flags, flags_of
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


def command(
    build_parser: Callable[[], argparse.ArgumentParser],
    run: Run,
    *,
    failure: int | None = None,
    resumes: bool = False,
    rest: bool = False,
) -> Main:
    """Return the ``main`` of a verb: it takes arguments (None: those of the process) and returns an exit code.

    It returns 2 for wrong usage, 130 if the user interrupts it and 143 if the system asks it to end. Errors carry
    options in place of the names of Python.

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
            with _terminable():
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
            return 143 if isinstance(stop, _Terminated) else 130

    return main


class _Terminated(KeyboardInterrupt):
    """The process was asked to end, as Slurm does before it kills."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let a request to end stop the work as Ctrl+C does; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
