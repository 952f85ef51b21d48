"""``cellvit models``: which models and weights there are, under which licence, and whether they are here."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table

from cellvit.cli.console import NARROW, Output, output_console, write_json
from cellvit.cli.verb import command, verb_parser
from cellvit.io.format import readable_size
from cellvit.io.tables import console_text
from cellvit.weights.catalogue import ENCODER_WEIGHTS, MODEL, Entry, by_name, entries
from cellvit.weights.locate import (
    WEIGHTS_VARIABLE,
    candidate_paths,
    find_weights,
    hub_cache,
    weights_folder,
    weights_paths,
)

EPILOG = f"""\
Nothing is fetched. Files are looked for in the package, in the folder that the environment variable {WEIGHTS_VARIABLE}
names, and in the cache of the hub (HF_HUB_CACHE, HF_HOME).

exit status: 0 done; 1 no such model; 2 wrong usage.
"""
CONVENTION = (
    "GFLOP: one tile of 1024 px through the whole network, a multiply-add counted as two; encoder weights with the "
    "published decoder and heads of 6 nucleus and 19 tissue types."
)


def _run(options: argparse.Namespace, output: Output) -> int:
    chosen = entries() if options.name is None else (by_name(options.name),)
    if options.json:
        rows = [entry_row(entry) for entry in chosen]
        write_json(rows if options.name is None else rows[0])
        return 0
    console = output_console(highlight=False)
    if options.name is None:
        _print_list(console, chosen)
    else:
        _print_entry(console, chosen[0])
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "models",
        "List models and weights of encoders: size, cost, types, resolution, licence, and where they are.",
        EPILOG,
    )
    text = "show all about one: its name, its file's name or a model folder"
    parser.add_argument("name", nargs="?", metavar="NAME", help=text)
    parser.add_argument("--json", action="store_true", help="print objects instead of tables")
    return parser


def entry_row(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain data.

    Args:
        entry: The entry.

    Returns:
        Its attributes, with ``licence`` by its name, ``commercial``, ``use`` and ``obtain`` (lines of text),
        ``looked_for`` (paths), and ``present`` (path or None), ``place`` and ``bytes`` of its file.
    """
    row: dict[str, Any] = asdict(entry) | {
        "licence": entry.licence.id or entry.licence.title,
        "licence_note": entry.licence.note,
        "commercial": entry.licence.commercial,
        "folder": None if entry.folder is None else str(entry.folder),
        "use": usage(entry),
        "obtain": obtaining(entry),
        "looked_for": [str(path) for _, path in candidate_paths(entry)],
    }
    file = find_weights(entry)
    found = (None, None, None) if file is None else (str(file.path), file.place, file.size)
    return row | dict(zip(("present", "place", "bytes"), found, strict=True))


def usage(entry: Entry) -> list[str]:
    """Return how to use an entry, as lines: a command for a model, lines of a configuration for encoder weights."""
    if entry.kind == MODEL:
        name = entry.name if entry.folder is None or _is_bundled(entry) else str(entry.folder)
        convert = [] if entry.folder else [f"cellvit convert ${WEIGHTS_VARIABLE}/{entry.files[0]} --out {name}"]
        return [*convert, f"cellvit segment IMAGE --model {name} --out DIR"]
    if entry.hub:
        file = find_weights(entry)
        given = "pretrained: true"
        if file is not None and file.place == WEIGHTS_VARIABLE:
            given = f"weights: {json.dumps(str(file.path))}"  # quoted as JSON, which YAML reads
        return ["model:", f"  encoder: {{class_path: {entry.encoder}, init_args: {{{given}}}}}"]
    return [
        "trainer:",
        "  callbacks+:",
        "    - class_path: cellvit.callbacks.PretrainedEncoder",
        f'      init_args: {{path: "${{{WEIGHTS_VARIABLE}}}/{entry.files[0]}"}}',
        "model:",
        f"  encoder: {entry.encoder}",
    ]


def obtaining(entry: Entry) -> str:
    """Return how to get the file of an entry."""
    if entry.folder is not None:
        return "nothing to fetch"
    if entry.hub:
        return f"hf download {entry.hub} (gated repositories: accept the terms, then hf auth login)"
    return f"fetch {entry.files[0]} from {entry.source}, and put it into the folder that {WEIGHTS_VARIABLE} names"


def _is_bundled(entry: Entry) -> bool:
    return entry.folder is not None and candidate_paths(entry)[0][0] == "package"


