"""Start-up: what is not imported for what. Times are printed by ``tests/benchmarks/bench_startup.py``."""

import ast
import pickle
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from cellvit import HVPostprocessor, read_nuclei
from cellvit.inference import outputs, workers
from cellvit.inference.assemble import TABLE
from cellvit.io.formats.base import ImageFacts
from cellvit.io.parquet import write_parquet
from cellvit.plugins.listing import REGISTRIES
from cellvit.types import HV_MAP, NUCLEI_BINARY_MAP

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import numpy as np
from cellvit import HVPostprocessor, Nuclei, NucleiPrediction, POSTPROCESSORS
y, x = np.mgrid[-1:1:32j, -1:1:32j].astype(np.float32)
disc = np.float32(x**2 + y**2 < 0.5)
maps = {
    "nuclei_binary_map": np.stack([1 - disc, disc]), "hv_map": np.stack([x, y]) * disc,
    "nuclei_type_map": np.stack([1 - disc, disc]), "object_probability": disc[None] * 0.9,
    "radial_distances": np.full((8, 32, 32), 5, np.float32) * disc,
}
for name in set(POSTPROCESSORS.names()) - {"hv-torch"}:
    found = POSTPROCESSORS.get(name)()(maps)
    assert isinstance(found, NucleiPrediction) and isinstance(found.nuclei, Nuclei) and len(found.nuclei) >= 1, name
"""
TRAINING = ("lightning", "torchmetrics", "torchvision", "transformers", "tensorboard")
OPTIONAL = ("timm", "albumentations", "segment_anything", "peft", "sklearn", "pandas", "dask", "anndata")
RUN_NANO = """
import numpy as np
import sys
from cellvit import segment_image
assert not {"skimage", "matplotlib", "scipy.spatial"} & set(sys.modules), "for importing alone"
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
        (RUN_NANO, {"matplotlib", *TRAINING, *OPTIONAL}),
        ("import cellvit.inference.outputs, cellvit.inference.workers", {"torch", "scipy", "skimage", *TRAINING}),
        (WITHOUT_TORCH, {*TRAINING, *OPTIONAL}),
        ("import cellvit.encoders, cellvit.heads, cellvit.metrics, cellvit.postprocess", {"torch", *TRAINING}),
    ],
)
def test_what_is_not_needed_is_not_imported(code, absent):
    assert not imported(code) & absent


def test_processes_that_find_nuclei_or_write_files_import_no_torch(tmp_path):
    y, x = np.mgrid[-1:1:64j, -1:1:64j].astype(np.float32)
    disc = np.float32(x**2 + y**2 < 0.25)
    maps = {NUCLEI_BINARY_MAP: np.stack([1 - disc, disc]), HV_MAP: np.stack([x, y]) * disc}
    with workers.process_pool(1, partial(workers._keep, pickle.dumps(HVPostprocessor()))) as pool:
        nuclei = workers.submit(pool, workers._find, maps, None).result()
        write_parquet(nuclei, tmp_path / TABLE)
        workers.submit(pool, outputs._write_table, "geojson", tmp_path, ImageFacts(mpp=0.25)).result()
        there = workers.submit(pool, eval, "__import__('sys').modules.keys() | set()").result()
        threads = workers.submit(pool, eval, "__import__('os').environ['OMP_NUM_THREADS']").result()
    assert len(read_nuclei(tmp_path / "nuclei.geojson.gz")) == len(nuclei) == 1
    assert not there & {"torch", "matplotlib", "cellvit.model", *TRAINING}
    assert threads == "1"  # for a post-processor of others that imports torch


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
        "from cellvit import HEADS\nE.get('hybrid'), HEADS.get('hv')\n"
        "assert 'cellvit.encoders.sam' not in sys.modules\n"
        "try: E.get('vit256')\nexcept LookupError as error: assert \"did you mean 'vit-256'\" in str(error), error\n"
    )
    assert not imported(code) & {"timm", "segment_anything", *TRAINING}
