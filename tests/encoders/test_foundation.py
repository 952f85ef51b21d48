"""The foundation models: what their cards say, weights in the naming of transformers, and the page about them."""

import functools
import math
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from support.fake_hub import digest, pickled, safetensors, write_repository
from support.tiny import THIN_UNETR
from timm.layers import SwiGLUPacked
from torch import nn
from torch.nn import functional as F

from cellvit import CellViT
from cellvit.encoders import ENCODERS, FOUNDATION, FoundationEncoder, TimmEncoder
from cellvit.encoders.timm_network import from_transformers
from cellvit.errors import WeightsError
from cellvit.plugins.components import build, normalise_spec
from cellvit.weights.licences import model_licence

PAGE = (Path(__file__).parents[2] / "docs/pages/how-to/backbones.md").read_text(encoding="utf-8")

# How the model cards build the networks, or the config.json beside the weights does.
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
CARDS = {
    "uni": ("vit_large_patch16_224", {"init_values": 1e-5}),
    "uni2-h": (
        "vit_giant_patch14_224",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
         "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, **SWIGLU},
    ),
    "virchow2": (
        "vit_huge_patch14_224",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": "", **SWIGLU},
    ),
    "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
    "h0-mini": (
        "vit_base_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.33334, "global_pool": "", **SWIGLU},
    ),
    "prov-gigapath": (
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "init_values": 1e-5,
         "mlp_ratio": 5.33334},
    ),
}  # fmt: skip
MILLIONS = {
    "uni": (303, 304), "uni2-h": (681, 682), "virchow2": (631, 632), "h-optimus-0": (1134, 1136), "h0-mini": (85, 86),
    "phikon": (85, 86), "phikon-v2": (303, 304), "prov-gigapath": (1134, 1135),
}  # fmt: skip
DEPTHS = {
    "uni": 24, "uni2-h": 24, "virchow2": 32, "h-optimus-0": 40, "h0-mini": 12, "phikon": 12, "phikon-v2": 24,
    "prov-gigapath": 40,
}  # fmt: skip
REGISTERS = {"uni2-h": 8, "virchow2": 4, "h-optimus-0": 4, "h0-mini": 4}
"""Of those with patches of 14 px; the others have none, and patches of 16 px."""
SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 3}


@pytest.fixture
def on_meta(monkeypatch):
    """Networks without memory; some versions of timm read numbers from tensors while they build."""
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", sorted(FOUNDATION))
@pytest.mark.usefixtures("on_meta")
def test_networks_have_the_parameters_of_the_model_cards(name):
    encoder = ENCODERS.get(name)()
    low, high = MILLIONS[name]
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert low <= count < high
    assert round(count) == FOUNDATION[name].parameters
    assert isinstance(encoder, FoundationEncoder)
    assert encoder.preset is FOUNDATION[name]
    assert [info.stride for info in encoder.features] == [16] * 4
    shapes = {key: tuple(p.shape) for key, p in encoder.net.named_parameters() if p.is_meta}
    assert len(shapes) == len(list(encoder.parameters()))
    assert shapes["patch_embed.proj.weight"][2:] == ((14, 14) if name in REGISTERS else (16, 16))
    assert shapes.get("reg_token", (1, 0))[1] == REGISTERS.get(name, 0)
    assert sum(key.endswith("attn.qkv.weight") for key in shapes) == DEPTHS[name]


