"""Whole slides in DICOM, read with wsidicom. Without that package OpenSlide reads those that it knows, more slowly."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellvit.errors import ConfigError, ImageError
from cellvit.io.dicom import (
    Instance,
    cut_short,
    head_of,
    instance_of,
    instances_in,
    is_dicom,
    missing_parts,
    profile_text,
    profiles_of,
)
from cellvit.io.images import DAMAGE, Rgb8, one_line
from cellvit.io.resolution import StatedResolution, Statement, settle
from cellvit.io.scenes import SceneName, choose_scene, is_smaller, scene_text
from cellvit.io.spatial import require
from cellvit.slide.readers.base import READERS, OtherReaderError, Size, SlideReader, cache_bytes
from cellvit.slide.readers.chunks import ChunkCache

CACHE_BYTES = 2**28
"""Memory for decoded tiles of one slide."""

_MOST_BYTES = 2**30
_EXPORT = "export the slide as RGB of 8 bits, or convert it to a tiled, pyramidal TIFF"


@dataclass(frozen=True)
class _Level:
    """One focal plane of an image, seen in one light."""

    head: Instance
    data: Any
    path: str
    z: float

    @property
    def size(self) -> Size:
        return self.head.size

    def tile(self, column: int, row: int) -> Rgb8:
        """Return the pixels of a tile; white where the file holds none."""
        from wsidicom.geometry import Point

        place = Point(column, row)
        width, height = self.head.tile
        if self.data.is_sparse(place, self.z, self.path):
            return np.full((height, width, 3), 255, np.uint8)
        pixels: Rgb8 = self.data.get_decoded_tile(place, self.z, self.path, cache=False)
        if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"a tile of {pixels.shape} {pixels.dtype} instead of {(height, width, 3)} uint8")
        return pixels


@dataclass(frozen=True)
class _Scan:
    """An image of full resolution with its smaller levels."""

    index: int
    name: str
    levels: tuple[_Level, ...]
    companion: bool = False
    reduced: bool = False

    @property
    def size(self) -> Size:
        return self.levels[0].size

    @property
    def area(self) -> int:
        return self.levels[0].head.area

    def __str__(self) -> str:
        return scene_text(self.index, self.name, self.size)

    def takes(self, level: _Level) -> bool:
        """Tell whether an image is a further level: the same place in the same light, and only smaller."""
        mine = self.levels[0]
        return (
            (mine.path, mine.z) == (level.path, level.z)
            and mine.head.near(level.head)
            and is_smaller(level.size, self.levels[-1].size)
        )


@READERS.register("dicom")
class DicomSlide(SlideReader):
    """A series of DICOM whole slide images, of which any file is given; only levels that are stored are used.

    Args:
        path: A file of the series; the others lie beside it.
        scene: Number, from 0, or name of the image to read, where there are several optical paths, focal planes or
            scans.

    Raises:
        OtherReaderError: If the extra ``formats`` is missing, or wsidicom does not know how the pixels are coded.
        ImageError: If it is no brightfield image in RGB of 8 bits, parts of it are missing, or a file is cut short;
            if there are several images and ``scene`` chooses none.
    """

    reader = "wsidicom"
    priority = 35  # OpenSlide takes three times as long, and one of several focal planes or lights without a word
    scenes = True

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Tell whether a file is DICOM.

        Args:
            path: The file.
        """
        return is_dicom(path)

    def __init__(self, path: Path, *, scene: SceneName | None = None) -> None:
        try:
            for package in ("pydicom", "wsidicom"):
                require(package, extra="formats")
        except ConfigError as error:
            raise OtherReaderError(str(error)) from error
        heads, remarks = _series(path)
        volume = [head for head in heads if head.flavour == "VOLUME"]
        bright = _usable(volume, remarks)
        self._source, images = _opened(bright)
        try:
            scans = _scans(_levels(bright, images))
            chosen, others = choose_scene(scans, scene)
            full = chosen.levels[0].head
            if full.resampled:
                remarks.append(_no_full_resolution(full))
            super().__init__(
                path,
                level_sizes=tuple(level.size for level in chosen.levels),
                resolution=_resolution(full, chosen.levels[0].path),
                properties=_properties(chosen, volume),
                warnings=[*remarks, *others],
                facts={
                    "kind": "dicom",
                    "channels": 3,
                    "bits": 8,
                    "compression": full.syntax,
                    "scenes": tuple((scan.name, scan.size) for scan in scans),
                    "associated": tuple(
                        (head.flavour.lower(), head.size) for head in heads if head.flavour != "VOLUME"
                    ),
                },
            )
        except BaseException:
            self._source.close()
            raise
        self._levels = chosen.levels
        self._cache = ChunkCache(cache_bytes(CACHE_BYTES), largest=_MOST_BYTES)

    def close(self) -> None:
        """Close the files and forget what was decoded; closing twice does nothing more."""
        if not self._closed:
            super().close()
            self._cache.clear()
            self._source.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb8:
        box, tile = (x, y, width, height), self._levels[level].head.tile
        return self._cache.region(box, tile, lambda column, row: self._tile(level, column, row))

    def _tile(self, level: int, column: int, row: int) -> Rgb8:
        image = self._levels[level]
        try:
            return self._cache.get((level, column, row), lambda: image.tile(column, row))
        except _faults() as error:
            width, height = image.head.tile
            raise self._damaged(level, (column * width, row * height, width, height), one_line(error)) from error


