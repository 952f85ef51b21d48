"""What a TIFF file says about its image: whether it is one, its resolution, the objective.

Each place that may state a resolution gives a :class:`~cellvit.io.resolution.Statement`. They are believed in this
order: OME-XML, the description of Aperio, that of ImageJ, the tags of TIFF.
"""

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from cellvit.errors import ImageError, SourceLostError
from cellvit.io.remote import RemotePath
from cellvit.io.resolution import (
    CONTRADICTION,
    StatedResolution,
    Statement,
    apart,
    axes_statement,
    length,
    positive,
    same_unit,
    settle,
)

if TYPE_CHECKING:  # the library is loaded when the first file is read
    from tifffile import TiffFile

_RESOLUTION_UNITS = {2: "inch", 3: "centimetre", 4: "millimetre", 5: "micron"}  # 4 and 5 are those of DNG
_IMAGEJ_UNIT = re.compile(r"^(unit|yunit)=(.*)$", re.MULTILINE)
_PROPORTIONS = 1.02
_QUIET_LOCK = threading.Lock()
_quiet_users = 0


def is_tiff(path: Path) -> bool:
    """Tell whether a file begins like a TIFF.

    Args:
        path: The file.

    Raises:
        ImageError: If it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except SourceLostError:
        raise
    except OSError as error:
        raise ImageError(f"{str(path)!r} cannot be opened ({error.strerror}); check its permissions") from error


@contextmanager
def open_tiff(path: Path) -> Iterator["TiffFile"]:
    """Return a context that yields a TIFF, whose remarks stay out of the user's terminal.

    Args:
        path: A local file, or one at an address.
    """
    from tifffile import TiffFile

    with quiet_tifffile(), ExitStack() as stack:
        source = stack.enter_context(path.open("rb")) if isinstance(path, RemotePath) else path
        yield stack.enter_context(TiffFile(source))


@contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Keep the remarks of tifffile about unusual files out of the user's terminal; its errors still raise."""
    global _quiet_users
    logger = logging.getLogger("tifffile")
    with _QUIET_LOCK:
        _quiet_users += 1
        logger.disabled = True
    try:
        yield
    finally:
        with _QUIET_LOCK:
            _quiet_users -= 1
            logger.disabled = _quiet_users > 0


def tiff_resolution(tiff: "TiffFile", *, series: int = 0, levels: Sequence[Any] = ()) -> StatedResolution:
    """Return what a file states about one of its images.

    Axes are those of the picture as it is shown: where the tag Orientation turns it, x and y change places.

    Args:
        tiff: An open file.
        series: Number of the image among ``tiff.series``.
        levels: The image in all its sizes, the largest first, as series of tifffile; none are those of ``series``.
    """
    images = _series(tiff)
    levels = levels or (images[series].levels if images else [tiff.pages.first])
    page = levels[0].keyframe
    statements: list[Statement | None] = []
    power: float | None = None
    if tiff.is_ome and tiff.ome_metadata:
        stated, power = _ome(tiff.ome_metadata, series, (page.imagewidth, page.imagelength))
        statements.append(stated)
    elif tiff.is_svs:
        stated, power = _aperio(page.description or tiff.pages.first.description)
        statements.append(stated)
    elif tiff.is_imagej:
        statements.append(_imagej(page, tiff.pages.first.imagej_description or ""))
    statements.append(_tags(page, calibrated=any(statements)))
    found = [statement for statement in statements if statement is not None]
    smaller = [*levels[1:], *(other for other in images if other.keyframe.is_reduced)]
    found += _smaller(page, smaller, next((s.mpp for s in found if s.usable), None))
    if page.tags.valueof("Orientation", default=1) in (5, 6, 7, 8):
        found = [s if s.mpp is None else replace(s, mpp=s.mpp[::-1]) for s in found]
    return settle(found, magnification=power)


def _series(tiff: "TiffFile") -> list[Any]:
    """Return the images of a file, or none where its description is one that tifffile refuses."""
    try:
        return list(tiff.series)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return []


