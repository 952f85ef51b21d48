"""``cellvit verify``: whether result folders still hold what was written."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cellvit.cli.console import Output
from cellvit.cli.verb import add_output_options, command, verb_parser

if TYPE_CHECKING:
    from cellvit.inference.verify import FolderCheck

EPILOG = """\
A folder is the result folder of a slide, or --out of 'cellvit segment' with those of many. Every file that the
summary.json of a slide names is read and compared with the size and the digest (SHA-256) noted there:

  ok       all files hold what was written
  unknown  all files are there; a summary.json of an older version notes no digests
  missing  a file is gone, or the slide is not finished
  damaged  a file holds something else, or summary.json cannot be read

exit status: 0 all are ok; 1 some are not (each with a line that says why); 2 wrong usage.
"""
COLORS = {"ok": "green", "unknown": "yellow", "missing": "red", "damaged": "bold red"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("verify", "Compare result folders of slides with the digests of what was written.", EPILOG)
    parser.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="result folders, or folders of these")
    add_output_options(parser, json="print one JSON object per folder, each in a line, instead of a table")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    from rich.markup import escape
    from rich.table import Table

    from cellvit.inference.verify import result_folders, verify_results
    from cellvit.io.format import readable_size

    folders = list(dict.fromkeys(folder for given in options.folders for folder in result_folders(given)))
    table = Table("folder", "", "files", "read", "what is wrong")
    checks = []
    with output.progress("verified") as advance:
        for number, folder in enumerate(folders, start=1):
            check = verify_results(folder)
            checks.append(check)
            advance(folder.name, number, len(folders))
            reason = _reason(check)
            if reason:
                output.error(f"{str(folder)!r} is {check.status}: {reason}")
            output.row({**asdict(check), "status": check.status})
            status = f"[{COLORS[check.status]}]{check.status}[/]"
            size = readable_size(check.size_bytes)
            table.add_row(escape(str(folder)), status, str(len(check.files)), size, escape(reason))
    output.show(table)
    return 0 if all(check.status == "ok" for check in checks) else 1


def _reason(check: "FolderCheck") -> str:
    """Return what is wrong with a folder: the first file that has its status, and how many have."""
    if check.status == "ok":
        return ""
    bad = [file for file in check.files if file.status == check.status]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"{bad[0].name}: {bad[0].text}{more}"


main = command(build_parser, _run)
