"""The exception tree of the package.

Every error that cellvit raises on purpose derives from :class:`CellViTError` and from the builtin that
a caller would expect, so both ``except CellViTError`` and ``except ValueError`` work. A message says what
was wrong, shows the value and says what to do.
"""


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


class WeightsError(CellViTError, ValueError):
    """A weight file is not ours, is damaged, or does not fit the model."""


class OutputError(CellViTError, OSError):
    """A result cannot be written."""
