"""The part of ``cellvit segment`` that does whole slides: a folder for each, a table and a report for all."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from cellvit.cli.console import output_console
from cellvit.errors import CellViTError, DataError
from cellvit.geometry.regions import Region
from cellvit.inference.cohort.report import write_report
from cellvit.inference.cohort.run import CohortFiles, Reporter, SlideJob, SlideOutcome, run_cohort
from cellvit.inference.cohort.sheet import REPORT_NAME, SUMMARY_NAME, CohortRow, cohort_jobs, read_cohort
from cellvit.inference.cohort.summary import numbers_of, read_summary, with_earlier
from cellvit.inference.settings import SlideSettings
from cellvit.inference.slide import slide_task
from cellvit.slide.naming import expand_inputs

LOG_SECONDS = 60.0
"""Between two lines about one slide where there is no terminal."""


def read_inputs(texts: Sequence[str]) -> tuple[list[CohortRow], list[Path], list[tuple[str, str]]]:
    """Return what inputs of a command line stand for.

    Args:
        texts: Files, folders, patterns, and lists of slides, whose names end in ``.csv``.

    Returns:
        The slides of lists; other files, each once; for every input that stands for nothing the input and the reason.

    Raises:
        DataError: If a list has faults.
    """
    lists = [text for text in texts if text.lower().endswith(".csv")]
    files, missing = expand_inputs([text for text in texts if text not in lists])
    return [row for text in lists for row in read_cohort(text)], files, missing


def slide_settings(options: argparse.Namespace, formats: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of :func:`cellvit.inference.slide.slide_task` that a command line means.

    Args:
        options: Of the command line.
        formats: Those that are written for slides.

    Raises:
        ConfigError: If a value cannot work.
    """
    named = {field.name for field in fields(SlideSettings)}
    values = {name: value for name, value in vars(options).items() if name in named}
    values |= {"tissue_filter": not options.no_tissue_filter, "embeddings": not options.no_embeddings}
    values |= {"formats": formats}
    SlideSettings(**values)
    if options.roi is not None:
        Region.read(options.roi)  # a fault in it is told once, before anything is started
    return {**values, "model": options.model}


def segment_slides(
    rows: Sequence[CohortRow],
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    devices: Sequence[str],
    progress: Progress,
    say: Callable[[str], None],
) -> list[SlideOutcome]:
    """Do slides, on one device, several, or a cluster.

    Args:
        rows: The slides.
        options: Of the command line.
        settings: From :func:`slide_settings`.
        devices: From :func:`cellvit.inference.cohort.run.choose_devices`.
        progress: Shows how far each is.
        say: Prints a line.

    Returns:
        What came of each, in the order of the slides.
    """
    if options.cluster:
        settings = {**settings, "device": options.device}
    jobs = cohort_jobs(rows, options.out, **settings)
    files = CohortFiles(jobs, options.out / SUMMARY_NAME, say=lambda text: say(f"warning: {text}"))
    bars = _Bars(progress, say, files, total=len(jobs), debug=options.debug)
    if options.cluster:
        from cellvit.inference.cohort.dask import run_on_cluster

        return run_on_cluster(jobs, options.cluster, task=slide_task, report=bars)
    return run_cohort(jobs, task=slide_task, devices=devices, report=bars)


class _Bars(Reporter):
    """Shows a bar per slide in work, and keeps the files of the cohort up to date."""

    def __init__(
        self, progress: Progress, say: Callable[[str], None], files: CohortFiles, *, total: int, debug: bool
    ) -> None:
        self._progress, self._say, self._files, self._debug = progress, say, files, debug
        self._overall = progress.add_task("slides", total=total)
        self._tasks: dict[Path, TaskID] = {}
        self._lines = not progress.console.is_terminal  # a log gets lines with the time, not bars
        self._told: dict[Path, float] = {}

    def _log(self, path: Path, text: str) -> None:
        if self._lines:
            self._say(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {path.name}: {text}")
            self._told[path] = time.monotonic()

    def started(self, job: SlideJob, device: str) -> None:
        if job.path not in self._tasks:
            self._tasks[job.path] = self._progress.add_task(escape(f"  {job.path.name}"), total=None)
        self._log(job.path, f"started on {device}")

    def advanced(self, job: SlideJob, done: int, total: int) -> None:
        self._progress.update(self._tasks[job.path], completed=done, total=total)
        if done == total or time.monotonic() - self._told.get(job.path, 0.0) >= LOG_SECONDS:
            self._log(job.path, f"{done:,} of {total:,} tiles")

    def finished(self, outcome: SlideOutcome) -> None:
        if outcome.path in self._tasks:
            self._progress.remove_task(self._tasks.pop(outcome.path))
        self._progress.advance(self._overall)
        self._files.finished(outcome)
        if outcome.error is None:
            self._log(outcome.path, f"done in {outcome.seconds:.0f} s")
        if outcome.error is not None:
            named = outcome.path.name in outcome.error
            self._say(f"error: {outcome.error}" if named else f"error: {str(outcome.path)!r}: {outcome.error}")
            if self._debug:
                sys.stderr.write(outcome.trace or "")
                raise CellViTError(f"stopped at the first error, that of {str(outcome.path)!r}, because of --debug")
        for text in (outcome.summary or {}).get("warnings", ()):
            self._say(f"warning: {str(outcome.path)!r}: {text}")

    def warned(self, text: str) -> None:
        self._say(f"warning: {text}")


def finish_slides(outcomes: Sequence[SlideOutcome], out: Path) -> bool:
    """Write the report, print a table of slides to standard output, and return whether one failed."""
    report = out / REPORT_NAME
    try:
        every = with_earlier(outcomes, read_summary(out / SUMMARY_NAME))
    except (DataError, OSError):  # the table could not be written, which was told
        every = list(outcomes)
    write_report(every, report, title=f"Nuclei of {len(every)} slide{'s' * (len(every) != 1)}")
    table = Table(title=escape(f"Slides in {str(out)!r}"))
    table.add_column("slide", overflow="fold")
    for heading in ("µm/px", "from", "tissue mm²", "nuclei", "per mm²", "tiles", "seconds"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        table.add_row(escape(outcome.path.name), *_cells(outcome))
    console = output_console()
    console.print(table)
    console.print(escape(f"all slides: {out / SUMMARY_NAME}, {report}"), highlight=False, soft_wrap=True)
    return any(outcome.error for outcome in outcomes)


def _cells(outcome: SlideOutcome) -> list[str]:
    if outcome.summary is None:
        return ["", "", "", "[red]failed[/red]"]
    facts, tiles = numbers_of(outcome), outcome.summary["tiles"]
    return [
        f"{facts.mpp:g}",
        escape(str(facts.mpp_source)),
        f"{facts.tissue_mm2:.3g}",
        f"{facts.nuclei:,}",
        "" if facts.density is None else f"{facts.density:,.0f}",
        f"{tiles['done']:,} of {tiles['total']:,}",
        f"{outcome.seconds:.1f}",
    ]
