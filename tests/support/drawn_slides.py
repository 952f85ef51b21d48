"""Slides whose pixels hold drawn maps, the nuclei that were drawn, and a stand-in model that returns those maps.

A block of nuclei that repeats without a seam (nuclei wrap round its edges) fills a slide of any size; the file holds
each tile of the block once, so a slide of 40,000 x 40,000 px is written in a second and takes a few megabytes. Red
holds ``32 * type + id % 32`` and is 0 in the background; green and blue hold the horizontal and vertical distance of
whole nuclei, ``-1..1`` as ``1..255``. So a tile that cuts a nucleus shows its true distances, as a good network does.
Only pixels that are neither resampled nor compressed with loss can be decoded.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cellvit.data.targets import hv_map_from_instances
from cellvit.postprocess import HVPostprocessor
from cellvit.types import EMBEDDING_MAP, HV_MAP, NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP, NucleiClasses
from support.drawn_tiff import write_tiled_tiff

CLASSES = NucleiClasses(
    ("background", "red", "green", "blue", "yellow"),
    ((255, 255, 255), (200, 0, 0), (0, 150, 0), (0, 0, 200), (220, 180, 0)),
)
DENSITY = 580 / 960**2
"""Nuclei per pixel: 580 per step of tiles of 1024 px that share 64, a million in 40,000 x 40,000 px."""

STRIDE = 16
EMBEDDING_DIM = 8
_TYPE_SHARES = (0.4, 0.3, 0.2, 0.1)
_LONG_SHARE = 0.01
_REACH = 80  # no nucleus extends further from its centre
_MAX_MISSES = 1000  # in a row
_RED_PER_TYPE = 32
_TIFF_TILE = 512


@dataclass(frozen=True)
class DrawnNuclei:
    """Drawn nuclei as columns.

    Attributes:
        centroid: ``(N, 2)`` float64 ``(x, y)``, mean of the pixels' centres.
        bbox: ``(N, 4)`` float64 ``(xmin, ymin, xmax, ymax)``, half-open.
        area: ``(N,)`` int64, pixels.
        type: ``(N,)`` int32, 1..4.
        cut: ``(N,)`` bool, whether the edge of the slide cuts it; the other columns describe what is left of it.
        source: ``(N,)`` int64, its row in the block.
    """

    centroid: NDArray[np.float64]
    bbox: NDArray[np.float64]
    area: NDArray[np.int64]
    type: NDArray[np.int32]
    cut: NDArray[np.bool_]
    source: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.type)

    def select(self, rows) -> "DrawnNuclei":
        """Return some of the nuclei, by a mask or by integer rows."""
        return DrawnNuclei(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


class DrawnBlock(NamedTuple):
    """A block that repeats in both directions.

    Attributes:
        pixels: ``(side, side, 3)`` uint8, the encoded maps.
        nuclei: Each nucleus once and whole; boxes of those that wrap round an edge reach beyond the block.
        points: ``(P, 2)`` int64 ``(x, y)`` of the pixels of all nuclei, one nucleus after the other.
        offsets: ``(N + 1,)`` int64; nucleus ``i`` has the points ``offsets[i]:offsets[i + 1]``.
    """

    pixels: NDArray[np.uint8]
    nuclei: DrawnNuclei
    points: NDArray[np.int64]
    offsets: NDArray[np.int64]


def drawn_block(side=1536, *, nuclei=None, radii=(6.0, 14.0), gap=2, seed=0) -> DrawnBlock:
    """Return a block of ellipses that lie ``gap`` or more background pixels apart, also round its edges.

    Args:
        side: Pixels; a multiple of 512 makes a small file, see :func:`write_drawn_slide`.
        nuclei: How many; None takes :data:`DENSITY`. One in a hundred is 90 to 140 px long.
        radii: Smallest and largest half axis of the others.
        gap: Background pixels between two nuclei, at least 1.
        seed: Of the drawing.
    """
    if gap < 1 or side < 4 * _REACH:
        raise ValueError(f"gap {gap} must be 1 or more, side {side} at least {4 * _REACH}")
    count = round(DENSITY * side**2) if nuclei is None else nuclei
    rng = np.random.default_rng(seed)
    canvas = _draw(side, count, radii, gap, rng)
    types = rng.choice(np.arange(1, 5, dtype=np.int32), size=count, p=_TYPE_SHARES)
    rows, cols = np.nonzero(canvas)
    label = canvas[rows, cols] - 1
    red = _RED_PER_TYPE * types[label] + label % _RED_PER_TYPE
    distance = np.rint(hv_map_from_instances(canvas)[:, rows, cols] * 127) + 128
    points = np.stack([cols, rows], axis=1) - _REACH
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[..., 1:] = 128
    x, y = (points % side).T
    pixels[y, x] = np.stack([red, *distance], axis=1)
    order = np.argsort(label, kind="stable")
    points = points[order]
    offsets = np.concatenate([[0], np.bincount(label, minlength=count).cumsum()])
    return DrawnBlock(pixels, _measure(points, offsets, types), points, offsets)


def truth(width, height, block: DrawnBlock) -> DrawnNuclei:
    """Return the nuclei of a slide that repeats a block, in pixels of the slide.

    Nuclei that the slide's edge cuts are marked ``cut`` and measured as far as they can be seen.
    """
    side, drawn = len(block.pixels), block.nuclei
    # one block to the left and above: its nuclei wrap round into the slide
    shifts = np.stack(np.meshgrid(np.arange(-1, width // side + 1), np.arange(-1, height // side + 1)), axis=-1)
    shifts = shifts.reshape(-1, 2) * side
    parts = []
    for shift in shifts:
        bbox = drawn.bbox + np.tile(shift, 2)
        seen = (bbox[:, 0] < width) & (bbox[:, 1] < height) & (bbox[:, 2] > 0) & (bbox[:, 3] > 0)
        cut = (bbox[:, 0] < 0) | (bbox[:, 1] < 0) | (bbox[:, 2] > width) | (bbox[:, 3] > height)
        whole = drawn.select(seen & ~cut)
        parts.append(replace(whole, centroid=whole.centroid + shift, bbox=whole.bbox + np.tile(shift, 2)))
        parts.append(_visible(block, np.flatnonzero(seen & cut), shift, (width, height)))
    return DrawnNuclei(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in drawn.__dataclass_fields__})


def drawn_pixels(width, height, block: DrawnBlock) -> NDArray[np.uint8]:
    """Return the pixels of a slide ``(height, width, 3)`` as an array."""
    side = len(block.pixels)
    return np.tile(block.pixels, (-(-height // side), -(-width // side), 1))[:height, :width]


def write_drawn_slide(path, width, height, *, block: DrawnBlock, mpp=0.25, pyramid=True):
    """Write a slide that repeats a block, as a tiled TIFF without loss, and return its path.

    Every different tile is stored once and named by all places that show it, which TIFF allows. The resolution is in
    the resolution tags. With ``pyramid`` there are levels 4, 16 and 64 times smaller, as long as they have 256 px.
    """
    side = len(block.pixels)
    if side % _TIFF_TILE:
        raise ValueError(f"a block of {side} px does not repeat with the tiles of the file; use a multiple of 512")
    levels = [(block.pixels, _TIFF_TILE, width, height)]
    for factor in (4, 16, 64) if pyramid else ():
        if max(width, height) // factor < 256 or side % (factor * 2):
            break
        small = cv2.resize(block.pixels, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        period = np.tile(small, (factor // 4, factor // 4, 1))  # a quarter of the side, whatever the level
        levels.append((period, len(period), -(-width // factor), -(-height // factor)))
    return write_tiled_tiff(path, levels, mpp=mpp)


class DrawnModel:
    """A stand-in for a network: decodes the pixels of a drawn slide into the maps they hold.

    Implements :class:`cellvit.inference.protocol.NucleiModel`. The tokens of ``embedding_map`` hold, per
    16 x 16 px, the mean of red, green and blue in [0, 1], the share of nucleus pixels, and the shares of the four
    types; see :func:`tokens`.
    """

    classes = CLASSES
    name = "drawn"

    def __init__(self, *, mpp=0.25):
        self.mpp = mpp
        self.device = torch.device("cpu")
        self.training = False
        self.postprocessor = HVPostprocessor(normalisation="fixed")

    def to(self, device):
        self.device = torch.device(device)
        return self

    def train(self, mode=True):
        self.training = mode
        return self

    @torch.inference_mode()
    def predict_maps(self, image):
        """Return activated maps of a batch ``(B, 3, H, W)`` in [0, 1]."""
        batch, _, height, width = image.shape
        pixels = (image * 255).round_().to(torch.uint8)
        kind = _types(pixels[:, 0])
        nucleus = kind > 0
        binary = image.new_empty(batch, 2, height, width, dtype=torch.float32)
        binary[:, 1] = nucleus
        binary[:, 0] = ~nucleus
        types = binary.new_empty(batch, len(CLASSES), height, width)
        for index in range(len(CLASSES)):
            types[:, index] = kind == index
        hv = (pixels[:, 1:].float() - 128).mul_(1 / 127).mul_(binary[:, 1:])
        return {
            NUCLEI_BINARY_MAP: binary,
            HV_MAP: hv,
            NUCLEI_TYPE_MAP: types,
            EMBEDDING_MAP: tokens(pixels),
        }

    def postprocess(self, maps):
        """Return the nuclei of one image from its maps."""
        prediction = self.postprocessor(maps)
        return replace(prediction, nuclei=replace(prediction.nuclei, classes=self.classes))


def tokens(pixels: torch.Tensor) -> torch.Tensor:
    """Return the tokens ``(B, 8, h, w)`` of drawn pixels ``(B, 3, H, W)`` uint8; the last ones repeat the border."""
    height, width = pixels.shape[-2:]
    padded = F.pad(pixels.float(), (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate").to(torch.uint8)
    kind = _types(padded[:, 0])
    # sums of integers below 2^24: exact, so the order of adding, hence the batch, cannot show
    colour = [_cell_sums(padded[:, c]) / (255 * STRIDE**2) for c in range(3)]
    share = [_cell_sums(kind == index) / STRIDE**2 for index in range(len(CLASSES))]
    return torch.stack([*colour, 1 - share[0], *share[1:]], dim=1)


def _types(red):
    """Return the type of each pixel; what no drawing holds, such as white, is background."""
    kind = red >> 5
    return kind.masked_fill_(kind >= len(CLASSES), 0)


def _cell_sums(plane):
    batch, height, width = plane.shape
    return plane.view(batch, height // STRIDE, STRIDE, width // STRIDE, STRIDE).sum((2, 4), dtype=torch.int32).float()


def _draw(side, count, radii, gap, rng):
    """Return a map of ellipses, each whole, with a margin of ``_REACH`` round the block that holds their centres."""
    canvas = np.zeros((side + 2 * _REACH, side + 2 * _REACH), np.int32)
    blocked = np.zeros((side, side), np.uint8)
    grow = np.ones((2 * gap + 1, 2 * gap + 1), np.uint8)
    placed = missed = 0
    while placed < count:
        if missed > _MAX_MISSES:
            raise ValueError(f"no room for {count} nuclei of radius {radii} in {side} px; draw fewer or smaller ones")
        # long ones first, while there is room
        long = placed < _LONG_SHARE * count
        axes = (rng.uniform(45, 70), rng.uniform(7, 10)) if long else rng.uniform(*radii, 2)
        mask = _ellipse(axes, rng.uniform(0, np.pi), rng.random(2), gap)
        x, y = rng.integers(0, side, 2)
        half = len(mask) // 2
        ring = np.arange(-half, half + 1)
        torus = np.ix_((y + ring) % side, (x + ring) % side)
        if (blocked[torus] & mask).any():
            missed += 1
            continue
        placed, missed = placed + 1, 0
        blocked[torus] |= cv2.dilate(mask, grow)
        canvas[y + _REACH - half :, x + _REACH - half :][: len(mask), : len(mask)][mask > 0] = placed
    return canvas


def _ellipse(axes, angle, centre, margin):
    """Return the mask of an ellipse, its centre within the middle pixel, with ``margin`` empty pixels around."""
    half = int(max(axes)) + 2 + margin
    row, col = np.ogrid[-half : half + 1, -half : half + 1]
    dx, dy = col - centre[0], row - centre[1]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return ((u / axes[0]) ** 2 + (v / axes[1]) ** 2 <= 1).astype(np.uint8)


def _measure(points, offsets, types):
    area = np.diff(offsets)
    first = np.minimum.reduceat(points, offsets[:-1])
    last = np.maximum.reduceat(points, offsets[:-1])
    return DrawnNuclei(
        centroid=np.add.reduceat(points, offsets[:-1]) / area[:, None] + 0.5,
        bbox=np.concatenate([first, last + 1], axis=1).astype(np.float64),
        area=area,
        type=types,
        cut=np.zeros(len(types), bool),
        source=np.arange(len(types)),
    )


def _visible(block, rows, shift, size):
    """Return what can be seen of nuclei that the slide's edge cuts."""
    columns = []
    for row in rows:
        points = block.points[block.offsets[row] : block.offsets[row + 1]] + shift
        points = points[((points >= 0) & (points < size)).all(axis=1)]
        if len(points):
            box = np.concatenate([points.min(axis=0), points.max(axis=0) + 1])
            columns.append((row, points.mean(axis=0) + 0.5, box, len(points)))
    if not columns:
        return block.nuclei.select(np.zeros(0, np.int64))
    source, centroid, bbox, area = (np.array(column) for column in zip(*columns, strict=True))
    cut = np.ones(len(source), bool)
    return DrawnNuclei(centroid, bbox.astype(np.float64), area, block.nuclei.type[source], cut, source)
