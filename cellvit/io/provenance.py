"""What something was made from: facts kept beside a result, and what differs when it is asked for again."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cellvit.errors import OutputError
from cellvit.io.format import write_json
from cellvit.io.remote import RemotePath

_TEXT, _LIST = 40, 200  # longest values that are shown whole


MPP = "base_mpp"
"""Name of the resolution of the coordinates in metadata of files of nuclei, in microns per pixel."""


def with_mpp(metadata: Mapping[str, Any] | None, mpp: float | None) -> dict[str, Any]:
    """Return metadata of a file of nuclei with their resolution, where they do not state one and it is known."""
    facts = dict(metadata or {})
    return facts if mpp is None else {**facts, MPP: facts.get(MPP, mpp)}


def mpp_of(metadata: Any) -> float | None:
    """Return the resolution that metadata of a file of nuclei state, or None."""
    value = metadata.get(MPP) if isinstance(metadata, Mapping) else None
    return float(value) if isinstance(value, int | float) and 0 < value < float("inf") else None


def file_state(path: Path) -> dict[str, int]:
    """Return size and time of a file, which change when it is replaced.

    Args:
        path: A file that exists.
    """
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def size_of(path: Path) -> int | None:
    """Return the bytes of a file, or of all files in a folder; None for a folder at an address.

    Args:
        path: What exists.
    """
    if isinstance(path, RemotePath):
        return None if path.is_dir() else path.facts().bytes
    return sum(item.stat().st_size for item in files_in(path))


def content_of(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file; those of a folder cover the names and the bytes of all files in it.

    Args:
        path: What exists.
    """
    return {"bytes": size_of(path), "sha256": digest_of(path, sha256)}


def digest_of(path: Path, of_file: Callable[[Path], str]) -> str:
    """Return the digest of a file; that of a folder covers the names and the digests of all files in it.

    Args:
        path: What exists.
        of_file: Returns the digest of a file.
    """
    if not path.is_dir():
        return of_file(path)
    names = [f"{item.relative_to(path).as_posix()}\0{of_file(item)}\n" for item in files_in(path)]
    return hashlib.sha256("".join(names).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line per value that differs between two nested mappings of plain data.

    Args:
        before: Facts of what is there.
        now: Facts of what is asked for; None stands for a fact that is missing.

    Example:
        >>> differences({"mpp": 0.5, "tile": {"size": 1024}}, {"mpp": 0.5, "tile": {"size": 512}})
        ['tile size was 1024, is 512']
    """
    before, now = (json.loads(json.dumps(facts)) for facts in (before, now))  # tuples become lists, as in files
    return _differences(before, now, "")


def read_record(path: Path, *, advice: str) -> dict[str, Any] | None:
    """Return the facts that a file holds, or None if there is no such file.

    Args:
        path: A JSON file.
        advice: What to do if it is damaged, for the message.

    Raises:
        OutputError: If it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"{str(path)!r} is damaged ({error}); {advice}") from error


def write_record(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as indented JSON that appears when complete.

    Args:
        path: The file.
        facts: Plain data.

    Raises:
        OutputError: If it cannot be written.
    """
    write_json(path, facts)


def files_in(path: Path) -> list[Path]:
    """Return all files in a folder and in those within, by name; of a file, the file.

    Args:
        path: A local file or folder.
    """
    return sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    found: list[str] = []
    for name in sorted(set(before) | set(now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{name} ")
        elif old != new:
            found.append(f"{prefix}{name} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    if isinstance(value, list):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= _LIST else f"{text[: _LIST - 20]}…"
    text = str(value)
    return text if len(text) <= _TEXT else f"{text[:12]}…"
