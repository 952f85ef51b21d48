"""The two HV losses against slow loops and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.errors import DataError
from cellvit.losses import hv_gradient_loss, hv_mse_loss


def random_hv(seed, *, batch=2, height=6, width=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pred, target = (torch.rand(batch, 2, height, width, generator=generator, dtype=dtype) * 2 - 1 for _ in range(2))
    return pred, target, torch.rand(batch, height, width, generator=generator) < 0.6


def slow_derivative(plane, axis):
    """The 5 x 5 derivative of one plane along axis 0 (rows) or 1 (columns), zeros around the image."""
    height, width = plane.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for di in range(-2, 3):
                for dj in range(-2, 3):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        step = (di, dj)[axis]
                        out[i, j] += plane[i + di, j + dj] * step / (di * di + dj * dj + 1e-15)
    return out


def slow_gradient_loss(pred, target, mask, axes):
    pred, target, mask = pred.double().numpy(), target.double().numpy(), mask.numpy()
    error = area = 0.0
    for b in range(len(mask)):
        for channel, axis in enumerate(axes):
            difference = slow_derivative(pred[b, channel], axis) - slow_derivative(target[b, channel], axis)
            error += (difference**2 * mask[b]).sum()
            area += mask[b].sum()
    return error / (area + 1e-8)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**20), swap=st.booleans())
def test_gradient_equals_the_slow_loop(seed, swap):
    pred, target, mask = random_hv(seed)
    # Channel 0 is the horizontal map: along columns as meant, along rows as released.
    expected = slow_gradient_loss(pred, target, mask, axes=(0, 1) if swap else (1, 0))
    assert hv_gradient_loss(pred, target, mask, swap_axes=swap).item() == pytest.approx(expected, rel=1e-5)


def test_swapping_the_axes_is_transposing_the_image():
    pred, target, mask = random_hv(1)
    swapped = hv_gradient_loss(pred, target, mask, swap_axes=True)
    transposed = hv_gradient_loss(pred.mT.contiguous(), target.mT.contiguous(), mask.mT)
    torch.testing.assert_close(swapped, transposed)
    assert not torch.isclose(swapped, hv_gradient_loss(pred, target, mask))


def test_a_ramp_along_x_is_seen_only_along_x():
    ramp = torch.arange(9.0).expand(9, 9)
    pred = torch.zeros(1, 2, 9, 9)
    pred[0, 0] = ramp
    inner = torch.zeros(1, 9, 9, dtype=torch.bool)
    inner[0, 2:-2, 2:-2] = True
    # The kernel's answer to a slope of 1: the sum of d² / (h² + v²).
    slope = sum(h * h / (h * h + v * v) for h in range(-2, 3) for v in range(-2, 3) if h or v)
    assert slope == pytest.approx(12)
    still = torch.zeros_like(pred)
    assert hv_gradient_loss(pred, still, inner).item() == pytest.approx(144 / 2, rel=1e-6)
    assert hv_gradient_loss(pred, still, inner, swap_axes=True).item() == pytest.approx(0, abs=1e-8)


def test_only_the_mask_counts():
    pred, target, mask = random_hv(2)
    far = torch.zeros_like(mask)
    far[:, 0, 0] = True
    changed = pred.clone()
    changed[:, :, 3:, 3:] += 5  # more than two pixels away from the masked corner
    torch.testing.assert_close(hv_gradient_loss(changed, target, far), hv_gradient_loss(pred, target, far))
    torch.testing.assert_close(hv_gradient_loss(pred, target, mask.long()), hv_gradient_loss(pred, target, mask))


def test_no_nuclei_is_zero_with_zero_gradient():
    pred, target, mask = random_hv(3)
    pred.requires_grad_()
    value = hv_gradient_loss(pred, target, torch.zeros_like(mask))
    value.backward()
    assert value.item() == 0
    assert (pred.grad == 0).all()


def test_gradcheck():
    pred, target, mask = random_hv(4, batch=1, height=3, width=4, dtype=torch.float64)
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: hv_gradient_loss(p, target, mask), pred)
    assert torch.autograd.gradcheck(lambda p: hv_gradient_loss(p, target, mask, swap_axes=True), pred)
    assert torch.autograd.gradcheck(lambda p: hv_mse_loss(p, target), pred)


def test_autocast_does_not_lower_the_precision():
    pred, target, mask = random_hv(5)
    plain = hv_gradient_loss(pred, target, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = hv_gradient_loss(pred, target, mask)
        half = hv_gradient_loss(pred.bfloat16(), target, mask)
    assert value.dtype == half.dtype == torch.float32
    torch.testing.assert_close(value, plain)


def test_mse_is_the_mean_over_everything():
    pred, target, _ = random_hv(6)
    expected = ((pred.double() - target.double()) ** 2).numpy().mean()
    assert hv_mse_loss(pred, target).item() == pytest.approx(expected, rel=1e-6)


class TestBadInput:
    def test_channels(self):
        with pytest.raises(DataError, match=r"\(1, 3, 4, 4\)"):
            hv_mse_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))

    def test_shapes(self):
        with pytest.raises(DataError, match="do not fit"):
            hv_gradient_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 4, 4))

    def test_mask(self):
        with pytest.raises(DataError, match=r"mask \(1, 4, 5\)"):
            hv_gradient_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5))
