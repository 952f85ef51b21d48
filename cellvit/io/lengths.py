"""Lengths as files spell them: units of OME-XML, ImageJ and people, and numbers with a point or a comma."""

import re
import unicodedata
from functools import cache

_INCH = 25_400.0  # micrometres

_PREFIXES = {
    **{"Y": ("yotta", 24), "Z": ("zetta", 21), "E": ("exa", 18), "P": ("peta", 15), "T": ("tera", 12)},
    **{"G": ("giga", 9), "M": ("mega", 6), "k": ("kilo", 3), "h": ("hecto", 2), "da": ("deca", 1), "": ("", 0)},
    **{"d": ("deci", -1), "c": ("centi", -2), "m": ("milli", -3), "u": ("micro", -6), "n": ("nano", -9)},
    **{"p": ("pico", -12), "f": ("femto", -15), "a": ("atto", -18), "z": ("zepto", -21), "y": ("yocto", -24)},
}

# all names of a unit, and its micrometres; those of the OME schema come first. "pc" is its parsec, not a pica.
_OTHERS = {
    ("micron", "microns", "micra", "mu"): 1.0,
    ("\u00c5", "angstrom", "angstroms", "\u00e5ngstr\u00f6m"): 1e-4,
    ("in", "inch", "inches", '"', "\u2032\u2032"): _INCH,
    ("thou", "mil", "mils"): _INCH / 1000,
    ("li", "line", "lines"): _INCH / 12,
    ("ft", "foot", "feet"): _INCH * 12,
    ("yd", "yard", "yards"): _INCH * 36,
    ("mi", "mile", "miles"): _INCH * 63_360,
    ("pt", "point", "points"): _INCH / 72,
    ("pica", "picas"): _INCH / 6,
    ("ua", "au"): 1.495978707e17,
    ("ly",): 9.4607304725808e21,
    ("pc", "parsec", "parsecs"): 3.0856775814913673e22,
}

_PER_PIXEL = re.compile(r"\s*(/|per)\s*(px|pixels?)$", re.IGNORECASE)
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def micrometres_of(unit: str) -> float | None:
    r"""Return how many micrometres a unit of length has, or None for what is no length, such as "pixel".

    Known are all units of the OME schema, their names in words, the signs for micro (µ, μ, u, ``\u00B5``) and
    "per pixel" behind. Large and small letters count where it matters (``mm``, ``Mm``), and not where it does not.

    Args:
        unit: As a file spells it.

    Example:
        >>> micrometres_of("nm"), micrometres_of("\u00b5m/px"), micrometres_of("Inch"), micrometres_of("pixel")
        (0.001, 1.0, 25400.0, None)
    """
    text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), unit)
    text = text.replace("\u00c2\u00b5", "u").replace("\u00ce\u00bc", "u")  # UTF-8 that was taken for Latin-1
    text = unicodedata.normalize("NFKC", text).replace("\u03bc", "u").strip()  # makes one of the two signs for micro
    text = _PER_PIXEL.sub("", text).rstrip(". ")
    return _units().get(text, _units().get(text.lower()))


def number(text: object) -> float | None:
    """Return a number as a file spells it, or None for what is no number.

    Args:
        text: Digits with a point or, as some languages write, a comma; an exponent may follow.

    Example:
        >>> number("2.5e-7"), number("0,25"), number("1,000.5"), number(None)
        (2.5e-07, 0.25, None, None)
    """
    try:
        return float(str(text).strip().replace(",", "."))
    except ValueError:
        return None


@cache
def _units() -> dict[str, float]:
    found = {name: size for names, size in _OTHERS.items() for name in names}
    for sign, (prefix, power) in _PREFIXES.items():
        names = (f"{sign}m", *(f"{prefix}{word}" for word in ("meter", "meters", "metre", "metres")))
        found.update(dict.fromkeys(names, float(f"1e{power + 6}")))
    return found
