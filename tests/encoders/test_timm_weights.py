"""Weights of timm encoders: the hub's cache, local files, pins, and files that are not what they should be."""

import json
import socket

import huggingface_hub.errors
import pytest
import timm
import torch
from support.fake_hub import configuration, digest, pickled, safetensors, write_repository
from support.tiny import TIMM_UNETR, spec

from cellvit import CellViT
from cellvit.encoders import ENCODERS, TimmEncoder, load_encoder_weights
from cellvit.errors import ConfigError, WeightsError
from cellvit.plugins.components import build
from cellvit.weights import hub as weight_files
from cellvit.weights.hub import hub_name

REPO = "timm/test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache and no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


@pytest.fixture
def published():
    """The whole network as timm publishes it, classifier and all."""
    torch.manual_seed(1)
    return timm.create_model("test_vit").state_dict()


def assert_filled(encoder, state):
    own = encoder.net.state_dict()
    assert set(state) - set(own) == {"head.weight", "head.bias"}
    for name, value in own.items():
        assert torch.equal(value, state[name]), name


def test_hub_weights_come_from_the_cache_and_are_pinned(cache, published):
    body = safetensors(published)
    commit = write_repository(cache, REPO, {"model.safetensors": body, "config.json": b"{}"})
    encoder = TimmEncoder(model="test_vit", pretrained=True)
    assert_filled(encoder, published)
    assert encoder.init_args == {
        "model": "test_vit.r160_in1k",
        "pretrained": True,
        "revision": commit,
        "sha256": digest(body),
    }
    assert_filled(TimmEncoder(**encoder.init_args), published)


def test_a_branch_is_followed_and_a_pinned_commit_stays(cache, published):
    old = write_repository(cache, REPO, {"pytorch_model.bin": pickled(published)})
    other = {name: value + 1 for name, value in published.items()}
    new = write_repository(cache, REPO, {"pytorch_model.bin": pickled(other)})
    tagged = write_repository(cache, REPO, {"pytorch_model.bin": pickled(published)}, branch="v1")
    assert tagged == old != new
    for revision, state, commit in (
        (None, other, new),
        ("main", other, new),
        ("v1", published, old),
        (old, published, old),
    ):
        encoder = TimmEncoder(model="test_vit", pretrained=True, revision=revision)
        assert_filled(encoder, state)
        assert encoder.init_args["revision"] == commit


def test_safetensors_are_preferred(cache, published):
    garbled = {name: value + 1 for name, value in published.items()}
    write_repository(cache, REPO, {"pytorch_model.bin": pickled(garbled), "model.safetensors": safetensors(published)})
    assert_filled(TimmEncoder(model="test_vit", pretrained=True), published)


