"""What a file states about its resolution, in all the places where it may do so, and which of them is believed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cellvit.io.lengths import micrometres_of, number

MIN_MPP, MAX_MPP = 0.01, 20.0
"""A resolution outside says nothing about a microscope, such as the 72 dots per inch that many programs write."""

CONTRADICTION = 1.10
"""Two statements that differ by more than this factor cannot both be right."""

_OTHER_UNIT = 1.5


@dataclass(frozen=True)
class Statement:
    """What one place of a file says about the size of a pixel.

    Attributes:
        place: Where it stands, such as "OME-XML".
        quote: What stands there.
        mpp: ``(x, y)`` micrometres per pixel, or None where it is not understood.
        why: Why it is not understood, or how it was read where that is a guess; else empty.
    """

    place: str
    quote: str
    mpp: tuple[float, float] | None
    why: str = ""

    @property
    def usable(self) -> bool:
        """Return whether a microscope can have this resolution."""
        return plausible_mpp(self.mpp) is not None

    @property
    def problem(self) -> str:
        """Return why it cannot be used."""
        if self.mpp is None:
            return self.why
        return f"{micrometres(self.mpp)} is not a resolution of a microscope, which is {MIN_MPP:g} to {MAX_MPP:g}"


@dataclass(frozen=True)
class StatedResolution:
    """What a file as a whole states.

    Attributes:
        mpp: ``(x, y)`` micrometres per pixel, plausible, or None where nothing usable is stated.
        place: Where that stands, such as "OME-XML"; empty for None.
        magnification: Power of the objective, or None.
        notes: What the user should know, each the rest of a sentence that begins with the name of the file: what is
            stated and cannot be used, where the file contradicts itself, and what was guessed.
    """

    mpp: tuple[float, float] | None = None
    place: str = ""
    magnification: float | None = None
    notes: tuple[str, ...] = ()


def settle(statements: Sequence[Statement], *, magnification: float | None = None) -> StatedResolution:
    """Return what a file states as a whole: the first statement that can be used, and a note for every doubt.

    Statements further back that cannot be used are passed over: 72 dots per inch beside an OME-XML mean nothing.

    Args:
        statements: One for each place, what is believed most first.
        magnification: Power of the objective that the file states, or None.

    Example:
        >>> settle([Statement("TIFF tags", "72 pixels per inch", (352.8, 352.8))]).notes[0][:57]
        'states no resolution that can be used: 72 pixels per inch'
    """
    first = next((i for i, statement in enumerate(statements) if statement.usable), None)
    if first is None:
        told = "; ".join(f"{s.quote} in its {s.place} ({s.problem})" for s in statements)
        vain = (f"states no resolution that can be used: {told}",) if told else ()
        return StatedResolution(magnification=magnification, notes=vain)
    used = statements[first]
    assert used.mpp is not None
    takes = f"{micrometres(used.mpp)} of its {used.place} is used"
    notes = [
        f"states {s.quote} in its {s.place}, which cannot be used ({s.problem}); {takes}" for s in statements[:first]
    ]
    if used.why:
        notes.append(f"states {used.quote} in its {used.place}: {used.why}; {takes}")
    notes += [
        f"contradicts itself: it states {micrometres(used.mpp)} in its {used.place} and {micrometres(s.mpp)} in its "
        f"{s.place}; {takes}"
        for s in statements[first + 1 :]
        if s.mpp is not None and s.usable and apart(s.mpp, used.mpp) > CONTRADICTION
    ]
    return StatedResolution(used.mpp, used.place, magnification, tuple(dict.fromkeys(notes)))


def axes_statement(
    place: str, quote: str, axes: tuple[float | str | None, float | str | None], *, missing: str
) -> Statement:
    """Return the statement of a place that has a value for each axis.

    Args:
        place: Where it stands.
        quote: What stands there.
        axes: For x and y, micrometres per pixel, or why it is not understood, or None where it is not stated; at
            least one is stated.
        missing: How the user knows the axis that is not stated, such as "PhysicalSizeY".

    Returns:
        Without the other axis, pixels are taken as square, and ``why`` says so.
    """
    x, y = axes
    wrong = [value for value in axes if isinstance(value, str)]
    if wrong:
        return Statement(place, quote, None, "; ".join(dict.fromkeys(wrong)))
    one = x if y is None else y
    if x is None or y is None:
        assert isinstance(one, float)
        return Statement(place, quote, (one, one), f"{missing} is missing and pixels are taken as square")
    assert isinstance(x, float)
    assert isinstance(y, float)
    return Statement(place, quote, (x, y))


def length(text: str, unit: str) -> float | str:
    """Return a length in micrometres, or why it is none.

    Args:
        text: The number, as a file spells it.
        unit: The unit, as a file spells it.

    Example:
        >>> length("250", "nm"), length("1", "pixel"), length("x", "nm")
        (0.25, "'pixel' is not a unit of length", "'x' is not a number above 0")
    """
    value, size = positive(text), micrometres_of(unit)
    if value is None:
        return f"{text!r} is not a number above 0"
    if size is None:
        return f"{unit!r} is not a unit of length"
    found = positive(f"{value * size:.12g}")  # 230 nm are 0.23 micrometres, without the noise of the product
    return f"{text} {unit} is not a length" if found is None else found


def same_unit(stated: Statement, other: tuple[float, float], unit: str) -> Statement:
    """Return a statement in which only one axis names its unit, with that unit for both where this fits better.

    Args:
        stated: As the schema has it: the axis without a unit is in micrometres.
        other: ``(x, y)`` micrometres per pixel if both axes have the unit.
        unit: The unit.
    """
    if stated.mpp is None or apart(stated.mpp[:1], stated.mpp[1:]) <= _OTHER_UNIT:
        return stated
    if apart(other[:1], other[1:]) > _OTHER_UNIT or plausible_mpp(other) is None:
        return stated
    return Statement(stated.place, stated.quote, other, f"one axis names no unit and is taken in {unit!r}")


def plausible_mpp(stated: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return a stated resolution if a microscope can have it, else None.

    Args:
        stated: ``(x, y)`` micrometres per pixel, or None.

    Example:
        >>> plausible_mpp((0.25, 0.25)), plausible_mpp((352.8, 352.8))
        ((0.25, 0.25), None)
    """
    if stated is None or not all(MIN_MPP <= value <= MAX_MPP for value in stated):
        return None
    return stated


def positive(text: object) -> float | None:
    """Return a number above zero, or None for anything else.

    Args:
        text: What a file states, or None.

    Example:
        >>> positive("40"), positive("unknown"), positive(None)
        (40.0, None, None)
    """
    value = number(text)
    return value if value is not None and math.isfinite(value) and value > 0 else None


def apart(a: Sequence[float], b: Sequence[float]) -> float:
    """Return by what factor numbers above zero differ at most, at least 1.

    Args:
        a: Numbers.
        b: As many.

    Example:
        >>> apart((0.5, 0.25), (0.25, 0.25))
        2.0
    """
    return max(max(left / right, right / left) for left, right in zip(a, b, strict=True))


def micrometres(mpp: tuple[float, float]) -> str:
    """Return a resolution as text.

    Args:
        mpp: ``(x, y)`` micrometres per pixel.

    Example:
        >>> micrometres((0.25, 0.25)), micrometres((0.25, 0.5))
        ('0.25 \u00b5m/px', '0.25 x 0.5 \u00b5m/px')
    """
    x, y = (f"{value:.4g}" for value in mpp)
    return f"{x} \u00b5m/px" if x == y else f"{x} x {y} \u00b5m/px"
