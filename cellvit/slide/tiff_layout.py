"""How a TIFF file holds a slide: the pyramid levels, and the strips or tiles of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from cellvit.slide.reader import Rgb8, channels_last, to_rgb
from cellvit.slide.slide_base import OtherReaderError, Size

MAX_CHUNK_BYTES = 2**30
"""Largest strip or tile, decoded."""

_MIN_RATIO = 1.2


@dataclass(frozen=True)
class TiffLevel:
    """One image of a file: the same strips or tiles in one page, or in three pages or planes of one colour each.

    Attributes:
        pages: The page, or one page per colour.
        size: ``(width, height)``.
        chunk: ``(width, height)`` of a strip or tile.
        mapped: The pixels as they lie in the file ``(H, W, C)``, where they are one piece without compression.
        certain: Whether the file says that this is a level; else only the size says so.
    """

    pages: tuple[Any, ...]
    size: Size
    chunk: Size
    mapped: NDArray[Any] | None = None
    certain: bool = True

    @property
    def grid(self) -> Size:
        """Chunks in a row and in a column."""
        return -(-self.size[0] // self.chunk[0]), -(-self.size[1] // self.chunk[1])

    @property
    def planes(self) -> int:
        """Colour planes that a page holds apart from each other."""
        page = self.pages[0].keyframe
        return int(page.samplesperpixel) if int(page.planarconfig) == 2 else 1

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk as 8-bit RGB."""
        return self.chunk[0] * self.chunk[1] * 3

    @property
    def end(self) -> int:
        """Number of bytes the file must have to hold this image."""
        return max(
            (offset + count for page in self.pages for offset, count in zip(*_places(page), strict=False)), default=0
        )

    def decode(self, column: int, row: int, read: Callable[[int, int], bytes]) -> Rgb8:
        """Return one chunk ``(h, w, 3)``, cut off at the edge of the image; what the file leaves out is white.

        Args:
            column: Of the grid.
            row: Of the grid.
            read: Returns the bytes of the file from an offset on.
        """
        width = min(self.chunk[0], self.size[0] - column * self.chunk[0])
        height = min(self.chunk[1], self.size[1] - row * self.chunk[1])
        columns, rows = self.grid
        planes = []
        for page in self.pages:
            keyframe = page.keyframe
            offsets, counts = _places(page)
            for plane in range(self.planes):
                index = (plane * rows + row) * columns + column
                encoded = read(offsets[index], counts[index]) if counts[index] else None
                tables = getattr(page, "jpegtables", None) or keyframe.jpegtables
                pixels = keyframe.decode(encoded, index, jpegtables=tables)[0]
                if pixels is None:
                    shape = (height, width, 1 if self.planes > 1 else keyframe.samplesperpixel)
                    planes.append(np.full(shape, np.iinfo(keyframe.dtype).max, keyframe.dtype))
                else:
                    planes.append(pixels[0, :height, :width])
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return to_rgb(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))


def tiff_levels(tiff: tifffile.TiffFile) -> list[TiffLevel]:
    """Return the levels of the first image of a file, full resolution first.

    Levels are what tifffile knows as a pyramid, pages marked as reduced, and (not certain) further images of an
    OME-TIFF that have the same proportions.

    Args:
        tiff: An open file.

    Raises:
        ImageError: If the image is a stack.
        OtherReaderError: If its pixels are of a kind that is left to the readers of whole images.
    """
    first = tiff.series[0]
    levels = {(full := _level(first, tiff)).size: full}
    marked = [series for series in tiff.series[1:] if series.keyframe.is_reduced and not tiff.is_svs]
    for series in [*first.levels[1:], *marked]:
        if _is_smaller(series, full.size):
            level = _level(series, tiff)
            levels.setdefault(level.size, level)
    if len(levels) == 1 and tiff.is_ome:
        for series in tiff.series[1:]:
            if _is_smaller(series, full.size):
                level = _level(series, tiff, certain=False)
                levels.setdefault(level.size, level)
    return sorted(levels.values(), key=lambda level: -level.size[0] * level.size[1])


def _is_smaller(series: Any, full: Size) -> bool:
    """Tell whether a series has the proportions of an image and is smaller; labels and pictures of a slide have not."""
    width, height = series.keyframe.imagewidth, series.keyframe.imagelength
    if full[0] < _MIN_RATIO * width or full[1] < _MIN_RATIO * height:
        return False
    # both sides were rounded to pixels: the ratios agree within what a pixel more or less makes
    low = max(full[0] / (width + 1), full[1] / (height + 1))
    high = min(full[0] / max(width - 1, 0.5), full[1] / max(height - 1, 0.5))
    return bool(low <= high)


def _level(series: Any, tiff: tifffile.TiffFile, *, certain: bool = True) -> TiffLevel:
    page, size = series.keyframe, (series.keyframe.imagewidth, series.keyframe.imagelength)
    # an array of the shape without the memory: whether the axes are those of one image is decided in one place
    shape = channels_last(np.broadcast_to(np.uint8(0), series.shape), series.axes).shape
    pages: Sequence[Any] = list(series.pages)
    expected = 1 if page.samplesperpixel > 1 or len(shape) == 2 else shape[2]
    if (shape[1], shape[0]) != size or len(pages) != expected:
        raise OtherReaderError(f"axes {series.axes} {series.shape} in {len(pages)} pages")
    _require_simple(page)
    if any(p is None or p.parent is not tiff for p in pages):
        raise OtherReaderError("its pixels lie in several files")
    if len(pages) == 1 and page.is_memmappable:
        return TiffLevel(tuple(pages), size, size, mapped=_mapped(page), certain=certain)
    chunk = (page.tilewidth, page.tilelength) if page.is_tiled else (size[0], min(page.rowsperstrip, size[1]))
    return TiffLevel(tuple(pages), size, chunk, certain=certain)


def _require_simple(page: Any) -> None:
    """Leave colour spaces, bit depths and orientations that slides do not have to the readers of whole images."""
    if page.photometric not in (1, 2, 6):
        raise OtherReaderError(f"colour space {page.photometric!s}")
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        raise OtherReaderError(f"{page.bitspersample} bits of {page.dtype}")
    if int(page.tags.valueof("Orientation", default=1)) != 1 or page.imagedepth != 1:
        raise OtherReaderError("rotated or three-dimensional")


def _mapped(page: Any) -> NDArray[Any]:
    pixels: NDArray[Any] = page.asarray(out="memmap", squeeze=False)[:, 0]
    return pixels[0] if pixels.shape[0] == 1 else np.moveaxis(pixels[..., 0], 0, -1)


def _places(page: Any) -> tuple[Sequence[int], Sequence[int]]:
    return page.dataoffsets, page.databytecounts
