"""``summary.csv``: one row per slide of a cohort, and the numbers of a slide it and the report are made of."""

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvit.classes import NO_TYPE, palette_color, standard_colors
from cellvit.errors import OutputError
from cellvit.inference.cohort.job import Reporter, SlideJob, SlideOutcome
from cellvit.io.atomic import atomic_text
from cellvit.types import Rgb

BEFORE_TYPES = ("slide", "status", "error", "nuclei")
AFTER_TYPES = ("tissue_mm2", "nuclei_per_mm2", "mpp", "mpp_source", "tiles", "seconds", "folder")

NO_TYPE_COLOR: Rgb = (128, 128, 128)
"""Colour of nuclei without a type."""


@dataclass(frozen=True)
class SlideNumbers:
    """The numbers of a finished slide; None where its summary states none.

    Attributes:
        nuclei: How many were found.
        by_type: How many of each type.
        tissue_mm2: Area of the tissue, or of the region of interest.
        density: Nuclei per square millimetre.
        mpp: Microns per pixel of level 0, the mean of x and y.
        mpp_source: Who states that.
        tiles: How many tiles went through the network.
        seconds: From start to end, those of an earlier run for a slide that was finished then.
    """

    nuclei: int | None
    by_type: Mapping[str, int]
    tissue_mm2: float | None
    density: float | None
    mpp: float | None
    mpp_source: str | None
    tiles: int | None
    seconds: float


def numbers_of(outcome: SlideOutcome) -> SlideNumbers:
    """Return the numbers of a slide; of one that failed, those of finished results that its folder holds already."""
    summary = outcome.summary or _finished_before(outcome.out)
    nuclei, tissue, resolution, tiles, seconds = (
        summary.get(key) or {} for key in ("nuclei", "tissue", "resolution", "tiles", "seconds")
    )
    mpp = resolution.get("mpp")
    return SlideNumbers(
        nuclei=nuclei.get("total"),
        by_type={str(name): int(count) for name, count in (nuclei.get("by_type") or {}).items()},
        tissue_mm2=tissue.get("area_mm2"),
        density=nuclei.get("density_per_mm2"),
        mpp=sum(mpp) / len(mpp) if mpp else None,
        mpp_source=resolution.get("source"),
        tiles=tiles.get("done"),
        seconds=float(seconds.get("total") or outcome.seconds),
    )


def _finished_before(folder: Path) -> Mapping[str, Any]:
    try:
        data = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def type_colors(outcomes: Iterable[SlideOutcome]) -> dict[str, Rgb]:
    """Return the colours of all types of the models that were used, in their order; no type only where counted."""
    colors: dict[str, Rgb] = {}
    counted: dict[str, None] = {}
    for outcome in outcomes:
        model = (outcome.summary or {}).get("model") or {}
        names = [str(name) for name in model.get("classes") or ()]
        stated = [(int(r), int(g), int(b)) for r, g, b in model.get("colors") or standard_colors(names)]
        for name, color in list(zip(names, stated, strict=True))[1:]:
            colors.setdefault(name, color)
        counted |= dict.fromkeys(name for name, count in numbers_of(outcome).by_type.items() if count)
    for name in counted:
        plain = name == NO_TYPE
        colors.setdefault(name, NO_TYPE_COLOR if plain else palette_color(len(colors) + 1))
    return colors


def write_summary(outcomes: Sequence[SlideOutcome], path: str | Path) -> None:
    """Write the table of a cohort: UTF-8 CSV, complete or not there.

    The columns are ``slide, status, error, nuclei``, ``nuclei_<type>`` for each type, ``tissue_mm2, nuclei_per_mm2,
    mpp, mpp_source, tiles, seconds, folder`` and those of the list of slides. One of these that has the name of
    another column is called ``list_<name>``. ``status`` is ``done`` or ``failed``; what is not known is empty;
    ``folder`` is relative to that of the table.

    Args:
        outcomes: One per row, in order.
        path: Replaced if it exists.

    Raises:
        OutputError: If it cannot be written.
    """
    types = list(type_colors(outcomes))
    ours = [*BEFORE_TYPES, *(f"nuclei_{name}" for name in types), *AFTER_TYPES]
    extra = _extra_columns(outcomes, taken=ours)
    with atomic_text(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*ours, *extra.values()])
        for outcome in outcomes:
            values = _values(outcome, types, Path(path).parent)
            writer.writerow([*map(_cell, values), *(outcome.extra.get(name, "") for name in extra)])


def relative(target: Path, folder: Path) -> str:
    """Return the path of a file as seen from a folder, with slashes; the full path where there is none."""
    try:
        return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return target.resolve().as_posix()


class CohortFiles(Reporter):
    """Keeps ``summary.csv`` up to date while a cohort runs, so that nothing is lost when it is stopped.

    A table that cannot be written, such as one that is open in another program, does not stop the cohort: it is tried
    again after the next slide.

    Args:
        jobs: The slides; their order is that of the rows.
        path: The table.
    """

    def __init__(self, jobs: Sequence[SlideJob], path: str | Path) -> None:
        self.path = Path(path)
        self._order = [job.out for job in jobs]
        self._finished: dict[Path, SlideOutcome] = {}

    @property
    def outcomes(self) -> list[SlideOutcome]:
        """Return the outcomes so far, in the order of the jobs."""
        return [self._finished[out] for out in self._order if out in self._finished]

    def finished(self, outcome: SlideOutcome) -> None:
        """Add a row to the table."""
        self._finished[outcome.out] = outcome
        try:
            self.write()
        except OutputError as error:
            self.warned(f"{error} (it is tried again after the next slide)")

    def write(self) -> None:
        """Write the table.

        Raises:
            OutputError: If it cannot be written.
        """
        write_summary(self.outcomes, self.path)


def _extra_columns(outcomes: Sequence[SlideOutcome], *, taken: Sequence[str]) -> dict[str, str]:
    """Return the heading of every column that lists of slides have beside ours."""
    used, headings = set(taken), {}
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.extra):
        heading = name
        while heading in used:
            heading = f"list_{heading}"
        used.add(heading)
        headings[name] = heading
    return headings


def _values(outcome: SlideOutcome, types: Sequence[str], folder: Path) -> list[Any]:
    numbers = numbers_of(outcome)
    known = numbers.nuclei is not None
    return [
        str(outcome.path),
        "done" if outcome.error is None else "failed",
        " ".join((outcome.error or "").split()),
        numbers.nuclei,
        *(numbers.by_type.get(name, 0) if known else None for name in types),
        numbers.tissue_mm2,
        numbers.density,
        numbers.mpp,
        numbers.mpp_source,
        numbers.tiles,
        round(numbers.seconds, 2),
        relative(outcome.out, folder),
    ]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
