"""Slides of Zeiss scanners (CZI), read with pylibCZIrw: mosaics, scenes, levels; JPEG XR, Zstandard or plain.

Colours: the pixel type of a brightfield slide is Bgr24, "8-bit BGR" in Zeiss' description of the format [1]: a pixel is
stored as blue, green, red. pylibCZIrw returns samples in their order in the file, blue first, and here they are turned
into RGB. OpenSlide and czifile see the same colours. pylibCZIrw's writer stores what it is given without turning it, so
a program that gives it RGB writes red where blue belongs, and sees nothing of it when it reads the file with the same
library. Such a file is read by the rule of the format, with a warning.

Levels: a tile of a smaller level covers so many times its own pixels of full resolution. Asked for a reduction that is
not stored, the library picks single pixels (nearest neighbour) of the next finer level. It is therefore only asked for
stored levels, and tile by tile, where none of its rounding shows. A level that lacks tiles is left out, because the
library leaves their place empty.

[1] Carl Zeiss, "ZISRAW (CZI) File Format. Design Specification", pixel types and directory entries.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from cellvit.errors import ImageError
from cellvit.io.images import DAMAGE, Rgb8, one_line
from cellvit.io.pixels import Samples
from cellvit.io.resolution import StatedResolution, axes_statement, length, positive, settle
from cellvit.io.scenes import SceneName, listed, named_scene, scene_text
from cellvit.slide.readers.base import READERS, Box, OtherReaderError, Size, SlideReader, cache_bytes

CACHE_BYTES = 2**28
"""Memory of the library for decoded tiles of one slide."""

_MAGIC = b"ZISRAWFILE"
_COLOURS = {"Bgr24": 3, "Bgr48": 3, "Gray8": 1, "Gray16": 1}
_BITS = {"Bgr24": 8, "Bgr48": 16, "Gray8": 8, "Gray16": 16}
_COMPRESSIONS = {0: "none", 1: "JPEG", 2: "LZW", 4: "JPEG XR", 5: "Zstandard", 6: "Zstandard"}
_READABLE = {0, 4, 5, 6}
_LONG = 32  # pixels of a tile from which its reduction is known well
_MASK = 1024  # longer side of the picture in which places with and without tiles are compared
_SAME_PLACE = 0.02  # share of a scene that another may cover before the two are not one picture
_SAMPLES = 16  # tiles looked at to find out how many of 16 bits count
_SAMPLE_SIDE = 1024


@dataclass(frozen=True)
class Tiles:
    """The tiles of one level.

    Attributes:
        ratio: Pixels of full resolution in a pixel of the level.
        boxes: ``(N, 4)`` int64 ``(left, top, right, bottom)`` of what they cover, in pixels of full resolution.
        sizes: ``(N, 2)`` int64 ``(width, height)`` in their own pixels.
    """

    ratio: int
    boxes: NDArray[np.int64]
    sizes: NDArray[np.int64]


@dataclass(frozen=True)
class CziScene:
    """A part of a slide that was scanned by itself.

    Attributes:
        index: Its number in the file.
        name: What the file calls it; may be empty.
        box: ``(x, y, width, height)`` in the coordinates of the file.
    """

    index: int
    name: str
    box: Box

    def __str__(self) -> str:
        """Return number, name and size."""
        return scene_text(self.index, self.name, self.box[2:])


@READERS.register("czi")
class CziSlide(SlideReader):
    """A slide of Zeiss, read tile by tile.

    Scenes lie on one glass, in coordinates that they share: without ``scene`` they are one picture, white between
    them. What no tile covers is white.

    Args:
        path: The file.
        scene: Number, from 0, or name of the scene to read; None reads all of them.

    Raises:
        OtherReaderError: If pylibCZIrw is missing or cannot read the file.
        ImageError: If no reader can help: fluorescence, a stack, samples that are neither grey nor RGB; if there is no
            such scene, or scenes lie on each other and none is chosen.
    """

    reader = "czi"
    suffixes = frozenset({".czi"})
    priority = 40
    scenes = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Tell whether a file begins like a CZI.

        Args:
            path: The file.
        """
        try:
            with path.open("rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
        except OSError as error:
            raise ImageError(f"{str(path)!r} cannot be opened ({error.strerror}); check its permissions") from error

    def __init__(self, path: Path, *, scene: SceneName | None = None) -> None:
        with ExitStack() as stack:
            try:
                self._czi = stack.enter_context(_library_reader(path))
                blocks = _Blocks(self._czi)
                xml = _metadata(self._czi)
            except DAMAGE as error:
                raise error if isinstance(error, ImageError) else OtherReaderError(one_line(error)) from error
            self._channel, kind, remarks = _channel(blocks, xml)
            scenes = _scenes(blocks, xml)
            chosen = None if scene is None else named_scene(scenes, scene)
            self._scene = None if chosen is None or len(scenes) == 1 else chosen.index
            box = _box(blocks.tiles(1, scene=self._scene))
            remarks += [] if chosen else _one_picture(blocks, scenes)
            self._levels, dropped = _levels(blocks, self._scene, box)
            self._left, self._top = box[:2]
            self._gaps = not _covered(self._levels[0], box).all()
            white = _white(xml, kind)
            self._samples = Samples(_COLOURS[kind], _COLOURS[kind], white=white, stated=white is not None)
            properties = {"czi.compression": blocks.compression}
            if chosen is not None:
                properties["czi.scene"] = f"{chosen} of {len(scenes)}"
            super().__init__(
                path,
                level_sizes=tuple(_size(box, level.ratio) for level in self._levels),
                resolution=_resolution(xml),
                properties=properties,
                warnings=[*remarks, *dropped, *_written_by_the_library(xml)],
                facts=_facts(kind, blocks, scenes, self._samples),
            )
            self._close = stack.pop_all()
        if _BITS[kind] == 16:
            self._judge_samples()

    def close(self) -> None:
        """Close the file; closing twice does nothing more."""
        if not self._closed:
            super().close()
            self._close.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        try:
            if level == 0:
                return self._samples.rgb(self._stored((width, height), (self._left + x, self._top + y), 1))
            return self._of_smaller(self._levels[level], x, y, width, height)
        except DAMAGE as error:
            raise self._damaged(level, (x, y, width, height), one_line(error)) from error

    def _of_smaller(self, level: Tiles, x: int, y: int, width: int, height: int) -> Rgb8:
        """Return a region of a smaller level, its tiles where they belong to the nearest pixel."""
        region = np.full((height, width, 3), 255, np.uint8)
        corners = np.rint((level.boxes[:, :2] - (self._left, self._top)) / level.ratio).astype(np.int64)
        low, high = np.maximum(corners, (x, y)), np.minimum(corners + level.sizes, (x + width, y + height))
        for number in np.flatnonzero((low < high).all(axis=1)):
            (x0, y0), (x1, y1), inside = low[number], high[number], low[number] - corners[number]
            place = level.boxes[number, :2] + inside * level.ratio
            part = self._stored((x1 - x0, y1 - y0), (place[0], place[1]), level.ratio)
            region[y0 - y : y1 - y, x0 - x : x1 - x] = self._samples.rgb(part)
        if self._gaps:  # what the scanner fills a smaller level with, where there is nothing, is no tissue
            shift = np.array([self._left, self._top] * 2) + np.array([x, y] * 2) * level.ratio
            boxes = np.rint((self._levels[0].boxes - shift) / level.ratio).astype(np.int64)
            region[~_painted(boxes, (width, height))] = 255
        return region

    def _stored(self, size: Size, place: tuple[int, int], ratio: int) -> NDArray[Any]:
        """Return samples ``(h, w, C)``, red first, of a place in the coordinates of the file.

        Args:
            size: ``(width, height)`` in pixels of the level.
            place: ``(x, y)`` of the corner in the coordinates of the file.
            ratio: Of the level.
        """
        import cv2

        width, height = int(size[0]), int(size[1])
        more = int(ratio > 1)  # a pixel that is cut off, so that the last one is there whatever is rounded
        pixels: NDArray[Any] = self._czi.read(
            roi=(int(place[0]), int(place[1]), (width + more) * ratio, (height + more) * ratio),
            plane={"C": self._channel},
            scene=self._scene,
            zoom=1 / ratio,
            background_pixel=(1.0, 1.0, 1.0),
        )
        pixels = pixels[:height, :width]
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.shape[2] == 3 else pixels

    def _judge_samples(self) -> None:
        """Find out how many of 16 bits count, where the file does not say so."""
        boxes = self._levels[0].boxes
        found = [np.empty((0, 1, self._samples.count), np.uint16)]
        for number in np.unique(np.linspace(0, len(boxes) - 1, _SAMPLES).astype(int)):
            left, top, right, bottom = boxes[number]
            side = (min(int(right - left), _SAMPLE_SIDE), min(int(bottom - top), _SAMPLE_SIDE))
            with suppress(*DAMAGE):
                found.append(self._stored(side, (left, top), 1).reshape(-1, 1, self._samples.count))
        self._samples, remarks = self._samples.judged(np.concatenate(found))
        self.warnings = (*self.warnings, *remarks)


class _Blocks:
    """What the directory of a file says about its tiles.

    Args:
        czi: The open file.

    Raises:
        OtherReaderError: If they are compressed in a way that the library does not know.
        ImageError: If there are none, or several planes.
    """

    def __init__(self, czi: Any) -> None:
        rows: list[tuple[int, ...]] = []
        self.kinds: dict[int, str] = {}
        coordinates: dict[str, set[int]] = {}
        compressions: Counter[int] = Counter()

        def add(_: int, block: Any) -> bool:
            place, size, where = block.logicalRect, block.physicalSize, block.coordinate.to_dict()
            for name, value in where.items():
                coordinates.setdefault(name, set()).add(value)
            self.kinds[where.get("C", 0)] = block.pixelType.name
            compressions[block.compressionModeRaw] += 1
            rows.append((place.x, place.y, place.w, place.h, size.w, size.h, where.get("S", -1)))
            return True

        czi.enumerate_subblocks(add)
        table = np.array(rows, np.int64).reshape(-1, 7)
        table = table[(table[:, 2:6] > 0).all(axis=1)]
        stacked = [
            f"{name} {len(values)}" for name, values in coordinates.items() if name not in "SCM" and len(values) > 1
        ]
        if stacked:
            raise ImageError(
                f"it holds several planes ({', '.join(stacked)}); export the one you want as an image of its own"
            )
        wrong = sorted({_COMPRESSIONS.get(mode, str(mode)) for mode in compressions if mode not in _READABLE})
        if wrong:
            raise OtherReaderError(f"its tiles are compressed as {' and '.join(wrong)}, which pylibCZIrw does not read")
        self.compression = " and ".join(dict.fromkeys(_COMPRESSIONS[mode] for mode, _ in compressions.most_common()))
        self._table, self._ratios = table, _ratios(table)
        if not (self._ratios == 1).any():
            raise ImageError("it holds no tiles of full resolution; export it again")

    @property
    def ratios(self) -> list[int]:
        """Reductions of which there are tiles, 1 among them."""
        return [int(ratio) for ratio in np.unique(self._ratios)]

    @property
    def scenes(self) -> list[int]:
        """Numbers of the scenes; -1 where tiles belong to none."""
        return [int(scene) for scene in np.unique(self._table[self._ratios == 1, 6])]

    def tiles(self, ratio: int, *, scene: int | None = None) -> Tiles:
        """Return the tiles of a level.

        Args:
            ratio: Its reduction.
            scene: Only those of this scene.
        """
        rows = self._table[(self._ratios == ratio) & ((self._table[:, 6] == scene) | (scene is None))]
        return Tiles(ratio, np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]]), rows[:, 4:6])


