"""Slides as TIFF files: OME-TIFF, tiled pyramids, large images in strips; 8 and 16 bits, grey, RGB, with alpha.

Two pieces: which images of a file are the levels of a pyramid and where their strips or tiles lie
(:class:`TiffLevel`), and the slide that is put together from them (:class:`TiffSlide`).
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.images import DAMAGE, Rgb8, channels_last, one_line
from cellvit.io.pixels import Samples, tiff_samples
from cellvit.io.remote import RemoteFile, RemotePath
from cellvit.io.resolution import StatedResolution
from cellvit.io.scenes import Scene, SceneName, choose_scene, is_smaller, tiff_scenes
from cellvit.io.tiff_metadata import is_tiff, open_tiff, quiet_tifffile, tiff_resolution
from cellvit.slide.naming import SCANNER_SUFFIXES
from cellvit.slide.readers.base import LARGE, READERS, OtherReaderError, Size, SlideReader, cache_bytes
from cellvit.slide.readers.chunks import ChunkCache

if TYPE_CHECKING:  # the library is loaded when the first file is opened
    from tifffile import TiffFile

CACHE_BYTES = 2**28
"""Memory for decoded strips and tiles of one slide; a slide in long strips may take up to ``MAX_CHUNK_BYTES``."""

MAX_CHUNK_BYTES = 2**30
"""Largest strip or tile, decoded."""

_PATCH = 32  # side of the places at which an uncertain level is compared with the full image
_SAME_GREY = 8.0  # mean difference of grey values that compression and another way of shrinking can make
_SAMPLE_CHUNKS = 16  # looked at to find out how many bits count and whether there is anything but transparency


@dataclass(frozen=True)
class TiffLevel:
    """One image of a file: the same strips or tiles in one page, or in three pages or planes of one colour each.

    Attributes:
        pages: The page, or one page per colour.
        size: ``(width, height)``.
        chunk: ``(width, height)`` of a strip or tile.
        samples: What the samples of a pixel are.
        mapped: The pixels as they lie in the file ``(H, W, C)``, where they are one piece without compression.
        certain: Whether the file says that this is a level; else only the size says so.
    """

    pages: tuple[Any, ...]
    size: Size
    chunk: Size
    samples: Samples
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
        """Return one chunk as 8-bit RGB ``(h, w, 3)``.

        Args:
            column: Number of the chunk in its row, from 0.
            row: Number of its row, from 0.
            read: Returns the bytes of the file from an offset on.
        """
        return self.samples.rgb(self.stored(column, row, read))

    def stored(self, column: int, row: int, read: Callable[[int, int], bytes]) -> NDArray[Any]:
        """Return one chunk ``(h, w, C)``, cut off at the edge of the image; what the file leaves out is white.

        Args:
            column: Number of the chunk in its row, from 0.
            row: Number of its row, from 0.
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
                    white = np.iinfo(keyframe.dtype).max if self.samples.white is None else self.samples.white
                    planes.append(np.full(shape, white, keyframe.dtype))
                else:
                    planes.append(pixels[0, :height, :width])
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def tiff_levels(tiff: "TiffFile", scene: Scene) -> list[TiffLevel]:
    """Return the levels of an image of a file, full resolution first.

    Levels are what tifffile knows as a pyramid, pages marked as reduced, and (not certain) further images of an
    OME-TIFF that have the same proportions.

    Args:
        tiff: An open file.
        scene: The image.

    Raises:
        ImageError: If the image is a stack.
        OtherReaderError: If its pixels are of a kind that is left to the readers of whole images.
    """
    levels = {(full := _level(scene.levels[0], tiff)).size: full}
    others = [other for other in tiff_scenes(tiff) if other.index != scene.index]
    marked = [image for other in others if other.reduced and not tiff.is_svs for image in other.levels]
    for series in [*scene.levels[1:], *marked]:
        if is_smaller(_size(series), full.size):
            level = _level(series, tiff)
            levels.setdefault(level.size, level)
    if len(levels) == 1 and tiff.is_ome:
        for other in others:
            if is_smaller(other.size, full.size):
                level = _level(other.levels[0], tiff, certain=False)
                levels.setdefault(level.size, level)
    return sorted(levels.values(), key=lambda level: -level.size[0] * level.size[1])


def _size(series: Any) -> Size:
    return series.keyframe.imagewidth, series.keyframe.imagelength


