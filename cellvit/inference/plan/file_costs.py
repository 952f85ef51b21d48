"""What the files of a slide cost, in seconds and bytes: each is written without and with the nuclei of a sample."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cellvit import io
from cellvit.inference.assemble import TABLE, SlideTable
from cellvit.inference.outputs import context_of, write_formats
from cellvit.inference.prepare import PreparedSlide
from cellvit.inference.protocol import NucleiModel
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.settings import FORMATS, PICTURES, SlideSettings


class Cost(NamedTuple):
    """What a file costs: seconds and bytes, those it always takes and those that each nucleus adds."""

    seconds: float
    seconds_per_nucleus: float
    size: float
    size_per_nucleus: float


def write_costs(
    folder: Path,
    sampled: PreparedSlide,
    chunks: ResumeFolder,
    model: NucleiModel,
    settings: SlideSettings,
    metadata: Mapping[str, Any],
) -> tuple[dict[str, Cost], int]:
    """Return what each file costs, and the number of nuclei that were written.

    Args:
        folder: A temporary folder to write to.
        sampled: The slide, of which only the tiles of the sample are to be done.
        chunks: Holds them as finished chunks.
        model: The model that found them.
        settings: Settings of the run that is planned.
        metadata: Facts for the heads of files.
    """
    table = SlideTable(
        view=sampled.view,
        grid=sampled.grid,
        parts=sampled.parts,
        part=sampled.part,
        classes=model.classes,
        tissue=sampled.only_on,
        region=sampled.region,
        origin=settings.origin,
        measure=sampled.measurement if settings.measurements else None,
    )
    context = context_of(sampled, settings, metadata=metadata, patches=table.patches)
    embedding = chunks.read_part(0).nuclei.embedding
    dim, taken, rows = None if embedding is None else embedding.shape[1], {}, 0
    for name, nuclei in (("empty", iter(())), ("full", table.nuclei(chunks))):
        out = folder / name
        out.mkdir()
        started = time.perf_counter()
        path, facts = out / TABLE, dict(metadata)
        names = table.measured_names
        rows = io.write_parquet_stream(
            nuclei, path, classes=model.classes, embedding_dim=dim, measurements=names, metadata=facts
        )
        taken[name, "parquet"] = time.perf_counter() - started, path.stat().st_size
        for format_ in settings.formats:
            started = time.perf_counter()
            write_formats(out, (format_,), context)
            taken[name, format_] = time.perf_counter() - started, _size(out / FORMATS[format_])
    names = ("parquet", *settings.formats)
    return {name: _cost(name, taken["empty", name], taken["full", name], rows) for name in names}, rows


def _cost(name: str, empty: tuple[float, int], full: tuple[float, int], rows: int) -> Cost:
    """Return the cost of a file from that without nuclei and that with ``rows`` of them."""
    (seconds, size), more = empty, max(0.0, full[0] - empty[0]) / max(1, rows)
    if name == "closeups":  # four places, whatever their number
        return Cost(max(seconds, full[0]), 0.0, full[1], 0.0)
    if name in PICTURES:  # of the same size, however many nuclei there are
        return Cost(seconds, more, max(size, full[1]), 0.0)
    return Cost(seconds, more, size, max(0, full[1] - size) / max(1, rows))


def _size(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in inside if file.is_file())
