"""One slide on its way into its folder: what is there already, what is left to do, and the summary at the end."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from cellvit import io
from cellvit.errors import ImageError, OutputError
from cellvit.inference.assemble import TABLE, TISSUE, SlideTable
from cellvit.inference.fingerprints import BackgroundDigest, weights_hash
from cellvit.inference.instanseg import fitted
from cellvit.inference.outputs import OutputContext, context_of, import_writers, write_formats
from cellvit.inference.pipeline import TileStream
from cellvit.inference.precision import PrecisionChoice
from cellvit.inference.prepare import PreparedSlide
from cellvit.inference.protocol import NucleiModel, Progress, autocast_context, evaluation_mode
from cellvit.inference.resume import SUMMARY, ResumeFolder, read_summary, refuse_difference
from cellvit.inference.settings import FORMATS, SlideSettings, default_workers
from cellvit.inference.statistics import slide_statistics
from cellvit.inference.summary import SlideFacts, stage_seconds
from cellvit.inference.tta import with_tta
from cellvit.inference.verify import DAMAGED, check_sizes, contents, types_differ
from cellvit.inference.workers import start_early
from cellvit.io.atomic import atomic_path, is_link, is_store, keep_aside
from cellvit.io.provenance import write_record

_RESULTS = (TABLE, TISSUE, *FORMATS.values(), SUMMARY)
"""In the order in which they are removed: without the table nothing is taken for finished."""


@dataclass(frozen=True)
class SlideRun:
    """One slide, its model and its folder.

    Attributes:
        prepared: The slide.
        settings: Settings of this run; ``tta`` is that of the model where it has one.
        model: The model; views that the settings ask for are averaged here.
        out: The result folder.
        model_name: What the model is called; None for one that was passed in.
        precision: The precision that the settings name, and why.
        notes: What the user should know of the folder, filled while it runs.
    """

    prepared: PreparedSlide
    settings: SlideSettings
    model: NucleiModel
    out: Path
    model_name: str | Path | None
    precision: PrecisionChoice
    notes: list[str] = field(default_factory=list)

    def finished(self) -> Mapping[str, Any] | None:
        """Return the summary of an earlier run that leaves nothing to do, or None.

        Raises:
            OutputError: If the folder holds finished results of something else.
        """
        resume = ResumeFolder(self.out, self.settings.work)
        summary = None if self.settings.overwrite else self._earlier(resume)
        if summary is None or self._missing(summary) or not (self.out / TISSUE).exists():
            return None
        return summary if self.settings.keep_parts or not resume.begun else None

    def finish(
        self, resume: ResumeFolder, progress: Progress | None, *, clock: float, started: datetime
    ) -> Mapping[str, Any]:
        """Do what is left to do.

        Args:
            resume: The folder, locked.
            progress: Called with the number of finished tiles and of all tiles.
            clock: When the run began, in seconds of ``time.perf_counter``.
            started: When the run began, as a time of day.

        Returns:
            The summary.
        """
        if self.settings.overwrite:
            remove_results(self.out, resume)
        summary = self._earlier(resume)
        if summary is not None:
            summary = self._add_formats(summary)
        else:
            moved = [] if resume.begun else make_room(self.out)
            wanted = self.settings.batch_size
            begun = resume.open(self._fingerprints, self.prepared.parts, batch_size=wanted, notes=moved)
            with BackgroundDigest(self.prepared.slide.path, resume.digest_path) as digest:
                summary = self._segment(resume, digest, begun, progress, clock=clock, started=started)
        if not self.settings.keep_parts:
            resume.discard()
        return summary

    @cached_property
    def _fingerprints(self) -> dict[str, Any]:
        weights = weights_hash(self.model)
        return self.prepared.fingerprints(self.settings, weights=weights, version=version("cellvit-lightning"))

    @cached_property
    def _facts(self) -> SlideFacts:
        return SlideFacts(self.prepared, self.settings, self.model, self.model_name, self._fingerprints)

    def _earlier(self, resume: ResumeFolder) -> Mapping[str, Any] | None:
        """Return the summary of a finished run that this one would repeat; None if its table is to be made again.

        Raises:
            OutputError: If the folder holds finished results of something else, or a file of it is damaged.
        """
        summary = read_summary(self.out)
        if summary is None or not (self.out / TABLE).exists():
            return None
        refuse_difference(summary, {"fingerprints": self._fingerprints}, self.out)
        if types_differ(self.out, summary):
            raise OutputError(
                f"the types in {str(self.out)!r} are being changed, and the call that does it was stopped; finish it: "
                "run the same `cellvit classify apply` again"
            )
        damaged = {check.name: check.text for check in check_sizes(self.out, summary) if check.status == DAMAGED}
        if TABLE not in damaged:
            if damaged:
                name, text = next(iter(damaged.items()))
                raise OutputError(
                    f"{str(self.out / name)!r} is damaged or was changed ({text}); move it away, and the same call "
                    "makes it again from the table"
                )
            return summary
        if not resume.begun:
            raise OutputError(
                f"{str(self.out / TABLE)!r} is damaged or was changed ({damaged[TABLE]}); put a copy back, or pass "
                "overwrite=True to do the slide again"
            )
        self.notes.append(f"{TABLE} was damaged ({damaged[TABLE]}) and was made again from the parts")
        return None

    def _missing(self, summary: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the formats that a finished folder lacks."""
        files = summary["files"]
        return tuple(n for n in self.settings.formats if n not in files or not (self.out / FORMATS[n]).exists())

    def _segment(
        self,
        resume: ResumeFolder,
        digest: BackgroundDigest,
        begun: Mapping[str, Any],
        progress: Progress | None,
        *,
        clock: float,
        started: datetime,
    ) -> Mapping[str, Any]:
        settings = self.settings
        workers = default_workers(self.model.device.type) if settings.workers is None else settings.workers
        if workers:
            start_early()
        self._write_tissue()
        stream = TileStream(
            prepared=self.prepared,
            model=with_tta(fitted(self.model, self.prepared.thumbnail), settings.tta),
            batch_size=begun["batch_size"],
            autocast=lambda: autocast_context(settings.precision, self.model.device),
            embeddings=settings.embeddings,
            measure=self._facts.measurement,
            clock=clock,
        )
        table = self._table()
        with evaluation_mode(self.model):
            written = partial(self._beside, table, resume)
            kind = stream.run(resume, workers=workers, progress=progress, written=written)
        at_table = time.perf_counter()
        io.write_parquet_stream(
            table.nuclei(resume),
            self.out / TABLE,
            classes=self.model.classes,
            embedding_dim=table.embedding_dim(resume),
            measurements=table.measured_names,
            metadata=self._facts.metadata(),
        )
        if table.unreadable and len(table.unreadable) == len(self.prepared.tiles):
            raise ImageError(f"slide {str(self.prepared.slide.path)!r}: no tile of it can be read; copy it again")
        at_export = time.perf_counter()
        context = self._context(table)
        write_formats(self.out, settings.formats, context)
        statistics = slide_statistics(
            io.ParquetStream(self.out / TABLE, embedding=False),
            bounds=context.bounds,
            mpp=self.prepared.resolution.mpp,
            tissue=self.prepared.tissue,
        )
        exported = time.perf_counter()
        summary = self._facts.summary(
            table,
            digest=digest.result(),
            started=started,
            batch_size=begun["batch_size"],
            notes=self._notes(begun, [*stream.notes, *_mixed(table.made_on)]),
        )
        at_digests = time.perf_counter()
        digests = contents(self.out, summary["files"].values())
        now = time.perf_counter()
        # the parts of this run note the same seconds that the stream does
        earlier = {name: max(0.0, spent - stream.noted.get(name, 0.0)) for name, spent in table.seconds.items()}
        seconds = {
            **stage_seconds(stream.seconds, earlier),
            "seams": round(at_export - at_table, 3),
            "export": round(exported - at_export, 3),
            "digests": round(now - at_digests, 3),
            "total": round(now - clock + earlier.get("total", 0.0), 3),
            "earlier_runs": round(earlier.get("total", 0.0), 3),
        }
        workers_used = {"number": workers, "kind": kind}
        summary = {**summary, "precision": self.precision.facts(), "statistics": statistics, "digests": digests}
        summary |= {"workers": workers_used, "seconds": seconds}
        write_record(self.out / SUMMARY, summary)
        return summary

    def _beside(self, table: SlideTable, resume: ResumeFolder, finished: int) -> None:
        """Do, beside the network, what else would be waited for after it, for some finished parts."""
        import_writers(self.settings.formats)
        table.scan(resume, finished)

    def _notes(self, begun: Mapping[str, Any], of_run: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*begun["notes"], *self.precision.notes, *self.notes, *of_run]))

    def _add_formats(self, summary: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the formats that a finished folder lacks."""
        if not (self.out / TISSUE).exists():
            self._write_tissue()
        missing = self._missing(summary)
        if not missing:
            return summary
        write_formats(self.out, missing, self._context(self._table()))
        files = {**summary["files"], **{name: FORMATS[name] for name in missing}}
        formats = [name for name in FORMATS if name in files]
        summary = {**summary, "files": files, "settings": {**summary["settings"], "formats": formats}}
        if "digests" in summary:  # else it is of a version that noted none, and nobody knows what the others were
            new = contents(self.out, [TISSUE, *(FORMATS[name] for name in missing)])
            summary["digests"] = {**summary["digests"], **new}
        write_record(self.out / SUMMARY, summary)
        return summary

    def _write_tissue(self) -> None:
        with atomic_path(self.out / TISSUE) as temporary:
            Image.fromarray(self.prepared.tissue.to_png()).save(temporary)

    def _table(self) -> SlideTable:
        prepared = self.prepared
        return SlideTable(
            view=prepared.view,
            grid=prepared.grid,
            parts=prepared.parts,
            part=prepared.part,
            classes=self.model.classes,
            tissue=prepared.only_on,
            region=prepared.region,
            origin=self.settings.origin,
            measure=self._facts.measurement,
        )

    def _context(self, table: SlideTable) -> OutputContext:
        return context_of(self.prepared, self.settings, metadata=self._facts.metadata(), patches=table.patches)


def _mixed(made_on: Sequence[str]) -> list[str]:
    if len(made_on) < 2:
        return []
    return [
        f"the run was interrupted, and its parts were computed on {' and on '.join(made_on)}: floats and, at a "
        "threshold, single nuclei differ a little between these"
    ]


def remove_results(out: Path, resume: ResumeFolder) -> None:
    """Remove results, and the unfinished work that a journal says is ours, whatever they were made from.

    Args:
        out: The result folder.
        resume: Its working folder, locked.
    """
    for name in _RESULTS:
        _remove(out / name)
    for folder in (resume, ResumeFolder(out)):
        folder.discard()


def make_room(out: Path) -> list[str]:
    """Remove the results that a summary of ours names, and rename other files that have the names of results.

    Args:
        out: The result folder, in which nothing is begun.

    Returns:
        What was renamed, as a sentence; none if nothing was.
    """
    summary = read_summary(out) or {}
    is_ours = isinstance(summary.get("files"), dict) and isinstance(summary.get("fingerprints"), dict)
    listed = {SUMMARY, *summary["files"].values()} if is_ours else set()
    kept = []
    for name in _RESULTS:
        path = out / name
        if name in listed:
            _remove(path)
        elif is_link(path) or path.is_file() or is_store(path):
            kept.append(keep_aside(path).name)
    return [f"files that had the names of results before this run are kept as {', '.join(kept)}"] if kept else []


def _remove(path: Path) -> None:
    """Remove a file, a link or a Zarr store; another folder stays."""
    if is_link(path) or not path.is_dir():
        path.unlink(missing_ok=True)
    elif is_store(path):
        shutil.rmtree(path)
