"""``cellvit info``: what files of slides and images are."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cellvit.cli.console import Output, write_json
from cellvit.cli.verb import add_limit_option, add_output_options, command, verb_parser
from cellvit.io.format import plain_data, readable_size

if TYPE_CHECKING:
    from pathlib import Path

    from cellvit.slide.compare import ReaderView
    from cellvit.slide.info import Picture, SlideInfo

EPILOG = """\
Told is what the segmentation of a file depends on: who reads it, its levels, micrometres per pixel and where that
stands, objective, images of full size (scenes), channels, bits, alpha, compression, pictures beside it, and what is
doubtful. What the pixels show is not judged.

--compare opens each file with every reader that is installed, those of cellvit and OpenSlide, tifffile, Pillow,
wsidicom, zarr, pylibCZIrw, and pyvips and slideio where they are, and compares sizes, levels, micrometres per pixel
and the pixels of four small regions with what the first one sees, which is used for segmentation.

exit status: 0 all are told; 1 some cannot be read (each with a line that says why); 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser("info", "Tell what files of slides and images are.", EPILOG)
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="slides, images, folders, patterns, addresses")
    parser.add_argument("--compare", action="store_true", help="compare what all installed readers see of each file")
    add_limit_option(parser)
    add_output_options(parser, json="print a JSON list with an object per file instead of tables")
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    from cellvit.cli.flags import as_flags, flags_of
    from cellvit.cli.inputs import failure_text
    from cellvit.cli.segment import build_parser as segment_parser
    from cellvit.errors import CellViTError
    from cellvit.slide.info import slide_info
    from cellvit.slide.naming import expand_inputs

    output.flags = flags_of(segment_parser())  # advice is about the options that the file is segmented with
    files, missing = expand_inputs(options.inputs)
    for _, reason in missing:
        output.error(reason)
    rows: list[dict[str, Any]] = [{"path": text, "error": reason} for text, reason in missing]
    for path in files:
        try:
            info = slide_info(path)
            views = _views(path) if options.compare else []
        except CellViTError as error:
            output.error(failure_text(path, error))
            rows.append({"path": str(path), "error": as_flags(failure_text(path, error), output.flags)})
        else:
            rows.append(
                info_data(info) | ({"readers": [plain_data(asdict(view)) for view in views]} if options.compare else {})
            )
            print_info(output, info)
            print_views(output, views)
    if options.json:
        write_json(rows)
    return 1 if any("error" in row for row in rows) else 0


def _views(path: "Path") -> "list[ReaderView]":
    from cellvit.slide.compare import compare_readers

    return compare_readers(path)


def info_data(info: "SlideInfo") -> dict[str, Any]:
    """Return what a file is as plain data, for JSON."""
    data: dict[str, Any] = plain_data(asdict(info))
    return data


def print_info(output: Output, info: "SlideInfo") -> None:
    """Print what a file is as a table of labels and sentences.

    Args:
        output: Where to.
        info: What the file is.
    """
    print_facts(output, str(info.path), info_rows(info), info.warnings)


def print_views(output: Output, views: "Sequence[ReaderView]") -> None:
    """Print a table of what each reader sees, and who does not open the file.

    Args:
        output: Where to.
        views: What each sees, the reader that is used first.
    """
    from rich.table import Table

    from cellvit.io.tables import console_text

    if not views:
        return
    table = Table(title="every reader compared with the first", title_justify="left", title_style="")
    for name in ("reader", "size and levels", "µm/px", "largest", "mean", "shift", "differs in"):
        table.add_column(name, overflow="fold")
    for view in views:
        if view.level_sizes:
            table.add_row(*(console_text(text) for text in _view_row(view)))
    output.show(table, highlight=False)
    for view in (view for view in views if view.refusal):
        output.show(console_text(f"  {view.name} {view.version}".rstrip() + f": {view.refusal}"), highlight=False)


