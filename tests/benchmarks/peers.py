"""Other networks and other post-processing for benchmarks, with random weights; what is not installed says why."""

import sys
from contextlib import redirect_stdout
from importlib.metadata import version

import numpy as np
import torch

from cellvit import CellViT

FIELD, CENTRE = 256, 164
"""Pixels that HoVer-Net in its fast mode sees at a time, and for which it says something."""


def published(tile):
    """Return CellViT-256 as it is built here, for a whole tile."""
    model = CellViT("vit-256", 6, 19).eval()
    return (lambda: model.predict_maps(tile)), 1.0, f"torch {torch.__version__}"


def hovernet(tile):
    """Return HoVer-Net of TIAToolbox for one field, and which share of the tile it covers."""
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    model = HoVerNet(num_input_channels=3, num_types=6, mode="fast").eval()
    field = tile[..., :FIELD, :FIELD] * 255

    def run():
        with torch.inference_mode():
            return model(field)

    return run, CENTRE**2 / (tile.shape[-1] * tile.shape[-2]), f"tiatoolbox {version('tiatoolbox')}"


def stardist(tile):
    """Return the network of StarDist's model for H&E, at twice the pixel size, as it is published for."""
    import tensorflow
    from stardist.models import Config2D, StarDist2D

    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    settings = Config2D(n_channel_in=3, grid=(2, 2), n_rays=32, unet_n_depth=3, use_gpu=False)
    with redirect_stdout(sys.stderr):  # it says which thresholds it takes
        network = StarDist2D(settings, name=None, basedir=None).keras_model
    pixels = np.ascontiguousarray(tile[..., ::2, ::2].permute(0, 2, 3, 1).numpy())
    return (lambda: network(pixels, training=False)), 1.0, f"stardist {version('stardist')}, {tensorflow.__version__}"


NETWORKS = {"CellViT-256": published, "HoVer-Net": hovernet, "StarDist": stardist}


def installed(makers, tile):
    """Return what could be made, by name, and why the others could not."""
    found, missing = {}, {}
    for name, make in makers.items():
        try:
            found[name] = make(tile)
        except (ImportError, RuntimeError) as error:
            missing[name] = str(error).splitlines()[0]
    return found, missing


def hovernet_postprocess(maps):
    """Return the post-processing of TIAToolbox's HoVer-Net on maps of ours."""
    from tiatoolbox.models.architecture.hovernet import HoVerNet

    nucleus = np.ascontiguousarray(maps["nuclei_binary_map"][1][..., None])
    distance = np.ascontiguousarray(maps["hv_map"].transpose(1, 2, 0))
    types = maps["nuclei_type_map"].argmax(axis=0)[..., None].astype(np.float32)
    network = HoVerNet(num_input_channels=3, num_types=6, mode="fast")
    return lambda: network.postproc([nucleus.copy(), distance.copy(), types.copy()])
