"""The command ``cellvit segment``: images in, tables, outlines and pictures of nuclei out."""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cellvit.cli_output import output_console
from cellvit.errors import CellViTError, ConfigError, OutputError
from cellvit.segment import (
    DEVICES,
    PRECISIONS,
    NucleiModel,
    autocast_context,
    choose_device,
    load_model,
    segment_image,
    tile_grid,
)
from cellvit.slide.naming import expand_inputs, output_names
from cellvit.slide.reader import read_image, read_mpp
from cellvit.types import Nuclei

DEFAULT_MPP = 0.25
MPP_WARNING = 0.1

SUFFIXES = {"geojson": ".geojson", "json": ".json", "parquet": ".parquet", "overlay": ".png"}
"""Formats the command writes and the suffix of each."""

EPILOG = """\
An image named a.png gives a.geojson (QuPath), a.json (layout of the released tools), a.parquet (all columns, with
embeddings) and a.png (the image with outlines). Two images of one name get longer names. The resolution is --mpp,
else what the file states, else 0.25 microns per pixel.

exit status: 0 all images done; 1 some failed (each with a line that says why); 2 nothing was started.
"""


@dataclass
class Outcome:
    """What became of one image: nuclei per type, or an error."""

    path: Path
    counts: NDArray[np.int64] | None = None
    mpp: float = 0.0
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Job:
    """What is the same for all images of one call."""

    model: NucleiModel
    options: argparse.Namespace
    formats: tuple[str, ...]
    say: Callable[[str], None]
    outcomes: list[Outcome] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after ``cellvit segment``; None takes those of the process.

    Returns:
        0 if all images were done, 1 if some failed, 2 if nothing could be started.
    """
    parser = build_parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed why, or the help
        return int(stop.code or 0)
    errors = Console(stderr=True)
    try:
        return _run(options, errors)
    except CellViTError as error:
        if options.debug:
            raise
        _print_line(errors, f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _print_line(errors, "interrupted; images finished so far are complete")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="cellvit segment",
        description="Find, outline and type the nuclei of images (PNG, JPEG, TIFF, ...) of any size.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of images, or patterns such as 'scans/*.tif'")
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results; made if missing")
    add("--model", default="nano", metavar="NAME", help="name, folder, or released .pth of a model (default: nano)")
    add("--mpp", type=_positive(float), metavar="UM", help="microns per pixel of the images (default: see below)")
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(DEVICES)}, or one of several as cuda:1 (default: auto)",
    )
    add("--precision", default="32-true", choices=tuple(PRECISIONS), help="of the network (default: 32-true)")
    add("--batch-size", default=1, type=_positive(int), metavar="N", help="tiles at once (default: 1)")
    add("--tile-size", default=1024, type=_positive(int), metavar="PX", help="side of a tile (default: 1024)")
    add("--overlap", default=64, type=int, metavar="PX", help="overlap of tiles (default: 64)")
    add("--formats", default=",".join(SUFFIXES), metavar="LIST", help="what to write (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace results that exist")
    add("--debug", action="store_true", help="stop at the first error and show where it came from")
    return parser


def _run(options: argparse.Namespace, errors: Console) -> int:
    formats = _parse_formats(options.formats)
    inputs, missing = expand_inputs(options.images)
    _check_folder(options.out, options.images)
    autocast_context(options.precision, choose_device(options.device))
    tile_grid(1, 1, tile_size=options.tile_size, overlap=options.overlap)
    names = output_names(inputs, options.out, suffixes=[SUFFIXES[name] for name in formats])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        starting = progress.add_task("loading the model", total=None)
        model = load_model(options.model, device=options.device)
        progress.remove_task(starting)
        job = Job(model, options, formats, say=lambda text: _print_line(progress.console, text))
        for text, reason in missing:
            _fail(job, Outcome(Path(text)), reason)
        overall = progress.add_task("images", total=len(inputs))
        for path in inputs:
            _segment_one(job, path, names[path], progress)
            progress.advance(overall)
    _print_summary(job)
    return 1 if any(outcome.error for outcome in job.outcomes) else 0


def _segment_one(job: Job, path: Path, name: str, progress: Progress) -> None:
    """Do one image; an error is reported and kept, the next image can go on."""
    task: TaskID = progress.add_task(escape(f"  {path.name}"), total=None)
    outcome, started = Outcome(path), time.monotonic()
    try:
        _produce(job, outcome, name, lambda done, total: progress.update(task, completed=done, total=total))
        outcome.seconds = time.monotonic() - started
        job.outcomes.append(outcome)
    except CellViTError as error:
        if job.options.debug:
            raise
        _fail(job, outcome, str(error) if path.name in str(error) else f"{str(path)!r}: {error}")
    except Exception as error:  # a fault of ours in one image must not cost the user the others
        if job.options.debug:
            raise
        _fail(job, outcome, f"{str(path)!r}: {type(error).__name__}: {error} (--debug shows where)")
    finally:
        progress.remove_task(task)


def _produce(job: Job, outcome: Outcome, name: str, report: Callable[[int, int], None]) -> None:
    options, path = job.options, outcome.path
    targets = {format_: options.out / f"{name}{SUFFIXES[format_]}" for format_ in job.formats}
    existing = [str(target) for target in targets.values() if target.exists()]
    if existing and not options.overwrite:
        raise OutputError(f"{existing[0]!r} exists; pass --overwrite to replace it, or another --out")
    image = read_image(path)
    outcome.mpp, source = _resolution(job, path)
    nuclei = segment_image(
        image,
        model=job.model,
        mpp=outcome.mpp,
        tile_size=options.tile_size,
        overlap=options.overlap,
        batch_size=options.batch_size,
        precision=options.precision,
        progress=report,
    )
    metadata = {
        "image": path.name,
        "width": image.shape[1],
        "height": image.shape[0],
        "base_mpp": outcome.mpp,
        "mpp_source": source,
        "target_patch_mpp": job.model.mpp,
        "patch_size": options.tile_size,
        "patch_overlap": options.overlap,
        "model": str(options.model),
        "precision": options.precision,
        "cellvit_version": version("cellvit-lightning"),
    }
    _write(targets, image, nuclei, metadata)
    outcome.counts = np.bincount(nuclei.type, minlength=len(job.model.classes))


def _write(targets: dict[str, Path], image: NDArray[np.uint8], nuclei: Nuclei, metadata: dict[str, Any]) -> None:
    from cellvit import export

    writers: dict[str, Callable[[Path], None]] = {
        "geojson": lambda path: export.write_geojson(nuclei, path),
        "json": lambda path: export.write_json(nuclei, path, metadata=metadata),
        "parquet": lambda path: export.write_parquet(nuclei, path, metadata=metadata),
        "overlay": lambda path: export.write_overlay(image, nuclei, path),
    }
    for format_, target in targets.items():
        writers[format_](target)


def _resolution(job: Job, path: Path) -> tuple[float, str]:
    """Return the microns per pixel to use for a file and where the value is from; warn if the file disagrees."""
    stated = read_mpp(path)
    given = job.options.mpp
    if given is None:
        return (DEFAULT_MPP, "default") if stated is None else (stated, "file")
    if stated is not None and abs(stated / given - 1) > MPP_WARNING:
        job.say(f"warning: {str(path)!r} states {stated:g} microns per pixel, but --mpp {given:g} is used")
    return float(given), "argument"


def _check_folder(out: Path, images: Sequence[str]) -> None:
    """Make the output folder and try to write into it, before anything is computed."""
    if any(Path(text).is_dir() and out.exists() and Path(text).samefile(out) for text in images):
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


def _parse_formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in formats if name not in SUFFIXES]
    if unknown or not formats:
        raise ConfigError(
            f"--formats {text!r}: {unknown or 'nothing'} cannot be written; choose from {','.join(SUFFIXES)}"
        )
    return formats


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def _fail(job: Job, outcome: Outcome, reason: str) -> None:
    outcome.error = reason
    job.outcomes.append(outcome)
    job.say(f"error: {reason}")


def _print_line(console: Console, text: str) -> None:
    console.print(" ".join(text.split()), markup=False, highlight=False, soft_wrap=True)


def _print_summary(job: Job) -> None:
    """Print the counts per class of every image to standard output."""
    console = output_console()
    names = job.model.classes.names
    counts = [outcome.counts for outcome in job.outcomes if outcome.counts is not None]
    total: NDArray[np.int64] = np.sum([np.zeros(len(names), dtype=np.int64), *counts], axis=0)
    shown = [kind for kind in range(len(names)) if kind > 0 or total[kind]]
    repeated = Counter(outcome.path.name for outcome in job.outcomes)
    table = Table(title=escape(f"Nuclei in {str(job.options.out)!r}"))
    table.add_column("image", overflow="fold")
    for heading in ("µm/px", "nuclei", *(names[kind] if kind else "no type" for kind in shown), "seconds"):
        table.add_column(escape(heading), justify="right")
    for outcome in job.outcomes:
        label = escape(outcome.path.name if repeated[outcome.path.name] == 1 else str(outcome.path))
        if outcome.counts is None:
            table.add_row(label, "", "[red]failed[/red]")
        else:
            cells = [f"{number:,}" for number in (outcome.counts.sum(), *outcome.counts[shown])]
            table.add_row(label, f"{outcome.mpp:g}", *cells, f"{outcome.seconds:.1f}")
    if len(counts) > 1:
        table.add_section()
        table.add_row("total", "", *(f"{number:,}" for number in (total.sum(), *total[shown])))
    console.print(table)
