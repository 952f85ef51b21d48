import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from torch.utils.flop_counter import FlopCounterMode

from cellvit import CellViT
from cellvit.classes import PANNUKE
from cellvit.encoders.base import ENCODERS
from cellvit.encoders.foundation import FOUNDATION
from cellvit.errors import UnknownPluginError
from cellvit.model.checkpoint import BUNDLED, bundled_models
from cellvit.weights import licences
from cellvit.weights.catalogue import (
    ENCODER_WEIGHTS,
    MODEL,
    announce_file,
    announce_hub,
    by_file,
    by_hub,
    by_name,
    entries,
)
from cellvit.weights.licences import LICENCES, LicenceNotice, find_licence
from cellvit.weights.locate import WEIGHTS_VARIABLE, candidate_paths, find_weights, hub_cache, weights_folder

PAGE = Path(__file__).parents[2] / "docs/pages/models/index.md"
HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
BY_NAME = {entry.name: entry for entry in entries()}
TINY = {"class_path": "hybrid", "init_args": {"widths": [4, 4, 4], "embed_dim": 16, "depth": 1, "num_heads": 2}}
TINY_DECODER = {"class_path": "unetr", "init_args": {"widths": [4, 4, 4, 4], "image_width": 3, "shared_levels": 3}}


@pytest.fixture(autouse=True)
def _empty_places(monkeypatch, tmp_path):
    """No variables of the user's, and a hub cache with nothing in it."""
    for variable in (WEIGHTS_VARIABLE, *HUB_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))


def fill_cache(cache, repository, revision, *files, main=True):
    """Lay out files as the hub's client does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / revision).mkdir(parents=True)
    if main:
        (folder / "refs" / "main").write_text(revision)
    for file in files:
        (folder / "snapshots" / revision / file).write_bytes(b"12345")
    return folder / "snapshots" / revision


# the data


def test_every_bundled_model_is_listed_as_its_configuration_says():
    bundled = [entry for entry in entries() if entry.folder is not None]
    assert [entry.name for entry in bundled] == bundled_models()
    for entry in bundled:
        settings = json.loads((BUNDLED / entry.name / "config.json").read_text())["model"]
        assert entry.classes == tuple(settings["class_names"])
        assert entry.mpp == settings["mpp"]
        assert entry.encoder == settings["encoder"]["class_path"]
        assert settings["about"]["licence"].startswith(entry.licence.title)
        assert entry.gflop, f"count {entry.name} as the test below does and enter it in cellvit/catalogue.json"
        assert find_weights(entry).path == BUNDLED / entry.name / "model.safetensors"


def test_names_and_files_are_unique():
    names = [entry.name.casefold() for entry in entries()]
    assert len(set(names)) == len(names)
    published = [entry for entry in entries() if entry.folder is None]
    sources = [source for entry in published for source in ([entry.hub] if entry.hub else entry.files)]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry):
    assert entry.encoder in ENCODERS
    assert entry.files
    assert entry.source
    if entry.kind == MODEL:
        assert len(entry.classes) > 1
        assert entry.mpp
    else:
        assert entry.kind == ENCODER_WEIGHTS
        assert entry.encoder == entry.name  # a configuration says `encoder: NAME`
        assert not entry.classes
    if entry.folder is None:
        assert LICENCES[entry.licence.id] == entry.licence
        assert entry.citation


def test_released_models_find_the_types_of_pannuke():
    released = [entry for entry in entries() if entry.name.startswith("CellViT-")]
    assert len(released) == 6
    for entry in released:
        assert entry.classes == PANNUKE.names
        assert entry.mpp == {"x40": 0.25, "x20": 0.5}[entry.name.split("-AMP")[0].rpartition("-")[2]]
        assert not entry.licence.commercial


def test_foundation_models_agree_with_their_encoders():
    listed = {entry.name: entry for entry in entries() if entry.hub}
    assert set(listed) == set(FOUNDATION)
    for name, model in FOUNDATION.items():
        assert listed[name].hub == model.repo
        assert listed[name].licence == find_licence(model.licence)
        assert round(listed[name].parameters / 1e6) == model.parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in entries() if entry.kind == ENCODER_WEIGHTS])
def test_sizes_and_costs_are_as_counted(name):
    with torch.device("meta"):
        model = CellViT(name, 6, 19).eval()
    check_counts(BY_NAME[name], model, model.encoder)
    for entry in entries():
        if entry.kind == MODEL and entry.encoder == name:
            check_counts(entry, model, model)


@pytest.mark.slow
def test_sizes_and_costs_of_bundled_models_are_as_counted():
    for name in bundled_models():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LicenceNotice)
            model = CellViT.from_pretrained(name)
        check_counts(BY_NAME[name], model.to("meta"), model)


def check_counts(entry, model, counted):
    """Compare with a run on the meta device, where nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.empty(1, 3, 1024, 1024, device="meta"))
    assert entry.parameters == sum(p.numel() for p in counted.parameters())
    assert entry.gflop == pytest.approx(counter.get_total_flops() / 1e9, abs=0.06)


