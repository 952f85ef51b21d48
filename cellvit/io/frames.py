"""The frame in which a file counts coordinates: files of ours state it, older ones count from pixel centres."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cellvit.errors import DataError
from cellvit.geometry.outlines import from_pixel_centres
from cellvit.types import PIXEL_CORNERS, Nuclei

PIXEL_CENTRES = "pixel-centres"
"""Frame of older files and of the released layout: the centre of pixel ``i`` is at ``i``, outlines run through the
centres of border pixels, boxes along edges."""


def stated_frame(facts: Mapping[str, Any], source: str) -> str:
    """Return the frame that a file of this package states.

    Args:
        facts: What the file says of itself.
        source: The file; named in errors.

    Raises:
        DataError: If it is none that is known.

    Example:
        >>> stated_frame({"version": 2, "frame": "pixel-corners"}, "new.parquet")
        'pixel-corners'
        >>> stated_frame({"version": 1}, "old.parquet")
        'pixel-centres'
    """
    frame = facts.get("frame", PIXEL_CENTRES)
    if frame not in (PIXEL_CORNERS, PIXEL_CENTRES):
        raise DataError(f"{source} counts coordinates from {frame!r}, which is unknown; update cellvit")
    return str(frame)


def from_frame(nuclei: Nuclei, frame: str) -> Nuclei:
    """Return nuclei whose coordinates are in some frame in that of this package; boxes are the same in both."""
    if frame == PIXEL_CORNERS:
        return nuclei
    points, offsets = from_pixel_centres(nuclei.contour_points, nuclei.contour_offsets, nuclei.bbox)
    return replace(nuclei, centroid=nuclei.centroid + 0.5, contour_points=points, contour_offsets=offsets)
