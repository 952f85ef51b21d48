"""What can be set for the segmentation of a slide, and what of it decides the nuclei."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from cellvit.errors import ConfigError
from cellvit.geometry.symmetry import symmetries
from cellvit.io.formats.base import FORMATS as NUCLEI_FORMATS

DEVICES = ("auto", "cpu", "cuda", "mps")
AUTO = "auto"
PRECISIONS = (AUTO, "32-true", "bf16-mixed", "16-mixed")

Origin = Literal["slide", "bounds"]

THUMBNAIL = 2048
"""Longest side of the picture of a slide, in pixels."""

PICTURES: Mapping[str, str] = {"overlay": "overlay.png", "density": "density.png", "closeups": "closeups.png"}
"""Pictures of a slide, and the file of each."""


class _Files(Mapping[str, str]):
    """The file of every format, those of other packages too; asked when it is needed."""

    def __getitem__(self, name: str) -> str:
        if name in PICTURES:
            return PICTURES[name]
        if name == "parquet" or name not in NUCLEI_FORMATS:
            raise KeyError(name)
        return NUCLEI_FORMATS.get(name).file

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in NUCLEI_FORMATS if name != "parquet")
        yield from PICTURES

    def __len__(self) -> int:
        return sum(1 for _ in self)


FORMATS: Mapping[str, str] = _Files()
"""Formats beside the table ``nuclei.parquet``, which is always written, and the file of each."""

DEFAULT_FORMATS = ("geojson", "points", "json", "overlay", "density", "closeups")


@dataclass(frozen=True)
class SlideSettings:
    """How a slide is segmented; see :func:`cellvit.inference.slide.segment_slide` for each value.

    Raises:
        ConfigError: If a value cannot work, or a format needs a package that is not installed.
    """

    mpp: float | None = None
    magnification: float | None = None
    scene: int | str | None = None
    tile_size: int = 1024
    overlap: int = 64
    batch_size: int | None = None
    precision: str = AUTO
    tta: int = 1
    postprocessor: Mapping[str, Any] | None = None
    workers: int | None = None
    tissue_filter: bool = True
    roi: str | Path | None = None
    embeddings: bool = True
    measurements: bool = True
    formats: tuple[str, ...] = DEFAULT_FORMATS
    origin: Origin = "slide"
    simplify: float = 0.0
    keep_parts: bool = False
    work: str | Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.formats, str):
            raise ConfigError(f"formats {self.formats!r} is text; give a tuple of names, such as ('geojson', 'h5ad')")
        object.__setattr__(self, "formats", tuple(dict.fromkeys(self.formats)))
        _check_formats(self.formats)
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size {self.batch_size} must be 1 or more")
        symmetries(self.tta)  # refuses other numbers
        if self.postprocessor is not None:
            object.__setattr__(self, "postprocessor", _plain_settings(self.postprocessor))
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers {self.workers} must be 0 (none: post-process in this process) or more")
        if not 0 <= self.simplify < math.inf:
            raise ConfigError(f"simplify {self.simplify} must be microns, 0 (outlines as they are) or more")
        if self.origin not in ("slide", "bounds"):
            raise ConfigError(f"origin {self.origin!r} is unknown; use 'slide' or 'bounds'")
        for name in ("mpp", "magnification"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} {value} must be greater than 0; leave it out to use what the slide states")

    def check_image(self, path: Path) -> None:
        """Refuse a slide whose nuclei a format cannot hold, before they are looked for.

        Args:
            path: The slide.

        Raises:
            DataError: With what to choose instead.
        """
        for name in (name for name in self.formats if name not in PICTURES):
            NUCLEI_FORMATS.get(name)().check_image(path if self.origin == "slide" else None)

    @property
    def tiles_at_once(self) -> int:
        """Return the number of tiles that go through the network together in a run that is begun."""
        return 1 if self.batch_size is None else self.batch_size

    @property
    def affects_result(self) -> dict[str, Any]:
        """Return the settings on which the nuclei depend; resuming with others is refused."""
        names = ("tile_size", "overlap", "precision", "tta", "tissue_filter", "embeddings", "measurements", "origin")
        values = {name: getattr(self, name) for name in names}
        # results that were begun with the settings of the model stay valid
        return {**values, "postprocessor": dict(self.postprocessor)} if self.postprocessor else values


def available_cores() -> int:
    """Return the number of cores this process may use, which on a cluster is less than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(allowed, int(given)) if given.isdecimal() and int(given) else allowed)


def reading_threads() -> int:
    """Return the number of threads that read tiles ahead."""
    return max(2, min(8, available_cores()))


def default_workers(device: str) -> int:
    """Return the number of post-processing workers: all cores beside a GPU, few where the network needs them too.

    Args:
        device: Kind of the device, such as ``"cuda"``.
    """
    cores = available_cores()
    return max(1, cores // 4) if device == "cpu" else min(16, cores)


def _plain_settings(given: Any) -> dict[str, Any]:
    """Return settings as files hold them."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"postprocessor {given!r} is no mapping; write {{'min_prob': 0.5}}")
    plain = {str(name): value.item() if hasattr(value, "item") else value for name, value in given.items()}
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"postprocessor {plain} cannot be written down ({error}); use plain numbers") from error
    return plain


def _check_formats(formats: tuple[str, ...]) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ConfigError(f"formats {unknown} cannot be written; choose from {', '.join(FORMATS)}")
    for name in (name for name in formats if name not in PICTURES):
        chosen = NUCLEI_FORMATS.get(name)
        missing = [package for package in chosen.packages if find_spec(package) is None]
        if missing:
            raise ConfigError(f"format {name!r} needs {', '.join(missing)}; {chosen.cure()}")