def _faults() -> tuple[type[Exception], ...]:
    """Return what wsidicom raises for a file that is not what it seems; its errors have no class in common."""
    from wsidicom import errors

    own = (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, AttributeError, *DAMAGE)


def _series(path: Path) -> tuple[list[Instance], list[str]]:
    """Return what the files of a slide say, and what is to be told about others that lie there."""
    own = instance_of(path)
    if own is None:
        kind = getattr(head_of(path).get("SOPClassUID"), "name", "another kind of object")
        raise ImageError(f"it is DICOM, but no whole-slide image ({kind}); give a file of the slide, or its folder")
    if own.lacking:
        raise cut_short(path, own.lacking)
    found, damaged = instances_in(path.parent, own.series)
    heads = [head for head in found if not head.lacking]
    damaged += [cut_short(head.path, head.lacking) for head in found if head.lacking]
    remarks = [f"beside it, {error}; if that is a part of this slide, it is missing" for error in damaged]
    return heads, remarks


def _usable(volume: Sequence[Instance], remarks: list[str]) -> list[Instance]:
    """Return the images that can be read, and add a sentence about those that are left out.

    Raises:
        ImageError: If there are none, or parts are missing.
    """
    if not volume:
        raise ImageError(
            "only the label, the overview or the thumbnail of the slide is here, not the slide; "
            "copy the whole series into one folder"
        )
    reasons = {head.path: _reason(head) for head in volume}
    usable = [head for head in volume if reasons[head.path] is None]
    told = dict.fromkeys(reason for reason in reasons.values() if reason is not None)
    if not usable:
        raise ImageError(f"the slide holds only {'; '.join(told)}; {_EXPORT}")
    remarks += [f"the series also holds {reason}: that is left out" for reason in told]
    for parts in _images(usable).values():
        _require_whole(parts)
    return usable


def _reason(head: Instance) -> str | None:
    """Return why an image cannot be read as H&E in colour, or None."""
    if head.paths and not any(path.bright for path in head.paths):
        named = ", ".join(f"{path.name!r} ({path.light})" for path in head.paths)
        return f"optical path {named}, which is not brightfield"
    if not head.is_colour or head.colours.startswith(("MONO", "PALETTE")):
        colours = f"{head.samples} sample{'s' if head.samples > 1 else ''} of {head.bits} bits"
        return f"pixels in {head.colours} ({colours}), which is not RGB of 8 bits"
    if 3 * head.tile[0] * head.tile[1] > _MOST_BYTES:
        return f"tiles of {head.tile[0]} x {head.tile[1]} px, which are too large to decode"
    return None


def _images(heads: Sequence[Instance]) -> Mapping[str, list[Instance]]:
    """Return the files of each image."""
    found: dict[str, list[Instance]] = {}
    for head in heads:
        found.setdefault(head.image, []).append(head)
    return found


