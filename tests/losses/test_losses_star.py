"""The losses of star-convex shapes against slow loops and by hand."""

import math

import pytest
import torch

from cellvit.errors import DataError
from cellvit.losses import background_distance_loss, object_probability_loss, radial_distance_loss


def random_distances(*, dtype=torch.float32):
    pred, target = (torch.rand(2, 5, 3, 4, dtype=dtype) * 20 for _ in range(2))
    return pred, target, (torch.rand(2, 3, 4, dtype=dtype) - 0.4).clamp_min(0)


def test_probability_equals_the_slow_loop():
    logits, target = torch.randn(2, 1, 3, 4) * 4, torch.rand(2, 3, 4)
    costs = []
    for z, t in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        costs.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
    assert object_probability_loss(logits, target).item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_probability_is_best_where_it_is_the_target():
    target = torch.rand(1, 6, 6).clamp(0.05, 0.95)
    logits = target.logit()[:, None].requires_grad_()
    object_probability_loss(logits, target).backward()
    assert logits.grad.abs().max() < 1e-6


def test_certain_logits_stay_finite():
    logits, target = torch.tensor([-500.0, 500.0]).view(1, 1, 1, 2), torch.tensor([[[1.0, 0.0]]])
    assert object_probability_loss(logits, target).item() == pytest.approx(500)


def test_distance_equals_the_slow_loop():
    pred, target, weight = random_distances()
    above = below = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(4):
                error = sum(abs(pred[b, k, i, j] - target[b, k, i, j]).item() for k in range(5)) / 5
                above += weight[b, i, j].item() * error
                below += weight[b, i, j].item()
    assert radial_distance_loss(pred, target, weight).item() == pytest.approx(above / below, rel=1e-5)


def test_only_nuclei_train_distances_and_only_background_shrinks():
    pred, target, weight = random_distances()
    inside = weight.unsqueeze(1).expand_as(pred) > 0
    pred.requires_grad_()
    radial_distance_loss(pred, target, weight).backward()
    assert (pred.grad[inside] != 0).all()
    assert (pred.grad[~inside] == 0).all()
    pred.grad = None
    background_distance_loss(pred, weight).backward()
    assert (pred.grad[inside] == 0).all()
    assert (pred.grad[~inside] > 0).all()


def test_the_scale_of_the_weights_does_not_matter():
    pred, target, weight = random_distances()
    torch.testing.assert_close(
        radial_distance_loss(pred, target, weight * 7), radial_distance_loss(pred, target, weight)
    )


def test_without_nuclei_and_without_background_the_loss_is_zero_with_zero_gradient():
    pred, target, weight = random_distances()
    pred.requires_grad_()
    nothing = radial_distance_loss(pred, target, torch.zeros_like(weight))
    everything = background_distance_loss(pred, torch.ones_like(weight))
    (nothing + everything).backward()
    assert nothing.item() == everything.item() == 0
    assert not pred.grad.any()


def test_gradcheck():
    pred, target, weight = random_distances(dtype=torch.float64)
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: radial_distance_loss(p, target, weight), pred)
    assert torch.autograd.gradcheck(lambda p: background_distance_loss(p, weight), pred)
    assert torch.autograd.gradcheck(lambda p: object_probability_loss(p[:, :1], weight), pred)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    pred, target, weight = (v.to(dtype) for v in random_distances())
    for value in (
        radial_distance_loss(pred, target, weight),
        background_distance_loss(pred, weight),
        object_probability_loss(pred[:, :1] - 10, weight),
    ):
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
    single = radial_distance_loss(pred.float(), target.float(), weight.float())
    torch.testing.assert_close(radial_distance_loss(pred, target, weight), single)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(DataError, match=r"\(1, 2, 4, 4\)"):
        object_probability_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(DataError, match=r"\(1, 4, 5\)"):
        object_probability_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 5))
    with pytest.raises(DataError, match="do not fit"):
        radial_distance_loss(torch.zeros(1, 8, 4, 4), torch.zeros(1, 9, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(DataError, match="do not fit"):
        background_distance_loss(torch.zeros(1, 8, 4, 4), torch.zeros(1, 4))