def _print_list(console: Console, chosen: Sequence[Entry]) -> None:
    for kind, title in ((MODEL, "Models"), (ENCODER_WEIGHTS, "Weights of encoders, to start a training with")):
        console.print(_table(title, [entry for entry in chosen if entry.kind == kind], wide=console.width >= NARROW))
    folder = weights_folder()
    console.print(CONVENTION)
    console.print(f"{WEIGHTS_VARIABLE}: {'not set' if folder is None else console_text(str(folder))}", soft_wrap=True)
    console.print(f"cache of the hub: {console_text(str(hub_cache()))}", soft_wrap=True)
    console.print("'cellvit models NAME' says how to get and use one.")


def _table(title: str, chosen: Sequence[Entry], *, wide: bool) -> Table:
    """Return a table with a line per entry or, on a narrow terminal, with two."""
    typed = any(entry.classes for entry in chosen)
    table = Table(title=title, title_justify="left")
    table.add_column("name" if wide else "name\n  licence", no_wrap=wide)
    for heading in ("parameters" if wide else "size", "GFLOP", *(["types"] if typed else []), "µm/px"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("licence", "commercial use", "file") if wide else ("commercial use\n  file",):
        table.add_column(heading, overflow="fold")
    for entry in chosen:
        use = "[green]yes[/green]" if entry.licence.commercial else "[yellow]no[/yellow]"
        name, licence, file = (
            f"[bold]{console_text(entry.name)}[/bold]",
            console_text(entry.licence.title),
            _presence(entry),
        )
        if wide:
            table.add_row(name, *_numbers(entry, typed=typed), licence, use, file)
        else:
            first, last = Group(name, Padding(licence, (0, 0, 0, 2))), Group(use, Padding(file, (0, 0, 0, 2)))
            table.add_row(first, *_numbers(entry, typed=typed), last)
    return table


def _numbers(entry: Entry, *, typed: bool) -> list[str]:
    return [
        f"{entry.parameters / 1e6:,.1f} M",
        "" if entry.gflop is None else f"{entry.gflop:,.0f}",
        *([str(len(entry.classes) - 1)] if typed else []),
        "" if entry.mpp is None else f"{entry.mpp:g}",
    ]


def _presence(entry: Entry) -> str:
    file = find_weights(entry)
    return "not here" if file is None else f"{console_text(file.place)}, {readable_size(file.size)}"


def _print_entry(console: Console, entry: Entry) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for label, text in _facts(entry):
        table.add_row(label, console_text(text))
    console.print(f"[bold]{console_text(entry.name)}[/bold]: {console_text(entry.title)}", soft_wrap=True)
    console.print(table)
    console.print("\n[bold]use[/bold]")
    for line in usage(entry):
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _facts(entry: Entry) -> list[tuple[str, str]]:
    licence, file = entry.licence, find_weights(entry)
    network = ", with the published decoder and heads" if entry.kind == ENCODER_WEIGHTS else ""
    cost = "" if entry.gflop is None else f"{entry.gflop:,.1f} GFLOP for a tile of 1024 px"
    facts = [
        ("kind", f"{entry.kind}, encoder {entry.encoder}"),
        ("parameters", f"{entry.parameters:,}" + (" of the encoder" if entry.kind == ENCODER_WEIGHTS else "")),
        ("cost", cost and f"{cost}{network}; a multiply-add counted as two"),
        ("types", ", ".join(entry.classes[1:])),
        ("resolution", "" if entry.mpp is None else f"trained at {entry.mpp:g} µm/px"),
        ("licence", licence.title),
        ("commercial use", "yes" if licence.commercial else "no"),
        ("terms", "; ".join(filter(None, (licence.note, entry.terms)))),
        ("source", entry.source),
        ("cite", entry.citation),
        ("get", obtaining(entry)),
        ("looked for", _looked_for(entry)),
        ("file", "not here" if file is None else f"{file.path}, {readable_size(file.size)}"),
    ]
    return [(label, text) for label, text in facts if text]


def _looked_for(entry: Entry) -> str:
    folders: dict[str, list[str]] = {}
    if entry.folder is None and weights_folder() is None:
        folders[f"{WEIGHTS_VARIABLE} (not set)"] = [str(path) for path in weights_paths(entry, Path())]
    for _, path in candidate_paths(entry):
        folders.setdefault(str(path.parent), []).append(path.name)
    return "\n".join(f"{folder}: {', '.join(names)}" for folder, names in folders.items())


main = command(build_parser, _run)
