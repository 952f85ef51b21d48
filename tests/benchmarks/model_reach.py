"""How far a model sees, which says what an overlap of tiles can do: run by hand, prints JSON.

    python tests/benchmarks/model_reach.py MODEL IMAGE [SIDE]

``gradient``: radius in pixels within which so much of the gradient of the nucleus logit of the middle lies (mean over
places). ``edge``: what a cut changes at a distance of so many pixels from it, where a tile ends and the image goes on:
mean difference of the nucleus probability, share of pixels that are nucleus in one and not in the other.
"""

import json
import sys
from itertools import pairwise

import numpy as np
import torch

from cellvit.inference.protocol import load_model
from cellvit.io.images import read_image
from cellvit.types import NUCLEI_BINARY_MAP

SHARES = (0.5, 0.9, 0.99, 0.999)
DISTANCES = (0, 8, 16, 32, 48, 64, 96, 128, 192, 256)
PLACES = 8  # across and down, in the middle quarter


def gradient_radius(model, image):
    """Return the radius (largest of both axes) that holds each share of the gradient, mean over places."""
    height, width = image.shape[-2:]
    middle = [np.linspace(0.375 * side, 0.625 * side, PLACES).astype(int) for side in (height, width)]
    radii = []
    for y, x in np.stack(np.meshgrid(*middle, indexing="ij"), -1).reshape(-1, 2)[:: PLACES + 1]:
        pixels = image.clone().requires_grad_()
        logits = model(pixels)[NUCLEI_BINARY_MAP]
        (logits[0, 1, y, x] - logits[0, 0, y, x]).backward()
        weight = pixels.grad.abs().sum(1)[0].numpy()
        distance = np.maximum(np.abs(np.arange(height) - y)[:, None], np.abs(np.arange(width) - x))
        total = np.bincount(distance.ravel(), weight.ravel()).cumsum()
        radii.append([int(np.searchsorted(total, share * total[-1])) for share in SHARES])
    return dict(zip(map(str, SHARES), np.mean(radii, axis=0).round(1).tolist(), strict=True))


def edge_effect(model, image):
    """Return what changes in columns at a distance from where the image is cut, for each distance."""
    with torch.inference_mode():
        whole = model.predict_maps(image)[NUCLEI_BINARY_MAP][0, 1]
        cut = image.shape[-1] // 2
        part = model.predict_maps(image[..., cut:].contiguous())[NUCLEI_BINARY_MAP][0, 1]
    whole = whole[:, cut:]
    rows = {}
    for start, stop in pairwise(DISTANCES):
        one, other = whole[:, start:stop], part[:, start:stop]
        rows[f"{start}-{stop}"] = {
            "difference": round(float((one - other).abs().mean()), 5),
            "flipped": round(float(((one > 0.5) != (other > 0.5)).float().mean()), 5),
        }
    return rows


def main(name, path, side=1024):
    model = load_model(name, device="cpu")
    pixels = read_image(path)[:side, :side].copy()
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    image = image[..., : image.shape[-2] // 32 * 32, : image.shape[-1] // 32 * 32].contiguous()
    found = {"gradient": gradient_radius(model, image), "edge": edge_effect(model, image)}
    print(json.dumps({"model": name, "image": list(image.shape[-2:]), **found}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
