"""Calling something else in place of a method of a module, and what ``torch.compile`` needs."""

import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from types import MethodType
from typing import Any

from torch import nn

_DEFAULT_COMPILERS = ("g++", "clang++", "cl")


class MethodPatch:
    """Is called in place of a method of a module; a copy of the module has the method itself again.

    Args:
        module: The module; its method is replaced at once.
        name: Name of the method.
        function: What is called instead, with the arguments of the method.
    """

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self._module, self._name, self._function = module, name, function
        setattr(module, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self._function(*arguments, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        copied = deepcopy(self._module, memo)
        return MethodType(getattr(type(copied), self._name), copied)

    def remove(self) -> None:
        """Give the module its method back."""
        delattr(self._module, self._name)


def has_compiler() -> bool:
    """Return whether there is the C++ compiler that ``torch.compile`` needs on a CPU."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else _DEFAULT_COMPILERS))
