"""``summary.csv``: one row per slide of a cohort, and the numbers of a slide it and the report are made of."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvit.classes import NO_TYPE, palette_color, standard_colors
from cellvit.errors import DataError, OutputError
from cellvit.inference.cohort.job import Reporter, SlideJob, SlideOutcome
from cellvit.io.atomic import keep_aside
from cellvit.io.remote import as_path
from cellvit.io.tables import Cell, read_csv, write_csv
from cellvit.types import Rgb

BEFORE_TYPES = ("slide", "status", "error", "nuclei")
AFTER_TYPES = ("tissue_mm2", "nuclei_per_mm2", "mpp", "mpp_source", "tiles", "seconds", "types_learnt_on", "folder")

NO_TYPE_COLOR: Rgb = (128, 128, 128)
"""Colour of nuclei without a type."""


@dataclass(frozen=True)
class SlideNumbers:
    """The numbers of a finished slide; None where its summary states none.

    Attributes:
        nuclei: Number of nuclei found.
        by_type: Number of nuclei per type.
        tissue_mm2: Area of the tissue, or of the region of interest.
        density: Nuclei per square millimetre.
        mpp: Microns per pixel of level 0, the mean of x and y.
        mpp_source: Who states that.
        tiles: Number of tiles that went through the network.
        seconds: From start to end, those of an earlier run for a slide that was finished then.
        types_learnt_on: Tissue that the types were learnt on.
    """

    nuclei: int | None
    by_type: Mapping[str, int]
    tissue_mm2: float | None
    density: float | None
    mpp: float | None
    mpp_source: str | None
    tiles: int | None
    seconds: float
    types_learnt_on: str | None = None


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
        types_learnt_on=_typed_by(summary).get("types_learnt_on"),
    )


def _finished_before(folder: Path) -> Mapping[str, Any]:
    try:
        data = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _typed_by(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a summary says of what gave the nuclei their types; a classifier comes after the model."""
    return summary.get("classification") or summary.get("model") or {}


