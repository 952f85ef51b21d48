"""What QuPath gets: a script that takes any size and finds what the model finds, and a description of it."""

import socket

import numpy as np
import pytest
import torch
import yaml
from support.tiny import UNETR, VIT, tiny_network

from cellvit import load_model, segment_image
from cellvit.errors import ConfigError, OutputError
from cellvit.export import export_qupath, exporter, torchscript
from cellvit.export.qupath import _drawn_image
from cellvit.export.scaling import PercentileUndo
from cellvit.model.build import image_arrays
from cellvit.model.cellvit import CellViT
from cellvit.model.network import CellViTNetwork

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


@pytest.fixture(scope="module")
def model():
    nano = CellViTNetwork.from_pretrained("nano")
    nano.about = {"name": "tiny one", "licence": "CC BY 4.0"}
    return nano


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("qupath") / "made" / "tiny"
    before = [value.clone() for value in model.state_dict().values()]
    (remark,) = export_qupath(model, out)
    assert "stretches colours" in remark
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    return out


@pytest.fixture(scope="module")
def script(folder):
    return torch.jit.load(str(folder / "instanseg.pt"))


def test_every_operator_is_of_torch_alone(script):
    names = torch.jit.export_opnames(script)
    assert names
    assert {name.split("::")[0] for name in names} <= {"aten", "prim"}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (93, 149), (128, 192)])
def test_the_script_finds_what_the_model_finds(model, script, height, width):
    image = torch.from_numpy(_drawn_image())[..., :height, :width]
    labels, classes = script(image)
    raw = PercentileUndo()(image)
    expected = model.postprocess(image_arrays(model.predict_maps(raw), model.postprocessor)[0])
    count = len(expected.nuclei)
    assert count > 3
    assert (labels.dtype, classes.dtype) == (torch.float32, torch.float32)
    assert labels.shape == (1, 1, height, width)
    assert (labels[0, 0].numpy() == expected.instance_map).mean() > 0.999
    assert labels.unique().tolist() == list(range(count + 1))
    assert classes.shape == (count, 1)
    assert (classes[:, 0].numpy() + 1 == expected.nuclei.type).all()


def test_a_tile_without_nuclei_and_a_second_argument_are_fine(script):
    labels, classes = script(torch.ones(1, 3, 70, 66), torch.ones(1, dtype=torch.int32))
    assert labels.shape == (1, 1, 70, 66)
    assert classes.shape == (int(labels.max()), 1)
    with pytest.raises(torch.jit.Error, match="one tile at a time"):
        script(torch.ones(2, 3, 64, 64))


def test_the_description_is_accepted_and_states_what_qupath_reads(model, folder, monkeypatch):
    from bioimageio.spec import ValidationContext, build_description
    from bioimageio.spec.model.v0_5 import ModelDescr

    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    stated = yaml.safe_load((folder / "rdf.yaml").read_text())
    found = build_description(stated, context=ValidationContext(root=folder, perform_io_checks=False))
    assert isinstance(found, ModelDescr), found.validation_summary.format()
    assert (stated["name"], stated["license"]) == ("tiny-one-nuclei", "CC-BY-4.0")
    assert [axis.get("size") for axis in stated["inputs"][0]["axes"][:2]] == [1, 3]
    labels, classes = stated["outputs"]
    assert {axis["id"]: axis["scale"] for axis in labels["axes"] if axis["type"] == "space"} == {"y": 0.25, "x": 0.25}
    assert (classes["id"], classes["data"]["values"]) == ("detection_classes", list(model.classes.names[1:]))


def test_the_folder_says_what_it_is(folder, script):
    names = {path.name for path in folder.iterdir()}
    examples = {f"example_{name}.npy" for name in ("image", "labels", "detection_classes")}
    assert names == {"instanseg.pt", "rdf.yaml", "tiny-one-nuclei_README.md", "LICENCE.txt", *examples}
    text = (folder / "tiny-one-nuclei_README.md").read_text()
    assert "0.25 µm per pixel" in text
    assert "Other, Inflammatory" in text
    assert "CC BY 4.0" in text
    assert "| types learnt on | colon (CoNSeP); on other tissue" in text
    assert "Weights: CC BY 4.0" in (folder / "LICENCE.txt").read_text()
    labels, classes = script(torch.from_numpy(np.load(folder / "example_image.npy")))
    np.testing.assert_array_equal(np.load(folder / "example_labels.npy"), labels)
    np.testing.assert_array_equal(np.load(folder / "example_detection_classes.npy"), classes)


def test_colours_come_back():
    undo, generator = PercentileUndo(), torch.Generator().manual_seed(0)
    scaled = torch.randn(1, 3, 64, 64, generator=generator) * 0.2 + 0.6
    plain = undo(scaled.clamp(-0.5, 1.5))
    assert plain.min() >= 0
    assert plain.max() <= 1
    assert plain[:, 0].mean() > plain[:, 1].mean()  # eosin and haematoxylin take green away
    undo.guess.zero_()
    undo.guess[0] = torch.tensor([0.2, 0.1, 0.3, 0.9, 0.8, 0.95])
    image = torch.rand(1, 3, 8, 8, generator=generator)
    low, high = undo.guess[0, :3].view(1, 3, 1, 1), undo.guess[0, 3:].view(1, 3, 1, 1)
    image = low + image * (high - low)
    torch.testing.assert_close(undo((image - low) / (high - low)), image)


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        (["A"], "are 1, but the model has 4 types"),
        (["A", "B", "A", "C"], "must be there, different"),
        (["A", " ", "B", "C"], "not empty"),
    ],
)
def test_wrong_class_names_are_refused(model, tmp_path, names, wrong):
    with pytest.raises(ConfigError, match=wrong):
        export_qupath(model, tmp_path / "out", class_names=names)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_stays(model, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="it exists"):
        exporter("qupath")(model, tmp_path / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_models_that_cannot_leave_nothing_behind(model, tmp_path, monkeypatch):
    heads = {"object_probability": "object-probability", "radial_distances": "radial-distances"}
    star = tiny_network(heads=heads, postprocessor="star-nms")
    fixed_size = CellViT(VIT, decoder=UNETR).eval()
    cases = [(star, "lacks the heads hv_map"), (fixed_size, "encoder 'vit-256' cannot be traced")]
    for made, wrong in cases:
        with pytest.raises(ConfigError, match=wrong):
            export_qupath(made, tmp_path / "out")
    monkeypatch.setattr(torchscript.torch, "__version__", "2.6.0")
    with pytest.raises(ConfigError, match=r"torch 2\.6\.0 is too old"):
        export_qupath(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_a_model_of_ours_that_finds_what_the_model_finds(model, folder):
    raw = PercentileUndo()(torch.from_numpy(_drawn_image()))[0].permute(1, 2, 0)
    pixels = (raw.clamp(0, 1) * 255).round().byte().numpy()
    script = load_model(folder, device="cpu", trust=["torchscript"])
    assert (script.mpp, script.classes.names[1:]) == (model.mpp, model.classes.names[1:])
    settings = {"mpp": model.mpp, "measurements": False, "precision": "32-true"}
    expected, found = (segment_image(pixels, model=one, **settings) for one in (model, script))
    far = np.linalg.norm(expected.centroid[:, None] - found.centroid[None], axis=2)
    same = far.min(axis=1) < 3
    assert len(expected) > 10
    assert same.mean() > 0.9  # colours are scaled by percentiles, and brought back by a guess
    assert (expected.type[same] == found.type[far.argmin(axis=1)[same]]).mean() > 0.9
