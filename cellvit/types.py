"""Names of the maps and the closed result types that every package shares.

Coordinates of nuclei have one frame everywhere: ``(x, y)`` from the top left corner of the image or of level 0 of a
slide, pixel ``i`` covers ``[i, i + 1)``, so its centre is at ``i + 0.5``. Outlines follow the outer edges of pixels:
the area that one encloses is the number of pixels of its nucleus, holes filled. Files say so by :data:`PIXEL_CORNERS`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellvit.classes import NucleiClasses as NucleiClasses
from cellvit.classes import Rgb as Rgb
from cellvit.classes import type_label
from cellvit.conversions import Conversions
from cellvit.errors import DataError
from cellvit.geometry.polygons import polygon_area, ring_lengths, ring_offsets, select_rings

if TYPE_CHECKING:  # whoever reads a table of nuclei needs no torch, which takes a second to import
    from torch import Tensor

NUCLEI_BINARY_MAP = "nuclei_binary_map"
HV_MAP = "hv_map"
NUCLEI_TYPE_MAP = "nuclei_type_map"
TISSUE_TYPES = "tissue_types"
EMBEDDING_MAP = "embedding_map"
INSTANCE_MAP = "instance_map"
"""Ids of nuclei, ``(1, H, W)`` int32, where they are separated on the device; in place of the maps they come from."""
OBJECT_PROBABILITY = "object_probability"
RADIAL_DISTANCES = "radial_distances"

Fact = str | bool | int | float | None
"""A free fact about a model. Text stays text: a parser of YAML that may choose would split a licence at its colon."""

PIXEL_CORNERS = "pixel-corners"
"""Frame of coordinates: pixel ``i`` covers ``[i, i + 1)``. Files of this package state it as their ``frame``."""

UNKNOWN_TYPE = -1
"""Type of a nucleus that its data set does not state; left out of the type losses."""

Measurements = Mapping[str, NDArray[np.floating[Any]]]
"""Numbers ``(N,)`` by name; names end in their unit, such as ``area_um2``. NaN is a value that is not known."""

IntMap = NDArray[np.int32]
FloatMap = NDArray[np.float32]


class FeatureInfo(NamedTuple):
    """Channels and stride (input pixels per feature pixel) of one feature map."""

    channels: int
    stride: int


class EncoderOutput(NamedTuple):
    """What an encoder returns.

    Attributes:
        features: Feature maps ``(B, C_i, H / stride_i, W / stride_i)``, finest skip first, deepest last.
        pooled: One vector per image ``(B, P)`` for image-level heads.
    """

    features: "list[Tensor]"
    pooled: "Tensor"


class Batch(TypedDict):
    """One batch of training or evaluation data.

    ``image`` is ``(B, 3, H, W)`` float32 in [0, 1]; ``instance_map`` ``(B, H, W)`` int64, 0 is background;
    ``nuclei_binary_map`` ``(B, H, W)`` int64 in {0, 1}; ``hv_map`` ``(B, 2, H, W)`` float32 in [-1, 1];
    ``nuclei_type_map`` ``(B, H, W)`` int64, 0 is background and -1 a nucleus of unknown type; ``tissue_types``
    ``(B,)`` int64, -1 unknown; ``name`` one string per image; ``valid`` ``(B,)`` bool, False for images that only
    fill up the share of a process and are left out of metrics. Without ``valid`` all count.
    """

    image: "Tensor"
    instance_map: "Tensor"
    nuclei_binary_map: "Tensor"
    hv_map: "Tensor"
    nuclei_type_map: "Tensor"
    tissue_types: "Tensor"
    name: list[str]
    valid: NotRequired["Tensor"]


@dataclass(frozen=True, eq=False)
class Nucleus:
    """One nucleus: a row of :class:`Nuclei`. Its arrays are views into the columns.

    Attributes:
        label: Id in the instance map it came from.
        type: Class id; 0 only where no type is known.
        type_name: Name of the type; ``"No type"`` where none is known.
        type_prob: In [0, 1]; NaN where not known.
        centroid: ``(2,)`` float64, ``(x, y)`` centre of mass in pixels.
        bbox: ``(4,)`` float64, ``(xmin, ymin, xmax, ymax)``, half-open.
        contour: ``(K, 2)`` float64, ``(x, y)``, open ring along the outer edges of pixels.
        embedding: ``(D,)`` float32, or None.
        measurements: What was measured of it, by name.
    """

    label: int
    type: int
    type_name: str
    type_prob: float
    centroid: NDArray[np.float64]
    bbox: NDArray[np.float64]
    contour: NDArray[np.float64] = field(repr=False)
    embedding: NDArray[np.float32] | None = field(default=None, repr=False)
    measurements: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Nuclei(Conversions):
    """Nuclei of one image as columns; row ``i`` of every column is nucleus ``i``.

    Indexing chooses rows. An integer gives one :class:`Nucleus`; a slice, a mask ``(N,)``, indices ``(K,)`` or the
    name of a type give :class:`Nuclei` again. Iteration gives one :class:`Nucleus` after the other; for many of them
    work on the columns, which is faster. Two tables are equal only if they are the same object: compare columns.

    Attributes:
        centroid: ``(N, 2)`` float64, ``(x, y)`` centre of mass in pixels.
        bbox: ``(N, 4)`` float64, ``(xmin, ymin, xmax, ymax)``, half-open.
        type: ``(N,)`` int32 class id; 0 only where no type is known.
        type_prob: ``(N,)`` float32 in [0, 1].
        contour_offsets: ``(N + 1,)`` int64; contour ``i`` is ``contour_points[offsets[i]:offsets[i + 1]]``.
        contour_points: ``(P, 2)`` float64, ``(x, y)``, open rings (the first point is not repeated).
        embedding: ``(N, D)`` float32, or None where the model gave no tokens.
        label: ``(N,)`` int32, the nucleus's id in the instance map it came from.
        classes: Names and colours of the types, or None if unnamed.
        measurements: What was measured, ``(N,)`` float32 by name, NaN where not known; empty if nothing was. They
            belong to the pixels that were measured: :meth:`transform` leaves them as they are.
        mpp: Microns per pixel of the coordinates; None where not known.

    Example:
        >>> from cellvit.classes import PANNUKE
        >>> nuclei = Nuclei(
        ...     centroid=np.array([[5.0, 4.0], [9.0, 1.0], [2.0, 7.0]]), bbox=np.zeros((3, 4)),
        ...     type=np.array([1, 5, 5]), type_prob=np.array([0.9, 0.8, 0.5]), label=np.array([1, 2, 3]),
        ...     contour_offsets=np.zeros(4, int), contour_points=np.zeros((0, 2)), classes=PANNUKE)
        >>> nuclei
        Nuclei(3: 2 Epithelial, 1 Neoplastic)
        >>> nuclei[0].type_name, nuclei[0].centroid.tolist()
        ('Neoplastic', [5.0, 4.0])
        >>> nuclei["Epithelial"].label.tolist(), nuclei[:2].label.tolist(), nuclei[[2, 0]].label.tolist()
        ([2, 3], [1, 2], [3, 1])
        >>> nuclei[nuclei.type_prob > 0.6]
        Nuclei(2: 1 Neoplastic, 1 Epithelial)
        >>> [nucleus.label for nucleus in nuclei]
        [1, 2, 3]
    """

    centroid: NDArray[np.float64]
    bbox: NDArray[np.float64]
    type: NDArray[np.int32]
    type_prob: NDArray[np.float32]
    contour_offsets: NDArray[np.int64]
    contour_points: NDArray[np.float64]
    label: NDArray[np.int32]
    embedding: NDArray[np.float32] | None = None
    classes: NucleiClasses | None = None
    measurements: Measurements = field(default_factory=dict)
    mpp: float | None = None

    def __len__(self) -> int:
        return len(self.type)

    def __post_init__(self) -> None:
        rows = {len(c) for c in (self.centroid, self.bbox, self.type, self.type_prob, self.label)}
        rows |= {len(self.contour_offsets) - 1}
        rows |= set() if self.embedding is None else {len(self.embedding)}
        rows |= {len(values) for values in self.measurements.values()}
        if len(rows) != 1:
            raise DataError(f"columns of different lengths {sorted(rows)}; every column needs one row per nucleus")
        first, last = int(self.contour_offsets[0]), int(self.contour_offsets[-1])
        if (first, last) != (0, len(self.contour_points)):
            raise DataError(
                f"contour offsets run from {first} to {last} but there are {len(self.contour_points)} contour points; "
                "they must start at 0 and end at the number of points"
            )

    @classmethod
    def empty(
        cls,
        *,
        embedding_dim: int | None = None,
        classes: NucleiClasses | None = None,
        measurements: Iterable[str] = (),
    ) -> "Nuclei":
        """Return zero nuclei with all columns present.

        Args:
            embedding_dim: Width of the embedding column; None leaves it out.
            classes: Names and colours of the types.
            measurements: Names of what is measured.
        """
        return cls(
            centroid=np.zeros((0, 2)),
            bbox=np.zeros((0, 4)),
            type=np.zeros(0, np.int32),
            type_prob=np.zeros(0, np.float32),
            contour_offsets=np.zeros(1, np.int64),
            contour_points=np.zeros((0, 2)),
            label=np.zeros(0, np.int32),
            embedding=None if embedding_dim is None else np.zeros((0, embedding_dim), np.float32),
            classes=classes,
            measurements={name: np.zeros(0, np.float32) for name in measurements},
        )

    @classmethod
    def concatenate(cls, parts: "Sequence[Nuclei]") -> "Nuclei":
        """Return the nuclei of all parts, in order.

        Args:
            parts: At least one table; all that name their types name them alike.

        Returns:
            The table. Its embedding is None if any part that has nuclei lacks one, and so is a measurement left out;
            its resolution is None if the parts differ.

        Raises:
            DataError: If there is no part, or two parts name their types differently.
        """
        if not parts:
            raise DataError("no tables to concatenate; use Nuclei.empty() for zero nuclei")
        named = [p.classes for p in parts if p.classes is not None]
        for classes in named:
            if classes != named[0]:
                raise DataError(f"tables with different types {named[0].names} and {classes.names}; convert one first")
        lengths = np.concatenate([ring_lengths(p.contour_offsets) for p in parts])
        embeddings = [p.embedding for p in parts if p.embedding is not None]
        complete = bool(embeddings) and all(p.embedding is not None for p in parts if len(p))
        return cls(
            **{name: np.concatenate([getattr(p, name) for p in parts]) for name in _PLAIN_COLUMNS},
            contour_offsets=ring_offsets(lengths),
            contour_points=np.concatenate([p.contour_points for p in parts]),
            embedding=np.concatenate(embeddings) if complete else None,
            classes=named[0] if named else None,
            measurements=_joined_measurements(parts),
            mpp=parts[0].mpp if len({p.mpp for p in parts}) == 1 else None,
        )

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> Nucleus: ...

    @overload
    def __getitem__(self, rows: slice | str | ArrayLike) -> "Nuclei": ...

    def __getitem__(self, rows: Any) -> "Nucleus | Nuclei":
        if isinstance(rows, str):
            return self.select(self._is_of(rows))
        if isinstance(rows, slice):
            return self._cut(*rows.indices(len(self)))
        if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
            return self._row(self._position(rows))
        return self.select(np.asarray(rows))

    def __iter__(self) -> Iterator[Nucleus]:
        return (self._row(index) for index in range(len(self)))

    def __repr__(self) -> str:
        counts = [f"{count} {' '.join(name.split())}" for name, count in self.counts().items()]
        text = ", ".join(counts[:_REPR_TYPES] + ["…"] * (len(counts) > _REPR_TYPES))
        width = "" if self.embedding is None else f"; embeddings {self.embedding.shape[1]}"
        return f"Nuclei({len(self)}{': ' * bool(text)}{text}{width})"

    def _repr_html_(self) -> str:
        """Return what notebooks show: the number of nuclei of every type, and the first rows."""
        first = [
            (
                n.label,
                n.type_name,
                f"{n.type_prob:.3f}",
                *(" ".join(f"{v:.1f}" for v in xy) for xy in (n.centroid, n.bbox)),
            )
            for n in self[:_HTML_ROWS]
        ]
        heading = ("label", "type", "type_prob", "centroid (x y)", "bbox (xmin ymin xmax ymax)")
        more = f"<p>… and {len(self) - len(first)} more</p>" if len(self) > len(first) else ""
        counts = _html_table(("type", "nuclei"), self.counts().items())
        return f"<p>{escape(repr(self))}</p>{counts}{_html_table(heading, first)}{more}"

    def counts(self) -> dict[str, int]:
        """Count the nuclei of each type that occurs.

        Returns:
            Number by name of the type, the most frequent first; nuclei without a type are under ``"No type"``.
        """
        total: Counter[str] = Counter()
        for kind, count in zip(*np.unique(self.type, return_counts=True), strict=True):
            total[type_label(self.classes, int(kind))] += int(count)
        return dict(total.most_common())

    @property
    def area(self) -> NDArray[np.float64]:
        """Area inside of every outline in pixels, ``(N,)``; NaN for a nucleus without an outline."""
        area = polygon_area(self.contour_points, self.contour_offsets)
        return np.where(ring_lengths(self.contour_offsets) > 0, area, np.nan)

    @property
    def area_um2(self) -> NDArray[np.float64]:
        """Area inside of every outline in µm², ``(N,)``.

        Raises:
            DataError: If the resolution is not known.
        """
        if self.mpp is None:
            raise DataError(
                "the resolution of these nuclei is not known; use area for pixels, or state it: "
                "dataclasses.replace(nuclei, mpp=0.25)"
            )
        return self.area * self.mpp**2

    def contour(self, index: int) -> NDArray[np.float64]:
        """Return the outline of one nucleus, ``(K, 2)`` ``(x, y)``; a negative index counts from the end.

        Raises:
            IndexError: If there is no such row.
        """
        start = self._position(index)
        return self.contour_points[self.contour_offsets[start] : self.contour_offsets[start + 1]]

    def select(self, rows: NDArray[Any]) -> "Nuclei":
        """Return a copy of some of the nuclei.

        Args:
            rows: Boolean mask ``(N,)`` or integer indices ``(K,)``, in any order and as often as named; negative ones
                count from the end.

        Raises:
            DataError: If a mask has another length than the table, or the rows are neither mask nor indices.
            IndexError: If there is no such row.
        """
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "biu"):
            raise DataError(
                f"rows of shape {rows.shape} and type {rows.dtype}; give a mask of {len(self)} values, whole numbers, "
                "a slice or the name of a type"
            )
        if rows.dtype == bool and len(rows) != len(self):
            raise DataError(f"mask of {len(rows)} rows for {len(self)} nuclei; give one value per nucleus")
        index = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return self._take(index, *select_rings(self.contour_points, self.contour_offsets, index))

    def _take(self, rows: Any, points: NDArray[np.float64], offsets: NDArray[np.int64]) -> "Nuclei":
        """Return the nuclei of some rows, with their outlines."""
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _PLAIN_COLUMNS},
            contour_offsets=offsets,
            contour_points=points,
            embedding=None if self.embedding is None else self.embedding[rows],
            measurements={name: values[rows] for name, values in self.measurements.items()},
        )

    def _cut(self, start: int, stop: int, step: int) -> "Nuclei":
        """Return the rows of a slice; without a step nothing is copied but the offsets."""
        if step != 1:
            return self.select(np.arange(start, stop, step))
        stop = max(start, stop)
        offsets = self.contour_offsets[start : stop + 1]
        return self._take(slice(start, stop), self.contour_points[offsets[0] : offsets[-1]], offsets - offsets[0])

    def _position(self, index: int | np.integer[Any]) -> int:
        """Return the number of a row, counted from 0, from one that may be negative."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} nuclei; rows count from 0, or from -1 at the end")
        return int(index) % len(self)

    def _row(self, index: int) -> Nucleus:
        kind = int(self.type[index])
        return Nucleus(
            label=int(self.label[index]),
            type=kind,
            type_name=type_label(self.classes, kind),
            type_prob=float(self.type_prob[index]),
            centroid=self.centroid[index],
            bbox=self.bbox[index],
            contour=self.contour(index),
            embedding=None if self.embedding is None else self.embedding[index],
            measurements={name: float(values[index]) for name, values in self.measurements.items()},
        )

    def _is_of(self, name: str) -> NDArray[np.bool_]:
        """Return which nuclei are of a type, ``(N,)``, from its name."""
        ids = {0, *range(1, len(self.classes or ())), *np.unique(self.type).tolist()}
        names = {kind: type_label(self.classes, kind) for kind in sorted(ids)}
        if name not in names.values():
            raise DataError(f"no type {name!r}; choose from {', '.join(map(repr, dict.fromkeys(names.values())))}")
        return np.isin(self.type, [kind for kind, known in names.items() if known == name])

    def transform(
        self, *, scale: tuple[float, float] = (1.0, 1.0), shift: tuple[float, float] = (0.0, 0.0)
    ) -> "Nuclei":
        """Return the nuclei with coordinates multiplied by ``scale``, then moved by ``shift``, both ``(x, y)``."""
        factor, offset = np.asarray(scale), np.asarray(shift)
        return replace(
            self,
            centroid=self.centroid * factor + offset,
            bbox=self.bbox * np.tile(factor, 2) + np.tile(offset, 2),
            contour_points=self.contour_points * factor + offset,
            mpp=None if self.mpp is None else self.mpp / float(np.sqrt(factor.prod())),
        )


def _joined_measurements(parts: Sequence[Nuclei]) -> dict[str, NDArray[np.floating[Any]]]:
    """Return what was measured of the nuclei of all parts: what every part that has nuclei knows."""
    known = [part.measurements for part in parts if len(part)] or [part.measurements for part in parts]
    names = [name for name in known[0] if all(name in measured for measured in known)]
    return {name: np.concatenate([measured[name] for measured in known]) for name in names}


def _html_table(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table of HTML; everything in it is escaped."""
    lines = [("th", heading), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in line) for tag, line in lines)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


_REPR_TYPES = 4
_HTML_ROWS = 5
_PLAIN_COLUMNS = ("centroid", "bbox", "type", "type_prob", "label")


@dataclass(frozen=True)
class NucleiPrediction:
    """Nuclei of one image, as a map and as a table.

    Attributes:
        instance_map: ``(H, W)`` int32; 0 is background, 1..N without gaps.
        nuclei: The table; row ``i`` is label ``i + 1`` of the map.
    """

    instance_map: IntMap
    nuclei: Nuclei

    def to(self, device: Any, **kwargs: Any) -> "NucleiPrediction":
        """Return self: results are arrays of the CPU; the Trainer calls this on what ``predict_step`` returns."""
        return self