def test_the_page_shows_the_catalogue():
    """Paste what the failure prints between the markers of the page."""
    head = "| name | parameters | GFLOP | types | µm/px | licence of the weights | commercial use |"
    lines = [head, "|---|---|---|---|---|---|---|", *map(page_row, entries())]
    text = PAGE.read_text(encoding="utf-8")
    shown = text.split("<!-- catalogue -->\n")[1].split("<!-- end of catalogue -->")[0]
    assert shown.strip() == "\n".join(lines)


def page_row(entry):
    cells = (
        f"`{entry.name}`",
        f"{entry.parameters / 1e6:,.1f} M",
        f"{entry.gflop:,.0f}",
        str(len(entry.classes) - 1) if entry.classes else "",
        "" if entry.mpp is None else f"{entry.mpp:g}",
        entry.licence.title,
        "yes" if entry.licence.commercial else "no",
    )
    return f"| {' | '.join(cells)} |"


# finding entries


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nano", "nano"),
        ("SAM-H", "sam-h"),
        ("cellvit-256-x40", "CellViT-256-x40"),
        ("CellViT-256-x40.pth", "CellViT-256-x40"),
        ("vit256_small_dino", "vit-256"),
        ("mahmoodlab/uni2-h", "uni2-h"),
    ],
)
def test_an_entry_is_found_by_name_file_or_repository(name, found):
    assert by_name(name).name == found


def test_an_unknown_name_shows_close_ones():
    with pytest.raises(UnknownPluginError, match=r"did you mean 'virchow2'.*known: nano, CellViT"):
        by_name("virchow")
    with pytest.raises(UnknownPluginError) as raised:
        by_name("model.safetensors")  # the name of many files says nothing
    assert "did you mean" not in str(raised.value)


def test_a_model_folder_is_an_entry_too(tmp_path):
    folder = tmp_path / "mine"
    model = CellViT(TINY, 3, decoder=TINY_DECODER, mpp=0.5, about={"licence": "CC BY-NC 4.0", "cite": "Me 2025"})
    model.save_pretrained(folder)
    entry = by_name(str(folder))
    assert (entry.name, entry.kind, entry.encoder, entry.mpp) == ("mine", MODEL, "hybrid", 0.5)
    assert entry.parameters == sum(p.numel() for p in model.parameters())
    assert (entry.licence.id, entry.gflop, entry.citation) == ("CC-BY-NC-4.0", None, "Me 2025")
    found = find_weights(entry)
    assert (found.place, found.path) == ("folder", folder / "model.safetensors")
    assert found.size == found.path.stat().st_size


def test_a_folder_without_a_stated_licence_is_not_called_free(tmp_path):
    CellViT(TINY, 3, decoder=TINY_DECODER).save_pretrained(tmp_path)
    licence = by_name(str(tmp_path)).licence
    assert (licence.title, licence.commercial) == ("not stated", False)


@pytest.mark.parametrize("config", ["{", "[]", '{"model": {}}', '{"model": {"encoder": 1}, "weights": {"file": "x"}}'])
def test_a_broken_folder_is_one_error(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnknownPluginError, match="is no cellvit model folder"):
        by_name(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/w/vit256_small_dino.pth", "vit-256"),
        ("SAM_VIT_B_01ec64.pth", "sam-b"),
        ("/w/CellViT-SAM-H-x40-AMP.pth", "CellViT-SAM-H-x40-AMP"),
        ("/w/uni.safetensors", "uni"),
        ("/w/UNI2-h.bin", "uni2-h"),
        ("/c/models--MahmoodLab--UNI/snapshots/abc/pytorch_model.bin", "uni"),
        ("/w/Virchow2/model.safetensors", "virchow2"),
        ("/w/h0-mini/pytorch_model.bin", "h0-mini"),
        ("/w/pytorch_model.bin", None),
        ("/w/UNI/model/pytorch_model.bin", None),
        ("/c/models--timm--vit/snapshots/abc/model.safetensors", None),
        ("/c/models--MahmoodLab--UNI/snapshots/abc/notes.txt", None),
        ("/w/uni.ckpt", None),
        ("/w/sam_vit_b_01ec64.pth.part", None),
    ],
)
def test_a_file_is_known_by_its_name(path, found):
    entry = by_file(path)
    assert (entry and entry.name) == found


