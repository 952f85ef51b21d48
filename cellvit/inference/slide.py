"""The segmentation of one whole slide, from the file to the files."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Never

from cellvit import io
from cellvit.errors import ConfigError
from cellvit.inference.assemble import TABLE
from cellvit.inference.postprocessing import with_postprocessor
from cellvit.inference.precision import slide_precision
from cellvit.inference.prepare import prepare_slide
from cellvit.inference.protocol import NucleiModel, Progress, load_model
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.run import SlideRun
from cellvit.inference.settings import DEFAULT_FORMATS, Origin, SlideSettings
from cellvit.inference.tta import unwrap_tta, with_tta
from cellvit.io.remote import as_path
from cellvit.slide.open import open_slide
from cellvit.slide.resolution import slide_resolution
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
            return io.read_parquet(self.out / TABLE)
        stream = io.ParquetStream(self.out / TABLE, embedding=False)
        return Nuclei.concatenate([Nuclei.empty(classes=stream.classes), *stream])


def segment_slide(
    path: str | Path,
    out: str | Path,
    *,
    model: str | Path | NucleiModel = "nano",
    device: str = "auto",
    progress: Progress | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    scene: int | str | None = None,
    tile_size: int = 1024,
    overlap: int = 64,
    batch_size: int | None = None,
    precision: str = "auto",
    tta: int = 1,
    postprocessor: Mapping[str, Any] | None = None,
    workers: int | None = None,
    tissue_filter: bool = True,
    roi: str | Path | None = None,
    embeddings: bool = True,
    measurements: bool = True,
    formats: tuple[str, ...] = DEFAULT_FORMATS,
    origin: Origin = "slide",
    simplify: float = 0.0,
    keep_parts: bool = False,
    work: str | Path | None = None,
    overwrite: bool = False,
    trust: Sequence[str] = (),
    **unknown: Never,
) -> SlideResult:
    """Find the nuclei of a whole slide and write them to a folder.

    Memory is bounded by the tiles under way, whatever the size of the slide. Finished parts of the slide are on the
    disk: the same call after a crash goes on where it was, and on the same machine gives the same files, byte for byte.
    Another batch size or kind of device gives in float32 the same nuclei, outlines and types, and floats that differ by
    about 1e-6; in bfloat16 single nuclei differ. A call on a finished folder only writes formats that are missing.

    Args:
        path: The slide: any format of OpenSlide, OME-TIFF, TIFF, or an image.
        out: The result folder of this slide, made if missing. It gets ``nuclei.parquet``, ``tissue.png``, the formats
            asked for and, last, ``summary.json``.
        model: Name of a model, path of its folder or checkpoint, or the model itself.
        device: ``"auto"`` (CUDA, else MPS, else CPU; a model that is passed in stays where it is), ``"cpu"``,
            ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        progress: Called with the number of finished tiles and of all tiles.
        mpp: Resolution of the slide in microns per pixel. Without it and ``magnification`` the slide must state its
            own; nothing is guessed.
        magnification: The same as objective power: 40 is 0.25 µm per pixel.
        scene: Number, from 0, or name of the image of a TIFF that holds several of full size; else the largest is read.
        tile_size: Side of a tile in pixels at the model's resolution.
        overlap: Pixels that neighbouring tiles share at least, at the model's resolution.
        batch_size: Tiles that go through the network together; at most 16 do. None is 1, or what an interrupted run of
            this slide was begun with: the last digits of floats depend on it, so a run goes on with no other.
        precision: ``"auto"`` (bfloat16 where the device is faster with it, see :mod:`cellvit.inference.precision`; a
            slide that was begun goes on as it was begun), ``"32-true"``, ``"bf16-mixed"`` or, on a GPU, ``"16-mixed"``.
        tta: Average the maps over 2, 4 or 8 flips and rotations, which takes as many times as long; 1 is off. See
            :class:`cellvit.inference.tta.TestTimeAugmentation`.
        postprocessor: Other arguments for the model's post-processor, such as ``{"min_prob": 0.5}``; those left out
            stay as they are. See :func:`cellvit.inference.postprocessing.with_postprocessor`.
        workers: Post-processing processes; None chooses, 0 works in this process.
        tissue_filter: Search tissue only, and keep only nuclei with their centroid on it; how many were left out says
            ``summary.json`` under ``nuclei.off_tissue``.
        roi: GeoJSON file; only nuclei with their centroid in its polygons are kept. With ``tissue_filter=False`` it
            replaces the tissue, else both must agree.
        embeddings: Store the embedding of every nucleus.
        measurements: Measure every nucleus: shape, stain, texture, neighbours; see :mod:`cellvit.measurement`.
        formats: Files beside the table, keys of :data:`cellvit.inference.settings.FORMATS`.
        origin: ``"slide"``: coordinates are level-0 pixels of the file; ``"bounds"``: of its scanned part.
        simplify: Microns by which outlines in GeoJSON may deviate to have fewer points; areas stay the same. 0 is off.
        keep_parts: Keep the working folder.
        work: Folder for unfinished work, such as a fast disk: each result folder gets a working folder in it. None is
            ``.work`` in ``out``, which may not be a link. A run goes on only with the same.
        overwrite: Start anew whatever is there.
        trust: Packages whose classes the model's file may name, see :func:`cellvit.model.checkpoint.load`.
        **unknown: Takes nothing; a misspelt name is told with what may be meant.

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
    settings = _settings(
        dict(
            mpp=mpp,
            magnification=magnification,
            scene=scene,
            tile_size=tile_size,
            overlap=overlap,
            batch_size=batch_size,
            precision=precision,
            tta=tta,
            postprocessor=postprocessor,
            workers=workers,
            tissue_filter=tissue_filter,
            roi=roi,
            embeddings=embeddings,
            measurements=measurements,
            formats=formats,
            origin=origin,
            simplify=simplify,
            keep_parts=keep_parts,
            work=work,
            overwrite=overwrite,
            **unknown,
        )
    )
    load = partial(load_model, model, device=device, trust=trust)
    result = run_slide(as_path(path), Path(out), settings, load, named, progress)
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
    trust: Sequence[str] = (),
    **settings: Any,
) -> SlideResult:
    """Do one slide of many: :func:`segment_slide` that keeps the model for the next and leaves warnings to the summary.

    Args:
        path: The slide.
        out: Its result folder.
        model: Name or path of a model.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        progress: Called with the number of finished tiles and of all tiles.
        trust: Packages whose classes the model's file may name.
        **settings: Fields of :class:`cellvit.inference.settings.SlideSettings`.

    Returns:
        The folder and the summary.
    """
    load = partial(_kept_model, str(model), device, _state_of(Path(model)), tuple(trust))
    return run_slide(path, out, _settings(settings), load, model, progress)