def type_colors(outcomes: Iterable[SlideOutcome]) -> dict[str, Rgb]:
    """Return the colours of all types of what typed the nuclei, in their order; no type only where counted."""
    colors: dict[str, Rgb] = {}
    counted: dict[str, None] = {}
    for outcome in outcomes:
        model = _typed_by(outcome.summary or {})
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
    mpp, mpp_source, tiles, seconds, types_learnt_on, folder`` and those of the list of slides. One of these that has
    the name of another column is called ``list_<name>``. ``status`` is ``done`` or ``failed``; what is not known is
    empty; ``folder`` is relative to that of the table.

    Args:
        outcomes: One per row, in order.
        path: Replaced if it exists.

    Raises:
        OutputError: If it cannot be written.
    """
    types = list(type_colors(outcomes))
    ours = [*BEFORE_TYPES, *(f"nuclei_{name}" for name in types), *AFTER_TYPES]
    extra = _extra_columns(outcomes, taken=ours)
    rows = [
        dict(zip(ours, _values(outcome, types, Path(path).parent), strict=True))
        | {heading: outcome.extra.get(name, "") for name, heading in extra.items()}
        for outcome in outcomes
    ]
    write_csv(path, rows, columns=[*ours, *extra.values()])


def read_summary(path: str | Path) -> list[SlideOutcome]:
    """Return what came of the slides of a table that :func:`write_summary` has written.

    Args:
        path: The table. What its folders still hold in ``summary.json`` counts; of slides without, the row alone.

    Returns:
        One per row, in order; none if there is no table.

    Raises:
        DataError: If it is no such table.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return [_outcome_of(row, Path(path).parent) for row in read_csv(file)[1]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        message = f"{str(path)!r} is no table of a cohort ({error!r}); remove it or name another folder"
        raise DataError(message) from error


def with_earlier(outcomes: Sequence[SlideOutcome], earlier: Iterable[SlideOutcome]) -> list[SlideOutcome]:
    """Return the earlier outcomes of other slides, then these."""
    paths = {outcome.path.resolve() for outcome in outcomes}
    # a path may have been given as seen from another folder; then the folder of results tells
    folders = {(outcome.out.resolve(), outcome.path.name) for outcome in outcomes}
    kept = [e for e in earlier if e.path.resolve() not in paths and (e.out.resolve(), e.path.name) not in folders]
    return [*kept, *outcomes]


def relative(target: Path, folder: Path) -> str:
    """Return the path of a file as seen from a folder, with slashes; the full path where there is none."""
    try:
        return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive
        return target.resolve().as_posix()


class CohortFiles(Reporter):
    """Keeps ``summary.csv`` up to date while a cohort runs, so that nothing is lost when it is stopped.

    Rows of earlier calls stay, each until its slide is finished anew. A table that cannot be read as one is kept
    beside the new one under another name. A table that cannot be written, such as one that is open in another program,
    does not stop the cohort: it is tried again after the next slide.

    Args:
        jobs: The slides; their order is that of the rows.
        path: The table.
        say: Takes what the user should know, a sentence at a time; None tells nobody.
    """

    def __init__(self, jobs: Sequence[SlideJob], path: str | Path, *, say: Callable[[str], None] | None = None) -> None:
        self.path = Path(path)
        self._say = say
        self._order = [job.out for job in jobs]
        self._finished: dict[Path, SlideOutcome] = {}
        self._earlier: list[SlideOutcome] = []
        try:
            self._earlier = read_summary(self.path)
        except DataError as error:
            aside = keep_aside(self.path)
            reason = f"{str(self.path)!r} is damaged ({error.__cause__!r})"
            self.warned(f"{reason} and kept as {aside.name!r}; a new one is begun")
        except OSError:
            pass  # not a file that can be read; writing says what to do

    @property
    def outcomes(self) -> list[SlideOutcome]:
        """Return the outcomes so far: of slides of earlier calls, then in the order of the jobs."""
        return with_earlier([self._finished[out] for out in self._order if out in self._finished], self._earlier)

    def warned(self, text: str) -> None:
        """Pass on a sentence."""
        if self._say is not None:
            self._say(text)

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


def _outcome_of(row: Mapping[str, str], folder: Path) -> SlideOutcome:
    """Return what a row says of a slide.

    Raises:
        ValueError: If a cell is missing or one too many, or a number is none.
        KeyError: If a column is missing.
    """
    if None in row or None in row.values():
        raise ValueError(f"the row of {row['slide']!r} has another number of cells than the heading")
    columns = list(row)
    types = columns[len(BEFORE_TYPES) : columns.index(AFTER_TYPES[0])]
    ours = {*BEFORE_TYPES, *types, *AFTER_TYPES}
    counts = {name.removeprefix("nuclei_"): int(row[name]) for name in types if row[name]}

    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    mpp, seconds = number("mpp"), number("seconds") or 0.0
    stated = {
        "model": {
            "classes": ["Background", *(name for name in counts if name != NO_TYPE)],
            "types_learnt_on": row.get("types_learnt_on") or None,
        },
        "nuclei": {
            "total": int(row["nuclei"]) if row["nuclei"] else None,
            "by_type": counts,
            "density_per_mm2": number("nuclei_per_mm2"),
        },
        "tissue": {"area_mm2": number("tissue_mm2")},
        "resolution": {"mpp": None if mpp is None else [mpp], "source": row["mpp_source"] or None},
        "tiles": {"done": int(row["tiles"]) if row["tiles"] else None},
        "seconds": {"total": seconds},
    }
    out = folder / row["folder"]
    summary = dict(_finished_before(out)) or stated
    if row["status"] not in ("done", "failed"):
        raise ValueError(f"status {row['status']!r} is neither 'done' nor 'failed'")
    error = row["error"] or "failed" if row["status"] == "failed" else None
    extra = {_stated_name(name, ours): value for name, value in row.items() if name not in ours}
    return SlideOutcome(as_path(row["slide"]), out, None if error else summary, error, seconds, "", extra)


def _stated_name(heading: str, ours: set[str]) -> str:
    """Return the name that a column of a list had before it was told apart from one of ours."""
    name = heading.removeprefix("list_")
    return name if name in ours else heading


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


def _values(outcome: SlideOutcome, types: Sequence[str], folder: Path) -> list[Cell]:
    numbers = numbers_of(outcome)
    known = numbers.nuclei is not None
    values = [
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
        numbers.types_learnt_on,
        relative(outcome.out, folder),
    ]
    return [f"{value:.6g}" if isinstance(value, float) else value for value in values]
