"""The exception tree of the package.

Every error that cellvit raises on purpose derives from :class:`CellViTError` and from the builtin that
a caller would expect, so both ``except CellViTError`` and ``except ValueError`` work. A message says what
was wrong, shows the value and says what to do.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class CellViTError(Exception):
    """Root of all errors raised by cellvit."""


class ConfigError(CellViTError, ValueError):
    """A setting has a value that cannot work."""


class UnknownPluginError(CellViTError, LookupError):
    """No plug-in, class or model of that name is known."""


class PluginError(CellViTError, ImportError):
    """A plug-in exists but cannot be used."""


class DataError(CellViTError, ValueError):
    """Training or evaluation data break their contract."""


class ImageError(CellViTError, ValueError):
    """An image cannot be read or is not an image this package can use."""


class SourceLostError(ImageError):
    """A slide or an image that lies elsewhere cannot be reached, or no longer; what it holds is not at fault."""


class WeightsError(CellViTError, ValueError):
    """A weight file is not ours, is damaged, or does not fit the model."""


class OutputError(CellViTError, OSError):
    """A result cannot be written."""


def did_you_mean(name: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """Return the beginning of an advice, with a space at its end, that names what is spelt alike; else nothing.

    Args:
        name: What was given.
        known: Names, in any case; of a mapping the keys, whose values are shown.

    Example:
        >>> did_you_mean("segmnt", ["segment", "plan"])
        "did you mean 'segment'? "
    """
    meant = known if isinstance(known, Mapping) else {each: each for each in known}
    spelt = {each.casefold(): shown for each, shown in meant.items()}
    close = dict.fromkeys(spelt[match] for match in get_close_matches(name.casefold(), spelt))
    return f"did you mean {' or '.join(map(repr, close))}? " if close else ""
