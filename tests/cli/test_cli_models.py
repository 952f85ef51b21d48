import json
import os
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
import yaml

from cellvit import cli
from cellvit.cli.models import main, usage
from cellvit.encoders.base import ENCODERS
from cellvit.plugins.components import build
from cellvit.weights.catalogue import MODEL, by_name, entries

NAMES = [entry.name for entry in entries()]


@pytest.fixture(autouse=True)
def _empty_places(monkeypatch, tmp_path):
    monkeypatch.delenv("CELLVIT_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


def rows_of(text):
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_the_list_has_one_line_for_each(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert [row[0] for row in rows] == NAMES
    assert rows[0] == ["nano", "5.8 M", "38", "4", "0.25", "research use only", "no", "package, 11.6 MB"]
    sam_h = ["sam-h", "637.0 M", "9,817", "", "Apache-2.0", "yes", "not here"]
    assert rows[NAMES.index("sam-h")] == sam_h
    assert max(map(len, printed.splitlines())) <= 160
    assert "CELLVIT_WEIGHTS: not set" in printed
    assert "multiply-add counted as two" in printed


def test_the_list_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setattr("cellvit.cli.console.WIDTH", 80)
    assert main([]) == 0
    printed = capsys.readouterr().out
    tables = printed.split("GFLOP: one tile")[0]
    assert max(map(len, tables.splitlines())) <= 80
    first = [row[0] for row in rows_of(tables)]
    assert [cell for cell in first if cell in NAMES] == NAMES  # none is cut or folded
    nano = first.index("nano")
    assert first[nano + 1] == "research use only"
    assert [row[-1] for row in rows_of(tables)[nano : nano + 2]] == ["no", "package, 11.6 MB"]


def test_files_that_are_there_are_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"x" * 1500)
    (tmp_path / "uni.safetensors").write_bytes(b"x")
    assert main([]) == 0
    printed = capsys.readouterr().out
    files = {row[0]: row[-1] for row in rows_of(printed)}
    assert files["sam-b"] == "CELLVIT_WEIGHTS, 1.5 kB"
    assert files["uni"] == "CELLVIT_WEIGHTS, 1 B"
    assert files["sam-h"] == "not here"
    assert f"CELLVIT_WEIGHTS: {tmp_path}" in printed


def test_one_entry_is_shown_in_full(capsys):
    assert main(["sam_vit_h_4b8939.pth"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("sam-h: image encoder of SAM", "637,026,048", "Apache-2.0", "DOI 10.1109/ICCV51070.2023.00371"):
        assert text in printed
    assert "CELLVIT_WEIGHTS (not set): sam_vit_h_4b8939.pth" in printed
    assert 'path: "${CELLVIT_WEIGHTS}/sam_vit_h_4b8939.pth"' in printed
    assert main(["nano"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Other, Inflammatory, Epithelial, Spindle-shaped" in printed
    assert "under mixed licences" in printed


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_can_be_shown_and_is_json(name, capsys):
    assert main([name]) == 0
    shown = capsys.readouterr().out
    assert main([name, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["name"] == name
    for line in row["use"]:
        assert f"  {line}\n" in shown  # to be copied, so never folded
    assert row["looked_for"] or not row["hub"]


def test_json_lists_all_as_plain_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    (tmp_path / "vit256_small_dino.pth").write_bytes(b"123")
    assert main(["--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == NAMES
    vit = rows["vit-256"]
    assert (vit["licence"], vit["commercial"], vit["bytes"]) == ("Apache-2.0-Commons-Clause", False, 3)
    assert vit["present"] == vit["looked_for"][0] == str(tmp_path / "vit256_small_dino.pth")
    assert rows["nano"]["classes"][0] == "Background"
    assert rows["sam-b"]["present"] is rows["sam-b"]["place"] is rows["sam-b"]["bytes"] is None


@pytest.mark.parametrize("name", [entry.name for entry in entries() if entry.kind == MODEL])
def test_commands_to_use_a_model_are_commands(name):
    for line in usage(by_name(name)):
        program, verb, *arguments = shlex.split(line)
        assert program == "cellvit"
        module = import_module(cli.VERBS[verb].module)
        if hasattr(module, "build_parser"):
            assert module.build_parser().parse_args(arguments)
        else:
            with pytest.raises(Exception, match=r"CELLVIT_WEIGHTS/CellViT-.*\.pth"):  # read, and no such file
                module.main(arguments)


@pytest.mark.parametrize("name", ["vit-256", "sam-b", "uni"])
def test_lines_to_use_encoder_weights_are_a_configuration(name):
    config = yaml.safe_load("\n".join(usage(by_name(name))))
    encoder = config["model"]["encoder"]
    if isinstance(encoder, str):
        assert encoder in ENCODERS
        (callback,) = config["trainer"]["callbacks+"]
        module, _, cls = callback["class_path"].rpartition(".")
        assert getattr(import_module(module), cls)(**callback["init_args"]).path.startswith("${CELLVIT_WEIGHTS}/")
    else:
        assert encoder == {"class_path": name, "init_args": {"pretrained": True}}
        assert build(ENCODERS, encoder | {"init_args": {"pretrained": False, "arguments": {"depth": 4}}})


def test_a_file_beside_the_hub_is_used_as_such(monkeypatch, tmp_path):
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    (tmp_path / "uni.safetensors").write_bytes(b"x")
    config = yaml.safe_load("\n".join(usage(by_name("uni"))))
    assert config["model"]["encoder"]["init_args"] == {"weights": str(tmp_path / "uni.safetensors")}


def test_an_unknown_name_is_one_line_with_close_ones(capsys):
    assert cli.main(["models", "nan"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "did you mean 'nano'" in printed.err


def test_wrong_usage_and_help(capsys):
    assert main(["--wrong"]) == 2
    assert main(["nano", "uni"]) == 2
    capsys.readouterr()
    assert main(["--help"]) == 0
    assert "CELLVIT_WEIGHTS" in capsys.readouterr().out


def test_the_list_loads_nothing_heavy():
    code = (
        "import sys; from cellvit import cli; code = cli.main(['models']); print(code, "
        "[m for m in ('torch', 'lightning', 'timm', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "0 []"
