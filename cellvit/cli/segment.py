"""The command ``cellvit segment``: slides and images in; tables, outlines and pictures of nuclei out."""

import argparse
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cellvit.cli.options import add_network_options, add_slide_options
from cellvit.cli.segment_images import SUFFIXES, Job, Outcome, print_images, segment_images
from cellvit.cli.segment_slides import finish_slides, read_inputs, segment_slides, slide_settings
from cellvit.errors import CellViTError, ConfigError, OutputError
from cellvit.inference.cohort.run import choose_devices
from cellvit.inference.cohort.sheet import CohortRow
from cellvit.inference.image import tile_grid
from cellvit.inference.protocol import autocast_context, choose_device, load_model
from cellvit.inference.settings import DEFAULT_FORMATS, FORMATS
from cellvit.inference.tta import with_tta
from cellvit.slide.naming import SLIDE_SUFFIXES
from cellvit.slide.open import is_slide

EPILOG = f"""\
A slide (a scanner's format, a pyramid, a tiled TIFF, or more than 67 million pixels) gets a folder of its own in DIR,
with nuclei.parquet, tissue.png, summary.json and the formats {", ".join(FORMATS)}
(by default {", ".join(DEFAULT_FORMATS)}). Its resolution is --mpp or --magnification, else what it
states; without any of these it is refused. Stopped or killed, the same command goes on where it was. DIR gets
summary.csv and report.html for the slides of the call.

An image named a.png gives a.geojson (QuPath), a.json (layout of the released tools), a.parquet (all columns, with
embeddings) and a.png (the image with outlines). Two images of one name get longer names. The resolution is --mpp,
else what the file states, else 0.25 microns per pixel.

A CSV file lists slides, one per line: column path, and optionally mpp, magnification, roi.

exit status: 0 all inputs done; 1 some failed (each with a line that says why); 2 nothing was started.
"""


@dataclass
class Inputs:
    """What the command line names.

    Attributes:
        slides: Slides, with what a list says about each.
        images: Ordinary images.
        missing: Inputs that stand for nothing, and the reason.
    """

    slides: list[CohortRow] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``cellvit segment``; None takes those of the process.

    Returns:
        0 if all inputs were done, 1 if some failed, 2 if nothing could be started.
    """
    parser = build_parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed why, or the help
        return int(stop.code or 0)
    errors = Console(stderr=True)
    try:
        with _terminable():
            return _run(options, errors)
    except CellViTError as error:
        if options.debug:
            raise
        _print_line(errors, f"error: {error}")
        return 2
    except KeyboardInterrupt as stop:
        _print_line(errors, "interrupted; what is finished is complete, and the same command goes on with the rest")
        return 143 if isinstance(stop, _Terminated) else 130


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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="cellvit segment",
        description="Find, outline and type the nuclei of whole slides and of images (PNG, JPEG, TIFF, ...).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="slides, images, folders, patterns such as 'scans/*.svs', CSV lists")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; made if missing")
    add("--formats", metavar="LIST", help="what to write, separated by commas (default: see below)")
    add("--as", dest="kind", choices=("auto", "slide", "image"), default="auto", help="what the inputs are")
    add("--overwrite", action="store_true", help="replace results that exist")
    add("--debug", action="store_true", help="stop at the first error and show where it came from")
    add_network_options(parser)
    add = add_slide_options(parser).add_argument
    add("--keep-parts", action="store_true", help="keep the working folder of finished slides")
    add("--cluster", metavar="ADDRESS", help="spread slides over the workers of a Dask scheduler")
    return parser


def _run(options: argparse.Namespace, errors: Console) -> int:
    inputs = _sort_inputs(options)
    _check_folder(options.out, options.inputs)
    formats = _parse_formats(options.formats, inputs)
    devices: tuple[str, ...] = (options.device,)
    if not options.cluster:  # its workers have devices of their own
        devices = choose_devices(options.device, len(inputs.slides))
        autocast_context(options.precision, choose_device(devices[0]))
    tile_grid(1, 1, tile_size=options.tile_size, overlap=options.overlap)
    settings = slide_settings(options, tuple(name for name in formats if name in FORMATS))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = bool(inputs.missing)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:

        def say(text: str) -> None:
            _print_line(progress.console, text)

        for _, reason in inputs.missing:
            say(f"error: {reason}")
        job = None
        if inputs.images or not inputs.slides:
            starting = progress.add_task("loading the model", total=None)
            model = with_tta(load_model(options.model, device=devices[0]), options.tta)
            progress.remove_task(starting)
            job = Job(model, options, tuple(name for name in formats if name in SUFFIXES), say)
            job.outcomes += [Outcome(Path(text), error=reason) for text, reason in inputs.missing]
            segment_images(job, inputs.images, progress)
        slides = segment_slides(inputs.slides, options, settings, devices, progress, say) if inputs.slides else []
    if job is not None:
        print_images(job)
        failed |= any(outcome.error for outcome in job.outcomes)
    if slides:
        failed |= finish_slides(slides, options.out)
    return 1 if failed else 0


def _sort_inputs(options: argparse.Namespace) -> Inputs:
    """Return slides and images apart."""
    rows, files, missing = read_inputs(options.inputs)
    inputs = Inputs(missing=missing, slides=rows)
    listed = {row.path.resolve() for row in inputs.slides}
    for path in files:
        looks = is_slide(path) if path.exists() else path.suffix.lower() in SLIDE_SUFFIXES
        as_slide = options.kind == "slide" or (options.kind == "auto" and looks)
        if not as_slide:
            inputs.images.append(path)
        elif path.resolve() not in listed:
            inputs.slides.append(CohortRow(path))
    if options.roi is not None and inputs.images:
        raise ConfigError(
            f"--roi is for slides, and {str(inputs.images[0])!r} is an image; add --as slide, or leave it out"
        )
    if options.cluster and not inputs.slides:
        raise ConfigError(
            "--cluster spreads slides, but there is none among the inputs; leave it out, or add --as slide"
        )
    return inputs


def _check_folder(out: Path, inputs: Sequence[str]) -> None:
    """Make the output folder and try to write into it, before anything is computed."""
    if any(Path(text).is_dir() and out.exists() and Path(text).samefile(out) for text in inputs):
        raise OutputError(f"--out {str(out)!r} is also an input folder; choose another, or its results become inputs")
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {str(out)!r} is a file, not a folder; choose another")
    probe = out / ".cellvit-write-test"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write into {str(out)!r} ({reason}); choose another --out") from error


def _parse_formats(text: str | None, inputs: Inputs) -> tuple[str, ...]:
    """Return the formats to write; each kind of input takes those it knows."""
    if text is None:
        return tuple(dict.fromkeys([*SUFFIXES, *DEFAULT_FORMATS]))
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = list(dict.fromkeys([*SUFFIXES, *FORMATS]))
    unknown = [name for name in formats if name not in known]
    if unknown or not formats:
        raise ConfigError(
            f"--formats {text!r}: {unknown or 'nothing'} cannot be written; choose from {','.join(known)}"
        )
    if inputs.images and not set(formats) & set(SUFFIXES):
        raise ConfigError(
            f"--formats {text!r}: none of these is written for images such as {str(inputs.images[0])!r}; add one of "
            f"{','.join(SUFFIXES)}, or treat them as slides with --as slide"
        )
    return formats


def _print_line(console: Console, text: str) -> None:
    text = text.encode("utf-8", "backslashreplace").decode()  # file names may hold what UTF-8 cannot
    console.print(" ".join(text.split()), markup=False, highlight=False, soft_wrap=True)