def test_a_saved_model_is_built_again_without_hub_file_or_configuration(cache, published, tmp_path, monkeypatch):
    model_args = {"init_values": 0.5, "num_classes": 0, "global_pool": "", "depth": 5}
    torch.manual_seed(2)
    net = timm.create_model("test_vit", num_classes=0, init_values=0.5, depth=5).eval()
    files = {
        "model.safetensors": safetensors(net.state_dict()),
        "config.json": configuration(
            architecture="test_vit",
            model_args=model_args,
            pretrained_cfg={"mean": [0.7, 0.6, 0.5], "std": [0.2, 0.3, 0.4]},
        ),
    }
    commit = write_repository(cache, "acme/tissue-vit", files)
    spec = {"class_path": "timm", "init_args": {"model": "hf-hub:acme/tissue-vit", "pretrained": True}}
    model = CellViT(spec, num_nuclei_classes=3, decoder=TIMM_UNETR).eval()
    assert model.settings["encoder"]["init_args"] == {
        "model": "hf-hub:acme/tissue-vit",
        "pretrained": True,
        "architecture": "test_vit",
        "arguments": model_args,
        "statistics": [[0.7, 0.6, 0.5], [0.2, 0.3, 0.4]],
        "revision": commit,
        "sha256": digest(files["model.safetensors"]),
    }
    assert (model.settings["mean"], model.settings["std"]) == ([0.7, 0.6, 0.5], [0.2, 0.3, 0.4])
    image = torch.rand(1, 3, 160, 160)
    with torch.inference_mode():
        maps = net.forward_intermediates(image, indices=[0, 1, 2, 4], norm=False, intermediates_only=True)
        taken = model.encoder(image).features
        before = model(image)
    assert model.encoder.taps == (1, 2, 3, 5)
    torch.testing.assert_close(taken, maps)

    model.save_pretrained(tmp_path / "saved")
    content = {"state_dict": model.state_dict(), "hyper_parameters": model.settings}
    torch.save(content | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    without_network(monkeypatch, tmp_path)
    for load, path in (
        (CellViT.from_pretrained, "saved"),
        (CellViT.from_pretrained, "last.ckpt"),
        (CellViT.load_from_checkpoint, "last.ckpt"),
    ):
        again = load(tmp_path / path).eval()
        with torch.inference_mode():
            torch.testing.assert_close(again(image), before)
        assert again.settings["encoder"]["init_args"]["revision"] == commit
    assert json.loads((tmp_path / "saved/config.json").read_text())["model"]["mean"] == [0.7, 0.6, 0.5]


def without_network(monkeypatch, tmp_path):
    """Take the cache away, and fail where a network is asked."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def download(*names, local_files_only=False, **more):
        assert local_files_only, names
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(weight_files, "hf_hub_download", download)
    monkeypatch.setattr(socket.socket, "connect", lambda *where: pytest.fail(f"network: {where}"))


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_that_names_a_hub_repository_does_not_call_it(tmp_path, monkeypatch, inside):
    CellViT(spec("vit-256", embed_dim=12, depth=4, num_heads=2), decoder=TIMM_UNETR).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    encoder = spec("timm", model="hf-hub:acme/tissue-vit", pretrained=True)
    config["model"]["encoder"] = spec("lora", encoder=encoder) if inside else encoder
    (tmp_path / "config.json").write_text(json.dumps(config))
    without_network(monkeypatch, tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json of hub repository 'acme/tissue-vit' .* asks no network"):
        CellViT.from_pretrained(tmp_path)


def test_pins_of_an_encoder_inside_another_are_saved_too(cache, published):
    pytest.importorskip("peft")
    commit = write_repository(cache, REPO, {"model.safetensors": safetensors(published)})
    inside = {"class_path": "timm", "init_args": {"model": "test_vit", "pretrained": True}}
    encoder = build(ENCODERS, {"class_path": "lora", "init_args": {"encoder": inside}})
    assert encoder.init_args["encoder"]["init_args"]["revision"] == commit


def test_arguments_in_the_configuration_go_before_those_of_the_hub(cache):
    files = {"config.json": configuration(architecture="test_vit", model_args={"depth": 5}, mean=[0.1, 0.2, 0.3])}
    write_repository(cache, "acme/tissue-vit", files)
    encoder = TimmEncoder(model="hf_hub:acme/tissue-vit@main", arguments={"depth": 7})
    assert len(encoder.net.blocks) == 7
    assert encoder.pixel_mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_local_files_are_read_and_pinned(tmp_path, published, suffix, monkeypatch):
    body = safetensors(published) if suffix == ".safetensors" else pickled({"state_dict": published, "epoch": 3})
    (tmp_path / f"own{suffix}").write_bytes(body)
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    encoder = TimmEncoder(model="test_vit", weights=f"${{WEIGHTS}}/own{suffix}", sha256=digest(body).upper())
    assert_filled(encoder, published)
    assert encoder.init_args["sha256"] == digest(body)


def test_names_of_earlier_publications_are_translated_by_timm(tmp_path):
    """ConvNeXt's authors publish other names than timm's."""
    net = timm.create_model("test_convnext")
    rules = [("stem.", "downsample_layers.0."), (".blocks.", "."), ("conv_dw.", "dwconv."), ("mlp.fc1.", "pwconv1."),
             ("mlp.fc2.", "pwconv2."), ("head.fc.", "head."), ("head.norm.", "norm.")]  # fmt: skip
    state = {}
    for name, value in net.state_dict().items():
        for new, old in rules:
            name = name.replace(new, old)
        if ".downsample." in name:
            stage, _, rest = name.removeprefix("stages.").partition(".downsample.")
            name = f"downsample_layers.{stage}.{rest}"
        state[name] = value
    (tmp_path / "convnext.pth").write_bytes(pickled({"model": state}))
    encoder = TimmEncoder(model="test_convnext", weights=str(tmp_path / "convnext.pth"))
    for name, value in encoder.net.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


def test_names_of_earlier_versions_of_timm_are_translated(tmp_path):
    """Swin's downsampling has moved to the stage behind: names stayed, shapes did not."""
    small = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    net = timm.create_model("swin_tiny_patch4_window7_224", **small)
    state = {}
    for name, value in net.state_dict().items():
        stage, at, rest = name.removeprefix("layers.").partition(".downsample.")
        state[f"layers.{int(stage) - 1}{at}{rest}" if at else name.replace("head.fc.", "head.")] = value
    (tmp_path / "swin.pth").write_bytes(pickled({"model": state}))
    encoder = TimmEncoder(model="swin_tiny_patch4_window7_224", weights=str(tmp_path / "swin.pth"), arguments=small)
    for name, value in encoder.net.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


def refused(tmp_path, name, body, *, error=WeightsError, model="test_vit", **more):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(error) as caught:
        TimmEncoder(model=model, weights=str(tmp_path / name), **more)
    return str(caught.value)


def test_another_digest_is_refused_with_both(tmp_path, published):
    message = refused(tmp_path, "own.pth", pickled(published), sha256="ab" * 32)
    assert digest((tmp_path / "own.pth").read_bytes()) in message
    assert "ab" * 32 in message


def test_another_digest_in_the_cache_is_refused_too(cache, published):
    write_repository(cache, REPO, {"model.safetensors": safetensors(published)})
    with pytest.raises(WeightsError, match="cd" * 32):
        TimmEncoder(model="test_vit", pretrained=True, sha256="cd" * 32)


@pytest.mark.parametrize("name", ["own.safetensors", "own.pth", "own.bin"])
def test_truncated_files_are_refused(tmp_path, published, name):
    body = safetensors(published) if name.endswith("safetensors") else pickled(published)
    message = refused(tmp_path, name, body[: len(body) // 2])
    assert name in message
    assert "damaged" in message


def test_a_revision_in_the_name_is_pinned_once_and_the_spec_that_is_saved_builds_the_same(cache, tmp_path):
    net = timm.create_model("test_vit", num_classes=0)
    files = {
        "model.safetensors": safetensors(net.state_dict()),
        "config.json": configuration(architecture="test_vit", pretrained_cfg={"mean": [0.1, 0.2, 0.3]}),
    }
    commit = write_repository(cache, "acme/tissue-vit", files)
    first = TimmEncoder(model="hf-hub:acme/tissue-vit@main", pretrained=True)
    assert first.init_args["model"] == "hf-hub:acme/tissue-vit"
    assert first.init_args["revision"] == commit
    again = TimmEncoder(**first.init_args)
    assert list(again.pixel_mean) == list(first.pixel_mean) == [0.1, 0.2, 0.3]
    assert again.init_args == first.init_args
    CellViT(first, num_nuclei_classes=3, decoder=TIMM_UNETR).save_pretrained(tmp_path / "m")
    assert CellViT.from_pretrained(tmp_path / "m").settings["mean"] == [0.1, 0.2, 0.3]


def test_files_that_are_no_weights_are_refused(tmp_path, published):
    assert ".safetensors" in refused(tmp_path, "image.png", b"\x89PNG")
    assert "is not a checkpoint or is damaged" in refused(tmp_path, "image.pth", b"\x89PNG")
    assert "damaged" in refused(tmp_path, "image.safetensors", b"\x89PNG" * 9)
    assert "safely" in refused(tmp_path, "code.pth", pickled({"a": refused}))
    with pytest.raises(WeightsError, match=r"nowhere\.pth.*no such file"):
        TimmEncoder(model="test_vit", weights="nowhere.pth")
    with pytest.raises(ConfigError, match="UNSET_FOLDER"):
        TimmEncoder(model="test_vit", weights="${UNSET_FOLDER}/own.pth")


def test_weights_of_another_architecture_are_refused_by_tensor(tmp_path, published):
    other = timm.create_model("test_convnext").state_dict()
    message = refused(tmp_path, "a.pth", pickled(other))
    assert "missing: net.cls_token" in message
    assert "unused: net.stem.0.weight" in message
    deeper = timm.create_model("test_vit", depth=7).state_dict()
    assert "unused: net.blocks.6.norm1.weight" in refused(tmp_path, "b.pth", pickled(deeper))
    lacking = {name: value for name, value in published.items() if name != "blocks.2.mlp.fc1.bias"}
    assert "missing: net.blocks.2.mlp.fc1.bias" in refused(tmp_path, "c.pth", pickled(lacking))
    broken = pickled({"patch_embed.proj.weight": torch.zeros(3)})  # breaks timm's own translation
    assert "net.patch_embed.proj.weight (3,)" in refused(tmp_path, "d.pth", broken)


@pytest.mark.parametrize(
    ("argument", "value", "tensor"),
    [("patch_size", 8, "patch_embed.proj.weight (64, 3, 8, 8)"), ("img_size", 80, "pos_embed (1, 26, 64)")],
)
def test_nothing_is_resized_to_fit(tmp_path, argument, value, tensor):
    """Timm would, without a word."""
    other = timm.create_model("test_vit", **{argument: value}).state_dict()
    message = refused(tmp_path, "own.pth", pickled(other))
    assert "of another shape" in message
    assert f"net.{tensor}" in message


def test_the_callback_of_training_reads_the_same_files(tmp_path, published):
    (tmp_path / "own.pth").write_bytes(pickled(published))
    encoder = TimmEncoder(model="test_vit")
    load_encoder_weights(encoder, tmp_path / "own.pth")
    assert_filled(encoder, published)


def test_what_is_not_in_the_cache_is_named_with_what_to_do(cache, published):
    with pytest.raises(WeightsError) as caught:
        TimmEncoder(model="test_vit", pretrained=True)
    for part in (REPO, "model.safetensors", "hf auth login", "weights: PATH", f"hf download {REPO}"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match=r"config\.json of hub repository 'acme/none'"):
        TimmEncoder(model="hf-hub:acme/none")
    write_repository(cache, REPO, {"model.safetensors": safetensors(published)})
    with pytest.raises(WeightsError, match="at revision 'v9'"):
        TimmEncoder(model="test_vit", pretrained=True, revision="v9")


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="exclude each other"):
        TimmEncoder(model="test_vit", pretrained=True, weights="a.pth")
    with pytest.raises(ConfigError, match="another revision"):
        hub_name("hf-hub:a/b@one", revision="two")
    with pytest.raises(WeightsError, match="names no weights of model 'test_vit4'"):
        TimmEncoder(model="test_vit4", pretrained=True)
    with pytest.raises(ConfigError, match="owner/name"):
        TimmEncoder(model="hf-hub:not a name!", pretrained=True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "cannot be read"),
        (b"[1]", "cannot be read"),
        (b"[" * 9999, "cannot be read.*recursion limit"),
        (configuration(model_type="vit", hidden_size=768), "no timm model .keys: hidden_size, model_type"),
        (configuration(architecture="test_vit", model_args=[1]), "no timm model"),
    ],
)
def test_configurations_that_are_not_of_timm_are_refused(cache, body, message):
    write_repository(cache, "acme/tissue-vit", {"config.json": body})
    with pytest.raises(WeightsError, match=message):
        TimmEncoder(model="hf-hub:acme/tissue-vit")


