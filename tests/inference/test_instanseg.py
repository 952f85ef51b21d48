"""Folders of QuPath's InstanSeg extension as models: tiny scripts made here find dark squares."""

import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from cellvit import load_model, segment_image, segment_slide
from cellvit.cli import main
from cellvit.errors import WeightsError
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.instanseg import InstanSegModel, fitted
from cellvit.io import read_nuclei

TRUST = ["torchscript"]


class Dark(torch.nn.Module):
    """Numbers what is dark in columns of 32 px: 1..N without gaps; class 1 where red is above blue."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        dark = image[0].mean(0) < 0.5
        column = torch.arange(image.shape[3]).floor_divide(32)[None, :].expand_as(dark)
        present = torch.unique(column[dark])
        labels = torch.zeros_like(dark, dtype=torch.float32)
        classes = torch.zeros((present.numel(), 1))
        for number in range(present.numel()):
            here = dark & (column == present[number])
            labels[here] = float(number + 1)
            if bool(image[0, 0][here].mean() > image[0, 2][here].mean()):
                classes[number, 0] = 1.0
        return labels[None], classes


class Untyped(torch.nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        dark = (image[0].mean(0) < 0.5).float()
        return torch.stack([dark, torch.ones_like(dark)])[None]


class Broken(torch.nn.Module):
    def __init__(self, kind: int):
        super().__init__()
        self.kind = kind

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.ones_like(image[:, 0])
        if self.kind == 0:
            return labels[:, :-1], torch.zeros((1, 1))
        if self.kind == 1:
            return labels * 0.5, torch.zeros((1, 1))
        if self.kind == 2:
            return labels, torch.zeros((0, 1))
        if self.kind == 3:
            return labels, torch.full((1, 1), 7.0)
        return labels.reshape(3, -1)[:, :7] @ labels[0], torch.zeros((1, 1))


AXES = [{"type": "space", "id": "x", "scale": 0.5}, {"type": "space", "id": "y", "scale": 0.5}]
NEW = {
    "format_version": "0.5.4",
    "name": "dark",
    "license": "CC-BY-4.0",
    "outputs": [
        {"id": "labels", "axes": AXES},
        {"id": "detection_classes", "data": {"type": "uint8", "values": ["Blue", "Red"]}},
    ],
}
OLD = {"format_version": "0.4.10", "name": "old", "config": {"qupath": {"axes": [{"step": 0.5}, {"step": 0.5}]}}}


@pytest.fixture
def make(tmp_path):
    def write(script=Dark, description=NEW, *arguments):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that TorchScript will end some day
            torch.jit.script(script(*arguments)).save(str(folder / "instanseg.pt"))
        (folder / "rdf.yaml").write_text(yaml.safe_dump(description))
        return folder

    return write


@pytest.fixture
def image():
    pixels = np.full((128, 160, 3), (240, 230, 240), np.uint8)
    pixels[20:40, 36:56] = (60, 50, 120)
    pixels[50:72, 100:120] = (140, 40, 60)
    return pixels


def test_a_typed_script_gives_outlines_and_types(make, image):
    model = load_model(make(), device="cpu", trust=TRUST)
    assert isinstance(model, InstanSegModel)
    assert (model.mpp, model.classes.names) == (0.5, ("Background", "Blue", "Red"))
    nuclei = segment_image(image, model=model, mpp=0.5)
    assert nuclei.bbox.tolist() == [[36, 20, 56, 40], [100, 50, 120, 72]]
    assert nuclei.counts() == {"Blue": 1, "Red": 1}
    assert nuclei.area.tolist() == [400, 440]
    assert "area_um2" in nuclei.measurements
    fine = segment_image(np.kron(image, np.ones((2, 2, 1), np.uint8)), model=model, mpp=0.25)
    np.testing.assert_allclose(fine.centroid, 2 * nuclei.centroid, atol=1)
    cut = segment_image(image, model=model, mpp=0.5, tile_size=96, overlap=32, batch_size=2)
    assert cut.counts() == nuclei.counts()


def test_colours_are_scaled_by_the_whole_image(make, image):
    model = InstanSegModel(make(), trust=TRUST)
    seen = []
    model._script = lambda tile: (seen.append(tile), (torch.zeros(1, *tile.shape[2:]), torch.zeros(0, 1)))[1]
    whole = np.random.default_rng(0).integers(40, 220, (300, 200, 3), dtype=np.uint8)
    low, high = np.percentile(whole.reshape(-1, 3), (0.1, 99.9), axis=0)
    fitted(model, whole).predict_maps(torch.from_numpy(image[:64, :64]).permute(2, 0, 1)[None].float() / 255)
    expected = np.clip((image[:64, :64] - low) / (high - low + 1e-6), -0.5, 1.5)
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert fitted("another model", whole) == "another model"


def test_a_released_file_without_types_works_and_nuclei_come_first(make, image):
    model = load_model(make(Untyped, OLD) / "instanseg.pt", device="cpu", trust=TRUST)
    assert (model.mpp, model.classes.names, model.about) == (0.5, ("Background", "Nucleus"), {"name": "old"})
    (nucleus,) = segment_image(image, model=model, mpp=0.5, measurements=False)
    assert len(nucleus.contour) == 4  # the largest of two pieces with one label
    assert nucleus.type_name == "Nucleus"


def test_it_runs_only_with_consent(make, monkeypatch, tmp_path, image, capsys):
    folder = make()
    with pytest.raises(WeightsError, match=r"TorchScript, a program .* trust=\['torchscript'\]"):
        load_model(folder)
    Image.fromarray(image).save(tmp_path / "a.png")
    arguments = [
        "segment",
        str(tmp_path / "a.png"),
        "--model",
        str(folder),
        "--out",
        str(tmp_path / "o"),
        "--mpp",
        "0.5",
    ]
    assert main([*arguments, "--formats", "geojson"]) != 0
    assert "--trust torchscript" in capsys.readouterr().err
    assert main([*arguments, "--formats", "geojson", "--trust", "torchscript"]) == 0
    assert read_nuclei(tmp_path / "o" / "a.geojson").counts() == {"Blue": 1, "Red": 1}
    monkeypatch.setenv("CELLVIT_TRUST", "torchscript")
    assert load_model(folder, device="cpu").mpp == 0.5


def test_a_slide_is_segmented_and_its_summary_names_the_script(make, image, tmp_path):
    Image.fromarray(np.tile(image, (1, 2, 1))).save(tmp_path / "a.svs", format="png")
    settings = {"tile_size": 256, "workers": 0, "tissue_filter": False, "mpp": 0.5}
    done = segment_slide(tmp_path / "a.svs", tmp_path / "o", model=make(), device="cpu", trust=TRUST, **settings)
    assert done.summary["nuclei"]["total"] == 4
    assert done.summary["model"]["classes"] == ["Background", "Blue", "Red"]
    assert done.summary["model"]["licence"] == "CC-BY-4.0"
    other = InstanSegModel(make(Untyped), trust=TRUST)
    assert weights_hash(other) != done.summary["model"]["weights_hash"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (0, r"returns labels \(1, 63, 64\) for a tile \(64, 64\)"),
        (1, "no whole numbers"),
        (2, r"returns detection_classes \(0, 1\) for 1 labels"),
        (3, "returns the class 7, but rdf.yaml names 2"),
        (4, "fails on a tile of 64x64 px"),
    ],
)
def test_what_breaks_the_contract_is_refused(make, kind, message):
    model = InstanSegModel(make(Broken, NEW, kind), trust=TRUST)
    with pytest.raises(WeightsError, match=message):
        model.predict_maps(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"outputs": []}, "states no pixel size"),
        ({**OLD, "config": {"qupath": {"axes": [{"step": 0.5}, {"step": 2.0}]}}}, "0.5 x 2 µm, which cannot be used"),
        ({**OLD, "config": {"qupath": {"axes": "x"}}}, "states no pixel size"),
        ({**NEW, "outputs": [{"axes": AXES}, {"id": "detection_classes", "data": {}}]}, "'values' of its data"),
        ({**NEW, "outputs": [{"axes": AXES}, {"id": "detection_logits", "data": {"values": ["a", "a"]}}]}, "each once"),
        ([1], "holds a list"),
    ],
)
def test_descriptions_that_cannot_be_used(make, description, message):
    with pytest.raises(WeightsError, match=message):
        InstanSegModel(make(Untyped, description), trust=TRUST)


def test_damaged_files_are_refused(make):
    folder = make(Untyped, OLD)
    (folder / "rdf.yaml").write_text("a: [")
    with pytest.raises(WeightsError, match="cannot be read"):
        InstanSegModel(folder, trust=TRUST)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(OLD))
    (folder / "instanseg.pt").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(WeightsError, match="no TorchScript or is damaged"):
        InstanSegModel(folder, trust=TRUST)
    (folder / "rdf.yaml").unlink()
    with pytest.raises(WeightsError, match=r"has instanseg\.pt and rdf\.yaml"):
        InstanSegModel(folder, trust=TRUST)
