"""Low-rank adapters: nothing changes at first, only they train, they merge, and files of the encoder inside fit."""

import sys

import pytest
import torch
from support.tiny import THIN_UNETR, VIT

from cellvit import CellViT
from cellvit.encoders import HybridEncoder, LoRAEncoder, SAMEncoder, ViTEncoder, load_encoder_weights
from cellvit.encoders.base import Encoder
from cellvit.errors import ConfigError, WeightsError
from cellvit.testing import EncoderContract
from cellvit.types import EncoderOutput, FeatureInfo

SAM = {
    "class_path": "sam-b",
    "init_args": {"embed_dim": 24, "depth": 4, "num_heads": 2, "window_size": 3, "pretrained_grid": 16, "out_chans": 8},
}
HYBRID = {"class_path": "hybrid", "init_args": {"widths": [8, 8, 16], "embed_dim": 24, "depth": 4, "num_heads": 3}}
INSIDE = {"vit": VIT, "sam": SAM, "hybrid": HYBRID}


class TestAroundViT(EncoderContract):
    def make(self):
        return LoRAEncoder(encoder=VIT, rank=2)


class TestAroundSAM(EncoderContract):
    def make(self):
        return LoRAEncoder(encoder=SAM, rank=2)


class TestAroundHybrid(EncoderContract):
    def make(self):
        return LoRAEncoder(encoder=HYBRID, rank=2)


def trained(encoder):
    """Give the adapters weights that do something."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.3)
    return encoder.eval()


def outputs(encoder, image):
    with torch.inference_mode():
        encoded = encoder(image)
    return [*encoded.features, encoded.pooled]


@pytest.mark.parametrize("kind", INSIDE)
def test_it_starts_as_the_encoder_inside_and_a_merged_copy_gives_the_same(kind):
    image = torch.randn(2, 3, 64, 48)
    encoder = LoRAEncoder(encoder=INSIDE[kind], rank=3, alpha=5.0).eval()
    plain = encoder.merged()
    assert type(plain) in (ViTEncoder, SAMEncoder, HybridEncoder)
    torch.testing.assert_close(outputs(encoder, image), outputs(plain, image))
    before = outputs(encoder, image)
    adapted = outputs(trained(encoder), image)
    assert max((a - b).abs().max() for a, b in zip(adapted, before, strict=True)) > 1e-2
    merged = encoder.merged()
    torch.testing.assert_close(outputs(merged, image), adapted, rtol=1e-4, atol=1e-4)
    assert set(merged.state_dict()) == set(plain.state_dict())
    assert not any(".lora_" in name or "base_layer" in name for name in merged.state_dict())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(outputs(encoder, image), adapted)  # the copy was merged, not the encoder


def test_an_adapter_adds_alpha_over_rank_times_b_a():
    encoder = trained(LoRAEncoder(encoder=VIT, rank=3, alpha=6.0))
    name = "encoder.vit.blocks.0.attn.qkv"
    state = encoder.state_dict()
    change = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"] * 6.0 / 3
    merged = encoder.merged().state_dict()[f"{name.removeprefix('encoder.')}.weight"]
    torch.testing.assert_close(merged, state[f"{name}.base_layer.weight"] + change)


def test_only_the_adapters_train():
    encoder = LoRAEncoder(encoder=VIT, rank=2, layers=["fc1"])
    names = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert len(names) == 4 * 2
    assert all(".mlp.fc1.lora_" in name for name in names)


def test_a_weight_file_of_the_encoder_inside_fits(tmp_path):
    inside = ViTEncoder(**VIT["init_args"])
    path = tmp_path / "teacher.pth"
    torch.save({"teacher": {f"backbone.{k}": v for k, v in inside.vit.state_dict().items()}}, path)
    encoder = trained(LoRAEncoder(encoder=VIT))
    adapters = {k: v.clone() for k, v in encoder.state_dict().items() if ".lora_" in k}
    load_encoder_weights(encoder, path)
    assert {k: v.tolist() for k, v in encoder.state_dict().items() if ".lora_" in k} == {
        k: v.tolist() for k, v in adapters.items()
    }
    state = encoder.state_dict()
    for name, tensor in inside.state_dict().items():
        assert any(torch.equal(tensor, state[f"encoder.{n}"]) for n in (name, name.replace("qkv.", "qkv.base_layer.")
                   .replace("attn.proj.", "attn.proj.base_layer.")) if f"encoder.{n}" in state), name  # fmt: skip


def test_a_file_with_a_tensor_too_many_or_too_few_is_refused_by_the_names_of_the_encoder(tmp_path):
    state = ViTEncoder(**VIT["init_args"]).vit.state_dict()
    path = tmp_path / "teacher.pth"
    torch.save({k: v for k, v in state.items() if k != "blocks.0.attn.qkv.weight"} | {"extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"missing: .*blocks\.0\.attn\.qkv.*unused: .*extra"):
        load_encoder_weights(LoRAEncoder(encoder=VIT), path)


def test_a_model_with_adapters_is_saved_and_loaded(tmp_path):
    encoder = {"class_path": "lora", "init_args": {"encoder": VIT, "rank": 2}}
    model = CellViT(encoder, 3, decoder=THIN_UNETR)
    trained(model.encoder)
    model.eval().save_pretrained(tmp_path)
    again = CellViT.from_pretrained(tmp_path)
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again.predict_maps(image), model.predict_maps(image))
    assert again.settings["encoder"]["init_args"]["encoder"] == VIT


class ReadsWeights(Encoder):
    """An encoder that uses a linear layer's weights without calling it, as some networks do for speed."""

    def __init__(self):
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 16, 16)
        self.qkv = torch.nn.Linear(8, 8)
        self.features = [FeatureInfo(8, 16)] * 4
        self.pooled_channels = 8

    def forward(self, image):
        tokens = torch.nn.functional.linear(self.patch(image).movedim(1, -1), self.qkv.weight).movedim(-1, 1)
        return EncoderOutput([tokens] * 4, tokens.mean((2, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank 0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout 1.0 in \[0, 1\)"),
        ({"layers": ["query"]}, r"\['query'\] name no linear layer of encoder ViTEncoder; it has: fc1, fc2, proj, qkv"),
        ({"encoder": ReadsWeights()}, "does not call its layers qkv as modules"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        LoRAEncoder(**{"encoder": VIT, **changes})


def test_without_peft_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs the package peft .*from a checkout: pip install '\.\[lora\]'"):
        LoRAEncoder(encoder=VIT)
