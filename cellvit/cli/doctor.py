"""``cellvit doctor``: what is installed, whether each part really works here, and what to do where it does not."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from cellvit.cli.console import Output, output_console, write_json
from cellvit.cli.verb import command, verb_parser
from cellvit.doctor import Finding, examine
from cellvit.io.tables import console_text

EPILOG = """\
Nothing is fetched and nothing is changed; small files are written to the temporary folder and removed. A note is worth
knowing and stops nothing. Add the output of --json to a report of a fault.

exit status: 0 no problem; 1 problems, each with what to do; 2 wrong usage.
"""
MARKS = {"ok": "[green]ok     [/green]", "note": "[yellow]note   [/yellow]", "problem": "[bold red]problem[/bold red]"}
NAME_WIDTH = 24


def _run(options: argparse.Namespace, output: Output) -> int:
    if options.json:
        findings = list(examine())
        write_json(as_data(findings))
    else:
        findings = _print_all(output_console(highlight=False), examine(), brief=options.brief)
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "doctor", "Check this installation: packages, devices, readers of slides, models, worker processes.", EPILOG
    )
    parser.add_argument("--brief", action="store_true", help="leave out what is well")
    parser.add_argument("--json", action="store_true", help="print one object instead of lines")
    return parser


def as_data(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return findings as plain data.

    Args:
        findings: In the order of the report.

    Returns:
        ``ok`` (no problem), ``problems`` and ``notes`` (numbers), and ``checks``, the findings as objects.
    """
    count = Counter(finding.status for finding in findings)
    return {
        "ok": count["problem"] == 0,
        "problems": count["problem"],
        "notes": count["note"],
        "checks": [asdict(finding) for finding in findings],
    }


def _print_all(console: Console, findings: Iterable[Finding], *, brief: bool) -> list[Finding]:
    seen, section = [], ""
    for finding in findings:
        seen.append(finding)
        if brief and finding.status == "ok":
            continue
        if finding.section != section:
            section = finding.section
            console.print(f"[bold]{console_text(section)}[/bold]")
        _print_one(console, finding)
    count = Counter(finding.status for finding in seen)
    verdict = "all is well" if not count["problem"] else f"[bold red]{count['problem']} to repair[/bold red]"
    console.print(f"{verdict}: {len(seen)} checks, {count['note']} notes, {count['problem']} problems")
    return seen


def _print_one(console: Console, finding: Finding) -> None:
    mark = MARKS[finding.status]
    console.print(f"  {mark}  {console_text(finding.name):<{NAME_WIDTH}}  {console_text(finding.text)}", soft_wrap=True)
    if finding.advice:
        console.print(f"{'':<{NAME_WIDTH + 13}}-> {console_text(finding.advice)}", soft_wrap=True)


main = command(build_parser, _run)
