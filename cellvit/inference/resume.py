"""The working folder of one slide: who works in it, for what, and which parts of the slide are finished.

A *part* is a run of tiles in reading order. Its nuclei are one file that is either whole or not there, so a process
may be killed at any moment and what it had finished is still good.
"""

import hashlib
import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cellvit.errors import DataError, OutputError
from cellvit.io.arrow import from_arrow, read_facts, to_arrow
from cellvit.io.atomic import atomic_path, is_link, make_folder, remove_temporaries
from cellvit.io.provenance import differences, read_record, write_record
from cellvit.types import Nuclei

WORK = ".work"
SUMMARY = "summary.json"
TILES_PER_CHUNK = 16
"""Tiles of a part. It is the same for every run: the batches of a part must not depend on where a run was stopped."""

_VERSION = 1
_JOURNAL = "journal.json"
_DIGEST = "sha256"
_PART = re.compile(r"part-(\d{6})\.arrow")
_OWNER = re.compile(r"process \d+ on .*")
_ANEW = "pass overwrite=True to start anew"


class TileChunk(NamedTuple):
    """What a part holds.

    Attributes:
        tile: ``(N,)`` tile of each nucleus, ascending.
        nuclei: The nuclei, in pixels of their tiles.
        unreadable: Numbers of the tiles whose pixels could not be read.
        seconds: What it took, by stage; empty if that is not known.
        made_on: Kind of the device, and version of torch; empty if that is not known.
    """

    tile: NDArray[np.int64]
    nuclei: Nuclei
    unreadable: list[int]
    seconds: dict[str, float]
    made_on: str


