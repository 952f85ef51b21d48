"""Areas of a slide as lines to draw: where tissue was found, and the region that was segmented."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from cellvit.errors import CellViTError
from cellvit.inference.assemble import TISSUE
from cellvit.io.format import visible
from cellvit.io.images import read_image
from cellvit.io.regions import read_region

_TOLERANCE = 1.0  # pixels of the mask, or of the screen when the whole slide is shown


def layers_of(folder: Path | None, summary: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the layers of a slide, and why one that there should be is missing.

    Args:
        folder: Its results; None without.
        summary: What their ``summary.json`` holds.

    Returns:
        ``name``, ``label`` and ``polygons``, rings of points in level-0 pixels, of each layer; and sentences.
    """
    layers: list[dict[str, Any]] = []
    notes: list[str] = []
    roi = (summary.get("settings") or {}).get("roi")
    try:
        if folder is not None and summary and (folder / TISSUE).is_file():
            layers.append({"name": "tissue", "label": "Tissue", "polygons": _tissue(folder / TISSUE, summary)})
    except (CellViTError, OSError) as error:
        notes.append(f"the tissue is not shown: {visible(error)}")
    try:
        if roi:
            layers.append({"name": "region", "label": "Region", "polygons": _region(Path(roi))})
    except (CellViTError, OSError) as error:
        notes.append(f"the region is not shown: {visible(error)}")
    return layers, notes


def _tissue(path: Path, summary: Mapping[str, Any]) -> list[list[list[float]]]:
    """Return the borders of a mask over the scanned part of a slide, holes too."""
    import cv2

    mask = np.ascontiguousarray(read_image(path)[..., 0] > 127).astype(np.uint8)
    left, top, width, height = summary["slide"]["bounds"]
    scale = np.array([width / mask.shape[1], height / mask.shape[0]])
    edged = np.pad(mask, 1)  # so that tissue at an edge is closed there
    rings, _ = cv2.findContours(edged, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    plain = [cv2.approxPolyDP(ring, _TOLERANCE, True).reshape(-1, 2) for ring in rings]
    return [((ring - 0.5) * scale + (left, top)).round().tolist() for ring in plain if len(ring) > 2]


def _region(path: Path) -> list[list[list[float]]]:
    geometry = read_region(path)[0].geometry
    longest = max(np.ptp(np.reshape(geometry.bounds, (2, 2)), axis=0))
    plain = shapely.simplify(geometry, _TOLERANCE * longest / 2048)
    borders = shapely.get_parts(shapely.boundary(shapely.get_parts(plain)))
    return [shapely.get_coordinates(ring).round(1).tolist() for ring in borders]
