"""The facts about a finished slide: what was done, with what, to what, and how long it took."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cellvit.classes import NO_TYPE
from cellvit.inference.assemble import TABLE, TISSUE, SlideTable
from cellvit.inference.pipeline import StageSeconds
from cellvit.inference.prepare import PreparedSlide
from cellvit.inference.protocol import NucleiModel, about_of
from cellvit.inference.resources import peak_memory
from cellvit.inference.settings import FORMATS, SlideSettings
from cellvit.io.provenance import size_of
from cellvit.io.remote import RemotePath, identity_of
from cellvit.measurement.measure import TileMeasurement

SUMMARY_SCHEMA = 1
MANY_UNTYPED = 0.2
"""A larger share of nuclei without a type is worth a warning."""

_PACKAGES = ("cellvit-lightning", "torch", "numpy", "opencv-python-headless", "shapely", "openslide-python", "tifffile")


@dataclass(frozen=True)
class SlideFacts:
    """What is to be said about one slide, from its parts.

    Attributes:
        prepared: The slide.
        settings: Settings of this run.
        model: The model.
        model_name: Its name or path, or None if it was passed in.
        fingerprints: What the result was made from, as :meth:`PreparedSlide.fingerprints` returns it.
    """

    prepared: PreparedSlide
    settings: SlideSettings
    model: NucleiModel
    model_name: str | Path | None
    fingerprints: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return how the model is called."""
        # a loaded model and one in training differ in class, not in what they find
        return type(self.model).__name__.removesuffix("Network") if self.model_name is None else str(self.model_name)

    @property
    def measurement(self) -> TileMeasurement | None:
        """Return what measures the nuclei, or None."""
        return self.prepared.measurement if self.settings.measurements else None

    def metadata(self) -> dict[str, Any]:
        """Return the facts that go into the heads of files; nothing that differs between two runs."""
        prepared, settings = self.prepared, self.settings
        return {
            "image": prepared.slide.path.name,
            "width": prepared.slide.level_sizes[0][0],
            "height": prepared.slide.level_sizes[0][1],
            "bounds": list(prepared.slide.bounds),
            "origin": settings.origin,
            "base_mpp": prepared.mpp,
            "mpp_source": prepared.resolution.source,
            "target_patch_mpp": self.model.mpp,
            "patch_size": settings.tile_size,
            "patch_overlap": settings.overlap,
            "model": self.name,
            "weights_hash": self.fingerprints["model"]["weights"],
            "precision": settings.precision,
            "tta": settings.tta,
            **({"postprocessor": dict(settings.postprocessor)} if settings.postprocessor else {}),
            "cellvit_version": version("cellvit-lightning"),
            **self._stains(),
        }

    def summary(
        self, table: SlideTable, *, digest: str | None, started: datetime, batch_size: int, notes: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the content of ``summary.json`` without the times of the stages and the digests of the files.

        Args:
            table: The nuclei, after they were written.
            digest: SHA-256 of the slide's file; None of one at an address, which is not read as a whole.
            started: When the run began.
            batch_size: Tiles that went through the network together.
            notes: What else the user should know.
        """
        counts = table.counts.tolist()
        area, total = self.prepared.tissue_mm2, sum(counts)
        names = self.model.classes.names
        shown = {name if i else NO_TYPE: n for i, (name, n) in enumerate(zip(names, counts, strict=True)) if i or n}
        roi = None if self.settings.roi is None else str(Path(self.settings.roi).resolve())
        work = None if self.settings.work is None else str(self.settings.work)
        settings = {**asdict(self.settings), "roi": roi, "formats": list(self.settings.formats), "work": work}
        settings |= {"batch_size": batch_size}
        return {
            "schema": SUMMARY_SCHEMA,
            "slide": self._slide(digest),
            "resolution": {"mpp": list(self.prepared.resolution.mpp), "source": self.prepared.resolution.source},
            "model": {
                "name": self.name,
                "mpp": self.model.mpp,
                "weights_hash": self.fingerprints["model"]["weights"],
                "classes": list(names),
                "colors": [list(color) for color in self.model.classes.colors],
                "types_learnt_on": self.model.classes.learnt_on or None,
                "licence": about_of(self.model).get("licence"),
                **{name: fact for name, fact in about_of(self.model).items() if name == "hub"},
            },
            "settings": settings,
            **self._stains(),
            "device": str(self.model.device),
            "fingerprints": self.fingerprints,
            "versions": {"python": platform.python_version(), **_versions()},
            "tissue": {"area_mm2": round(area, 6), "source": self.prepared.tissue_source},
            "tiles": {
                "total": len(self.prepared.grid),
                "done": len(self.prepared.tiles),
                "unreadable": [self._place(index) for index in table.unreadable],
            },
            "nuclei": {
                "total": total,
                "by_type": shown,
                "density_per_mm2": round(total / area, 2) if area else None,
                "off_tissue": table.off_tissue,
            },
            "files": {"parquet": TABLE, "tissue": TISSUE, **{n: FORMATS[n] for n in self.settings.formats}},
            "warnings": [
                *self.prepared.warnings,
                *notes,
                *self._unreadable(table),
                *_untyped(counts),
                *self._doubts(total),
            ],
            "peak_memory_mb": round(peak_memory() / 1e6, 1),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _stains(self) -> dict[str, Any]:
        return {} if self.measurement is None else {"stains": self.measurement.stains.facts()}

    def _doubts(self, nuclei: int) -> list[str]:
        doubt = "" if self.measurement is None else self.measurement.stains.doubt
        return [doubt] if doubt and nuclei else []

    def _place(self, index: int) -> list[int]:
        """Return the box of a tile, x, y, width, height in level-0 pixels."""
        tile, (x, y) = self.prepared.grid.tile(index), self.prepared.slide.bounds[:2]
        across, down = self.prepared.view.scale
        place = (tile.x / across + x, tile.y / down + y, tile.width / across, tile.height / down)
        return [round(value) for value in place]

    def _unreadable(self, table: SlideTable) -> list[str]:
        if not table.unreadable:
            return []
        x, y, width, height = self._place(table.unreadable[0])
        return [
            f"{len(table.unreadable)} of {len(self.prepared.tiles)} tiles could not be read and hold no nuclei, as "
            f"{width} x {height} px at x={x}, y={y}; copy the slide again and run it with overwrite=True"
        ]

    def _slide(self, digest: str | None) -> dict[str, Any]:
        slide = self.prepared.slide
        return {
            "path": str(slide.path.resolve()),
            "name": slide.path.name,
            "size_bytes": size_of(slide.path),
            "sha256": digest,
            **({"remote": identity_of(slide.path)} if isinstance(slide.path, RemotePath) else {}),
            "reader": slide.reader,
            "width": slide.level_sizes[0][0],
            "height": slide.level_sizes[0][1],
            "bounds": list(slide.bounds),
            "levels": [list(size) for size in slide.level_sizes],
            "level_read": self.prepared.view.level,
            "properties": dict(slide.properties),
        }


def _untyped(counts: list[int]) -> list[str]:
    total = sum(counts)
    if not total or counts[0] / total <= MANY_UNTYPED:
        return []
    return [
        f"{counts[0] / total:.0%} of the nuclei have no type: the model cannot tell what they are; look at pictures, "
        "and check the resolution"
    ]


def stage_seconds(seconds: StageSeconds, earlier: Mapping[str, float]) -> dict[str, float]:
    """Return the times of the stages, rounded, and the share of the time in which the device was busy.

    Args:
        seconds: Those of this run.
        earlier: Those that the parts of interrupted runs took.
    """
    stages = {name: value + earlier.get(name, 0.0) for name, value in asdict(seconds).items()}
    share = stages["forward"] / stages["elapsed"] if stages["elapsed"] else 0.0
    return {**{name: round(value, 3) for name, value in stages.items()}, "device_busy_share": round(share, 4)}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found["cellvit" if package == "cellvit-lightning" else package] = version(package)
    return found
