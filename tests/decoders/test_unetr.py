import pytest
import torch

from cellvit.decoders import DECODERS, UNETRDecoder
from cellvit.encoders import ViTEncoder
from cellvit.errors import ConfigError
from cellvit.testing import DecoderContract
from cellvit.types import FeatureInfo

PLAIN = [FeatureInfo(24, 16)] * 4
PYRAMID = [FeatureInfo(4, 2), FeatureInfo(8, 4), FeatureInfo(12, 8), FeatureInfo(16, 16)]
SMALL = {"widths": (4, 6, 8, 10), "skip_widths": (8, 6), "image_width": 3}


def maps(features, height=32, width=48):
    return [torch.randn(2, f.channels, height // f.stride, width // f.stride) for f in features]


class TestPublishedWidths(DecoderContract):
    def make(self, features, branches):
        return UNETRDecoder(features, branches)


class TestNarrowOnAPlainViT(DecoderContract):
    features = PLAIN

    def make(self, features, branches):
        return UNETRDecoder(features, branches, shared_levels=3, **SMALL)


@pytest.mark.parametrize("features", [PLAIN, PYRAMID, [FeatureInfo(5, 4), FeatureInfo(5, 8), *PYRAMID[2:]]])
@pytest.mark.parametrize("shared", [0, 1, 3, 4])
def test_every_branch_has_full_resolution_and_gradients_reach_all(features, shared):
    decoder = UNETRDecoder(features, ["a", "b"], shared_levels=shared, **SMALL)
    result = decoder(torch.randn(2, 3, 32, 48), maps(features))
    assert {k: tuple(v.shape) for k, v in result.items()} == {"a": (2, 4, 32, 48), "b": (2, 4, 32, 48)}
    assert decoder.out_channels == 4
    sum((v * torch.randn_like(v)).sum() for v in result.values()).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


def test_published_network_has_the_published_number_of_parameters():
    encoder = ViTEncoder()
    branches = ["nuclei_binary_map", "hv_map", "nuclei_type_map"]
    decoder = UNETRDecoder(encoder.features, branches)
    heads = 65 * (2 + 2 + 6) + 385 * 19
    assert sum(p.numel() for m in (encoder, decoder) for p in m.parameters()) + heads == 46_750_349


def test_branches_are_apart_unless_shared():
    def trunk_and_branch(shared):
        decoder = UNETRDecoder(PLAIN, ["a", "b"], shared_levels=shared, **SMALL)
        return [sum(p.numel() for p in m.parameters()) for m in (decoder.trunk, decoder.paths["a"], decoder.paths["b"])]

    alone, all_shared = trunk_and_branch(0), trunk_and_branch(4)
    assert alone[0] == all_shared[1] == all_shared[2] == 0
    assert alone[1] == alone[2] == all_shared[0] > 0
    for shared in (1, 2, 3):
        trunk, branch, _ = trunk_and_branch(shared)
        assert trunk + branch == alone[1]


def test_skip_comes_before_what_comes_from_below():
    decoder = UNETRDecoder(PYRAMID, ["a"], **SMALL).eval()
    seen = []
    first = decoder.paths["a"].levels["3"][0]
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features = maps(PYRAMID)
    with torch.inference_mode():
        decoder(torch.randn(2, 3, 32, 48), features)
        torch.testing.assert_close(seen[0][:, :10], decoder.skips[3](features[2]))
        torch.testing.assert_close(seen[0][:, 10:], decoder.paths["a"].bottleneck(features[3]))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (PLAIN[:3], "4 feature maps"),
        ([*PLAIN[:3], FeatureInfo(24, 32)], "feature 4 has stride 32"),
        ([FeatureInfo(24, 12), *PLAIN[1:]], "feature 1 has stride 12"),
        ([FeatureInfo(4, 2)] * 4, "feature 2 has stride 2"),
    ],
)
def test_features_that_do_not_fit_are_named(features, message):
    with pytest.raises(ConfigError, match=message):
        UNETRDecoder(features, ["a"], **SMALL)


@pytest.mark.parametrize("settings", [{"widths": (4, 6)}, {"shared_levels": 5}, {"shared_levels": -1}])
def test_settings_that_make_no_decoder_are_refused(settings):
    with pytest.raises(ConfigError, match="shared_levels"):
        UNETRDecoder(PLAIN, ["a"], **settings)


def test_it_is_registered():
    assert DECODERS.get("unetr") is UNETRDecoder