def _view_row(view: "ReaderView") -> tuple[str, ...]:
    """Return the cells of a reader: the largest difference of all regions, of means and shifts the worst."""
    sizes = ", ".join(f"{width:,} x {height:,}" for width, height in view.level_sizes)
    mpp = "-" if view.mpp is None else " x ".join(f"{side:.4g}" for side in dict.fromkeys(view.mpp))
    shifts = [difference.shift for difference in view.differences if difference.shift is not None]
    shift = max(shifts, key=lambda each: max(map(abs, each)), default=None)
    return (
        f"{view.name} {view.version}".rstrip(),
        sizes,
        mpp,
        str(max((difference.largest for difference in view.differences), default="-")),
        str(max((difference.mean for difference in view.differences), default="-")),
        "-" if shift is None else f"{shift[0]:g}, {shift[1]:g}",
        "; ".join(view.disagreements) or ("" if view.differences else "-"),
    )


def print_facts(
    output: Output,
    title: str,
    rows: Iterable[tuple[str, str]],
    warnings: Iterable[str],
    *,
    after: Iterable[tuple[str, str]] = (),
) -> None:
    """Print a table of labels and sentences with a title.

    Args:
        output: Where to.
        title: What it is about.
        rows: Label and text of each line.
        warnings: Texts in the words of Python, which follow the lines.
        after: Lines that follow the warnings.
    """
    from rich.table import Table

    from cellvit.cli.flags import as_flags
    from cellvit.io.tables import console_text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(f"  {label}", console_text(text))
    for text in warnings:
        table.add_row("  [yellow]warning[/yellow]", console_text(as_flags(text, output.flags)))
    for label, text in after:
        table.add_row(f"  {label}", console_text(text))
    output.show(f"[bold]{console_text(title)}[/bold]", soft_wrap=True, highlight=False)
    output.show(table, highlight=False)


def info_rows(info: "SlideInfo") -> Iterator[tuple[str, str]]:
    """Yield what a file is, as label and text.

    Args:
        info: What the file is.
    """
    kind = f" ({info.pixels.kind})" if info.pixels.kind else ""
    size = "size not known" if info.size_bytes is None else readable_size(info.size_bytes)
    if info.reader is None or info.bounds is None:
        yield "file", f"{size}, not opened{kind}: it holds several images of full size"
    else:
        width, height = info.level_sizes[0]
        yield "file", f"{size}, {width:,} x {height:,} px, read by {info.reader}{kind}"
        levels = ", ".join(f"{w:,} x {h:,}" for w, h in info.level_sizes)
        yield "levels", f"{len(info.level_sizes)}: {levels}"
        if info.bounds != (0, 0, width, height):
            x, y, w, h = info.bounds
            yield "scanned", f"{w:,} x {h:,} px at x={x:,}, y={y:,}"
        yield "resolution", _resolution(info)
        yield "objective", "not stated" if info.magnification is None else f"x{info.magnification:g}"
    yield "pixels", _pixels(info)
    if len(info.pixels.scenes) > 1:
        yield "scenes", f"{len(info.pixels.scenes)}: {_pictures(info.pixels.scenes)}"
    beside = info.pixels.associated
    yield "associated", "not known" if beside is None else _pictures(beside) or "none"


def _resolution(info: "SlideInfo") -> str:
    if info.mpp is None:
        return "not stated"
    x, y = info.mpp
    mpp = f"{x:.4g}" if x == y else f"{x:.4g} x {y:.4g}"
    place = f" ({info.mpp_place})" if info.mpp_place else ""
    return f"{mpp} µm/px, stated by the file{place}"


def _pixels(info: "SlideInfo") -> str:
    facts = info.pixels
    if facts.channels is None:
        return "not known"
    used = "" if facts.significant_bits in (None, facts.bits) else f", of which {facts.significant_bits} are used"
    alpha = "no alpha" if facts.alpha is None else f"{facts.alpha} alpha"
    if facts.alpha == "unspecified":
        alpha = "a further sample that may be alpha: the file does not say"
    channels = f"{facts.channels} channel{'s' if facts.channels > 1 else ''}"
    return f"{channels} of {facts.bits} bits{used}; {alpha}; compression {facts.compression}"


def _pictures(pictures: "tuple[Picture, ...]") -> str:
    return ", ".join(f"{p.name} ({p.size[0]:,} x {p.size[1]:,})" for p in pictures)


main = command(build_parser, _run)
