"""What an OME-Zarr (NGFF 0.4 and 0.5) says about itself: which images it holds, their axes, levels and units.

Source: [1] Moore et al., OME-Zarr: a cloud-optimized bioimaging file format with international community support,
Histochemistry and Cell Biology 2023, DOI 10.1007/s00418-023-02209-1; the specification at ngff.openmicroscopy.org.
"""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil, floor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.images import one_line
from cellvit.io.limits import MALFORMED
from cellvit.io.remote import MARKERS, RemotePath
from cellvit.io.resolution import StatedResolution, Statement, axes_statement, length, settle
from cellvit.io.scenes import MIN_RATIO

Pair = tuple[float, float]
Size = tuple[int, int]

VERSIONS = ("0.4", "0.5")
"""Versions of the format that are read."""

PLACE = "OME-Zarr axes"
"""Where the resolution stands, for messages."""

ARCHIVES = (".zarr.zip", ".ozx")
"""How the names of archives end that hold a store."""

_LETTERS = {"channel": "c", "time": "t"}
_COLOURS = (("FF0000", "R", "RED"), ("00FF00", "G", "GREEN"), ("0000FF", "B", "BLUE"))
_AGAIN = "write it again as OME-Zarr 0.4 or 0.5, for instance with bioformats2raw or ome-zarr-py"
_SHOWN = 5
_NO_XML: tuple[type[Exception], ...] = (ElementTree.ParseError, *MALFORMED)


@dataclass(frozen=True)
class Level:
    """A level of an image as it is described.

    Attributes:
        path: Of its array in the store.
        scale: ``(x, y)`` length of a pixel in the units of the axes.
        origin: ``(x, y)`` place of the first pixel in these units.
    """

    path: str
    scale: Pair
    origin: Pair


@dataclass(frozen=True)
class Multiscale:
    """An image as it is described.

    Attributes:
        version: Of the format.
        axes: A letter per axis, such as "tczyx".
        units: Of x and y, as the file spells them, or None.
        levels: As they stand there, the largest first.
        channels: ``(label, colour)`` of each channel, upper case, as far as stated.
        notes: What was passed over; each is a sentence.
    """

    version: str
    axes: str
    units: tuple[str | None, str | None]
    levels: tuple[Level, ...]
    channels: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def resolution(self) -> StatedResolution:
        """Return what the scale of the first level and the units say."""
        scale = self.levels[0].scale
        quote = " ".join(
            f"{axis} {value:g}{f' {unit}' if unit else ''}"
            for axis, value, unit in zip("xy", scale, self.units, strict=True)
        )
        if self.units == (None, None):
            if set(scale) == {1.0}:
                return StatedResolution()
            return settle([Statement(PLACE, quote, None, "the axes name no unit of length")])
        x, y = (
            None if unit is None else length(repr(value), unit) for value, unit in zip(scale, self.units, strict=True)
        )
        return settle([axes_statement(PLACE, quote, (x, y), missing="the unit of y" if y is None else "the unit of x")])

    @property
    def colours(self) -> tuple[tuple[int, int, int], str]:
        """Return which channels are red, green and blue, and a sentence where that is not as they stand there."""
        plain = (0, 1, 2)
        if len(self.channels) != 3:
            return plain, ""
        for part in (1, 0):  # colours first: labels are anything
            stated = [channel[part] for channel in self.channels]
            found = [[i for i, text in enumerate(stated) if text in names] for names in _COLOURS]
            if all(len(places) == 1 for places in found):
                order = (found[0][0], found[1][0], found[2][0])
                told = f"its channels are stored in another order: {', '.join(stated)}; they are read as RGB"
                return order, "" if order == plain else told
        labels = ", ".join(label or colour for label, colour in self.channels)
        if not any(label for label, _ in self.channels):
            return plain, ""
        return plain, (
            f"its channels are called {labels}, and are read as red, green and blue; of a fluorescence image save one "
            "channel, or export it as RGB"
        )


@dataclass(frozen=True)
class Element:
    """An image in a store.

    Attributes:
        name: What the store calls it; may be empty.
        path: Of its group in the store; empty for the root.
        about: One entry of its "multiscales".
        attributes: All that its group says.
    """

    name: str
    path: str
    about: Mapping[str, Any]
    attributes: Mapping[str, Any]


def is_zarr(path: Path) -> bool:
    """Tell whether a path is that of a Zarr store, judged by its name and by what lies in it.

    Args:
        path: A folder, a file, or what lies at an address.
    """
    if path.name.lower().endswith((".zarr", *ARCHIVES)):
        return True
    if isinstance(path, RemotePath):
        return path.is_dir()
    if path.is_dir():
        return any((path / name).is_file() for name in MARKERS)
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return root_in(archive.namelist()) is not None


