"""Slides in DICOM: which files of a folder are one slide, and what they say of themselves, without their pixels."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cellvit.errors import ImageError
from cellvit.io.images import DAMAGE, one_line

SAME_PLACE_MM = 0.02
"""Images whose first pixels lie further apart on the glass are of different scans."""

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_BRIGHT = {"111741": "transmission", "111744": "brightfield"}  # codes of DCM; a slide in RGB may state none
_UNREADABLE: tuple[type[Exception], ...] = (AttributeError, *DAMAGE)
_NEEDED = ("ImageType", "SOPInstanceUID", "SeriesInstanceUID")
_OF_PIXELS = ("Columns", "Rows", "SamplesPerPixel", "BitsStored", "PhotometricInterpretation")
_PER_FRAME = 0x52009230  # where each of perhaps a million tiles lies; the last thing before the pixels


@dataclass(frozen=True)
class OpticalPath:
    """How light went through the slide.

    Attributes:
        name: Its identifier.
        light: What the file calls the illumination; may be empty.
        bright: Whether this is a brightfield image, also where nothing is stated.
        objective: Power of the objective.
    """

    name: str
    light: str
    bright: bool
    objective: float | None


@dataclass(frozen=True)
class Instance:
    """What a file of a slide says of itself.

    Attributes:
        path: The file.
        uid: Its identifier.
        series: Identifier of its series: files of one series are one slide.
        flavour: "VOLUME" for the slide, else "LABEL", "OVERVIEW" or "THUMBNAIL".
        resampled: Whether it was made from an image of higher resolution.
        size: ``(width, height)`` of the image that it holds, or holds a part of.
        tile: ``(width, height)`` of a tile.
        colours: Photometric interpretation, such as "YBR_FULL_422".
        samples: Per pixel.
        bits: Of a sample.
        spacing: ``(x, y)`` millimetres per pixel, or None.
        imaged: ``(width, height)`` in millimetres, or None.
        origin: ``(x, y)`` of the first pixel on the glass in millimetres, or None.
        paths: How it was lit.
        frames: Tiles in this file.
        image: Identifier of the image: its own, or that which all parts of a concatenation share.
        part: Number of the part, from 1.
        parts: How many parts there are; None where not stated.
        syntax: How it is coded.
        organization: "TILED_FULL" or "TILED_SPARSE".
        maker: Who made the scanner.
        lacking: Names of what it does not state of its pixels and must, as where the head is cut short.
    """

    path: Path
    uid: str
    series: str
    flavour: str
    resampled: bool
    size: tuple[int, int]
    tile: tuple[int, int]
    colours: str
    samples: int
    bits: int
    spacing: tuple[float, float] | None
    imaged: tuple[float, float] | None
    origin: tuple[float, float] | None
    paths: tuple[OpticalPath, ...]
    frames: int
    image: str
    part: int
    parts: int | None
    syntax: str
    organization: str
    maker: str
    lacking: tuple[str, ...]

    @property
    def area(self) -> int:
        """Number of pixels of the image."""
        return self.size[0] * self.size[1]

    @property
    def tiles(self) -> int:
        """Number of tiles of one plane of the image."""
        return -(-self.size[0] // self.tile[0]) * -(-self.size[1] // self.tile[1])

    @property
    def is_colour(self) -> bool:
        """Whether it is an RGB image of 8 bits in brightfield."""
        return self.samples == 3 and self.bits == 8 and (not self.paths or any(path.bright for path in self.paths))

    def near(self, other: "Instance") -> bool:
        """Tell whether another image begins at the same place of the glass, as far as both say so."""
        if self.origin is None or other.origin is None:
            return True
        room = SAME_PLACE_MM + max((*(self.spacing or ()), *(other.spacing or ())), default=0.0)
        return all(abs(mine - its) <= room for mine, its in zip(self.origin, other.origin, strict=True))


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM, whatever it is called.

    Args:
        path: The file.
    """
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def head_of(path: Path) -> Any:
    """Return the data set of a file without its pixels and without where each tile lies.

    Args:
        path: A file in DICOM.

    Raises:
        ImageError: If it is damaged.
    """
    from pydicom.filereader import read_partial

    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of values that nobody asks for
            return read_partial(file, stop_when=lambda tag, vr, length: int(tag) >= _PER_FRAME)
    except DAMAGE as error:
        raise ImageError(f"{str(path)!r} is damaged or cut short ({one_line(error)}); copy it again") from error


