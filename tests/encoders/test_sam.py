from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.modeling.image_encoder import ImageEncoderViT, get_rel_pos
from torch import nn
from torch.nn import functional as F

from cellvit import CellViT
from cellvit.encoders import ENCODERS, SAMEncoder
from cellvit.encoders import sam as sam_attention
from cellvit.encoders import sam as sam_module
from cellvit.encoders.sam import distance_table, fit_position
from cellvit.errors import ConfigError
from cellvit.testing import EncoderContract

SMALL = {"embed_dim": 24, "depth": 4, "num_heads": 3, "out_chans": 8}


def small(**changes):
    return SAMEncoder(**{**SMALL, "global_attention": (1, 3), "window_size": 3, "pretrained_grid": 8, **changes})


class TestSmallSAM(EncoderContract):
    def make(self):
        return small()


class TestSmallSAMWithPublishedWindows(EncoderContract):
    def make(self):
        return SAMEncoder(**SMALL)


def randomise(module):
    """Give every tensor a value that matters: segment-anything starts positions and biases at zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.5 if "pos" in name or "bias" in name else 0.1
            parameter.copy_(torch.randn_like(parameter) * scale + ("norm" in name and "weight" in name))


def reference_pair(grid, **changes):
    """Return our encoder and segment-anything's own network with the same random tensors."""
    arguments = {**SMALL, "global_attention": (1, 3), "window_size": 14, "pretrained_grid": 64, **changes}
    ours = SAMEncoder(**arguments).eval()
    randomise(ours)
    theirs = ImageEncoderViT(
        img_size=arguments["pretrained_grid"] * 16,
        embed_dim=arguments["embed_dim"],
        depth=arguments["depth"],
        num_heads=arguments["num_heads"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=arguments["window_size"],
        global_attn_indexes=arguments["global_attention"],
        out_chans=arguments["out_chans"],
    ).eval()
    theirs.load_state_dict(ours.net.state_dict())
    height, width = grid
    theirs.pos_embed = nn.Parameter(theirs.pos_embed[:, :height, :width].clone())
    return ours, theirs


def run_reference(net, image):
    """Return the output of every block, channels first, and of the network."""
    maps = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: maps.append(out.permute(0, 3, 1, 2))) for b in net.blocks]
    final = net(image)
    for hook in hooks:
        hook.remove()
    return maps, final


