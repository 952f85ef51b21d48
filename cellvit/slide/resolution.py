"""The resolution of a slide or an image: what the caller says, else what the file states."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cellvit.errors import ConfigError, ImageError
from cellvit.io.images import read_resolution
from cellvit.io.remote import as_path
from cellvit.io.resolution import CONTRADICTION, MAX_MPP, MIN_MPP, StatedResolution, apart, micrometres
from cellvit.io.scenes import SceneName

_MICRONS = 10.0  # micrometres per pixel times the power of the objective, in the usual scanner
_OTHER_OBJECTIVE = 1.5  # a magnification is only nominal: x40 scanners have 0.22 to 0.28 micrometres per pixel
_SQUARE = 1.01
_ONE_CAMERA = 4.0  # no camera makes pixels so many times as long as wide; then one of the axes is wrong


DEFAULT_MPP = 0.25
"""Micrometres per pixel assumed of an ordinary image of which nobody states any."""


class States(Protocol):
    """What is needed of a slide: its name and what it states."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def stated_mpp(self) -> tuple[float, float] | None:
        """``(x, y)`` micrometres per pixel."""

    @property
    def stated_magnification(self) -> float | None:
        """Power of the objective."""


@dataclass(frozen=True)
class Resolution:
    """Resolution of a slide or an image and where it is known from.

    Attributes:
        mpp: ``(x, y)`` micrometres per pixel of full resolution.
        source: "mpp" or "magnification", what the user said; "slide" or "file", what is stated; or "default".
    """

    mpp: tuple[float, float]
    source: str


def slide_resolution(
    slide: States, *, mpp: float | None = None, magnification: float | None = None
) -> tuple[Resolution, list[str]]:
    """Return the resolution to use for a slide, and warnings.

    What the user says wins over what the slide states. A magnification that the slide states is not a resolution:
    it names the objective, not the camera.

    Args:
        slide: The slide.
        mpp: Micrometres per pixel, if the user says so.
        magnification: Power of the objective, if the user says so; means ``10 / magnification``.

    Returns:
        The resolution, and one sentence per doubt: the user contradicts the slide, the slide contradicts itself, a
        statement cannot be used, or pixels are not square.

    Raises:
        ConfigError: If a value is no resolution, or the two contradict each other by more than 10 %.
        ImageError: If the user says nothing, and the slide states no resolution, none that can be used, or pixels
            that no camera makes.
    """
    name, given = f"slide {slide.path.name!r}", given_resolution(mpp, magnification)
    if given is not None:
        return given, _contradictions(name, slide.stated_mpp, slide.stated_magnification, given)
    # readers of other packages that are no SlideReader may have no notes
    stated = StatedResolution(
        slide.stated_mpp, magnification=slide.stated_magnification, notes=getattr(slide, "resolution_notes", ())
    )
    if stated.mpp is None:
        raise ImageError(_missing(name, stated))
    return Resolution(stated.mpp, "slide"), _doubts(name, stated.mpp, stated)


def image_resolution(
    path: str | Path,
    *,
    mpp: float | None = None,
    magnification: float | None = None,
    scene: SceneName | None = None,
) -> tuple[Resolution, list[str]]:
    """Return the resolution to use for an ordinary image, and warnings: the rule of :func:`slide_resolution`.

    An ordinary image seldom states any. Then :data:`DEFAULT_MPP` is assumed, and ``source`` says so.

    Args:
        path: The file.
        mpp: Micrometres per pixel, if the user says so.
        magnification: Power of the objective, if the user says so; means ``10 / magnification``.
        scene: Number or name of the image that is meant, where a file holds several.

    Returns:
        The resolution, and one sentence per doubt.

    Raises:
        ConfigError: If a value is no resolution, or the two contradict each other by more than 10 %.
        ImageError: If the user says nothing and the file states pixels that no camera makes.
    """
    name, given = f"image {as_path(path).name!r}", given_resolution(mpp, magnification)
    stated = read_resolution(path, scene=scene)
    if given is not None:
        return given, _contradictions(name, stated.mpp, stated.magnification, given)
    if stated.mpp is None:
        return Resolution((DEFAULT_MPP, DEFAULT_MPP), "default"), _assumed(name, stated)
    return Resolution(stated.mpp, "file"), _doubts(name, stated.mpp, stated)


