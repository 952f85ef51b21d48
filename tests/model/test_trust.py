"""No module is imported because a file that is loaded names it. Modules here leave a mark when they are imported."""

import json
import pickle
import shutil
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import HYBRID, UNETR, spec

from cellvit import CellViT
from cellvit.cli import export, plan, segment, segment_slides
from cellvit.encoders.base import ENCODERS
from cellvit.errors import ConfigError, WeightsError
from cellvit.inference.cohort.dask import _payload
from cellvit.inference.protocol import load_model
from cellvit.inference.slide import _kept_model, slide_task
from cellvit.plugins.components import build, import_path
from cellvit.plugins.trust import is_loading, loading_file, trusted_packages

MODULES = {
    "stranger.py": "class Part: ...\n",
    "my_lab/__init__.py": "",
    "my_lab/parts.py": "from cellvit.postprocess.hv import HVPostprocessor\nclass Own(HVPostprocessor): ...\n",
    "my_lab_evil.py": "class Part: ...\n",
}
MARK = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
OWN = "my_lab.parts.Own"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder: Python finds modules in it, and a stranger has put some there."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(MARK + text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("stranger", "my_lab", "my_lab_evil")]:
        del sys.modules[name]


@pytest.fixture
def saved(tiny_model, folder):
    """Return a function that makes a model folder or a checkpoint with other settings, and returns its path."""

    def change(kind="config.json", **settings):
        shutil.copytree(tiny_model, folder / "model", dirs_exist_ok=True)
        config = json.loads((folder / "model/config.json").read_text())
        config["model"] |= settings
        if kind == "config.json":
            (folder / "model/config.json").write_text(json.dumps(config))
            return folder / "model"
        content = {"state_dict": {}, "hyper_parameters": config["model"], "pytorch-lightning_version": "2.6.0"}
        torch.save(content, folder / "a.ckpt")
        return folder / "a.ckpt"

    return change


def marks(folder):
    return sorted(path.name for path in folder.rglob("*.ran"))


def settings_with(slot, path="stranger.Part"):
    """Return settings that name a class in one place."""
    if slot == "inside another":
        return {"encoder": spec("lora", encoder=path)}
    if slot == "heads":
        return {"heads": {"nuclei_binary_map": "binary", "hv_map": "hv", "nuclei_type_map": path}}
    if slot == "metrics":
        return {"metrics": ["panoptic-quality", path]}
    return {slot: spec(path)}


SLOTS = ("encoder", "inside another", "decoder", "heads", "postprocessor", "metrics", "optimizer", "lr_scheduler")


@pytest.mark.parametrize("kind", ["config.json", "a.ckpt"])
@pytest.mark.parametrize("slot", SLOTS)
def test_what_a_file_names_is_refused_before_it_is_imported(saved, folder, slot, kind):
    path = saved(kind, **settings_with(slot))
    with pytest.raises(WeightsError, match=r"'stranger\.Part' is a class of module 'stranger'.* pass trust=\['strang"):
        CellViT.from_pretrained(path)
    assert marks(folder) == []
    assert "stranger" not in sys.modules


def test_lightnings_own_way_to_load_a_checkpoint_is_as_careful(saved, folder):
    with pytest.raises(ConfigError, match=r"metric 'math\.sqrt' does not derive from"):  # imported, and no metric
        CellViT.load_from_checkpoint(saved("a.ckpt", metrics=["math.sqrt"]))
    for slot in ("encoder", "optimizer"):
        with pytest.raises(ImportError, match=r"pass trust=\['stranger'\]"):
            CellViT.load_from_checkpoint(saved("a.ckpt", **settings_with(slot)))
    assert marks(folder) == []
    path = saved("a.ckpt", postprocessor=OWN)
    content = torch.load(path, weights_only=True) | {"state_dict": CellViT(HYBRID, decoder=UNETR).state_dict()}
    torch.save(content, path)
    own = CellViT.load_from_checkpoint(path, trust=["my_lab"], map_location="cpu", mpp=0.5)
    assert (type(own.postprocessor).__name__, own.mpp) == ("Own", 0.5)


def test_a_network_for_inference_does_not_need_what_it_does_not_build(saved, folder):
    network = load_model(saved(**settings_with("metrics"), **settings_with("optimizer")), device="cpu")
    assert network.settings["optimizer"]["class_path"] == "stranger.Part"
    assert marks(folder) == []


