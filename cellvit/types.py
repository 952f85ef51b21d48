"""Names of the maps and the closed result types that every package shares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import ring_lengths, ring_offsets, select_rings

NUCLEI_BINARY_MAP = "nuclei_binary_map"
HV_MAP = "hv_map"
NUCLEI_TYPE_MAP = "nuclei_type_map"
TISSUE_TYPES = "tissue_types"
EMBEDDING_MAP = "embedding_map"
OBJECT_PROBABILITY = "object_probability"
RADIAL_DISTANCES = "radial_distances"

Fact = str | bool | int | float | None
"""A free fact about a model. Text stays text: a parser of YAML that may choose would split a licence at its colon."""

UNKNOWN_TYPE = -1
"""Type of a nucleus that its data set does not state; left out of the type losses."""

IntMap = NDArray[np.int32]
FloatMap = NDArray[np.float32]
Rgb = tuple[int, int, int]


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

    features: list[Tensor]
    pooled: Tensor


class Batch(TypedDict):
    """One batch of training or evaluation data.

    ``image`` is ``(B, 3, H, W)`` float32 in [0, 1]; ``instance_map`` ``(B, H, W)`` int64, 0 is background;
    ``nuclei_binary_map`` ``(B, H, W)`` int64 in {0, 1}; ``hv_map`` ``(B, 2, H, W)`` float32 in [-1, 1];
    ``nuclei_type_map`` ``(B, H, W)`` int64, 0 is background and -1 a nucleus of unknown type; ``tissue_types``
    ``(B,)`` int64, -1 unknown; ``name`` one string per image; ``valid`` ``(B,)`` bool, False for images that only
    fill up the share of a process and are left out of metrics. Without ``valid`` all count.
    """

    image: Tensor
    instance_map: Tensor
    nuclei_binary_map: Tensor
    hv_map: Tensor
    nuclei_type_map: Tensor
    tissue_types: Tensor
    name: list[str]
    valid: NotRequired[Tensor]


@dataclass(frozen=True)
class NucleiClasses:
    """Names and colours of the nucleus types; index 0 is background.

    Attributes:
        names: One name per type id.
        colors: One RGB triple per type id, 0..255.
    """

    names: tuple[str, ...]
    colors: tuple[Rgb, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors):
            raise ConfigError(f"{len(self.names)} class names but {len(self.colors)} colours; give one colour per name")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one image as columns; row ``i`` of every column is nucleus ``i``.

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

    def __len__(self) -> int:
        return len(self.type)

    def __post_init__(self) -> None:
        rows = {len(c) for c in (self.centroid, self.bbox, self.type, self.type_prob, self.label)}
        rows |= {len(self.contour_offsets) - 1}
        rows |= set() if self.embedding is None else {len(self.embedding)}
        if len(rows) != 1:
            raise DataError(f"columns of different lengths {sorted(rows)}; every column needs one row per nucleus")
        first, last = int(self.contour_offsets[0]), int(self.contour_offsets[-1])
        if (first, last) != (0, len(self.contour_points)):
            raise DataError(
                f"contour offsets run from {first} to {last} but there are {len(self.contour_points)} contour points; "
                "they must start at 0 and end at the number of points"
            )

    @classmethod
    def empty(cls, *, embedding_dim: int | None = None, classes: NucleiClasses | None = None) -> "Nuclei":
        """Return zero nuclei with all columns present.

        Args:
            embedding_dim: Width of the embedding column; None leaves it out.
            classes: Names and colours of the types.
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
        )

    @classmethod
    def concatenate(cls, parts: "Sequence[Nuclei]") -> "Nuclei":
        """Return the nuclei of all parts, in order.

        Args:
            parts: At least one table; all that name their types name them alike.

        Returns:
            The table; its embedding is None if any part that has nuclei lacks one.

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
        )

    def contour(self, index: int) -> NDArray[np.float64]:
        """Return the outline of one nucleus, ``(K, 2)`` ``(x, y)``; a negative index counts from the end."""
        index = range(len(self))[index]
        return self.contour_points[self.contour_offsets[index] : self.contour_offsets[index + 1]]

    def select(self, rows: NDArray[Any]) -> "Nuclei":
        """Return some of the nuclei.

        Args:
            rows: Boolean mask ``(N,)`` or integer indices ``(K,)``.

        Raises:
            DataError: If a mask has another length than the table.
        """
        if rows.dtype == bool and len(rows) != len(self):
            raise DataError(f"mask of {len(rows)} rows for {len(self)} nuclei; give one value per nucleus")
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        points, offsets = select_rings(self.contour_points, self.contour_offsets, index)
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in _PLAIN_COLUMNS},
            contour_offsets=offsets,
            contour_points=points,
            embedding=None if self.embedding is None else self.embedding[index],
        )

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
        )


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
