"""Parts: how a pluggable class is named in a configuration, built from it, and written back to it.

A part is configured by its keyword-only ``__init__`` arguments. Its positional arguments are sizes that flow
from the parts before it (the decoder receives the encoder's features), so they never stand in a YAML file.
"""

import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from cellvit.errors import ConfigError, UnknownPluginError
from cellvit.plugins.former_names import current_names
from cellvit.plugins.registry import Registry
from cellvit.plugins.trust import is_loading, refuse_foreign

T = TypeVar("T")


class RawSpec:
    """A part as a configuration file or a command line gives it, opaque to their parser.

    The parser would take ``class_path`` for an import path and try to merge the arguments of different classes; the
    names of parts are ours to look up, and a part that is given again replaces the one before it.

    Args:
        value: Name, or ``{"class_path": ..., "init_args": {...}}``.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RawSpec) and other.value == self.value

    def __hash__(self) -> int:
        return hash(repr(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


if TYPE_CHECKING:
    ComponentSpec = str | Mapping[str, Any] | type | object
else:
    ComponentSpec = RawSpec  # what annotations say to the parser of configurations
"""A registered name, a dotted path, ``{"class_path": ..., "init_args": {...}}``, a class, or an instance."""


class Configurable:
    """Mix-in that remembers the keyword-only arguments an object was built with.

    Attributes:
        init_args: The arguments.
        weight_sources: Arguments that fetch or read weights, with the values that do neither: a saved model, which
            brings its own weights, is built with those.

    Example:
        >>> class Blur(Configurable):
        ...     def __init__(self, channels: int, *, radius: int = 2) -> None: ...
        >>> Blur(3, radius=5).init_args
        {'radius': 5}
    """

    init_args: dict[str, Any]
    weight_sources: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create the object and store its configuration in ``init_args``."""
        if cls.__init__ is object.__init__ and (args or kwargs):
            raise TypeError(f"{cls.__name__}() takes no arguments")  # object.__init__ would swallow them
        self = super().__new__(cls)
        parameters = signature_of(cls).parameters.values()
        # Everything but sizes: arguments that a subclass passes on through **kwargs are configuration too.
        sizes = {p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}
        object.__setattr__(self, "init_args", {k: v for k, v in kwargs.items() if k not in sizes})
        return self