def _library_reader(path: Path) -> Any:
    try:
        from pylibCZIrw import czi

        if not hasattr(czi.CziReader, "enumerate_subblocks"):
            raise ImportError("an older one is installed")
    except ImportError as error:
        raise OtherReaderError(
            f"this needs the package 'pylibCZIrw' 6.1 or newer ({error}); from a checkout: pip install '.[formats]'"
        ) from error
    return czi.open_czi(
        str(path),
        cache_options=czi.CacheOptions(type=czi.CacheType.Standard, max_memory_usage=cache_bytes(CACHE_BYTES)),
        # pixels that a tile holds and that are said to be none, as at its turned edges
        reader_options=czi.ReaderOptions(enable_mask_awareness=True),
    )


def _metadata(czi: Any) -> ElementTree.Element:
    """Return the XML of a file; empty where there is none, or none that can be read."""
    try:
        return ElementTree.fromstring(czi.raw_metadata)
    except (RuntimeError, ElementTree.ParseError):
        return ElementTree.Element("ImageDocument")


def _channel(blocks: _Blocks, xml: ElementTree.Element) -> tuple[int, str, list[str]]:
    """Return number and kind of the channel that is a picture in colour, or the only one, and what is left out.

    Args:
        blocks: The tiles.
        xml: The metadata.

    Raises:
        ImageError: If there is no such channel.
    """
    stated = xml.findall(".//Image/Dimensions/Channels/Channel")
    names = {
        number: str(stated[number].get("Name") or number) if number < len(stated) else str(number)
        for number in sorted(blocks.kinds)
    }
    said = ", ".join(f"{names[number]!r} ({blocks.kinds[number]})" for number in names)
    colour = [number for number in names if _COLOURS.get(blocks.kinds[number]) == 3]
    if len(colour) == 1:
        others = [names[number] for number in names if number != colour[0]]
        told = f"of its channels {said} the one in colour is read, {names[colour[0]]!r}"
        return colour[0], blocks.kinds[colour[0]], [told] if others else []
    if len(names) > 1:
        raise ImageError(f"it holds {len(names)} channels, {said}, and the models know H&E in RGB; export one as RGB")
    ((number, kind),) = blocks.kinds.items()
    if kind not in _COLOURS:
        raise ImageError(f"its samples are {kind}, neither grey nor RGB of 8 or 16 bits; export it as RGB of 8 bits")
    if number < len(stated) and _is_fluorescence(stated[number]):
        raise ImageError(f"its channel {names[number]!r} is fluorescence, and the models know H&E in brightfield")
    return number, kind, []


