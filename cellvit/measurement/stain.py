"""Optical densities of both stains in nuclei and in a ring around each."""

import cv2
import numpy as np
from numpy.typing import NDArray

from cellvit.measurement.base import MEASUREMENTS, Columns, Measurement
from cellvit.measurement.pixels import Groups, LabelledPixels

RING_UM = 2.0
"""Microns that the ring around a nucleus is wide."""

STAINS = ("hematoxylin", "eosin")
_PERCENTS = {"p10": 10.0, "median": 50.0, "p90": 90.0}


@MEASUREMENTS.register("stain")
class Stain(Measurement):
    """Optical densities of haematoxylin and eosin in the nucleus, and in a ring of 2 µm around it."""

    def __call__(self, pixels: LabelledPixels) -> Columns:
        """Return ``hematoxylin_mean`` and the others; see the page on measurements."""
        nucleus: Columns = {}
        ring: Columns = {}
        around, owner = ring_pixels(pixels.labels, pixels.pixels_of(RING_UM))
        sizes = np.bincount(owner, minlength=pixels.count + 1)[1:]
        seen = np.flatnonzero(sizes)
        outer = Groups(sizes[seen].astype(np.int64))
        for stain, density in zip(STAINS, pixels.stain_density, strict=True):
            flat = density.reshape(-1)
            values = flat[pixels.place]
            names = [f"{stain}_{name}" for name in ("mean", "sd", *_PERCENTS)]
            found = [*pixels.groups.mean_and_sd(values), *pixels.groups.percentiles(values, [*_PERCENTS.values()])]
            nucleus |= {name: pixels.spread(column) for name, column in zip(names, found, strict=True)}
            for name, column in zip(("mean", "sd"), outer.mean_and_sd(flat[around]), strict=True):
                ring[f"{stain}_ring_{name}"] = np.full(pixels.count, np.nan, np.float32)
                ring[f"{stain}_ring_{name}"][seen] = column
        return {**nucleus, **ring}


def ring_pixels(labels: NDArray[np.int32], width: float) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Return the pixels around nuclei, each of which belongs to the nucleus that is nearest.

    Args:
        labels: ``(H, W)``, 0 is background.
        width: Largest distance of centres of pixels of ring and nucleus, in pixels.

    Returns:
        Flat positions ``(R,)``, sorted by nucleus and then in reading order, and the label of each. They are those
        of ``skimage.segmentation.expand_labels`` without the nuclei, but for few: which of two nuclei is nearer
        is told by OpenCV's approximate distances.
    """
    flat = labels.reshape(-1)
    free = (labels == 0).astype(np.uint8)
    if free.all():
        return np.zeros(0, np.intp), np.zeros(0, np.int32)
    rough, number = cv2.distanceTransformWithLabels(free, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    number = number.reshape(-1)
    nuclei = np.flatnonzero(flat)
    source = np.zeros(len(nuclei) + 1, np.int64)
    source[number[nuclei]] = nuclei
    near = np.flatnonzero((rough > 0) & (rough <= width + 1))
    nearest = source[number[near]]
    rows, columns = (a - b for a, b in zip(*(np.divmod(p, labels.shape[1]) for p in (near, nearest)), strict=True))
    inside = rows**2 + columns**2 <= width**2
    near, nearest = near[inside], nearest[inside]
    owner = flat[nearest]
    order = np.argsort(owner.astype(np.uint16) if owner.max(initial=0) < 2**16 else owner, kind="stable")
    return near[order], owner[order]
