"""``cellvit plan``: what the segmentation of slides would do and take, measured on a few tiles of each."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvit.cli.console import Output, write_json
from cellvit.cli.inputs import check_network, failure_text, not_there, slide_settings, sort_inputs
from cellvit.cli.options import add_network_options, add_slide_options
from cellvit.cli.verb import add_limit_option, add_output_options, command, verb_parser
from cellvit.errors import ConfigError, ImageError, OutputError
from cellvit.inference.cohort.sheet import CohortRow, SlideJob, cohort_jobs
from cellvit.inference.settings import DEFAULT_FORMATS
from cellvit.slide.naming import output_names
from cellvit.weights.locate import model_path

if TYPE_CHECKING:
    from cellvit.inference.plan import SlidePlan
    from cellvit.inference.plan.estimate import Range

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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb's arguments."""
    parser = verb_parser(
        "plan", "Tell what 'cellvit segment' would do with slides, and the time, memory and disk it would take.", EPILOG
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="SLIDE", help="slides, folders, patterns: 'scans/*.svs', addresses, CSV lists")
    add("--out", type=Path, metavar="DIR", help="folder the results would go to (default: the current folder)")
    add("--sample", type=int, default=2, metavar="N", help="batches of tiles to measure, or 0 (default: 2)")
    add("--thumbnail", type=Path, metavar="DIR", help="write a picture of each slide: tissue, tiles, what is done")
    add_limit_option(parser)
    add_output_options(parser, json="print one JSON object instead of tables")
    add("--formats", metavar="LIST", help="what would be written, separated by commas (default: as segment)")
    add("--as", dest="kind", choices=("auto", "slide"), default="auto", help="plan ordinary images as slides, too")
    add("--debug", action="store_true", help="stop at the first error and show where it came from")
    add_network_options(parser)
    add_slide_options(parser)
    return parser


def _run(options: argparse.Namespace, output: Output) -> int:
    if options.sample < 0:
        raise ConfigError(f"--sample {options.sample} must be 0 (measure nothing) or more")
    model_path(options.model)
    rows, failures = _slides(options, output)
    if not rows and not failures:
        raise ConfigError(
            f"no slide among {', '.join(options.inputs)}; ordinary images are done whole by 'cellvit segment', "
            "or name them with --as slide"
        )
    settings = slide_settings(options, _formats(options.formats))
    pictures = _pictures(options.thumbnail, rows)
    if failures and options.debug:
        raise ImageError(failures[0].error)
    for failure in failures:
        output.error(failure.error)
    jobs = cohort_jobs(rows, options.out or Path(), **settings)
    results, total, devices = _plan_all(jobs, options, pictures, output) if jobs else ([], None, 0)
    if options.json:
        slides = [_as_data(result) for result in (*failures, *results)]
        data = {"slides": slides, "devices": devices, "seconds": None if total is None else total._asdict()}
        write_json(data)
    return 1 if any(isinstance(result, Failure) for result in (*failures, *results)) else 0


def _plan_all(
    jobs: Sequence[SlideJob], options: argparse.Namespace, pictures: dict[Path, Path], output: Output
) -> "tuple[list[SlidePlan | Failure], Range | None, int]":
    """Plan slides, print the tables, and return the plans, the time for all of them, and the number of devices."""
    from cellvit.cli.plan_table import print_plan, readable_range
    from cellvit.inference.cohort.run import choose_devices

    devices = choose_devices(options.device, len(jobs))
    check_network(options, devices[0])
    results: list[SlidePlan | Failure] = []
    for result in _plans(jobs, options, devices[0], pictures, output):
        results.append(result)
        if isinstance(result, Failure):
            output.error(result.error)
        else:
            print_plan(output, result, pictures.get(result.path))
    plans = [result for result in results if not isinstance(result, Failure)]
    total = _total(plans, len(devices))
    if len(plans) > 1 and total is not None:
        output.show(f"{len(plans)} slides on {len(devices)} device(s): {readable_range(total)}", highlight=False)
    return results, total, len(devices)


def _plans(
    jobs: Sequence[SlideJob], options: argparse.Namespace, device: str, pictures: dict[Path, Path], output: Output
) -> "Iterator[SlidePlan | Failure]":
    """Yield the plan of each slide, or why there is none; the model is loaded once."""
    from cellvit.inference.plan import plan_slide
    from cellvit.inference.postprocessing import with_postprocessor
    from cellvit.inference.protocol import load_model

    model = load_model(options.model, device=device, trust=options.trust)
    with_postprocessor(model, dict(options.postprocessor))  # what it does not take is told once
    with output.progress("planning") as advance:
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
            except Exception as error:  # a fault of ours with one slide must not cost the user the others
                if options.debug:
                    raise
                yield Failure(str(job.path), failure_text(job.path, error))
            else:
                yield replace(plan, model=str(options.model))


def _slides(options: argparse.Namespace, output: Output) -> tuple[list[CohortRow], list[Failure]]:
    """Return the slides among the inputs, and the inputs that stand for nothing."""
    inputs = sort_inputs(options)
    for path in inputs.images:
        output.note(f"{str(path)!r} is an ordinary image, which segment does whole; --as slide plans it")
    reasons = [(row, not_there(row.path)) for row in inputs.slides]
    there = [row for row, reason in reasons if reason is None]
    absent = [(str(row.path), reason) for row, reason in reasons if reason is not None]
    return there, [Failure(text, reason) for text, reason in (*inputs.missing, *absent)]


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


def _total(plans: "Sequence[SlidePlan]", devices: int) -> "Range | None":
    """Return the time for all slides, or None if one of them was not measured."""
    from cellvit.inference.plan.estimate import Range

    ranges = [plan.estimate.seconds if plan.estimate else Range(0.0, 0.0) for plan in plans]
    if any(plan.estimate is None and plan.tiles_left for plan in plans):
        return None
    low, high = (sum(item[end] for item in ranges) / devices for end in range(2))
    longest = max((item.high for item in ranges), default=0.0)  # a slide is done by one device
    return Range(low, max(high, longest))


def _as_data(result: "SlidePlan | Failure") -> dict[str, Any]:
    return {"path": result.path, "error": result.error} if isinstance(result, Failure) else result.as_data()


main = command(build_parser, _run, failure=2)
