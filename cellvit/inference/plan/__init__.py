"""What the segmentation of a slide will take, before it is started: tiles, time, memory, disk, and what is known."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.errors import ConfigError
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.plan.estimate import Estimate, as_plain, estimate_needs
from cellvit.inference.plan.measure import Sample, measure
from cellvit.inference.plan.picture import write_plan_picture
from cellvit.inference.plan.progress import ExistingRun, existing_run
from cellvit.inference.postprocessing import with_postprocessor
from cellvit.inference.precision import PrecisionChoice, slide_precision
from cellvit.inference.prepare import PreparedSlide, prepare_slide
from cellvit.inference.protocol import NucleiModel, load_model
from cellvit.inference.resources import free_memory, peak_memory
from cellvit.inference.settings import SlideSettings, default_workers
from cellvit.inference.summary import SlideFacts
from cellvit.inference.tta import unwrap_tta, with_tta
from cellvit.io.provenance import size_of
from cellvit.slide.info import SlideInfo, info_of
from cellvit.slide.open import open_slide
from cellvit.slide.resolution import Resolution, slide_resolution


@dataclass(frozen=True)
class SlidePlan:
    """What would be done with a slide, and what it would take.

    Attributes:
        path: The slide.
        info: What its file is.
        size_bytes: Size of its file, bytes; None where that is not known.
        reader: What reads it.
        level_sizes: ``(width, height)`` of each level of its pyramid.
        bounds: ``(x, y, width, height)`` of the scanned part, level-0 pixels.
        stated_mpp: Microns per pixel that the slide states, or None.
        resolution: Microns per pixel that are used, and who says so.
        model: Name of the model.
        model_mpp: Microns per pixel the model is made for.
        device: Where the network runs.
        precision: The precision of the network, and why.
        workers: Post-processing processes.
        view_size: ``(width, height)`` at the model's resolution.
        level: Level that tiles are read from.
        factor: Pixels of the view per pixel of that level, 1 if it is used as it is.
        tissue_mm2: Area that is searched for nuclei.
        tissue_share: Its share of the scanned part.
        tissue_source: What the area is: ``"found"``, ``"region"``, ``"found within the region"``, ``"whole slide"``.
        region_mm2: Area of the region of interest, or None without one.
        tiles_total: Tiles of the grid.
        tiles: Those that are searched.
        whole_tiles: As many whole tiles have the pixels of those, which are cut down to the tissue.
        whole_tiles_left: The same of the tiles that are still to be done.
        started: What is done already in the result folder, or None.
        sample: What was measured, or None.
        estimate: What it will take, or None where nothing was measured.
        free_disk: Bytes free where the results go.
        free_memory: Bytes of memory that are free, or None where the system does not say.
        warnings: What the user should know; each is a sentence.
    """

    path: Path
    info: SlideInfo
    size_bytes: int | None
    reader: str
    level_sizes: tuple[tuple[int, int], ...]
    bounds: tuple[int, int, int, int]
    stated_mpp: tuple[float, float] | None
    resolution: Resolution
    model: str
    model_mpp: float
    device: str
    precision: PrecisionChoice
    workers: int
    view_size: tuple[int, int]
    level: int
    factor: float
    tissue_mm2: float
    tissue_share: float
    tissue_source: str
    region_mm2: float | None
    tiles_total: int
    tiles: int
    whole_tiles: float
    whole_tiles_left: float
    started: ExistingRun | None
    sample: Sample | None
    estimate: Estimate | None
    free_disk: int
    free_memory: int | None
    warnings: tuple[str, ...]

    @property
    def tiles_left(self) -> int:
        """Return the number of tiles that are still to be done."""
        return self.tiles - (self.started.tiles if self.started else 0)

    def as_data(self) -> dict[str, Any]:
        """Return the plan as plain data, for JSON."""
        return {**as_plain(self), "tiles_left": self.tiles_left}


def plan_slide(
    path: str | Path,
    *,
    model: str | Path | NucleiModel = "nano",
    device: str = "auto",
    sample: int = 2,
    out: str | Path | None = None,
    thumbnail: str | Path | None = None,
    trust: Sequence[str] = (),
    **settings: Any,
) -> SlidePlan:
    """Tell what :func:`cellvit.inference.slide.segment_slide` would do with a slide, and what it would take.

    The prediction is measured: a few batches of tiles, spread over the tissue, go through the real pipeline and are
    written with the real writers to a temporary folder. Nothing is written elsewhere.

    Args:
        path: The slide.
        model: Name of a model, a model folder or checkpoint, or a model.
        device: ``"auto"``, or the name of a device such as ``"cuda:0"``.
        sample: Batches of tiles to measure; more make the ranges narrower, 0 measures nothing and predicts nothing.
        out: The result folder of this slide: what is done there is counted, and its disk is looked at. It need not
            exist; None is the current folder's disk, and nothing done.
        thumbnail: A PNG to write: the slide with tissue, tiles, region of interest and what is done.
        trust: Packages whose classes the model's file may name, see :func:`cellvit.model.checkpoint.load`.
        **settings: Fields of :class:`cellvit.inference.settings.SlideSettings`.

    Returns:
        The plan.

    Raises:
        ImageError: If the slide cannot be read or no resolution is known.
        ConfigError: If a setting cannot work.
        DataError: If the region of interest cannot be read.
        UnknownPluginError: If there is no model of that name.
        WeightsError: If the weights cannot be used.
        OutputError: If the picture cannot be written.
    """
    if sample < 0:
        raise ConfigError(f"sample {sample} must be 0 (measure nothing) or more")
    chosen, began = SlideSettings(**settings), time.perf_counter()
    folder = None if out is None else Path(out)
    with open_slide(path, scene=chosen.scene) as slide:
        slide_resolution(slide, mpp=chosen.mpp, magnification=chosen.magnification)  # refuse before loading
        network, views = unwrap_tta(load_model(model, device=device, trust=trust), chosen.tta)
        network = with_postprocessor(network, chosen.postprocessor)
        precision = slide_precision(chosen, network, folder)
        chosen = replace(chosen, tta=views, precision=precision.name)
        with_tta(network, views)  # refuse what the run would refuse
        prepared = prepare_slide(slide, chosen, model_mpp=network.mpp)
        digest = weights_hash(network)
        prints = prepared.fingerprints(chosen, weights=digest, version=version("cellvit-lightning"))
        started = None if folder is None else existing_run(folder, prepared, prints, chosen.formats, work=chosen.work)
        facts = SlideFacts(prepared, chosen, network, model if isinstance(model, str | Path) else None, prints)
        plan = _described(prepared, chosen, network, facts, started, folder, precision=precision)
        prepared_in = time.perf_counter() - began
        if sample and plan.tiles_left:
            measured = measure(prepared, network, chosen, count=sample, workers=plan.workers, metadata=facts.metadata())
            plan = _predicted(plan, measured, chosen, prepared_in=prepared_in)
        if thumbnail is not None:
            write_plan_picture(Path(thumbnail), prepared, started=started, sample=plan.sample)
    return plan


def _described(
    prepared: PreparedSlide,
    settings: SlideSettings,
    model: NucleiModel,
    facts: SlideFacts,
    started: ExistingRun | None,
    out: Path | None,
    *,
    precision: PrecisionChoice,
) -> SlidePlan:
    slide, view = prepared.slide, prepared.view
    scanned = slide.bounds[2] * slide.bounds[3] * prepared.resolution.mpp[0] * prepared.resolution.mpp[1] / 1e6
    downsample = slide.level_sizes[0][0] / slide.level_sizes[view.level][0]
    region = prepared.region
    done = set(started.parts) if started else ()
    left = [prepared.part(number) for number in range(prepared.parts) if number not in done]
    return SlidePlan(
        path=slide.path,
        info=info_of(slide),
        size_bytes=size_of(slide.path),
        reader=slide.reader,
        level_sizes=tuple(slide.level_sizes),
        bounds=slide.bounds,
        stated_mpp=slide.stated_mpp,
        resolution=prepared.resolution,
        model=facts.name,
        model_mpp=model.mpp,
        device=str(model.device),
        precision=precision,
        workers=default_workers(model.device.type) if settings.workers is None else settings.workers,
        view_size=prepared.size,
        level=view.level,
        factor=view.scale[0] * downsample,
        tissue_mm2=prepared.tissue_mm2,
        tissue_share=prepared.tissue_mm2 / scanned,
        tissue_source=prepared.tissue_source,
        region_mm2=None if region is None else region.area_px * float(np.prod(prepared.resolution.mpp)) / 1e6,
        tiles_total=len(prepared.grid),
        tiles=len(prepared.tiles),
        whole_tiles=prepared.whole_tiles(prepared.tiles),
        whole_tiles_left=sum(prepared.whole_tiles(part) for part in left),
        started=started,
        sample=None,
        estimate=None,
        free_disk=shutil.disk_usage(_existing(out)).free,
        free_memory=free_memory(),
        warnings=(*prepared.warnings, *precision.notes),
    )


def _predicted(plan: SlidePlan, sample: Sample, settings: SlideSettings, *, prepared_in: float) -> SlidePlan:
    """Return a plan with what was measured, what follows from it, and whether the machine has that much."""
    found = estimate_needs(
        sample,
        settings,
        device=plan.device,
        workers=plan.workers,
        tiles=plan.whole_tiles_left,
        all_tiles=plan.whole_tiles,
        tissue_mm2=plan.tissue_mm2,
        prepared_in=prepared_in,
        process_bytes=peak_memory(),
    )
    return replace(plan, sample=sample, estimate=found, warnings=(*plan.warnings, *_shortages(plan, found)))


def _shortages(plan: SlidePlan, found: Estimate) -> list[str]:
    warnings, needed = [], found.disk.high + found.working_disk.high
    if needed > plan.free_disk:
        warnings.append(
            f"the disk has {plan.free_disk / 1e9:.1f} GB free, and up to {needed / 1e9:.1f} GB are needed; free some, "
            "choose another out=FOLDER, or leave out embeddings (embeddings=False) or formats"
        )
    more = found.memory - peak_memory()  # this process has its share already
    if plan.free_memory is not None and more > plan.free_memory:
        warnings.append(
            f"{plan.free_memory / 1e9:.1f} GB of memory are free, and {more / 1e9:.1f} GB more are needed; pass fewer "
            "workers, or a smaller batch_size or tile_size"
        )
    return warnings


def _existing(folder: Path | None) -> Path:
    """Return the first folder that exists on the way from a folder to the root; the current one for None."""
    path = (folder or Path()).absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
