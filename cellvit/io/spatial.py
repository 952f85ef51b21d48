"""What AnnData and SpatialData share: the columns that annotate nuclei, in the terms of the packages around scanpy."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellvit.classes import classes_to_list, type_color, type_name
from cellvit.errors import ConfigError, DataError
from cellvit.geometry.polygons import Floats, Offsets, polygon_area
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

    def frame(self, classes: NucleiClasses | None) -> Any:
        """Return the table of observations; its index counts from ``"1"``, as labels do.

        Args:
            classes: Names of the types.

        Returns:
            A ``pandas.DataFrame`` with ``label``, ``type`` (categorical, missing for no type), ``type_id``,
            ``type_prob``, ``area_px`` and the measurements.

        Raises:
            DataError: If a measurement has the name of another column.
        """
        pandas = require("pandas")
        kinds = self.column("type")
        names = self.categories(classes)
        position = {kind: i for i, kind in enumerate(names)}
        ids, inverse = np.unique(kinds, return_inverse=True)
        codes = np.array([position.get(kind, -1) for kind in ids.tolist()], np.int64)
        columns = {
            "label": self.column("label"),
            "type": pandas.Categorical.from_codes(
                codes[inverse], categories=pandas.Index(list(names.values()), dtype=object)
            ),
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
        """Return the name of every type by id: all that are named but the background, and those that occur.

        A name that is not the first of its kind gets its id behind it, as categories are distinct.

        Raises:
            DataError: If a name holds a NUL.
        """
        present = set(np.unique(self.column("type")).tolist()) | set(range(len(classes or ())))
        names: dict[int, str] = {}
        for kind in sorted(k for k in present if k > 0):
            name = type_name(classes, kind) or ""
            if "\0" in name:
                raise DataError(f"the type {name!r} has a NUL in its name, which HDF5 cannot hold; rename it")
            while name in names.values():
                name = f"{name} ({kind})"
            names[kind] = name
        return names

    def colors(self, classes: NucleiClasses | None) -> Any:
        """Return the colours of the categories as scanpy holds them, ``(C,)`` strings like ``"#ff0000"``."""
        colors = [type_color(classes, kind) for kind in self.categories(classes)]
        return np.array([f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colors], dtype=object)

    def facts(self, classes: NucleiClasses | None, metadata_text: str) -> dict[str, Any]:
        """Return what ``uns`` holds: version, frame, classes, metadata, and the colours of the categories."""
        about = {
            "version": SCHEMA_VERSION,
            "frame": PIXEL_CORNERS,
            "classes": json.dumps(classes_to_list(classes)),
            "metadata": metadata_text,
        }
        if self.measured:
            about["measurements"] = json.dumps(list(self.measured))
        return {"cellvit": about, "type_colors": self.colors(classes)}


def as_text(metadata: Mapping[str, Any] | None) -> str:
    """Return metadata as JSON text.

    Raises:
        DataError: If they are not plain data.
    """
    try:
        return json.dumps(dict(metadata or {}))
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata {metadata!r} cannot be stored as JSON ({error}); use plain data") from error
