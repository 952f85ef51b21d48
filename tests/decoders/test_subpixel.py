import pytest
import torch
from support.tiny import HYBRID

from cellvit import CellViT
from cellvit.decoders import DECODERS, SubpixelDecoder
from cellvit.errors import ConfigError
from cellvit.testing import DecoderContract
from cellvit.types import FeatureInfo

PYRAMID = [FeatureInfo(4, 2), FeatureInfo(8, 4), FeatureInfo(12, 8), FeatureInfo(16, 16)]
SMALL = {"widths": (3, 6, 8, 10)}


def maps(height, width):
    return [torch.randn(2, f.channels, height // f.stride, width // f.stride) for f in PYRAMID]


def count(module):
    return sum(p.numel() for p in module.parameters())


def convolution(channels, out_channels):
    """Parameters of a 3x3 convolution with bias and batch norm."""
    return 9 * channels * out_channels + 3 * out_channels


class TestSubpixel(DecoderContract):
    def make(self, features, branches):
        return SubpixelDecoder(features, branches, **SMALL)


class TestSubpixelDefaults(DecoderContract):
    def make(self, features, branches):
        return SubpixelDecoder(features, branches)


@pytest.mark.parametrize("size", [(16, 16), (16, 64), (48, 32), (112, 80)])
@pytest.mark.parametrize(("shared", "own"), [(1, 0), (1, 2), (3, 1)])
def test_every_branch_has_full_resolution_and_gradients_reach_all(size, shared, own):
    decoder = SubpixelDecoder(PYRAMID, ["a", "b", "c"], shared_convs=shared, branch_convs=own, **SMALL)
    result = decoder(torch.randn(2, 3, *size), maps(*size))
    assert {k: tuple(v.shape) for k, v in result.items()} == dict.fromkeys("abc", (2, 3, *size))
    assert decoder.out_channels == 3
    sum((v * torch.randn_like(v)).sum() for v in result.values()).backward()
    # A bias before a batch norm has no effect, so its gradient is only rounding; all others are felt.
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []
    assert [name for name, p in decoder.named_parameters() if p.ndim == 4 and not p.grad.abs().max() > 0] == []


def test_branches_share_all_but_a_short_path():
    sizes = [count(SubpixelDecoder(PYRAMID, "abc"[:n], shared_convs=2, branch_convs=1, **SMALL)) for n in (1, 2, 3)]
    path = convolution(6, 6) + (4 * 6 * 3 + 3) + 2 * 3
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == path
    ups = (4 * 16 * 10 + 10) + (4 * 10 * 8 + 8) + (4 * 8 * 6 + 6)
    first = convolution(12 + 10, 10) + convolution(8 + 8, 8) + convolution(4 + 6, 6)
    assert sizes[0] - path == ups + first + convolution(10, 10) + convolution(8, 8) + convolution(6, 6)


def test_shared_levels_run_once_for_all_branches():
    decoder, calls = SubpixelDecoder(PYRAMID, ["a", "b", "c"], **SMALL), []
    for level in (*decoder.ups, *decoder.levels):
        level.register_forward_hook(lambda module, *_: calls.append(module))
    decoder(torch.randn(2, 3, 32, 32), maps(32, 32))
    assert len(calls) == 6


def test_skip_comes_before_what_comes_from_below():
    decoder, seen, features = SubpixelDecoder(PYRAMID, ["a"], **SMALL).eval(), [], maps(32, 48)
    decoder.levels[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        decoder(torch.randn(2, 3, 32, 48), features)
        torch.testing.assert_close(seen[0][:, :12], features[2])
        torch.testing.assert_close(seen[0][:, 12:], decoder.ups[0](features[3]))


def test_without_own_convolutions_a_square_of_four_pixels_depends_on_one_pixel_of_the_trunk():
    decoder = SubpixelDecoder(PYRAMID, ["a"], branch_convs=0, **SMALL).eval()
    trunk = torch.randn(1, 6, 8, 8)
    other = trunk.clone()
    other[..., 3, 5] += 1
    with torch.inference_mode():
        changed = (decoder.paths["a"](trunk) != decoder.paths["a"](other)).any(1)[0]
    outside = torch.ones_like(changed)
    outside[6:8, 10:12] = False
    assert changed.any()
    assert not (changed & outside).any()


@pytest.mark.parametrize(
    "features",
    [
        PYRAMID[:3],
        PYRAMID[1:],
        [FeatureInfo(24, 16)] * 4,
        [FeatureInfo(4, 4), FeatureInfo(8, 8), FeatureInfo(12, 16), FeatureInfo(16, 16)],
        [*PYRAMID, FeatureInfo(20, 32)],
        PYRAMID[::-1],
    ],
    ids=["three", "without the finest", "plain ViT", "from stride 4", "five", "reversed"],
)
def test_strides_that_do_not_fit_are_named_and_a_way_out_is(features):
    strides = ", ".join(str(f.stride) for f in features)
    message = rf"strides \(2, 4, 8, 16\), the encoder's have \({strides}\); use decoder 'unetr' or .*'hybrid'"
    with pytest.raises(ConfigError, match=message):
        SubpixelDecoder(features, ["a"], **SMALL)


@pytest.mark.parametrize(
    "settings",
    [
        {"widths": (4, 6)},
        {"widths": (3, 6, 8, 10, 12)},
        {"widths": (3, 0, 8, 10)},
        {"widths": (-3, 6, 8, 10)},
        {"shared_convs": 0},
        {"branch_convs": -1},
    ],
)
def test_settings_that_make_no_decoder_are_refused(settings):
    with pytest.raises(ConfigError, match="give 4 widths from 1, shared_convs from 1 and branch_convs from 0"):
        SubpixelDecoder(PYRAMID, ["a"], **settings)


def test_a_model_is_built_with_it_by_name():
    assert DECODERS.get("subpixel") is SubpixelDecoder
    model = CellViT(HYBRID, num_nuclei_classes=3, decoder={"class_path": "subpixel", "init_args": SMALL}).eval()
    with torch.inference_mode():
        result = model(torch.rand(1, 3, 48, 32))
    channels = {"nuclei_binary_map": 2, "hv_map": 2, "nuclei_type_map": 3}
    assert {name: tuple(result[name].shape) for name in channels} == {n: (1, c, 48, 32) for n, c in channels.items()}
    with pytest.raises(ConfigError, match="use decoder 'unetr'"):
        CellViT("vit-256", num_nuclei_classes=3, decoder="subpixel")


def test_an_embedding_is_the_shared_level_and_the_path_of_types_at_stride_4():
    branches, features, image = ["nuclei_type_map", "a"], maps(32, 48), torch.randn(2, 3, 32, 48)
    decoder, seen = SubpixelDecoder(PYRAMID, branches, embedding=True, **SMALL).eval(), []
    for layers in (decoder.levels[-1], decoder.paths["nuclei_type_map"][0]):
        layers.register_forward_hook(lambda _, __, made: seen.append(made))
    plain = SubpixelDecoder(PYRAMID, branches, **SMALL).eval()
    plain.load_state_dict(decoder.state_dict())  # it has no weights of its own
    with torch.inference_mode():
        found, without = decoder(image, features), plain(image, features)
        expected = torch.nn.functional.avg_pool2d(torch.cat(seen, dim=1), 2)
    torch.testing.assert_close(found.pop("embedding_map"), expected)
    assert expected.shape == (2, 2 * 6, 8, 12)
    torch.testing.assert_close(found, without)
    with pytest.raises(ConfigError, match="embedding True, which needs a branch 'nuclei_type_map', but the branches"):
        SubpixelDecoder(PYRAMID, ["a"], embedding=True, **SMALL)
