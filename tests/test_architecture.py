"""The house keeps its shape: imports point down the layers, modules stay short, no stray folders.

The checker reads the source with ``ast`` and imports nothing. A module's place is the first matching row of
``PLACES``; a new module without a row fails until somebody decides where it lives.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 300
TOP_LEVEL_FOLDERS = {"cellvit", "tests", "docs", ".ci"}

# (module or package, layer, group). Groups of layer 1 never import each other.
# `model*` also matches `model_anything`. The first match wins, so exceptions stand above their package.
PLACES = [
    ("cellvit", 5, "public"),  # the package's own __init__ offers public names, lazily
    ("cellvit.types", 0, "core"),
    ("cellvit.errors", 0, "core"),
    ("cellvit.registry", 0, "core"),
    ("cellvit.parts", 0, "core"),
    ("cellvit.classes", 0, "core"),
    ("cellvit.geometry", 0, "core"),
    ("cellvit.star", 0, "core"),
    ("cellvit.symmetry", 0, "core"),
    ("cellvit.atomic", 0, "core"),
    ("cellvit.state_dicts", 0, "core"),
    ("cellvit.licences", 0, "core"),
    ("cellvit.catalogue*", 0, "core"),
    ("cellvit.safe_loading", 0, "core"),
    ("cellvit.paths", 0, "core"),
    ("cellvit.slide", 1, "slide"),
    ("cellvit.encoders", 1, "encoders"),
    ("cellvit.decoders", 1, "decoders"),
    ("cellvit.losses", 1, "losses"),
    ("cellvit.data", 1, "data"),
    ("cellvit.postprocess", 1, "postprocess"),
    ("cellvit.metrics", 1, "metrics"),
    ("cellvit.export", 1, "export"),
    ("cellvit.heads", 2, "heads"),
    ("cellvit.model*", 3, "model"),
    ("cellvit.assembly", 3, "model"),
    ("cellvit.pretrained", 3, "model"),
    ("cellvit.released*", 3, "model"),
    ("cellvit.schedules", 3, "model"),
    ("cellvit.optimisation", 3, "model"),
    ("cellvit.requirements", 3, "model"),
    ("cellvit.testing", 4, "application"),  # for the tests of plug-ins
    ("cellvit.finetuning", 4, "application"),
    ("cellvit.freezing", 4, "application"),
    ("cellvit.acceleration", 4, "application"),  # compiled training, fused inference
    ("cellvit.callbacks", 4, "application"),
    ("cellvit.segment", 4, "application"),
    ("cellvit.tta", 4, "application"),
    ("cellvit.runner", 4, "application"),  # whole slides: from reading to files
    ("cellvit.evaluation", 4, "application"),
    ("cellvit.demo", 5, "command line"),
    ("cellvit.doctor", 5, "command line"),  # checks of an installation
    ("cellvit.cli*", 5, "command line"),
]

# Modules of layer 1 that hold functions and no plug-in: the model may call them without asking a registry.
FUNCTIONS = {"cellvit.postprocess.table"}

# What layer 0 may use beside the standard library.
CORE_LIBRARIES = {"numpy", "torch"}


@dataclass(frozen=True)
class Place:
    """Where a module lives."""

    layer: int
    group: str


@dataclass(frozen=True)
class Import:
    """One import statement: who, line, and the module that is really loaded."""

    importer: str
    line: int
    target: str


def place_of(module: str) -> Place | None:
    """Return the place of a module, or None if nobody decided it."""
    for pattern, layer, group in PLACES:
        if pattern.endswith("*"):
            stem = pattern[:-1]
            found = module == stem or module.startswith((f"{stem}.", f"{stem}_"))
        elif pattern == "cellvit":
            found = module == pattern
        else:
            found = module == pattern or module.startswith(f"{pattern}.")
        if found:
            return Place(layer, group)
    return None


def modules_of(package: Path) -> dict[str, Path]:
    """Return every module of a package by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path, known: set[str]) -> Iterator[Import]:
    """Yield every import in a file: at the top, inside functions, and for type checking only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, module, is_package=path.name == "__init__.py")
            for alias in node.names:
                # `from cellvit.heads import base` loads the module cellvit.heads.base
                full = f"{source}.{alias.name}"
                yield Import(module, node.lineno, full if full in known else source)


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Return the absolute name of the module that a ``from`` import names."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if is_package else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def broken_rule(item: Import, standard: frozenset[str]) -> str | None:
    """Return why an import is not allowed, or None."""
    here = place_of(item.importer)
    if here is None:
        return None  # reported once per module, not once per import
    top = item.target.split(".")[0]
    if top != "cellvit":
        if here.layer == 0 and top not in CORE_LIBRARIES and top not in standard:
            return "layer 0 uses the standard library, numpy and torch only"
        return None
    there = place_of(item.target)
    if there is None:
        return "the imported module has no place in PLACES"
    if there.layer > here.layer:
        return f"layer {here.layer} ({here.group}) must not know layer {there.layer} ({there.group})"
    if there.layer == here.layer == 1 and there.group != here.group:
        return f"{here.group} and {there.group} both live in layer 1 and never import each other"
    if here.group == "heads" and there.layer == 1 and there.group != "losses":
        return "heads may import layer 0 and losses only"
    allowed = item.target.endswith(".base") or item.target in FUNCTIONS
    if here.layer == 3 and there.layer in (1, 2) and not allowed:
        return "the model knows base modules only; ask the registry for a plug-in by name"
    return None


def import_problems(package: Path) -> list[str]:
    """Return one readable line per forbidden import and per module without a place."""
    modules = modules_of(package)
    problems = []
    for module, path in modules.items():
        if place_of(module) is None:
            problems.append(f"{module}: no row in PLACES of tests/test_architecture.py; decide its layer there")
        for item in imports_of(module, path, set(modules)):
            why = broken_rule(item, sys.stdlib_module_names)
            if why:
                problems.append(f"{path.relative_to(package.parent)}:{item.line}: imports {item.target}: {why}")
    return problems


def length_problems(package: Path) -> list[str]:
    """Return one readable line per module that is too long."""
    problems = []
    for path in modules_of(package).values():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            problems.append(
                f"{path.relative_to(package.parent)}: {lines} lines, allowed {MAX_LINES}; split it by purpose"
            )
    return problems


def folder_problems(files: list[str]) -> list[str]:
    """Return one readable line per top-level folder that does not belong, from repository-relative paths."""
    folders = {name.split("/", 1)[0] for name in files if "/" in name}
    return [
        f"{name}/: a top-level folder beside {', '.join(sorted(TOP_LEVEL_FOLDERS))}; move it into one of them"
        for name in sorted(folders - TOP_LEVEL_FOLDERS)
    ]


def test_imports_point_down_the_layers():
    problems = import_problems(ROOT / "cellvit")
    assert not problems, "\n" + "\n".join(problems)


def test_modules_are_short():
    problems = length_problems(ROOT / "cellvit")
    assert not problems, "\n" + "\n".join(problems)


def test_no_other_top_level_folder():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    problems = folder_problems(listing.stdout.splitlines())
    assert not problems, "\n" + "\n".join(problems)


# The checker itself, on small fake trees.


def tree(root: Path, **files: str) -> Path:
    """Write a fake package; ``heads__nt`` is ``cellvit/heads/nt.py``."""
    package = root / "cellvit"
    for name, text in files.items():
        path = package / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("types", "import numpy as np\nimport collections.abc\nfrom torch import nn"),
        ("encoders__vit", "import timm\nfrom cellvit.encoders.base import Encoder\nfrom .base import Encoder"),
        ("heads__nt", "from cellvit.losses.dice import dice\nfrom cellvit.types import Batch"),
        ("model", "from cellvit.heads.base import HEADS\nfrom cellvit.schedules import Cosine"),
        ("model_steps", "from cellvit.metrics.base import METRICS\nfrom cellvit import errors"),
        ("assembly", "from cellvit.postprocess.table import nuclei_from_instances"),
        ("segment", "from cellvit.postprocess.hv import HVPostprocessor\nfrom cellvit.model import CellViT"),
        ("runner__slide", "from cellvit.slide.tiling import tiles\nfrom cellvit.segment import segment_image"),
        ("cli", "import cellvit.demo\nfrom cellvit import CellViT"),
        ("cli_segment", "from cellvit.segment import segment_image"),
    ],
)
def test_checker_allows_arrows_that_point_down(tmp_path, module, source):
    names = ("errors", "postprocess__table", "encoders__base", "demo", "segment", "slide__tiling")
    known = dict.fromkeys(names, "")
    assert import_problems(tree(tmp_path, **(known | {module: source}))) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("types", "import scipy.ndimage", "layer 0 uses"),
        ("registry", "from cellvit.encoders.base import Encoder", "layer 0 (core) must not know layer 1 (encoders)"),
        ("decoders__unetr", "from cellvit.encoders.base import Encoder", "never import each other"),
        ("export__json", "from cellvit.postprocess import table", "never import each other"),
        ("heads__nt", "from cellvit.metrics.base import METRICS", "heads may import"),
        ("losses__dice", "from cellvit.heads.base import Head", "must not know layer 2 (heads)"),
        ("model", "from cellvit.heads.binary import BinaryHead", "base modules only"),
        ("model_steps", "from cellvit.encoders import ViT", "base modules only"),
        ("model", "import cellvit.postprocess.hv", "base modules only"),
        ("assembly", "from cellvit.data import targets", "base modules only"),
        ("schedules", "from cellvit.segment import segment_image", "must not know layer 4"),
        ("slide__tiling", "from cellvit.runner.slide import run", "layer 1 (slide) must not know layer 4"),
        ("slide__tiling", "from ..runner import slide", "layer 1 (slide) must not know layer 4"),
        ("segment", "from cellvit.demo import main", "must not know layer 5"),
        ("encoders__vit", "from ..decoders.base import Decoder", "never import each other"),
        ("encoders__vit", "from cellvit import CellViT", "must not know layer 5 (public)"),
        ("encoders__vit", "def f():\n    import cellvit.model", "must not know layer 3"),
        (
            "data__folder",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cellvit.model import CellViT",
            "must not know layer 3",
        ),
    ],
)
def test_checker_refuses_arrows_that_point_back(tmp_path, module, source, reason):
    package = tree(tmp_path, **{"runner__slide": "", "demo": "", module: source})
    problems = import_problems(package)
    assert len(problems) == 1
    path, line, _ = problems[0].split(":", 2)
    assert tmp_path / path == package / f"{module.replace('__', '/')}.py"
    assert int(line) == source.count("\n") + 1  # the forbidden import is the last line of every source
    assert reason in problems[0]


def test_checker_names_a_module_without_a_place(tmp_path):
    undecided = "no row in PLACES of tests/test_architecture.py; decide its layer there"
    package = tree(tmp_path, utils="import cellvit.model", segment="import cellvit.utils")
    assert import_problems(package) == [
        "cellvit/segment.py:1: imports cellvit.utils: the imported module has no place in PLACES",
        f"cellvit.utils: {undecided}",
    ]


def test_checker_does_not_take_a_longer_name_for_a_known_one():
    assert place_of("cellvit.modelling") is None
    assert place_of("cellvit.datasets") is None
    assert place_of("cellvit.model_steps") == place_of("cellvit.model")


def test_checker_measures_length(tmp_path):
    package = tree(tmp_path, types="x = 1\n" * MAX_LINES, errors="x = 1\n" * (MAX_LINES + 1))
    assert length_problems(package) == ["cellvit/errors.py: 301 lines, allowed 300; split it by purpose"]


def test_checker_finds_stray_folders():
    assert folder_problems(["README.md", "cellvit/a.py", "docs/x.md", "tests/t.py", ".ci/run"]) == []
    (problem,) = folder_problems(["scripts/run.sh", "cellvit/scripts/run.sh"])
    assert problem.startswith("scripts/:")
