"""A viewer of slides and their nuclei in the browser: a small server for one person on this machine, and its page.

The server is in :mod:`cellvit.view.app`; starlette and uvicorn, the extra ``view``, are imported when it is used.
In a notebook the package itself is called: ``cellvit.view("results/slide1")`` is
:func:`cellvit.view.notebook.view`.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that is a function too, under the one name that both should have."""

    def __call__(self, *given: Any, **settings: Any) -> Any:
        from cellvit.view.notebook import view

        return view(*given, **settings)


sys.modules[__name__].__class__ = _Callable