def _require_whole(parts: Sequence[Instance]) -> None:
    """Refuse an image of which parts are not there."""
    head, missing = parts[0], missing_parts(parts)
    if missing:
        total = max(*missing, *(part.part for part in parts))
        raise ImageError(
            f"of the image of {head.size[0]} x {head.size[1]} px, part {', '.join(map(str, missing))} of {total} is "
            "missing; copy the whole series into one folder"
        )


def _opened(heads: Sequence[Instance]) -> tuple[Any, dict[Path, Any]]:
    """Return the open files, and each image, as wsidicom has it, by any of its files."""
    from wsidicom.config import Settings, use_settings
    from wsidicom.errors import WsiDicomNotFoundError
    from wsidicom.file import WsiDicomFileSource

    odd = next(
        (head for head in heads if head.colours.startswith(("YBR_FULL", "YBR_PART")) and not _is_jpeg(head)), None
    )
    if odd is not None:  # wsidicom does not refuse all of them, and would take luma and chroma for red, green and blue
        raise OtherReaderError(f"it does not read {odd.colours} in {odd.syntax}")
    try:
        with warnings.catch_warnings(), use_settings(Settings(strict_tile_size_check=False)):
            warnings.simplefilter("ignore")  # values of other elements; what the slide needs is checked here
            source = WsiDicomFileSource.open([head.path.resolve() for head in heads])
            images = {_path(file): one for one in source.level_instances for file in one.image_data.files}
    except WsiDicomNotFoundError as error:  # it knows none of the files, and does not say why
        raise OtherReaderError(f"it does not read {heads[0].colours} in {heads[0].syntax}") from error
    except _faults() as error:
        raise ImageError(f"its files contradict themselves ({one_line(error)}); copy or export it again") from error
    try:
        _require_complete(source, heads, images)
    except BaseException:
        source.close()
        raise
    return source, images


def _is_jpeg(head: Instance) -> bool:
    return head.syntax.startswith(("JPEG Baseline", "JPEG Extended"))


def _path(file: Any) -> Path:
    """Return what wsidicom calls a file that it was given by its whole path."""
    return Path(file.path)


def _require_complete(source: Any, heads: Sequence[Instance], images: Mapping[Path, Any]) -> None:
    """Refuse files that end before their last tile; this also finds out where all tiles lie."""
    for head in heads:
        if head.path.resolve() not in images:
            raise OtherReaderError(f"it does not read {head.colours} in {head.syntax} ({head.path.name!r})")
    for reader in source.readers:
        path = _path(reader.filepath)
        try:
            index = reader.frame_index
            last = max((sum(index[i]) for i in {0, len(index) - 1}), default=0)
        except _faults() as error:
            raise ImageError(f"{path.name!r} is damaged or cut short ({one_line(error)}); copy it again") from error
        if last > (size := path.stat().st_size):
            raise ImageError(
                f"{path.name!r} is cut short: its last tile ends at byte {last:,} and the file at {size:,}; "
                "copy it again"
            )


def _planes(parts: Sequence[Instance], image: Any) -> list[tuple[str, float]]:
    """Return optical path and focal plane of what an image holds.

    Raises:
        ImageError: If its tiles are not where wsidicom looks for them.
    """
    head, frames = parts[0], sum(part.frames for part in parts)
    name = f"the image of {head.size[0]} x {head.size[1]} px"
    try:
        planes = [(path, z) for path in image.optical_paths for z in image.focal_planes]
        sparse = [part for part in image.datasets if part.tile_type.name == "SPARSE"]
        if sparse:  # has not each plane in each light
            stored = image.image_data.tiles.planes
            planes = [(path, z) for path, z in planes if (z, path) in stored]
        off_grid = any(_is_off_grid(part.frame_positions, head.tile) for part in sparse)
    except _faults() as error:
        raise ImageError(f"{name} does not say where its tiles lie ({one_line(error)}); copy it again") from error
    if not sparse and frames != (full := head.tiles * len(planes)):
        raise ImageError(f"{name} says that it has all of its {full} tiles, and holds {frames}; copy it again")
    if off_grid:
        raise ImageError(f"the tiles of {name} overlap, or do not lie in rows and columns; export it as TILED_FULL")
    return planes


