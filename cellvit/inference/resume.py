"""The working folder of one slide: who works in it, for what, and which parts of the slide are finished.

A *part* is a run of tiles in reading order. Its nuclei are one file that is either whole or not there, so a process
may be killed at any moment and what it had finished is still good.
"""

import os
import shutil
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
from cellvit.io.atomic import TEMPORARY, atomic_path, make_folder
from cellvit.io.provenance import differences, read_record, write_record
from cellvit.types import Nuclei

WORK = ".work"
TILES_PER_CHUNK = 16
"""Tiles of a part. It is the same for every run: the batches of a part must not depend on where a run was stopped."""

_VERSION = 1
_JOURNAL = "journal.json"
_ANEW = "pass overwrite=True to start anew"


class TileChunk(NamedTuple):
    """The nuclei of a part: the tile of each ``(N,)``, ascending; themselves in pixels of their tiles; unread tiles."""

    tile: NDArray[np.int64]
    nuclei: Nuclei
    unreadable: list[int]


class ResumeFolder:
    """The working folder inside the result folder of one slide. Use it as a context: it is locked inside.

    Args:
        out: The result folder; it is made if missing.

    Raises:
        OutputError: On entering, if another process works there or the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / WORK
        self._out = out
        self._lock = FileLock(out / ".lock")

    def __enter__(self) -> "ResumeFolder":
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise OutputError(
                f"{str(self._out)!r} is being written by {self._owner()}; wait for it, or choose another out=FOLDER"
            ) from error
        except (OSError, NotImplementedError) as error:  # some network disks have no locks
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"cannot write into {str(self._out)!r} ({reason}); choose another out=FOLDER") from error
        self._sign()
        self._sweep()
        return self

    def __exit__(self, *stop: object) -> None:
        with suppress(OSError):
            (self._out / ".owner").unlink()
        self._lock.release()  # the file stays: removing it would let two others each lock a file of that name

    @property
    def begun(self) -> bool:
        """Tell whether an earlier run has left unfinished work."""
        return (self.folder / _JOURNAL).exists()

    def open(self, fingerprints: Mapping[str, Any], parts: int) -> None:
        """Start or go on.

        Args:
            fingerprints: What the nuclei depend on, plain data in groups (slide, model, settings).
            parts: Number of parts of the slide.

        Raises:
            OutputError: If the folder was begun for something else; the message says what differs.
        """
        facts = {"version": _VERSION, "parts": parts, "fingerprints": dict(fingerprints)}
        path = self.folder / _JOURNAL
        begun = read_record(path, advice=_ANEW)
        if begun is not None:
            refuse_difference(begun, facts, self._out)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        make_folder(self.folder)
        write_record(path, facts)

    def discard(self) -> None:
        """Remove the parts and the journal."""
        # The journal last: parts without one are never taken for finished work.
        for path in sorted(self.folder.glob("part-*")):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

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

    def write_part(self, number: int, found: Sequence[tuple[int, Nuclei]], *, unreadable: Sequence[int] = ()) -> None:
        """Write the nuclei of the tiles of a part, durably.

        Args:
            number: Number of the part.
            found: For each tile its number and its nuclei in pixels of the tile; at least one.
            unreadable: Numbers of the tiles whose pixels could not be read.

        Raises:
            OutputError: If it cannot be written, such as on a full disk.
        """
        nuclei = Nuclei.concatenate([nuclei for _, nuclei in found])
        table = to_arrow(nuclei, metadata={"unreadable": list(unreadable)})
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
        return TileChunk(table["tile"].to_numpy(), from_arrow(table), read_facts(table)["metadata"]["unreadable"])

    def _sign(self) -> None:
        with suppress(OSError):  # for the message of a second process only
            (self._out / ".owner").write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def _sweep(self) -> None:
        """Remove unfinished files of a process that was killed; whoever holds the lock has none."""
        for path in [*self._out.glob(f"{TEMPORARY}*"), *self.folder.glob(f"{TEMPORARY}*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _owner(self) -> str:
        try:
            return (self._out / ".owner").read_text(encoding="utf-8") or "another process"
        except OSError:
            return "another process"


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
    return read_record(out / "summary.json", advice=_ANEW)
