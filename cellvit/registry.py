"""A registry maps short names to classes. It does not construct, parse names or hold options."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from cellvit.errors import ConfigError, PluginError, UnknownPluginError

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """A phone book of classes of one kind.

    Names come from three places: the decorator :meth:`register`, the package that holds our own classes, and
    the entry points that installed third-party packages declare. The last two are loaded when first asked for.

    Args:
        kind: Singular noun used in messages, such as ``"encoder"``.
        base: Class that every entry must derive from.
        package: Package whose import registers our own classes.

    Example:
        >>> shapes = Registry("shape", object, package="cellvit")
        >>> @shapes.register("round")
        ... class Round: ...
        >>> shapes.get("round").__name__
        'Round'
    """

    def __init__(self, kind: str, base: type[T], *, package: str) -> None:
        self.kind = kind
        self.base = base
        self.group = package
        self._classes: dict[str, type[T]] = {}
        self._origins: dict[str, str] = {}
        self._broken: dict[str, Exception] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[C], C]:
        """Return a decorator that enters a class under a name.

        Args:
            name: Short name, lower case with hyphens.

        Returns:
            The decorator; it returns the class unchanged.

        Raises:
            ConfigError: If the name is taken, or the class does not derive from the base.
        """

        def enter(cls: C) -> C:
            self._enter(name, cls, cls.__module__)
            return cls

        return enter

    def get(self, name: str) -> type[T]:
        """Return the class of a name.

        Args:
            name: Short name.

        Returns:
            The class.

        Raises:
            UnknownPluginError: If the name is unknown; the message lists close matches and all names.
            PluginError: If the plug-in of that name failed to import; its error is the cause.
        """
        if name not in self._classes:
            self.load()
        if name in self._classes:
            return self._classes[name]
        if name in self._broken:
            cause = self._broken[name]
            raise PluginError(f"{self.kind} {name!r} failed to import: {cause}; repair or uninstall it") from cause
        known = self.names()
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise UnknownPluginError(f"no {self.kind} {name!r}; {hint}known: {', '.join(known) or 'none'}")

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self.load()
        return sorted(self._classes)

    def origin(self, name: str) -> str:
        """Return the module or the distribution a name comes from."""
        self.get(name)
        return self._origins[name]

    def __contains__(self, name: object) -> bool:
        self.load()
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def load(self) -> None:
        """Import our own classes and the entry points of installed packages, once.

        Warns:
            RuntimeWarning: Once for each plug-in that failed to import; the others work.
        """
        if self._loaded:
            return
        self._loaded = True  # set first: the import below may ask this registry for names
        try:
            importlib.import_module(self.group)
        except BaseException:
            self._loaded = False  # the next call shows the same error instead of an empty phone book
            raise
        messages = [self._load_entry(entry) for entry in entry_points(group=self.group)]
        for message in filter(None, messages):  # after the loop: a warning may be turned into an error
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _load_entry(self, entry: EntryPoint) -> str | None:
        origin = entry.dist.name if entry.dist else entry.value
        try:
            cls = entry.load()
            if self._classes.get(entry.name) is not cls:
                self._enter(entry.name, cls, origin)
        except Exception as error:  # a broken third-party plug-in must not take the others down
            self._broken[entry.name] = error
            return f"{self.kind} plug-in {entry.name!r} of {origin!r} failed to import: {error}"
        return None

    def _enter(self, name: str, cls: type, origin: str) -> None:
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            title = getattr(cls, "__name__", repr(cls))
            raise ConfigError(f"{self.kind} {name!r} ({title}) must be a class that derives from {self.base.__name__}")
        if name in self._classes:
            taken = self._classes[name]
            raise ConfigError(
                f"{self.kind} name {name!r} is taken by {taken.__module__}.{taken.__name__}; choose another"
            )
        self._classes[name] = cls
        self._origins[name] = origin