def _is_off_grid(places: Any, tile: Size) -> bool:
    """Tell whether tiles begin elsewhere than at whole multiples of their size: wsidicom would move them there."""
    return bool(((places.columns - 1) % tile[0]).any() or ((places.rows - 1) % tile[1]).any())


def _levels(heads: Sequence[Instance], images: Mapping[Path, Any]) -> Iterator[_Level]:
    """Yield every plane of every image in brightfield, the largest images first."""
    for parts in sorted(_images(heads).values(), key=lambda parts: -parts[0].area):
        image = images[parts[0].path.resolve()]
        planes = _planes(parts, image)
        bright = {path.name for path in parts[0].paths if path.bright} or {path for path, _ in planes}
        yield from (_Level(parts[0], image.image_data, path, z) for path, z in planes if path in bright)


def _scans(levels: Iterator[_Level]) -> list[_Scan]:
    """Return the levels by what they show, named by what they differ in."""
    scans: list[_Scan] = []
    for level in levels:
        taking = next((i for i, scan in enumerate(scans) if scan.takes(level)), None)
        if taking is None:
            scans.append(_Scan(len(scans), "", (level,)))
        else:
            scans[taking] = replace(scans[taking], levels=(*scans[taking].levels, level))
    firsts = [scan.levels[0] for scan in scans]
    several = {
        "path": len({first.path for first in firsts}) > 1,
        "z": len({first.z for first in firsts}) > 1,
        "place": not all(first.head.near(firsts[0].head) for first in firsts),
    }
    return [replace(scan, name=_name(scan.levels[0], several)) for scan in scans]


def _name(level: _Level, several: Mapping[str, bool]) -> str:
    words = [level.path] if several["path"] or not any(several.values()) else []
    words += [f"z={level.z:g}"] if several["z"] else []
    if several["place"] and level.head.origin is not None:
        words.append("at {:.3g}, {:.3g} mm".format(*level.head.origin))
    return " ".join(words)


def _no_full_resolution(full: Instance) -> str:
    return (
        f"the file of full resolution is not here: the largest image, {full.size[0]} x {full.size[1]} px, says that it "
        "was made smaller; copy the whole series into one folder, if there is more of it"
    )


def _resolution(head: Instance, path: str) -> StatedResolution:
    """Return what the full image states: its spacing, and as a check the part of the glass that it covers."""
    statements = []
    if head.spacing is not None:
        x, y = (1000 * side for side in head.spacing)
        quote = f"{head.spacing[1]:g} x {head.spacing[0]:g} mm (rows, columns)"
        statements.append(Statement("PixelSpacing", quote, (x, y)))
    if head.imaged is not None:
        size = tuple(1000 * side / pixels for side, pixels in zip(head.imaged, head.size, strict=True))
        quote = f"{head.imaged[0]:g} x {head.imaged[1]:g} mm"
        statements.append(Statement("ImagedVolumeWidth, -Height", quote, (size[0], size[1])))
    power = next((one.objective for one in head.paths if one.name == path), None)
    return settle(statements, magnification=power)


def _properties(scan: _Scan, volume: Sequence[Instance]) -> dict[str, str]:
    """Return what is kept of the heads; nothing in it names a person, a day or an archive."""
    level = scan.levels[0]
    digest = hashlib.sha256()
    for head in sorted(volume, key=lambda head: head.uid):
        digest.update(f"{head.uid} {head.path.stat().st_size}\n".encode())
    profiles = dict(profiles_of(head_of(level.head.path)))
    profile = {"icc-profile": profile_text(profiles[level.path])} if level.path in profiles else {}
    return {
        "dicom.quickhash": digest.hexdigest(),
        "dicom.manufacturer": level.head.maker,
        "dicom.transfer-syntax": level.head.syntax,
        "dicom.photometric-interpretation": level.head.colours,
        "dicom.organization": level.head.organization,
        "dicom.optical-path": level.path,
        "dicom.focal-plane": f"{level.z:g}",
        **profile,
    }
