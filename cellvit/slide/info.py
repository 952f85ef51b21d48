"""What a file of a slide or an image is, before anything is done with it: what its segmentation depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from cellvit.errors import ImageError
from cellvit.io.images import DAMAGE, open_pillow
from cellvit.io.provenance import size_of
from cellvit.io.remote import as_path
from cellvit.io.scenes import SeveralImagesError, is_smaller, tiff_scenes
from cellvit.io.tiff_metadata import is_tiff, open_tiff
from cellvit.slide.open import Slide, is_slide, open_slide
from cellvit.slide.readers.base import Box, Size
from cellvit.slide.resolution import image_resolution, slide_resolution

if TYPE_CHECKING:  # the library is loaded when the first file is looked at
    from tifffile import TiffFile

ALPHA = {1: "associated", 2: "unassociated"}
"""What a TIFF says of samples beside the colours: 1 multiplied into the colours, 2 apart from them."""

_FULL = 0.5  # share of the largest image's area from which another image is a scene as well
_DEPTHS = {"1": 1, "I": 32, "F": 32}  # bits of a channel by the mode of Pillow, where they are not 8


@dataclass(frozen=True)
class Picture:
    """An image of a file.

    Attributes:
        name: What the file calls it, or its number from 0.
        size: ``(width, height)`` in pixels.
    """

    name: str
    size: Size


@dataclass(frozen=True)
class PixelFacts:
    """How the pixels of the largest image lie in a file; None where neither file nor library says so.

    Attributes:
        kind: Format of the file, such as "aperio", "ome" or "PNG".
        channels: Colours and whatever else a pixel has, alpha included.
        bits: Bits of a channel.
        significant_bits: Those that hold something, where the file says so.
        alpha: "associated" (multiplied into the colours), "unassociated", "unspecified" (a further sample of which
            the file does not say what it is), or None if there is none.
        compression: Name of the compression.
        scenes: Images of full size.
        associated: Labels, overviews and other pictures beside them; None where the library does not tell.
    """

    kind: str | None = None
    channels: int | None = None
    bits: int | None = None
    significant_bits: int | None = None
    alpha: str | None = None
    compression: str | None = None
    scenes: tuple[Picture, ...] = ()
    associated: tuple[Picture, ...] | None = ()


@dataclass(frozen=True)
class SlideInfo:
    """What a file is.

    Attributes:
        path: The file.
        size_bytes: Its size in bytes; None where that is not known, as of a store on a web server.
        reader: What reads it; None if it cannot be opened before a scene is chosen.
        level_sizes: ``(width, height)`` of each level of the pyramid, full resolution first.
        bounds: ``(x, y, width, height)`` of the scanned part in level-0 pixels.
        mpp: ``(x, y)`` micrometres per pixel that the file states, or None.
        mpp_place: Where in the file that stands, as far as the reader says so.
        magnification: Power of the objective that the file states, or None.
        pixels: How its pixels are stored, and which images it holds.
        warnings: What should be known before it is segmented; each is a sentence.
    """

    path: Path
    size_bytes: int | None
    reader: str | None
    level_sizes: tuple[Size, ...]
    bounds: Box | None
    mpp: tuple[float, float] | None
    mpp_place: str
    magnification: float | None
    pixels: PixelFacts
    warnings: tuple[str, ...]


def slide_info(path: str | Path) -> SlideInfo:
    """Return what a file is; what its pixels show is not judged.

    Args:
        path: A slide or an image.

    Raises:
        ImageError: If the file is missing, empty, damaged, or of no known format. A file of several scenes, of which
            the reader wants one to be chosen, is described without levels, and the reader's error is its warning.
    """
    path = as_path(path)
    try:
        slide = open_slide(path)
    except ImageError as error:
        facts = _pixel_facts(path, ())
        if isinstance(error.__cause__, SeveralImagesError):
            scenes = tuple(Picture(scene.name or str(scene.index), scene.size) for scene in error.__cause__.scenes)
            facts = replace(facts, scenes=scenes)
        if len(facts.scenes) < 2:
            raise
        return SlideInfo(path, size_of(path), None, (), None, None, "", None, facts, (str(error),))
    with slide:
        return info_of(slide)


def info_of(slide: Slide) -> SlideInfo:
    """Return what the file of an open slide is; what its pixels show is not judged.

    Args:
        slide: The slide.
    """
    path = slide.path
    facts = _pixel_facts(path, slide.level_sizes)
    if slide.reader == "openslide":
        facts = replace(facts, **_openslide_facts(path))
    facts = replace(facts, **_own_facts(slide))
    mpp, doubts = _resolution(slide)
    return SlideInfo(
        path=path,
        size_bytes=size_of(path),
        reader=slide.reader,
        level_sizes=tuple(slide.level_sizes),
        bounds=slide.bounds,
        mpp=mpp,
        mpp_place=str(getattr(slide, "stated_place", None) or ""),  # not every reader says where
        magnification=slide.stated_magnification,
        pixels=facts,
        warnings=(*getattr(slide, "warnings", ()), *doubts),
    )


def _resolution(slide: Slide) -> tuple[tuple[float, float] | None, list[str]]:
    """Return what the file states, by the rule of segmentation, and what is doubtful about it."""
    if not is_slide(slide.path):
        resolution, doubts = image_resolution(slide.path)
        if resolution.source != "default":
            return resolution.mpp, doubts
        said = f"image {slide.path.name!r} states no resolution; without mpp={resolution.mpp[0]:g} that is assumed"
        return None, [*doubts, said]
    try:
        resolution, doubts = slide_resolution(slide)
    except ImageError as error:
        return None, [str(error)]
    return resolution.mpp, doubts


def _own_facts(slide: Slide) -> dict[str, Any]:
    """Return what the reader of a slide says itself; its pictures are pairs of a name and a size."""
    own = dict(getattr(slide, "facts", {}))  # readers of other packages that are no SlideReader have none
    pictures = [name for name in ("scenes", "associated") if own.get(name) is not None]
    return own | {name: tuple(Picture(*picture) for picture in own[name]) for name in pictures}


def _pixel_facts(path: Path, levels: Sequence[Size]) -> PixelFacts:
    """Return what tifffile or Pillow say of a file; nothing where neither knows it."""
    try:
        if is_tiff(path):
            with open_tiff(path) as tiff:
                return _tiff_facts(tiff, levels)
        return _image_facts(path)
    except DAMAGE:
        return PixelFacts()


def _tiff_facts(tiff: "TiffFile", levels: Sequence[Size]) -> PixelFacts:
    images = tiff_scenes(tiff)
    largest = max(images, key=lambda image: image.area)
    page, series, scenes, others = largest.page, largest.levels[0], [], []
    for image in images:
        picture = Picture(image.name or str(image.index), image.size)
        beside = image.companion or image.reduced or is_smaller(image.size, largest.size)
        if image.area >= _FULL * largest.area and not beside:
            scenes.append(picture)
        elif picture.size not in levels:
            others.append(picture)
    extra = [int(sample) for sample in page.extrasamples]
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return PixelFacts(
        kind=str(series.kind),
        channels=prod(sizes.get(axis, 1) for axis in "CS"),
        bits=int(page.bitspersample),
        significant_bits=_significant_bits(tiff, largest.series),
        alpha=next((ALPHA.get(sample, "unspecified") for sample in extra), None),
        compression=str(getattr(page.compression, "name", page.compression)),
        scenes=tuple(scenes),
        associated=tuple(others),
    )


def _significant_bits(tiff: "TiffFile", number: int) -> int | None:
    """Return how many bits of a channel OME-XML says are used, or None."""
    if not tiff.is_ome or not tiff.ome_metadata:
        return None
    try:
        stated = ElementTree.fromstring(tiff.ome_metadata).findall("{*}Image/{*}Pixels")
        return int(stated[min(number, len(stated) - 1)].get("SignificantBits") or 0) or None
    except (ElementTree.ParseError, IndexError, ValueError):
        return None


def _image_facts(path: Path) -> PixelFacts:
    with open_pillow(path) as image:
        transparent = "A" in image.getbands() or "transparency" in image.info
        deep = ";16" in image.mode or ";16" in str(getattr(image, "tile", ""))
        return PixelFacts(
            kind=image.format,
            channels=len(image.getbands()),
            bits=16 if deep else _DEPTHS.get(image.mode, 8),
            alpha="unassociated" if transparent else None,
            compression=str(image.info.get("compression") or image.format),
            scenes=(Picture("0", image.size),),
        )


def _openslide_facts(path: Path) -> Mapping[str, Any]:
    """Return what OpenSlide knows better than tifffile: the scanner, and the pictures beside the slide."""
    from openslide import OpenSlide

    with OpenSlide(path) as slide:
        stated = dict(slide.properties)
        names = sorted(slide.associated_images)
    size = "openslide.associated.{}.{}".format
    pictures = (Picture(n, (int(stated[size(n, "width")]), int(stated[size(n, "height")]))) for n in names)
    return {"kind": stated.get("openslide.vendor"), "associated": tuple(pictures)}
