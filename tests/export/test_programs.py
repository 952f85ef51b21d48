"""Networks as ONNX and as programs of torch: same maps at any size, everything stated, nothing half-written."""

import builtins
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.tiny import HYBRID, SHARED_UNETR, spec, tiny_network

from cellvit import CellViT, segment_image
from cellvit.cli.export import main
from cellvit.encoders.base import ENCODERS
from cellvit.encoders.efficientnet import EfficientNetLiteEncoder
from cellvit.encoders.hybrid import HybridEncoder
from cellvit.encoders.vit import ViTEncoder, interpolate_position
from cellvit.errors import ConfigError, OutputError, PluginError
from cellvit.export import export_onnx, export_torch
from cellvit.export import programs as programs_module
from cellvit.export.facts import facts_of
from cellvit.export.graph import MIN_SIDE, check, trace

SIZES = [(1, 80, 80), (3, 81, 97), (1, 256, 256), (2, 96, 300), (1, 272, 259), (1, 133, 417)]
SUBPIXEL = spec("subpixel", widths=[4, 4, 8, 8], embedding=True)
LICENCE = "CC BY 4.0"
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "how-to" / "onnx.md"

# A stand-in for an environment with numpy, OpenCV, scikit-image and ONNX Runtime only, and the package without what it
# asks for; its metadata are hidden too.
WITHOUT_TORCH = """
import importlib.metadata, sys
ALLOWED = {"numpy", "cv2", "scipy", "skimage", "lazy_loader", "onnxruntime", "packaging", "cellvit", "PIL"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names and not path:
            spec = next(filter(None, (f.find_spec(name, None) for f in sys.meta_path if f is not self)), None)
            if spec and "site-packages" in str(spec.origin):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = importlib.metadata.distribution = missing
importlib.metadata.entry_points = lambda **_: importlib.metadata.EntryPoints()
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model and its folder."""
    torch.manual_seed(1)
    settings = {"class_names": ["Background", "Tumour", "Other"], "about": {"name": "tiny", "licence": LICENCE}}
    network = CellViT(HYBRID, 3, 2, decoder=SUBPIXEL, mpp=0.5, tissue_names=["a", "b"], **settings).eval()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network.save_pretrained(folder)
    return network, folder


@pytest.fixture(scope="module")
def graph(model):
    return trace(model[0])


@pytest.fixture(scope="module")
def exported(model, graph):
    """Return a function that exports the model from the command line; it is traced once for all targets."""

    def export(target, *options):
        out = model[1].parent / target
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(programs_module, "trace", lambda *_: graph)
            assert main([str(model[1]), "--to", target, "--out", str(out), *options]) == 0
        return out

    return export


@pytest.fixture(scope="module")
def onnx_folder(exported):
    return exported("onnx")


@pytest.fixture(scope="module")
def torch_folder(exported):
    return exported("torch-export", "--no-verify")


def noise(batch, height, width):
    return np.random.default_rng(0).integers(0, 256, (batch, 3, height, width), dtype=np.uint8)


def assert_same_maps(found, network, image):
    expected = network.predict_maps(torch.from_numpy(image).float() / 255)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(np.asarray(found[name]), values.numpy(), rtol=0, atol=1e-4, err_msg=name)


