"""``cellvit plan``: what the segmentation of slides would do and take, measured on a few tiles of each."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cellvit.cli.console import output_console, progress_bar
from cellvit.cli.options import add_network_options, add_slide_options
from cellvit.cli.plan_table import print_plan, readable_range
from cellvit.cli.segment_slides import read_inputs, slide_settings
from cellvit.errors import CellViTError, ConfigError, OutputError
from cellvit.inference.cohort.run import SlideJob, choose_devices
from cellvit.inference.cohort.sheet import CohortRow, cohort_jobs
from cellvit.inference.image import tile_grid
from cellvit.inference.plan import SlidePlan, plan_slide
from cellvit.inference.plan.estimate import Range
from cellvit.inference.protocol import autocast_context, choose_device, load_model
from cellvit.inference.settings import DEFAULT_FORMATS
from cellvit.slide.naming import output_names
from cellvit.slide.open import is_slide

EPILOG = """\
A few tiles of each slide, spread over its tissue, go through the real pipeline into a temporary folder; what they take
is extrapolated. Ranges say how much the tiles differ: more of them (--sample) make the ranges narrower. With --out,
what is done in that folder is counted, and its disk is looked at. Options mean what they mean for 'cellvit segment';
give the same. The resolution is --mpp or --magnification, else what the slide states; without any of these it is
refused. Nothing is written but the pictures of --thumbnail.

