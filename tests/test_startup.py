"""Start-up: what is not imported for what. Times are printed by ``tests/benchmarks/bench_startup.py``."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from cellvit.plugins.listing import REGISTRIES

TRAINING = ("lightning", "torchmetrics", "torchvision", "transformers", "tensorboard")
OPTIONAL = ("timm", "albumentations", "segment_anything", "peft", "sklearn", "pandas", "dask", "anndata")
RUN_NANO = """
import numpy as np
from cellvit import segment_image
segment_image(np.full((64, 64, 3), 200, np.uint8), device="cpu")
"""


def imported(code):
    """Return the top-level packages that a new interpreter has imported after some code."""
    show = "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-W", "ignore", "-c", code + show]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import cellvit", {"torch", "numpy", "cv2", *TRAINING, *OPTIONAL}),
        ("from cellvit import Nuclei", {"skimage", "matplotlib", *TRAINING, *OPTIONAL}),
        ("from cellvit import segment_image", {"skimage", "matplotlib", *TRAINING, *OPTIONAL}),
        (RUN_NANO, {"matplotlib", *TRAINING, *OPTIONAL}),
        ("from cellvit import ENCODERS, HEADS\nENCODERS.get('hybrid'), HEADS.get('hv')", {"timm", *TRAINING}),
        ("import cellvit.encoders, cellvit.heads, cellvit.metrics, cellvit.postprocess", {"torch", *TRAINING}),
    ],
)
def test_what_is_not_needed_is_not_imported(code, absent):
    assert not imported(code) & absent


@pytest.mark.parametrize("kind", [kind for kind in REGISTRIES if kind != "reader"])  # all readers are tried in turn
def test_the_table_of_a_registry_is_what_its_modules_register(kind):
    module, name = REGISTRIES[kind]
    registry = getattr(import_module(module), name)
    folder = Path(import_module(registry.package).__file__).parent
    found = {}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{name}.register":
                    found[ast.literal_eval(call.args[0])] = path.stem
    assert found == dict(registry.own)
    assert {entry.name: entry.origin for entry in registry.entries()}.items() >= {
        name: f"{registry.package}.{module}" for name, module in found.items()
    }.items()


def test_a_name_of_ours_imports_its_module_alone_and_all_names_are_known():
    code = (
        "from cellvit import DECODERS as D\nimport sys\nassert D.get('subpixel').__name__ == 'SubpixelDecoder'\n"
        "from cellvit import ENCODERS as E\nassert 'sam-h' in E and 'vit-256' in E.names() and 'hub' not in E\n"
        "assert 'cellvit.encoders.sam' not in sys.modules\n"
        "try: E.get('vit256')\nexcept LookupError as error: assert \"did you mean 'vit-256'\" in str(error), error\n"
    )
    assert not imported(code) & {"timm", "segment_anything", *TRAINING}