def _level(series: Any, tiff: "TiffFile", *, certain: bool = True) -> TiffLevel:
    page, size = series.keyframe, _size(series)
    # an array of the shape without the memory: whether the axes are those of one image is decided in one place
    shape = channels_last(np.broadcast_to(np.uint8(0), series.shape), series.axes).shape
    pages: Sequence[Any] = list(series.pages)
    expected = 1 if page.samplesperpixel > 1 or len(shape) == 2 else shape[2]
    if (shape[1], shape[0]) != size or len(pages) != expected:
        raise OtherReaderError(f"axes {series.axes} {series.shape} in {len(pages)} pages")
    _require_simple(page)
    if any(p is None or p.parent is not tiff for p in pages):
        raise OtherReaderError("its pixels lie in several files")
    samples = tiff_samples(tiff, page, 1 if len(shape) == 2 else shape[2])[0]
    if len(pages) == 1 and page.is_memmappable:
        return TiffLevel(tuple(pages), size, size, samples, mapped=_mapped(page), certain=certain)
    chunk = (page.tilewidth, page.tilelength) if page.is_tiled else (size[0], min(page.rowsperstrip, size[1]))
    if min(chunk) < 1:
        raise OtherReaderError(f"tiles of {chunk[0]} x {chunk[1]} px")
    return TiffLevel(tuple(pages), size, chunk, samples, certain=certain)


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


