import functools
import hashlib
import json
import math
import pickle
import re
import struct
import warnings

import pytest
import torch
from support.tiny import spec
from torch.utils.flop_counter import FlopCounterMode

from cellvit import CellViT
from cellvit.encoders import HybridEncoder
from cellvit.encoders.base import ENCODERS
from cellvit.errors import ConfigError, OutputError, UnknownPluginError, WeightsError
from cellvit.model.checkpoint import BUNDLED, bundled_models
from cellvit.weights.catalogue import by_name
from cellvit.weights.licences import LicenceNotice


@pytest.fixture
def saved(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def outputs(model, image):
    with torch.inference_mode():
        return model(image)


def test_round_trip_is_exact_and_carries_everything(small_settings, tmp_path):
    about = {"licence": "research use only", "origin": "a test"}
    names = ["Background", "Round", "Längs"]
    model = CellViT(**small_settings, class_names=names, mpp=0.5, mean=(0.1, 0.2, 0.3), about=about).eval()
    model.save_pretrained(tmp_path / "m")
    again = CellViT.from_pretrained(tmp_path / "m")
    assert not again.training
    assert again.classes == model.classes
    assert again.classes.names == tuple(names)
    assert (again.mpp, again.about) == (0.5, about)
    image = torch.rand(1, 3, 32, 48)
    for name, value in outputs(model, image).items():
        assert torch.equal(value, outputs(again, image)[name])
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["model"]["encoder"]["class_path"] == "hybrid"
    assert config["model"]["about"] == about
    assert set(config["weights"]) == {"file", "sha256", "dtype"}


def test_float16_halves_the_file_and_loads_as_float32(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "full")
    small_model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    full, half = ((tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half"))
    assert half < 0.65 * full
    again = CellViT.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(outputs(again, image), outputs(small_model, image), rtol=0.05, atol=0.05)


def test_unknown_name_lists_bundled_models():
    with pytest.raises(UnknownPluginError, match="bundled"):
        CellViT.from_pretrained("no-such-model")


def test_folder_that_is_not_a_model(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json"):
        CellViT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"format": "cellvit", "schema": 1, "model": {}}', "[" * 100_000, '{"model": ' * 999, "\0"],
)
def test_damaged_configuration(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="not a cellvit configuration") as refusal:
        CellViT.from_pretrained(saved)
    assert max(map(len, str(refusal.value).splitlines())) < 500


@pytest.mark.parametrize(
    ("key", "value", "message"), [("format", "other", "not 'cellvit'"), ("schema", 99, "upgrade cellvit-lightning")]
)
def test_foreign_configuration(saved, key, value, message):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(WeightsError, match=message):
        CellViT.from_pretrained(saved)


def test_truncated_and_missing_weights(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read"):
        CellViT.from_pretrained(saved)
    weights.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        CellViT.from_pretrained(saved)


def test_weights_that_are_not_those_of_the_configuration(saved, small_settings, tmp_path):
    CellViT(**small_settings).save_pretrained(tmp_path / "other")
    (tmp_path / "other/model.safetensors").replace(saved / "model.safetensors")
    with pytest.raises(WeightsError, match="SHA-256"):
        CellViT.from_pretrained(saved)


def test_class_counts_that_do_not_fit_name_the_tensor(saved):
    config = json.loads((saved / "config.json").read_text())
    config["model"] |= {"num_nuclei_classes": 4, "class_names": list("abcd"), "class_colors": [[0, 0, 0]] * 4}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"heads\.nuclei_type_map\.output\.weight \(3, 4, 1, 1\) for \(4, 4, 1, 1\)"):
        CellViT.from_pretrained(saved)


def test_missing_and_unused_tensors_are_named(saved):
    config = json.loads((saved / "config.json").read_text())
    config["model"]["heads"] = {"nuclei_binary_map": "binary", "hv_map": "hv"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"unused: decoder\.paths\.nuclei_type_map.* and \d+ more"):
        CellViT.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5]},
        {"mpp": 0},
        {"std": [0.5, 0.5, 0.0]},
        {"class_colors": [["red"] * 3] * 3},
        {"encoder": {"class_path": "hybrid", "init_args": {"embed_dim": 16, "num_heads": 5}}},
    ],
)
def test_settings_that_build_no_model(saved, change):
    config = json.loads((saved / "config.json").read_text())
    config["model"] |= change
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="build no model"):
        CellViT.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": math.nan}, "mpp is nan and must be a number from 0.01 to 100"),
        ({"mpp": 1e9}, "mpp is 1e+09 and must be a number"),
        ({"mpp": "fine"}, "mpp is 'fine' and must be a number"),
        ({"mean": [0.5, -math.inf, 0.5]}, "mean is -inf and must be"),
        ({"std": [1e-30, 1, 1]}, "std is 1e-30 and must be"),
        ({"std": True}, "std is True and must be"),
        ({"num_nuclei_classes": 10**400}, "num_nuclei_classes is 1000"),
        ({"num_tissue_classes": -1}, "num_tissue_classes is -1 and"),
        ({"class_colors": [[0, 0, 0], [1, 2, 3], [0, 999, 0]]}, "class_colors is 999 and must be"),
        ({"encoder": spec("hybrid", depth=10**9)}, "encoder.depth is 1000000000 and must be a number from 0 to 1000"),
        ({"encoder": spec("lora", encoder=spec("hybrid", widths=[4, -4, 8]))}, "encoder.encoder.widths is -4 and"),
        ({"encoder": spec("timm", model="x", arguments={"depth": 1e300})}, "encoder.arguments.depth is 1e+300 and"),
        ({"encoder": spec("hybrid", embed_dim=60_000, num_heads=1)}, "describe a network of more than"),
        (
            {"heads": {"hv_map": spec("hv", losses={"mse": math.inf})}},
            "heads.hv_map.losses.mse is inf and must be a fin",
        ),
        ({"postprocessor": spec("hv-watershed", threshold=math.nan)}, "postprocessor.threshold is nan and must be"),
        ({"about": functools.reduce(lambda inner, _: {"a": inner}, range(99), {})}, "about is nested deeper than 32"),
    ],
)
@pytest.mark.parametrize("kind", ["config.json", "a.ckpt"])
def test_numbers_that_no_model_has_are_refused_in_one_line(saved, change, message, kind):
    config = json.loads((saved / "config.json").read_text())
    config["model"] |= change
    (saved / "config.json").write_text(json.dumps(config))
    path = saved
    if kind == "a.ckpt":
        path = saved / "a.ckpt"
        torch.save({"state_dict": {}, "hyper_parameters": config["model"]}, path)
    with pytest.raises(
        WeightsError, match=re.escape(f"build no model: {'they ' * (message[0] == 'd')}{message}")
    ) as told:
        CellViT.from_pretrained(path)
    assert "\n" not in str(told.value)
    assert "export the model again" in str(told.value)


