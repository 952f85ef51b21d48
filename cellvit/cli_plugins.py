"""``cellvit plugins``: which encoders, decoders, heads, post-processors and metrics there are, and who brings them."""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from cellvit.cli_output import output_console
from cellvit.registry import Registry, RegistryEntry

EPILOG = """\
Packages bring plug-ins through entry points of the groups cellvit.encoders, cellvit.decoders, cellvit.heads,
cellvit.postprocess and cellvit.metrics. One that cannot be imported, is of the wrong kind or claims a name that is
taken is listed with the reason.

exit status: 0 all can be used; 1 some cannot; 2 wrong usage.
"""
REGISTRIES = {
    "encoder": ("cellvit.encoders.base", "ENCODERS"),
    "decoder": ("cellvit.decoders.base", "DECODERS"),
    "head": ("cellvit.heads.base", "HEADS"),
    "postprocessor": ("cellvit.postprocess.base", "POSTPROCESSORS"),
    "metric": ("cellvit.metrics.base", "METRICS"),
}
"""Module and name of the registry of each kind, in the order of the data; imported when it is listed."""
OURS = "cellvit-lightning"
NARROW = 120
"""Columns; on less, five columns would be slivers."""
MARKUP = re.compile(r":\w+:`~?([^`]*)`|``([^`]*)``|`([^`]*)`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Its arguments; None takes those of the process.

    Returns:
        0 if all plug-ins of the kinds listed can be used, 1 if some cannot, 2 for wrong usage.
    """
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed why, or the help
        return int(stop.code or 0)
    rows = plugin_rows([options.kind] if options.kind else list(REGISTRIES))
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _print_table(rows)
    return 1 if any(row["error"] for row in rows) else 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = argparse.ArgumentParser(
        "cellvit plugins",
        description="List the parts of a model that configurations can name, and which package brings each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", choices=REGISTRIES, metavar="KIND", help=f"one of {', '.join(REGISTRIES)}")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    return parser


def plugin_rows(kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per plug-in, as plain data.

    Args:
        kinds: Keys of :data:`REGISTRIES`.

    Returns:
        Rows with ``kind``, ``name``, ``class`` (dotted path), ``distribution`` and ``version`` (None for a class that
        its module registers without an entry point), ``summary`` (first line of its docstring) and ``error`` (None if
        it can be used). Those of cellvit come first within a kind, then by name.
    """
    rows = []
    for kind in kinds:
        found = [_row(kind, entry) for entry in _entries(kind)]
        rows += sorted(found, key=lambda row: row["distribution"] != OURS)
    return rows


def _entries(kind: str) -> Sequence[RegistryEntry[Any]]:
    module, name = REGISTRIES[kind]
    with redirect_stdout(sys.stderr), warnings.catch_warnings():  # a plug-in may print while it is imported
        warnings.filterwarnings("ignore", r"\w+ plug-in .* cannot be used", RuntimeWarning)  # they are rows
        registry: Registry[Any] = getattr(import_module(module), name)
        return registry.entries()


def _row(kind: str, entry: RegistryEntry[Any]) -> dict[str, Any]:
    ours = entry.version is None and entry.origin.split(".")[0] == "cellvit"
    return {
        "kind": kind,
        "name": entry.name,
        "class": entry.class_path,
        "distribution": OURS if ours else entry.origin if entry.version else None,
        "version": version(OURS) if ours else entry.version,
        "summary": _summary(entry.cls),
        "error": entry.reason or None,
    }


def _summary(cls: type | None) -> str:
    """Return the first line of a class's own docstring, without marks of reStructuredText."""
    lines = ((cls.__doc__ if cls else None) or "").strip().splitlines()
    return MARKUP.sub(lambda found: found[1] or found[2] or found[3], lines[0]) if lines else ""


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
            table.add_row(kind, *(escape(cell) for cell in (row["name"], row["class"], _source(row))), _text(row))
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
                Group(escape(row["name"]), Padding(escape(_source(row)), (0, 0, 0, 2))),
                Group(escape(row["class"]), Padding(_text(row), (0, 0, 0, 2))),
            )
        table.add_section()
    return table


def _text(row: dict[str, Any]) -> str:
    return f"[red]cannot be used:[/red] {escape(row['error'])}" if row["error"] else escape(row["summary"])
