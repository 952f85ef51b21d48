"""Whether result folders still hold what was written: sizes and digests that ``summary.json`` notes, compared."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvit.errors import DataError, OutputError
from cellvit.inference.assemble import TABLE
from cellvit.inference.cohort.summary import read_summary as read_cohort
from cellvit.inference.resume import SUMMARY, ResumeFolder, read_summary
from cellvit.io.parquet import ParquetStream
from cellvit.io.provenance import content_of, size_of

OK, UNKNOWN, MISSING, DAMAGED = "ok", "unknown", "missing", "damaged"
STATUSES = (OK, UNKNOWN, MISSING, DAMAGED)
"""From good to bad; a folder has the worst of its files."""

COHORT_TABLE = "summary.csv"


@dataclass(frozen=True)
class FileCheck:
    """A file of a result folder.

    Attributes:
        name: Its name.
        status: One of :data:`STATUSES`; ``"unknown"`` if the summary, of an older version, notes no digest.
        text: What is wrong; empty if nothing is.
    """

    name: str
    status: str
    text: str = ""


@dataclass(frozen=True)
class FolderCheck:
    """A result folder.

    Attributes:
        folder: The folder.
        files: Its files; without a readable summary only that.
        size_bytes: Bytes that were read.
    """

    folder: Path
    files: tuple[FileCheck, ...]
    size_bytes: int = 0

    @property
    def status(self) -> str:
        """Return the worst status of the files."""
        return max((file.status for file in self.files), key=STATUSES.index)


def contents(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return size and digest of the files of a result folder, for its summary.

    Args:
        folder: The folder.
        names: Of files that exist.
    """
    return {name: content_of(folder / name) for name in names}


def check_sizes(folder: Path, summary: Mapping[str, Any]) -> list[FileCheck]:
    """Return for each file of a finished folder whether it is there and has the size it had; nothing is read.

    Args:
        folder: The result folder.
        summary: What its ``summary.json`` holds.
    """
    noted = summary.get("digests") or {}
    names = dict.fromkeys([*(summary.get("files") or {}).values(), *noted])
    return [_check_size(folder, str(name), noted.get(name) or {}) for name in names]


def types_differ(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Tell whether the table has types of another classifier than the summary notes: a change of types was stopped.

    Args:
        folder: The result folder.
        summary: What its ``summary.json`` holds.
    """
    try:
        stated = ParquetStream(folder / TABLE, embedding=False).metadata.get("classifier")
    except DataError:  # gone or damaged, which is another matter
        return False
    return bool(stated != (summary.get("classification") or {}).get("classifier"))


def verify_results(folder: str | Path) -> FolderCheck:
    """Compare the files of a result folder with the digests in its summary; every file is read.

    Args:
        folder: The result folder of a slide.
    """
    path = Path(folder)
    try:
        summary = read_summary(path)
    except OutputError as error:
        return FolderCheck(path, (FileCheck(SUMMARY, DAMAGED, str(error)),))
    if summary is None:
        begun = "begun and not finished" if ResumeFolder(path).begun else "no results"
        return FolderCheck(path, (FileCheck(SUMMARY, MISSING, begun),))
    checks, read = [], 0
    for check in check_sizes(path, summary):
        if check.status == OK:
            found = content_of(path / check.name)
            read += found["bytes"]
            if found["sha256"] != summary["digests"][check.name]["sha256"]:
                check = FileCheck(check.name, DAMAGED, "the bytes are others than were written")
        checks.append(check)
    return FolderCheck(path, tuple(checks) or (FileCheck(SUMMARY, DAMAGED, "it names no files"),), read)


def result_folders(folder: str | Path) -> list[Path]:
    """Return the result folders that a folder stands for: itself, or those of a cohort.

    Args:
        folder: A result folder, or one that holds some: those of its ``summary.csv`` and those with results.
    """
    root = Path(folder)
    if _has_results(root) or not root.is_dir():
        return [root]
    listed = [outcome.out for outcome in read_cohort(root / COHORT_TABLE)]
    found = [path for path in sorted(root.iterdir()) if path.is_dir() and _has_results(path)]
    by_place = {path.resolve(): path for path in [*listed, *found]}
    return list(by_place.values()) or [root]


def slide_path(summary: Mapping[str, Any], slides: str | Path | None = None) -> Path | None:
    """Return where the slide of results lies, or None if it is not there.

    Args:
        summary: What ``summary.json`` of the results holds.
        slides: The slide, or a folder that holds it, to look at first.
    """
    name = summary["slide"]["name"]
    given = [] if slides is None else [Path(slides) / name, Path(slides)]
    return next(
        (path for path in (*given, Path(summary["slide"]["path"])) if path.exists() and path.name == name), None
    )


def _has_results(folder: Path) -> bool:
    return (folder / SUMMARY).exists() or ResumeFolder(folder).begun


def _check_size(folder: Path, name: str, noted: Mapping[str, Any]) -> FileCheck:
    path = folder / name
    if Path(name).name != name:
        return FileCheck(name, DAMAGED, f"{SUMMARY} names a file outside of the folder")
    if not path.exists():
        return FileCheck(name, MISSING, "it is gone")
    if not {"bytes", "sha256"} <= set(noted):
        return FileCheck(name, UNKNOWN, f"{SUMMARY} of an older version notes no digest")
    size = size_of(path)
    if size != noted["bytes"]:
        return FileCheck(name, DAMAGED, f"it has {size:,} bytes, and {noted['bytes']:,} were written")
    return FileCheck(name, OK)