def test_onnx_gives_the_maps_of_the_model_at_any_size(model, onnx_folder):
    session = onnxruntime.InferenceSession(str(onnx_folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape) == (
        "tensor(uint8)",
        ["batch", 3, "height", "width"],
    )
    for size in SIZES:
        image = noise(*size)
        maps = dict(zip(names, session.run(None, {"image": image}), strict=True))
        assert maps["hv_map"].shape == (size[0], 2, *size[1:])
        assert_same_maps(maps, model[0], image)


def test_the_file_says_all_that_who_runs_it_must_know(model, onnx_folder):
    facts = json.loads((onnx_folder / "model.json").read_text())
    inside = onnx.load(onnx_folder / "model.onnx")
    assert sorted(path.name for path in onnx_folder.iterdir()) == ["model.json", "model.onnx"]
    assert inside.opset_import[0].version >= 18
    stated = {item.key: item.value for item in inside.metadata_props}
    assert json.loads(stated["cellvit"]) == {k: v for k, v in facts.items() if k not in ("file", "opset")}
    assert json.loads(stated["mpp"]) == facts["mpp"] == 0.5
    assert facts["licence"] == LICENCE
    assert [item["name"] for item in facts["classes"]] == ["Background", "Tumour", "Other"]
    assert facts["classes"][1]["color"] == list(model[0].classes.colors[1])
    assert facts["postprocessor"] == model[0].settings["postprocessor"]
    assert (facts["input"]["dtype"], facts["input"]["height"], facts["patch_multiple"]) == ("uint8", [80, 16384], 16)
    assert facts["outputs"]["nuclei_type_map"]["channels"] == 3
    assert facts["file"]["bytes"] == (onnx_folder / "model.onnx").stat().st_size


def test_a_program_of_torch_gives_the_maps_of_the_model_at_any_size(model, torch_folder):
    extra = {"cellvit": ""}
    program = torch.export.load(torch_folder / "model.pt2", extra_files=extra).module()
    for size in SIZES:
        image = noise(*size)
        with torch.no_grad():
            assert_same_maps(program(torch.from_numpy(image)), model[0], image)
    facts = json.loads((torch_folder / "model.json").read_text())
    assert json.loads(extra["cellvit"])["classes"] == facts["classes"]


def test_a_vit_takes_any_size():
    torch.manual_seed(0)
    network = CellViT(spec("vit-256", embed_dim=24, depth=4, num_heads=3), 3, decoder=SHARED_UNETR).eval()
    program = trace(network).program.module()
    for size in [(1, 80, 80), (2, 224, 224), (1, 130, 243)]:
        image = noise(*size)
        with torch.no_grad():
            assert_same_maps(program(torch.from_numpy(image)), network, image)


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("kind", [EfficientNetLiteEncoder, HybridEncoder])
def test_what_an_encoder_does_in_a_graph_is_the_same(kind, shrink, monkeypatch):
    encoder = kind(shrink=shrink).eval()
    image = torch.rand(1, 3, 96, 112)
    with torch.no_grad():
        maps = encoder(image).features
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        torch.testing.assert_close(encoder(image).features, maps)


def test_an_encoder_for_one_size_is_refused_first_and_exported_for_that(tmp_path):
    sam = spec("sam-b", embed_dim=24, depth=4, num_heads=2, window_size=5, pretrained_grid=8, out_chans=8)
    network = CellViT(sam, 3, decoder=SHARED_UNETR).eval()
    with pytest.raises(ConfigError, match=r"'sam-b' cannot be exported for images of any size; .* size=512"):
        export_onnx(network, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    image, one = noise(1, 90, 117), trace(network, (90, 117))
    with torch.no_grad():
        assert_same_maps(one.program.module()(torch.from_numpy(image)), network, image)
    assert facts_of(one)["input"]["height"] == 90


def test_every_encoder_of_ours_says_whether_it_takes_any_size():
    any_size = {entry.name for entry in ENCODERS.entries() if ENCODERS.get(entry.name).exports_any_size}
    assert {name for name in any_size if "." not in name} >= {"hybrid", "vit-256", "random", "efficientnet-lite"}
    assert not any_size & {"sam-b", "sam-l", "sam-h", "timm", "uni", "virchow2"}


def test_positions_are_the_same_in_a_graph(monkeypatch):
    position = torch.randn(1, 197, 6)
    grids = [(14, 14), (5, 9), (20, 31)]
    expected = [interpolate_position(position, grid) for grid in grids]
    encoder, image = ViTEncoder(embed_dim=24, depth=4, num_heads=3).eval(), torch.rand(1, 3, 80, 96)
    maps = encoder(image).features
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    for grid, values in zip(grids, expected, strict=True):
        torch.testing.assert_close(interpolate_position(position, grid), values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(image).features[-1], maps[-1], rtol=1e-4, atol=1e-4)


def test_a_file_that_differs_is_not_written(model, graph, tmp_path, monkeypatch):
    maps = graph.trial[1]
    check(graph, maps, "a file")
    with pytest.raises(ConfigError, match=r"model\.pt2 differs from the model by 0\.5 in hv_map"):
        check(graph, {**maps, "hv_map": maps["hv_map"] + 0.5}, "model.pt2")
    with pytest.raises(ConfigError, match="differs"):
        check(graph, {**maps, "hv_map": torch.full_like(maps["hv_map"], torch.nan)}, "model.pt2")
    wrong = {**maps, "hv_map": maps["hv_map"] + 1}
    monkeypatch.setattr(programs_module, "trace", lambda *_: graph)
    monkeypatch.setattr(torch.export, "save", lambda program, path, extra_files: path.write(b"a program"))
    monkeypatch.setattr(torch.export, "load", lambda path: SimpleNamespace(module=lambda: lambda image: wrong))
    with pytest.raises(ConfigError, match="differs"):
        export_torch(model[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_traced_or_opened_is_said(model, graph, tmp_path, monkeypatch, capsys):
    class Branching(torch.nn.Module):
        def forward(self, image):
            return image if image.sum() > 0 else -image

    network = tiny_network(3)
    network.encoder.stages[0].append(Branching())
    with pytest.raises(ConfigError, match=r"torch\.export cannot trace the network .* decides by values"):
        export_torch(network, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="it exists"):
        export_torch(model[0], tmp_path / "there")
    for size in (MIN_SIDE - 1, (512,), "512", 1e9):
        with pytest.raises(ConfigError, match="no size of images"):
            trace(model[0], size)
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name in ("onnxscript", "onnxruntime"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PluginError, match=r"onnx and onnxscript .* pip install '\.\[export\]'"):
        export_onnx(model[0], tmp_path / "out")
    assert "not compared with the model: onnxruntime" in programs_module._verify_onnx(graph, tmp_path / "x")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--dtype", "float16"], "--dtype is for --to folder"),
        (["--size", "512"], "--size is for --to onnx and torch-export, not for folder"),
        (["--to", "onnx", "--size", "5x5x5"], "'5x5x5' is no size; give 512, or 384x640"),
        (["--to", "onnx", "--class-names", "a,b"], "--class-names is for --to qupath, not for onnx"),
        (["--to", "tflite"], "invalid choice: 'tflite'"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, tmp_path, capsys):
    assert main(["nano", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_page_runs_without_torch(model, onnx_folder, torch_folder, tmp_path, monkeypatch):
    example, with_torch = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "nano-onnx").symlink_to(onnx_folder)
    image = noise(1, 128, 160)[0].transpose(1, 2, 0)
    cv2.imwrite(str(tmp_path / "tissue.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    at_mpp = example.replace('"tissue.png", 0.25', '"tissue.png", 0.5')
    last = "\nfrom cellvit.postprocess import StarPostprocessor\nnp.save('found.npy', found.nuclei.centroid)\n"
    run = [sys.executable, "-c", WITHOUT_TORCH + at_mpp + last + "assert 'torch' not in sys.modules\n"]
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[3])}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = segment_image(image, model=model[0], mpp=0.5, measurements=False, precision="32-true")
    assert done.stdout.endswith(f"{len(expected)} nuclei\n")
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected.centroid)
    assert (tmp_path / "outlines.png").is_file()
    (tmp_path / "nano-torch").symlink_to(torch_folder)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(with_torch, str(PAGE), "exec"), names)
    assert names["maps"]["hv_map"].shape == (1, 2, 300, 500)
