import pytest
import torch
from torch.nn import functional as F

from cellvit.errors import ConfigError
from cellvit.heads import HEADS, BinaryHead, HeadSizes, HVHead, NucleiTypeHead, TissueHead
from cellvit.losses import (
    binary_focal_tversky_loss,
    cross_entropy_loss,
    dice_loss,
    focal_tversky_loss,
    hv_gradient_loss,
)
from cellvit.testing.head import SIZES, HeadContract, make_batch, make_features


class TestBinary(HeadContract):
    make = staticmethod(BinaryHead)


class TestHV(HeadContract):
    make = staticmethod(HVHead)


class TestNucleiType(HeadContract):
    """With the loss that is off as published, so that all terms are there."""

    def make(self, sizes, **settings):
        every = {**NucleiTypeHead.default_losses, "unknown_type": 1.0}
        return NucleiTypeHead(sizes, **{"losses": every, **settings})


class TestTissue(HeadContract):
    make = staticmethod(TissueHead)


@pytest.mark.parametrize("name", ["binary", "nuclei-type", "tissue"])
def test_activations_are_probabilities(name):
    head = HEADS.get(name)(SIZES)
    probs = head.activate(head(make_features(head)) * 9)
    torch.testing.assert_close(probs.sum(1), torch.ones_like(probs.sum(1)))
    assert probs.min() >= 0


def test_default_weights_are_the_published_ones():
    assert BinaryHead(SIZES).loss_weights == {"focal_tversky": 1.0, "dice": 1.0}
    assert HVHead(SIZES).loss_weights == {"mse": 2.5, "msge": 8.0}
    published = {"focal_tversky": 0.5, "dice": 0.2, "cross_entropy": 0.5}
    assert NucleiTypeHead(SIZES).loss_weights == {**published, "unknown_type": 0.0}
    assert TissueHead(SIZES).loss_weights == {"cross_entropy": 0.1}


def test_released_variant_repeats_the_second_softmax_and_the_swapped_axes():
    batch = make_batch()
    logits = torch.randn(2, 2, 16, 24)
    doubled = logits.softmax(1).softmax(1)
    released = BinaryHead(SIZES, variant="released").loss_terms(logits, batch)
    torch.testing.assert_close(
        released["focal_tversky"], binary_focal_tversky_loss(doubled, batch["nuclei_binary_map"])
    )
    assert released["focal_tversky"] != BinaryHead(SIZES).loss_terms(logits, batch)["focal_tversky"]
    swapped = HVHead(SIZES, variant="released").loss_terms(logits, batch)["msge"]
    expected = hv_gradient_loss(logits, batch["hv_map"], batch["nuclei_binary_map"], swap_axes=True)
    torch.testing.assert_close(swapped, expected)
    types = torch.randn(2, 3, 16, 24)
    released = NucleiTypeHead(SIZES, variant="released").loss_terms(types, batch)
    expected = focal_tversky_loss(types.softmax(1).softmax(1), batch["nuclei_type_map"])
    torch.testing.assert_close(released["focal_tversky"], expected)


def test_nuclei_of_unknown_type_do_not_train_the_type_head_but_the_others():
    batch = make_batch()
    unknown = batch["nuclei_type_map"] > 0
    batch["nuclei_type_map"][unknown] = -1
    logits = torch.randn(2, 3, 16, 24, requires_grad=True)
    sum(NucleiTypeHead(SIZES).losses(logits, batch).values()).backward()
    assert logits.grad.permute(0, 2, 3, 1)[unknown].abs().max() == 0
    assert logits.grad.permute(0, 2, 3, 1)[~unknown].abs().min(0).values.max() > 0
    binary = torch.randn(2, 2, 16, 24, requires_grad=True)
    sum(BinaryHead(SIZES).losses(binary, batch).values()).backward()
    assert binary.grad.permute(0, 2, 3, 1)[unknown].abs().min() > 0


@pytest.mark.parametrize("variant", ["corrected", "released"])
def test_without_the_loss_of_unknown_types_the_losses_are_the_published_ones(variant):
    batch, logits = make_batch(), torch.randn(2, 3, 16, 24)
    batch["nuclei_type_map"][:, :8][batch["nuclei_type_map"][:, :8] > 0] = -1
    probs, target = logits.softmax(1), batch["nuclei_type_map"]
    doubled = probs.softmax(1) if variant == "released" else probs
    expected = {
        "focal_tversky": 0.5 * focal_tversky_loss(doubled, target, ignore_index=-1),
        "dice": 0.2 * dice_loss(probs, target, ignore_index=-1),
        "cross_entropy": 0.5 * cross_entropy_loss(probs, target, ignore_index=-1),
    }
    losses = NucleiTypeHead(SIZES, variant=variant).losses(logits, batch)
    assert list(losses) == list(expected)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)