@pytest.mark.parametrize("entry", [e for e in entries() if e.folder is None], ids=lambda entry: entry.name)
def test_every_place_a_file_is_looked_for_says_whose_it_is(entry, monkeypatch):
    monkeypatch.setenv(WEIGHTS_VARIABLE, "/w")
    assert {by_file(path) for _, path in candidate_paths(entry)} == {entry}


def test_a_repository_is_known_with_and_without_prefix():
    assert by_hub("owkin/phikon-v2").name == by_hub("hf-hub:Owkin/Phikon-v2").name == "phikon-v2"
    assert by_hub("timm/resnet18.a1_in1k") is None
    assert by_hub("") is None


def test_weights_are_announced_by_file_and_repository(monkeypatch):
    monkeypatch.setattr(licences, "_announced", set())
    for variable in (licences.ACCEPT, *licences.RANKS):
        monkeypatch.delenv(variable, raising=False)
    with pytest.warns(LicenceNotice, match=r"licence of vit-256: Apache-2\.0 with Commons Clause; not for commercial"):
        announce_file("/w/vit256_small_dino.pth")
    with pytest.warns(LicenceNotice, match=r"licence of uni: CC BY-NC-ND 4\.0"):
        announce_hub("MahmoodLab/UNI")
    announce_file("/w/uni.safetensors")  # said already; warnings are errors here
    announce_file("/w/sam_vit_h_4b8939.pth")  # allows commercial use
    announce_file("/w/mine.pth")
    announce_hub("timm/resnet18.a1_in1k")


# finding files


def test_nothing_is_there_at_first():
    assert weights_folder() is None
    assert [entry.name for entry in entries() if find_weights(entry)] == bundled_models()


def test_the_folder_of_the_variable_is_searched(monkeypatch, tmp_path):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    files = {
        "sam-h": "sam_vit_h_4b8939.pth",
        "CellViT-256-x20": "CellViT-256-x20.pth",
        "uni": "uni.bin",
        "h0-mini": "H0-mini/model.safetensors",
    }
    for file in files.values():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"123")
    (tmp_path / "sam_vit_b_01ec64.pth").mkdir()  # no file
    found = {entry.name: find_weights(entry) for entry in entries() if entry.folder is None}
    assert {name for name, file in found.items() if file} == set(files)
    for name, file in files.items():
        assert (found[name].path, found[name].place, found[name].size) == (tmp_path / file, WEIGHTS_VARIABLE, 3)


def test_the_cache_of_the_hub_is_searched_as_its_client_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    fill_cache(tmp_path, "MahmoodLab/UNI", "a" * 40, "pytorch_model.bin")
    fill_cache(tmp_path, "MahmoodLab/UNI", "b" * 40, "pytorch_model.bin", "model.safetensors")
    fill_cache(tmp_path, "owkin/phikon", "c" * 40, "config.json")
    for name in ("uni", "phikon", "virchow2"):
        entry = BY_NAME[name]
        theirs = [try_to_load_from_cache(entry.hub, file, cache_dir=tmp_path) for file in entry.files]
        theirs = [path for path in theirs if isinstance(path, str)]
        ours = find_weights(entry)
        assert (str(ours.path) if ours else None) == (theirs[0] if theirs else None)
    assert find_weights(BY_NAME["uni"]).place == "hub cache"
    assert find_weights(BY_NAME["uni"]).path.parent.name == "b" * 40


def test_a_pinned_revision_in_the_cache_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = fill_cache(tmp_path, "owkin/phikon", "c" * 40, "model.safetensors", main=False)
    assert find_weights(BY_NAME["phikon"]).path == snapshot / "model.safetensors"


def test_the_users_folder_goes_before_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", "owkin/phikon", "c" * 40, "model.safetensors")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    (tmp_path / "phikon.pt").write_bytes(b"")
    assert find_weights(BY_NAME["phikon"]).path == tmp_path / "phikon.pt"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "~/home"},
        {"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"},
        {"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c", "XDG_CACHE_HOME": "/d"},
        {"XDG_CACHE_HOME": "/d"},
    ],
)
def test_the_cache_is_where_the_client_of_the_hub_keeps_it(variables, monkeypatch):
    monkeypatch.delenv("HF_HOME")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(hub_cache()) == done.stdout.strip()
