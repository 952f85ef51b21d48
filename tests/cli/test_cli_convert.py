"""The verb that converts checkpoints of the published implementation."""

import hashlib
import shutil

import cv2
import numpy as np
import pytest
import torch
from support.released_files import PARAMETERS, SMALL, content_of, hollow_state, released, shapes_of, write
from support.tiny import SHARED_UNETR

from cellvit import CellViT
from cellvit.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:licence of ")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("released") / "small.pth", released("small"))
    yield path
    path.unlink()


@pytest.fixture
def out(tmp_path):
    """Return a place for a model that is gone after the test."""
    yield tmp_path / "m"
    shutil.rmtree(tmp_path / "m", ignore_errors=True)


def test_a_checkpoint_becomes_a_folder(small, out, capsys):
    assert main(["convert", str(small), "--out", str(out), "--dtype", "float16"]) == 0
    text = capsys.readouterr().out
    assert "small.pth: CellViT with encoder vit-256" in text
    assert "types: Background, Neoplastic, Inflammatory, Connective, Dead, Epithelial" in text
    assert "resolution: 0.25 µm/px (x40, assumed, as the file states none)" in text
    assert f"wrote {out}" in text
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    converted, direct = CellViT.from_pretrained(out), CellViT.from_pretrained(small)
    assert converted.settings == direct.settings
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    assert converted.about["source"] == {"file": "small.pth", "sha256": digest, "arch": "CellViT"}
    assert f"sha256 of the file: {digest}" in text
    for name, value in direct.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], value, rtol=1e-3, atol=1e-3)


def test_values_that_a_type_cannot_hold_are_refused(tmp_path, out, capsys):
    content = released("small", hollow=True)
    name = "hv_map_decoder.decoder0_header.0.block.1.running_var"
    content["model_state_dict"][name] = torch.full((64,), 1e5)
    path = write(tmp_path / "large.pth", content)
    assert main(["convert", str(path), "--out", str(out), "--dtype", "float16"]) == 1
    assert "float16 cannot hold the values of" in capsys.readouterr().err
    assert not out.exists()
    assert main(["convert", str(path), "--out", str(out), "--dtype", "bfloat16"]) == 0


def test_what_was_left_out_is_said(tmp_path, out, capsys):
    shapes = shapes_of(SMALL, regression=True)
    content = content_of("small", hollow_state(shapes), model__regression_loss=True)
    assert main(["convert", str(write(tmp_path / "r.pth", content)), "--out", str(out), "--dtype", "float16"]) == 0
    assert "left out: the regression map, channels 2 and 3 of nuclei_binary_map_decoder" in capsys.readouterr().out


def test_a_converted_folder_segments_images(small, out, tmp_path):
    cv2.imwrite(str(tmp_path / "tissue.png"), np.full((64, 96, 3), 200, np.uint8))
    assert main(["convert", str(small), "--out", str(out), "--dtype", "float16"]) == 0
    for model in (out, small):
        arguments = [tmp_path / "tissue.png", "--model", model, "--tile-size", 64, "--overlap", 16]
        arguments += ["--out", tmp_path / model.name, "--formats", "geojson"]
        assert main(["segment", *map(str, arguments)]) == 0


@pytest.mark.slow
def test_vit_256_of_published_size(tmp_path, out, capsys):
    path = write(tmp_path / "CellViT-256-x40.pth", released("vit-256"))
    assert main(["convert", str(path), "--out", str(out)]) == 0
    path.unlink()
    assert f"439 tensors, {PARAMETERS['vit-256']:,} parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.pth", "no file"), ("folder", "no file"), ("text.pth", "is not a checkpoint or is damaged")],
)
def test_what_is_no_checkpoint_is_refused(name, message, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    assert main(["convert", str(tmp_path / name), "--out", str(tmp_path / "m")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert name in error
    assert not (tmp_path / "m").exists()


def test_a_checkpoint_of_our_own_is_for_export(tmp_path, capsys):
    model = CellViT("hybrid", 3, decoder=SHARED_UNETR)
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": model.settings}, tmp_path / "own.ckpt")
    assert main(["convert", str(tmp_path / "own.ckpt"), "--out", str(tmp_path / "m")]) == 1
    assert "'cellvit export' turns it into a folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(small, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert main(["convert", str(small), "--out", str(tmp_path / "taken")]) == 1
    assert "taken" in capsys.readouterr().err
