"""The verb that converts checkpoints of the published implementation."""

import sys
from pathlib import Path

import pytest
import torch

from cellvit import CellViT
from cellvit.cli import main

sys.path.append(str(Path(__file__).parents[1] / "model"))  # where the files are described

from released_files import PARAMETERS, released, write


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("released") / "small.pth", released("small"))


def test_a_checkpoint_becomes_a_folder(small, tmp_path, capsys):
    assert main(["convert", str(small), "--out", str(tmp_path / "m"), "--dtype", "float16"]) == 0
    text = capsys.readouterr().out
    assert "small.pth: CellViT with encoder vit-256" in text
    assert "types: Background, Neoplastic, Inflammatory, Connective, Dead, Epithelial" in text
    assert "resolution: 0.25 µm/px (x40, assumed, as the file states none)" in text
    assert f"wrote {tmp_path / 'm'}" in text
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    converted, direct = CellViT.from_pretrained(tmp_path / "m"), CellViT.from_pretrained(small)
    assert converted.settings == direct.settings
    for name, value in direct.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_vit_256_of_published_size(tmp_path, capsys):
    path = write(tmp_path / "CellViT-256-x40.pth", released("vit-256"))
    assert main(["convert", str(path), "--out", str(tmp_path / "m")]) == 0
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


def test_a_checkpoint_of_our_own_is_for_export(small, tmp_path, capsys):
    model = CellViT("vit-256")
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": model.settings}, tmp_path / "own.ckpt")
    assert main(["convert", str(tmp_path / "own.ckpt"), "--out", str(tmp_path / "m")]) == 1
    assert "'cellvit export' turns it into a folder" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(small, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert main(["convert", str(small), "--out", str(tmp_path / "taken")]) == 1
    assert "taken" in capsys.readouterr().err
