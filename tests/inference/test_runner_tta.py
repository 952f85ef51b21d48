"""Slides with maps averaged over views: a setting like others, in the runner, in plans and on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from support.drawn_slides import DrawnModel
from support.stand_ins import DarkSpots

from cellvit.cli import plan as cli_plan
from cellvit.cli import segment as cli_segment
from cellvit.errors import ConfigError, OutputError
from cellvit.inference.fingerprints import weights_hash
from cellvit.inference.plan import plan_slide
from cellvit.inference.protocol import load_model
from cellvit.inference.slide import segment_slide
from cellvit.inference.tta import TestTimeAugmentation

PLAIN = {"device": "cpu", "workers": 0, "tissue_filter": False, "formats": (), "tile_size": 128, "mpp": 0.25}
OPTIONS = ["--as", "slide", "--mpp", "0.25", "--device", "cpu", "--workers", "0", "--no-tissue-filter"]
OPTIONS += ["--tile-size", "128", "--formats", "points"]
SIDE = 200


def blobs():
    """Return a picture of smooth grey blobs."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((SIDE, SIDE)), 4)
    return np.repeat(np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "blobs.png"
    Image.fromarray(blobs()).save(path)
    return path


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """Return the folder of a network that finds nuclei in averaged maps, too: one that tells pixels apart."""
    network = load_model(tiny_model, device="cpu")
    pixels = torch.from_numpy(blobs()[:128, :128]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        for name in ("nuclei_binary_map", "hv_map"):
            output = network.heads[name].output
            output.weight *= 1000
            output.bias -= network(pixels)[name][0].flatten(1).median(1).values
    folder = tmp_path_factory.mktemp("models") / "sharp"
    network.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def network(model):
    return load_model(model, device="cpu")


@pytest.fixture
def counted(monkeypatch):
    """Return a list that grows with every image that goes through a network."""
    from cellvit.model.network import CellViTNetwork

    seen, predict = [], CellViTNetwork.predict_maps

    def count(self, image):
        seen.append(tuple(image.shape[-2:]))
        return predict(self, image)

    monkeypatch.setattr(CellViTNetwork, "predict_maps", count)
    return seen


def command(model, slide, out, *more):
    return [str(slide), "--out", str(out), "--model", model, *OPTIONS, *more]


def test_a_model_that_averages_and_the_setting_are_the_same(slide, network, tmp_path, counted):
    by_setting = segment_slide(slide, tmp_path / "setting", model=network, tta=2, **PLAIN)
    tiles = by_setting.summary["tiles"]["done"]
    assert by_setting.summary["nuclei"]["total"]
    assert len(counted) == 2 * tiles
    by_model = segment_slide(slide, tmp_path / "model", model=TestTimeAugmentation(network, 2), **PLAIN)
    assert len(counted) == 4 * tiles
    table = (tmp_path / "setting" / "nuclei.parquet").read_bytes()
    assert (tmp_path / "model" / "nuclei.parquet").read_bytes() == table
    assert by_model.summary["settings"]["tta"] == by_setting.summary["settings"]["tta"] == 2
    assert by_model.summary["fingerprints"] == by_setting.summary["fingerprints"]
    assert by_model.summary["model"]["name"] == "CellViT"
    plain = segment_slide(slide, tmp_path / "plain", model=network, **PLAIN)
    assert plain.summary["model"]["weights_hash"] == by_setting.summary["model"]["weights_hash"]
    assert (tmp_path / "plain" / "nuclei.parquet").read_bytes() != table
    with pytest.raises(OutputError, match="tta was 2, is 1"):
        segment_slide(slide, tmp_path / "setting", model=network, **PLAIN)


@pytest.mark.parametrize(
    ("stand_in", "tta", "words"),
    [
        (DrawnModel, 3, "tta 3"),
        (DrawnModel, 2, "DrawnModel has no heads"),
        (DarkSpots, 8, "DarkSpots has no heads"),
    ],
)
def test_views_that_cannot_be_had_are_refused_before_anything_is_written(slide, tmp_path, stand_in, tta, words):
    with pytest.raises(ConfigError, match=words):
        segment_slide(slide, tmp_path / "out", model=stand_in(), tta=tta, **PLAIN)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=words):
        plan_slide(slide, model=stand_in(), tta=tta, sample=0, **PLAIN)


def test_a_plan_times_all_views(slide, network, counted):
    one = plan_slide(slide, model=network, sample=1, **PLAIN)
    first = len(counted)
    both = [plan_slide(slide, model=network, sample=1, tta=4, **PLAIN)]
    both.append(plan_slide(slide, model=TestTimeAugmentation(network, 4), sample=1, **PLAIN))
    assert len(counted) == (1 + 4 + 4) * first
    assert both[0].model == both[1].model == one.model == "CellViT"


def test_the_digest_of_a_model_that_averages_is_that_of_its_weights_and_views(network, model):
    digests = {weights_hash(network)} | {weights_hash(TestTimeAugmentation(network, views)) for views in (2, 4)}
    assert len(digests) == 3
    assert weights_hash(TestTimeAugmentation(load_model(model, device="cpu"), 4)) in digests
    next(iter(network.parameters())).data.add_(1)
    assert weights_hash(TestTimeAugmentation(network, 4)) not in digests


def test_the_command_goes_on_with_the_same_views_and_refuses_others(slide, model, tmp_path, counted, capsys):
    out = tmp_path / "out"
    folder = out / "blobs"
    assert cli_segment.main(command(model, slide, out, "--tta", "2", "--keep-parts")) == 0
    table, count = (folder / "nuclei.parquet").read_bytes(), len(counted)
    assert json.loads((folder / "summary.json").read_text())["settings"]["tta"] == 2
    assert cli_segment.main(command(model, slide, out, "--tta", "2", "--keep-parts")) == 0
    assert len(counted) == count  # it was finished
    (folder / "summary.json").unlink()
    (folder / ".work" / "part-000000.arrow").unlink()
    capsys.readouterr()
    assert cli_segment.main(command(model, slide, out, "--tta", "4")) == 1
    assert "tta was 2, is 4" in capsys.readouterr().err
    assert cli_segment.main(command(model, slide, out, "--tta", "2")) == 0
    assert (folder / "nuclei.parquet").read_bytes() == table
    assert cli_segment.main(command(model, slide, out)) == 1
    assert "tta was 2, is 1" in capsys.readouterr().err


def test_other_numbers_are_refused_by_the_command(slide, model, tmp_path, capsys):
    assert cli_segment.main(command(model, slide, tmp_path / "out", "--tta", "3")) == 2
    assert "--tta" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_are_averaged_by_the_command_too(model, tmp_path, counted):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "patch.png")
    arguments = [str(tmp_path / "patch.png"), "--out", str(tmp_path / "out"), "--model", model, "--device", "cpu"]
    assert cli_segment.main([*arguments, "--tta", "8"]) == 0
    assert counted == [(48, 64)] * 4 + [(64, 48)] * 4
    facts = json.loads((tmp_path / "out" / "patch.json").read_text())["wsi_metadata"]
    assert facts["tta"] == 8


def test_the_plan_command_takes_the_views(slide, model, tmp_path, counted, capsys):
    arguments = [str(slide), "--model", model, *OPTIONS, "--sample", "1", "--json"]
    assert cli_plan.main(arguments) == 0
    once = len(counted)
    assert cli_plan.main([*arguments, "--tta", "2"]) == 0
    assert len(counted) == 3 * once
    capsys.readouterr()