@pytest.mark.parametrize("how", ["argument", "module", "variable", "import"])
def test_what_the_user_trusts_is_loaded(saved, folder, how, monkeypatch):
    path, trust = saved(postprocessor=OWN), {"argument": ["my_lab"], "module": ["other", "my_lab.parts"]}.get(how, ())
    if how == "variable":
        monkeypatch.setenv("CELLVIT_TRUST", "other, my_lab,")
    if how == "import":
        import_module("my_lab.parts")
    for load in (CellViT.from_pretrained, load_model):
        assert type(load(path, trust=trust).postprocessor).__name__ == "Own"


@pytest.mark.parametrize(
    ("path", "trust"),
    [("my_lab_evil.Part", ["my_lab"]), (OWN, ["my_lab.part"]), (OWN, ["my_lab.parts.Own"]), (OWN, [])],
)
def test_another_name_is_not_trusted(saved, folder, path, trust):
    with pytest.raises(WeightsError, match="which a loaded file may not have imported"):
        CellViT.from_pretrained(saved(postprocessor=path), trust=trust)
    assert marks(folder) == []


@pytest.mark.parametrize("trust", ["my_lab", ["my-lab"], [""], ["my_lab."], ["*"], [3]])
def test_what_is_no_name_of_a_package_is_refused(saved, trust):
    with pytest.raises(ConfigError, match="trust"):
        CellViT.from_pretrained(saved(), trust=trust)


def test_names_of_users_and_former_names_stay_free(folder):
    assert build(ENCODERS, HYBRID).init_args == HYBRID["init_args"]
    assert import_path("stranger.Part", what="part").__name__ == "Part"
    assert marks(folder) == ["stranger.ran"]
    with loading_file():
        assert is_loading()
        for path in ("cellvit.schedules.WarmupCosineLR", "torch.optim.SGD", "timm.optim.Lamb", "json.JSONDecoder"):
            assert import_path(path, what="class").__name__ == path.rpartition(".")[2]
        with pytest.raises(LookupError, match="cannot be imported"):
            import_path("NoDot", what="class")
    assert not is_loading()


def test_the_command_line_names_the_option_and_takes_it_twice(saved, folder, capsys):
    model, image = str(saved(postprocessor=OWN)), folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(image)
    command = [str(image), "--model", model, "--out", str(folder / "out"), "--device", "cpu", "--formats", "geojson"]
    assert segment.main(command) == 2
    assert "if you trust this package, pass --trust my_lab or set" in capsys.readouterr().err
    assert marks(folder) == []
    with pytest.raises(WeightsError, match="pass --trust my_lab"):
        export.main([model, "--out", str(folder / "again")])
    assert segment.main([*command, "--trust", "my-lab"]) == 2
    assert "--trust 'my-lab' is no name of a package in Python" in capsys.readouterr().err
    assert segment.main([*command, "--trust", "other", "--trust", "my_lab"]) == 0
    assert export.main([model, "--out", str(folder / "again"), "--trust", "my_lab"]) == 0


def test_trust_reaches_processes_and_clusters(saved, folder, monkeypatch):
    monkeypatch.setenv("CELLVIT_TRUST", "of_the_environment")
    (folder / "a.svs").touch()
    given = []

    def run_all(jobs, *rest):
        given.extend(jobs)
        return [segment_slides.SlideOutcome(job.path, job.out, None, None, 0.0, "") for job in jobs]

    monkeypatch.setattr(segment_slides, "_run_all", run_all)
    monkeypatch.setattr(segment_slides, "_finish", lambda *rest: False)
    command = [str(folder / "a.svs"), "--model", str(saved()), "--out", str(folder / "out"), "--trust", "my_lab"]
    assert segment.main([*command, "--cluster", "tcp://127.0.0.1:1"]) == 0
    _, job = pickle.loads(_payload(slide_task, given[0]))
    assert job.settings["trust"] == ("my_lab", "of_the_environment")
    _kept_model.cache_clear()
    path = saved(postprocessor=OWN)
    with pytest.raises(WeightsError):
        _kept_model(str(path), "cpu", (), ())
    assert type(_kept_model(str(path), "cpu", (), job.settings["trust"]).postprocessor).__name__ == "Own"
    _kept_model.cache_clear()
    assert plan.build_parser().parse_args(["a.svs", "--trust", "my_lab"]).trust == ["my_lab"]
    assert trusted_packages() == ("of_the_environment",)


def test_a_layer_of_timm_is_a_layer():
    arguments = {"depth": 4, "embed_dim": 12, "num_heads": 2, "mlp_layer": "set_fused_attn"}
    with pytest.raises(ConfigError, match=r"mlp_layer 'set_fused_attn' is no layer of timm\.layers"):
        build(ENCODERS, spec("timm", model="vit_tiny_patch16_224", arguments=arguments))
