"""The colours of the types stand out from tissue and from each other, for the colour-blind too."""

import json
from importlib.resources import files

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from cellvit.classes import PALETTE, PANNUKE_COLORS

SIGHT = {
    "normal": np.eye(3),
    # Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
# Twelve k-means centres of pixels of 180 H&E images of colon, breast and other tissue, dark to light
TISSUE = [
    (58, 30, 76), (100, 51, 105), (119, 78, 137), (162, 79, 124), (148, 108, 165), (191, 111, 151),
    (176, 136, 186), (215, 146, 182), (198, 166, 202), (222, 185, 215), (231, 213, 230), (245, 237, 245),
]  # fmt: skip
NANO = json.loads(files("cellvit.weights").joinpath("nano", "config.json").read_text("utf-8"))["model"]["class_colors"][
    1:
]


def seen(colors, sight):
    """CIE L*a*b* of colours as an eye sees them."""
    rgb = np.asarray(colors, float) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(SIGHT[sight])
    linear = linear.clip(0, 1)
    return rgb2lab(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)[None])[0]


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    ("colors", "apart", "from_tissue"),
    [(list(PANNUKE_COLORS.values()), 15, 13), (NANO, 15, 13), (PALETTE, 11, 11)],
    ids=["PanNuke", "nano", "palette"],
)
def test_colours_differ_for_every_eye(sight, colors, apart, from_tissue):
    own, tissue = seen(colors, sight), seen(TISSUE, sight)
    between = deltaE_ciede2000(own[:, None], own[None])[~np.eye(len(own), dtype=bool)]
    assert between.min() >= apart
    assert deltaE_ciede2000(own[:, None], tissue[None]).min() >= from_tissue
