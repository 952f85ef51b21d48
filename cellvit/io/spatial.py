"""What AnnData and SpatialData share: the columns that annotate nuclei, in the terms of the packages around scanpy."""

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import classes_to_list, hex_color, type_color, type_label, type_name
from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import Floats, Offsets, polygon_area
from cellvit.io.provenance import mpp_of
from cellvit.io.qupath import StatedClass
from cellvit.io.stated_types import StatedTypes
from cellvit.types import PIXEL_CORNERS, Nuclei, NucleiClasses

SCHEMA_VERSION = 2


def require(module: str, *, extra: str = "spatial") -> Any:
    """Return a module that an extra of the project brings.

    Args:
        module: Dotted name.
        extra: The extra.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        message = f"this needs the package {package!r} ({error}); from a checkout: pip install '.[{extra}]'"
        raise ConfigError(message) from error


@dataclass
class Annotations:
    """The small columns of nuclei, collected block by block.

    Attributes:
        columns: Blocks of every column by name.
        measured: Blocks of every measurement by name: those of the first nuclei.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    measured: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        none = Nuclei.empty()
        self.add(none, none.contour_points, none.contour_offsets)

    def add(self, nuclei: Nuclei, points: Floats, offsets: Offsets) -> None:
        """Append nuclei and their valid outlines, from which areas are computed."""
        block = {
            "label": nuclei.label,
            "type": nuclei.type,
            "type_prob": nuclei.type_prob,
            "area": polygon_area(points, offsets),
            "centroid": nuclei.centroid,
            "bbox": nuclei.bbox,
        }
        for name, values in block.items():
            self.columns.setdefault(name, []).append(values)
        self.measured = self.measured or {name: [] for name in nuclei.measurements}
        for name, blocks in self.measured.items():
            blocks.append(nuclei.measurements.get(name, np.full(len(nuclei), np.nan, np.float32)))

    def column(self, name: str) -> Any:
        """Return a column."""
        return np.concatenate(self.columns[name])

    def places(self, metadata_text: str) -> dict[str, Any]:
        """Return what ``obsm`` holds of places: ``spatial`` and ``bbox`` in pixels, and ``spatial_um`` in microns.

        Args:
            metadata_text: Metadata as JSON; ``spatial_um`` is left out where they state no resolution.
        """
        mpp = mpp_of(json.loads(metadata_text))
        microns = {} if mpp is None else {"spatial_um": self.column("centroid") * mpp}
        return {"spatial": self.column("centroid"), **microns, "bbox": self.column("bbox")}

    def frame(self, classes: NucleiClasses | None) -> Any:
        """Return the table of observations; its index counts from ``"1"``, as labels do.

        Args:
            classes: Names of the types.

        Returns:
            A ``pandas.DataFrame`` with ``label``, ``type`` (categorical, never missing), ``type_id``, ``type_prob``,
            ``area_px`` and the measurements.

        Raises:
            DataError: If a measurement has the name of another column.
        """
        pandas = require("pandas")
        kinds = self.column("type")
        names = self.categories(classes)
        codes = np.searchsorted(list(names), np.maximum(kinds, 0))  # the ids ascend
        columns = {
            "label": self.column("label"),
            "type": pandas.Categorical.from_codes(codes, categories=pandas.Index(list(names.values()), dtype=object)),
            "type_id": kinds,
            "type_prob": self.column("type_prob"),
            "area_px": self.column("area"),
        }
        if taken := columns.keys() & self.measured.keys():
            raise DataError(f"measurements {sorted(taken)} have names of other columns; rename them")
        columns |= {name: np.concatenate(blocks) for name, blocks in self.measured.items()}
        index = pandas.Index(np.arange(1, len(kinds) + 1).astype(str).astype(object), dtype=object)
        return pandas.DataFrame(columns, index=index)

    def categories(self, classes: NucleiClasses | None) -> dict[int, str]:
        """Return the name of every type that occurs, by id, as :func:`type_labels` has it; 0 stands for no type.

        squidpy divides by the number of nuclei of a category, and cannot read a missing one: neither is written.

        Raises:
            DataError: If a name holds a NUL.
        """
        present = set(np.maximum(np.unique(self.column("type")), 0).tolist())
        names = {kind: name for kind, name in type_labels(classes, present).items() if kind in present}
        for name in names.values():
            if "\0" in name:
                raise DataError(f"the type {name!r} has a NUL in its name, which HDF5 cannot hold; rename it")
        return names

    def colors(self, classes: NucleiClasses | None) -> Any:
        """Return the colours of the categories as scanpy holds them, ``(C,)`` strings like ``"#ff0000"``."""
        return np.array([hex_color(type_color(classes, kind)) for kind in self.categories(classes)], dtype=object)

    def facts(self, classes: NucleiClasses | None, metadata_text: str) -> dict[str, Any]:
        """Return what ``uns`` holds: version, frame and unit, classes, metadata, and the colours of the categories."""
        about = {
            "version": SCHEMA_VERSION,
            "frame": PIXEL_CORNERS,
            "spatial_unit": "px",
            "classes": json.dumps(classes_to_list(classes)),
            "metadata": metadata_text,
        }
        if self.measured:
            about["measurements"] = json.dumps(list(self.measured))
        return {"cellvit": about, "type_colors": self.colors(classes)}