@READERS.register("tiff")
class TiffSlide(SlideReader):
    """A slide read strip by strip or tile by tile.

    Args:
        path: A TIFF file.
        scene: Number, from 0, or name of the image to read; None is the largest.

    Raises:
        OtherReaderError: If it is not a TIFF, or one with unusual pixels that another reader may know.
        ImageError: If no reader can help: a stack, a file that is cut short, strips that are too large; if the file
            holds several images of full size and ``scene`` chooses none.
    """

    reader = "tiff"
    priority = 20
    scenes = True
    addresses = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Tell whether a file begins like a TIFF.

        Args:
            path: The file.
        """
        return is_tiff(path)

    @classmethod
    def is_slide(cls, path: Path) -> bool:
        """Tell whether a TIFF is tiled, a pyramid or large.

        Args:
            path: The file.
        """
        with open_tiff(path) as tiff:
            scenes = tiff_scenes(tiff)
            largest = max(scenes, key=lambda scene: scene.area)
            reduced = any(scene.reduced for scene in scenes if scene is not largest)
            return bool(largest.page.is_tiled or len(largest.levels) > 1 or reduced or largest.area > LARGE)

    def __init__(self, path: Path, *, scene: SceneName | None = None) -> None:
        from tifffile import TiffFile

        self._file = path.open("rb")
        try:
            with quiet_tifffile():  # of a local file it maps what is not compressed
                self._tiff = TiffFile(self._file if isinstance(path, RemotePath) else path)
        except SourceLostError:
            raise
        except DAMAGE as error:
            self._file.close()
            raise OtherReaderError(one_line(error)) from error
        try:
            with quiet_tifffile():
                chosen, remarks = choose_scene(tiff_scenes(self._tiff), scene)
                levels = tiff_levels(self._tiff, chosen)
                super().__init__(
                    path,
                    level_sizes=tuple(level.size for level in levels),
                    resolution=_resolution(self._tiff, chosen),
                    properties=_properties(self._tiff, chosen),
                    warnings=[*_elsewhere(path), *remarks, *_dropped(self._tiff, levels[0])],
                )
            _require_readable(path, levels)
        except BaseException as error:
            self._tiff.close()
            self._file.close()
            if isinstance(error, DAMAGE) and not isinstance(error, ImageError):
                raise OtherReaderError(one_line(error)) from error
            raise
        self._levels, self._file_lock = levels, threading.Lock()
        self._cache = ChunkCache(cache_bytes(CACHE_BYTES), largest=MAX_CHUNK_BYTES)
        self._try_chunks()
        self._judge_samples()
        self._levels = [level for i, level in enumerate(self._levels) if level.certain or self._shows_the_same(i)]
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
            return image.samples.rgb(np.array(part, dtype=part.dtype.newbyteorder("=")))
        box = (x, y, width, height)
        return self._cache.region(box, image.chunk, lambda column, row: self._chunk(level, column, row))

    def _chunk(self, level: int, column: int, row: int) -> Rgb8:
        image = self._levels[level]
        try:
            return self._cache.get((level, column, row), lambda: image.decode(column, row, self._bytes))
        except SourceLostError:
            raise
        except DAMAGE as error:
            place = (column * image.chunk[0], row * image.chunk[1])
            raise self._damaged(level, (*place, *image.chunk), one_line(error)) from error

    def _bytes(self, offset: int, count: int) -> bytes:
        if isinstance(self._file, RemoteFile):
            found = self._file.read_at(offset, count)
        else:
            with self._file_lock:
                self._file.seek(offset)
                found = self._file.read(count)
        if len(found) < count:
            raise EOFError("the file ends before")
        return found

    def _try_chunks(self) -> None:
        """Find out at once whether the compression is one that can be read; a few pieces may be damaged."""
        if self._levels[0].mapped is not None:
            return
        first: ImageError | None = None
        for column, row in _spread(self._levels[0].grid, 5):
            try:
                self._chunk(0, column, row)
            except SourceLostError:
                raise
            except ImageError as error:
                first = first or error
            else:
                return
        if first is not None:
            self.close()
            raise OtherReaderError(one_line(first.__cause__)) from first

    def _judge_samples(self) -> None:
        """Find out what the file does not say: how many of 16 bits count; and tell where all is transparent."""
        level = self._levels[0]
        if level.samples.alpha is None and level.pages[0].keyframe.dtype != np.uint16:
            return
        samples, remarks = level.samples.judged(self._some_samples(level))
        self.warnings = (*self.warnings, *remarks)
        dtype = level.pages[0].keyframe.dtype  # an overview of other bits keeps its own white
        self._levels = [
            replace(each, samples=replace(each.samples, white=samples.white))
            if each.pages[0].keyframe.dtype == dtype
            else each
            for each in self._levels
        ]
        self._cache.clear()

    def _some_samples(self, level: TiffLevel) -> NDArray[Any]:
        """Return pixels ``(N, 1, C)`` as they are stored, from places all over the image; damaged ones are left out."""
        if level.mapped is not None:
            step = max(1, round((level.size[0] * level.size[1] / 2**20) ** 0.5))
            return np.asarray(level.mapped[::step, ::step]).reshape(-1, 1, level.samples.count)
        found = [np.empty((0, 1, level.samples.count), level.pages[0].keyframe.dtype)]
        for column, row in _spread(level.grid, _SAMPLE_CHUNKS):
            try:
                found.append(level.stored(column, row, self._bytes).reshape(-1, 1, level.samples.count))
            except SourceLostError:
                raise
            except DAMAGE:
                continue
        return np.concatenate(found)

    def _shows_the_same(self, level: int) -> bool:
        """Tell whether a level looks like the full image, at nine places; another scan may have its proportions."""
        (full_width, full_height), (width, height) = self.level_sizes[0], self.level_sizes[level]
        side = min(_PATCH, width, height)
        ratio = (full_width / width, full_height / height)
        compared = 0
        for i in range(9):
            x, y = (width - side) * (i % 3) // 2, (height - side) * (i // 3) // 2
            full = [round(value) for value in (x * ratio[0], y * ratio[1], side * ratio[0], side * ratio[1])]
            try:
                part = Image.fromarray(self.read_region(x, y, side, side, level=level))
                whole = Image.fromarray(self.read_region(full[0], full[1], full[2], full[3]))
            except SourceLostError:
                raise
            except ImageError:  # damage in one of the two says nothing about the other places
                continue
            compared += 1
            small = [np.asarray(p.resize((8, 8), Image.Resampling.BOX), np.int16) for p in (part, whole)]
            if np.abs(small[0] - small[1]).mean() > _SAME_GREY:
                return False
        return compared > 0


def _spread(grid: Size, count: int) -> list[tuple[int, int]]:
    """Return the first piece of a grid, the last, and some between, each once.

    Args:
        grid: ``(columns, rows)``.
        count: How many, at most.
    """
    total = grid[0] * grid[1]
    numbers = dict.fromkeys(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    return [(number % grid[0], number // grid[0]) for number in numbers]


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


def _elsewhere(path: Path) -> list[str]:
    """Return a sentence where another reader would read the file if it were local."""
    if not isinstance(path, RemotePath) or path.suffix.lower() not in SCANNER_SUFFIXES:
        return []
    return [
        "it lies at an address and is read as a TIFF; a local copy would be read by OpenSlide, which knows more of its "
        "scanner, such as the scanned part"
    ]


def _dropped(tiff: "TiffFile", level: TiffLevel) -> list[str]:
    return tiff_samples(tiff, level.pages[0].keyframe, level.samples.count)[1]


def _properties(tiff: "TiffFile", scene: Scene) -> dict[str, str]:
    page = scene.page
    images = len(tiff_scenes(tiff))
    return {
        "tiff.kind": str(scene.levels[0].kind),
        "tiff.compression": str(getattr(page.compression, "name", "unknown")),
        **({"tiff.scene": f"{scene} of {images} images"} if images > 1 else {}),
    }


def _resolution(tiff: "TiffFile", scene: Scene) -> StatedResolution:
    """Return what a file states about one of its images, or nothing where its head cannot be understood."""
    try:
        return tiff_resolution(tiff, series=scene.series, levels=scene.levels)
    except DAMAGE:
        return StatedResolution()
