"""Nuclei as JSON in the layout of the released tools (``cells.json``)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.atomic import atomic_text
from cellvit.errors import DataError
from cellvit.export.palette import classes_from_list, classes_from_map, classes_to_list, type_name
from cellvit.export.tables import Rows, check_finite, chunks, encode, load_json, plain_numbers, shortest_floats
from cellvit.geometry import bbox_rowcol_to_xyxy, bbox_xyxy_to_rowcol
from cellvit.types import Nuclei


def write_json(nuclei: Nuclei, path: str | Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write nuclei in the layout of the released tools; one nucleus per line.

    The file holds ``wsi_metadata``, ``type_map`` (id to name) and ``cells``; boxes are ``[[row_min, col_min],
    [row_max, col_max]]`` half-open, centroids and outlines ``(x, y)``, outlines open. A single image is one patch:
    ``patch_coordinates`` and ``offset_global`` are ``[0, 0]``, ``cell_status`` is 0. Beyond that layout,
    ``wsi_metadata.classes`` holds names and colours, and a cell has a ``label`` where labels are not 1 to N.

    Args:
        nuclei: The nuclei; embeddings are not written.
        path: The file, ``.json`` or ``.json.gz``.
        metadata: Further entries of ``wsi_metadata``, such as ``{"base_mpp": 0.25}``; plain data.

    Raises:
        DataError: If a coordinate is not finite, or the metadata are not plain data.
        OutputError: If the file cannot be written.
    """
    check_finite(nuclei)
    present = set(np.unique(nuclei.type).tolist()) | set(range(len(nuclei.classes or ())))
    names = {str(i): type_name(nuclei.classes, i) for i in sorted(present) if i > 0}
    try:
        head = encode({**(metadata or {}), "classes": classes_to_list(nuclei.classes)})
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata {metadata!r} cannot be written as JSON ({error}); use plain data") from error
    with atomic_text(path) as file:
        file.write(f'{{"wsi_metadata":{head},\n"type_map":{encode(names)},\n"cells":[')
        separator = "\n"
        for rows in chunks(len(nuclei)):
            file.write(separator + ",\n".join(map(encode, _cells(nuclei, rows))))
            separator = ",\n"
        file.write("\n]}\n")


def _cells(nuclei: Nuclei, rows: slice) -> Iterator[dict[str, Any]]:
    """Yield the entries of some rows."""
    offsets = nuclei.contour_offsets[rows.start : rows.stop + 1]
    points = plain_numbers(nuclei.contour_points[offsets[0] : offsets[-1]]).tolist()
    bounds = (offsets - offsets[0]).tolist()
    bbox = plain_numbers(bbox_xyxy_to_rowcol(nuclei.bbox[rows])).tolist()
    centroid = nuclei.centroid[rows].tolist()
    kinds = nuclei.type[rows].tolist()
    probabilities = shortest_floats(nuclei.type_prob[rows])
    labels = nuclei.label[rows]
    numbered = bool((labels == np.arange(rows.start, rows.stop) + 1).all())
    for i, label in enumerate(labels.tolist()):
        cell = {
            "bbox": bbox[i],
            "centroid": centroid[i],
            "contour": points[bounds[i] : bounds[i + 1]],
            "type_prob": probabilities[i],
            "type": kinds[i],
            "patch_coordinates": [0, 0],
            "cell_status": 0,
            "offset_global": [0, 0],
        }
        yield cell if numbered else {**cell, "label": label}


def read_json(path: str | Path) -> Nuclei:
    """Read nuclei from a file in the layout of the released tools, of any of their versions.

    Args:
        path: ``cells.json`` or ``cell_detection.json``, also compressed with gzip. The type map may be id to name
            (new) or name to id (old); cells may lack all but a box, a centroid and a type.

    Returns:
        The nuclei, without embeddings. A probability the file does not state is NaN.

    Raises:
        DataError: If the file is not of this layout.
    """
    data = load_json(path)
    try:
        classes = _classes(data, str(path))
        rows = Rows()
        for cell in data["cells"]:
            rows.add(
                contour=cell.get("contour", ()),
                centroid=cell["centroid"],
                type=cell.get("type", 0),
                type_prob=cell.get("type_prob"),
                label=cell.get("label"),
            )
        nuclei = rows.to_nuclei(classes)
        bbox = np.asarray([cell["bbox"] for cell in data["cells"]], np.float64).reshape(-1, 2, 2)
        return replace(nuclei, bbox=bbox_rowcol_to_xyxy(bbox))
    except DataError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        message = (
            f"{str(path)!r} is not in the released layout ({type(error).__name__}: {error}); "
            'it needs {"type_map": ..., "cells": [{"bbox": ..., "centroid": ..., "type": ...}]}'
        )
        raise DataError(message) from error


def _classes(data: Any, source: str) -> Any:
    """Return the classes of a file: ours, or from the type map of either direction."""
    metadata = data.get("wsi_metadata") or {}
    if "classes" in metadata:
        return classes_from_list(metadata["classes"], source=source)
    names: dict[int, str] = {}
    for key, value in (data.get("type_map") or {}).items():
        if isinstance(value, str):
            names[int(key)] = value
        else:
            names[int(value)] = str(key)
    return classes_from_map(names)
