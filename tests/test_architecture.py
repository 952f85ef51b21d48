"""The house keeps its shape: imports point down the floors, no circles, few modules at the root, no stray folders.

The checker reads the source with ``ast`` and imports nothing. A module's place is the longest matching row of
``PLACES``; a new package without a row fails until somebody decides where it lives.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 500
MAX_ROOT_MODULES = 8
TOP_LEVEL_FOLDERS = {"cellvit", "tests", "docs", "findings", ".ci", ".github"}

# module or package -> (floor, group). Groups of one floor never import each other: what two of them need stands below
# both. The modules of floor 0 are one group. The longest match wins, so a module may stand lower than its package.
PLACES = {
    "cellvit": (11, "public"),  # the package's own __init__ offers public names, lazily
    "cellvit.__main__": (11, "public"),
    "cellvit.errors": (0, "core"),
    "cellvit.types": (0, "core"),
    "cellvit.classes": (0, "core"),
    "cellvit.conversions": (0, "core"),
    "cellvit.plugins": (0, "core"),
    "cellvit.geometry": (0, "core"),
    "cellvit.io.atomic": (0, "core"),
    "cellvit.io.paths": (0, "core"),
    "cellvit.io.format": (0, "core"),
    "cellvit.io.limits": (0, "core"),
    "cellvit.io.schema": (0, "core"),
    "cellvit.io": (1, "io"),
    "cellvit.weights": (1, "weights"),
    "cellvit.slide": (2, "slide"),
    "cellvit.losses": (2, "losses"),
    "cellvit.encoders": (3, "encoders"),
    "cellvit.decoders": (3, "decoders"),
    "cellvit.data": (3, "data"),
    "cellvit.postprocess": (3, "postprocess"),
    "cellvit.metrics": (3, "metrics"),
    "cellvit.measurement": (3, "measurement"),
    "cellvit.labels": (3, "labels"),
    "cellvit.plotting": (3, "plotting"),
    "cellvit.heads": (4, "heads"),
    "cellvit.model": (5, "model"),
    "cellvit.training": (6, "training"),
    "cellvit.callbacks": (6, "training"),  # under the names that YAML uses
    "cellvit.inference": (6, "inference"),
    "cellvit.export": (6, "export"),
    "cellvit.evaluation": (7, "evaluation"),
    "cellvit.testing": (7, "testing"),  # for the tests of plug-ins
    "cellvit.classification": (8, "classification"),  # judged with the scores of evaluation
    "cellvit.doctor": (8, "doctor"),
    "cellvit.viewer": (9, "viewer"),  # shows results, and trains classifiers from labels
    "cellvit.cli": (10, "cli"),
}

# Modules of floor 3 that hold functions and no plug-in: the model may call them without asking a registry.
FUNCTIONS = {"cellvit.postprocess.measure"}

# What floor 0 may use beside the standard library; pydantic inside `cellvit.io.schema`'s one function.
CORE_LIBRARIES = {"numpy", "pydantic", "shapely", "torch"}


@dataclass(frozen=True)
class Place:
    """Where a module lives."""

    floor: int
    group: str


@dataclass(frozen=True)
class Import:
    """One import statement: who, line, and the module that is really loaded."""

    importer: str
    line: int
    target: str


def place_of(module: str) -> Place | None:
    """Return the place of a module, or None if nobody decided it."""
    name = module
    while name not in PLACES:
        name = name.rpartition(".")[0]
    return Place(*PLACES[name]) if name != "cellvit" or module == "cellvit" else None


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
        if here.floor == 0 and top not in CORE_LIBRARIES and top not in standard:
            return "floor 0 uses the standard library, numpy, pydantic, shapely and torch only"
        return None
    there = place_of(item.target)
    if there is None:
        return "the imported module has no place in PLACES"
    if there.floor > here.floor:
        return f"floor {here.floor} ({here.group}) must not know floor {there.floor} ({there.group})"
    if there.floor == here.floor and there.group != here.group:
        return f"{here.group} and {there.group} both live on floor {here.floor} and never import each other"
    if here.group == "heads" and there.floor > 0 and there.group not in ("losses", "heads"):
        return "heads may import floor 0 and losses only"
    allowed = item.target.endswith(".base") or item.target in FUNCTIONS
    if here.group == "model" and there.floor in (2, 3, 4) and not allowed:
        return "the model knows base modules only; ask the registry for a plug-in by name"
    return None


def import_problems(package: Path) -> list[str]:
    """Return one readable line per forbidden import and per module without a place."""
    modules = modules_of(package)
    problems = []
    for module, path in modules.items():
        if place_of(module) is None:
            problems.append(f"{module}: no row in PLACES of tests/test_architecture.py; decide its floor there")
        for item in imports_of(module, path, set(modules)):
            why = broken_rule(item, sys.stdlib_module_names)
            if why:
                problems.append(f"{path.relative_to(package.parent)}:{item.line}: imports {item.target}: {why}")
    return problems


def circle_of(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one import circle, the first one again at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def import_graph(package: Path) -> dict[str, set[str]]:
    """Return which modules of the package each of them imports, also inside functions and for type checking only."""
    modules = modules_of(package)
    return {
        module: {item.target for item in imports_of(module, path, set(modules)) if item.target in modules} - {module}
        for module, path in modules.items()
    }


def root_problems(package: Path) -> list[str]:
    """Return a line if there are too many modules beside the packages."""
    found = sorted(path.name for path in package.glob("*.py"))
    if len(found) <= MAX_ROOT_MODULES:
        return []
    return [
        f"{len(found)} modules at the root, allowed {MAX_ROOT_MODULES}: {', '.join(found)}; move one into a package"
    ]


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


def test_imports_point_down_the_floors():
    problems = import_problems(ROOT / "cellvit")
    assert not problems, "\n" + "\n".join(problems)


def test_modules_are_short():
    problems = length_problems(ROOT / "cellvit")
    assert not problems, "\n" + "\n".join(problems)


def test_no_import_circle():
    circle = circle_of(import_graph(ROOT / "cellvit"))
    assert not circle, " -> ".join(circle)


def test_few_modules_at_the_root():
    assert root_problems(ROOT / "cellvit") == []


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
        ("io__geojson", "from cellvit.io.atomic import atomic_path\nfrom cellvit.classes import type_name"),
        ("encoders__vit", "import timm\nfrom cellvit.encoders.base import Encoder\nfrom .base import Encoder"),
        ("heads__nt", "from cellvit.losses.overlap import dice\nfrom cellvit.types import Batch"),
        ("model__cellvit", "from cellvit.heads.base import HEADS\nfrom cellvit.model.schedules import Cosine"),
        ("model__metrics", "from cellvit.metrics.base import METRICS\nfrom cellvit import errors"),
        ("model__build", "from cellvit.postprocess.measure import nuclei_from_instances"),
        ("inference__image", "from cellvit.postprocess.hv import HVPostprocessor\nimport cellvit.model.cellvit"),
        (
            "inference__slide",
            "from cellvit.slide.tiling import tiles\nfrom cellvit.inference.image import segment_image",
        ),
        ("callbacks", "from cellvit.training.freezing import PartFreezing"),
        ("cli____init__", "import cellvit.cli.demo\nfrom cellvit.doctor import examine"),
        ("cli__segment", "from cellvit.inference.image import segment_image"),
    ],
)
def test_checker_allows_arrows_that_point_down(tmp_path, module, source):
    names = ("errors", "postprocess__measure", "encoders__base", "cli__demo", "inference__image", "slide__tiling")
    known = dict.fromkeys(names, "")
    assert import_problems(tree(tmp_path, **(known | {module: source}))) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("types", "import scipy.ndimage", "floor 0 uses"),
        ("plugins__registry", "from cellvit.encoders.base import Encoder", "floor 0 (core) must not know floor 3"),
        ("io__atomic", "from cellvit.io.text import lines", "floor 0 (core) must not know floor 1 (io)"),
        ("io__hub", "from cellvit.weights.hub import fetch", "never import each other"),
        ("decoders__unetr", "from cellvit.encoders.base import Encoder", "never import each other"),
        ("plotting__overlay", "from cellvit.postprocess import measure", "never import each other"),
        ("heads__nt", "from cellvit.metrics.base import METRICS", "heads may import"),
        ("losses__dice", "from cellvit.heads.base import Head", "must not know floor 4 (heads)"),
        ("model__cellvit", "from cellvit.heads.binary import BinaryHead", "base modules only"),
        ("model__metrics", "from cellvit.encoders import ViT", "base modules only"),
        ("model__cellvit", "import cellvit.postprocess.hv", "base modules only"),
        ("model__build", "from cellvit.data import targets", "base modules only"),
        ("model__schedules", "from cellvit.inference.image import segment_image", "must not know floor 6"),
        ("training__freezing", "from cellvit.inference.tta import with_tta", "never import each other"),
        ("slide__tiling", "from cellvit.inference.slide import run", "floor 2 (slide) must not know floor 6"),
        ("slide__tiling", "from ..inference import slide", "floor 2 (slide) must not know floor 6"),
        ("doctor__models", "from cellvit.cli.demo import main", "must not know floor 10"),
        ("encoders__vit", "from ..decoders.base import Decoder", "never import each other"),
        ("encoders__vit", "from cellvit import CellViT", "must not know floor 11 (public)"),
        ("encoders__vit", "def f():\n    import cellvit.model.cellvit", "must not know floor 5"),
        (
            "data__folder",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cellvit.model.cellvit import CellViT",
            "must not know floor 5",
        ),
    ],
)
def test_checker_refuses_arrows_that_point_back(tmp_path, module, source, reason):
    package = tree(tmp_path, **{"inference__slide": "", "cli__demo": "", module: source})
    problems = import_problems(package)
    assert len(problems) == 1
    path, line, _ = problems[0].split(":", 2)
    assert tmp_path / path == package / f"{module.replace('__', '/')}.py"
    assert int(line) == source.count("\n") + 1  # the forbidden import is the last line of every source
    assert reason in problems[0]


def test_checker_names_a_module_without_a_place(tmp_path):
    undecided = "no row in PLACES of tests/test_architecture.py; decide its floor there"
    package = tree(tmp_path, utils="import cellvit.model.cellvit", callbacks="import cellvit.utils")
    assert import_problems(package) == [
        "cellvit/callbacks.py:1: imports cellvit.utils: the imported module has no place in PLACES",
        f"cellvit.utils: {undecided}",
    ]


def test_checker_does_not_take_a_longer_name_for_a_known_one():
    assert place_of("cellvit.modelling") is None
    assert place_of("cellvit.datasets") is None
    assert place_of("cellvit.model.cellvit") == place_of("cellvit.model")


@pytest.mark.parametrize(
    "back",
    [
        "import cellvit.types",
        "def f():\n    from cellvit.types import Nuclei",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cellvit.types import Nuclei",
    ],
)
def test_checker_finds_circles(tmp_path, back):
    package = tree(tmp_path, types="from cellvit.errors import E", errors="from cellvit.classes import C", classes=back)
    circle = circle_of(import_graph(package))
    assert circle[0] == circle[-1]
    assert set(circle) == {"cellvit.types", "cellvit.errors", "cellvit.classes"}


def test_checker_counts_the_modules_at_the_root(tmp_path):
    package = tree(tmp_path, **{f"m{i}": "" for i in range(MAX_ROOT_MODULES)}, io__atomic="")
    assert root_problems(package) == []
    (package / "one_more.py").touch()
    (problem,) = root_problems(package)
    assert problem.startswith("9 modules at the root, allowed 8:")


def test_checker_measures_length(tmp_path):
    package = tree(tmp_path, types="x = 1\n" * MAX_LINES, errors="x = 1\n" * (MAX_LINES + 1))
    assert length_problems(package) == [
        f"cellvit/errors.py: {MAX_LINES + 1} lines, allowed {MAX_LINES}; split it by purpose"
    ]


def test_checker_finds_stray_folders():
    assert folder_problems(["README.md", "cellvit/a.py", "docs/x.md", "tests/t.py", ".ci/run"]) == []
    (problem,) = folder_problems(["scripts/run.sh", "cellvit/scripts/run.sh"])
    assert problem.startswith("scripts/:")
