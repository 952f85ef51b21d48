"""The part of ``cellvit segment`` that does whole slides: a folder for each, a table and a report for all."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID
from rich.table import Table

from cellvit.cli.console import Output
from cellvit.cli.inputs import failure_text, not_there
from cellvit.errors import CellViTError, DataError
from cellvit.inference.cohort.report import write_report
from cellvit.inference.cohort.run import CohortFiles, Reporter, SlideJob, SlideOutcome, run_cohort
from cellvit.inference.cohort.sheet import REPORT_NAME, SUMMARY_NAME, CohortRow, cohort_jobs
from cellvit.inference.cohort.summary import numbers_of, read_summary, with_earlier
from cellvit.io.tables import console_text

LOG_SECONDS = 60.0
"""Between two lines about one slide where there is no terminal."""


def segment_slides(
    rows: Sequence[CohortRow],
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    devices: Sequence[str],
    *,
    output: Output,
) -> bool:
    """Do slides, on one device, several, or a cluster, print what came of each, and return whether one failed.

    Args:
        rows: The slides; the user has been told of those that do not exist.
        options: Of the command line.
        settings: From :func:`cellvit.cli.inputs.slide_settings`.
        devices: From :func:`cellvit.inference.cohort.run.choose_devices`.
        output: Where results, errors and the log are printed.
    """
    if options.cluster:
        settings = {**settings, "device": options.device}
    jobs = cohort_jobs(rows, options.out, **settings)
    files = CohortFiles(jobs, options.out / SUMMARY_NAME, say=lambda text: output.note(text, "warning"))
    with output.bars() as progress:
        bars = _Bars(progress, output, files, total=len(jobs), debug=options.debug)
        absent = [] if options.cluster else [_absent(job, reason) for job in jobs if (reason := not_there(job.path))]
        for outcome in absent:
            bars.count(outcome)
        lost = {outcome.out for outcome in absent}
        found = _run_all([job for job in jobs if job.out not in lost], options, devices, bars)
    by_folder = {outcome.out: outcome for outcome in (*absent, *found)}
    return _finish([by_folder[job.out] for job in jobs], options.out, output)


def _absent(job: SlideJob, reason: str) -> SlideOutcome:
    return SlideOutcome(job.path, job.out, None, reason, 0.0, "", job.extra)


def _run_all(
    jobs: Sequence[SlideJob], options: argparse.Namespace, devices: Sequence[str], bars: "_Bars"
) -> list[SlideOutcome]:
    if not jobs:
        return []
    from cellvit.inference.slide import slide_task

    if options.cluster:
        from cellvit.inference.cohort.dask import run_on_cluster

        return run_on_cluster(jobs, options.cluster, task=slide_task, report=bars)
    return run_cohort(jobs, task=slide_task, devices=devices, report=bars)


class _Bars(Reporter):
    """Shows a bar per slide in work, and keeps the files of the cohort up to date."""

    def __init__(self, progress: Progress, output: Output, files: CohortFiles, *, total: int, debug: bool) -> None:
        self._progress, self._output, self._files, self._debug = progress, output, files, debug
        self._overall = progress.add_task("slides", total=total)
        self._tasks: dict[Path, TaskID] = {}
        self._lines = not progress.console.is_terminal  # a log gets lines with the time, not bars
        self._told: dict[Path, float] = {}

    def _log(self, path: Path, text: str) -> None:
        if self._lines:
            self._output.note(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {path.name}: {text}", "")
            self._told[path] = time.monotonic()

    def started(self, job: SlideJob, device: str) -> None:
        if job.path not in self._tasks:
            self._tasks[job.path] = self._progress.add_task(console_text(f"  {job.path.name}"), total=None)
        self._log(job.path, f"started on {device}")

    def advanced(self, job: SlideJob, done: int, total: int) -> None:
        self._progress.update(self._tasks[job.path], completed=done, total=total)
        if done == total or time.monotonic() - self._told.get(job.path, 0.0) >= LOG_SECONDS:
            self._log(job.path, f"{done:,} of {total:,} tiles")

    def finished(self, outcome: SlideOutcome) -> None:
        if outcome.path in self._tasks:
            self._progress.remove_task(self._tasks.pop(outcome.path))
        self.count(outcome)
        if outcome.error is None:
            self._log(outcome.path, f"done in {outcome.seconds:.0f} s")
        else:
            self._output.error(failure_text(outcome.path, CellViTError(outcome.error)))
            if self._debug:
                sys.stderr.write(outcome.trace or "")
                raise CellViTError(f"stopped at the first error, that of {str(outcome.path)!r}, because of --debug")
        for text in (outcome.summary or {}).get("warnings", ()):
            self.warned(f"{str(outcome.path)!r}: {text}")

    def warned(self, text: str) -> None:
        self._output.note(text, "warning")

    def count(self, outcome: SlideOutcome) -> None:
        """Take note of an outcome, of which a reader has been told."""
        self._progress.advance(self._overall)
        self._files.finished(outcome)
        self._output.row(_row(outcome))


def _row(outcome: SlideOutcome) -> dict[str, Any]:
    row: dict[str, Any] = {"path": outcome.path, "error": outcome.error}
    if outcome.summary is not None:
        facts = numbers_of(outcome)
        row |= {"nuclei": facts.nuclei, "types": dict(facts.by_type), "mpp": facts.mpp, "seconds": outcome.seconds}
        row |= {"mpp_source": facts.mpp_source, "tissue_mm2": facts.tissue_mm2, "nuclei_per_mm2": facts.density}
    return {**row, "folder": outcome.out}


def _finish(outcomes: Sequence[SlideOutcome], out: Path, output: Output) -> bool:
    """Write the report, print a table of slides, and return whether one failed."""
    report = out / REPORT_NAME
    try:
        every = with_earlier(outcomes, read_summary(out / SUMMARY_NAME))
    except (DataError, OSError):  # the table could not be written, which was told
        every = list(outcomes)
    write_report(every, report, title=f"Nuclei of {len(every)} slide{'s' * (len(every) != 1)}")
    table = Table(title=console_text(f"Slides in {str(out)!r}"))
    table.add_column("slide", overflow="fold")
    for heading in ("µm/px", "from", "tissue mm²", "nuclei", "per mm²", "tiles", "seconds"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        table.add_row(console_text(outcome.path.name), *_cells(outcome))
    output.show(table)
    output.show(console_text(f"all slides: {out / SUMMARY_NAME}, {report}"), highlight=False, soft_wrap=True)
    return any(outcome.error for outcome in outcomes)


def _cells(outcome: SlideOutcome) -> list[str]:
    if outcome.summary is None:
        return ["", "", "", "[red]failed[/red]"]
    facts, tiles = numbers_of(outcome), outcome.summary["tiles"]
    return [
        f"{facts.mpp:g}",
        console_text(str(facts.mpp_source)),
        f"{facts.tissue_mm2:.3g}",
        f"{facts.nuclei:,}",
        "" if facts.density is None else f"{facts.density:,.0f}",
        f"{tiles['done']:,} of {tiles['total']:,}",
        f"{outcome.seconds:.1f}",
    ]
