"""Networks of timm as encoders: every kind at every size, maps that stay in place, and networks that do not fit."""

import sys

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import TIMM_UNETR
from timm.models import register_model
from torch import nn
from torch.nn import functional as F

from cellvit import CellViT
from cellvit.encoders import TimmEncoder
from cellvit.encoders.timm import decoder_strides, to_stride
from cellvit.errors import ConfigError, UnknownPluginError
from cellvit.testing import EncoderContract

SHALLOW = {"depth": 4}
KINDS = {
    "patch 16": ("vit_tiny_patch16_224", SHALLOW, [16] * 4),
    "patch 14 and registers": ("vit_small_patch14_reg4_dinov2", SHALLOW, [16] * 4),
    "patch 8": ("vit_small_patch8_224", SHALLOW, [8, 8, 8, 16]),
    "patch 32": ("vit_small_patch32_224", SHALLOW, [16] * 4),
    "rotary positions": ("vit_small_patch16_dinov3", SHALLOW, [16] * 4),
    "convnext": ("convnext_atto", {}, [4, 8, 16, 16]),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8]},
        [4, 8, 16, 16],
    ),
    "fastvit": ("fastvit_t8", {}, [4, 8, 16, 16]),
    "resnet": ("resnet18", {}, [4, 8, 16, 16]),
    "efficientnet": ("efficientnet_b0", {}, [4, 8, 16, 16]),
    "maxvit": ("maxvit_rmlp_pico_rw_256", {}, [4, 8, 16, 16]),
}
SIZES = [(256, 256), (272, 272), (224, 336)]


def make(kind, **more):
    model, arguments, _ = KINDS[kind]
    return TimmEncoder(model=model, arguments=arguments, **more)


class TestPatch8(EncoderContract):
    def make(self):
        return make("patch 8")


class TestPatch32(EncoderContract):
    def make(self):
        return make("patch 32")


class TestConvNeXt(EncoderContract):
    def make(self):
        return make("convnext")


class TestSwin(EncoderContract):
    def make(self):
        return make("swin")


class TestFastViT(EncoderContract):
    def make(self):
        return make("fastvit")


class TestResNet(EncoderContract):
    def make(self):
        return make("resnet")


