"""Slides in the formats of scanners, read with OpenSlide: Aperio, Hamamatsu, MIRAX, Leica, Ventana, DICOM and more."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cellvit.io.images import DAMAGE, Rgb8, one_line
from cellvit.io.resolution import StatedResolution, Statement, axes_statement, length, positive, settle
from cellvit.io.tiff_metadata import aperio_statement, is_tiff, quiet_tifffile, tags_statement
from cellvit.slide.readers.base import READERS, Box, OtherReaderError, Size, SlideReader, cache_bytes
from cellvit.slide.resampling import resize_box

if TYPE_CHECKING:  # the library is loaded when the first slide is opened
    from openslide import OpenSlide
    from tifffile import TiffFile

CACHE_BYTES = 2**27
"""Memory of OpenSlide for decoded tiles of one slide."""

_TIFF_UNITS = {"inch": 2, "centimeter": 3}
_GENERIC = "generic-tiff"  # left to the reader of TIFF
_BLOCK = 256
_MARGIN = 4
_KEPT = tuple(
    f"openslide.{name}" for name in ("vendor", "objective-power", "mpp-x", "mpp-y", "quickhash-1", "level-count")
)


def scanner_format(path: Path) -> str | None:
    """Return what OpenSlide calls the format of a file, such as "aperio" or "generic-tiff", or None.

    Args:
        path: The file.
    """
    from openslide import OpenSlide, OpenSlideError

    try:
        found: str | None = OpenSlide.detect_format(path)
    except OpenSlideError:
        return None
    return found


def bounds_of(properties: Mapping[str, str], size: Size) -> Box:
    """Return the scanned part ``(x, y, width, height)`` that properties of OpenSlide state, or the whole slide.

    Args:
        properties: With or without ``openslide.bounds-x`` and its like.
        size: ``(width, height)`` of the slide.

    Example:
        >>> bounds_of({f"openslide.bounds-{k}": v for k, v in zip(["x", "y", "width", "height"], "2395")}, (100, 100))
        (2, 3, 9, 5)
        >>> bounds_of({}, (100, 80))
        (0, 0, 100, 80)
    """
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{key}"]) for key in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return 0, 0, *size
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, size[0]), min(y + height, size[1])
    return (left, top, right - left, bottom - top) if left < right and top < bottom else (0, 0, *size)


def resolution_of(properties: Mapping[str, str]) -> StatedResolution:
    """Return what properties of OpenSlide state about the resolution, and a note for every doubt.

    Args:
        properties: With or without ``openslide.mpp-x``, ``openslide.objective-power``, what the scanner wrote and the
            tags of the first page.

    Example:
        >>> resolution_of({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25", "openslide.vendor": "aperio"}).mpp
        (0.25, 0.25)
        >>> resolution_of({"aperio.MPP": "0"}).notes[0][:46]
        'states no resolution that can be used: MPP = 0'
    """
    axes = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    statements = [_scanner_statement(properties.get("openslide.vendor", "scanner"), axes)]
    if statements == [None]:  # OpenSlide leaves out what it cannot read
        statements = [aperio_statement(properties.get("aperio.MPP"))]
    tags = [properties.get(f"tiff.{axis}Resolution") for axis in "XY"]
    unit = _TIFF_UNITS.get(properties.get("tiff.ResolutionUnit", "inch"), 1)
    statements.append(tags_statement((tags[0], tags[1]), unit))
    power = positive(properties.get("openslide.objective-power"))
    return settle([statement for statement in statements if statement is not None], magnification=power)


def _scanner_statement(vendor: str, axes: list[str | None]) -> Statement | None:
    if axes == [None, None]:
        return None
    x, y = (None if text is None else length(text, "um") for text in axes)
    quote = " ".join(f"mpp-{name} = {text}" for name, text in zip("xy", axes, strict=True) if text is not None)
    return axes_statement(f"metadata ({vendor})", quote, (x, y), missing="mpp-y" if y is None else "mpp-x")


@READERS.register("openslide")
class OpenSlideReader(SlideReader):
    """A slide read with OpenSlide.

    Args:
        path: The file.

    Raises:
        OtherReaderError: If OpenSlide cannot open it, or would not read its pixels as the file says.
    """

    reader = "openslide"
    priority = 30

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Tell whether a file is in the format of a scanner.

        What OpenSlide calls a generic TIFF is left to the reader of TIFF, which sees the levels and the resolution of
        an OME-TIFF and whether a file is a stack.

        Args:
            path: The file.
        """
        return scanner_format(path) not in (None, _GENERIC)

    def __init__(self, path: Path) -> None:
        from openslide import OpenSlideError

        _require_plain(path)
        self._cache_bytes = cache_bytes(CACHE_BYTES)
        try:
            self._handle = _open(path, self._cache_bytes)
        except OpenSlideError as error:
            raise OtherReaderError(one_line(error)) from error
        stated = self._handle.properties
        size = self._handle.dimensions
        super().__init__(
            path,
            level_sizes=tuple(self._handle.level_dimensions),
            bounds=bounds_of(stated, size),
            resolution=resolution_of(stated),
            properties={key: stated[key] for key in _KEPT if key in stated},
        )
        self._downsamples = self._handle.level_downsamples
        self._swap = threading.Lock()

    def close(self) -> None:
        """Close the file; closing twice does nothing more."""
        if not self._closed:
            super().close()
            self._handle.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        downsample = self._downsamples[level]
        if downsample == int(downsample):
            return self._pixels(level, (x * int(downsample), y * int(downsample)), width, height)
        region = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % _BLOCK, y + height, _BLOCK):
            for left in range(x - x % _BLOCK, x + width, _BLOCK):
                block = self._block(level, left, top)
                x0, y0 = max(left, x), max(top, y)
                x1, y1 = min(left + block.shape[1], x + width), min(top + block.shape[0], y + height)
                region[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def _block(self, level: int, left: int, top: int) -> Rgb8:
        """Return the pixels of a level, in a block of a fixed grid, where level-0 pixels do not divide evenly.

        OpenSlide takes a place in whole level-0 pixels and returns the level moved by the rest. The block is moved
        back, and always read at the same place, so that a pixel does not depend on the region that is asked for.
        """
        downsample = self._downsamples[level]
        spans = []
        for start, full in zip((left, top), self.level_sizes[level], strict=True):
            stop = min(start + _BLOCK, full)
            low, high = max(start - _MARGIN, 0), min(stop + _MARGIN, full)
            place = round(low * downsample)
            spans.append((stop - start, high - low, place, start - place / downsample))
        (width, read_width, x, x_shift), (height, read_height, y, y_shift) = spans
        pixels = self._pixels(level, (x, y), read_width, read_height)
        box = (x_shift, y_shift, x_shift + width, y_shift + height)
        return resize_box(pixels, (width, height), box, filter=Image.Resampling.LANCZOS)

    def _pixels(self, level: int, place: tuple[int, int], width: int, height: int) -> Rgb8:
        from openslide import OpenSlideError

        handle = self._handle
        try:
            return _on_white(handle.read_region(place, level, (width, height)))
        except OpenSlideError as error:
            first = error
        # After an error a handle refuses everything. It may have been another thread's: a fresh one tells.
        try:
            fresh = _open(self.path, self._cache_bytes)
            pixels = _on_white(fresh.read_region(place, level, (width, height)))
        except OpenSlideError:
            self._replace(handle)
            x, y = (round(value / self._downsamples[level]) for value in place)
            raise self._damaged(level, (x, y, width, height), one_line(first)) from first
        with self._swap:
            self._handle = fresh
        return pixels

    def _replace(self, broken: "OpenSlide") -> None:
        """Open the file again for the regions that are sound, unless another thread has done so."""
        from openslide import OpenSlideError

        with self._swap, suppress(OpenSlideError):
            if self._handle is broken:
                self._handle = _open(self.path, self._cache_bytes)


def _require_plain(path: Path) -> None:
    """Leave a TIFF to other readers where OpenSlide passes over a tag: it turns each tile in itself, and guesses alpha.

    Args:
        path: The file of a slide.

    Raises:
        OtherReaderError: If the first page, or a tiled one, is turned, has more samples than colours, or other bits.
    """
    from tifffile import TiffFile

    if not is_tiff(path):
        return
    odd = None
    with suppress(*DAMAGE), quiet_tifffile(), TiffFile(path) as tiff:
        odd = next(filter(None, (_odd(page) for page in _scans(tiff))), None)
    if odd is not None:
        raise OtherReaderError(f"it does not read {odd} as the file means it")


def _scans(tiff: "TiffFile") -> Iterator[Any]:
    """Yield the first page and those that are tiled: not labels and overviews, whose tags do not matter."""
    for number, page in enumerate(tiff.pages):
        frame: Any = page.keyframe
        if number == 0 or frame.is_tiled:
            yield frame


def _odd(page: Any) -> str | None:
    """Return the tag of a page that OpenSlide does not heed, or None."""
    orientation = int(page.tags.valueof("Orientation", default=1))
    if orientation != 1:
        return f"Orientation {orientation}"
    if page.extrasamples:
        return f"ExtraSamples {[int(kind) for kind in page.extrasamples]}"
    return None if page.bitspersample == 8 else f"BitsPerSample {page.bitspersample}"


def _open(path: Path, cache: int) -> "OpenSlide":
    from openslide import OpenSlide, OpenSlideCache

    handle = OpenSlide(path)
    handle.set_cache(OpenSlideCache(cache))
    return handle


def _on_white(image: Image.Image) -> Rgb8:
    """Return pixels as RGB, white where the slide has none.

    A pixel is covered or not: where the edge of a tile covers it in part, its colour counts, without a light rim.
    """
    pixels = np.array(image.convert("RGB"))  # a copy: what Pillow holds cannot be written to
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return pixels
    return np.where((np.asarray(alpha) >= 128)[..., None], pixels, np.uint8(255))