def import_path(path: str, *, what: str) -> Any:
    """Import the object at a dotted path.

    Args:
        path: ``package.module.Name``; for a class of cellvit, also where an earlier version had it.
        what: What the object is for; named in errors.

    Returns:
        The object.

    Raises:
        UnknownPluginError: If the module or the name in it does not exist.
        PluginError: If a file that is loaded names it and its package is not trusted; nothing is imported then.
    """
    refuse_foreign(path, what=what)
    module_name, _, name = current_names(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        message = f"{what} {path!r} cannot be imported ({error}); check the spelling and that its package is installed"
        raise UnknownPluginError(message) from error


def normalise_spec(spec: ComponentSpec, *, what: str) -> dict[str, Any]:
    """Return a spec in its long form ``{"class_path": ..., "init_args": {...}}``, as plain data.

    Args:
        spec: Name, dotted path, ``{"class_path", "init_args"}``, class or instance.
        what: What the part is; named in errors.

    Returns:
        A new dictionary; an instance gives the arguments it was built with.

    Raises:
        ConfigError: If the spec is of another form.
    """
    spec = spec.value if isinstance(spec, RawSpec) else spec
    if isinstance(spec, str):
        return {"class_path": spec, "init_args": {}}
    if isinstance(spec, type):
        return {"class_path": f"{spec.__module__}.{spec.__qualname__}", "init_args": {}}
    if isinstance(spec, Mapping):
        args = spec.get("init_args") or {}
        unknown = set(spec) - {"class_path", "init_args"}
        if unknown or not isinstance(spec.get("class_path"), str) or not isinstance(args, Mapping):
            message = (
                f"{what} {dict(spec)!r} is not a part; write a name or "
                "{class_path: NAME, init_args: {...}} and nothing else"
            )
            raise ConfigError(message)
        return {"class_path": spec["class_path"], "init_args": dict(args)}
    if isinstance(spec, Configurable):
        cls = type(spec)
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": dict(spec.init_args)}
    raise ConfigError(f"{what} {spec!r} is neither a name, a mapping with class_path, a class nor a {what}")


def built_spec(spec: ComponentSpec, part: Configurable) -> dict[str, Any]:
    """Return the spec that builds a part again, with what the part has settled while it was built.

    Args:
        spec: What the part was built from; its name of the class is kept.
        part: The part.
    """
    plain = normalise_spec(spec, what=type(part).__name__)
    return {**plain, "init_args": {**plain["init_args"], **part.init_args}}


def resolve(registry: Registry[T], class_path: str) -> type[T]:
    """Return the class a name or a dotted path stands for.

    Args:
        registry: Where short names are looked up.
        class_path: Registered name, or ``package.module.Class``.

    Returns:
        A subclass of the registry's base.

    Raises:
        UnknownPluginError: If there is no such name or class.
        ConfigError: If the class does not derive from the registry's base.
    """
    if "." not in class_path or class_path in registry:
        return registry.get(class_path)
    return _checked(registry, import_path(class_path, what=registry.kind), class_path)


def _checked(registry: Registry[T], cls: Any, name: str) -> type[T]:
    """Return the class if it derives from the registry's base."""
    if not (isinstance(cls, type) and issubclass(cls, registry.base)):
        raise ConfigError(f"{registry.kind} {name!r} does not derive from {registry.base.__name__}; subclass it")
    return cls


def build(registry: Registry[T], spec: ComponentSpec, *sizes: Any) -> T:
    """Build a part from its spec.

    Args:
        registry: The kind of part.
        spec: Name, dotted path, ``{"class_path", "init_args"}`` or class; an instance is returned as it is.
        *sizes: Positional arguments that flow from the parts before this one.

    Returns:
        The part.

    Raises:
        ConfigError: If an argument is unknown or does not fit; the message lists the known ones.
        UnknownPluginError: If there is no such class.
    """
    spec = spec.value if isinstance(spec, RawSpec) else spec
    if isinstance(spec, registry.base) and not isinstance(spec, type):
        return spec
    plain = normalise_spec(spec, what=registry.kind)
    name, args = plain["class_path"], plain["init_args"]
    # A class at hand is not looked up: it may be local to a function, where no dotted path leads.
    cls = _checked(registry, spec, name) if isinstance(spec, type) else resolve(registry, name)
    if is_loading():
        args |= {source: none for source, none in getattr(cls, "weight_sources", {}).items() if source in args}
    accepted = keyword_names(cls)
    unknown = sorted(set(args) - accepted, key=str) if accepted is not None else []
    if unknown:
        known = ", ".join(sorted(accepted or ())) or "none"
        raise ConfigError(f"{registry.kind} {name!r} takes no argument {unknown}; it takes: {known}")
    try:
        signature_of(cls).bind(*sizes, **args)
    except TypeError as error:
        raise ConfigError(f"{registry.kind} {name!r} cannot be built: {error}; check its init_args") from error
    return cls(*sizes, **args)


def keyword_names(cls: type) -> set[str] | None:
    """Return the names of a class's keyword-only arguments, or None if it takes any."""
    parameters = signature_of(cls).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def signature_of(cls: type) -> inspect.Signature:
    """Return the signature of a class's ``__init__`` without ``self``; without one it takes nothing."""
    # inspect.signature(cls) may report Configurable.__new__, which takes anything.
    initialiser: Any = cls.__init__  # type: ignore[misc]  # the class, not an instance, is asked on purpose
    if initialiser is object.__init__:
        return inspect.Signature()
    signature = inspect.signature(initialiser)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
