"""Dice, focal Tversky and cross-entropy against slow loops, by hand, and at the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import ConfigError, DataError
from cellvit.losses import binary_focal_tversky_loss, cross_entropy_loss, dice_loss, focal_tversky_loss

LOSSES = [dice_loss, binary_focal_tversky_loss, focal_tversky_loss, cross_entropy_loss]


def random_maps(seed, *, batch=2, classes=3, height=5, width=4, dtype=torch.float32, ignored=0.0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(batch, classes, height, width, generator=generator, dtype=dtype).mul(2).softmax(1)
    target = torch.randint(0, classes, (batch, height, width), generator=generator)
    drop = torch.rand(batch, height, width, generator=generator) < ignored
    return probs, target.masked_fill(drop, -1)


def pixels_of(probs, target):
    """Every pixel that counts, as (probability vector, class id), in plain Python."""
    p, t = probs.double().numpy(), target.numpy()
    places = [(b, i, j) for b in range(t.shape[0]) for i in range(t.shape[1]) for j in range(t.shape[2])]
    return [(p[b, :, i, j], t[b, i, j]) for b, i, j in places if t[b, i, j] != -1]


def slow_dice(pixels, classes, s=1e-3):
    total = 0.0
    for c in range(classes):
        overlap = sum(p[c] for p, t in pixels if t == c)
        area = sum(p[c] for p, _ in pixels) + sum(1 for _, t in pixels if t == c)
        total += 1 - (2 * overlap + s) / (area + s)
    return total


def slow_tversky_index(pixels, channels, alpha, beta, eps=1e-6):
    tp = fn = fp = 0.0
    for p, t in pixels:
        for c in channels:
            if t == c:
                tp += p[c]
                fn += 1 - p[c]
            else:
                fp += p[c]
    return (tp + eps) / (tp + alpha * fn + beta * fp + eps)


def slow_focal_tversky(pixels, classes, alpha=0.7, beta=0.3, gamma=4 / 3):
    return sum((1 - slow_tversky_index(pixels, [c], alpha, beta)) ** gamma for c in range(classes))


def slow_binary_focal_tversky(pixels, classes, alpha=0.7, beta=0.3, gamma=4 / 3):
    return (1 - slow_tversky_index(pixels, range(classes), alpha, beta)) ** gamma


def slow_cross_entropy(pixels, classes, eps=1e-7):
    costs = [-math.log(min(max(p[t] / sum(p), eps), 1 - eps)) for p, t in pixels]
    return sum(costs) / len(costs)


SLOW = {
    dice_loss: slow_dice,
    focal_tversky_loss: slow_focal_tversky,
    binary_focal_tversky_loss: slow_binary_focal_tversky,
    cross_entropy_loss: slow_cross_entropy,
}


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), classes=st.integers(2, 5), ignored=st.sampled_from([0.0, 0.3]))
def test_equals_the_slow_loop(loss, seed, classes, ignored):
    probs, target = random_maps(seed, classes=classes, ignored=ignored)
    pixels = pixels_of(probs, target)
    assert loss(probs, target, ignore_index=-1).item() == pytest.approx(SLOW[loss](pixels, classes), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("loss", [focal_tversky_loss, binary_focal_tversky_loss])
def test_tversky_weights_and_exponent_are_used(loss):
    probs, target = random_maps(3)
    slow = SLOW[loss](pixels_of(probs, target), 3, alpha=0.2, beta=1.1, gamma=2.0)
    assert loss(probs, target, alpha=0.2, beta=1.1, gamma=2.0).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_ignoring_equals_deleting_the_pixels(loss):
    probs, target = random_maps(5, batch=1, height=4, width=6)
    ignored = target.clone()
    ignored[:, :, 4:] = -1
    kept = loss(probs[..., :4].contiguous(), target[..., :4].contiguous())
    torch.testing.assert_close(loss(probs, ignored, ignore_index=-1), kept)


@pytest.mark.parametrize("loss", LOSSES)
def test_an_ignored_class_equals_an_ignored_id_outside(loss):
    probs, target = random_maps(6)
    outside = target.masked_fill(target == 2, -1)
    torch.testing.assert_close(loss(probs, target, ignore_index=2), loss(probs, outside, ignore_index=-1))


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_have_no_gradient_and_the_others_have(loss):
    probs, target = random_maps(7, ignored=0.4)
    probs.requires_grad_()
    loss(probs, target, ignore_index=-1).backward()
    ignored = (target == -1).unsqueeze(1).expand_as(probs)
    assert (probs.grad[ignored] == 0).all()
    per_pixel = probs.grad.abs().sum(1)
    assert (per_pixel[target != -1] > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_zero_gradient(loss):
    probs, target = random_maps(8)
    probs.requires_grad_()
    value = loss(probs, torch.full_like(target, -1), ignore_index=-1)
    value.backward()
    assert value.item() == 0
    assert (probs.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("right", [True, False])
def test_certain_probabilities_give_finite_gradients(loss, right):
    _, target = random_maps(9)
    probs = torch.nn.functional.one_hot(target if right else (target + 1) % 3, 3).permute(0, 3, 1, 2).float()
    probs.requires_grad_()
    value = loss(probs, target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(probs.grad).all()
    if right:
        assert value.item() == pytest.approx(0, abs=1e-5)
    else:
        assert value.item() > 0.9


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_probability_in_all_channels_is_survived(loss):
    probs, target = random_maps(10)
    probs = torch.zeros_like(probs).requires_grad_()
    loss(probs, target).backward()
    assert torch.isfinite(probs.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    probs, target = random_maps(11, batch=2, height=2, width=3, dtype=torch.float64, ignored=0.2)
    probs.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, target, ignore_index=-1), probs)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss):
    probs, target = random_maps(12)
    half = probs.bfloat16()
    value = loss(half, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.float(), target))


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_layout_does_not_matter(loss):
    probs, target = random_maps(13)
    torch.testing.assert_close(loss(probs.contiguous(memory_format=torch.channels_last), target), loss(probs, target))


def test_sums_stay_exact_on_large_maps():
    # 2 M pixels of probability 0.9: adding them one by one in float32 would be off in the fourth digit.
    target = torch.zeros(8, 512, 512, dtype=torch.long)
    probs = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).expand(8, 2, 512, 512)
    assert dice_loss(probs, target).item() == pytest.approx(1 - 1.8 / 1.9 + 1, abs=1e-6)
    assert binary_focal_tversky_loss(probs, target).item() == pytest.approx(0.1 ** (4 / 3), abs=1e-6)


def test_dice_by_hand():
    # One image, pixels (0.8, 0.2) of class 0 and (0.4, 0.6) of class 1.
    probs = torch.tensor([[0.8, 0.4], [0.2, 0.6]]).view(1, 2, 1, 2)
    target = torch.tensor([[[0, 1]]])
    expected = (1 - 1.601 / 2.201) + (1 - 1.201 / 1.801)
    assert dice_loss(probs, target).item() == pytest.approx(expected, abs=1e-6)


def test_dice_of_a_perfect_map_with_an_absent_class_is_zero():
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).view(1, 3, 1, 2)
    assert dice_loss(probs, torch.tensor([[[0, 1]]])).item() == pytest.approx(0, abs=1e-6)


def test_binary_focal_tversky_is_the_mean_true_probability():
    probs, target = random_maps(14, classes=2)
    mean = probs.gather(1, target.unsqueeze(1)).mean().item()
    assert binary_focal_tversky_loss(probs, target).item() == pytest.approx((1 - mean) ** (4 / 3), abs=1e-5)
    assert binary_focal_tversky_loss(probs, target, alpha=0.1, beta=0.9).item() == pytest.approx(
        (1 - mean) ** (4 / 3), abs=1e-5
    )


def test_cross_entropy_renormalises_and_clamps():
    probs = torch.tensor([[2.0, 0.0], [2.0, 1.0]]).view(1, 2, 1, 2)
    expected = (math.log(2) - math.log(1e-7)) / 2
    assert cross_entropy_loss(probs, torch.tensor([[[0, 0]]])).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_agrees_with_torch_away_from_the_clamp():
    logits = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    target = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (2, 5, 5)))
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(cross_entropy_loss(logits.softmax(1), target), expected)


@pytest.mark.parametrize("loss", LOSSES)
class TestBadInput:
    def test_shapes(self, loss):
        with pytest.raises(DataError, match=r"\(2, 3, 5, 4\).*\(2, 4, 5\)"):
            loss(torch.rand(2, 3, 5, 4), torch.zeros(2, 4, 5, dtype=torch.long))

    def test_float_ids(self, loss):
        with pytest.raises(DataError, match=r"torch\.float32; pass integers"):
            loss(torch.rand(1, 3, 5, 4), torch.zeros(1, 5, 4))

    @pytest.mark.parametrize("bad", [-1, 3])
    def test_unknown_ids(self, loss, bad):
        target = torch.zeros(1, 5, 4, dtype=torch.long)
        target[0, 2, 2] = bad
        with pytest.raises(DataError, match="3 channels"):
            loss(torch.rand(1, 3, 5, 4), target)


@pytest.mark.parametrize("loss", [focal_tversky_loss, binary_focal_tversky_loss])
def test_gamma_below_one_is_refused(loss):
    with pytest.raises(ConfigError, match=r"0\.75"):
        loss(*random_maps(1), gamma=0.75)
