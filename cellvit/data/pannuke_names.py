"""Names of types and tissues of a folder in PanNuke's layout."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellvit.classes import PANNUKE, PANNUKE_TISSUES
from cellvit.data.patches import ROW_COLUMNS
from cellvit.errors import DataError

NAMES_FILE = "names.json"
_MAX_TYPES = 255


@dataclass(frozen=True)
class SourceNames:
    """What a folder in PanNuke's layout holds.

    Attributes:
        name: Name of the data set.
        mpp: Resolution in microns per pixel.
        class_names: Names of the nucleus types, background first; the masks have one channel per type and one more.
        tissue_names: Names of the tissues.
        about: Free facts: licence, source.
    """

    name: str
    mpp: float
    class_names: tuple[str, ...]
    tissue_names: tuple[str, ...]
    about: dict[str, Any]


PANNUKE_NAMES = SourceNames(
    "pannuke",
    0.25,
    PANNUKE.names,
    PANNUKE_TISSUES,
    {"licence": "CC BY-NC-SA 4.0", "cite": "Gamper et al., PanNuke, ECDP 2019, DOI 10.1007/978-3-030-23937-4_2"},
)


def read_names(root: Path) -> SourceNames:
    """Return the names in ``names.json``, or PanNuke's where there is no such file.

    Raises:
        DataError: If the file is broken or its names cannot be used.
    """
    path = root / NAMES_FILE
    if not path.is_file():
        return PANNUKE_NAMES
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        names = SourceNames(
            name=str(stored["name"]),
            mpp=float(stored["mpp"]),
            class_names=tuple(map(str, stored["class_names"])),
            tissue_names=tuple(map(str, stored["tissue_names"])),
            about=dict(stored.get("about", {})),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' cannot be read ({error!r}); it needs name, mpp, class_names and tissue_names"
        ) from error
    columns = [*ROW_COLUMNS, *names.class_names]
    unique = len(set(columns)) == len(columns) and len(set(names.tissue_names)) == len(names.tissue_names)
    if not unique or not names.tissue_names or not 2 <= len(names.class_names) <= _MAX_TYPES:
        raise DataError(
            f"'{path}' names the classes {names.class_names} and the tissues {names.tissue_names}; give each once, "
            f"background first, at least one of each and none of {', '.join(ROW_COLUMNS)}"
        )
    if not 0 < names.mpp < float("inf"):
        raise DataError(f"'{path}' says mpp {names.mpp}; give microns per pixel above 0")
    return names
