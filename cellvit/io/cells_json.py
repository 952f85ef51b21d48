"""Nuclei as JSON in the layout of the released tools (``cells.json``)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.classes import classes_from_list, classes_from_map, classes_to_list, type_name
from cellvit.errors import DataError
from cellvit.geometry.polygons import bbox_rowcol_to_xyxy, bbox_xyxy_to_rowcol
from cellvit.io import text as tables
from cellvit.io.atomic import atomic_text
from cellvit.io.frames import PIXEL_CENTRES, to_pixel_centres
from cellvit.io.limits import MALFORMED, MAX_TYPE, brief
from cellvit.io.provenance import mpp_of, with_mpp
from cellvit.io.schema import load_json
from cellvit.io.stream import NucleiStream, Patches, TableStream, blocks
from cellvit.io.text import (
    Rows,
    encode,
    plain_numbers,
    ring_texts,
    shortest_floats,
    write_lines,
)
from cellvit.types import Nuclei


def write_json(nuclei: Nuclei, path: str | Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write nuclei in the layout of the released tools; one nucleus per line.

    The file holds ``wsi_metadata``, ``type_map`` (id to name) and ``cells``; boxes are ``[[row_min, col_min],
    [row_max, col_max]]`` half-open. Centroids and outlines are ``(x, y)`` and count from the centres of pixels, as in
    the released tools: that of pixel ``i`` is at ``i``, and an outline runs through the border pixels and is open. A
    single image is one patch: ``patch_coordinates`` and ``offset_global`` are ``[0, 0]``, ``cell_status`` is 0. Beyond
    that layout, ``wsi_metadata.classes`` holds names and colours, and a cell has a ``label`` where labels are not 1 to
    N.

    Args:
        nuclei: The nuclei; embeddings are not written.
        path: The file, ``.json`` or ``.json.gz``.
        metadata: Further entries of ``wsi_metadata``, such as ``{"base_mpp": 0.25}``; plain data.

    Raises:
        DataError: If a coordinate is not finite, or the metadata are not plain data.
        OutputError: If the file cannot be written.
    """
    write_json_stream(TableStream(nuclei), path, metadata=with_mpp(metadata, nuclei.mpp))


def write_json_stream(
    stream: NucleiStream,
    path: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    patches: Callable[[Nuclei], Patches] | None = None,
    pixel: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Write nuclei that come in chunks as :func:`write_json` does: the same nuclei give the same bytes.

    Args:
        stream: The nuclei; of embeddings it is best read without. Iterated twice: the map of types comes first.
        path: The file, ``.json`` or ``.json.gz``.
        metadata: Further entries of ``wsi_metadata``; plain data.
        patches: Returns the patches of some of the nuclei; None: all lie inside of one patch at the origin.
        pixel: ``(x, y)`` size of the pixels that outlines follow, where nuclei were found at another resolution.

    Raises:
        DataError: If a coordinate is not finite, the metadata are not plain data, or there is not one patch for
            every nucleus.
        OutputError: If the file cannot be written.
    """
    present = set(range(len(stream.classes or ())))
    for chunk in stream:
        present.update(np.unique(chunk.type).tolist())
    names = {str(i): type_name(stream.classes, i) for i in sorted(present) if i > 0}
    try:
        head = encode({**(metadata or {}), "classes": classes_to_list(stream.classes)})
    except (TypeError, ValueError) as error:
        raise DataError(f"metadata {metadata!r} cannot be written as JSON ({error}); use plain data") from error
    with atomic_text(path) as file:
        file.write(f'{{"wsi_metadata":{head},\n"type_map":{encode(names)},\n"cells":[')
        write_lines(file, _entries(stream, _no_patches if patches is None else patches, pixel))


def _entries(
    stream: NucleiStream, patches: Callable[[Nuclei], Patches], pixel: tuple[float, float]
) -> Iterator[Iterator[str]]:
    """Yield the entries of all nuclei, some at a time."""
    for row, block in blocks(stream, tables.CHUNK, classes=stream.classes, embedding_dim=None):
        tables.check_finite(block, first=row)
        yield _cells(block, row, patches(block), pixel)


def _no_patches(nuclei: Nuclei) -> Patches:
    """Return the patches of an image that is one."""
    corners = np.zeros((len(nuclei), 2), np.int64)
    return Patches(corners, corners[:, 0], corners)


def _cells(nuclei: Nuclei, row: int, patches: Patches, pixel: tuple[float, float]) -> Iterator[str]:
    """Yield the entries of some nuclei as text; ``row`` is the number of the first."""
    if {len(column) for column in patches} != {len(nuclei)}:
        raise DataError(f"patches of {[len(c) for c in patches]} rows for {len(nuclei)} nuclei; give one per nucleus")
    boxes = plain_numbers(bbox_xyxy_to_rowcol(nuclei.bbox)).reshape(-1, 4).tolist()
    outlines = ring_texts(*to_pixel_centres(nuclei.contour_points, nuclei.contour_offsets, pixel=pixel))
    probabilities = shortest_floats(nuclei.type_prob)
    labels = nuclei.label.tolist()
    numbered = labels == list(range(row + 1, row + 1 + len(nuclei)))
    places = [np.asarray(column).tolist() for column in patches]
    columns = zip(boxes, (nuclei.centroid - 0.5).tolist(), nuclei.type.tolist(), *places, strict=True)
    for i, ((top, left, bottom, right), (x, y), kind, (r, c), status, (down, along)) in enumerate(columns):
        probability = "null" if probabilities[i] is None else probabilities[i]
        label = "" if numbered else f',"label":{labels[i]}'
        yield (
            f'{{"bbox":[[{top},{left}],[{bottom},{right}]],"centroid":[{x},{y}],"contour":{outlines[i]},'
            f'"type_prob":{probability},"type":{kind},"patch_coordinates":[{r},{c}],"cell_status":{status},'
            f'"offset_global":[{down},{along}]{label}}}'
        )


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
    return nuclei_of_cells(load_json(path), path)


def nuclei_of_cells(data: Any, path: str | Path) -> Nuclei:
    """Return the nuclei of the released layout as :func:`read_json` does.

    Args:
        data: Plain data with ``cells``.
        path: The file they are from; named in errors.

    Raises:
        DataError: If the data are not of this layout.
    """
    try:
        classes = _classes(data, str(path))
        rows = Rows()
        for cell in data["cells"]:
            rows.add(
                contour=cell.get("contour", ()),
                centroid=cell["centroid"],
                type=cell.get("type", 0),
                bbox=cell["bbox"],
                type_prob=cell.get("type_prob"),
                label=cell.get("label"),
            )
        corners = np.asarray(rows.bbox, np.float64).reshape(-1, 2, 2)
        rows.bbox = list(bbox_rowcol_to_xyxy(corners))
        nuclei = rows.to_nuclei(classes, frame=PIXEL_CENTRES)
        return replace(nuclei, mpp=mpp_of(data.get("wsi_metadata")))
    except DataError:
        raise
    except MALFORMED as error:
        message = (
            f"{str(path)!r} is not in the released layout ({brief(error)}); "
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
    if max(names, default=0) > MAX_TYPE:
        raise ValueError(f"the number {max(names)} of a type; types are numbered up to {MAX_TYPE}")
    return classes_from_map(names)