def test_a_checkpoint_that_holds_itself_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    loop = []
    loop += [loop, loop]
    torch.save({"state_dict": {}, "hyper_parameters": {**config["model"], "metrics": loop}}, saved / "a.ckpt")
    with pytest.raises(WeightsError, match=r"a\.ckpt.*metrics is nested deeper"):
        CellViT.from_pretrained(saved / "a.ckpt")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "{folder}/model.safetensors", "link", "sub/link", "", ".", "a\0"]
)
def test_the_weights_of_a_folder_lie_in_it(saved, tmp_path, name):
    weights = (saved / "model.safetensors").replace(tmp_path / "model.safetensors")
    (saved / "sub").mkdir()
    for link in ("link", "sub/link"):
        (saved / link).symlink_to(weights)
    config = json.loads((saved / "config.json").read_text())
    config["weights"]["file"] = name.format(folder=tmp_path)
    (saved / "config.json").write_text(json.dumps(config))
    for look, error in ((CellViT.from_pretrained, WeightsError), (by_name, UnknownPluginError)):
        with pytest.raises(error, match=r"lie outside of model folder|cannot be read"):
            look(str(saved))


@pytest.mark.parametrize("head", [b"[" * 999, b'{"a": {"shape": "x"}}', b"{}"])
def test_a_head_of_weights_that_is_none(saved, head):
    length = len(head) if head != b"{}" else 2**62
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", length) + head)
    for look, error in ((CellViT.from_pretrained, WeightsError), (by_name, UnknownPluginError)):
        with pytest.raises(error, match=r"cannot be read|is no cellvit model folder"):
            look(str(saved))


def test_a_folder_in_the_cache_of_the_hub_holds_links(saved, tmp_path):
    repository = tmp_path / "models--acme--nuclei"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (saved / file).replace(repository / "blobs" / file)
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    assert CellViT.from_pretrained(snapshot).mpp == by_name(str(snapshot)).mpp == 0.25