def root_in(names: Iterable[str]) -> str | None:
    """Return the folder of an archive in which a store begins, without a slash at its end, or None.

    Args:
        names: Of all files in the archive.

    Example:
        >>> root_in(["a.zarr/0/.zarray", "a.zarr/.zgroup"]), root_in(["zarr.json"]), root_in(["a.txt"])
        ('a.zarr', '', None)
    """
    folders = [name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in MARKERS]
    return min(folders, key=lambda folder: folder.count("/") + bool(folder), default=None)


def elements_of(root: Any, *, listed: bool) -> list[Element]:
    """Return the images of a store: those of its root, else those that a converter has put there, else all.

    Args:
        root: Its group, of zarr.
        listed: Whether the place of the store can say what lies in it.

    Raises:
        ImageError: If it holds none, or is a plate.
    """
    attributes = _attributes(root)
    _refuse_other(attributes)
    if "multiscales" in attributes:
        return _images(root, "", attributes)
    found = list(_series(root) if "bioformats2raw.layout" in attributes else _below(root) if listed else ())
    if not found:
        raise ImageError(
            f"it is a group without an image{_inside(root) if listed else ''}; name the path of an image in it, such "
            "as a.zarr/0 or a.zarr/images/NAME"
        )
    return found


def multiscale_of(element: Element) -> Multiscale:
    """Return what is said about an image.

    Args:
        element: The image.

    Raises:
        ImageError: If it is of another version, or not as the format has it.
    """
    about = element.about
    version = str(element.attributes.get("version") or about.get("version") or "")
    if version.partition("-")[0] not in VERSIONS:  # SpatialData writes 0.5-dev-spatialdata
        raise ImageError(
            f"it is an OME-Zarr of version {version or 'unknown'!r}, not {' or '.join(VERSIONS)}; {_AGAIN}"
        )
    try:
        axes = "".join(_letter(axis) for axis in about["axes"])
        units = {letter: axis.get("unit") for letter, axis in zip(axes, about["axes"], strict=True)}
        if len(set(axes)) != len(axes) or not {"x", "y"} <= set(axes):
            raise ImageError(f"its axes are {axes!r}, which make no picture of x and y; {_AGAIN}")
        notes: list[str] = []
        whole = _composed(about.get("coordinateTransformations", ()), axes, notes)
        levels = tuple(_level(dataset, whole, axes, notes) for dataset in about["datasets"])
        channels = [
            (str(one.get("label") or "").strip().upper(), str(one.get("color") or "").strip().upper())
            for one in (element.attributes.get("omero") or {}).get("channels", ())
        ]
    except ImageError:
        raise
    except MALFORMED as error:
        raise ImageError(f"its description is damaged ({type(error).__name__}: {one_line(error)}); {_AGAIN}") from error
    if not levels:
        raise ImageError(f"it names no levels; {_AGAIN}")
    stated = tuple(None if units[axis] is None else str(units[axis]) for axis in "xy")
    return Multiscale(version, axes, (stated[0], stated[1]), levels, tuple(channels), tuple(dict.fromkeys(notes)))


def fitted(level: Level, size: Size, full: Level, full_size: Size) -> tuple[Size, Size] | None:
    """Return how a level lies on the full image, by its transformation, or None where it does not lie on it.

    The place of a pixel is that of its centre in files of some tools, and that of its corner in those of others; a
    level is taken as it fits. It has to begin within half a pixel of the full image, and to cover it.

    Args:
        level: The level.
        size: ``(width, height)`` of its array.
        full: The full image.
        full_size: ``(width, height)`` of the full image.

    Returns:
        ``(width, height)`` of the part that shows the full image, and ``(x, y)`` where it begins in the array.

    Example:
        >>> centre, full = Level("1", (2.0, 2.0), (0.5, 0.5)), Level("0", (1.0, 1.0), (0.0, 0.0))
        >>> fitted(centre, (50, 40), full, (100, 80))
        ((50, 40), (0, 0))
        >>> fitted(Level("1", (2.0, 2.0), (8.0, 0.0)), (50, 40), full, (100, 80)) is None
        True
    """
    sides = []
    for axis in (0, 1):
        factor = level.scale[axis] / full.scale[axis]
        if factor < MIN_RATIO:
            return None
        corner = (level.origin[axis] - full.origin[axis]) / full.scale[axis]
        moved = min((corner, corner - (factor - 1) / 2), key=abs)
        before = round(-moved / factor)
        if before < 0 or abs(moved + before * factor) > 0.5:
            return None
        least, most = floor(full_size[axis] / factor + 1e-6), ceil(full_size[axis] / factor - 1e-6)
        side = min(size[axis] - before, most)
        if side < max(1, least - 1):
            return None
        sides.append((side, before))
    (width, left), (height, top) = sides
    return (width, height), (left, top)


def _attributes(group: Any) -> dict[str, Any]:
    found = dict(group.attrs)
    own = found.get("ome")
    return dict(own) if isinstance(own, Mapping) else found


