"""``cellvit view``: slides and their nuclei in the browser, where they can be labelled too."""

import argparse
import os
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cellvit.cli.console import Output
from cellvit.cli.options import positive
from cellvit.cli.verb import Terminated, UsageError, add_output_options, command, verb_parser

if TYPE_CHECKING:
    from cellvit.viewer.serve import ServedView

EPILOG = """\
INPUT is a result folder of 'cellvit segment', a folder of these, a table of nuclei, a slide, an image, or a folder of
slides. Only this machine can reach the viewer, and only by the address that is printed. Labels are kept in
labels.parquet beside the nuclei, at once; Ctrl+C ends the viewer.

exit status: 0 done; 1 failed (with a line that says why); 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("view", "Look at slides and their nuclei in the browser, and label them.", EPILOG)
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="INPUT", help="results, slides or images")
    add("--port", type=positive(int), metavar="N", help="of the address (default: a free one)")
    add("--no-browser", action="store_true", help="print the address, and open nothing")
    add("--slides", type=Path, metavar="DIR", help="where the slides are, if they were moved")
    add("--export", type=Path, metavar="DIR", help="write a page that opens from the disk without a server, and end")
    add(
        "--region",
        nargs=4,
        type=float,
        metavar=("X", "Y", "WIDTH", "HEIGHT"),
        help="with --export: level-0 pixels that it shows in full (default: the whole slide)",
    )
    add("--max-mb", type=positive(float), default=500.0, metavar="MB", help="with --export: refuse more (default: 500)")
    add_output_options(parser, json="print the address, or what was written, as a JSON object")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    if options.region is not None and options.export is None:
        raise UsageError("--region is of --export; pass both, or neither")
    return _view(options, output) if options.export is None else _export(options, output)


def _export(options: argparse.Namespace, output: Output) -> int:
    from cellvit.viewer.share import write_share

    with output.progress("tiles") as advance:
        found = write_share(
            options.inputs,
            options.export,
            region=options.region,
            max_mb=options.max_mb,
            slides=options.slides,
            progress=partial(advance, ""),
        )
    output.row({"out": found.page, "nuclei": found.nuclei, "tiles": found.tiles, "bytes": found.size})
    output.line(f"{found.nuclei:,} nuclei, {found.tiles:,} tiles, {found.size / 1e6:,.1f} MB")
    output.line(f"wrote {found.page}: open it in a browser; the folder can be moved as a whole")
    return 0


def _view(options: argparse.Namespace, output: Output) -> int:
    from cellvit.viewer.serve import ViewServer, check_page

    check_page()
    with ViewServer(options.port) as server:
        shown = server.show(options.inputs, slides=options.slides)
        count = len(shown.gallery.slides)
        output.row({"address": shown.address, "slides": count})
        output.line(f"{count:,} slide{'s' * (count != 1)} at {shown.address}")
        _say_how_to_reach(server.port, output)
        if not options.no_browser and not _open(shown.address):
            output.note("no browser was found; open the address yourself")
        output.line("Ctrl+C ends the viewer")
        sys.stdout.flush()  # whoever reads the address from a pipe waits for it
        try:
            server.wait()
        except Terminated:
            raise
        except KeyboardInterrupt:
            output.line("")
            _wait_for_job(shown, output)
        finally:
            shown.labeling.close()
            output.line("; ".join(["the viewer has ended", *shown.labeling.saved()]))
    return 0


def _wait_for_job(shown: "ServedView", output: Output) -> None:
    """Wait for what is under way, unless the user interrupts again."""
    jobs = shown.labeling.jobs
    running = jobs.running
    if running is None:
        return
    output.line(f"waiting for {running.name!r} ({running.text}); Ctrl+C stops it, and what is written stays whole")
    try:
        jobs.wait()
    except KeyboardInterrupt:
        output.note(f"{running.name!r} was stopped; do it again to finish it", "warning")


def _say_how_to_reach(port: int, output: Output) -> None:
    if "SSH_CONNECTION" in os.environ:
        output.line(f"from your own machine: ssh -L {port}:127.0.0.1:{port} HOST, then open the address there")


def _open(address: str) -> bool:
    """Open a browser with windows; one in this terminal would take it away."""
    has_windows = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    try:
        return has_windows and webbrowser.open(address)
    except webbrowser.Error:
        return False


main = command(build_parser, _run, failure=1)
