"""Slides as OME-Zarr: folders, archives and addresses; 8 and 16 bits, grey and RGB, in any order of axes."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.images import DAMAGE, Rgb8, one_line
from cellvit.io.ngff import ARCHIVES, elements_of, fitted, is_zarr, multiscale_of
from cellvit.io.pixels import Samples
from cellvit.io.scenes import PlainScene, SceneName, choose_scene, is_companion
from cellvit.slide.readers.base import READERS, Size, SlideReader, cache_bytes
from cellvit.slide.readers.chunks import ChunkCache

if TYPE_CHECKING:  # the library is loaded when the first store is opened
    from cellvit.io.ngff import Element, Multiscale

CACHE_BYTES = 2**28
"""Memory for decoded pieces of one slide; one in large chunks may take up to ``MAX_CHUNK_BYTES``."""

MAX_CHUNK_BYTES = 2**30
"""Largest chunk, decoded."""

PIECE = 1024
"""Chunks are read together in pieces of about this side in pixels, as a request of zarr takes its time."""

_COUNTED = 200_000  # chunks; of more it is not counted how many are missing
_PLACES, _PLACE = 5, 64  # in a row and in a column, at which pixels are looked at, and their side
_DAMAGE: tuple[type[Exception], ...] = (MemoryError, *DAMAGE)  # a damaged chunk may claim any size
_COLOURS = {0: "black", 255: "white"}


@dataclass(frozen=True)
class ZarrLevel:
    """One array of an image.

    Attributes:
        array: The array, of zarr.
        axes: A letter per axis.
        size: ``(width, height)`` of the part that shows the slide.
        start: ``(x, y)`` of that part in the array.
        ratio: ``(x, y)`` pixels of the full image that a pixel spans.
        piece: ``(width, height)`` of what is read and kept together.
        samples: What the samples of a pixel are.
        order: Which channels are red, green and blue.
    """

    array: Any
    axes: str
    size: Size
    start: Size
    ratio: tuple[float, float]
    piece: Size
    samples: Samples
    order: tuple[int, ...]

    def stored(self, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        """Return a part of the array ``(h, w, C)``, cut off at its edges.

        Args:
            x: Left edge in pixels of the array.
            y: Top edge.
            width: Pixels.
            height: Pixels.
        """
        spans = {"x": slice(x, x + width), "y": slice(y, y + height), "c": slice(None)}
        found = np.asarray(self.array[tuple(spans.get(axis, 0) for axis in self.axes)])
        found = found.astype(found.dtype.newbyteorder("="), copy=False)
        left = [axis for axis in self.axes if axis in spans]
        if "c" not in left:
            return np.transpose(found, [left.index(axis) for axis in "yx"])[..., None]
        planes = np.transpose(found, [left.index(axis) for axis in "cyx"])
        if len(planes) == 3 and left[-1] != "c":
            import cv2  # whoever opens other slides need not wait for it

            return cv2.merge([np.ascontiguousarray(planes[number]) for number in self.order])
        return np.moveaxis(planes if self.order == (0, 1, 2)[: len(planes)] else planes[list(self.order)], 0, -1)


@READERS.register("ome-zarr")
class OmeZarrSlide(SlideReader):
    """A slide in an OME-Zarr of version 0.4 or 0.5.

    Args:
        path: Folder, archive or address of the store, or of a group in it that is an image.
        scene: Number, from 0, or name of the image to read, where a store holds several.

    Raises:
        ImageError: If it is no image that can be read; a stack, a plate, labels; or if it holds several images of full
            size and ``scene`` chooses none.
    """

    reader = "ome-zarr"
    suffixes = frozenset({".zarr", *ARCHIVES})
    priority = 40
    scenes = True
    addresses = True
    folders = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Tell whether a folder, an archive or an address is a Zarr store.

        Args:
            path: The folder or file.
        """
        return is_zarr(path)

    def __init__(self, path: Path, *, scene: SceneName | None = None) -> None:
        if find_spec("zarr") is None:
            raise ImageError(
                f"{str(path)!r} is a Zarr store, which needs zarr; from a checkout: pip install '.[formats]'"
            )
        from cellvit.io.zarr_stores import can_list, open_store

        root, self._store = open_store(path)
        try:
            elements = elements_of(root, listed=can_list(path))
            described = [multiscale_of(element) for element in elements]
            arrays = [
                _array(root, element, about.levels[0].path) for element, about in zip(elements, described, strict=True)
            ]
            sizes = [_size(array, about.axes) for array, about in zip(arrays, described, strict=True)]
            images = [
                PlainScene(number, element.name, size, is_companion(element.name))
                for number, (element, size) in enumerate(zip(elements, sizes, strict=True))
            ]
            chosen, remarks = choose_scene(images, scene)
            about, element = described[chosen.index], elements[chosen.index]
            levels, told = _levels(root, element, about, arrays[chosen.index])
            super().__init__(
                path,
                level_sizes=tuple(level.size for level in levels),
                resolution=about.resolution,
                properties=_properties(about, levels[0], images, chosen),
                warnings=[*remarks, *about.notes, *told],
                facts=_facts(about, levels[0], images, chosen),
            )
            self._levels = levels
            self.level_ratios = tuple(level.ratio for level in levels)
            self._cache = ChunkCache(cache_bytes(CACHE_BYTES), largest=MAX_CHUNK_BYTES)
            self._judge_samples()
            self._tell_missing()
        except BaseException as error:
            self._store.close()
            if isinstance(error, DAMAGE) and not isinstance(error, ImageError):
                raise ImageError(
                    f"its store is damaged or cut short ({one_line(error)}); copy or export it again"
                ) from error
            raise

    def close(self) -> None:
        """Close the store and forget what was decoded; closing twice does nothing more."""
        if not self._closed:
            super().close()
            self._cache.clear()
            self._store.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        image = self._levels[level]
        box = (x + image.start[0], y + image.start[1], width, height)
        try:
            return self._cache.region(box, image.piece, lambda column, row: self._piece(level, column, row))
        except SourceLostError:
            raise
        except _DAMAGE:  # the rest of a piece that holds a damaged chunk may be sound
            return self._alone(level, (x, y, width, height))

    def _piece(self, level: int, column: int, row: int) -> Rgb8:
        image = self._levels[level]
        place = (column * image.piece[0], row * image.piece[1])
        return self._cache.get((level, column, row), lambda: image.samples.rgb(image.stored(*place, *image.piece)))

    def _alone(self, level: int, box: tuple[int, int, int, int]) -> Rgb8:
        image = self._levels[level]
        x, y, width, height = box
        try:
            return image.samples.rgb(image.stored(x + image.start[0], y + image.start[1], width, height))
        except SourceLostError:
            raise
        except _DAMAGE as error:
            raise self._damaged(level, box, one_line(error)) from error

    def _judge_samples(self) -> None:
        """Find out whether the pixels can be read, and how many of 16 bits count, which the store does not say."""
        level = self._levels[0]
        found, first = [], None
        for x, y in _places(level.size):
            try:
                pixels = level.stored(x + level.start[0], y + level.start[1], _PLACE, _PLACE)
                found.append(pixels.reshape(-1, 1, level.samples.count))
            except SourceLostError:
                raise
            except _DAMAGE as error:
                first = first or error
        if first is not None and not found:
            raise ImageError(f"no pixels of it can be read ({one_line(first)}); copy or export it again") from first
        pixels = np.concatenate(found)
        pixels = pixels[np.isfinite(pixels).all(axis=(1, 2))] if pixels.dtype.kind == "f" else pixels
        samples, remarks = level.samples.judged(pixels)
        samples.rgb(pixels)  # refuses what has no known range
        self.warnings = (*self.warnings, *remarks)
        self._levels = [replace(each, samples=samples) for each in self._levels]

    def _tell_missing(self) -> None:
        """Tell what the chunks are that are not stored, unless they are white."""
        from cellvit.io.zarr_stores import can_list, missing_chunks

        level = self._levels[0]
        fill = np.asarray(level.array.fill_value if level.array.fill_value is not None else 0, level.array.dtype)
        try:
            shown = int(level.samples.rgb(np.full((1, 1, level.samples.count), fill))[0, 0, 0])
        except ImageError:  # such as nan: what is missing cannot be read, and is told where that is so
            return
        if shown == 255:
            return
        total = prod(-(-side // chunk) for side, chunk in zip(level.array.shape, _outer(level.array), strict=True))
        missing = None
        with suppress(*DAMAGE):  # a place that may be read need not tell what lies there
            missing = missing_chunks(level.array, total) if can_list(self.path) and total <= _COUNTED else None
        if missing or (missing is None and self._store.missing):
            how = "some" if missing is None else f"{missing:,} of {total:,}"
            colour = _COLOURS.get(shown, f"grey of value {shown}")
            self.warnings = (
                *self.warnings,
                f"{how} chunks of its largest level are not stored and are read as its fill value {fill}, which is "
                f"{colour}; if nothing was scanned there, write it with a white fill value, or name a region",
            )


def _array(root: Any, element: "Element", path: str) -> Any:
    from cellvit.io.zarr_stores import open_array

    place = f"{element.path}/{path}" if element.path else path
    try:
        array = open_array(root, place)
    except KeyError as error:
        raise ImageError(f"its level {place!r} is missing; copy or export it again") from error
    if not hasattr(array, "chunks"):
        raise ImageError(f"its level {place!r} is a group and no array; copy or export it again")
    stated = array.metadata.to_dict()
    if "pickle" in str([stated.get(name) for name in ("codecs", "filters", "compressor")]).lower():
        raise ImageError(
            f"its level {place!r} is stored with the codec 'pickle', which may run programs and is not read; write it "
            "again with blosc or zstd"
        )
    return array


def _size(array: Any, axes: str) -> Size:
    """Return ``(width, height)`` of an array, and refuse a stack."""
    if array.ndim != len(axes):
        raise ImageError(f"its axes are {axes}, and its array has {array.ndim}; export it again")
    sides = dict(zip(axes, array.shape, strict=True))
    planes = {axis: side for axis, side in sides.items() if axis in "tz" and side != 1}
    if sides.get("c", 1) not in (1, 3):
        planes["c"] = sides["c"]
    if planes:
        each = ", ".join(f"{axis} {side}" for axis, side in planes.items())
        raise ImageError(
            f"it holds {prod(planes.values())} planes ({each} of axes {axes}); save the one you want as an image of "
            "its own: one plane, grey or RGB"
        )
    if min(sides["x"], sides["y"]) < 1:
        raise ImageError(f"its image has {sides['x']} x {sides['y']} px; export it again")
    return sides["x"], sides["y"]


def _levels(root: Any, element: "Element", about: "Multiscale", largest: Any) -> tuple[list[ZarrLevel], list[str]]:
    """Return the levels that lie on the full image, full resolution first, and a sentence about each other one."""
    order, remark = about.colours
    full, size = about.levels[0], _size(largest, about.axes)
    levels, told = [_level(largest, about.axes, size, (0, 0), (1.0, 1.0), order)], [remark] if remark else []
    for level in about.levels[1:]:
        try:
            array = _array(root, element, level.path)
            its_size = _size(array, about.axes)
        except SourceLostError:
            raise
        except ImageError as error:
            told.append(f"level {level.path!r} is not used: {error}")
            continue
        found = fitted(level, its_size, full, size)
        if array.dtype != largest.dtype:
            told.append(f"level {level.path!r} is not used: its samples are {array.dtype}, not {largest.dtype}")
        elif found is None:
            told.append(
                f"level {level.path!r} of {its_size[0]} x {its_size[1]} px is not used: by its scale "
                f"{level.scale} and origin {level.origin} it does not lie on the full image"
            )
        else:
            across, down = (mine / its for mine, its in zip(level.scale, full.scale, strict=True))
            levels.append(_level(array, about.axes, *found, (across, down), order))
    return sorted(levels, key=lambda level: -prod(level.size)), told


def _level(
    array: Any, axes: str, size: Size, start: Size, ratio: tuple[float, float], order: tuple[int, ...]
) -> ZarrLevel:
    sides, chunks = (dict(zip(axes, values, strict=True)) for values in (array.shape, array.chunks))
    if prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        raise ImageError(
            f"it holds {sides['x']} x {sides['y']} px in chunks of {chunks['x']} x {chunks['y']} px, too large to "
            "decode; write it again in chunks of 512 x 512 px"
        )
    count = sides.get("c", 1)
    piece = tuple(min(sides[axis], chunks[axis] * max(1, PIECE // chunks[axis])) for axis in "xy")
    return ZarrLevel(array, axes, size, start, ratio, (piece[0], piece[1]), Samples(count, count), order[:count])


def _outer(array: Any) -> tuple[int, ...]:
    """Return the shape of what is stored under a key: of a shard, or of a chunk."""
    return tuple(getattr(array, "shards", None) or array.chunks)


def _places(size: Size) -> list[tuple[int, int]]:
    """Return the corners of places all over an image."""
    across, down = (np.linspace(0, max(0, side - _PLACE), _PLACES).astype(int).tolist() for side in size)
    return list(dict.fromkeys((x, y) for y in down for x in across))


def _properties(about: "Multiscale", level: ZarrLevel, images: list[PlainScene], chosen: PlainScene) -> dict[str, str]:
    x, y = about.levels[0].origin
    return {
        "zarr.version": about.version,
        "zarr.axes": about.axes,
        "zarr.chunks": " x ".join(map(str, level.array.chunks)),
        **({"zarr.origin": f"{x:g}, {y:g}"} if x or y else {}),
        **({"zarr.scene": f"{chosen} of {len(images)} images"} if len(images) > 1 else {}),
    }


def _facts(about: "Multiscale", level: ZarrLevel, images: list[PlainScene], chosen: PlainScene) -> Mapping[str, Any]:
    array = level.array
    scenes = [image for image in images if not image.companion]
    return {
        "kind": f"OME-Zarr {about.version}",
        "channels": level.samples.count,
        "bits": 8 * array.dtype.itemsize,
        "compression": _compression(array),
        "scenes": [(image.name or str(image.index), image.size) for image in scenes],
        "associated": [(image.name or str(image.index), image.size) for image in images if image.companion],
    }


def _compression(array: Any) -> str:
    names = []
    with suppress(AttributeError, TypeError, NotImplementedError):
        names = [type(codec).__name__.removesuffix("Codec").lower() for codec in array.compressors]
    return ", ".join(names) or "none"
