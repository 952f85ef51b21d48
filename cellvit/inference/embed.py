"""Embeddings for nuclei that another tool has outlined or only placed: the outlines are theirs, the encoder is ours."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cellvit import io
from cellvit.classes import NucleiClasses, standard_colors, type_label
from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import ring_bounds, ring_lengths, select_rings
from cellvit.geometry.raster import draw_rings
from cellvit.inference.assemble import TABLE, TISSUE, SlideTable
from cellvit.inference.fingerprints import BackgroundDigest, weights_hash
from cellvit.inference.outputs import context_of, write_formats
from cellvit.inference.prepare import PreparedSlide, prepare_slide
from cellvit.inference.protocol import NucleiModel, Progress, autocast_context, evaluation_mode, load_model
from cellvit.inference.resources import memory_advice
from cellvit.inference.resume import SUMMARY, ResumeFolder, read_summary, refuse_difference
from cellvit.inference.run import make_room, remove_results
from cellvit.inference.settings import Origin, SlideSettings
from cellvit.inference.slide import SlideResult
from cellvit.inference.statistics import slide_statistics
from cellvit.inference.summary import SlideFacts
from cellvit.inference.verify import contents
from cellvit.io import detections
from cellvit.io.atomic import atomic_path
from cellvit.io.provenance import content_of, write_record
from cellvit.io.remote import as_path
from cellvit.measurement.slides import MeasuredNuclei, measure_nuclei
from cellvit.postprocess.measure import nuclei_embeddings, nuclei_from_instances
from cellvit.slide.open import Slide, open_slide
from cellvit.slide.resolution import slide_resolution
from cellvit.types import EMBEDDING_MAP, Nuclei

RADIUS_UM = 4.0
"""Radius of the disc that stands for a nucleus of which only the place is known, in microns."""

_CIRCLE = np.exp(2j * np.pi * np.arange(16) / 16)


@dataclass(frozen=True)
class GivenNuclei:
    """Nuclei of another tool.

    Attributes:
        path: Their file.
        nuclei: In pixels of full resolution, labelled as in the file, or by row from 1 where labels repeat or lack.
        facts: What the file says of itself.
        notes: What of the file was not used; each is a sentence.
    """

    path: Path
    nuclei: Nuclei
    facts: Mapping[str, Any]
    notes: tuple[str, ...]

    @cached_property
    def without_outline(self) -> NDArray[np.bool_]:
        """Which nuclei are only places."""
        return np.asarray(ring_lengths(self.nuclei.contour_offsets) == 0)

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return str(content_of(self.path / TABLE if self.path.is_dir() else self.path)["sha256"])


def read_given(path: str | Path) -> GivenNuclei:
    """Read the nuclei that a tool outlined or placed.

    Args:
        path: A result folder, or a file that :func:`cellvit.io.nuclei.read_nuclei` or
            :func:`cellvit.io.detections.read_nuclei` reads: GeoJSON, Parquet, CSV of centroids, label images, ...

    Raises:
        ConfigError: If a package is needed that is not installed.
        DataError: If there is no such file, it is of no kind that can be read, or holds no nuclei.
    """
    path = Path(path)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        nuclei, facts = _read(path)
    notes = tuple(dict.fromkeys(str(one.message) for one in heard if one.category is UserWarning))
    if not len(nuclei):
        raise DataError(f"{str(path)!r} holds no nuclei; give a file with outlines or centroids")
    types, labels = np.maximum(nuclei.type, 0), nuclei.label
    if nuclei.classes is None:
        names = ("Background", *(type_label(None, kind) for kind in range(1, int(types.max()) + 1)))
        nuclei = replace(nuclei, classes=NucleiClasses(names, standard_colors(names)))
    if labels.min() < 1 or len(np.unique(labels)) < len(labels):
        nuclei = replace(nuclei, label=np.arange(1, len(nuclei) + 1, dtype=np.int32))
    return GivenNuclei(path, replace(nuclei, embedding=None, type=types), facts, notes)


def _read(path: Path) -> tuple[Nuclei, Mapping[str, Any]]:
    if path.is_dir() or path.suffix.lower() == ".parquet":
        stream = io.ParquetStream(path / TABLE if path.is_dir() else path, embedding=False)
        return Nuclei.concatenate([Nuclei.empty(classes=stream.classes), *stream]), stream.metadata
    try:
        return io.read_nuclei(path), {}
    except DataError as error:
        if not path.is_file():
            raise
        with suppress(DataError):  # the first error says what can be read
            return _of_other_tool(detections.read_nuclei(path)), {}
        raise DataError(f"{error}; or {detections.KINDS}") from error


def _of_other_tool(found: detections.LoadedNuclei) -> Nuclei:
    for note in found.notes:
        warnings.warn(str(note), stacklevel=2)
    if found.outlines is not None:
        return found.outlines
    assert found.instance_map is not None
    made = nuclei_from_instances(found.instance_map, min_contour_points=1)
    label = np.zeros(len(made.nuclei) + 1, np.int64)
    label[made.instance_map.ravel()] = np.asarray(found.instance_map).ravel()
    types = np.zeros(len(label), np.int64) if found.types is None else np.maximum(found.types, 0)[label]
    classes = None if found.names is None else NucleiClasses(found.names, standard_colors(found.names))
    return replace(made.nuclei, label=label[1:].astype(np.int32), type=types[1:].astype(np.int32), classes=classes)


def embed_slide(
    path: str | Path,
    outlines: str | Path,
    out: str | Path,
    *,
    model: str | Path | NucleiModel = "nano",
    device: str = "auto",
    progress: Progress | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    scene: int | str | None = None,
    radius: float = RADIUS_UM,
    tile_size: int = 1024,
    overlap: int = 64,
    batch_size: int | None = None,
    precision: str = "32-true",
    formats: tuple[str, ...] = ("geojson",),
    overwrite: bool = False,
    trust: Sequence[str] = (),
) -> SlideResult:
    """Give nuclei that another tool has found the embeddings of a model, and write the usual result folder.

    Outlines, types and their names stay as they are; what the model itself would segment is not used. Only tiles that
    hold nuclei go through the network. All outlines are held in memory, some 2 kB a nucleus; embeddings are not.
    Finished parts are on the disk: the same call after a crash goes on where it was.

    Args:
        path: The slide or image.
        outlines: File of the nuclei, in pixels of the slide's full resolution; see :func:`read_given`.
        out: The result folder, made if missing. Rows of its table are ordered by tile; ``label`` is that of the file,
            or the number of the row in it, from 1.
        model: Name of a model, path of its folder or checkpoint, or the model itself.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        progress: Called with the number of finished tiles and of all tiles.
        mpp: Resolution of the slide in microns per pixel. Without it and ``magnification`` the slide must state its
            own, or the file of the nuclei that of the slide.
        magnification: The same as objective power: 40 is 0.25 µm per pixel.
        scene: Number, from 0, or name of the image of a TIFF that holds several of full size.
        radius: Microns; a nucleus without outline is embedded as a disc of this radius around its centroid.
        tile_size: Side of a tile in pixels at the model's resolution.
        overlap: Pixels that neighbouring tiles share at least: a nucleus that is longer may be cut.
        batch_size: Tiles that go through the network together; None is 1, or what the run was begun with.
        precision: ``"32-true"``, ``"bf16-mixed"`` or, on a GPU, ``"16-mixed"``.
        formats: Files beside the table, keys of :data:`cellvit.inference.settings.FORMATS`.
        overwrite: Start anew whatever is there.
        trust: Packages whose classes the model's file may name.

    Returns:
        The folder and the summary.

    Raises:
        ImageError: If the slide cannot be read or no resolution is known.
        ConfigError: If a setting cannot work, or the model makes no embeddings.
        DataError: If the file has no nuclei, or more than 1 % of them do not lie on the slide.
        OutputError: If the folder holds results of something else, another process works there, or the disk is full.
    """
    if not 0 < radius < 100:
        raise ConfigError(f"radius {radius} is not that of a nucleus; give microns, such as {RADIUS_UM:g}")
    given, started = read_given(outlines), datetime.now(UTC)
    origin: Origin = "bounds" if given.facts.get("origin") == "bounds" else "slide"
    clock = time.perf_counter()
    with open_slide(path, scene=scene) as slide:
        mpp, notes = _resolution(slide, given, mpp, magnification)
        settings = SlideSettings(
            mpp=mpp,
            magnification=magnification,
            scene=scene,
            tile_size=tile_size,
            overlap=overlap,
            batch_size=batch_size,
            precision=precision,
            tissue_filter=False,
            measurements=False,
            formats=formats,
            origin=origin,
            overwrite=overwrite,
        )
        network = load_model(model, device=device, trust=trust)
        autocast_context(precision, network.device)
        name = model if isinstance(model, str | Path) else None
        run = _EmbeddingRun(given, slide, settings, network, name, Path(out), radius, notes)
        return SlideResult(as_path(path), Path(out), run.finish(progress, clock=clock, started=started))


def _resolution(
    slide: Slide, given: GivenNuclei, mpp: float | None, magnification: float | None
) -> tuple[float | None, tuple[str, ...]]:
    """Return the microns per pixel to pass on, and what is to be said; that of the file where nobody else knows."""
    known = given.facts.get("base_mpp") or given.nuclei.mpp
    if mpp is None and magnification is None and slide.stated_mpp is None and known:
        return float(known), (f"the slide states no resolution: {known:g} µm/px of {given.path.name!r} was used",)
    slide_resolution(slide, mpp=mpp, magnification=magnification)  # refuse before loading
    return mpp, ()


@dataclass(frozen=True)
class _EmbeddingRun:
    """One slide, its nuclei, and the folder."""

    given: GivenNuclei
    slide: Slide
    settings: SlideSettings
    model: NucleiModel
    model_name: str | Path | None
    out: Path
    radius: float
    notes: tuple[str, ...]

    def finish(self, progress: Progress | None, *, clock: float, started: datetime) -> Mapping[str, Any]:
        """Do what is left to do, and return the summary."""
        if self.settings.overwrite or read_summary(self.out) is None:
            _ = self._measured  # refuse nuclei of another slide before anything is written
        fingerprints = self._fingerprints
        with ResumeFolder(self.out) as resume:
            if self.settings.overwrite:
                remove_results(self.out, resume)
            done = read_summary(self.out)
            if done is not None and (self.out / TABLE).exists():
                refuse_difference(done, {"fingerprints": fingerprints}, self.out)
                return done
            moved = [] if resume.begun else make_room(self.out)
            begun = resume.open(fingerprints, self._prepared.parts, batch_size=self.settings.batch_size, notes=moved)
            with BackgroundDigest(self.slide.path, resume.digest_path) as digest:
                unreadable = self._embed(resume, begun["batch_size"], progress)
                summary = self._write(resume, begun, unreadable, digest=digest.result(), started=started, clock=clock)
            resume.discard()
        return summary

    @cached_property
    def _measured(self) -> MeasuredNuclei:
        """The nuclei with shape, stain and texture; raises where they are not of this slide."""
        return measure_nuclei(
            self.slide.path,
            self.given.nuclei,
            mpp=self.settings.mpp,
            magnification=self.settings.magnification,
            scene=self.settings.scene,
            facts=self.given.facts,
        )

    @cached_property
    def _placed(self) -> Nuclei:
        """The nuclei in pixels of the view, those without outline as discs."""
        view, corner = self._view.view, (0, 0) if self.settings.origin == "bounds" else self.slide.bounds[:2]
        shift = (-corner[0] * view.scale[0], -corner[1] * view.scale[1])
        placed = self.given.nuclei.transform(scale=view.scale, shift=shift)
        bare = self.given.without_outline
        if not bare.any():
            return placed
        reach = [self.radius / mpp * scale for mpp, scale in zip(self._view.resolution.mpp, view.scale, strict=True)]
        disc = np.stack([_CIRCLE.real * reach[0], _CIRCLE.imag * reach[1]], axis=1)
        points = (placed.centroid[bare][:, None] + disc).reshape(-1, 2)
        discs = replace(
            placed.select(bare), contour_points=points, contour_offsets=np.arange(bare.sum() + 1) * len(disc)
        )
        order = np.argsort(np.concatenate([np.flatnonzero(~bare), np.flatnonzero(bare)]))
        return Nuclei.concatenate([placed.select(~bare), discs]).select(order)

    @cached_property
    def _view(self) -> PreparedSlide:
        return prepare_slide(self.slide, self.settings, model_mpp=self.model.mpp)

    @cached_property
    def _owner(self) -> NDArray[np.int64]:
        """The tile of every nucleus, -1 for those that lie off the slide."""
        centroid, size = self._placed.centroid, np.array(self._view.size)
        on_slide = np.isfinite(centroid).all(axis=1) & (centroid >= 0).all(axis=1) & (centroid <= size).all(axis=1)
        owner = np.full(len(centroid), -1, np.int64)
        owner[on_slide] = self._view.grid.owner(centroid[on_slide])
        return owner

    @cached_property
    def _by_tile(self) -> NDArray[np.intp]:
        """The rows of the nuclei on the slide, tile by tile."""
        order = np.argsort(self._owner, kind="stable")
        return order[np.count_nonzero(self._owner < 0) :]

    @cached_property
    def _prepared(self) -> PreparedSlide:
        """The slide with those tiles only that hold nuclei."""
        tiles = np.unique(self._owner[self._by_tile])
        if not len(tiles):
            raise DataError(
                f"no nucleus of {str(self.given.path)!r} lies on slide {self.slide.path.name!r}; give the file of this "
                "slide, with coordinates in pixels of its full resolution"
            )
        return replace(self._view, tiles=tiles)

    @cached_property
    def _fingerprints(self) -> dict[str, Any]:
        weights = weights_hash(self.model)
        found = self._prepared.fingerprints(self.settings, weights=weights, version=version("cellvit-lightning"))
        return {**found, "outlines": {"sha256": self.given.sha256, "radius_um": self.radius}}

    def _embed(self, resume: ResumeFolder, batch_size: int, progress: Progress | None) -> int:
        """Write the parts that are missing, and return the number of tiles that could not be read."""
        prepared, done, unreadable = self._prepared, 0, 0
        report = progress or (lambda done, total: None)
        with evaluation_mode(self.model), memory_advice(tile_size=self.settings.tile_size, batch_size=batch_size):
            for number in range(prepared.parts):
                if not resume.finished(number):
                    found: list[tuple[int, Nuclei]] = []
                    damaged: list[int] = []
                    for tiles in prepared.batches(number, batch_size):
                        found += self._embed_tiles(tiles, damaged)
                        report(done + len(found), len(prepared.tiles))
                    resume.write_part(number, sorted(found, key=itemgetter(0)), unreadable=sorted(damaged))
                done += len(prepared.part(number))
                unreadable += len(resume.read_part(number).unreadable)
                report(done, len(prepared.tiles))
        return unreadable

    def _embed_tiles(self, indices: Sequence[int], damaged: list[int]) -> Iterator[tuple[int, Nuclei]]:
        """Yield the number of each tile and its nuclei with embeddings, NaN where the pixels cannot be read."""
        read = [self._prepared.read_tile(index) for index in indices]
        damaged += [index for index, (_, is_read) in zip(indices, read, strict=True) if not is_read]
        images = [image for image, _ in read]
        pixels = torch.from_numpy(np.stack(images)).to(self.model.device).permute(0, 3, 1, 2).float() / 255
        with autocast_context(self.settings.precision, self.model.device):
            maps = self.model.predict_maps(pixels)
        if EMBEDDING_MAP not in maps:
            raise ConfigError(
                f"model {self.model_name or type(self.model).__name__!r} makes no embeddings; use another"
            )
        for index, tokens in zip(indices, maps[EMBEDDING_MAP].float().cpu().numpy(), strict=True):
            rows = self._by_tile[slice(*np.searchsorted(self._owner[self._by_tile], [index, index + 1]))]
            embedding = self._embedding(index, rows, tokens)
            if index in damaged:
                embedding[:] = np.nan
            yield index, replace(self._measured.nuclei.select(rows), embedding=embedding)

    def _embedding(self, index: int, rows: NDArray[np.intp], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        tile, placed = self._prepared.grid.tile(index), self._placed
        points, offsets = select_rings(placed.contour_points, placed.contour_offsets, rows)
        points = points - (tile.x, tile.y)
        size = np.array([tile.width, tile.height])
        centre = np.tile(placed.centroid[rows] - (tile.x, tile.y), 2)
        bounds = ring_bounds(points, offsets)
        bounds = np.where(np.isfinite(bounds).all(axis=1, keepdims=True), bounds, centre)
        low = np.clip(np.floor(bounds[:, :2]), 0, size - 1)
        high = np.clip(np.ceil(bounds[:, 2:]), low + 1, size)
        labels = draw_rings(points, offsets, (tile.height, tile.width))
        return nuclei_embeddings(tokens, labels, np.concatenate([low, high], axis=1))

    def _write(
        self,
        resume: ResumeFolder,
        begun: Mapping[str, Any],
        unreadable: int,
        *,
        digest: str | None,
        started: datetime,
        clock: float,
    ) -> Mapping[str, Any]:
        """Write table, formats and summary from the parts."""
        prepared, settings, nuclei = self._prepared, self.settings, self._measured.nuclei
        facts = SlideFacts(prepared, settings, self.model, self.model_name, self._fingerprints)
        told = {"stains": self._measured.stains.facts(), "outlines": self._outlines()}
        metadata = {**facts.metadata(), **told}
        first = next(chunk.nuclei for chunk in map(resume.read_part, range(prepared.parts)) if len(chunk.nuclei))
        assert first.embedding is not None
        io.write_parquet_stream(
            (resume.read_part(number).nuclei for number in range(prepared.parts)),
            self.out / TABLE,
            classes=nuclei.classes,
            embedding_dim=first.embedding.shape[1],
            measurements=tuple(first.measurements),
            metadata=metadata,
        )
        with atomic_path(self.out / TISSUE) as temporary:
            Image.fromarray(prepared.tissue.to_png()).save(temporary)
        table = SlideTable(prepared.view, prepared.grid, prepared.parts, prepared.part, self.model.classes)
        context = context_of(prepared, settings, metadata=metadata, patches=table.patches)
        write_formats(self.out, settings.formats, context)
        light = io.ParquetStream(self.out / TABLE, embedding=False)
        mpp = prepared.resolution.mpp
        summary = facts.summary(table, digest=digest, started=started, batch_size=begun["batch_size"])
        kept = nuclei.type[self._owner >= 0]
        by_type = {type_label(nuclei.classes, int(kind)): int((kept == kind).sum()) for kind in np.unique(kept)}
        summary |= {
            **told,
            "nuclei": {"total": len(kept), "by_type": by_type, "density_per_mm2": None, "off_tissue": 0},
            "tissue": {**summary["tissue"], "source": "outlines of another tool"},
            "warnings": list(dict.fromkeys([*summary["warnings"], *begun["notes"], *self._warnings(unreadable)])),
            "settings": {**summary["settings"], "measurements": True},
            "statistics": slide_statistics(light, bounds=context.bounds, mpp=mpp, tissue=prepared.tissue),
            "digests": contents(self.out, summary["files"].values()),
            "seconds": {"total": round(time.perf_counter() - clock, 3)},
        }
        write_record(self.out / SUMMARY, summary)
        return summary

    def _outlines(self) -> dict[str, Any]:
        """Return whose outlines these are."""
        bare = int(self.given.without_outline.sum())
        return {
            "file": self.given.path.name,
            "sha256": self.given.sha256,
            "nuclei": len(self.given.nuclei),
            "without_outline": bare,
            "radius_um": self.radius if bare else None,
        }

    def _warnings(self, unreadable: int) -> Iterator[str]:
        """Yield what the user should know of the nuclei and their file."""
        yield from (*self.notes, *self.given.notes, *self._measured.notes)
        bare, off = int(self.given.without_outline.sum()), int((self._owner < 0).sum())
        if bare:
            of = f"{bare:,} of {len(self.given.nuclei):,} nuclei have no outline"
            yield f"{of}: each was embedded as a disc of {self.radius:g} µm radius; radius=UM sets another"
        if off:
            yield f"{off:,} nuclei lie off the slide and are left out"
        if unreadable:
            yield f"{unreadable} tiles could not be read: embeddings of their nuclei are NaN; copy the slide again"