def _refuse_other(attributes: Mapping[str, Any]) -> None:
    if "plate" in attributes:
        wells = attributes["plate"].get("wells", []) if isinstance(attributes["plate"], Mapping) else []
        raise ImageError(
            f"it is a plate of {len(wells)} wells, not a slide; name one field of view, such as a.zarr/A/1/0"
        )
    if "well" in attributes:
        raise ImageError("it is a well of a plate; name one field of view of it, such as a.zarr/A/1/0")
    if "image-label" in attributes or ("labels" in attributes and "multiscales" not in attributes):
        raise ImageError("it holds labels and no image; name the image that they belong to")


def _images(group: Any, path: str, attributes: Mapping[str, Any]) -> list[Element]:
    entries = attributes["multiscales"]
    if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries) or not entries:
        raise ImageError(f"its description names no multiscales; {_AGAIN}")
    name = path.rpartition("/")[2]
    return [Element(name or str(entry.get("name") or ""), path, entry, attributes) for entry in entries]


def _series(root: Any) -> Iterator[Element]:
    """Yield the images that bioformats2raw has numbered; OME-XML beside them has their names."""
    listed = _attributes(root["OME"]).get("series") if "OME" in root else None
    names = _names(root)
    paths = [str(path) for path in listed] if listed else _numbered(root)
    for number, path in enumerate(paths):
        attributes = _attributes(root[path])
        for element in _images(root[path], path, attributes) if "multiscales" in attributes else ():
            stated = names[number] if number < len(names) else element.about.get("name")
            yield Element(str(stated or ""), path, element.about, attributes)


def _numbered(root: Any) -> list[str]:
    found: list[str] = []
    for number in count():
        if str(number) not in root:
            return found
        found.append(str(number))
    return found


def _names(root: Any) -> list[str]:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    prefix = f"{root.path}/" if root.path else ""
    try:
        text = sync(root.store.get(f"{prefix}OME/METADATA.ome.xml", default_buffer_prototype()))
        images = [] if text is None else ElementTree.fromstring(text.to_bytes()).findall("{*}Image")
    except SourceLostError:
        raise
    except _NO_XML:
        return []
    return [image.get("Name") or "" for image in images]


def _below(root: Any) -> Iterator[Element]:
    """Yield the images of a store of several elements, such as one of SpatialData; labels are none."""
    for path, member in sorted(root.members(max_depth=1)):
        attributes = _attributes(member)
        if "multiscales" in attributes and "image-label" not in attributes and "labels" not in path.split("/"):
            yield from _images(member, path, attributes)


def _inside(root: Any) -> str:
    names = sorted(path for path, _ in root.members())
    shown = f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
    return f" (it holds {shown})" if names else " (it is empty)"


def _letter(axis: Any) -> str:
    """Return the letter of an axis: its name for one of space, what its type says for another."""
    name, kind = str(axis["name"]).lower(), axis.get("type")
    letter = _LETTERS.get(kind, name)
    if letter not in tuple("tczyx"):
        raise ImageError(f"its axis {name!r} is none of t, c, z, y, x; {_AGAIN}")
    return letter


def _level(dataset: Mapping[str, Any], whole: tuple[Pair, Pair], axes: str, notes: list[str]) -> Level:
    scale, origin = _composed(dataset.get("coordinateTransformations", ()), axes, notes)
    both = tuple(a * b for a, b in zip(scale, whole[0], strict=True))
    moved = tuple(o * s + t for o, s, t in zip(origin, *whole, strict=True))
    if not all(value > 0 for value in both):  # also refuses nan
        raise ImageError(f"level {dataset['path']!r} has the scale {both}, which is no length; {_AGAIN}")
    return Level(str(dataset["path"]), (both[0], both[1]), (moved[0], moved[1]))


def _composed(steps: Sequence[Mapping[str, Any]], axes: str, notes: list[str]) -> tuple[Pair, Pair]:
    """Return scale and translation ``(x, y)`` of transformations that follow each other."""
    places = [axes.index(axis) for axis in "xy"]
    scale, origin = [1.0, 1.0], [0.0, 0.0]
    for step in steps:
        kind = step.get("type")
        values = step.get(str(kind))
        own = "output" in step  # of SpatialData, into a coordinate system of its own
        if kind == "identity":
            continue
        if own or kind not in ("scale", "translation") or not isinstance(values, Sequence) or isinstance(values, str):
            notes.append(f"a transformation of its image is not used: {kind!r}{' of SpatialData' if own else ''}")
            continue
        if len(values) != len(axes):
            raise ImageError(f"a {kind} has {len(values)} values for {len(axes)} axes; {_AGAIN}")
        for i, place in enumerate(places):
            if kind == "scale":
                scale[i] *= float(values[place])
                origin[i] *= float(values[place])
            else:
                origin[i] += float(values[place])
    return (scale[0], scale[1]), (origin[0], origin[1])
