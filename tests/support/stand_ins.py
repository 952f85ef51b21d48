"""Models without a network: what inference needs of one, and one that finds what is dark."""

import numpy as np
import torch
from scipy import ndimage

from cellvit.classes import default_classes
from cellvit.postprocess.measure import nuclei_from_instances


class StandIn:
    """What all stand-ins share: classes, resolution, a mode, and the sizes of the batches they were given."""

    def __init__(self, classes=None, *, mpp=0.25, training=False):
        self.classes = classes or default_classes(2)
        self.mpp, self.training, self.device = mpp, training, torch.device("cpu")
        self.batches = []

    def to(self, device):
        self.device = torch.device(device)
        return self

    def train(self, mode=True):
        self.training = mode
        return self


class DarkSpots(StandIn):
    """Takes every connected dark spot for a nucleus of type 1."""

    def predict_maps(self, image):
        assert not self.training
        self.batches.append(tuple(image.shape))
        return {"pixels": image}

    def types_of(self, instances, pixels):
        """Return the type of every pixel, 0 outside of spots."""
        return (instances > 0).astype(np.int16)

    def postprocess(self, maps):
        pixels = np.asarray(maps["pixels"])
        instances = ndimage.label(pixels.mean(axis=0) < 0.5)[0].astype(np.int32)
        types = self.types_of(instances, pixels)
        embedding = maps.get("embedding_map")
        return nuclei_from_instances(instances, type_map=types, embedding_map=embedding, classes=self.classes)