@lru_cache(maxsize=1)
def _kept_model(
    model: str, device: str, state: tuple[tuple[str, int, int], ...], trust: tuple[str, ...]
) -> NucleiModel:
    return load_model(model, device=device, trust=trust)


def _state_of(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when the files of a model change: a process may live longer than they do."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _settings(given: Mapping[str, Any]) -> SlideSettings:
    known = [field.name for field in fields(SlideSettings)]
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
            raise ConfigError(f"segment_slide has no setting {name!r}; {hint}")
    return SlideSettings(**given)


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
    with open_slide(path, scene=settings.scene) as slide:
        slide_resolution(slide, mpp=settings.mpp, magnification=settings.magnification)  # refuse before loading
        settings.check_image(path)
        network, views = unwrap_tta(load(), settings.tta)
        network = with_postprocessor(network, settings.postprocessor)
        precision = slide_precision(settings, network, out)
        settings = replace(settings, tta=views, precision=precision.name)
        with_tta(network, views)  # refuse before anything is written
        prepared = prepare_slide(slide, settings, model_mpp=network.mpp)
        run = SlideRun(prepared, settings, network, out, model_name, precision=precision)
        summary = run.finished()
        if summary is None:
            with ResumeFolder(out, settings.work) as journal:
                summary = run.finish(journal, progress, clock=began[0], started=began[1])
        return SlideResult(path, out, summary)