def test_a_configuration_cannot_load_files_of_its_own(cache):
    body = configuration(architecture="test_vit", model_args={"checkpoint_path": "/tmp/evil.pth"})
    write_repository(cache, "acme/tissue-vit", {"config.json": body})
    with pytest.raises(ConfigError, match="checkpoint_path"):
        TimmEncoder(model="hf-hub:acme/tissue-vit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "GatedRepoError",
            r"is gated: accept its terms at https://huggingface\.co/timm/test_vit\.r160_in1k.*hf auth login",
        ),
        ("RevisionNotFoundError", "correct revision"),
        ("RepositoryNotFoundError", "private"),
        ("EntryNotFoundError", r"there is no model\.safetensors or pytorch_model\.bin of hub repository"),
    ],
)
def test_what_the_hub_refuses_is_explained(monkeypatch, name, message):
    kind = getattr(huggingface_hub.errors, name)

    def refuse(*args, **kwargs):
        raise kind.__new__(kind)  # their arguments differ between versions of the library

    monkeypatch.setattr(weight_files, "hf_hub_download", refuse)
    with pytest.raises(WeightsError, match=message):
        TimmEncoder(model="test_vit", pretrained=True)


def test_a_broken_connection_is_explained(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("connection reset")

    monkeypatch.setattr(weight_files, "hf_hub_download", refuse)
    with pytest.raises(WeightsError, match=r"cannot be fetched \(connection reset\)"):
        TimmEncoder(model="test_vit", pretrained=True)


def test_hf_home_is_respected(tmp_path, published, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_repository(tmp_path / "home/hub", REPO, {"model.safetensors": safetensors(published)})
    assert_filled(TimmEncoder(model="test_vit", pretrained=True), published)