def test_nuclei_of_unknown_type_are_pushed_away_from_background_alone():
    batch = make_batch()
    batch["nuclei_type_map"][:, :8][batch["nuclei_type_map"][:, :8] > 0] = -1
    unknown = batch["nuclei_type_map"] == -1
    start = torch.randn(2, 3, 16, 24)

    def gradient(weight):
        logits = start.clone().requires_grad_()
        losses = {**NucleiTypeHead.default_losses, "unknown_type": weight}
        sum(NucleiTypeHead(SIZES, losses=losses).losses(logits, batch).values()).backward()
        return logits.grad.permute(0, 2, 3, 1)

    on, off = gradient(1.0), gradient(0.0)
    assert (on[unknown][:, 0] > 0).all()  # a step downhill makes background less probable
    assert (on[unknown][:, 1:] < 0).all()
    # Which type it is stays open: the types share the push in proportion to their probabilities.
    torch.testing.assert_close(on[unknown][:, 1] / on[unknown][:, 2], (start[:, 1] - start[:, 2])[unknown].exp())
    torch.testing.assert_close(on[~unknown], off[~unknown])
    torch.testing.assert_close(gradient(2.0)[unknown], 2 * on[unknown])


def test_unknown_tissue_is_left_out_and_all_unknown_costs_nothing():
    head, batch, logits = TissueHead(SIZES), make_batch(), torch.randn(2, 7, requires_grad=True)
    batch["tissue_types"] = torch.tensor([3, -1])
    value = head.losses(logits, batch)["cross_entropy"]
    torch.testing.assert_close(value, 0.1 * F.cross_entropy(logits[:1], torch.tensor([3])))
    batch["tissue_types"] = torch.tensor([-1, -1])
    value = head.losses(logits, batch)["cross_entropy"]
    value.backward()
    assert value == 0
    assert logits.grad.abs().max() == 0


def test_a_temperature_divides_the_logits_outside_of_training():
    logits, batch = torch.randn(2, 3, 16, 24), make_batch()
    plain, cooled = NucleiTypeHead(SIZES), NucleiTypeHead(SIZES, temperature=2.5)
    torch.testing.assert_close(cooled.activate(logits), (logits / 2.5).softmax(1))
    assert torch.equal(cooled.activate(logits).argmax(1), plain.activate(logits).argmax(1))
    expected = plain.losses(logits, batch)
    assert all(torch.equal(value, expected[name]) for name, value in cooled.losses(logits, batch).items())
    for wrong in (0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=f"temperature {wrong} must be finite and above 0"):
            NucleiTypeHead(SIZES, temperature=wrong)


def test_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="'corrected' or 'released'"):
        HVHead(SIZES, variant="paper")


def test_tissue_head_without_tissues_is_refused():
    with pytest.raises(ConfigError, match="num_tissue_classes"):
        TissueHead(HeadSizes(4, 5, 3, 0))


def test_losses_of_types_may_look_at_fewer_pixels():
    batch, logits = make_batch(), torch.randn(2, 3, 16, 24)
    few = {key: value[..., ::2, ::2] if key == "nuclei_type_map" else value for key, value in batch.items()}
    found = NucleiTypeHead(SIZES, loss_stride=2).eval().loss_terms(logits, batch)
    expected = NucleiTypeHead(SIZES).loss_terms(logits[..., ::2, ::2], few)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigError, match="loss_stride"):
        NucleiTypeHead(SIZES, loss_stride=0)


def test_in_training_every_pixel_has_its_turn_and_target():
    """Pixels that a decoder puts together from channels, as sub-pixels, would otherwise never learn."""
    batch, head = make_batch(), NucleiTypeHead(SIZES, loss_stride=2)
    right = torch.nn.functional.one_hot(batch["nuclei_type_map"].clamp(min=0), 3).movedim(-1, 1).float()
    seen = torch.zeros(16, 24)
    for _ in range(60):
        logits = (100 * right).requires_grad_()
        terms = head.loss_terms(logits, batch)
        assert terms["cross_entropy"] < 1e-3  # the right pixels of the target
        uniform = torch.zeros_like(logits, requires_grad=True)
        head.loss_terms(uniform, batch)["cross_entropy"].backward()
        touched = uniform.grad.abs().sum((0, 1)) > 0
        assert touched.sum() == 8 * 12
        seen += touched
    assert (seen > 0).all()
