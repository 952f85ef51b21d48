"""Stand-ins for the network in benchmarks of slides, and a block of nuclei as a network would show them."""

from itertools import product

import cv2
import numpy as np
from support.drawn_slides import CLASSES, DrawnModel, drawn_block, drawn_pixels

from cellvit.types import EMBEDDING_MAP, HV_MAP, NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP

TILE = 1024
OVERLAP = 64
STRIDE = 16
NUCLEI_PER_TILE = 400

_PAD = 8


class NanoOnDrawn(DrawnModel):
    """Costs what nano costs and finds what is drawn, so that the stages behind it have work."""

    def __init__(self, network):
        super().__init__(mpp=network.mpp)
        self.network = network

    def to(self, device):
        self.network.to(device)
        return super().to(device)

    def predict_maps(self, image):
        """Return the maps that are drawn, with the tokens of nano."""
        return super().predict_maps(image) | {EMBEDDING_MAP: self.network.predict_maps(image)[EMBEDDING_MAP]}


class ReplayModel(DrawnModel):
    """A network that costs nothing: gives host arrays as they leave a device, classes instead of probabilities.

    Maps are made once per tile; a tile that comes again, as all do in a slide that repeats, is known by some pixels.
    """

    def __init__(self, embedding_dim):
        super().__init__()
        self.tokens = np.random.default_rng(0).random((embedding_dim, TILE // STRIDE, TILE // STRIDE), np.float32)
        self.known = {}

    def decode(self, pixels):
        """Return the maps of a tile ``(H, W, 3)`` uint8."""
        kind = pixels[..., 0] >> 5
        distance = np.ascontiguousarray(pixels[..., 1:].transpose(2, 0, 1), np.float32)
        return {
            NUCLEI_BINARY_MAP: (kind > 0).astype(np.int16),
            HV_MAP: (distance - 128) / 127,
            NUCLEI_TYPE_MAP: kind.astype(np.int16),
            EMBEDDING_MAP: self.tokens,
        }

    def learn(self, block, tiles):
        """Make the maps of all tiles of a slide of ``tiles`` tiles a side that repeats a block."""
        side, step = len(block.pixels), TILE - OVERLAP
        starts = sorted({step * i % side for i in range(tiles)})
        pixels = drawn_pixels(side + TILE, side + TILE, block)
        for y, x in product(starts, starts):
            tile = pixels[y : y + TILE, x : x + TILE]
            self.known[_some(tile).tobytes()] = self.decode(tile)

    def predict_maps(self, image):
        """Return the maps of a batch, one dictionary per image."""
        some = (_some(image.permute(0, 2, 3, 1)) * 255).round().byte().numpy()
        return [self.known[key.tobytes()] for key in some]


def _some(pixels):
    """Return pixels ``(..., H, W, 3)`` far apart; noise makes them different in every tile."""
    return pixels[..., ::101, ::103, :]


def noisy_block():
    """Return a block whose pixels hold maps as a network gives them: 400 nuclei per tile, ragged, noisy, touching.

    Neighbours one pixel apart grow together where noise fills the gap. Noise repeats with the block, so two tiles that
    overlap see the same.
    """
    block = drawn_block(nuclei=round(NUCLEI_PER_TILE / TILE**2 * 1536**2), radii=(7.0, 15.0), gap=1, seed=1)
    rng = np.random.default_rng(1)
    wrapped = np.pad(block.pixels, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)), mode="wrap")
    inside = np.float32(wrapped[..., 0] > 0)
    grown = cv2.dilate(wrapped[..., 0] >> 5, np.ones((5, 5), np.uint8))
    logit = cv2.GaussianBlur(6 * inside - 3, (3, 3), 0)[_PAD:-_PAD, _PAD:-_PAD]
    nucleus = logit + rng.normal(0, 1, logit.shape) > 0
    distance = cv2.GaussianBlur(np.float32(wrapped[..., 1:]), (5, 5), 0)[_PAD:-_PAD, _PAD:-_PAD] - 128
    distance = 128 + 0.9 * distance + rng.normal(0, 0.04 * 127, distance.shape)
    mixed = rng.random(logit.shape) < 0.1
    kind = np.where(mixed, rng.integers(1, len(CLASSES), logit.shape), grown[_PAD:-_PAD, _PAD:-_PAD])
    kind = np.where(nucleus, np.maximum(kind, 1), 0)
    pixels = np.dstack([32 * kind, np.clip(np.rint(distance), 1, 255)]).astype(np.uint8)
    return block._replace(pixels=pixels)