def type_labels(classes: NucleiClasses | None, present: Iterable[int] = ()) -> dict[int, str]:
    """Return distinct names of types by id, ascending: of all that are named, of those that are given, and of 0.

    A name that is not the first of its kind gets its id behind it, as categories are distinct.

    Args:
        classes: Names of the types.
        present: Ids that occur, 0 or more.

    Example:
        >>> type_labels(NucleiClasses(("Background", "A", "A"), ((0, 0, 0),) * 3), [0, 4])
        {0: 'No type', 1: 'A', 2: 'A (2)', 4: 'Type 4'}
    """
    names: dict[int, str] = {}
    for kind in sorted({0, *present, *range(len(classes or ()))}):
        name = type_label(classes, kind)
        while name in names.values():
            name = f"{name} ({kind})"
        names[kind] = name
    return names


def stated_types(obs: Any, classes: NucleiClasses | None) -> tuple[NDArray[np.int32], NucleiClasses | None]:
    """Return the types of a table of observations; a name that was changed wins over the number beside it.

    Args:
        obs: A ``pandas.DataFrame`` with ``type_id`` and, as a rule, ``type``.
        classes: The file's own list.

    Returns:
        Types ``(N,)``, and the classes with those that were added; a nucleus without a name has no type.
    """
    ids = np.asarray(obs["type_id"], np.int32)
    if "type" not in obs:
        return ids, classes
    codes, found = require("pandas").factorize(obs["type"])
    labels = type_labels(classes, np.maximum(np.unique(ids), 0).tolist())
    numbers: dict[str | None, int] = {name: kind for kind, name in labels.items()}
    pairs, inverse = np.unique(np.stack([codes, ids], axis=1), axis=0, return_inverse=True)
    types, said = StatedTypes(classes, listed=True), []
    for code, number in pairs.tolist():
        label = None if code < 0 else str(found[code])
        unchanged = label in (labels.get(max(number, 0)), type_label(classes, number))
        kind = number if unchanged else numbers.get(label)
        name, id_ = (label, number) if kind is None else (type_name(classes, kind), kind)
        said.append(types.code(StatedClass(name, given=True, color=None), id_))
    kinds, classes, _ = types.resolve(np.array(said, np.int64)[inverse.ravel()])
    return kinds, classes


def as_text(metadata: Mapping[str, Any] | None) -> str:
    """Return metadata as JSON text.

    Raises:
        DataError: If they are not plain data.
    """
    try:
        return json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata {metadata!r} cannot be stored as JSON ({error}); use plain data") from error
