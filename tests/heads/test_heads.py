import pytest
import torch
from torch.nn import functional as F

from cellvit.errors import ConfigError
from cellvit.heads import HEADS, BinaryHead, HeadSizes, HVHead, NucleiTypeHead, TissueHead
from cellvit.losses import binary_focal_tversky_loss, focal_tversky_loss, hv_gradient_loss

SIZES = HeadSizes(decoder_channels=4, pooled_channels=5, num_nuclei_classes=3, num_tissue_classes=7)
ALL = ["binary", "hv", "nuclei-type", "tissue"]


def make_batch(batch=2, height=16, width=24):
    types = torch.randint(0, 3, (batch, height, width))
    return {
        "image": torch.rand(batch, 3, height, width),
        "instance_map": (types > 0).long(),
        "nuclei_binary_map": (types > 0).long(),
        "hv_map": torch.rand(batch, 2, height, width) * 2 - 1,
        "nuclei_type_map": types,
        "tissue_types": torch.randint(0, 7, (batch,)),
        "name": ["a"] * batch,
    }


def features(head):
    return torch.randn(2, 4, 16, 24) if head.source == "decoder" else torch.randn(2, 5)


@pytest.mark.parametrize("name", ALL)
def test_contract(name):
    head = HEADS.get(name)(SIZES)
    batch = make_batch()
    logits = head(features(head))
    expected = (2, head.out_channels, 16, 24) if head.source == "decoder" else (2, 7)
    assert tuple(logits.shape) == expected == tuple(head.activate(logits).shape)
    assert head.branch in batch
    terms = head.losses(logits, batch)
    assert set(terms) == set(head.default_losses)
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("name", ["binary", "nuclei-type", "tissue"])
def test_activations_are_probabilities(name):
    head = HEADS.get(name)(SIZES)
    probs = head.activate(head(features(head)) * 9)
    torch.testing.assert_close(probs.sum(1), torch.ones_like(probs.sum(1)))
    assert probs.min() >= 0


def test_default_weights_are_the_published_ones():
    assert BinaryHead(SIZES).loss_weights == {"focal_tversky": 1.0, "dice": 1.0}
    assert HVHead(SIZES).loss_weights == {"mse": 2.5, "msge": 8.0}
    assert NucleiTypeHead(SIZES).loss_weights == {"focal_tversky": 0.5, "dice": 0.2, "cross_entropy": 0.5}
    assert TissueHead(SIZES).loss_weights == {"cross_entropy": 0.1}


@pytest.mark.parametrize("name", ALL)
def test_weights_scale_terms_and_terms_left_out_are_not_there(name):
    head, batch = HEADS.get(name)(SIZES), make_batch()
    logits = head(features(head)).detach()
    first = next(iter(head.default_losses))
    double = HEADS.get(name)(SIZES, losses={first: 2.0})
    torch.testing.assert_close(double.losses(logits, batch)[first], 2 * head.loss_terms(logits, batch)[first])
    assert set(double.losses(logits, batch)) == {first}


def test_unknown_loss_lists_the_known_ones():
    with pytest.raises(ConfigError, match="focal_tversky, dice"):
        BinaryHead(SIZES, losses={"dise": 1.0})


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


def test_losses_are_computed_in_float32_under_autocast():
    head, batch = BinaryHead(SIZES), make_batch()
    logits = torch.randn(2, 2, 16, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head.losses(logits, batch)
    for name, value in head.losses(logits, batch).items():
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], value)


def test_tissue_head_without_tissues_is_refused():
    with pytest.raises(ConfigError, match="num_tissue_classes"):
        TissueHead(HeadSizes(4, 5, 3, 0))
