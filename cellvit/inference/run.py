"""One slide on its way into its folder: what is there already, what is left to do, and the summary at the end."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from cellvit import io
from cellvit.errors import ImageError
from cellvit.inference.assemble import TABLE, SlideTable
from cellvit.inference.fingerprints import BackgroundDigest, weights_hash
from cellvit.inference.outputs import OutputContext, write_formats
from cellvit.inference.pipeline import TileStream
from cellvit.inference.prepare import PreparedSlide
from cellvit.inference.protocol import NucleiModel, Progress, autocast_context, evaluation_mode
from cellvit.inference.resume import WORK, ResumeFolder, read_summary, refuse_difference
from cellvit.inference.settings import FORMATS, SlideSettings, default_workers
from cellvit.inference.statistics import slide_statistics
from cellvit.inference.summary import SlideFacts, stage_seconds
from cellvit.inference.tta import with_tta
from cellvit.io.atomic import atomic_path
from cellvit.io.provenance import write_record

TISSUE = "tissue.png"


@dataclass(frozen=True)
class SlideRun:
    """One slide, its model and its folder.

    Attributes:
        prepared: The slide.
        settings: Settings of this run; ``tta`` is that of the model where it has one.
        model: The model; views that the settings ask for are averaged here.
        out: The result folder.
        model_name: What the model is called; None for one that was passed in.
    """

    prepared: PreparedSlide
    settings: SlideSettings
    model: NucleiModel
    out: Path
    model_name: str | Path | None

    def finished(self) -> Mapping[str, Any] | None:
        """Return the summary of an earlier run that leaves nothing to do, or None.

        Raises:
            OutputError: If the folder holds finished results of something else.
        """
        summary = None if self.settings.overwrite else self._earlier()
        if summary is None or self._missing(summary) or not (self.out / TISSUE).exists():
            return None
        return summary if self.settings.keep_parts or not (self.out / WORK).exists() else None

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
            clear_results(self.out, resume)
        summary = self._earlier()
        if summary is not None:
            summary = self._add_formats(summary)
        else:
            if not resume.begun:
                clear_results(self.out, resume)
            resume.open(self._fingerprints, self.prepared.parts)
            with BackgroundDigest(self.prepared.slide.path, resume.folder / "sha256") as digest:
                summary = self._segment(resume, digest, progress, clock=clock, started=started)
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

    def _earlier(self) -> Mapping[str, Any] | None:
        """Return the summary of a finished run that this one would repeat; None if it lacks its table."""
        summary = read_summary(self.out)
        if summary is None or not (self.out / TABLE).exists():
            return None
        refuse_difference(summary, {"fingerprints": self._fingerprints}, self.out)
        return summary

    def _missing(self, summary: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the formats that a finished folder lacks."""
        files = summary["files"]
        return tuple(n for n in self.settings.formats if n not in files or not (self.out / FORMATS[n]).exists())

    def _segment(
        self,
        resume: ResumeFolder,
        digest: BackgroundDigest,
        progress: Progress | None,
        *,
        clock: float,
        started: datetime,
    ) -> Mapping[str, Any]:
        settings = self.settings
        self._write_tissue()
        stream = TileStream(
            prepared=self.prepared,
            model=with_tta(self.model, settings.tta),
            batch_size=settings.batch_size,
            autocast=lambda: autocast_context(settings.precision, self.model.device),
            embeddings=settings.embeddings,
        )
        workers = default_workers(self.model.device.type) if settings.workers is None else settings.workers
        with evaluation_mode(self.model):
            kind = stream.run(resume, workers=workers, progress=progress)
        at_table = time.perf_counter()
        table = self._table()
        io.write_parquet_stream(
            table.nuclei(resume),
            self.out / TABLE,
            classes=self.model.classes,
            embedding_dim=table.embedding_dim(resume),
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
        seconds = {
            **stage_seconds(stream.seconds),
            "seams": round(at_export - at_table, 3),
            "export": round(time.perf_counter() - at_export, 3),
            "total": round(time.perf_counter() - clock, 3),
        }
        summary = self._facts.summary(table, digest=digest.result(), started=started)
        summary = {**summary, "statistics": statistics, "workers": {"number": workers, "kind": kind}}
        summary["seconds"] = seconds
        summary["warnings"] = [*summary["warnings"], *stream.notes]
        write_record(self.out / "summary.json", summary)
        return summary

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
        write_record(self.out / "summary.json", summary)
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
        )

    def _context(self, table: SlideTable) -> OutputContext:
        return OutputContext(
            slide=self.prepared.slide,
            thumbnail=self.prepared.thumbnail,
            mpp=self.prepared.mpp,
            metadata=self._facts.metadata(),
            patches=table.patches,
            origin=self.settings.origin,
            tissue=self.prepared.tissue.mask,
            simplify=self.settings.simplify,
        )


def clear_results(out: Path, resume: ResumeFolder) -> None:
    """Remove what an earlier run wrote into a result folder, and nothing else."""
    (out / "summary.json").unlink(missing_ok=True)
    resume.discard()
    for name in (TABLE, TISSUE, *FORMATS.values()):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            if name.endswith(".zarr"):
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