@pytest.mark.parametrize("name", sorted(CARDS))
def test_published_files_fit_and_give_what_the_card_says(name, tmp_path, monkeypatch):
    """A small network built as on the card, its weights in the cache under the card's repository."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    architecture, arguments = CARDS[name]
    card = timm.create_model(architecture, num_classes=0, dynamic_img_size=True, **{**arguments, **SMALL}).eval()
    for parameter in card.parameters():
        nn.init.normal_(parameter, std=0.1)
    body = pickled(card.state_dict())
    commit = write_repository(tmp_path, FOUNDATION[name].repo, {"pytorch_model.bin": body})

    encoder = ENCODERS.get(name)(pretrained=True, arguments=SMALL).eval()
    assert encoder.init_args == {
        "pretrained": True, "arguments": SMALL, "revision": commit, "sha256": digest(body)
    }  # fmt: skip
    side = 7 * 16 if encoder.multiple == 14 else 64
    image = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        found = encoder(image)
        tokens, maps = card.forward_intermediates(image, indices=[0, 1, 2, 3])
    torch.testing.assert_close(found.pooled, tokens[:, 0])
    if encoder.multiple == 16:
        torch.testing.assert_close(found.features, maps)
    else:  # 112 px are 8 patches of 14 px, resampled to 7
        expected = [F.interpolate(x, size=(7, 7), mode="bilinear") for x in maps]
        torch.testing.assert_close(found.features, expected)


def test_pixel_statistics_are_the_published_ones():
    bioptimus = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for name in FOUNDATION:
        encoder = ENCODERS.get(name)(arguments=SMALL)
        expected = bioptimus if name in {"h-optimus-0", "h0-mini"} else imagenet
        assert (encoder.pixel_mean, encoder.pixel_std) == expected, name


def transformers_state(*, kind, width=24, depth=4, patch=16, side=64):
    """Random weights under the names of a ``ViTModel`` or a ``Dinov2Model``, written out."""
    linear = {"attention.attention.query": (width, width), "attention.attention.key": (width, width),
              "attention.attention.value": (width, width), "attention.output.dense": (width, width)}  # fmt: skip
    if kind == "vit":
        linear |= {"intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}
        norms = ("layernorm_before", "layernorm_after")
    else:
        linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        norms = ("norm1", "norm2")
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + (side // patch) ** 2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for i in range(depth):
        for name, shape in linear.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        for name in norms:
            shapes |= {f"encoder.layer.{i}.{name}.{part}": (width,) for part in ("weight", "bias")}
        if kind == "dinov2":
            shapes |= {f"encoder.layer.{i}.layer_scale{n}.lambda1": (width,) for n in (1, 2)}
    shapes |= {"embeddings.mask_token": (1, width)} if kind == "dinov2" else {}
    shapes |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)} if kind == "vit" else {}
    torch.manual_seed(3)
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def transformers_forward(state, image, *, kind, heads=3):
    """What such a network computes, from its description: the tokens after every layer, and the last norm's."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    projection = "embeddings.patch_embeddings.projection"
    patches = F.conv2d(image, state[f"{projection}.weight"], state[f"{projection}.bias"], stride=16)
    tokens = torch.cat([state["embeddings.cls_token"], patches.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + state["embeddings.position_embeddings"]
    first, second = ("layernorm_before", "layernorm_after") if kind == "vit" else ("norm1", "norm2")
    inner, outer = ("intermediate.dense", "output.dense") if kind == "vit" else ("mlp.fc1", "mlp.fc2")
    outputs = []
    for i in range(4):
        at = f"encoder.layer.{i}"
        scales = [state.get(f"{at}.layer_scale{n}.lambda1", torch.ones(())) for n in (1, 2)]
        x = norm(tokens, f"{at}.{first}")
        query, key, value = (
            linear(x, f"{at}.attention.attention.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        tokens = tokens + scales[0] * linear(attended, f"{at}.attention.output.dense")
        hidden = gelu(linear(norm(tokens, f"{at}.{second}"), f"{at}.{inner}"))
        tokens = tokens + scales[1] * linear(hidden, f"{at}.{outer}")
        outputs.append(tokens)
    return outputs, norm(tokens, "layernorm")


@pytest.mark.parametrize(("name", "kind", "prefix"), [
    ("phikon", "vit", ""), ("phikon", "vit", "vit."), ("phikon-v2", "dinov2", ""), ("phikon-v2", "dinov2", "dinov2."),
])  # fmt: skip
def test_weights_of_transformers_compute_the_same(name, kind, prefix, tmp_path):
    state = transformers_state(kind=kind)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({f"{prefix}{key}": value for key, value in state.items()}))
    small = {"embed_dim": 24, "depth": 4, "num_heads": 3, "img_size": 64}
    encoder = ENCODERS.get(name)(weights=str(path), arguments=small).eval()
    image = torch.randn(2, 3, 64, 64)
    state["embeddings.cls_token"] = state["embeddings.cls_token"].expand(2, -1, -1)
    with torch.inference_mode():
        found = encoder(image)
        layers, last = transformers_forward(state, image, kind=kind)
    for feature, tokens in zip(found.features, layers, strict=True):
        expected = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, last[:, 0], rtol=1e-4, atol=1e-4)


def test_weights_of_transformers_that_lack_a_part_are_refused(tmp_path):
    state = transformers_state(kind="vit")
    del state["encoder.layer.2.attention.attention.key.bias"]
    with pytest.raises(WeightsError, match=r"encoder\.layer\.2\.attn\.qkv\.bias' has only query, value"):
        from_transformers(state)
    state = transformers_state(kind="vit")
    del state["encoder.layer.2.intermediate.dense.weight"]
    (tmp_path / "own.bin").write_bytes(pickled(state))
    small = {"embed_dim": 24, "depth": 4, "num_heads": 3, "img_size": 64}
    with pytest.raises(WeightsError, match=r"missing: net\.blocks\.2\.mlp\.fc1\.weight"):
        ENCODERS.get("phikon")(weights=str(tmp_path / "own.bin"), arguments=small)
    other = {"cls_token": torch.zeros(1, 1, 3)}
    assert from_transformers(other) == other


def test_weights_in_the_named_folder_are_taken_and_their_licence_stays_with_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    body = safetensors(
        timm.create_model("vit_large_patch16_224", num_classes=0, init_values=1e-5, **SMALL).state_dict()
    )
    with pytest.raises(WeightsError, match="not in the cache"):
        ENCODERS.get("uni")(pretrained=True, arguments=SMALL)
    (tmp_path / "uni.safetensors").write_bytes(body)
    encoder = ENCODERS.get("uni")(pretrained=True, arguments=SMALL)
    assert encoder.init_args["sha256"] == digest(body)
    CellViT(encoder, 3, decoder=THIN_UNETR).save_pretrained(tmp_path / "m")
    about = CellViT.from_pretrained(tmp_path / "m").about
    assert about["licence"] == "CC-BY-NC-ND-4.0: that of the weights its encoder started from"
    assert not model_licence(about).commercial
    assert CellViT(encoder, 3, decoder=THIN_UNETR, about={"licence": "own"}).about == {"licence": "own"}
    assert CellViT(ENCODERS.get("uni")(arguments=SMALL), 3, decoder=THIN_UNETR).about == {}


def test_weights_of_another_foundation_model_are_refused(tmp_path):
    card = timm.create_model("vit_large_patch16_224", num_classes=0, init_values=1e-5, **SMALL)
    (tmp_path / "uni.bin").write_bytes(pickled(card.state_dict()))
    with pytest.raises(WeightsError, match=r"missing: net\.reg_token;.*net\.patch_embed\.proj\.weight"):
        ENCODERS.get("virchow2")(weights=str(tmp_path / "uni.bin"), arguments=SMALL)


# the page

BLOCKS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]
SPECS = [block.get("model", block)["encoder"] for block in BLOCKS]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.usefixtures("on_meta")
def test_every_line_of_the_page_builds_an_encoder(spec, tmp_path, monkeypatch):
    """All settings but the source of the weights."""
    plain = normalise_spec(spec, what="encoder")
    known = ENCODERS.get(plain["class_path"]).__init__.__kwdefaults__ | {"model": None}
    assert set(plain["init_args"]) <= set(known)
    args = {k: v for k, v in plain["init_args"].items() if k not in {"pretrained", "weights"}}
    if str(args.get("model")).startswith("hf-hub:"):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        write_repository(
            tmp_path, args["model"].removeprefix("hf-hub:"), {"config.json": b'{"architecture": "resnet18"}'}
        )
    encoder = build(ENCODERS, {"class_path": plain["class_path"], "init_args": args})
    assert isinstance(encoder, TimmEncoder)
    assert encoder.features[-1].stride == 16


def test_the_page_lists_the_foundation_models():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")
    ]
    listed = {name.strip("`"): (title, parameters, repo, licence) for name, title, _, parameters, repo, licence in rows}
    assert listed == {
        name: (m.title, f"{m.parameters} M", f"[{m.repo}](https://huggingface.co/{m.repo})", m.licence)
        for name, m in FOUNDATION.items()
    }
    assert {name for name, m in FOUNDATION.items() if not m.gated} == {"phikon", "phikon-v2"}
    for name, _, architecture, *_ in rows:
        registers = FOUNDATION[name.strip("`")].arguments.get(
            "reg_tokens", 4 if "reg4" in FOUNDATION[name.strip("`")].architecture else 0
        )
        assert (f"{registers} registers" in architecture) == bool(registers)
