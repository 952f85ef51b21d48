"""``cellvit plugins``: parts of models, readers of slides and formats of nuclei, and who brings them."""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table

from cellvit.cli.console import NARROW, Output, output_console
from cellvit.cli.verb import command, verb_parser
from cellvit.io.tables import console_text
from cellvit.plugins.listing import OURS, REGISTRIES, plugin_rows

EPILOG = """\
Packages bring plug-ins through entry points of the groups cellvit.encoders, cellvit.decoders, cellvit.heads,
cellvit.postprocess, cellvit.metrics, cellvit.readers, cellvit.formats, cellvit.annotations and
cellvit.classifiers. One that cannot be imported, is of the wrong kind or claims a name that is taken is listed with the
reason.

exit status: 0 all can be used; 1 some cannot; 2 wrong usage.
"""


def _run(options: argparse.Namespace, output: Output) -> int:
    rows = plugin_rows([options.kind] if options.kind else list(REGISTRIES))
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _print_table(rows)
    return 1 if any(row["error"] for row in rows) else 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "plugins",
        "List parts of models, readers of slides and annotations and formats of nuclei, and which package brings each.",
        EPILOG,
    )
    parser.add_argument(
        "kind", nargs="?", choices=tuple(REGISTRIES), metavar="KIND", help=f"one of {', '.join(REGISTRIES)}"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    return parser


def _source(row: dict[str, Any]) -> str:
    if row["distribution"] == OURS:
        return "cellvit"
    return f"{row['distribution']} {row['version']}" if row["distribution"] else row["class"].partition(".")[0]


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    console = output_console(highlight=False)
    console.print(_wide_table(rows) if console.width >= NARROW else _narrow_table(rows))


def _wide_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    for title in ("kind", "name"):
        table.add_column(title, no_wrap=True)
    for title in ("class", "from", "summary"):
        table.add_column(title, overflow="fold")
    for kind, group in groupby(rows, key=itemgetter("kind")):
        for row in group:
            table.add_row(kind, *(console_text(cell) for cell in (row["name"], row["class"], _source(row))), _text(row))
        table.add_section()
    return table


def _narrow_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table of two columns with two lines for each row."""
    table = Table()
    table.add_column("name\n  from", overflow="fold")
    table.add_column("class\n  summary", overflow="fold")
    for kind, group in groupby(rows, key=itemgetter("kind")):
        table.add_row(f"[bold]{kind}[/bold]")
        for row in group:
            table.add_row(
                Group(console_text(row["name"]), Padding(console_text(_source(row)), (0, 0, 0, 2))),
                Group(console_text(row["class"]), Padding(_text(row), (0, 0, 0, 2))),
            )
        table.add_section()
    return table


def _text(row: dict[str, Any]) -> str:
    return f"[red]cannot be used:[/red] {console_text(row['error'])}" if row["error"] else console_text(row["summary"])


main = command(build_parser, _run)
