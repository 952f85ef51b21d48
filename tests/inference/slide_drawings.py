"""What tests of the runner share: drawn slides, made once, and how to compare what is found with what was drawn."""

from functools import cache

import numpy as np
import torch
from drawn_slides import CLASSES, drawn_block, truth, write_drawn_slide
from scipy import ndimage
from scipy.spatial import cKDTree

from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import NucleiPrediction


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
    """Return the pixels inside each outline, which runs through the centres of border pixels (Pick's theorem)."""
    result = np.zeros(len(nuclei))
    for i in range(len(nuclei)):
        x, y = nuclei.contour(i).T
        dx, dy = np.abs(np.roll(x, -1) - x), np.abs(np.roll(y, -1) - y)
        on_border = np.maximum(dx, dy).sum()
        enclosed = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        result[i] = enclosed + on_border / 2 + 1
    return result


class DarkSpots:
    """A stand-in model without post-processor: every connected dark spot is a nucleus."""

    classes, mpp, training, device = CLASSES, 0.25, False, torch.device("cpu")

    def to(self, device):
        return self

    def train(self, mode=True):
        return self

    def predict_maps(self, image):
        return {"pixels": image}

    def postprocess(self, maps):
        instances = ndimage.label(maps["pixels"].mean(axis=0) < 0.5)[0].astype(np.int32)
        types = (instances > 0).astype(np.int16)
        found = nuclei_from_instances(instances, type_map=types, classes=CLASSES)
        return found if isinstance(found, NucleiPrediction) else NucleiPrediction(instances, found)
