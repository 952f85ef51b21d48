"""The loss of pixels of which only one thing is known: that they are not background."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import DataError
from cellvit.losses import partial_label_loss

UNKNOWN = -1


def drawn_maps(seed, *, classes=3, unknown=0.4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 4, 5, generator=generator, dtype=dtype) * 3
    target = torch.randint(0, classes, (2, 4, 5), generator=generator)
    return logits.softmax(1), target.masked_fill(torch.rand(2, 4, 5, generator=generator) < unknown, UNKNOWN)


def test_known_value():
    # Three pixels: unknown with p0 = 0.2, unknown with p0 = 0.9, and one of class 2 that costs nothing.
    probs = torch.tensor([[0.2, 0.9, 0.6], [0.5, 0.05, 0.3], [0.3, 0.05, 0.1]]).view(1, 3, 1, 3)
    value = partial_label_loss(probs, torch.tensor([[[UNKNOWN, UNKNOWN, 2]]]), index=UNKNOWN)
    assert value.item() == pytest.approx(-(math.log(0.8) + math.log(0.1)) / 3, rel=1e-5)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), classes=st.integers(2, 6), unknown=st.sampled_from([0.0, 0.2, 1.0]))
def test_equals_minus_log_of_not_background(seed, classes, unknown):
    probs, target = drawn_maps(seed, classes=classes, unknown=unknown)
    pixels = zip(probs[:, 0].ravel().tolist(), target.ravel().tolist(), strict=True)
    costs = [-math.log(1 - background) if label == UNKNOWN else 0.0 for background, label in pixels]
    value = partial_label_loss(probs, target, index=UNKNOWN).item()
    assert value == pytest.approx(sum(costs) / len(costs), rel=1e-6, abs=1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**20))
def test_which_type_is_probable_does_not_matter(seed):
    probs, target = drawn_maps(seed, classes=4)
    swapped = probs[:, [0, 3, 1, 2]]
    torch.testing.assert_close(
        partial_label_loss(swapped, target, index=UNKNOWN), partial_label_loss(probs, target, index=UNKNOWN)
    )


def test_without_such_pixels_it_is_zero_with_zero_gradient():
    probs, target = drawn_maps(1, unknown=0.0)
    probs.requires_grad_()
    value = partial_label_loss(probs, target, index=UNKNOWN)
    value.backward()
    assert value.item() == 0
    assert (probs.grad == 0).all()


def test_the_gradient_is_at_such_pixels_alone_and_raises_the_other_classes():
    probs, target = drawn_maps(2)
    probs.requires_grad_()
    partial_label_loss(probs, target, index=UNKNOWN).backward()
    gradient, unknown = probs.grad.permute(0, 2, 3, 1), target == UNKNOWN
    assert 0 < unknown.sum() < unknown.numel()
    assert (gradient[~unknown] == 0).all()
    assert (gradient[unknown][:, 0] == 0).all()  # background sinks through the softmax
    assert (gradient[unknown][:, 1:] < 0).all()


def test_any_id_can_be_the_one():
    probs, target = drawn_maps(3)
    other = target.masked_fill(target == UNKNOWN, 255)
    torch.testing.assert_close(
        partial_label_loss(probs, other, index=255), partial_label_loss(probs, target, index=UNKNOWN)
    )


def test_certain_probabilities_are_finite():
    target = torch.full((1, 1, 2), UNKNOWN)
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2).requires_grad_()
    value = partial_label_loss(probs, target, index=UNKNOWN)
    value.backward()
    assert value.item() == pytest.approx(-math.log(1e-7) / 2, rel=1e-6)
    assert torch.isfinite(probs.grad).all()
    none_right = partial_label_loss(probs.detach(), target, index=UNKNOWN, epsilon=1e-3)
    assert none_right.item() == pytest.approx(-math.log(1e-3) / 2, rel=1e-6)


def test_gradcheck():
    probs, target = drawn_maps(4)
    assert torch.autograd.gradcheck(
        lambda p: partial_label_loss(p.softmax(1), target, index=UNKNOWN), probs.log().requires_grad_()
    )


def test_half_precision_is_computed_in_float32():
    probs, target = drawn_maps(5)
    half = probs.bfloat16()
    value = partial_label_loss(half, target, index=UNKNOWN)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, partial_label_loss(half.float(), target, index=UNKNOWN))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(2, 4, 6, dtype=torch.long), r"\(2, 3, 4, 5\) and class ids \(2, 4, 6\) do not fit"),
        (torch.zeros(2, 1, 4, 5, dtype=torch.long), "do not fit"),
        (torch.zeros(2, 4, 5), r"torch\.float32; pass integers"),
        (torch.full((2, 4, 5), 3), "3 channels"),
        (torch.full((2, 4, 5), -2), "3 channels"),
    ],
    ids=["size", "axes", "float ids", "id too large", "negative id"],
)
def test_targets_that_do_not_fit_are_refused(target, message):
    with pytest.raises(DataError, match=message):
        partial_label_loss(drawn_maps(6)[0], target, index=UNKNOWN)
