"""What verbs print: the console of standard output, and options that several of them share."""

import argparse
import io
import sys

from rich.console import Console

WIDTH = 160
"""Columns where there is no terminal."""
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


def add_model_output(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--out`` and ``--dtype`` of a verb that writes a model folder."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the stored weights")