def _is_fluorescence(channel: ElementTree.Element) -> bool:
    texts = (channel.findtext(name) or "" for name in ("ContrastMethod", "IlluminationType"))
    return any("fluorescence" in text.lower() for text in texts)


def _ratios(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the reduction ``(N,)`` of each tile; of small ones at the edges, which are rounded, the nearest known."""
    rows = np.arange(len(table))
    longer = np.argmax(table[:, 4:6], axis=1)
    exact = table[rows, 2 + longer] / table[rows, 4 + longer]
    sure = table[rows, 4 + longer] >= _LONG
    known = np.unique(np.rint(exact[sure] if sure.any() else exact)).clip(1)
    nearest: NDArray[np.int64] = known[np.abs(np.log(exact[:, None] / known)).argmin(axis=1)].astype(np.int64)
    return nearest


def _scenes(blocks: _Blocks, xml: ElementTree.Element) -> list[CziScene]:
    """Return the scenes of a file in the order of their numbers."""
    names = {scene.get("Index"): scene.get("Name") or "" for scene in xml.iterfind(".//Dimensions/S/Scenes/Scene")}
    return [
        CziScene(max(number, 0), names.get(str(max(number, 0)), ""), _box(blocks.tiles(1, scene=number)))
        for number in blocks.scenes
    ]


def _one_picture(blocks: _Blocks, scenes: Sequence[CziScene]) -> list[str]:
    """Return that several scenes are read as one picture.

    Args:
        blocks: The tiles.
        scenes: All scenes of the file.

    Raises:
        ImageError: If they lie on each other, so that one would hide another.
    """
    if len(scenes) < 2:
        return []
    box = _box(blocks.tiles(1))
    masks = [_covered(blocks.tiles(1, scene=scene.index), box) for scene in scenes]
    twice = sum(mask.astype(np.int32) for mask in masks) > 1
    if any((mask & twice).sum() > _SAME_PLACE * mask.sum() for mask in masks):
        raise ImageError(
            f"the file holds {len(scenes)} scenes that lie on each other: {listed(scenes)}; choose one by its "
            f"number or its name, such as scene={scenes[0].index}"
        )
    return [
        f"the {len(scenes)} scenes of the file are read as one picture, white between them: {listed(scenes)}; one "
        f"alone is chosen by its number or its name, such as scene={scenes[0].index}"
    ]


def _levels(blocks: _Blocks, scene: int | None, box: Box) -> tuple[list[Tiles], list[str]]:
    """Return the levels, full resolution first, and a sentence about each that lacks tiles."""
    full = blocks.tiles(1, scene=scene)
    covered = _covered(full, box)
    found, dropped = [full], []
    for ratio in blocks.ratios:
        level = blocks.tiles(ratio, scene=scene)
        if ratio == 1 or not len(level.sizes) or min(_size(box, ratio)) < 1:
            continue
        if (covered & ~_covered(level, box, margin=ratio)).any():
            width, height = _size(box, ratio)
            dropped.append(f"the level of {width} x {height} px lacks tiles that full resolution has; it is not used")
        else:
            found.append(level)
    return found, dropped


def _box(tiles: Tiles) -> Box:
    """Return ``(x, y, width, height)`` of the rectangle around tiles, in the coordinates of the file."""
    x, y = (int(value) for value in tiles.boxes[:, :2].min(axis=0))
    right, bottom = (int(value) for value in tiles.boxes[:, 2:].max(axis=0))
    return x, y, right - x, bottom - y


def _size(box: Box, ratio: int) -> Size:
    return box[2] // ratio, box[3] // ratio


def _covered(tiles: Tiles, box: Box, *, margin: int = 0) -> NDArray[np.bool_]:
    """Return a small picture ``(h, w)`` of where there are tiles.

    Args:
        tiles: Of a level.
        box: ``(x, y, width, height)`` that it shows, in the coordinates of the file.
        margin: Pixels of full resolution by which each tile counts as larger: those of smaller levels are rounded.
    """
    cell = max(1.0, max(box[2:]) / _MASK)
    grown = tiles.boxes - np.array([box[0], box[1]] * 2) + np.array([-margin, -margin, margin, margin])
    size = (max(1, int(box[2] / cell)), max(1, int(box[3] / cell)))
    return _painted(np.ceil(grown / cell - 0.5).astype(np.int64), size)  # cells whose centre lies in a tile


def _painted(boxes: NDArray[np.int64], size: Size) -> NDArray[np.bool_]:
    """Return which pixels of a picture ``(h, w)`` lie in any of some boxes.

    Args:
        boxes: ``(N, 4)`` ``(left, top, right, bottom)`` in its pixels.
        size: ``(width, height)``.

    Example:
        >>> _painted(np.array([[1, 0, 9, 1], [5, 5, 6, 6]]), (3, 2)).astype(int).tolist()
        [[0, 1, 1], [0, 0, 0]]
    """
    boxes = boxes.clip(0, [*size, *size])
    left, top, right, bottom = boxes[(boxes[:, :2] < boxes[:, 2:]).all(axis=1)].T
    steps = np.zeros((size[1] + 1, size[0] + 1), np.int32)
    for rows, columns, step in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(steps, (rows, columns), step)
    return steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0


def _white(xml: ElementTree.Element, kind: str) -> int | None:
    """Return the value of white that 16 bits have by what the file states, or None."""
    bits = positive(xml.findtext("Metadata/Information/Image/ComponentBitCount"))
    return 2 ** int(bits) - 1 if bits is not None and 8 <= bits < _BITS[kind] else None


def _resolution(xml: ElementTree.Element) -> StatedResolution:
    """Return what the metadata state: metres per pixel of each axis, and the objective."""
    image = "Metadata/Information/Image"
    texts = {str(item.get("Id")): item.findtext("Value") for item in xml.iterfind("Metadata/Scaling/Items/Distance")}
    reference = xml.find(f"{image}/ObjectiveSettings/ObjectiveRef")
    objectives = {
        objective.get("Id"): objective.findtext("NominalMagnification")
        for objective in xml.iterfind("Metadata/Information/Instrument/Objectives/Objective")
    }
    used = None if reference is None else reference.get("Id")
    power = positive(objectives.get(used, next(iter(objectives.values())) if len(objectives) == 1 else None))
    axes = [texts.get(axis) for axis in "XY"]
    if axes == [None, None]:
        return settle([], magnification=power)
    x, y = (None if text is None else length(text, "m") for text in axes)
    quote = " ".join(f"{axis} = {text} m" for axis, text in zip("XY", axes, strict=True) if text is not None)
    missing = f"the distance of {'X' if x is None else 'Y'}"
    return settle([axes_statement("CZI Scaling", quote, (x, y), missing=missing)], magnification=power)


def _facts(kind: str, blocks: _Blocks, scenes: Sequence[CziScene], samples: Samples) -> Mapping[str, Any]:
    return {
        "kind": "CZI",
        "channels": samples.count,
        "bits": _BITS[kind],
        "significant_bits": None if samples.white is None else samples.white.bit_length(),
        "compression": blocks.compression,
        "associated": None,  # a label and an overview may be attached, which pylibCZIrw does not list
        "scenes": tuple((scene.name or str(scene.index), scene.box[2:]) for scene in scenes),
    }


def _written_by_the_library(xml: ElementTree.Element) -> list[str]:
    """Return a sentence if red and blue may be exchanged."""
    if xml.findtext("Metadata/Information/Application/Name") != "pylibCZIrw":
        return []
    return [
        "it was written with pylibCZIrw, which stores colours in the order in which it is given them, and a CZI has "
        "blue first; if tissue looks blue where it should be pink, red and blue were exchanged: write it again with "
        "image[..., ::-1]"
    ]
