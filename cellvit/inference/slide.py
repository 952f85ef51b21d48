"""The segmentation of one whole slide, from the file to the files."""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cellvit import io
from cellvit.errors import ConfigError
from cellvit.inference.assemble import TABLE
from cellvit.inference.prepare import prepare_slide
from cellvit.inference.protocol import NucleiModel, Progress, autocast_context, load_model
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.run import SlideRun
from cellvit.inference.settings import SlideSettings
from cellvit.inference.tta import unwrap_tta, with_tta
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
        device: See :func:`cellvit.inference.image.segment_image`.
        progress: Called with the number of finished tiles and of all tiles.
        **settings: Fields of :class:`cellvit.inference.settings.SlideSettings`:

            * ``mpp``, ``magnification``: resolution of the slide (µm per pixel; objective power, 40 is 0.25 µm); left
              out, the slide must state its own. Only what is given or stated is used, nothing is guessed.
            * ``tile_size``, ``overlap``: in pixels at the model's resolution (1024, 64).
            * ``batch_size``: tiles that go through the network together (1); at most 16 do.
            * ``precision``: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``.
            * ``tta``: average the maps over 2, 4 or 8 mirrored and turned views (1: off), which takes as many times as
              long; see :class:`cellvit.inference.tta.TestTimeAugmentation`.
            * ``workers``: post-processing processes; None chooses, 0 works in this process.
            * ``tissue_filter``: search tissue only (True).
            * ``roi``: GeoJSON file; only nuclei with their centroid in its polygons are kept. With
              ``tissue_filter=False`` it replaces the tissue, else both must agree.
            * ``embeddings``: store the embedding of every nucleus (True).
            * ``formats``: keys of :data:`cellvit.inference.settings.FORMATS`.
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
        Path(path), Path(out), _settings(settings), lambda: load_model(model, device=device), named, progress
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
    load = partial(_kept_model, str(model), device, _state_of(Path(model)))
    return run_slide(path, out, _settings(settings), load, model, progress)


@lru_cache(maxsize=1)
def _kept_model(model: str, device: str, state: tuple[tuple[str, int, int], ...]) -> NucleiModel:
    return load_model(model, device=device)


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
    with open_slide(path) as slide:
        slide_resolution(slide, mpp=settings.mpp, magnification=settings.magnification)  # refuse before loading
        network, views = unwrap_tta(load(), settings.tta)
        settings = replace(settings, tta=views)
        with_tta(network, views)  # refuse before anything is written
        autocast_context(settings.precision, network.device)
        prepared = prepare_slide(slide, settings, model_mpp=network.mpp)
        run = SlideRun(prepared, settings, network, out, model_name)
        summary = run.finished()
        if summary is None:
            with ResumeFolder(out) as journal:
                summary = run.finish(journal, progress, clock=began[0], started=began[1])
        return SlideResult(path, out, summary)
