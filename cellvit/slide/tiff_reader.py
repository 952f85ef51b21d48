"""Slides as TIFF files: OME-TIFF, tiled pyramids, large images in strips; 8 and 16 bits, grey, RGB, with alpha."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import tifffile
from PIL import Image

from cellvit.errors import ImageError
from cellvit.slide.chunk_cache import ChunkCache
from cellvit.slide.reader import DAMAGE, Rgb8, one_line, to_rgb
from cellvit.slide.slide_base import OtherReaderError, SlideReader
from cellvit.slide.tiff_layout import MAX_CHUNK_BYTES, TiffLevel, tiff_levels
from cellvit.slide.tiff_metadata import plausible_mpp, quiet_tifffile, stated_magnification, stated_mpp

CACHE_BYTES = 2**28
"""Memory for decoded strips and tiles of one slide; a slide in long strips may take up to ``MAX_CHUNK_BYTES``."""

_PATCH = 32
_SAME_GREY = 8.0  # mean difference of grey values that compression and another way of shrinking can make
_Stated = TypeVar("_Stated")


class TiffSlide(SlideReader):
    """A slide read strip by strip or tile by tile.

    Args:
        path: A TIFF file.

    Raises:
        OtherReaderError: If it is not a TIFF, or one with unusual pixels that another reader may know.
        ImageError: If no reader can help: a stack, a file that is cut short, strips that are too large.
    """

    reader = "tiff"

    def __init__(self, path: Path) -> None:
        try:
            with quiet_tifffile():
                self._tiff = tifffile.TiffFile(path)
        except DAMAGE as error:
            raise OtherReaderError(one_line(error)) from error
        try:
            with quiet_tifffile():
                levels = tiff_levels(self._tiff)
                super().__init__(
                    path,
                    level_sizes=tuple(level.size for level in levels),
                    stated_mpp=plausible_mpp(_or_none(stated_mpp, self._tiff)),
                    stated_magnification=_or_none(stated_magnification, self._tiff),
                    properties=_properties(self._tiff),
                )
            _require_readable(path, levels)
            self._file = path.open("rb")
        except BaseException as error:
            self._tiff.close()
            if isinstance(error, DAMAGE) and not isinstance(error, ImageError):
                raise OtherReaderError(one_line(error)) from error
            raise
        self._levels, self._file_lock = levels, threading.Lock()
        self._cache = ChunkCache(CACHE_BYTES, largest=MAX_CHUNK_BYTES)
        self._try_first_chunk()
        self._levels = [level for i, level in enumerate(levels) if level.certain or self._shows_the_same(i)]
        self.level_sizes = tuple(level.size for level in self._levels)
        self._cache.clear()  # the numbers of the levels may have changed

    def close(self) -> None:
        """Close the file and forget what was decoded; closing twice does nothing more."""
        if not self._closed:
            super().close()
            self._cache.clear()
            self._file.close()
            self._tiff.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        image = self._levels[level]
        if image.mapped is not None:
            part = image.mapped[y : y + height, x : x + width]
            return to_rgb(np.array(part, dtype=part.dtype.newbyteorder("=")))
        region = np.empty((height, width, 3), np.uint8)
        columns = range(x // image.chunk[0], -(-(x + width) // image.chunk[0]))
        rows = range(y // image.chunk[1], -(-(y + height) // image.chunk[1]))
        self._cache.reserve(2 * len(columns) * len(rows) * image.chunk_bytes)
        for row in rows:
            for column in columns:
                left, top = column * image.chunk[0], row * image.chunk[1]
                chunk = self._chunk(level, column, row)
                x0, y0 = max(left, x), max(top, y)
                x1, y1 = min(left + chunk.shape[1], x + width), min(top + chunk.shape[0], y + height)
                region[y0 - y : y1 - y, x0 - x : x1 - x] = chunk[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def _chunk(self, level: int, column: int, row: int) -> Rgb8:
        image = self._levels[level]
        try:
            return self._cache.get((level, column, row), lambda: image.decode(column, row, self._bytes))
        except DAMAGE as error:
            place = (column * image.chunk[0], row * image.chunk[1])
            raise self._damaged(level, (*place, *image.chunk), one_line(error)) from error

    def _bytes(self, offset: int, count: int) -> bytes:
        with self._file_lock:
            self._file.seek(offset)
            found = self._file.read(count)
        if len(found) < count:
            raise EOFError("the file ends before")
        return found

    def _try_first_chunk(self) -> None:
        """Find out at once whether the compression is one that can be read."""
        try:
            if self._levels[0].mapped is None:
                self._chunk(0, 0, 0)
        except ImageError as error:
            self.close()
            raise OtherReaderError(one_line(error.__cause__)) from error

    def _shows_the_same(self, level: int) -> bool:
        """Tell whether a level looks like the full image, at nine places; another scan may have its proportions."""
        (full_width, full_height), (width, height) = self.level_sizes[0], self.level_sizes[level]
        side = min(_PATCH, width, height)
        ratio = (full_width / width, full_height / height)
        for i in range(9):
            x, y = (width - side) * (i % 3) // 2, (height - side) * (i // 3) // 2
            part = Image.fromarray(self.read_region(x, y, side, side, level=level))
            full = [round(value) for value in (x * ratio[0], y * ratio[1], side * ratio[0], side * ratio[1])]
            whole = Image.fromarray(self.read_region(full[0], full[1], full[2], full[3]))
            small = [np.asarray(p.resize((8, 8), Image.Resampling.BOX), np.int16) for p in (part, whole)]
            if np.abs(small[0] - small[1]).mean() > _SAME_GREY:
                return False
        return True


def _require_readable(path: Path, levels: list[TiffLevel]) -> None:
    size = path.stat().st_size
    for number, level in enumerate(levels):
        if level.mapped is None and level.chunk_bytes > MAX_CHUNK_BYTES:
            raise ImageError(
                f"{str(path)!r} holds {level.size[0]} x {level.size[1]} px in pieces of "
                f"{level.chunk[0]} x {level.chunk[1]} px, too large to decode; convert it to a tiled, pyramidal TIFF"
            )
        if level.end > size:
            raise ImageError(
                f"{str(path)!r} is cut short: level {number} ends at byte {level.end:,} and the file at {size:,}; "
                "copy or export it again"
            )


def _properties(tiff: tifffile.TiffFile) -> dict[str, str]:
    page = tiff.series[0].keyframe
    return {
        "tiff.kind": str(tiff.series[0].kind),
        "tiff.compression": str(getattr(page.compression, "name", "unknown")),
    }


def _or_none(ask: Callable[[tifffile.TiffFile], _Stated | None], tiff: tifffile.TiffFile) -> _Stated | None:
    """Return what a file states, or None where its statement cannot be understood."""
    try:
        return ask(tiff)
    except DAMAGE:
        return None
