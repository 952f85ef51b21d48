"""The part of ``cellvit segment`` that does ordinary images: all of one in memory, flat files beside each other."""

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
from rich.progress import Progress, TaskID
from rich.table import Table

from cellvit.cli.console import Output
from cellvit.cli.inputs import Inputs, failure_text
from cellvit.cli.options import image_suffix
from cellvit.errors import OutputError
from cellvit.inference.image import segment_image
from cellvit.inference.postprocessing import with_postprocessor
from cellvit.inference.precision import choose_precision
from cellvit.inference.protocol import NucleiModel, load_model
from cellvit.inference.tta import unwrap_tta, with_tta
from cellvit.io.formats.base import FORMATS, ImageFacts
from cellvit.io.images import image_with_remarks
from cellvit.io.remote import as_path
from cellvit.io.tables import console_text
from cellvit.measurement.stains import image_stains
from cellvit.slide.appearance import appearance_remarks
from cellvit.slide.naming import output_names
from cellvit.slide.resolution import image_resolution


@dataclass
class Outcome:
    """What became of one image: nuclei per type and files, or an error."""

    path: Path
    counts: NDArray[np.int64] | None = None
    mpp: float = 0.0
    seconds: float = 0.0
    files: dict[str, Path] = field(default_factory=dict)
    error: str | None = None

    def row(self, names: Sequence[str]) -> dict[str, Any]:
        """Return it as plain data; ``names`` are those of the types, no type first."""
        found = {}
        if self.counts is not None:
            types = {name: int(n) for name, n in zip(("no type", *names[1:]), self.counts, strict=True)}
            found = {"nuclei": int(self.counts.sum()), "types": types, "mpp": self.mpp, "seconds": self.seconds}
        return {"path": self.path, "error": self.error, **found, "files": {k: str(v) for k, v in self.files.items()}}


@dataclass
class Job:
    """What is the same for all images of one call."""

    model: NucleiModel
    options: argparse.Namespace
    formats: tuple[str, ...]
    output: Output
    precision: str
    outcomes: list[Outcome] = field(default_factory=list)


def segment_images(
    inputs: Inputs, options: argparse.Namespace, formats: tuple[str, ...], *, device: str, output: Output
) -> bool:
    """Do images one after the other, print what became of each, and return whether one failed.

    Args:
        inputs: Of the command line, at least one image.
        options: Of the command line.
        formats: Those that :func:`cellvit.cli.options.image_suffix` knows.
        device: Name of one device.
        output: Where results and errors are printed.
    """
    names = output_names(inputs.images, options.out, suffixes=[str(image_suffix(name)) for name in formats])
    with output.bars() as progress:
        starting = progress.add_task("loading the model", total=None)
        loaded = load_model(options.model, device=device, trust=options.trust)
        model = with_postprocessor(loaded, dict(options.postprocessor))
        precision = choose_precision(options.precision, unwrap_tta(model, options.tta)[0])
        for text in precision.notes:
            output.note(text, "warning")
        job = Job(with_tta(model, options.tta), options, formats, output, precision.name)
        progress.remove_task(starting)
        overall = progress.add_task("images", total=len(inputs.images))
        for path in inputs.images:
            job.outcomes.append(_segment_one(job, path, names[path], progress))
            output.row(job.outcomes[-1].row(job.model.classes.names))
            progress.advance(overall)
    failed = any(outcome.error for outcome in job.outcomes)
    job.outcomes[:0] = [Outcome(as_path(text), error=reason) for text, reason in inputs.missing]
    _print_table(job)
    return failed


def _segment_one(job: Job, path: Path, name: str, progress: Progress) -> Outcome:
    """Do one image; an error is reported and kept, the next image can go on."""
    task: TaskID = progress.add_task(console_text(f"  {path.name}"), total=None)
    outcome, started = Outcome(path), time.monotonic()
    try:
        _produce(job, outcome, name, lambda done, total: progress.update(task, completed=done, total=total))
        outcome.seconds = time.monotonic() - started
    except Exception as error:  # a fault of ours in one image must not cost the user the others
        if job.options.debug:
            raise
        outcome.error = failure_text(path, error)
        job.output.error(outcome.error)
    finally:
        progress.remove_task(task)
    return outcome


