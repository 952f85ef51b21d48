"""A registry maps short names to classes. It does not construct, parse names or hold options."""

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

from cellvit.errors import CellViTError, ConfigError, PluginError, UnknownPluginError

T = TypeVar("T")
C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class RegistryEntry(Generic[T]):
    """One name of a registry: a class, or why there is none.

    Attributes:
        name: Short name.
        class_path: Dotted path of the class.
        origin: Distribution that declares it; the module that registers it if no distribution does.
        version: Version of the distribution; None if ``origin`` is a module.
        cls: The class; None if it cannot be used.
        error: Why it cannot be used; None if it can.
    """

    name: str
    class_path: str
    origin: str
    version: str | None = None
    cls: type[T] | None = None
    error: BaseException | None = None

    @property
    def reason(self) -> str:
        """Return in one line why the class cannot be used; empty if it can."""
        text = " ".join(str(self.error or "").split())
        if self.error is None or isinstance(self.error, CellViTError):
            return text
        return f"{type(self.error).__name__}: {text}".removesuffix(": ")


class Registry(Generic[T]):
    """A phone book of classes of one kind.

    Names come from three places: the decorator :meth:`register`, the package that holds our own classes, and
    the entry points that installed third-party packages declare. The last two are loaded when first asked for; of our
    own classes that :attr:`own` lists, only the module of the one that is asked for is imported.

    Args:
        kind: Singular noun used in messages, such as ``"encoder"``.
        base: Class that every entry must derive from.
        package: Package whose import registers our own classes.
        group: Entry-point group in which packages declare theirs; None is the name of ``package``.
        own: Module inside the package, such as ``"hybrid"``, that registers each name of ours.

    Example:
        >>> shapes = Registry("shape", object, package="cellvit")
        >>> @shapes.register("round")
        ... class Round: ...
        >>> shapes.get("round").__name__
        'Round'
    """

    def __init__(
        self,
        kind: str,
        base: type[T],
        *,
        package: str,
        group: str | None = None,
        own: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.kind = kind
        self.base = base
        self.package = package
        self.group = group or package
        self.own = own
        self._entries: dict[str, RegistryEntry[T]] = {}
        self._broken: list[RegistryEntry[T]] = []
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
            self._enter(name, cls, getattr(cls, "__module__", ""))
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
            PluginError: If the plug-in of that name cannot be used; its error is the cause.
        """
        self._import_own(name)
        if name not in self._entries:
            self.load()  # here and not in the helper: the warning points at who asked
        return self._usable(name)[1]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self.load()
        return sorted({*self._entries, *self.own})

    def origin(self, name: str) -> str:
        """Return the module or the distribution a name comes from."""
        self._import_own(name)
        if name not in self._entries:
            self.load()
        return self._usable(name)[0].origin

    def entries(self) -> list[RegistryEntry[T]]:
        """Return all names with their classes and where they come from, sorted, those that cannot be used too."""
        self.load()
        for name in self.own:
            self._import_own(name)
        return sorted([*self._entries.values(), *self._broken], key=lambda entry: entry.name)

    def __contains__(self, name: object) -> bool:
        if name in self._entries or name in self.own:
            return True
        if not self.own or any(point.name == name for point in self._points):
            self.load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def load(self) -> None:
        """Import the package of our own classes and the entry points of installed packages, once.

        Warns:
            RuntimeWarning: Once for each plug-in that cannot be used; the others work.
        """
        if self._loaded:
            return
        self._loaded = True  # set first: the import below may ask this registry for names
        try:
            importlib.import_module(self.package)
        except BaseException:
            self._loaded = False  # the next call shows the same error instead of an empty phone book
            raise
        for point in self._points:
            self._load_point(point)
        for entry in list(self._broken):  # after the loop: a warning may be turned into an error
            message = f"{self.kind} plug-in {entry.name!r} of {entry.origin!r} cannot be used: {entry.reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    @cached_property
    def _points(self) -> list[EntryPoint]:
        # Sorted: of two packages that claim a name, the same one gets it on every machine.
        return sorted(entry_points(group=self.group), key=lambda point: (point.name, _distribution(point)))

    def _import_own(self, name: str) -> None:
        """Import the module of a name of ours, which registers it."""
        if name in self.own and name not in self._entries:
            importlib.import_module(f"{self.package}.{self.own[name]}")

    def _load_point(self, point: EntryPoint) -> None:
        origin = _distribution(point) or point.value
        version = point.dist.version if point.dist else None
        try:
            self._enter(point.name, point.load(), origin, version)
        except (Exception, SystemExit) as error:  # a broken third-party plug-in must not take the others down
            path = point.value.partition("[")[0].strip().replace(":", ".")
            self._broken.append(RegistryEntry(point.name, path, origin, version, error=error))

    def _enter(self, name: str, cls: type, origin: str, version: str | None = None) -> None:
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            title = getattr(cls, "__name__", repr(cls))
            raise ConfigError(f"{self.kind} {name!r} ({title}) must be a class that derives from {self.base.__name__}")
        if cls.__module__ != f"{self.package}.{self.own.get(name)}":
            self._import_own(name)  # so that its owner is known
        taken = self._entries.get(name)
        # A plug-in may register itself while it is imported; its entry point then tells where it comes from.
        if taken is not None and (taken.cls is not cls or version is None):
            raise ConfigError(
                f"{self.kind} name {name!r} is taken by {taken.class_path} of {taken.origin!r}; choose another, or "
                "name the class by its dotted path"
            )
        self._entries[name] = RegistryEntry(name, f"{cls.__module__}.{cls.__qualname__}", origin, version, cls)

    def _usable(self, name: str) -> tuple[RegistryEntry[T], type[T]]:
        """Return the entry of a name and its class, or raise what :meth:`get` raises."""
        entry = self._entries.get(name)
        if entry is not None and entry.cls is not None:
            return entry, entry.cls
        for broken in self._broken:
            if broken.name == name:
                message = f"{self.kind} {name!r} of {broken.origin!r} cannot be used: {broken.reason}"
                raise PluginError(f"{message}; repair or uninstall it") from broken.error
        known = self.names()
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "if a package brings it, install that;"
        raise UnknownPluginError(f"no {self.kind} {name!r}; {hint} known: {', '.join(known) or 'none'}")


def _distribution(point: EntryPoint) -> str:
    return (point.dist.name if point.dist else "") or ""  # damaged metadata give None
