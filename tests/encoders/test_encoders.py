import math

import pytest
import torch

from cellvit.encoders import ENCODERS, HybridEncoder, TimmEncoder, ViTEncoder
from cellvit.encoders import vit as vit_module
from cellvit.encoders.hybrid import attend_in_windows
from cellvit.encoders.taps import choose_taps
from cellvit.encoders.vit import interpolate_position
from cellvit.errors import ConfigError, UnknownPluginError
from cellvit.testing import EncoderContract


def small_hybrid(**settings):
    return HybridEncoder(widths=(4, 8, 12), embed_dim=24, depth=2, num_heads=2, window=3, **settings)


class TestSmallViT(EncoderContract):
    def make(self):
        return ViTEncoder(embed_dim=48, depth=4, num_heads=3)


class TestHybrid(EncoderContract):
    def make(self):
        return small_hybrid()


class TestHybridWithResidualBlocks(EncoderContract):
    def make(self):
        return small_hybrid(residual_blocks=(1, 0, 2))


class TestHybridAtHalfResolution(EncoderContract):
    def make(self):
        return small_hybrid(shrink=2, neck_channels=10)


class TestTimmPatch16(EncoderContract):
    def make(self):
        return TimmEncoder(model="vit_tiny_patch16_224")


class TestTimmPatch14Registers(EncoderContract):
    def make(self):
        return TimmEncoder(model="vit_small_patch14_reg4_dinov2")


class TestTimmRotaryPositions(EncoderContract):
    def make(self):
        return TimmEncoder(model="vit_small_patch16_dinov3")


def test_vit_256_has_the_published_parameters():
    encoder = ENCODERS.get("vit-256")()
    shapes = {name: tuple(p.shape) for name, p in encoder.vit.state_dict().items()}
    assert shapes["cls_token"] == (1, 1, 384)
    assert shapes["pos_embed"] == (1, 197, 384)
    assert shapes["patch_embed.proj.weight"] == (384, 3, 16, 16)
    assert shapes["blocks.11.mlp.fc1.weight"] == (1536, 384)
    assert encoder.taps == (3, 6, 9, 12)
    assert encoder.vit.norm.eps == 1e-6
    assert ENCODERS.get("random") is ENCODERS.get("vit-256")


def test_vit_taps_are_raw_block_outputs_and_pooled_is_the_normed_class_token():
    encoder = ViTEncoder(embed_dim=48, depth=4, num_heads=3).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        output = encoder(image)
        tokens = encoder.vit._pos_embed(encoder.vit.patch_embed(image))  # the stored grid: no interpolation
        for block, tapped in zip(encoder.vit.blocks, output.features, strict=True):
            tokens = block(tokens)
            torch.testing.assert_close(tapped, tokens[:, 1:].transpose(1, 2).reshape(1, 48, 14, 14))
        torch.testing.assert_close(output.pooled, encoder.vit.norm(tokens)[:, 0])


def test_position_of_the_stored_grid_is_untouched_and_others_follow_dinos_factor():
    position = torch.randn(1, 197, 8)
    assert interpolate_position(position, (14, 14)) is position
    wide = interpolate_position(position, (16, 20))
    assert wide.shape == (1, 1 + 16 * 20, 8)
    torch.testing.assert_close(wide[:, :1], position[:, :1])
    values = torch.rand(14)
    stored = torch.cat([torch.zeros(1, 1, 1), values.repeat(14).view(1, 196, 1)], 1)  # varies along x only
    row = interpolate_position(stored, (14, 20))[0, 1:, 0].view(14, 20)[7]
    for column in range(20):
        assert row[column].item() == pytest.approx(cubic_sample(values, (column + 0.5) * 14 / 20.1 - 0.5), abs=1e-4)


def cubic_sample(values, place):
    """Cubic convolution with a = -0.75 at a real place, borders repeated."""
    left, total = math.floor(place), 0.0
    for i in range(left - 1, left + 3):
        d = abs(place - i)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
        total += float(values[min(max(i, 0), len(values) - 1)]) * (near if d <= 1 else far)
    return total


def test_gradient_checkpointing_gives_the_same_gradients(monkeypatch):
    calls = []
    original = vit_module.checkpoint
    monkeypatch.setattr(vit_module, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    plain = ViTEncoder(embed_dim=48, depth=4, num_heads=3, drop_path_rate=0.0, attn_drop_rate=0.0)
    saving = ViTEncoder(
        embed_dim=48, depth=4, num_heads=3, drop_path_rate=0.0, attn_drop_rate=0.0, gradient_checkpointing=True
    )
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 32, 32)
    for encoder in (plain, saving):
        encoder.train()(image).features[-1].square().sum().backward()
    assert len(calls) == 4
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_timm_gradient_checkpointing_is_passed_on():
    assert TimmEncoder(model="vit_tiny_patch16_224", gradient_checkpointing=True).net.grad_checkpointing


def test_windows_do_not_see_each_other_and_padding_is_cut():
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean(1, keepdim=True).expand_as(x)

    assert attend_in_windows(torch.ones(1, 1, 3, 5), Mean(), window=2).shape == (1, 1, 3, 5)
    uneven = torch.zeros(1, 1, 1, 33)
    uneven[..., 32] = 1  # three windows of eleven, not two of sixteen and one token among padding
    assert attend_in_windows(uneven, Mean(), window=16)[0, 0, 0, -1].item() == pytest.approx(1 / 11)
    tokens = torch.arange(12.0).view(1, 1, 2, 6)
    result = attend_in_windows(tokens, Mean(), window=2)
    assert result[0, 0].tolist() == [[3.5, 3.5, 5.5, 5.5, 7.5, 7.5]] * 2


