"""Maps of labels: nuclei as pixels of an image, tile by tile, and back."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import skimage.draw
from numpy.typing import NDArray
from scipy import ndimage

from cellvit.geometry.outlines import edge_rings
from cellvit.geometry.polygons import ring_bounds, ring_offsets
from cellvit.io.data_frames import nuclei_of_rings
from cellvit.io.frames import find_border
from cellvit.io.loaded import LoadedNuclei
from cellvit.io.provenance import with_mpp
from cellvit.io.stream import NucleiStream, blocks
from cellvit.io.text import CHUNK, check_finite
from cellvit.io.valid_polygons import valid_rings
from cellvit.types import Nuclei

TILE = 512
"""Side of the tiles of label images in pixels."""
_SMALLEST = 256  # the longer side of the smallest level of a pyramid, at most


class LabelImage:
    """Nuclei as a pyramid of labels, of which single tiles are drawn.

    A pixel has the label of the last nucleus that its centre lies in, in the order of the rows, 0 for none. Outlines
    are held in memory, about 500 bytes each; never the image.

    Args:
        stream: The nuclei, iterated once. Labels are theirs, or the numbers of the rows from 1 where labels repeat or
            are not above 0.
        size: Width and height of the image in pixels.

    Attributes:
        size: See above.
        labels: ``(N,)`` uint32.
        types: ``(N,)`` int32.

    Raises:
        DataError: If a coordinate is not finite.
    """

    def __init__(self, stream: NucleiStream, size: tuple[int, int]) -> None:
        self.size = size
        labels, types = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        points, lengths = [np.zeros((0, 2))], [np.zeros(0, np.int64)]
        for row, block in blocks(stream, CHUNK, classes=stream.classes, embedding_dim=None):
            check_finite(block, first=row)
            outline, offsets = valid_rings(block)
            labels.append(block.label.astype(np.int64))
            types.append(block.type)
            points.append(outline)
            lengths.append(np.diff(offsets))
        given, self.types = np.concatenate(labels), np.concatenate(types)
        usable = len(np.unique(given)) == len(given) and given.min(initial=1) > 0
        self.labels = (given if usable else np.arange(1, len(given) + 1)).astype(np.uint32)
        self._points, self._offsets = np.concatenate(points), ring_offsets(np.concatenate(lengths))
        self._bounds = ring_bounds(self._points, self._offsets)

    @property
    def levels(self) -> int:
        """Number of levels, each half as wide as the one before."""
        return 1 + max(0, math.ceil(math.log2(max(self.size) / _SMALLEST)))

    def level_shape(self, level: int) -> tuple[int, int]:
        """Return the height and width of a level in its pixels."""
        width, height = (max(1, -(-side // 2**level)) for side in self.size)
        return height, width

    def tiles(self, level: int) -> Iterator[tuple[int, int, NDArray[np.uint32]]]:
        """Yield the tiles of a level in reading order: first row, first column, and ``(h, w)`` labels.

        Args:
            level: A pixel of it has the label at the centre of the ``2 ** level`` pixels that it covers.
        """
        height, width = self.level_shape(level)
        bounds = self._bounds / 2**level
        for y in range(0, height, TILE):
            in_band = np.flatnonzero((bounds[:, 3] > y) & (bounds[:, 1] < y + TILE))
            for x in range(0, width, TILE):
                rows = in_band[(bounds[in_band, 2] > x) & (bounds[in_band, 0] < x + TILE)]
                tile = np.zeros((min(TILE, height - y), min(TILE, width - x)), np.uint32)
                for row in rows.tolist():
                    ring = self._points[self._offsets[row] : self._offsets[row + 1]] / 2**level - (x + 0.5, y + 0.5)
                    inside = skimage.draw.polygon(ring[:, 1], ring[:, 0], tile.shape)  # type: ignore[no-untyped-call]
                    tile[inside] = self.labels[row]
                yield y, x, tile


def ring_of_pixels(pixels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return the outline of pixels that are numbered down the columns of an image, ``(K, 2)``.

    Args:
        pixels: ``(P,)`` numbers.
        shape: Height and width of the image.
    """
    if not len(pixels):
        return np.zeros((0, 2))
    x, y = np.divmod(pixels, shape[0])
    left, top = int(x.min()), int(y.min())
    mask = np.zeros((int(y.max()) - top + 1, int(x.max()) - left + 1), np.uint8)
    mask[y - top, x - left] = 1
    border = find_border(mask, (left, top))
    return edge_rings(border, np.array([0, len(border)]))[0]


def nuclei_of_map(
    instances: NDArray[Any],
    *,
    source: str,
    types: Mapping[int, int] | None = None,
    names: Mapping[int, str] | None = None,
    mpp: float | None = None,
) -> Nuclei:
    """Return the nuclei of a map of labels, outlined along the edges of their pixels; of several pieces the largest.

    Args:
        instances: ``(H, W)`` integers, 0 is background.
        source: What it is from; named in errors.
        types: Type by label; a label that is not among them has none.
        names: Name by type; None or empty where types are numbers.
        mpp: Microns per pixel.
    """
    labels, places = np.unique(instances, return_inverse=True)
    dense = places.reshape(instances.shape).astype(np.int32)
    if len(labels) and labels[0] > 0:
        dense += 1
    borders = [
        find_border((dense[box] == number).view(np.uint8), (box[1].start, box[0].start))
        for number, box in enumerate(ndimage.find_objects(dense), start=1)
    ]
    points, offsets = edge_rings(
        np.concatenate([np.zeros((0, 2), np.int64), *borders]), ring_offsets([len(border) for border in borders])
    )
    ids, kinds = labels[labels > 0], types or {}
    numbers = [kinds.get(label, 0) for label in ids.tolist()]
    columns: dict[str, NDArray[Any]] = {"label": ids, "type_id": np.array(numbers, np.int64)}
    if names:
        columns["type"] = np.array([names.get(number) for number in numbers], object)
    rings = np.split(points, offsets[1:-1]) if len(ids) else []
    return nuclei_of_rings(rings, columns, source=source, about=with_mpp(None, mpp))


def nuclei_of_loaded(found: LoadedNuclei) -> Nuclei:
    """Return what a file of other tools says as a table."""
    if found.outlines is not None:
        return found.outlines
    assert found.instance_map is not None  # it is one or the other
    names = {} if found.names is None else dict(enumerate(found.names[1:], start=1))
    types = {} if found.types is None else dict(enumerate(found.types.tolist()))
    return nuclei_of_map(found.instance_map, source=f"'{found.path}'", types=types, names=names)