exit status: 0 all planned; 1 some cannot be (each with a line that says why); 2 nothing was started.
"""


@dataclass(frozen=True)
class Failure:
    """A slide that cannot be planned, and why."""

    path: str
    error: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: Its arguments; None takes those of the process.

    Returns:
        0 if all slides are planned, 1 if some cannot be, 2 if nothing could be started.
    """
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed why, or the help
        return int(stop.code or 0)
    try:
        return _run(options)
    except CellViTError as error:
        if options.debug:
            raise
        _say(str(error))
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = argparse.ArgumentParser(
        "cellvit plan",
        description="Tell what 'cellvit segment' would do with slides, and the time, memory and disk it would take.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="SLIDE", help="slides, folders, patterns such as 'scans/*.svs', CSV lists")
    add("--out", type=Path, metavar="DIR", help="folder the results would go to (default: the current folder)")
    add(
        "--sample",
        type=int,
        default=2,
        metavar="N",
        help="batches of tiles to measure, or 0 (default: 2)",
    )
    add("--thumbnail", type=Path, metavar="DIR", help="write a picture of each slide: tissue, tiles, what is done")
    add("--json", action="store_true", help="print one object instead of tables")
    add("--formats", metavar="LIST", help="what would be written, separated by commas (default: as segment)")
    add("--as", dest="kind", choices=("auto", "slide"), default="auto", help="plan ordinary images as slides, too")
    add("--debug", action="store_true", help="stop at the first error and show where it came from")
    add_network_options(parser)
    add_slide_options(parser)
    return parser


def _run(options: argparse.Namespace) -> int:
    rows, failures = _slides(options)
    if not rows and not failures:
        raise ConfigError(
            f"no slide among {', '.join(options.inputs)}; ordinary images are done whole by 'cellvit segment', "
            "or name them with --as slide"
        )
    settings = slide_settings(options, _formats(options.formats))
    devices = choose_devices(options.device, len(rows))
    _refuse_settings(options, devices[0])
    jobs = cohort_jobs(rows, options.out or Path(), **settings)
    pictures = _pictures(options.thumbnail, rows)
    for failure in failures:
        _say(failure.error)
    console = output_console(highlight=False)
    results: list[SlidePlan | Failure] = list(failures)
    for result in _plans(jobs, options, devices[0], pictures) if jobs else ():
        results.append(result)
        if isinstance(result, Failure):
            _say(result.error)
        elif not options.json:
            print_plan(console, result, pictures.get(result.path))
    plans = [result for result in results if isinstance(result, SlidePlan)]
    total = _total(plans, len(devices))
    if options.json:
        rows_out = [_as_data(result) for result in results]
        data = {"slides": rows_out, "devices": len(devices), "seconds": None if total is None else total._asdict()}
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    elif len(plans) > 1 and total is not None:
        console.print(f"{len(plans)} slides on {len(devices)} device(s): {readable_range(total)}")
    return 1 if len(plans) < len(results) else 0


def _refuse_settings(options: argparse.Namespace, device: str) -> None:
    """Raise ConfigError once for what would fail with every slide."""
    if options.sample < 0:
        raise ConfigError(f"--sample {options.sample} must be 0 (measure nothing) or more")
    autocast_context(options.precision, choose_device(device))
    tile_grid(1, 1, tile_size=options.tile_size, overlap=options.overlap)


def _plans(
    jobs: Sequence[SlideJob], options: argparse.Namespace, device: str, pictures: dict[Path, Path]
) -> Iterator[SlidePlan | Failure]:
    """Yield the plan of each slide, or why there is none; the model is loaded once."""
    model = load_model(options.model, device=device)
    with progress_bar("planning") as advance:
        for number, job in enumerate(jobs):
            advance(job.path.name, number, len(jobs))
            settings = {name: value for name, value in job.settings.items() if name != "model"}
            try:
                plan = plan_slide(
                    job.path,
                    model=model,
                    sample=options.sample,
                    out=job.out if options.out else None,
                    thumbnail=pictures.get(job.path),
                    **settings,
                )
            except CellViTError as error:
                if options.debug:
                    raise
                text = str(error)
                yield Failure(str(job.path), text if job.path.name in text else f"{str(job.path)!r}: {text}")
            except Exception as error:  # a fault of ours with one slide must not cost the user the others
                if options.debug:
                    raise
                reason = f"{type(error).__name__}: {error} (--debug shows where)"
                yield Failure(str(job.path), f"{str(job.path)!r}: {reason}")
            else:
                yield replace(plan, model=str(options.model))


def _slides(options: argparse.Namespace) -> tuple[list[CohortRow], list[Failure]]:
    """Return the slides among the inputs, and the inputs that stand for nothing."""
    listed, files, missing = read_inputs(options.inputs)
    rows = {row.path.resolve(): row for row in listed}
    for path in files:
        if options.kind == "slide" or not path.exists() or is_slide(path):
            rows.setdefault(path.resolve(), CohortRow(path))
        else:
            _say(f"{str(path)!r} is an ordinary image, which segment does whole; --as slide plans it", "note")
    return list(rows.values()), [Failure(text, reason) for text, reason in missing]


def _formats(text: str | None) -> tuple[str, ...]:
    if text is None:
        return DEFAULT_FORMATS
    names = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(name for name in names if name != "parquet")  # the table is always written


def _pictures(folder: Path | None, rows: Sequence[CohortRow]) -> dict[Path, Path]:
    if folder is None:
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot make the folder {str(folder)!r} ({reason}); choose another --thumbnail") from error
    paths = [row.path for row in rows]
    return {path: folder / f"{name}.png" for path, name in output_names(paths, folder, suffixes=[".png"]).items()}


def _total(plans: Sequence[SlidePlan], devices: int) -> Range | None:
    """Return the time for all slides, or None if one of them was not measured."""
    ranges = [plan.estimate.seconds if plan.estimate else Range(0.0, 0.0) for plan in plans]
    if any(plan.estimate is None and plan.tiles_left for plan in plans):
        return None
    low, high = (sum(item[end] for item in ranges) / devices for end in range(2))
    longest = max((item.high for item in ranges), default=0.0)  # a slide is done by one device
    return Range(low, max(high, longest))


def _as_data(result: SlidePlan | Failure) -> dict[str, Any]:
    return {"path": result.path, "error": result.error} if isinstance(result, Failure) else result.as_data()


def _say(text: str, kind: str = "error") -> None:
    Console(stderr=True).print(f"{kind}: {' '.join(text.split())}", markup=False, highlight=False, soft_wrap=True)
