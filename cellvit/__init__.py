"""cellvit finds, outlines and types every cell nucleus in H&E-stained tissue.

Names are imported on first use, so ``import cellvit`` is quick and pulls in nothing that is not needed.
"""

from pathlib import Path
from typing import Any

import lazy_loader

from cellvit.conversions import PROVIDERS

PROVIDERS |= {"tables": "cellvit.io.data_frames", "pictures": "cellvit.plotting.overlay"}

_attribute, _names, _ = lazy_loader.attach_stub(__name__, __file__)
# `from cellvit import *` gives names to work with; it must not import every package
_MODULES = {path.stem for path in Path(__file__).parent.iterdir()}
__all__ = [name for name in _names() if name not in _MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # here: it takes longer than all else above

        return version("cellvit-lightning")
    if name not in _names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _attribute(name)


def __dir__() -> list[str]:
    return [*_names(), "__version__"]