def instance_of(path: Path) -> Instance | None:
    """Return what a file says of itself; None for what is no whole-slide image, such as annotations.

    Args:
        path: A file in DICOM.

    Raises:
        ImageError: If it is damaged.
    """
    stat = path.stat()
    return _instance(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(2**14)  # every slide of a folder looks at all of its files
def _instance(path: Path, changed: int, size: int) -> Instance | None:
    if not is_dicom(path):
        return None
    head = head_of(path)
    if head.get("SOPClassUID") != _WHOLE_SLIDE:
        if "SOPClassUID" not in head:
            raise ImageError(f"{str(path)!r} is damaged or cut short (it does not say what it is); copy it again")
        return None
    lacking = [keyword for keyword in _NEEDED if not head.get(keyword)]
    if lacking:
        raise cut_short(path, lacking)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _facts(path, head)
    except _UNREADABLE as error:
        raise ImageError(
            f"{str(path)!r} is no whole-slide image that can be read ({one_line(error)}); copy or export it again"
        ) from error


def cut_short(path: Path, lacking: Sequence[str]) -> ImageError:
    """Return the error for a file that does not state what it must.

    Args:
        path: The file.
        lacking: Names of what it lacks.
    """
    return ImageError(f"{str(path)!r} is damaged or cut short (it states no {', no '.join(lacking)}); copy it again")


def _facts(path: Path, head: Any) -> Instance:
    kind = [str(word).upper() for word in head.ImageType]
    shared = _first(head, "SharedFunctionalGroupsSequence")
    spacing = _first(shared, "PixelMeasuresSequence").get("PixelSpacing")
    place = _first(head, "TotalPixelMatrixOriginSequence")
    origin = (place.get("XOffsetInSlideCoordinateSystem"), place.get("YOffsetInSlideCoordinateSystem"))
    imaged = (head.get("ImagedVolumeWidth"), head.get("ImagedVolumeHeight"))
    return Instance(
        path=path,
        uid=str(head.SOPInstanceUID),
        series=str(head.SeriesInstanceUID),
        flavour=kind[2] if len(kind) > 2 else "VOLUME",
        resampled="RESAMPLED" in kind,
        size=(
            int(head.get("TotalPixelMatrixColumns") or head.get("Columns") or 0),
            int(head.get("TotalPixelMatrixRows") or head.get("Rows") or 0),
        ),
        tile=(int(head.get("Columns") or 0), int(head.get("Rows") or 0)),
        colours=str(head.get("PhotometricInterpretation") or ""),
        samples=int(head.get("SamplesPerPixel") or 0),
        bits=int(head.get("BitsStored") or 0),
        spacing=_pair((spacing[1], spacing[0]) if spacing else (None, None)),  # DICOM has rows, then columns
        imaged=_pair(imaged),
        origin=_pair(origin),
        paths=tuple(_optical_path(item) for item in head.get("OpticalPathSequence") or ()),
        frames=int(head.get("NumberOfFrames") or 1),
        image=str(head.get("ConcatenationUID") or head.SOPInstanceUID),
        part=int(head.get("InConcatenationNumber") or 1),
        parts=int(head.get("InConcatenationTotalNumber") or 0) or (None if "ConcatenationUID" in head else 1),
        syntax=str(getattr(head.file_meta.TransferSyntaxUID, "name", "")),
        organization=str(head.get("DimensionOrganizationType") or ""),
        maker=str(head.get("Manufacturer") or ""),
        lacking=tuple(keyword for keyword in _OF_PIXELS if not head.get(keyword)),
    )


def _first(data: Any, keyword: str) -> Any:
    """Return the first item of a sequence, or an empty one."""
    return next(iter(data.get(keyword) or ()), {})


def _pair(values: tuple[Any, Any]) -> tuple[float, float] | None:
    return None if None in values else (float(values[0]), float(values[1]))


def _optical_path(item: Any) -> OpticalPath:
    lights = list(item.get("IlluminationTypeCodeSequence") or ())
    bright = not lights or any(str(light.get("CodeValue")) in _BRIGHT for light in lights)
    power = item.get("ObjectiveLensPower")
    return OpticalPath(
        name=str(item.get("OpticalPathIdentifier") or "0"),
        light=", ".join(str(light.get("CodeMeaning") or light.get("CodeValue")) for light in lights),
        bright=bright,
        objective=None if power is None else float(power),
    )


def instances_in(folder: Path, series: str | None = None) -> tuple[list[Instance], list[ImageError]]:
    """Return the files of slides in a folder by name, not in folders within, and why others cannot be read.

    Of several copies of one file the first is returned.

    Args:
        folder: The folder.
        series: Only those of this series.
    """
    found: dict[str, Instance] = {}
    damaged = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            instance = instance_of(path)
        except ImageError as error:
            damaged.append(error)
            continue
        if instance is not None and series in (None, instance.series):
            found.setdefault(instance.uid, instance)
    return list(found.values()), damaged


def one_per_slide(instances: Iterable[Instance]) -> list[Instance]:
    """Return of each series the file that names it: the first part of the largest image, in order of the names.

    Args:
        instances: Files of any series and folders.
    """
    best: dict[tuple[Path, str], Instance] = {}
    for instance in instances:
        key = (instance.path.parent, instance.series)
        best[key] = max(best.get(key, instance), instance, key=_rank)
    return sorted(best.values(), key=lambda instance: instance.path)


def _rank(instance: Instance) -> tuple[bool, bool, int, int]:
    return instance.flavour == "VOLUME", instance.is_colour, instance.area, -instance.part


def slide_file(folder: Path) -> Path | None:
    """Return the file that names the slide whose files lie in a folder; None where there is no slide in DICOM.

    Args:
        folder: The folder.

    Raises:
        ImageError: If there are several slides.
    """
    slides = one_per_slide(instances_in(folder)[0])
    if len(slides) > 1:
        names = ", ".join(slide.path.name for slide in slides[:4])
        raise ImageError(
            f"{str(folder)!r} holds {len(slides)} slides in DICOM, one a series; name a file of the one that is meant: "
            f"{names}{' and more' if len(slides) > 4 else ''}"
        )
    return slides[0].path if slides else None


def missing_parts(parts: Iterable[Instance]) -> list[int]:
    """Return the numbers of the parts of a concatenation that are not there.

    Args:
        parts: Files of one image.
    """
    given = list(parts)
    there = {part.part for part in given}
    count = max([max(there), *(part.parts or 0 for part in given)])
    return sorted(set(range(1, count + 1)) - there)


def profile_text(profile: bytes) -> str:
    """Return the name of an ICC profile and its digest.

    Args:
        profile: Its bytes.
    """
    import hashlib
    import io

    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        name = "not readable"
    return f"{name} (SHA-256 {hashlib.sha256(profile).hexdigest()[:16]})"


def profiles_of(head: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the ICC profiles of a data set with the optical path that each belongs to.

    Args:
        head: From :func:`head_of`.
    """
    for item in head.get("OpticalPathSequence") or ():
        if item.get("ICCProfile"):
            yield str(item.get("OpticalPathIdentifier") or "0"), bytes(item.ICCProfile)
