"""The resolution of a slide or an image: what the caller says, else what the file states."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cellvit.errors import ConfigError, ImageError
from cellvit.io.images import read_mpp
from cellvit.io.tiff_metadata import MAX_MPP, MIN_MPP

_MICRONS = 10.0  # micrometres per pixel times the power of the objective, in the usual scanner
_CONTRADICTION = 1.10
_OTHER_OBJECTIVE = 1.5  # a magnification is only nominal: x40 scanners have 0.22 to 0.28 micrometres per pixel
_SQUARE = 1.01


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
        The resolution, and one sentence per doubt: the user contradicts the slide, or pixels are not square.

    Raises:
        ConfigError: If a value is no resolution, or the two contradict each other by more than 10 %.
        ImageError: If the slide states no resolution and the user says nothing.
    """
    given = given_resolution(mpp, magnification)
    if given is not None:
        return given, _contradictions(f"slide {slide.path.name!r}", slide.stated_mpp, slide.stated_magnification, given)
    if slide.stated_mpp is None:
        raise ImageError(_missing(slide))
    return Resolution(slide.stated_mpp, "slide"), _not_square(slide, slide.stated_mpp)


def image_resolution(
    path: str | Path, *, mpp: float | None = None, magnification: float | None = None
) -> tuple[Resolution, list[str]]:
    """Return the resolution to use for an ordinary image, and warnings: the rule of :func:`slide_resolution`.

    An ordinary image seldom states any. Then :data:`DEFAULT_MPP` is assumed, and ``source`` says so.

    Args:
        path: The file.
        mpp: Micrometres per pixel, if the user says so.
        magnification: Power of the objective, if the user says so; means ``10 / magnification``.

    Returns:
        The resolution, and one sentence per doubt.

    Raises:
        ConfigError: If a value is no resolution, or the two contradict each other by more than 10 %.
    """
    given = given_resolution(mpp, magnification)
    stated = read_mpp(path)
    if given is not None:
        square = None if stated is None else (stated, stated)
        return given, _contradictions(f"image {Path(path).name!r}", square, None, given)
    if stated is None:
        return Resolution((DEFAULT_MPP, DEFAULT_MPP), "default"), []
    return Resolution((stated, stated), "file"), []


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
    if _apart(mpp, nominal) > _CONTRADICTION:
        raise ConfigError(
            f"mpp={mpp:g} and magnification={magnification:g} (about {nominal:.3g} µm/px) contradict each other; "
            "give one of them"
        )
    return Resolution((mpp, mpp), "mpp")


def _contradictions(name: str, stated: tuple[float, float] | None, power: float | None, given: Resolution) -> list[str]:
    value = given.mpp[0]
    if stated is not None:
        if max(_apart(value, axis) for axis in stated) <= _CONTRADICTION:
            return []
        return [f"{name} states {_micrometres(stated)}; {given.source} makes it {value:.4g} µm/px, which is used"]
    if power is not None and _apart(value, _MICRONS / power) > _OTHER_OBJECTIVE:
        return [
            f"{name} states a magnification of {power:g} (about {_MICRONS / power:.3g} µm/px); {given.source} makes it "
            f"{value:.4g} µm/px, which is used"
        ]
    return []


def _not_square(slide: States, mpp: tuple[float, float]) -> list[str]:
    if _apart(*mpp) <= _SQUARE:
        return []
    return [f"slide {slide.path.name!r} states pixels that are not square: {_micrometres(mpp)}; they are made square"]


def _missing(slide: States) -> str:
    power, name = slide.stated_magnification, f"slide {slide.path.name!r}"
    if power is None or not MIN_MPP <= _MICRONS / power <= MAX_MPP:
        return f"{name} states no resolution; pass mpp=0.25 or magnification=40"
    return (
        f"{name} states no resolution, only a magnification of {power:g}, which names the objective and not the "
        f"size of a pixel; pass mpp={_MICRONS / power:.3g} or magnification={power:g} if that is right"
    )


def _apart(a: float, b: float) -> float:
    """Return by what factor two numbers above zero differ, at least 1."""
    return math.exp(abs(math.log(a / b)))


def _micrometres(mpp: tuple[float, float]) -> str:
    x, y = (f"{value:.4g}" for value in mpp)
    return f"{x} µm/px" if x == y else f"{x} x {y} µm/px"
