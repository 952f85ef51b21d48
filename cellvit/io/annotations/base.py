"""Annotations as columns, the base class of their readers, and the registry: a new layout is one file with one class.

``ANNOTATIONS.register("name")``, or an entry point in the group ``cellvit.annotations``, makes ``cellvit label
import`` and ``cellvit prepare labels`` know a layout.
"""

import gzip
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from cellvit.errors import CellViTError, DataError
from cellvit.io.detections import cached_json
from cellvit.io.limits import MALFORMED, MAX_COORDINATE, brief
from cellvit.io.loaded import Note
from cellvit.plugins.registry import Registry

Unit = Literal["px", "um"]
_START = 65_536
_COUNTED = "places that are no numbers, or lie in no image, were left out"


@dataclass(frozen=True, eq=False)
class Annotations:
    """What a file marks; row ``i`` of every column is mark ``i``.

    Attributes:
        geometry: ``(N,)`` shapely geometries: a Point at a nucleus, a Polygon or MultiPolygon around one or many.
            Pixel ``i`` covers ``[i, i + 1)``.
        class_name: ``(N,)`` object, as the file has it; empty where it states none.
        found: ``(N,)`` bool, whether a program found it (a detection or a cell of QuPath) and no one drew it.
        unit: Of the coordinates: pixels of full resolution, or micrometres.
        notes: What of the file was not used, or taken for something that it does not say; sentences.
    """

    geometry: NDArray[np.object_]
    class_name: NDArray[np.object_]
    found: NDArray[np.bool_]
    unit: Unit = "px"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.geometry)

    @classmethod
    def of(
        cls,
        geometry: Sequence[Any] | NDArray[np.object_],
        class_name: Sequence[str | None] | NDArray[np.object_],
        *,
        found: Sequence[bool] | NDArray[np.bool_] | None = None,
        unit: Unit = "px",
        notes: Sequence[Note | str] = (),
    ) -> "Annotations":
        """Return annotations; those at places that are no numbers, or lie in no image, are left out and counted.

        Args:
            geometry: ``(N,)`` shapely geometries; areas that cross themselves are repaired.
            class_name: ``(N,)`` names; None or the empty name for none.
            found: ``(N,)``; None: people drew all.
            unit: Of the coordinates.
            notes: What of the file was not used.
        """
        shapes = np.array([*geometry, None], object)[:-1]  # else numpy may take a geometry for a list of its parts
        names = np.array([name or "" for name in class_name], object)
        programs = np.zeros(len(shapes), bool) if found is None else np.asarray(found, bool)
        bounds = shapely.bounds(shapes).reshape(-1, 4)
        good = (np.abs(bounds) <= MAX_COORDINATE).all(axis=1)  # NaN, also of an empty geometry, is not
        shapes = shapely.make_valid(shapes[good])
        lost = int((~good).sum())
        sentences = list(map(str, notes))
        sentences += [f"{lost:,} {_COUNTED}"] if lost else []
        return cls(shapes, names[good], programs[good], unit, tuple(sentences))

    def select(self, rows: NDArray[np.bool_]) -> "Annotations":
        """Return the annotations of a mask ``(N,)``."""
        return Annotations(self.geometry[rows], self.class_name[rows], self.found[rows], self.unit, self.notes)

    @property
    def is_point(self) -> NDArray[np.bool_]:
        """``(N,)``, which are points."""
        return np.asarray(shapely.get_type_id(self.geometry) == shapely.GeometryType.POINT)


@dataclass(frozen=True)
class AnnotationFile:
    """A file that is to be read; it is opened once, whoever asks.

    Attributes:
        path: The file.
        image: Name of the image that is meant, without suffix, where a file holds several.
        class_name: Class of what states none; empty: the reader decides, or it has none.
    """

    path: Path
    image: str = ""
    class_name: str = ""

    @cached_property
    def start(self) -> bytes:
        """The first bytes, those inside where it is compressed with gzip.

        Raises:
            DataError: If the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                start = file.read(_START)
            if start[:2] == b"\x1f\x8b":
                with gzip.open(self.path) as packed:
                    start = packed.read(_START)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return b""
        except OSError as error:
            message = f"annotations {str(self.path)!r} cannot be read ({error.strerror or error}); check the path"
            raise DataError(message) from error
        return start.removeprefix(b"\xef\xbb\xbf")

    @cached_property
    def json(self) -> Any:
        """The content as plain data; None if it is no JSON by its first letter.

        Raises:
            DataError: If it begins as JSON and is none.
        """
        return cached_json(self.path) if self.start.lstrip()[:1] in (b"{", b"[") else None


class AnnotationReader(ABC):
    """Reads a layout of annotations.

    Attributes:
        priority: The reader with the highest number is asked first whether a file is its own. Ours have less than 100.
    """

    priority: ClassVar[int] = 100

    @classmethod
    @abstractmethod
    def accepts(cls, file: AnnotationFile) -> bool:
        """Tell whether a file is of this layout."""

    @abstractmethod
    def read(self, file: AnnotationFile) -> Annotations:
        """Return the annotations of a file.

        Args:
            file: One that was accepted.

        Raises:
            DataError: If it is damaged.
        """


ANNOTATIONS: Registry[AnnotationReader] = Registry(
    "annotation",
    AnnotationReader,
    package="cellvit.io.annotations",
    group="cellvit.annotations",
    own={
        "geojson": "geojson",
        "csv": "tables",
        "napari": "tables",
        "labelme": "labelme",
        "imagej": "imagej",
        "coco": "coco",
        "nuclei": "nuclei",
    },
)


def read_annotations(path: str | Path, *, image: str = "", class_name: str = "") -> Annotations:
    """Read what a file marks; its content says what it is.

    Args:
        path: GeoJSON of QuPath or others, CSV with columns for x, y and class, CSV of napari's points or shapes, COCO,
            LabelMe, regions of ImageJ, or a file of typed nuclei that :func:`cellvit.io.detections.read_nuclei` reads.
        image: Name of the image that is meant, without suffix, where a file holds several.
        class_name: Class of what states none.

    Raises:
        ConfigError: If a package is needed that is not installed.
        DataError: If the file is damaged or of no known layout.
    """
    file = AnnotationFile(Path(path), image, class_name)
    classes = [entry.cls for entry in ANNOTATIONS.entries() if entry.cls is not None]
    for cls in sorted(classes, key=lambda cls: -cls.priority):
        if cls.accepts(file):
            try:
                return cls().read(file)
            except CellViTError:
                raise
            except MALFORMED as error:
                message = f"annotations {str(path)!r} cannot be read ({brief(error)}); export them again"
                raise DataError(message) from error
    raise DataError(
        f"annotations {str(path)!r} are of no kind that is read; give GeoJSON, CSV, COCO, LabelMe or ImageJ"
    )


def spelling_notes(names: Sequence[str]) -> list[str]:
    """Return a sentence for classes that differ in nothing but case and blanks.

    Args:
        names: Of classes.

    Example:
        >>> spelling_notes(["Tumor", "Stroma", "tumor "])
        ["'Tumor' and 'tumor ' differ in case or blanks only; to make them one class, pass class_map='tumor =Tumor'"]
    """
    alike: dict[str, dict[str, None]] = {}
    for name in names:
        alike.setdefault(re.sub(r"\s+", " ", name.strip()).casefold(), {})[name] = None
    notes = []
    for spellings in alike.values():
        first, *others = spellings
        notes += [
            f"{first!r} and {other!r} differ in case or blanks only; to make them one class, "
            f"pass class_map='{other}={first}'"
            for other in others
        ]
    return notes
