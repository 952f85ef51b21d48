"""The segmentation of one whole slide, from the file to the files."""

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from cellvit import export
from cellvit.atomic import atomic_path
from cellvit.runner.fingerprints import file_hash, weights_hash
from cellvit.runner.formats import OutputContext, write_formats
from cellvit.runner.journal import Journal, read_summary, refuse_difference, write_json
from cellvit.runner.outputs import TABLE, SlideTable
from cellvit.runner.pipeline import TileStream
from cellvit.runner.preparation import PreparedSlide, prepare_slide
from cellvit.runner.settings import FORMATS, SlideSettings, default_workers
from cellvit.runner.summary import SlideFacts, stage_seconds
from cellvit.segment import NucleiModel, Progress, autocast_context, evaluation_mode, load_model
from cellvit.slide.resolution import slide_resolution
from cellvit.slide.slides import open_slide
from cellvit.types import Nuclei


@dataclass(frozen=True)
class SlideResult:
    """A slide that is done.

    Attributes:
        path: The slide.
        out: Its result folder.
        summary: What ``summary.json`` holds.
    """

    path: Path
    out: Path
    summary: Mapping[str, Any]

    def nuclei(self, *, embedding: bool = True) -> Nuclei:
        """Read all nuclei of the slide into memory.

        Args:
            embedding: Whether with embeddings, which are most of the bytes.
        """
        if embedding:
            return export.read_parquet(self.out / TABLE)
        stream = export.ParquetStream(self.out / TABLE, embedding=False)
        return Nuclei.concatenate([Nuclei.empty(classes=stream.classes), *stream])


def segment_slide(
    path: str | Path,
    out: str | Path,
    *,
    model: str | Path | NucleiModel = "nano",
    device: str = "auto",
    progress: Progress | None = None,
    **settings: Any,
) -> SlideResult:
    """Find the nuclei of a whole slide and write them to a folder.

    Memory is bounded by the tiles under way, whatever the size of the slide. Finished parts of the slide are on the
    disk: the same call after a crash goes on where it was, and gives the same files, byte for byte. A call on a
    finished folder only writes formats that are missing.

    Args:
        path: The slide: any format of OpenSlide, OME-TIFF, TIFF, or an image.
        out: The result folder of this slide, made if missing. It gets ``nuclei.parquet``, ``tissue.png``, the formats
            asked for and, last, ``summary.json``.
        model: Name of a model, path of its folder or checkpoint, or the model itself.
        device: See :func:`cellvit.segment.segment_image`.
        progress: Called with the number of finished tiles and of all tiles.
        **settings: Fields of :class:`cellvit.runner.settings.SlideSettings`:

            * ``mpp``, ``magnification``: resolution of the slide (µm per pixel; objective power, 40 is 0.25 µm); left
              out, the slide must state its own. Only what is given or stated is used, nothing is guessed.
            * ``tile_size``, ``overlap``: in pixels at the model's resolution (1024, 64).
            * ``batch_size``: tiles that go through the network together (1); at most 16 do.
            * ``precision``: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``.
            * ``workers``: post-processing processes; None chooses, 0 works in this process.
            * ``tissue_filter``: search tissue only (True).
            * ``roi``: GeoJSON file; only nuclei with their centroid in its polygons are kept. With
              ``tissue_filter=False`` it replaces the tissue, else both must agree.
            * ``embeddings``: store the embedding of every nucleus (True).
            * ``formats``: keys of :data:`cellvit.runner.settings.FORMATS`.
            * ``origin``: ``"slide"``: coordinates are level-0 pixels of the file; ``"bounds"``: of its scanned part.
            * ``keep_parts``: keep the working folder. ``overwrite``: start anew whatever is there.

    Returns:
        The folder and the summary.

    Raises:
        ImageError: If the slide cannot be read or no resolution is known.
        ConfigError: If a setting cannot work.
        OutputError: If the folder holds results of something else, another process works there, or the disk is full.
        DataError: If the region of interest cannot be read.
        UnknownPluginError: If there is no model of that name.
        WeightsError: If the weights cannot be used.
    """
    named = model if isinstance(model, str | Path) else None
    result = run_slide(
        Path(path), Path(out), SlideSettings(**settings), lambda: load_model(model, device=device), named, progress
    )
    for text in result.summary["warnings"]:
        warnings.warn(f"{str(path)!r}: {text}", stacklevel=2)
    return result


def slide_task(
    path: Path,
    out: Path,
    *,
    model: str | Path = "nano",
    device: str = "auto",
    progress: Progress | None = None,
    **settings: Any,
) -> SlideResult:
    """Do one slide of many: :func:`segment_slide` that keeps the model for the next and leaves warnings to the summary.

    Args:
        path: The slide.
        out: Its result folder.
        model: Name or path of a model.
        device: See :func:`segment_slide`.
        progress: See :func:`segment_slide`.
        **settings: See :func:`segment_slide`.

    Returns:
        The folder and the summary.
    """
    return run_slide(path, out, SlideSettings(**settings), lambda: _kept_model(str(model), device), model, progress)


