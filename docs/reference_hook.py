"""Generates the reference: one page per package, and one for the modules of each layer beside them."""

import ast
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).resolve().parents[1] / "cellvit"


def reference_pages() -> dict[str, str]:
    """Return Markdown by page name: one page per package with its modules, one per module outside packages."""
    pages = {"cellvit": f"# cellvit\n\n{heading_only('cellvit')}\n{offered_names(PACKAGE)}"}
    for path in sorted(PACKAGE.iterdir()):
        name = f"cellvit.{path.stem}"
        if path.name.startswith("_") or not (path.suffix == ".py" or (path / "__init__.py").is_file()):
            continue
        if path.suffix == ".py":
            pages[path.stem] = f"# {name}\n\n::: {name}\n"
            continue
        modules = "".join(f"::: {module}\n\n" for module in public_modules(path))
        pages[path.stem] = f"# {name}\n\n{heading_only(name)}\n{offered_names(path)}\n{modules}"
    return pages


def heading_only(name: str) -> str:
    """Return the directive for a package without the names that it re-exports: their modules show them."""
    return f"::: {name}\n    options:\n      members: false\n"


def offered_names(package: Path) -> str:
    """Return a list of the names that a package loads on first use, as its ``__init__.pyi`` states them."""
    stub = package / "__init__.pyi"
    if not stub.is_file():
        return ""
    here = ".".join(package.relative_to(PACKAGE.parent).parts)
    lines = [
        f"* [`{here}.{item.asname or item.name}`][{here}.{found.module}.{item.name}]\n"
        for found in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(found, ast.ImportFrom) and found.module is not None
        for item in found.names
    ]
    return "\nWhat it offers:\n\n" + "".join(sorted(lines, key=str.lower)) if lines else ""


def public_modules(package: Path) -> list[str]:
    """Return the dotted names of a package's modules, sub-packages included."""
    relative = [p.relative_to(PACKAGE.parent).with_suffix("") for p in sorted(package.rglob("*.py"))]
    return [".".join(p.parts) for p in relative if not any(part.startswith("_") for part in p.parts)]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference to the navigation."""
    entries: list[Any] = [{name: f"reference/{name}.md"} for name in reference_pages()]
    config.nav = [*(config.nav or []), {"Reference": entries}]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the reference pages to the site."""
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