def test_hybrid_means_the_same_at_any_size():
    """A window's output inside a large image equals that of the window alone, away from the borders."""
    encoder = HybridEncoder(widths=(4, 8, 12), embed_dim=24, depth=1, num_heads=2, window=4).eval()
    image = torch.zeros(1, 3, 192, 192)
    image[..., 64:128, 64:128] = torch.rand(1, 3, 64, 64)
    image[..., 64:128, 64:80] = image[..., 64:128, 112:128] = 0
    image[..., 64:80, 64:128] = image[..., 112:128, 64:128] = 0
    with torch.inference_mode():
        whole = encoder(image).features[2][..., 10:14, 10:14]
        shifted = encoder(image.roll((64, 64), (2, 3))).features[2][..., 18:22, 18:22]
    torch.testing.assert_close(whole, shifted)


def test_windows_that_fit_are_not_padded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("padded")

    tokens = torch.randn(2, 3, 4, 6)
    expected = attend_in_windows(tokens, torch.nn.Identity(), window=2)
    torch.testing.assert_close(expected, tokens)
    monkeypatch.setattr("cellvit.encoders.hybrid.F.pad", refuse)
    torch.testing.assert_close(attend_in_windows(tokens, torch.nn.Identity(), window=2), tokens)
    with pytest.raises(AssertionError, match="padded"):
        attend_in_windows(tokens[:, :, :3], torch.nn.Identity(), window=2)


def test_without_residual_blocks_the_weights_have_the_names_of_before():
    convs = {f"stages.{s}.{i}.weight" for s in range(4) for i in (0, 3)}
    of_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = {f"stages.{s}.{i}.{name}" for s in range(4) for i in (1, 4) for name in of_norm}
    plain, zeros = small_hybrid().state_dict(), small_hybrid(residual_blocks=[0, 0, 0]).state_dict()
    assert {name for name in plain if name.startswith("stages.")} == convs | norms
    assert list(plain) == list(zeros)
    more = small_hybrid(residual_blocks=(1, 0, 2)).state_dict()
    added = {name.split(".layers.")[0] for name in set(more) - set(plain)}
    assert added == {"stages.0.6", "stages.2.6", "stages.2.7"}
    assert set(plain) < set(more)


def test_residual_blocks_add_to_their_input():
    plain, deeper = small_hybrid().eval(), small_hybrid(residual_blocks=(1, 0, 2)).eval()
    missing = deeper.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    image = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        changed = deeper(image)
        for name in missing:
            if name.endswith(("layers.4.weight", "layers.4.bias")):  # the norm at the end of each block
                deeper.get_parameter(name).zero_()
        same, expected = deeper(image), plain(image)
    for a, b, other in zip(same.features, expected.features, changed.features, strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(a, other)


def test_residual_blocks_are_at_the_strides_of_their_stages():
    encoder = small_hybrid(residual_blocks=(0, 1, 0))
    groups, plain = encoder.layer_groups(), small_hybrid().layer_groups()
    more = [sum(p.numel() for p in a) - sum(p.numel() for p in b) for a, b in zip(groups, plain, strict=True)]
    assert more == [0, 2 * (8 * 8 * 9 + 2 * 8), 0, 0, 0, 0, 0]


def test_at_half_resolution_the_convolutions_see_the_image_shrunk():
    whole, half = small_hybrid().eval(), small_hybrid(shrink=2).eval()
    state = whole.state_dict()
    assert set(half.load_state_dict(state, strict=False).missing_keys) == {"neck.weight", "neck.bias"}
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected, found = whole(torch.nn.functional.avg_pool2d(image, 2)), half(image)
        deepest = half.neck(expected.features[-1])
    assert [(f.channels, f.stride) for f in half.features] == [(4, 4), (8, 8), (12, 16), (24, 16)]
    for a, b in zip(found.features, [*expected.features[:3], deepest], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found.pooled, expected.pooled)


def test_an_odd_number_of_tokens_is_cut():
    encoder = small_hybrid(shrink=2, neck_channels=10).eval()
    with torch.inference_mode():
        maps = encoder(torch.rand(1, 3, 80, 112)).features
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 20, 28), (8, 10, 14), (12, 5, 7), (10, 5, 7)]


@pytest.mark.parametrize(
    "settings", [{"shrink": 3}, {"shrink": 0}, {"neck_channels": 8}, {"shrink": 2, "neck_channels": 0}]
)
def test_a_resolution_that_makes_no_hybrid_is_refused(settings):
    with pytest.raises(ConfigError, match="give shrink 1, which has no neck, or shrink 2 and channels from 1"):
        small_hybrid(**settings)


@pytest.mark.parametrize("numbers", [(), (1, 2), (0, 0, 0, 0), (0, -1, 0)])
def test_wrong_numbers_of_residual_blocks_are_refused(numbers):
    with pytest.raises(ConfigError, match=r"do not fit widths \[4, 8, 12\]; give one number from 0 for each width"):
        small_hybrid(residual_blocks=numbers)


@pytest.mark.parametrize("taps", [(1, 2, 3), (0, 1, 2, 3), (1, 2, 2, 3), (9, 10, 11, 13)])
def test_wrong_taps_are_refused(taps):
    with pytest.raises(ConfigError, match="from 1 to 12"):
        choose_taps(12, taps=taps)


@pytest.mark.parametrize(
    ("depth", "expected"), [(12, (3, 6, 9, 12)), (24, (6, 12, 18, 24)), (32, (8, 16, 24, 32)), (4, (1, 2, 3, 4))]
)
def test_default_taps_are_the_published_ones(depth, expected):
    assert choose_taps(depth, taps=None) == expected


def test_unknown_timm_model_lists_similar_ones():
    with pytest.raises(UnknownPluginError, match="vit_small_patch16_224"):
        TimmEncoder(model="vit_smal_patch16_224")
