"""Lists of slides: a CSV file with one slide per line, and the jobs that are made of it."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.inference.cohort.job import SlideJob
from cellvit.io.paths import expand_path
from cellvit.io.remote import RemotePath, as_path, is_address
from cellvit.slide.naming import output_names

__all__ = ["CohortRow", "SlideJob", "cohort_jobs", "read_cohort"]

SUMMARY_NAME = "summary.csv"
REPORT_NAME = "report.html"

COLUMNS = {
    "path": ("path", "slide"),
    "mpp": ("mpp", "wsi_mpp"),
    "magnification": ("magnification", "wsi_magnification"),
    "roi": ("roi",),
    "scene": ("scene",),
}
"""Columns that mean something here, and the names under which they are found; the first that is there counts."""

SHOWN_FAULTS = 10
"""More faults of a list than this are counted, not shown."""


@dataclass(frozen=True)
class CohortRow:
    """One line of a list of slides.

    Attributes:
        path: The slide.
        settings: Those of ``mpp``, ``magnification``, ``roi`` and ``scene`` that the line states.
        extra: The other columns, as text.
        line: Line of the file, the first is 1.
    """

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    line: int = 0


def read_cohort(csv_path: str | Path) -> list[CohortRow]:
    """Return the slides of a list.

    The file is CSV with a line of column names. Columns are separated by commas, semicolons or tabs, whichever gives
    more columns. ``path`` (or ``slide``) is the slide, absolute or relative to the folder of the list, or an address;
    optional are ``mpp`` (microns per pixel of level 0), ``magnification``, ``roi`` (a GeoJSON file, relative to the
    list) and ``scene`` (number or name of the image of a TIFF that holds several). An empty value is one that is not
    given. Other columns are kept.

    Args:
        csv_path: The list, in UTF-8 with or without a byte order mark.

    Returns:
        One row per slide, in the order of the list.

    Raises:
        DataError: If the file is missing or no such list, or values are wrong: with line and column, all at once.
    """
    source = Path(csv_path)
    lines = _lines(source)
    _, header = next(lines, (0, []))
    keys = _keys(source, header)
    rows, faults = [], []
    seen: dict[Path, int] = {}
    for line, fields in lines:
        try:
            row = _row(source.parent, keys, fields, line)
            first = seen.setdefault(row.path.resolve(), line)
            if first != line:
                raise DataError(f"column 'path': slide '{row.path}' stands in line {first} already; remove one of them")
            rows.append(row)
        except DataError as error:
            faults.append(f"line {line}, {error}")
    if faults:
        more = len(faults) - SHOWN_FAULTS
        shown = [*faults[:SHOWN_FAULTS], *([f"and {more} more"] if more > 0 else [])]
        raise DataError(f"list '{source}': " + "; ".join(shown))
    if not rows:
        raise DataError(f"list '{source}' names no slides; write one per line below the line of column names")
    return rows


def cohort_jobs(rows: Sequence[CohortRow], out: str | Path, **settings: Any) -> list[SlideJob]:
    """Return one job per slide, each with a folder of its own.

    Args:
        rows: The slides.
        out: Folder of the cohort; that of a slide lies in it and has the name of its file, see
            :func:`cellvit.slide.naming.output_names`.
        **settings: Keyword arguments of the task for all slides. What a row states comes first; a resolution that it
            states, in either form, replaces that of ``settings`` in both.
    """
    root = Path(out)
    names = output_names([row.path for row in rows], root, suffixes=[""])
    jobs = []
    for row in rows:
        stated = {"mpp", "magnification"} & set(row.settings)
        common = {k: v for k, v in settings.items() if not (stated and k in ("mpp", "magnification"))}
        name = names[row.path]
        if name.casefold() in (SUMMARY_NAME, REPORT_NAME):  # those of the cohort lie in the same folder
            name += "_slide"
        jobs.append(SlideJob(row.path, root / name, {**common, **row.settings}, row.extra))
    return jobs


def _lines(source: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line and the fields of every line that is not empty."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"list '{source}' is no UTF-8 text; save it as 'CSV UTF-8' ({error.reason})") from error
    except OSError as error:
        raise DataError(f"list '{source}' cannot be read: {error.strerror or error}; check the path") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    # csv.Sniffer guesses from the values, and takes a letter for the delimiter of a list with one column
    delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for fields in reader:
            values = [value.strip() for value in fields]
            if any(values):
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"list '{source}', line {line}: {error}; check the quotes") from error


def _keys(source: Path, header: list[str]) -> list[str]:
    """Return the key of every column: one of :data:`COLUMNS`, or its own name."""
    if not header:
        raise DataError(f"list '{source}' is empty; write a line of column names with 'path', then one slide per line")
    folded = [name.casefold() for name in header]
    twice = sorted({name for name in header if name and folded.count(name.casefold()) > 1})
    if twice:
        raise DataError(f"list '{source}' has two columns {twice[0]!r}; rename one")
    keys = list(header)
    for key, names in COLUMNS.items():
        found = next((name for name in names if name in folded), None)
        if found is not None:
            keys[folded.index(found)] = key
    if "path" not in keys:
        raise DataError(f"list '{source}' has the columns {', '.join(header)}; name the one with the slides 'path'")
    return keys


def _row(folder: Path, keys: list[str], fields: list[str], line: int) -> CohortRow:
    if len(fields) > len(keys) and any(fields[len(keys) :]):
        raise DataError(
            f"column {len(keys) + 1}: {len(fields)} values for {len(keys)} columns; put quotes around a value that "
            "holds the separator"
        )
    filled = [*fields, *[""] * len(keys)][: len(keys)]
    for number, (key, value) in enumerate(zip(keys, filled, strict=True), start=1):
        if value and not key:
            raise DataError(f"column {number}: {value!r} stands below no column name; name the column")
    values = dict(zip(keys, filled, strict=True))
    settings: dict[str, Any] = {key: _number(key, values[key]) for key in ("mpp", "magnification") if values.get(key)}
    if values.get("roi"):
        settings["roi"] = _existing(folder, "roi", values["roi"])
    if values.get("scene"):
        settings["scene"] = values["scene"]
    extra = {key: value for key, value in values.items() if key and key not in COLUMNS}
    return CohortRow(_existing(folder, "path", values["path"]), settings, extra, line)


def _number(column: str, text: str) -> float:
    """Return a number greater than 0; a decimal comma and ``40x`` are understood."""
    plain = text.replace(",", ".") if "." not in text else text
    plain = plain.rstrip("xX") if column == "magnification" else plain
    try:
        value = float(plain)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        example = {"mpp": "0.25", "magnification": "40"}[column]
        raise DataError(f"column {column!r}: {text!r} is no number greater than 0; write {example}, or leave it empty")
    return value


def _existing(folder: Path, column: str, text: str) -> Path:
    if not text:
        raise DataError(f"column {column!r}: no slide is named; write its path, or remove the line")
    try:
        path = as_path(text) if is_address(text) else folder / expand_path(text)
    except (ConfigError, ImageError) as error:
        raise DataError(f"column {column!r}: {error}") from error
    if isinstance(path, RemotePath):
        return path  # one that does not answer must not keep the others from being done
    if not path.exists():
        raise DataError(f"column {column!r}: '{path}' does not exist; paths are relative to the folder of the list")
    return path
