"""Slides with dark discs at known places, written as every kind of file that is read, and one that is an array."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

from cellvit.slide.readers.base import SlideReader
from cellvit.types import Nuclei

WHITE, INK = np.array([244, 240, 246.0]), np.array([90, 40, 120.0])
MPP = 0.25
APERIO = "Aperio Image Library v11.2.1 \r\n{0}x{1} [0,0 {0}x{1}] (256x256) JPEG/RGB Q=90|AppMag = 40|MPP = 0.2500"


def draw(width, height, *, step=75, seed=0):
    """Return an image ``(H, W, 3)`` and the centres ``(N, 2)`` of its discs, radius 8 to 14, one per cell of a grid."""
    rng = np.random.default_rng(seed)
    ink, centres = np.zeros((height, width)), []
    for top in range(0, height - step + 1, step):
        for left in range(0, width - step + 1, step):
            x, y, radius = left + rng.uniform(25, step - 25), top + rng.uniform(25, step - 25), rng.uniform(8, 14)
            rows, columns = np.mgrid[top : top + step, left : left + step]
            ink[top : top + step, left : left + step] = np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
            centres.append((x, y))
    image = np.rint(WHITE + ink[..., None] * (INK - WHITE)).astype(np.uint8)
    return image, np.array(centres)


def shrunk(image, ratio):
    """Return an image shrunk by a whole number, cut off at the far edge, or by any other number, stretched."""
    height, width = image.shape[:2]
    if ratio == int(ratio):
        ratio = int(ratio)
        cut = image[: height // ratio * ratio, : width // ratio * ratio]
        blocks = cut.reshape(height // ratio, ratio, width // ratio, ratio, 3)
        return np.rint(blocks.mean((1, 3))).astype(np.uint8)
    size = (round(width / ratio), round(height / ratio))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def found(image):
    """Return the centres ``(N, 2)`` of the dark discs of an image, weighted by how dark they are."""
    dark = WHITE[1] - image[..., 1].astype(float)
    dark[dark < 12] = 0
    labels, count = ndimage.label(dark > 0)
    mass = ndimage.sum(dark, labels, range(1, count + 1))
    centres = np.array(ndimage.center_of_mass(dark, labels, range(1, count + 1)))
    return centres[mass > mass.max() / 20, ::-1]


def table(points, boxes=None):
    """Return nuclei at points ``(N, 2)``, each with an outline of that one point."""
    boxes = np.hstack([points, points]) if boxes is None else np.asarray(boxes, np.float64)
    count = len(points)
    return Nuclei(
        centroid=np.asarray(points, np.float64),
        bbox=boxes,
        type=np.zeros(count, np.int32),
        type_prob=np.zeros(count, np.float32),
        contour_offsets=np.arange(count + 1),
        contour_points=np.asarray(points, np.float64),
        label=np.arange(1, count + 1, dtype=np.int32),
    )


def write_aperio(path: Path, levels, *, compression="deflate", mpp=True):
    """Write a file that OpenSlide takes for one of an Aperio scanner."""
    height, width = levels[0].shape[:2]
    description = APERIO.format(width, height) if mpp else APERIO.format(width, height).split("|")[0]
    with tifffile.TiffWriter(path) as writer:
        for level in levels:
            options = {"tile": (256, 256), "photometric": "rgb", "compression": compression, "metadata": None}
            writer.write(level, description=description, software=False, **options)
    return path


def write_ome(path: Path, levels, *, separate=False, mpp=MPP, magnification=None, **options):
    """Write an OME-TIFF; its levels are pages within the first, or images of their own."""
    metadata = {"axes": "YXS"} | ({} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp})
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"} | options
    with tifffile.TiffWriter(path, ome=True) as writer:
        for i, level in enumerate(levels):
            pyramid = {} if separate else {"subifds": len(levels) - 1} if i == 0 else {"subfiletype": 1}
            writer.write(level, metadata=metadata if separate or i == 0 else None, **pyramid, **options)
    return path


def write_plain(path: Path, levels, **options):
    """Write a TIFF whose levels are pages marked as reduced; the resolution stands in the tags."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "lzw"} | options
    with tifffile.TiffWriter(path) as writer:
        for i, level in enumerate(levels):
            resolution = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
            writer.write(level, metadata=None, subfiletype=int(i > 0), **resolution, **options)
    return path


class ArraySlide(SlideReader):
    """A slide of arrays, for what needs no file."""

    reader = "array"

    def __init__(self, levels, *, bounds=None, **stated):
        sizes = tuple((level.shape[1], level.shape[0]) for level in levels)
        super().__init__(Path("array.svs"), level_sizes=sizes, bounds=bounds, **stated)
        self.levels, self.largest_read = levels, 0

    def _read(self, level, x, y, width, height):
        self.largest_read = max(self.largest_read, width * height)
        return self.levels[level][y : y + height, x : x + width].copy()
