"""What tests of the runner share: drawn slides, made once, and how to compare what is found with what was drawn."""

from functools import cache

import numpy as np
from scipy.spatial import cKDTree
from support.drawn_slides import drawn_block, truth, write_drawn_slide

from cellvit.geometry.polygons import polygon_area


@cache
def block():
    return drawn_block(1536, seed=3)


def drawn_slide(folder, width, height, *, name="drawn.tif", mpp=0.25):
    return write_drawn_slide(folder / name, width, height, block=block(), mpp=mpp)


def drawn_nuclei(width, height):
    return truth(width, height, block())


def compare(nuclei, drawn, *, within=1.5):
    """Return which drawn nuclei are found once (mask), and which found ones are of no drawn nucleus (mask)."""
    distance, nearest = cKDTree(drawn.centroid).query(nuclei.centroid, distance_upper_bound=within)
    matched = np.isfinite(distance)
    times = np.bincount(nearest[matched], minlength=len(drawn))
    return times == 1, ~matched


def areas(nuclei):
    """Return the pixels inside each outline."""
    return polygon_area(nuclei.contour_points, nuclei.contour_offsets)