def test_weights_of_an_encoder_are_neither_fetched_nor_read_to_be_replaced(tmp_path, small_settings, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    tiny = {"model": "vit_tiny_patch16_224", "arguments": {"depth": 4, "embed_dim": 12, "num_heads": 2}}
    torch.save(ENCODERS.get("timm")(**tiny).net.state_dict(), tmp_path / "tiny.pth")
    spec = {"class_path": "timm", "init_args": {**tiny, "weights": str(tmp_path / "tiny.pth")}}
    nested = {"class_path": "lora", "init_args": {"encoder": spec}}
    for encoder in (spec, nested):
        model = CellViT(**{**small_settings, "encoder": encoder})
        model.save_pretrained(tmp_path / "m")
        config = json.loads((tmp_path / "m/config.json").read_text())
        text = json.dumps(config)
        assert hashlib.sha256((tmp_path / "tiny.pth").read_bytes()).hexdigest() in text
        fetched = text.replace(json.dumps(str(tmp_path / "tiny.pth")), "null").replace(
            '"weights": null', '"weights": null, "pretrained": true'
        )
        for changed in (text.replace("tiny.pth", "gone.pth"), fetched):
            (tmp_path / "m/config.json").write_text(changed)
            again = CellViT.from_pretrained(tmp_path / "m")
            assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    with pytest.raises(WeightsError, match="cannot be reached"):  # it would have been asked for
        CellViT(**{**small_settings, "encoder": {"class_path": "timm", "init_args": {**tiny, "pretrained": True}}})


class Weighted(HybridEncoder):
    """An encoder of others with an argument that is called as a source of weights elsewhere."""

    def __init__(self, *, weights: float = 1.0) -> None:
        super().__init__(widths=[4, 6, 8], embed_dim=16, depth=1, num_heads=2, window=4)
        self.weights = weights


def test_arguments_of_other_encoders_are_left_alone(tmp_path, small_settings):
    CellViT(**{**small_settings, "encoder": Weighted(weights=3.0)}).save_pretrained(tmp_path)
    assert CellViT.from_pretrained(tmp_path).encoder.weights == 3.0


def test_from_pretrained_says_once_that_weights_are_not_for_commercial_use(monkeypatch):
    monkeypatch.setattr("cellvit.weights.licences._announced", set())
    with pytest.warns(LicenceNotice, match="licence of nano: research use only; not for commercial use") as said:
        first = CellViT.from_pretrained("nano")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CellViT.from_pretrained("nano")
    assert len(said) == 1
    assert not first.training


def test_values_that_a_type_cannot_hold_and_settings_that_are_no_plain_data_are_refused(small_model, tmp_path):
    with torch.no_grad():
        next(small_model.decoder.parameters()).fill_(1e6)
    with pytest.raises(ConfigError, match="float16 cannot hold the values of decoder"):
        small_model.save_pretrained(tmp_path / "m", dtype=torch.float16)
    small_model.settings["about"] = {"folder": tmp_path}
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        small_model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "content", [{"state_dict": 3, "hyper_parameters": {}}, {"state_dict": {}, "hyper_parameters": {"about": 3}}]
)
def test_a_checkpoint_with_something_else_in_its_places_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(WeightsError, match=r"odd\.ckpt"):
        CellViT.from_pretrained(tmp_path / "odd.ckpt")


def test_settings_of_another_version(saved):
    config = json.loads((saved / "config.json").read_text())
    config["model"]["colour"] = "red"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="colour"):
        CellViT.from_pretrained(saved)


class Bomb:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_a_checkpoint_with_code_in_it_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Bomb()}, tmp_path / "evil.ckpt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("evil.ckpt", "plain.pkl"):
        with pytest.raises(WeightsError, match="opened safely"):
            CellViT.from_pretrained(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.ckpt"):
        CellViT.from_pretrained(tmp_path / "x.ckpt")


def test_a_checkpoint_that_is_not_ours(tmp_path):
    torch.save({"model": torch.zeros(3)}, tmp_path / "x.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": [1, 2]}, tmp_path / "y.ckpt")
    with pytest.raises(WeightsError, match="holds no cellvit checkpoint"):
        CellViT.from_pretrained(tmp_path / "y.ckpt")
    with pytest.raises(WeightsError, match="holds no cellvit checkpoint"):
        CellViT.from_pretrained(tmp_path / "x.ckpt")


def test_a_folder_that_cannot_be_written(small_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose a folder"):
        small_model.save_pretrained(tmp_path / "file" / "model")


def test_nano_is_bundled_states_its_origin_and_is_small():
    assert "nano" in bundled_models()
    model = CellViT.from_pretrained("nano")
    assert (BUNDLED / "nano/model.safetensors").stat().st_size < 20e6
    assert {"licence", "origin", "data"} <= set(model.about)
    assert model.mpp == 0.25
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.to("meta")(torch.empty(1, 3, 1024, 1024, device="meta"))
    assert counter.get_total_flops() <= 150e9  # the published ViT-256 network needs 4,006e9