def given_resolution(mpp: float | None, magnification: float | None) -> Resolution | None:
    """Return the resolution that the caller gives, or None.

    Args:
        mpp: Micrometres per pixel, or None.
        magnification: Power of the objective, or None; means ``10 / magnification``.

    Raises:
        ConfigError: If a value is no resolution, or the two contradict each other by more than 10 %.
    """
    if mpp is not None and not MIN_MPP <= mpp <= MAX_MPP:  # also refuses nan
        raise ConfigError(f"mpp={mpp:g} is not a resolution of a microscope; give micrometres per pixel, such as 0.25")
    if magnification is not None and not _MICRONS / MAX_MPP <= magnification <= _MICRONS / MIN_MPP:
        raise ConfigError(f"magnification={magnification:g} is not one of a microscope; give a number such as 40")
    if magnification is None:
        return None if mpp is None else Resolution((mpp, mpp), "mpp")
    nominal = _MICRONS / magnification
    if mpp is None:
        return Resolution((nominal, nominal), "magnification")
    if apart((mpp,), (nominal,)) > CONTRADICTION:
        raise ConfigError(
            f"mpp={mpp:g} and magnification={magnification:g} (about {nominal:.3g} µm/px) contradict each other; "
            "give one of them"
        )
    return Resolution((mpp, mpp), "mpp")


def _contradictions(name: str, stated: tuple[float, float] | None, power: float | None, given: Resolution) -> list[str]:
    """Return in what the file contradicts the user."""
    value = given.mpp[0]
    if stated is not None:
        if apart(given.mpp, stated) <= CONTRADICTION:
            return []
        return [f"{name} states {micrometres(stated)}; {given.source} makes it {value:.4g} µm/px, which is used"]
    if power is not None and apart((value,), (_MICRONS / power,)) > _OTHER_OBJECTIVE:
        return [
            f"{name} states a magnification of {power:g} (about {_MICRONS / power:.3g} µm/px); {given.source} makes it "
            f"{value:.4g} µm/px, which is used"
        ]
    return []


def _doubts(name: str, mpp: tuple[float, float], stated: StatedResolution) -> list[str]:
    """Return what is doubtful in a statement that is used."""
    ratio, power = apart(mpp[:1], mpp[1:]), stated.magnification
    if ratio > _ONE_CAMERA:
        raise ImageError(
            f"{name} states pixels of {micrometres(mpp)}, which no camera makes; pass the one that is right, such as "
            f"mpp={min(mpp):.4g} or mpp={max(mpp):.4g}"
        )
    doubts = [f"{name} {note}" for note in stated.notes]
    if ratio > _SQUARE:
        doubts.append(f"{name} states pixels that are not square: {micrometres(mpp)}; they are made square")
    if power is not None and apart(mpp, (_MICRONS / power, _MICRONS / power)) > _OTHER_OBJECTIVE:
        doubts.append(
            f"{name} contradicts itself: it states {micrometres(mpp)} and a magnification of {power:g}, which is about "
            f"{_MICRONS / power:.3g} µm/px; {micrometres(mpp)} is used; if that is wrong, pass "
            f"mpp={_MICRONS / power:.3g} or what is right"
        )
    return doubts


def _assumed(name: str, stated: StatedResolution) -> list[str]:
    """Return what an image states in vain, where the default is assumed."""
    vain = list(stated.notes)
    if stated.magnification is not None:
        power = stated.magnification
        vain.append(
            f"states no size of a pixel, only a magnification of {power:g} (about {_MICRONS / power:.3g} µm/px)"
        )
    return [f"{name} {text}; {DEFAULT_MPP:g} µm/px is assumed; if that is wrong, pass mpp=0.5" for text in vain]


def _missing(name: str, stated: StatedResolution) -> str:
    """Return why a slide without a resolution is refused."""
    power = stated.magnification
    states = stated.notes[0] if stated.notes else "states no resolution"
    if power is None or not MIN_MPP <= _MICRONS / power <= MAX_MPP:
        return f"{name} {states}; pass mpp=0.25 or magnification=40"
    return (
        f"{name} {states}, only a magnification of {power:g}, which names the objective and not the "
        f"size of a pixel; pass mpp={_MICRONS / power:.3g} or magnification={power:g} if that is right"
    )
