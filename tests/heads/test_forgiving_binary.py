import pytest
import torch

from cellvit.errors import ConfigError
from cellvit.heads import HEADS, BinaryHead, ForgivingBinaryHead
from cellvit.losses import focal_cross_entropy_loss, forgiven_pixels
from cellvit.testing.head import SIZES, HeadContract, make_batch

NUCLEUS = torch.tensor([-8.0, 8.0])


class TestForgivingBinary(HeadContract):
    make = staticmethod(ForgivingBinaryHead)


def test_it_is_the_binary_head_with_another_loss():
    head = ForgivingBinaryHead(SIZES)
    assert HEADS.get("binary-forgiving") is ForgivingBinaryHead
    assert head.branch == BinaryHead.branch
    BinaryHead(SIZES).load_state_dict(head.state_dict())


def test_a_certain_nucleus_where_none_is_labelled_costs_nothing():
    batch = make_batch()
    batch["nuclei_binary_map"] = torch.zeros(2, 16, 24, dtype=torch.long)
    logits = torch.zeros(2, 2, 16, 24)
    logits[..., 4:8, 4:8] = NUCLEUS.view(2, 1, 1)
    logits.requires_grad_()
    total = sum(ForgivingBinaryHead(SIZES, forgive_above=0.99).losses(logits, batch).values())
    total.backward()
    assert (logits.grad[..., 4:8, 4:8] == 0).all()
    assert (logits.grad[..., 8:, 8:] != 0).all()
    logits.grad = None
    sum(ForgivingBinaryHead(SIZES, forgive_above=1.1).losses(logits, batch).values()).backward()
    assert (logits.grad[..., 4:8, 4:8] != 0).all()


def test_a_labelled_nucleus_is_never_forgiven():
    target = torch.tensor([[[0, 1]]])
    probs = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).view(1, 2, 1, 2)
    assert forgiven_pixels(probs, target, threshold=0.9).tolist() == [[[True, False]]]
    assert not forgiven_pixels(probs, target, threshold=1.1).any()
    with pytest.raises(ConfigError, match=r"above 0\.5"):
        forgiven_pixels(probs, target, threshold=0.5)


def test_without_weights_and_smoothing_it_is_the_cross_entropy():
    logits, target = torch.randn(2, 2, 5, 6), torch.randint(0, 2, (2, 5, 6))
    expected = torch.nn.functional.cross_entropy(logits, target)
    found = focal_cross_entropy_loss(logits.softmax(1), target, gamma=0.0)
    torch.testing.assert_close(found, expected)
    smooth = focal_cross_entropy_loss(logits.softmax(1), target, gamma=0.0, smoothing=0.1)
    torch.testing.assert_close(smooth, torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1))


def test_hard_pixels_count_more_and_ignored_ones_not():
    probs = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).view(1, 2, 1, 2)
    target = torch.zeros(1, 1, 2, dtype=torch.long)
    easy, hard = (
        focal_cross_entropy_loss(probs, target, gamma=2.0, ignored=torch.tensor(ignored).view(1, 1, 2))
        for ignored in ([False, True], [True, False])
    )
    assert hard / easy == pytest.approx((0.9 / 0.1) ** 2 * (torch.tensor(0.1).log() / torch.tensor(0.9).log()).item())
    assert focal_cross_entropy_loss(probs, target, ignored=torch.ones(1, 1, 2, dtype=torch.bool)) == 0


@pytest.mark.parametrize("settings", [{"forgive_above": 0.5}, {"smoothing": 1.0}, {"gamma": -1.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match="forgive_above"):
        ForgivingBinaryHead(SIZES, **settings)


@pytest.mark.parametrize("settings", [{"gamma": -0.1}, {"smoothing": -0.1}])
def test_impossible_losses_are_refused(settings):
    probs = torch.full((1, 2, 1, 1), 0.5)
    with pytest.raises(ConfigError, match="gamma"):
        focal_cross_entropy_loss(probs, torch.zeros(1, 1, 1, dtype=torch.long), **settings)
