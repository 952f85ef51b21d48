"""Which classes the files of a model may name: what cellvit, its user and the installed plug-ins brought, no others.

A configuration that the user writes may name any class. One that comes with a model is a stranger's: importing a module
runs it, so what it names is looked at before anything is imported.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from cellvit.errors import ConfigError, PluginError
from cellvit.plugins.former_names import current_names

TRUST_VARIABLE = "CELLVIT_TRUST"
"""Environment variable with names of trusted packages, separated by commas."""

ALWAYS = ("cellvit", "torch.optim", "timm.optim")
"""Packages whose classes every file may name: our own, and the optimisers of packages that cellvit needs."""

_trusted: ContextVar[tuple[str, ...] | None] = ContextVar("trusted packages", default=None)


def trusted_packages(given: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the packages that the user trusts, without those that everybody may name.

    Args:
        given: Names, as Python imports them; those of the environment variable ``CELLVIT_TRUST`` are added.

    Raises:
        ConfigError: If one is no such name.
    """
    if isinstance(given, str):
        raise ConfigError(f"trust {given!r} is text; give a list of names, such as trust=[{given!r}]")
    stated = [name.strip() for name in os.environ.get(TRUST_VARIABLE, "").split(",")]
    names = tuple(dict.fromkeys([*given, *filter(None, stated)]))
    for name in names:
        if not (isinstance(name, str) and all(part.isidentifier() for part in name.split("."))):
            raise ConfigError(
                f"trust {name!r} is no name of a package in Python; give the one it is imported by: trust=['my_lab']"
            )
    return names


@contextmanager
def loading_file(trust: Sequence[str] = ()) -> Iterator[None]:
    """Return a context in which names of classes come from a file and not from the user.

    Within it :func:`refuse_foreign` refuses, and nothing is fetched from a network.

    Args:
        trust: Packages that the user trusts, see :func:`trusted_packages`.
    """
    token = _trusted.set((*ALWAYS, *trusted_packages(trust)))
    try:
        yield
    finally:
        _trusted.reset(token)


def is_loading() -> bool:
    """Return whether this is the context of :func:`loading_file`."""
    return _trusted.get() is not None


def refuse_foreign(path: str, *, what: str) -> None:
    """Refuse a class that a file names and whose module would have to be imported for it alone.

    Allowed are modules of :data:`ALWAYS` and of trusted packages, and those that are imported already. Where no file is
    loaded, all are.

    Args:
        path: Dotted path of the class.
        what: What the class is for; named in the error.

    Raises:
        PluginError: With the module, and how to allow it.
    """
    packages, module = _trusted.get(), current_names(path).rpartition(".")[0]
    if packages is None or not module or module in sys.modules:
        return
    if not any(f"{module}.".startswith(f"{package}.") for package in packages):
        package = module.partition(".")[0]
        raise PluginError(
            f"{what} {path!r} is a class of module {module!r}, which a loaded file may not have imported; if you trust "
            f"this package, pass trust=[{package!r}] or set the environment variable {TRUST_VARIABLE}={package}"
        )
