"""The page's script in one piece, for pages that are opened from disk, where browsers load no modules."""

import re
from pathlib import Path

PAGE = Path(__file__).with_name("page")
"""The page: HTML, style and modules."""

_IMPORT = re.compile(r'^import\b[^;]*?from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (\{\};\n)?", re.MULTILINE)


def page_script() -> str:
    """Return the page's modules as one classic script, each after those that it imports.

    The modules are ours and plain: imports by name from a file beside, exports where a thing is declared, and no name
    twice. So imports and the word ``export`` can be left out; a test holds the modules to that.
    """
    return f'"use strict";\n(() => {{\n{"".join(_in_order("main.js", set()))}}})();\n'


def _in_order(name: str, seen: set[str]) -> list[str]:
    """Return the texts of the modules that are not seen yet, what is imported first."""
    if name in seen:
        return []
    seen.add(name)
    source = (PAGE / name).read_text(encoding="utf-8")
    before = [part for other in _IMPORT.findall(source) for part in _in_order(other, seen)]
    return [*before, _EXPORT.sub("", _IMPORT.sub("", source))]