@lru_cache(maxsize=1)
def _kept_model(model: str, device: str) -> NucleiModel:
    return load_model(model, device=device)


def run_slide(
    path: Path,
    out: Path,
    settings: SlideSettings,
    load: Callable[[], NucleiModel],
    model_name: str | Path | None,
    progress: Progress | None,
) -> SlideResult:
    """Do one slide; the model is loaded when the slide is known to open.

    Args:
        path: The slide.
        out: Its result folder.
        settings: How.
        load: Returns the model.
        model_name: What the model is called; None for one that was passed in.
        progress: Called with the number of finished tiles and of all tiles.

    Returns:
        The folder and the summary.
    """
    began = time.perf_counter(), datetime.now(UTC)
    with open_slide(path) as slide:
        slide_resolution(slide, mpp=settings.mpp, magnification=settings.magnification)  # refuse before loading
        network = load()
        autocast_context(settings.precision, network.device)
        prepared = prepare_slide(slide, settings, model_mpp=network.mpp)
        with Journal(out) as journal:
            run = _Run(prepared, settings, network, out, journal, model_name)
            return SlideResult(path, out, run.finish(progress, *began))


@dataclass
class _Run:
    """One slide on its way into its locked folder."""

    prepared: PreparedSlide
    settings: SlideSettings
    model: NucleiModel
    out: Path
    journal: Journal
    model_name: str | Path | None

    def finish(self, progress: Progress | None, clock: float, started: datetime) -> Mapping[str, Any]:
        """Do what is left to do, and return the summary."""
        self.fingerprints = self.prepared.fingerprints(
            self.settings, weights=weights_hash(self.model), version=version("cellvit-lightning")
        )
        self._facts = SlideFacts(self.prepared, self.settings, self.model, self.model_name, self.fingerprints)
        summary = self._earlier()
        if summary is not None:
            return self._add_formats(summary)
        with ThreadPoolExecutor(1) as aside:  # the digest of the whole file is not needed before the end
            digest = aside.submit(file_hash, self.prepared.slide.path)
            return self._segment(progress, digest, clock, started)

    def _earlier(self) -> Mapping[str, Any] | None:
        """Return the summary of a finished run that this one would repeat."""
        if self.settings.overwrite:
            clear_results(self.out, self.journal)
        summary = read_summary(self.out)
        if summary is not None:
            refuse_difference(summary, {"fingerprints": self.fingerprints}, self.out)
        return summary

    def _segment(
        self, progress: Progress | None, digest: "Future[str]", clock: float, started: datetime
    ) -> Mapping[str, Any]:
        prepared, settings = self.prepared, self.settings
        self.journal.open(self.fingerprints, prepared.parts)
        with atomic_path(self.out / "tissue.png") as temporary:
            Image.fromarray(prepared.tissue.to_png()).save(temporary)
        stream = TileStream(
            prepared=prepared,
            model=self.model,
            batch_size=settings.batch_size,
            autocast=lambda: autocast_context(settings.precision, self.model.device),
            embeddings=settings.embeddings,
        )
        workers = default_workers(self.model.device.type) if settings.workers is None else settings.workers
        with evaluation_mode(self.model):
            kind = stream.run(self.journal, workers=workers, progress=progress)
        at_table = time.perf_counter()
        table = self._table()
        first = self.journal.read_part(0)[1].embedding if prepared.parts else None
        export.write_parquet_stream(
            table.nuclei(self.journal),
            self.out / TABLE,
            classes=self.model.classes,
            embedding_dim=None if first is None else first.shape[1],
            metadata=self._facts.metadata(),
        )
        at_export = time.perf_counter()
        write_formats(self.out, settings.formats, self._context(table))
        seconds = {
            **stage_seconds(stream.seconds),
            "seams": round(at_export - at_table, 3),
            "export": round(time.perf_counter() - at_export, 3),
            "total": round(time.perf_counter() - clock, 3),
        }
        facts = self._facts.summary(table.counts.tolist(), digest=digest.result(), started=started)
        summary = {**facts, "workers": {"number": workers, "kind": kind}, "seconds": seconds}
        write_json(self.out / "summary.json", summary)
        if not settings.keep_parts:
            self.journal.discard()
        return summary

    def _add_formats(self, summary: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the formats that a finished folder lacks."""
        missing = tuple(name for name in self.settings.formats if not (self.out / FORMATS[name]).exists())
        if not missing:
            return summary
        write_formats(self.out, missing, self._context(self._table()))
        files = {**summary["files"], **{name: FORMATS[name] for name in missing}}
        summary = {**summary, "files": files}
        write_json(self.out / "summary.json", summary)
        return summary

    def _table(self) -> SlideTable:
        prepared = self.prepared
        return SlideTable(
            view=prepared.view,
            grid=prepared.grid,
            parts=prepared.parts,
            part=prepared.part,
            classes=self.model.classes,
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
        )


def clear_results(out: Path, journal: Journal) -> None:
    """Remove what an earlier run wrote into a result folder, and nothing else."""
    (out / "summary.json").unlink(missing_ok=True)
    journal.discard()
    for name in (TABLE, "tissue.png", *FORMATS.values()):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