class TestEarlyStages(EncoderContract):
    """The last stage serves the pooled vector alone."""

    def make(self):
        return TimmEncoder(model="resnet18", taps=(1, 2, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_outputs_of_exactly_the_size_of_its_input_and_trains(kind):
    model = CellViT(make(kind, drop_path_rate=0.1), num_nuclei_classes=3, decoder=TIMM_UNETR).eval()
    assert [info.stride for info in model.encoder.features] == KINDS[kind][2]
    for size in SIZES:
        with torch.inference_mode():
            shapes = {name: tuple(x.shape) for name, x in model(torch.rand(1, 3, *size)).items()}
        deepest = shapes.pop("embedding_map")
        assert set(shapes.values()) == {(1, 2, *size), (1, 3, *size)}
        assert deepest == (1, model.encoder.features[-1].channels, size[0] // 16, size[1] // 16)

    model.train()
    sum(x.square().mean() for x in model(torch.rand(2, 3, *SIZES[0])).values()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []  # DDP would wait for them


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_the_pooled_vector_are_exactly_those_no_map_depends_on(kind):
    encoder = make(kind).eval()
    sum(x.sum() for x in encoder(torch.rand(1, 3, 64, 64)).features).backward()
    idle = {name for name, p in encoder.named_parameters() if p.grad is None}
    pooled = {id(p) for p in encoder.pooled_parameters()}
    assert {name for name, p in encoder.named_parameters() if id(p) in pooled} == idle


def test_blocks_behind_the_last_tap_serve_the_pooled_vector():
    encoder = TimmEncoder(model="vit_tiny_patch16_224", taps=(1, 2, 3, 11))
    pooled = {id(p) for p in encoder.pooled_parameters()}
    names = {name.split(".")[1] for name, p in encoder.named_parameters() if id(p) in pooled}
    assert names == {"blocks", "norm"}
    assert {id(p) for p in encoder.net.blocks[11].parameters()} < pooled


def test_layer_groups_go_from_the_input_to_the_output():
    vit = make("patch 14 and registers")
    stem, *blocks, last = vit.layer_groups()
    names = {id(p): name for name, p in vit.net.named_parameters()}
    assert {names[id(p)] for p in stem} == {
        "cls_token",
        "reg_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }
    assert [{names[id(p)].split(".")[1] for p in block} for block in blocks] == [{str(i)} for i in range(4)]
    assert {names[id(p)] for p in last} == {"norm.weight", "norm.bias"}

    pyramid = make("convnext")
    names = {id(p): name for name, p in pyramid.net.named_parameters()}
    starts = [{".".join(names[id(p)].split(".")[:2]) for p in group} for group in pyramid.layer_groups()]
    assert starts == [{"stem.0", "stem.1"}, {"stages.0"}, {"stages.1"}, {"stages.2"}, {"stages.3"}, {"head.norm"}]


@pytest.mark.parametrize("kind", ["patch 14 and registers", "rotary positions", "convnext", "swin", "fastvit"])
def test_gradient_checkpointing_runs_blocks_twice_and_changes_no_gradient(kind):
    saving, plain = make(kind, gradient_checkpointing=True), make(kind)
    saving.load_state_dict(plain.state_dict())
    gradients, counts = [], []
    for encoder in (plain.eval(), saving.eval()):  # dropout and batch statistics would differ
        calls = []
        block = next(m for n, m in encoder.net.named_modules() if n.endswith("blocks.0"))
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        sum(x.square().mean() for x in encoder(torch.rand(1, 3, 64, 64)).features).backward()
        gradients.append([p.grad for p in encoder.parameters()])
        counts.append(len(calls))
    assert counts == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_reaches_every_kind():
    for kind in ("patch 16", "rotary positions", "convnext", "swin", "fastvit"):
        rates = {m.drop_prob for m in make(kind, drop_path_rate=0.3).modules() if type(m).__name__ == "DropPath"}
        assert max(rates) == pytest.approx(0.3), kind
        assert not [m for m in make(kind).modules() if getattr(m, "drop_prob", None)], kind


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_fit_without_their_classifier(kind, tmp_path):
    model, arguments, _ = KINDS[kind]
    net = timm.create_model(model, num_classes=7, **arguments)
    torch.save(net.state_dict(), tmp_path / "own.pth")
    encoder = make(kind, weights=str(tmp_path / "own.pth"))
    published = net.state_dict()
    assert len(published) > len(encoder.net.state_dict())
    for name, value in encoder.net.state_dict().items():
        assert torch.equal(value, published[name]), name


def test_taps_choose_stages():
    assert [tuple(info) for info in TimmEncoder(model="resnet18", taps=(1, 2, 3, 4)).features] == [
        (64, 2), (64, 4), (128, 8), (256, 16)
    ]  # fmt: skip
    assert [tuple(info) for info in TimmEncoder(model="resnet18").features] == [(64, 4), (128, 8), (256, 16), (512, 16)]


def test_pixel_statistics_are_those_of_the_network():
    assert TimmEncoder(model="vit_tiny_patch16_224").pixel_mean == (0.5, 0.5, 0.5)
    model = CellViT(make("resnet"), num_nuclei_classes=3, decoder=TIMM_UNETR)
    assert model.settings["mean"] == [0.485, 0.456, 0.406]
    assert model.settings["std"] == [0.229, 0.224, 0.225]


class Places(nn.Module):
    """A network whose maps hold the place in the image, (x, y), that each of their pixels is centred at."""

    def __init__(self, strides, **_):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Parameter(torch.ones(1))
        self.feature_info = [{"num_chs": 2, "reduction": s, "module": f"none.{i}"} for i, s in enumerate(strides)]
        self.pretrained_cfg = {"architecture": "places"}

    def forward_intermediates(self, image, *, indices, norm, output_fmt):
        strides = [self.feature_info[i]["reduction"] for i in indices]
        maps = [F.avg_pool2d(image[:, :2], stride) * self.gain for stride in strides]
        return maps[-1], maps

    def forward_head(self, x, *, pre_logits):
        return x.mean((2, 3)) * self.head


sys.modules[__name__].__all__ = []


@register_model
def places(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    return Places(**kwargs)


@register_model
def bare(pretrained=False, num_classes=0, **kwargs):
    return nn.Linear(1, 1)


@settings(max_examples=40, deadline=None)
@given(
    strides=st.one_of(
        st.sampled_from([4, 7, 8, 10, 12, 14, 16, 20, 28, 32]).map(lambda s: [s] * 4),
        st.lists(st.sampled_from([2, 4, 8, 16, 32, 64]), min_size=4, max_size=4, unique=True).map(sorted),
    ),
    rows=st.integers(4, 12),
    columns=st.integers(4, 12),
)
def test_every_pixel_of_a_map_is_about_the_place_it_stands_for(strides, rows, columns):
    encoder = TimmEncoder(model="places", arguments={"strides": strides})
    assert [info.stride for info in encoder.features] == decoder_strides(strides)
    height, width = 16 * rows, 16 * columns
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    with torch.inference_mode():
        maps = encoder(torch.stack([x, y, x])[None]).features
    for place, stride, info in zip(maps, strides, encoder.features, strict=True):
        assert place.shape[2:] == (height // info.stride, width // info.stride)
        for axis, side in ((1, height), (0, width)):
            centres = info.stride * (torch.arange(side // info.stride) + 0.5)
            # beyond the outermost whole pixel of the network's map there is nothing to interpolate with
            inside = (centres >= stride / 2) & (centres <= stride * (side // stride) - stride / 2)
            line = place[0, axis, 0, :] if axis == 0 else place[0, axis, :, 0]
            torch.testing.assert_close(line[inside], centres[inside], rtol=0, atol=1e-2)


def test_sampling_at_another_stride_is_linear_between_the_two_nearest_pixels():
    row = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0])
    got = to_stride(row.view(1, 1, 1, 8).expand(1, 1, 8, 8), 14, 16)[0, 0, 0]
    for i, value in enumerate(got.tolist()):
        place = 16 * (i + 0.5) / 14 - 0.5
        left = int(place)
        expected = row[left] + (place - left) * (row[left + 1] - row[left])
        assert value == pytest.approx(expected.item(), rel=1e-5)
    assert to_stride(row, 16, 16) is row


def test_unknown_models_and_weights_list_what_there_is():
    with pytest.raises(UnknownPluginError, match="convnext_tiny"):
        TimmEncoder(model="convnext_tinny")
    with pytest.raises(UnknownPluginError, match=r"no weights 'test_vit\.imagenet'; known: test_vit\.r160_in1k"):
        TimmEncoder(model="test_vit.imagenet")


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("levit_128s", {}, "gives 3 feature maps; four are needed"),
        ("beit_base_patch16_224", SHALLOW, "takes images of one size only"),
        ("hiera_tiny_224", {}, "takes images of one size only"),
        ("bare", {}, "gives no feature maps"),
        ("vit_tiny_patch16_224", {"deph": 4}, "does not take all of .*deph"),
        ("vit_tiny_patch16_224", {"mlp_layer": "Swiglue"}, "no layer of timm.layers"),
        ("vit_tiny_patch16_224", {"checkpoint_path": "a.pth"}, "not of the architecture"),
        ("vit_tiny_patch16_224", {"embed_dim": 190}, "cannot be built"),
    ],
)
def test_networks_that_do_not_fit_are_refused(model, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TimmEncoder(model=model, arguments=arguments)


def test_a_network_whose_maps_are_not_what_it_says_is_refused():
    class Wrong(Places):
        def forward_intermediates(self, image, **kwargs):
            last, maps = super().forward_intermediates(image, **kwargs)
            return last, [F.avg_pool2d(x, 2) for x in maps]

    def wrong_places(pretrained=False, **kwargs):
        return Wrong([4, 8, 16, 32])

    wrong_places.__module__ = __name__
    register_model(wrong_places)
    with pytest.raises(ConfigError, match="other feature maps than it says"):
        TimmEncoder(model="wrong_places")


def test_wrong_taps_and_impossible_checkpointing_name_the_setting():
    with pytest.raises(ConfigError, match=r"taps .* from 1 to 5"):
        TimmEncoder(model="resnet18", taps=(2, 3, 4, 6))
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        TimmEncoder(model="places", arguments={"strides": [4, 8, 16, 32]}, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="drop_path_rate"):
        TimmEncoder(model="repvit_m1", drop_path_rate=0.5)


def test_drop_path_rate_0_is_0_whatever_the_architecture_defaults_to():
    assert timm.create_model("swin_tiny_patch4_window7_224", depths=[1] * 4).layers[3].blocks[0].drop_path1.drop_prob
    assert not [m for m in make("swin").modules() if getattr(m, "drop_prob", None)]