def assert_equal_outputs(ours, theirs, image):
    with torch.inference_mode():
        output, (maps, final) = ours(image), run_reference(theirs, image)
    for tapped, expected in zip(output.features, maps, strict=True):
        torch.testing.assert_close(tapped, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.pooled, final.mean((2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(256, 256), (256, 320), (64, 32), (16, 480)])
def test_equals_segment_anything_with_its_position_cut(size):
    grid = (size[0] // 16, size[1] // 16)
    ours, theirs = reference_pair(grid)
    assert_equal_outputs(ours, theirs, torch.randn(2, 3, *size))


def test_equals_segment_anything_at_1024_px():
    ours, theirs = reference_pair((64, 64), embed_dim=8, num_heads=1)
    assert_equal_outputs(ours, theirs, torch.randn(1, 3, 1024, 1024))


def test_every_random_tensor_matters():
    """The comparisons above would not see a tensor that changes nothing."""
    ours, _ = reference_pair((8, 8), pretrained_grid=8, window_size=3)
    image = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        before = ours(image)
        for name, parameter in ours.named_parameters():
            kept = parameter.clone()
            parameter.copy_(torch.randn_like(parameter))
            after = ours(image)
            parameter.copy_(kept)
            # a bias of the keys shifts all logits of a query alike, but qkv.bias holds those of queries and values too
            assert not torch.allclose(before.pooled, after.pooled, atol=1e-5), name


def test_gradients_equal_those_of_segment_anything():
    ours, theirs = reference_pair((7, 10), pretrained_grid=12, window_size=3)
    image = torch.randn(1, 3, 112, 160)
    ours(image).pooled.square().sum().backward()
    run_reference(theirs, image)[1].mean((2, 3)).square().sum().backward()
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.net.named_parameters():
        expected = theirs_by_name[name].grad
        got = parameter.grad[:, :7, :10] if name == "pos_embed" else parameter.grad
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


# 7 x 5 tokens: a row of queries has 175 entries in a global block, 27 in a window of 3 x 3
@pytest.mark.parametrize(("entries", "window_parts", "global_parts"), [(1, 3, 7), (400, 1, 4), (10**9, 1, 1)])
def test_the_bias_made_in_parts_gives_the_same(entries, window_parts, global_parts, monkeypatch):
    encoder = small().eval()
    randomise(encoder)
    image = torch.randn(2, 3, 112, 80)
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    with torch.inference_mode():
        whole = encoder(image).pooled
        monkeypatch.setattr(sam_attention, "MAX_BIAS", entries)
        calls.clear()
        torch.testing.assert_close(encoder(image).pooled, whole, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2 * window_parts + 2 * global_parts  # two blocks of either kind


@given(table_side=st.integers(1, 9), side=st.integers(1, 9))
def test_distances_follow_segment_anything(table_side, side):
    table = torch.randn(2 * table_side - 1, 5)
    expected = get_rel_pos(side, side, table)
    torch.testing.assert_close(distance_table(table, side).transpose(1, 2), expected)


def test_position_is_cut_per_side_and_stretched_only_beyond_its_grid():
    position = torch.randn(1, 8, 8, 3)
    assert torch.equal(fit_position(position, (8, 8)), position)
    assert torch.equal(fit_position(position, (5, 8)), position[:, :5])
    assert torch.equal(fit_position(position, (2, 7)), position[:, :2, :7])
    wide = fit_position(position, (5, 16))
    assert wide.shape == (1, 5, 16, 3)
    rows = F.interpolate(position[0, :5].permute(0, 2, 1), size=16, mode="linear")  # rows do not mix
    blank = position.clone()
    blank[:, 3] = 0
    changed = (fit_position(blank, (5, 16)) - wide).abs().amax((0, 2, 3))
    assert (changed > 0).tolist() == [False, False, False, True, False]
    assert torch.corrcoef(torch.stack([wide.permute(0, 1, 3, 2).flatten(), rows.flatten()]))[0, 1] > 0.95


def test_images_beyond_the_stored_grid_work():
    encoder = small().eval()
    with torch.inference_mode():
        assert encoder(torch.randn(1, 3, 160, 64)).features[0].shape == (1, 24, 10, 4)


def test_zero_padding_of_a_window_takes_part():
    """As in segment-anything; masking the padding would be another network than the released one."""
    encoder = small(depth=4, global_attention=(), window_size=3).eval()
    randomise(encoder)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        padded = encoder(image).features[0]
        inside = encoder(image[..., :48, :48]).features[0]
    torch.testing.assert_close(padded[..., :3, :3], inside)  # the full window does not see the rest
    attention = encoder.net.blocks[0].attn
    tokens = torch.zeros(1, 3, 3, 24)
    tokens[:, :1, :1] = torch.randn(24)
    with torch.inference_mode():
        assert not torch.allclose(attention(tokens)[:, :1, :1], attention(tokens[:, :1, :1]), atol=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients(monkeypatch):
    calls = []
    original = sam_module.checkpoint
    monkeypatch.setattr(sam_module, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    plain, saving = small().train(), small(gradient_checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    for encoder in (plain, saving):
        encoder(image).pooled.square().sum().backward()
    assert len(calls) == 4
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    saving.eval()(image)
    assert len(calls) == 4


def test_half_precision_stays_close():
    encoder = small().eval()
    randomise(encoder)
    image = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        full = encoder(image).pooled
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(image).pooled
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "taps", "global_blocks"),
    [
        ("sam-b", 768, 12, 12, (3, 6, 9, 12), [2, 5, 8, 11]),
        ("sam-l", 1024, 24, 16, (6, 12, 18, 24), [5, 11, 17, 23]),
        ("sam-h", 1280, 32, 16, (8, 16, 24, 32), [7, 15, 23, 31]),
    ],
)
def test_published_sizes(name, width, depth, heads, taps, global_blocks):
    with torch.device("meta"):
        encoder = ENCODERS.get(name)()
    shapes = {key: tuple(value.shape) for key, value in encoder.net.state_dict().items()}
    assert encoder.taps == taps
    assert [i for i in range(depth) if shapes[f"blocks.{i}.attn.rel_pos_h"][0] == 127] == global_blocks
    assert {shapes[f"blocks.{i}.attn.rel_pos_w"] for i in range(depth)} == {(n, width // heads) for n in (27, 127)}
    assert shapes["pos_embed"] == (1, 64, 64, width)
    assert shapes["patch_embed.proj.weight"] == (width, 3, 16, 16)
    assert shapes[f"blocks.{depth - 1}.mlp.lin1.weight"] == (4 * width, width)
    assert shapes["neck.2.weight"] == (256, 256, 3, 3)
    assert encoder.net.blocks[0].norm1.eps == 1e-6
    assert {block.attn.num_heads for block in encoder.net.blocks} == {heads}


@pytest.mark.parametrize(
    ("name", "parameters", "entries"),
    [
        ("vit-256", 46_750_349, 439),
        ("sam-b", 146_094_557, 466),
        ("sam-l", 367_847_645, 634),
        ("sam-h", 699_741_149, 746),
    ],
)
def test_networks_are_as_large_as_the_released_ones(name, parameters, entries):
    # timm 1.0.20 cannot build a plain ViT without memory, and that one is small
    with torch.device("cpu" if name == "vit-256" else "meta"):
        model = CellViT(name, 6, 19, metrics=[])
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def test_pooled_parameters_are_the_neck():
    encoder = small()
    neck = {id(p) for p in encoder.net.neck.parameters()}
    assert {id(p) for p in encoder.pooled_parameters()} == neck
    encoder(torch.randn(1, 3, 32, 32)).features[-1].sum().backward()
    assert {id(p) for p in encoder.parameters() if p.grad is None} == neck


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_attention": (1, 4)}, r"\[4\] must be block numbers from 0 to 3"),
        ({"global_attention": (-1,)}, r"\[-1\]"),
        ({"num_heads": 5}, "embed_dim 24 must be a multiple of num_heads 5"),
        ({"window_size": 0}, "window_size"),
        ({"pretrained_grid": 0}, "pretrained_grid"),
        ({"depth": 0}, "depth"),
        ({"taps": (1, 2, 3)}, "taps"),
    ],
)
def test_sizes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_unknown_arguments_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"takes no argument \['attn_drop_rate'\]"):
        CellViT({"class_path": "sam-l", "init_args": {"attn_drop_rate": 0.1}})
