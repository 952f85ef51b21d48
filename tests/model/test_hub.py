"""Models on the hub: a local stand-in of its client takes what is pushed, and the cache gives it back at a commit."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError
from support.fake_hub import write_repository

from cellvit import CellViT, load_model
from cellvit.errors import ConfigError, UnknownPluginError, WeightsError
from cellvit.inference.fingerprints import weights_hash
from cellvit.model import hub as hub_module
from cellvit.model.hub import card_of, repository_of

REPO = "some-lab/tiny"
ABOUT = {"name": "tiny", "licence": "CC BY 4.0", "data": "CoNSeP and MoNuSeg 2018", "origin": "a drawing"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of the hub, offline; what is pushed arrives in it."""
    folder = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def api(cache, monkeypatch):
    """Stand in for the hub's client; return what it was asked for."""
    asked = []

    class Api:
        def __init__(self, token=None):
            asked.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            asked.append(("repo", repo_id, private, exist_ok))
            return SimpleNamespace(repo_id=repo_id)

        def create_branch(self, repo_id, *, branch, exist_ok):
            asked.append(("branch", repo_id, branch))

        def upload_folder(self, *, repo_id, folder_path, revision, create_pr, commit_message):
            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            asked.append(("files", sorted(files), create_pr, commit_message))
            commit = write_repository(cache, repo_id, files, branch=revision or "main")
            return SimpleNamespace(oid=commit)

    monkeypatch.setattr(hub_module, "HfApi", Api)
    return asked


def test_what_is_pushed_comes_back_and_its_commit_is_kept(small_settings, cache, api):
    model = CellViT(**small_settings, about=ABOUT).eval()
    first = model.push_to_hub(REPO, private=True, token="secret", commit_message="first")
    assert api[:2] == [("token", "secret"), ("repo", REPO, True, True)]
    assert api[2] == ("files", ["README.md", "config.json", "model.safetensors"], None, "first")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    second = model.push_to_hub(REPO)
    pinned, newest = CellViT.from_pretrained(REPO, revision=first), load_model(REPO, device="cpu")
    assert pinned.about["hub"] == f"{REPO}@{first}"
    assert newest.about["hub"] == f"{REPO}@{second}"
    assert newest.settings["about"] == {**ABOUT, "hub": newest.about["hub"]}
    assert torch.equal(next(newest.parameters()), next(model.parameters()))
    assert not torch.equal(next(pinned.parameters()), next(model.parameters()))
    assert weights_hash(newest) == weights_hash(model)  # where a model was fetched changes no nucleus
    named = CellViT.from_pretrained(f"hf-hub:{REPO}@{first}", local_files_only=True)
    assert torch.equal(next(named.parameters()), next(pinned.parameters()))
    model.push_to_hub(REPO, branch="next", create_pr=True, dtype=torch.float16)
    assert ("branch", REPO, "next") in api
    assert CellViT.from_pretrained(REPO, revision="next").about["name"] == "tiny"


def test_the_card_says_what_the_hub_lists_a_model_by(small_model):
    settings = {**small_model.settings, "about": {**ABOUT, "hub": "a/b@c"}}
    _, head, text = card_of(settings, REPO).split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "library_name": "cellvit",
        "pipeline_tag": "image-segmentation",
        "tags": list(hub_module.TAGS),
        "datasets": ["consep", "monuseg"],
    }
    assert f'CellViT.from_pretrained("{REPO}")' in text
    assert "* origin: a drawing" in text
    assert "a/b@c" not in text
    other = yaml.safe_load(
        card_of({**settings, "about": {"licence": "research use only: mixed"}}, REPO).split("---\n")[1]
    )
    assert (other["license"], other["license_name"]) == ("other", "research use only")
    bare = yaml.safe_load(card_of({**settings, "about": {}}, REPO).split("---\n")[1])
    assert (bare["license_name"], "datasets" in bare) == ("not stated", False)


def test_a_configuration_of_the_hub_names_no_foreign_module(small_settings, cache, api, tmp_path, monkeypatch):
    CellViT(**small_settings).push_to_hub(REPO)
    (folder,) = cache.glob("models--*/snapshots/*")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(files["config.json"])
    config["model"]["postprocessor"] = {"class_path": "stranger_of_the_hub.Own", "init_args": {}}
    files["config.json"] = json.dumps(config).encode()
    write_repository(cache, REPO, files)
    marked = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
    own = "from cellvit.postprocess.hv import HVPostprocessor\nclass Own(HVPostprocessor): ...\n"
    (tmp_path / "stranger_of_the_hub.py").write_text(marked + own)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=r"pass trust=\['stranger_of_the_hub'\]"):
        CellViT.from_pretrained(REPO)
    assert not (tmp_path / "stranger_of_the_hub.ran").exists()
    assert CellViT.from_pretrained(REPO, trust=["stranger_of_the_hub"]).postprocessor is not None
    del sys.modules["stranger_of_the_hub"]


def test_what_is_not_in_the_cache_of_an_offline_machine_is_said(cache):
    with pytest.raises(
        WeightsError, match=r"config\.json of hub repository 'lab/none' .*offline.* 'hf download lab/none"
    ):
        CellViT.from_pretrained("lab/none")
    with pytest.raises(WeightsError, match=r"no path here, so the hub was asked"):
        CellViT.from_pretrained("lab/none", revision="abc")
    write_repository(cache, "lab/other", {"config.json": b"{}"})
    with pytest.raises(WeightsError, match=r"model\.safetensors of hub repository 'lab/other'"):
        CellViT.from_pretrained("lab/other")
    write_repository(cache, "lab/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    with pytest.raises(WeightsError, match="not a cellvit configuration"):
        CellViT.from_pretrained("lab/bert")


def test_names_that_are_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/mine").mkdir(parents=True)
    for name in ("nano", "runs/mine", "runs/mistyped", "runs/best.ckpt", "./a/b", "a/b/c", Path("a/b")):
        assert repository_of(name, None) is None
    assert repository_of("lab/model", "v1") == ("lab/model", "v1")
    with pytest.raises(ConfigError, match="'nano' is a model of the package; leave revision out"):
        CellViT.from_pretrained("nano", revision="main")
    with pytest.raises(ConfigError, match="no repository 'owner/name' of the hub"):
        CellViT.from_pretrained("runs/mine", revision="main")
    with pytest.raises(UnknownPluginError, match=r"no model 'runs/best\.ckpt'"):
        CellViT.from_pretrained("runs/best.ckpt")


def test_what_the_hub_refuses_is_explained(small_model, api, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(hub_module.HfApi, "create_repo", refuse)
    request = httpx.Request("POST", "https://hub.test")
    error = HfHubHTTPError("403 Forbidden", response=httpx.Response(403, request=request))
    with pytest.raises(WeightsError, match=r"'some-lab/tiny' cannot be written \(403.* 'hf auth login"):
        small_model.push_to_hub(REPO)
    error = ConnectionError("no route")
    with pytest.raises(WeightsError, match=r"the hub cannot be reached \(no route\)"):
        small_model.push_to_hub(REPO)
    error = hub_module.HFValidationError("bad name")
    with pytest.raises(ConfigError, match="which is owner/name"):
        small_model.push_to_hub("a b")