def _ome(xml: str, series: int, size: tuple[int, int]) -> tuple[Statement | None, float | None]:
    """Return what an OME-XML says about an image, and the power of its objective."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        return Statement("OME-XML", "a text that is cut short or damaged", None, str(error)), None
    images = root.findall("{*}Image")
    if not images:
        return None, None
    image = _ome_image(images, series, size)
    pixels = image.find("{*}Pixels")
    return (None if pixels is None else _ome_pixels(pixels.attrib)), _ome_objective(root, image)


def _ome_image(images: list[ElementTree.Element], series: int, size: tuple[int, int]) -> ElementTree.Element:
    """Return the image of a series: that of its number, unless only another one has its size."""
    first = images[min(series, len(images) - 1)]
    wanted = tuple(str(side) for side in size)
    sized = [
        image
        for image in images
        if (pixels := image.find("{*}Pixels")) is not None and (pixels.get("SizeX"), pixels.get("SizeY")) == wanted
    ]
    return first if first in sized or not sized else sized[0]


def _ome_pixels(stated: dict[str, str]) -> Statement | None:
    texts = {axis: stated.get(f"PhysicalSize{axis}") for axis in "XY"}
    units = {axis: stated.get(f"PhysicalSize{axis}Unit") for axis in "XY"}
    if not any(texts.values()):
        return None
    names = [f"PhysicalSize{axis}{end}" for axis in "XY" if texts[axis] for end in ("", "Unit")]
    quote = " ".join(f'{name}="{stated[name]}"' for name in names if name in stated)
    # the schema says: without a unit, micrometres
    x, y = (None if not text else length(text, units[axis] or "\u00b5m") for axis, text in texts.items())
    missing = "PhysicalSizeY" if y is None else "PhysicalSizeX"
    statement = axes_statement("OME-XML", quote, (x, y), missing=missing)
    named = [unit for unit in units.values() if unit]
    if len(named) != 1 or not all(texts.values()):
        return statement
    other = tuple(length(text or "", named[0]) for text in texts.values())
    if isinstance(other[0], str) or isinstance(other[1], str):
        return statement
    return same_unit(statement, (other[0], other[1]), named[0])


def _ome_objective(root: ElementTree.Element, image: ElementTree.Element) -> float | None:
    """Return the power of the objective that an image names, or of the only one that the file has."""
    objectives = root.findall("{*}Instrument/{*}Objective")
    settings = image.find("{*}ObjectiveSettings")
    if len(objectives) > 1 and settings is not None:
        objectives = [objective for objective in objectives if objective.get("ID") == settings.get("ID")]
    return positive(objectives[0].get("NominalMagnification")) if len(objectives) == 1 else None


def _aperio(description: str) -> tuple[Statement | None, float | None]:
    """Return what the description of an Aperio scanner says, and the power of the objective."""
    pairs = (item.partition("=") for item in description.split("|"))
    stated = {key.strip(): value.strip() for key, _, value in pairs}
    return aperio_statement(stated.get("MPP")), positive(stated.get("AppMag"))


def aperio_statement(text: str | None) -> Statement | None:
    """Return what an Aperio scanner says under "MPP", or None if it says nothing.

    Args:
        text: What stands there.
    """
    if text is None:
        return None
    value = length(text, "um")
    return axes_statement("Aperio description", f"MPP = {text}", (value, value), missing="")


def _imagej(page: Any, description: str) -> Statement | None:
    """Return what ImageJ says: XResolution and YResolution are pixels per unit, which its description names."""
    stated = {key: text.strip() for key, text in _IMAGEJ_UNIT.findall(description)}
    unit = stated.get("unit")
    if unit is None:
        return None
    units = (unit, stated.get("yunit", unit))
    values = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    quote = " ".join([*(f"{key}={text}" for key, text in stated.items()), *_quoted(values)])
    if values == [None, None]:
        return Statement("ImageJ description", quote, None, "XResolution and YResolution are missing")
    x, y = (None if value is None else _pixel(value, u) for value, u in zip(values, units, strict=True))
    missing = "YResolution" if y is None else "XResolution"
    return axes_statement("ImageJ description", quote, (x, y), missing=missing)


def _tags(page: Any, *, calibrated: bool) -> Statement | None:
    """Return what the resolution tags of a page say, or None if nothing.

    Args:
        page: The page.
        calibrated: Whether a description gives the unit: then tags without one are no statement of their own.
    """
    values = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    unit = page.tags.valueof("ResolutionUnit", default=2)
    return tags_statement((values[0], values[1]), unit, calibrated=calibrated)


def tags_statement(values: tuple[Any, Any], unit: Any, *, calibrated: bool = False) -> Statement | None:
    """Return what resolution tags say, or None if they say nothing.

    Args:
        values: XResolution and YResolution, pixels per unit: numerator and denominator, or a number; None if missing.
        unit: ResolutionUnit: 1 none, 2 inch, 3 centimetre.
        calibrated: Whether a description gives the unit: then tags without one are no statement of their own.

    Example:
        >>> tags_statement(((40_000, 1), (40_000, 1)), 3).mpp, tags_statement(((1, 1), (1, 1)), 1)
        ((0.25, 0.25), None)
    """
    place = "TIFF tags"
    if values == (None, None):
        return None
    quote = " ".join(_quoted(list(values)))
    if unit == 1 and (calibrated or {_ratio(value) for value in values} == {Fraction(1)}):
        return None  # the shape of a pixel, not its size
    if unit not in _RESOLUTION_UNITS:
        why = "'none' is not a unit of length" if unit == 1 else f"{unit} is not a unit of TIFF"
        return Statement(place, f"{quote} ResolutionUnit={unit}", None, why)
    name = _RESOLUTION_UNITS[unit]
    x, y = (None if value is None else _pixel(value, name) for value in values)
    missing = "YResolution" if y is None else "XResolution"
    return axes_statement(place, f"{quote} per {name}", (x, y), missing=missing)


def _smaller(full: Any, levels: Sequence[Any], mpp: tuple[float, float] | None) -> list[Statement]:
    """Return what tags of smaller levels say where it contradicts the full image, or where that says nothing.

    Some writers give each level its own resolution, others all of them that of the full image; both agree with it.
    Where nothing usable is said of the full image, its resolution follows from that of a level.

    Args:
        full: The page of the full image.
        levels: Smaller images; those of other proportions are passed over.
        mpp: ``(x, y)`` micrometres per pixel of the full image, or None.
    """
    width, height = full.imagewidth, full.imagelength
    found = []
    for page in (level.keyframe for level in levels):
        stated = _tags(page, calibrated=True)
        factors = (page.imagewidth / width, page.imagelength / height)
        if stated is None or stated.mpp is None or not stated.usable or apart(factors[:1], factors[1:]) > _PROPORTIONS:
            continue
        scaled = (stated.mpp[0] * factors[0], stated.mpp[1] * factors[1])
        if mpp is None or min(apart(scaled, mpp), apart(stated.mpp, mpp)) > CONTRADICTION:
            why = f"it is scaled to the full image, which is {1 / factors[0]:.3g} times as wide"
            found.append(Statement("TIFF tags of a smaller level", stated.quote, scaled, why))
    return found


def _quoted(values: list[Any]) -> list[str]:
    texts = ("/".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
    return [f"{axis}Resolution={text}" for axis, text, v in zip("XY", texts, values, strict=True) if v is not None]


def _ratio(value: Any) -> Fraction | None:
    """Return pixels per unit, or None for what is no number above 0, such as a denominator of 0."""
    try:
        ratio = Fraction(*value) if isinstance(value, tuple) else Fraction(value)
    except (ArithmeticError, TypeError, ValueError):
        return None
    return ratio if ratio > 0 else None


def _pixel(per_unit: Any, unit: str) -> float | str:
    """Return the size of a pixel in micrometres, or why there is none."""
    ratio = _ratio(per_unit)
    if ratio is None:
        return f"{_quoted([per_unit, None])[0].partition('=')[2]} is not a number above 0"
    return length(repr(float(1 / ratio)), unit)