class ResumeFolder:
    """The working folder of one slide. Use it as a context: it is locked inside.

    What lies in it or in the result folder and is not ours stays as it is: links are refused, and a file is removed
    only if its whole name is one that this module gives and a journal says that the folder is ours.

    Args:
        out: The result folder; it is made if missing.
        work: Folder that holds a working folder for each slide, such as a fast disk; None is ``.work`` in ``out``.

    Attributes:
        folder: The working folder.
    """

    def __init__(self, out: Path, work: str | Path | None = None) -> None:
        self.folder = out / WORK if work is None else Path(work) / _name_of(out)
        self._out, self._elsewhere = out, work is not None
        self._lock = FileLock(out / ".lock")
        self._signed = False

    def __enter__(self) -> "ResumeFolder":
        """Lock the result folder.

        Raises:
            OutputError: If another process works there, the folder cannot be written, or links would lead out of it.
        """
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            self._refuse_others()
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise OutputError(
                f"{str(self._out)!r} is being written by {self._owner()}; wait for it, or choose another out=FOLDER"
            ) from error
        except OutputError:
            raise
        except (OSError, NotImplementedError) as error:  # some network disks have no locks
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"cannot write into {str(self._out)!r} ({reason}); choose another out=FOLDER") from error
        self._sign()
        self._sweep()
        return self

    def __exit__(self, *stop: object) -> None:
        if self._signed:
            with suppress(OSError):
                (self._out / ".owner").unlink()
        self._lock.release()  # the file stays: removing it would let two others each lock a file of that name

    @property
    def begun(self) -> bool:
        """Tell whether an earlier run has left unfinished work."""
        return not is_link(self.folder) and (self.folder / _JOURNAL).exists()

    @property
    def digest_path(self) -> Path:
        """Return the file for the digest of the slide."""
        return self.folder / _DIGEST

    def open(
        self,
        fingerprints: Mapping[str, Any],
        parts: int,
        *,
        batch_size: int | None = None,
        notes: Sequence[str] = (),
    ) -> Mapping[str, Any]:
        """Start or go on.

        Args:
            fingerprints: What the nuclei depend on, plain data in groups (slide, model, settings).
            parts: Number of parts of the slide.
            batch_size: What the caller asks for; None takes what the run was begun with, or 1.
            notes: What the user should know of a run that is begun.

        Returns:
            ``batch_size``, the number of tiles that go through the network together, and ``notes``.

        Raises:
            OutputError: If the folder was begun for something else; the message says what differs.
        """
        begun = self.journal()
        if begun is not None:
            refuse_difference(begun, {"fingerprints": fingerprints}, self._out)
            before = begun.get("batch_size") or batch_size or 1  # version 0.1.0 did not note it
            if batch_size not in (None, before):
                raise OutputError(
                    f"{str(self._out)!r} was begun with batch_size {before}, is {batch_size}, and the last digits "
                    f"depend on it; leave it out to go on with {before}, {_ANEW}, or choose another out=FOLDER"
                )
            return {"batch_size": before, "notes": begun.get("notes", [])}
        if self.folder.exists() and any(_PART.fullmatch(path.name) for path in self.folder.iterdir()):
            raise OutputError(
                f"{str(self.folder)!r} holds parts of a slide but no {_JOURNAL}, which says of which; move them away"
            )
        if self._elsewhere and ResumeFolder(self._out).begun:
            raise OutputError(
                f"{str(self._out)!r} was begun without work={str(self.folder.parent)!r}; leave it out to go on, or "
                f"{_ANEW}"
            )
        make_folder(self.folder)
        run = {"batch_size": batch_size or 1, "notes": list(notes)}
        facts = {"version": _VERSION, "parts": parts, "fingerprints": dict(fingerprints), **run}
        write_record(self.folder / _JOURNAL, facts)
        return run

    def discard(self) -> None:
        """Remove the parts and the journal that says they are ours; then the folder, if nothing else is in it.

        Raises:
            OutputError: If the journal is damaged.
        """
        begun = self.journal() if self.begun else None
        if begun is None:
            return
        for path in self.folder.iterdir():
            number = _PART.fullmatch(path.name)
            if number and int(number[1]) < int(begun["parts"]):
                path.unlink(missing_ok=True)
        remove_temporaries(self.folder)
        self.digest_path.unlink(missing_ok=True)
        (self.folder / _JOURNAL).unlink()  # last: parts without one are never taken for finished work
        with suppress(OSError):
            self.folder.rmdir()

    def part_path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:06d}.arrow"

    def finished(self, number: int) -> bool:
        """Tell whether a part is finished and readable; one that a failing disk has damaged is removed."""
        path = self.part_path(number)
        if not path.exists():
            return False
        try:
            self.read_part(number)
        except (OutputError, DataError):
            path.unlink(missing_ok=True)
            return False
        return True

    def write_part(
        self,
        number: int,
        found: Sequence[tuple[int, Nuclei]],
        *,
        unreadable: Sequence[int] = (),
        seconds: Mapping[str, float] | None = None,
        made_on: str = "",
    ) -> None:
        """Write the nuclei of the tiles of a part, durably.

        Args:
            number: Number of the part.
            found: For each tile its number and its nuclei in pixels of the tile; at least one.
            unreadable: Numbers of the tiles whose pixels could not be read.
            seconds: What it took, by stage.
            made_on: Kind of the device, and version of torch.

        Raises:
            OutputError: If it cannot be written, such as on a full disk.
        """
        nuclei = Nuclei.concatenate([nuclei for _, nuclei in found])
        facts = {"unreadable": list(unreadable), "seconds": dict(seconds or {}), "made_on": made_on}
        table = to_arrow(nuclei, metadata=facts)
        tiles = np.repeat([index for index, _ in found], [len(nuclei) for _, nuclei in found]).astype(np.int64)
        table = table.append_column("tile", pa.array(tiles))
        packed = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            atomic_path(self.part_path(number)) as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, table.schema, options=packed) as writer,
        ):
            writer.write_table(table)

    def read_part(self, number: int) -> TileChunk:
        """Return a part.

        Raises:
            OutputError: If the file is damaged.
        """
        path = self.part_path(number)
        try:
            with pa.OSFile(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{str(path)!r} is damaged ({error}); remove it and run the command again") from error
        facts = {"seconds": {}, "made_on": "", **read_facts(table)["metadata"]}  # version 0.1.0 knew the tiles only
        made = facts["unreadable"], facts["seconds"], facts["made_on"]
        return TileChunk(table["tile"].to_numpy(), from_arrow(table), *made)

    def _refuse_others(self) -> None:
        """Raise where names of ours are links, or files of others."""
        lock = self._out / ".lock"
        if is_link(lock) or (lock.exists() and (not lock.is_file() or lock.stat().st_size)):
            raise OutputError(
                f"{str(lock)!r} is no lock of cellvit, which is an empty file; remove it, or choose another out=FOLDER"
            )
        if is_link(self.folder):
            advice = "" if self._elsewhere else ", and name the folder with work=FOLDER"
            raise OutputError(f"{str(self.folder)!r} is a link to what may be of others; remove the link{advice}")
        inside = self.folder.iterdir() if self.folder.is_dir() else ()
        if link := next((path for path in inside if is_link(path)), None):
            raise OutputError(f"{str(link)!r} is a link to what may be of others; remove the link")

    def journal(self) -> dict[str, Any] | None:
        """Return what the journal says, or None if there is none.

        Raises:
            OutputError: If it is damaged, or not ours.
        """
        advice = f"look into the folder {str(self.folder)!r} and remove it to start anew"
        begun = read_record(self.folder / _JOURNAL, advice=advice)
        if begun is not None and not (isinstance(begun.get("fingerprints"), dict) and "parts" in begun):
            raise OutputError(f"{str(self.folder / _JOURNAL)!r} is no journal of cellvit; {advice}")
        return begun

    def _sign(self) -> None:
        """Say who works here, for the message of a second process only."""
        path = self._out / ".owner"
        with suppress(OSError, UnicodeDecodeError):
            if not is_link(path) and path.exists() and _OWNER.fullmatch(path.read_text(encoding="utf-8")):
                path.unlink()  # of a process that was killed
            # neither follows a link nor opens what exists
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "w", encoding="utf-8") as file:
                self._signed = True
                file.write(f"process {os.getpid()} on {socket.gethostname()}")

    def _sweep(self) -> None:
        """Remove unfinished files of a process that was killed; whoever holds the lock has none."""
        is_ours = False
        with suppress(OutputError):  # whoever needs the journal is told
            is_ours = self.begun and self.journal() is not None
        if is_ours:
            remove_temporaries(self.folder)
        if is_ours or (self._out / SUMMARY).exists():
            remove_temporaries(self._out)

    def _owner(self) -> str:
        path = self._out / ".owner"
        with suppress(OSError, UnicodeDecodeError):
            text = "" if is_link(path) else path.read_text(encoding="utf-8")
            if _OWNER.fullmatch(text):
                return text
        return "another process"


def _name_of(out: Path) -> str:
    """Return a name for the working folder of a result folder that no other result folder has."""
    return f"{out.name}-{hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:12]}"


def refuse_difference(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Raise OutputError if results were made from something else than what is asked for now.

    Args:
        before: With ``fingerprints`` of the results.
        now: With ``fingerprints`` of this call.
        out: The result folder, for the message.
    """
    found = differences(before.get("fingerprints", {}), now["fingerprints"])
    if found:
        raise OutputError(
            f"{str(out)!r} holds results of another run: {'; '.join(found)}; "
            f"use the same again, {_ANEW}, or choose another out=FOLDER"
        )


def read_summary(out: Path) -> Mapping[str, Any] | None:
    """Return the summary of a finished slide, or None if there is none.

    Raises:
        OutputError: If it is damaged.
    """
    return read_record(out / SUMMARY, advice=_ANEW)
