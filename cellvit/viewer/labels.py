"""Labels that are given in the viewer: appended to the table beside the nuclei at once, and taken back step by step."""

import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cellvit.classes import Rgb, hex_color
from cellvit.errors import CellViTError, ConfigError, DataError, OutputError
from cellvit.io.arrow import matrix_of
from cellvit.io.atomic import make_folder
from cellvit.io.format import visible
from cellvit.io.nuclei import stream_nuclei
from cellvit.io.provenance import content_of, file_state, read_record, write_record
from cellvit.labels.importing import user_name
from cellvit.labels.match import labels_path, with_present_nuclei
from cellvit.labels.table import WITHDRAWN, Labels, nuclei_digest, read_labels, write_labels

SOURCE = "cellvit view"
"""What the table says of labels that were given in the viewer, in place of a file."""

MAX_NAME = 100
"""Characters of the name of a class."""


class LabelConflictError(OutputError):
    """Labels cannot be changed now: another viewer or program works on them."""


class LabelSession:
    """The labels of one slide while it is open in a viewer.

    The first session locks the table; others see what it writes and cannot change it. Every change is on the disk
    before the call returns. A table that another program has written meanwhile is read again, and nothing is written.

    Args:
        table: The file of nuclei, as :func:`cellvit.io.parquet.write_parquet` writes it.
        who: Who gives labels; None is the name of the user.

    Attributes:
        path: The table of labels.
    """

    def __init__(self, table: Path, *, who: str | None = None) -> None:
        self.path = labels_path(table)
        self._note = ""
        self._places = _Places(table)
        self._who = user_name() if who is None else who
        self._mutex = threading.RLock()
        # any thread of the server may let go what another one has locked
        self._lock = FileLock(self.path.with_name(f".{self.path.stem}.lock"), thread_local=False)
        self._content: Any = ()  # of no file
        self._fault: str | None = None
        self._labels = self._current = Labels.empty()

    @property
    def table(self) -> Path:
        """The file of nuclei."""
        return self._places.path

    @property
    def reason(self) -> str | None:
        """Why labels cannot be changed; None if they can."""
        with self._mutex:
            self._refresh()
            if self._fault is not None:
                return self._fault
            try:
                if not self._lock.is_locked:
                    self._lock.acquire(blocking=False)
            except Timeout:
                return "another viewer has these labels open; close it there to label here"
            except (OSError, NotImplementedError) as error:
                return f"{str(self.path.parent)!r} cannot be written ({getattr(error, 'strerror', None) or error})"
            return None

    @property
    def note(self) -> str:
        """What to say of labels that were matched again, as the nuclei are others now; empty for nothing."""
        with self._mutex:
            self._refresh()
            return self._note

    @property
    def labels(self) -> Labels:
        """All labels, the history included."""
        with self._mutex:
            self._refresh()
            return self._labels

    @property
    def current(self) -> Labels:
        """What holds: one label per nucleus, in the order of the nuclei."""
        with self._mutex:
            self._refresh()
            return self._current

    @property
    def can_undo(self) -> bool:
        """Whether the last label of the table was given here, by the same person."""
        with self._mutex:
            self._refresh()
            return self._last_step() > 0

    def counts(self) -> dict[str, int]:
        """Return the number of labelled nuclei of every class."""
        names, counts = np.unique(self.current.class_name.astype(str), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def label_of(self, row: int) -> str | None:
        """Return the class that a nucleus was given, or None."""
        current = self.current
        at = int(np.searchsorted(current.nucleus, row))
        found = at < len(current) and current.nucleus[at] == row
        return str(current.class_name[at]) if found else None

    def give(self, rows: NDArray[np.int64], name: str | None) -> int:
        """Give nuclei a class, and return how many had another one or none.

        Args:
            rows: ``(K,)`` rows of nuclei.
            name: The class; None takes their labels back.

        Raises:
            DataError: If there is no such row, or the table of nuclei is damaged.
            LabelConflictError: If another viewer or program works on the labels.
            OutputError: If the table cannot be written; then it is as it was.
        """
        with self._mutex:
            self._prepare()
            given = WITHDRAWN if name is None else name
            rows = np.unique(rows)
            rows = rows[self._classes_of(rows) != given]
            if not len(rows):
                return 0
            x, y = self._places.of(rows).T
            labels = self._labels
            now = np.datetime64(datetime.now(UTC).replace(tzinfo=None), "ms")
            if len(labels):  # later than all others, also than those of a clock that is ahead: the last one counts
                now = max(now, labels.when.max().astype("datetime64[ms]") + np.timedelta64(1, "ms"))
            new = Labels.of(
                nucleus=rows,
                x=x,
                y=y,
                class_name=np.full(len(rows), given, object),
                who=self._who,
                when=now,
                source=SOURCE,
                matched_to=self._places.digest(),
            )
            self._write(Labels.concatenate([labels, new]))
            return len(rows)

    def undo(self) -> int:
        """Take back what was given last, also before the viewer was started anew, and return how many labels.

        Raises:
            LabelConflictError: As for :meth:`give`, or if there is nothing that was given here.
        """
        with self._mutex:
            self._prepare()
            count = self._last_step()
            if not count:
                raise LabelConflictError("there is nothing to undo: the last labels were not given in this viewer")
            self._write(self._labels[: len(self._labels) - count])
            return count

    def close(self) -> None:
        """Let another viewer change the labels."""
        with self._mutex:
            self._lock.release(force=True)

    def _prepare(self) -> None:
        """Raise where nothing may be written."""
        before = self._content
        if reason := self.reason:
            raise LabelConflictError(reason)
        if before not in ((), self._content):
            raise LabelConflictError(
                f"{self.path.name!r} was changed by another program; it was read again and nothing was written: look at"
                " it, and repeat"
            )

    def _refresh(self) -> None:
        """Read the table if its bytes are others than when it was read or written."""
        content = self._state()
        if content == self._content:
            return
        self._content, self._fault, self._note = content, None, ""
        found = Labels.empty()
        try:
            if content is not None:
                stream = stream_nuclei(self._places.path, embedding=False)
                found, self._note = with_present_nuclei(read_labels(self.path), stream, digest=self._places.digest())
        except CellViTError as error:
            self._fault = str(error)
        self._set(found)

    def _write(self, labels: Labels) -> None:
        write_labels(self.path, labels)
        self._content = self._state()
        self._set(labels)

    def _state(self) -> Any:
        content = _content(self.path)
        with suppress(CellViTError):  # what is wrong with the nuclei is told where they are read
            return content and (content, self._places.digest())
        return content

    def _set(self, labels: Labels) -> None:
        self._labels, self._current = labels, labels.current()

    def _classes_of(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """Return the class of nuclei ``(K,)``, empty where they have none."""
        current = self._current
        names = np.append(current.class_name, WITHDRAWN)  # for what is behind the last one
        at = np.searchsorted(current.nucleus, rows)
        has = np.append(current.nucleus, -1)[at] == rows
        return np.where(has, names[at], WITHDRAWN)

    def _last_step(self) -> int:
        """Return how many rows at the end of the table were given here at one time by this person."""
        labels = self._labels
        if not len(labels):
            return 0
        mine = (labels.source == SOURCE) & (labels.who == self._who) & (labels.when == labels.when[-1])
        others = np.flatnonzero(~mine)
        return len(labels) - (int(others[-1]) + 1 if len(others) else 0)


class _Places:
    """Where the nuclei of a table lie; read when they are asked for, as a million of them take 16 MB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest: tuple[Any, str] = (None, "")

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the centroids ``(K, 2)`` of some rows."""
        centroid = self._read()
        if wrong := [row for row in (rows.min(), rows.max()) if not 0 <= row < len(centroid)]:
            raise DataError(f"row {wrong[0]} of {len(centroid):,} nuclei; rows count from 0")
        return centroid[rows]

    def digest(self) -> str:
        """Return the digest of where all lie, of the file that is there now."""
        state = file_state(self.path) if self.path.is_file() else None
        if state is None or self._digest[0] != state:
            self._digest = state, nuclei_digest(self._read())
        return self._digest[1]

    def _read(self) -> NDArray[np.float64]:
        try:
            with pq.ParquetFile(self.path) as file:
                return matrix_of(file.read(columns=["centroid"])["centroid"], np.float64)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DataError(f"{str(self.path)!r} is no readable table of nuclei ({error}); put a copy back") from error


def _content(path: Path) -> Any:
    """Return what changes with the bytes of a file; None if there is none."""
    with suppress(FileNotFoundError):
        return content_of(path)
    return None


class LabelClasses:
    """The classes that labels may have, with their colours, in a file that all slides of a viewer share.

    Args:
        path: The JSON file; it is made when a class is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, Rgb]:
        """Return the colours of the classes by name, in the order in which they were added.

        Raises:
            DataError: If the file is damaged.
        """
        try:
            known = read_record(self.path, advice="remove it, and add the classes again") or {"classes": []}
            return {str(one["name"]): color_of(one["color"]) for one in known["classes"]}
        except (OutputError, ConfigError, KeyError, TypeError) as error:
            raise DataError(f"{str(self.path)!r} is no list of classes ({error}); remove it") from error

    def write(self, classes: dict[str, Rgb]) -> None:
        """Replace the classes.

        Raises:
            OutputError: If the file cannot be written.
        """
        make_folder(self.path.parent)
        write_record(self.path, {"classes": [{"name": name, "color": hex_color(rgb)} for name, rgb in classes.items()]})


def class_name(text: Any) -> str:
    """Return the name of a class without blanks around it.

    Raises:
        ConfigError: If it is no text, empty, too long, or holds control characters.
    """
    name = text.strip() if isinstance(text, str) else ""
    if not name or len(name) > MAX_NAME or visible(name) != name:
        raise ConfigError(f"class name {text!r:.200}; give 1 to {MAX_NAME} characters that can be seen")
    return name


def color_of(text: Any) -> Rgb:
    """Return the colour that a text such as ``"#c81e1e"`` means.

    Raises:
        ConfigError: If it is none.
    """
    try:
        if len(text) != 7 or text[0] != "#":
            raise ValueError
        red, green, blue = bytes.fromhex(text[1:])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"colour {text!r:.200}; give one as '#c81e1e'") from error
    return red, green, blue