def _produce(job: Job, outcome: Outcome, name: str, report: Callable[[int, int], None]) -> None:
    from cellvit import plotting

    options, path = job.options, outcome.path
    targets = {format_: options.out / f"{name}{image_suffix(format_)}" for format_ in job.formats}
    existing = [str(target) for target in targets.values() if target.exists()]
    if existing and not options.overwrite:
        raise OutputError(f"{existing[0]!r} exists; pass --overwrite to replace it, or another --out")
    image, remarks = image_with_remarks(path, scene=options.scene)
    mpp, source, doubts = _resolution(job, path)
    outcome.mpp = sum(mpp) / 2
    told = [f"image {path.name!r}: {text}" for text in [*remarks, *appearance_remarks(image)]]
    warnings = [*told[: len(remarks)], *doubts, *told[len(remarks) :]]
    for text in warnings:
        job.output.note(text, "warning")
    stains = None if options.no_measurements else image_stains(image)
    nuclei = segment_image(
        image,
        model=job.model,
        mpp=mpp,
        tile_size=options.tile_size,
        overlap=options.overlap,
        batch_size=options.batch_size or 1,
        precision=job.precision,
        measurements=not options.no_measurements,
        stains=stains,
        progress=report,
    )
    if stains is not None and stains.doubt and len(nuclei):
        warnings.append(f"image {path.name!r}: {stains.doubt}")
        job.output.note(warnings[-1], "warning")
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
        "precision": job.precision,
        "tta": options.tta,
        **({"postprocessor": dict(options.postprocessor)} if options.postprocessor else {}),
        "cellvit_version": version("cellvit-lightning"),
        **({} if stains is None else {"stains": stains.facts()}),
        **({"warnings": warnings} if warnings else {}),
    }
    simplify = options.simplify / outcome.mpp
    facts = ImageFacts(outcome.mpp, (image.shape[1], image.shape[0]), path, metadata, simplify=simplify)
    for format_, target in targets.items():
        if format_ == "overlay":
            plotting.write_overlay(image, nuclei, target, mpp=outcome.mpp)
        else:
            FORMATS.get(format_)().write(nuclei, target, facts)
    outcome.files = targets
    outcome.counts = np.bincount(nuclei.type, minlength=len(job.model.classes))


def _resolution(job: Job, path: Path) -> tuple[tuple[float, float], str, list[str]]:
    """Return the microns per pixel to use for a file, where they are from, and the doubts."""
    found, doubts = image_resolution(
        path, mpp=job.options.mpp, magnification=job.options.magnification, scene=job.options.scene
    )
    return found.mpp, "argument" if found.source in ("mpp", "magnification") else found.source, doubts


def _print_table(job: Job) -> None:
    """Print the counts per class of every image to standard output."""
    names = job.model.classes.names
    counts = [outcome.counts for outcome in job.outcomes if outcome.counts is not None]
    total: NDArray[np.int64] = np.sum([np.zeros(len(names), dtype=np.int64), *counts], axis=0)
    shown = [kind for kind in range(len(names)) if kind > 0 or total[kind]]
    repeated = Counter(outcome.path.name for outcome in job.outcomes)
    learnt_on = job.model.classes.learnt_on
    caption = console_text(f"types learnt on {learnt_on}: a guess on other tissue") if learnt_on else None
    table = Table(title=console_text(f"Nuclei in {str(job.options.out)!r}"), caption=caption)
    table.add_column("image", overflow="fold")
    for heading in ("µm/px", "nuclei", *(names[kind] if kind else "no type" for kind in shown), "seconds"):
        table.add_column(console_text(heading), justify="right")
    for outcome in job.outcomes:
        label = console_text(outcome.path.name if repeated[outcome.path.name] == 1 else str(outcome.path))
        if outcome.counts is None:
            table.add_row(label, "", "[red]failed[/red]")
        else:
            cells = [f"{number:,}" for number in (outcome.counts.sum(), *outcome.counts[shown])]
            table.add_row(label, f"{outcome.mpp:g}", *cells, f"{outcome.seconds:.1f}")
    if len(counts) > 1:
        table.add_section()
        table.add_row("total", "", *(f"{number:,}" for number in (total.sum(), *total[shown])))
    job.output.show(table)
