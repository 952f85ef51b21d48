"""What a result folder holds already of the run that is planned; nothing in it is touched."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvit.inference.assemble import TABLE
from cellvit.inference.prepare import PreparedSlide
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.settings import FORMATS
from cellvit.io.provenance import differences


@dataclass(frozen=True)
class ExistingRun:
    """A run that was begun, or finished, in a result folder.

    Attributes:
        folder: The result folder.
        finished: Whether it is finished.
        parts: Numbers of the parts that are done, ascending; all of a finished run.
        tiles: Tiles that are done.
        missing: Formats that a finished run lacks.
        differs: What differs from the run that is planned, which would be refused; empty if it would go on.
    """

    folder: Path
    finished: bool
    parts: tuple[int, ...]
    tiles: int
    missing: tuple[str, ...]
    differs: tuple[str, ...]


def existing_run(
    folder: Path,
    prepared: PreparedSlide,
    fingerprints: Mapping[str, Any],
    formats: Sequence[str],
    *,
    work: str | Path | None = None,
) -> ExistingRun | None:
    """Return what is done in a folder, or None if there is nothing.

    Args:
        folder: The result folder of a slide.
        prepared: The slide.
        fingerprints: What the planned run would be made from.
        formats: Formats that it would write.
        work: Folder for unfinished work that it would be given.
    """
    finished = (folder / "summary.json").exists() and (folder / TABLE).exists()
    chunks = ResumeFolder(folder, work)
    source = folder / "summary.json" if finished else chunks.folder / "journal.json"
    if not source.exists():
        return None
    differs = tuple(_differences(source, fingerprints))
    if differs:
        return ExistingRun(folder, finished, (), 0, (), differs)
    # `ResumeFolder.finished` removes damaged parts, which is not for a plan to do
    parts = [n for n in range(prepared.parts) if finished or chunks.part_path(n).exists()]
    tiles = sum(len(prepared.part(number)) for number in parts)
    missing = [name for name in formats if not (folder / FORMATS[name]).exists()] if finished else []
    return ExistingRun(folder, finished, tuple(parts), tiles, tuple(missing), ())


def _differences(source: Path, fingerprints: Mapping[str, Any]) -> list[str]:
    try:
        before = json.loads(source.read_text(encoding="utf-8"))["fingerprints"]
        return differences(before, fingerprints)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{source.name} is damaged ({type(error).__name__})"]
