import pytest
import torch
from support.tiny import NARROW_HYBRID, NARROW_UNETR

from cellvit import CellViT
from cellvit.errors import ConfigError
from cellvit.geometry.star import object_probability, radial_distances
from cellvit.heads import HEADS, ObjectProbabilityHead, RadialDistancesHead
from cellvit.testing.head import SIZES, HeadContract, make_batch, make_features

SMALL = {"encoder": NARROW_HYBRID, "decoder": NARROW_UNETR}
STAR = {
    "heads": {
        "object_probability": "object-probability",
        "radial_distances": "radial-distances",
        "nuclei_type_map": "nuclei-type",
    },
    "postprocessor": "star-nms",
}


class TestObjectProbability(HeadContract):
    make = staticmethod(ObjectProbabilityHead)


class TestRadialDistances(HeadContract):
    make = staticmethod(RadialDistancesHead)


def squares():
    """A batch with two squares in each image."""
    batch = make_batch()
    instances = torch.zeros_like(batch["instance_map"])
    instances[:, 2:9, 3:10] = 1
    instances[:, 5:14, 12:20] = 2
    return batch | {"instance_map": instances}


def test_names():
    assert HEADS.get("object-probability") is ObjectProbabilityHead
    assert HEADS.get("radial-distances") is RadialDistancesHead


def test_activations_are_probabilities_and_positive_distances():
    probability, distances = ObjectProbabilityHead(SIZES), RadialDistancesHead(SIZES)
    logits = torch.linspace(-20, 20, 50).view(1, 1, 5, 10)
    assert ((probability.activate(logits) >= 0) & (probability.activate(logits) <= 1)).all()
    assert (distances.activate(logits) > 0).all()
    assert (distances.activate(logits).diff() > 0).all()
    assert distances.activate(logits).max().item() == pytest.approx(200, rel=1e-3)


def test_an_untrained_network_finds_nothing_and_guesses_the_size_of_a_nucleus():
    probability, distances = ObjectProbabilityHead(SIZES), RadialDistancesHead(SIZES)
    features = make_features(probability) * 0.1
    assert probability.activate(probability(features)).max() < 0.3
    guess = distances.activate(distances(features))
    assert guess.min() > 3
    assert guess.max() < 14


def test_distances_cost_nothing_but_the_background_where_they_are_the_targets():
    batch = squares()
    target = radial_distances(batch["instance_map"])
    logits = (torch.expm1(target.double() / 10)).log().float()  # inverse of 10 softplus; -inf outside
    head = RadialDistancesHead(SIZES)
    terms = head.loss_terms(logits, batch)
    assert terms["absolute_error"].item() == pytest.approx(0, abs=1e-4)
    assert terms["background"].item() == 0
    worse = head.loss_terms(logits + 0.5, batch)
    assert worse["absolute_error"] > 1


def test_probability_costs_least_where_it_is_the_target():
    batch = squares()
    target = object_probability(batch["instance_map"]).clamp(1e-4, 1 - 1e-4)
    head = ObjectProbabilityHead(SIZES)
    best = head.loss_terms(target.logit()[:, None], batch)["cross_entropy"]
    assert best < head.loss_terms(target.logit()[:, None] + 0.5, batch)["cross_entropy"]
    assert best < head.loss_terms(target.logit()[:, None] - 0.5, batch)["cross_entropy"]


def test_images_without_nuclei_train_too():
    batch = make_batch()
    batch["instance_map"] = torch.zeros_like(batch["instance_map"])
    for head in (ObjectProbabilityHead(SIZES), RadialDistancesHead(SIZES)):
        loss = sum(head.losses(head(make_features(head)), batch).values())
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(dtype):
    batch = squares()
    for head in (ObjectProbabilityHead(SIZES), RadialDistancesHead(SIZES)):
        logits = head(make_features(head)).detach().to(dtype)
        half, single = head.losses(logits, batch), head.losses(logits.float(), batch)
        for name, value in half.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, single[name])


def test_number_of_rays_is_configuration():
    head = RadialDistancesHead(SIZES, num_rays=8)
    assert head.out_channels == 8
    assert head.init_args == {"num_rays": 8}
    assert torch.isfinite(head.losses(head(make_features(head)), squares())["absolute_error"])
    with pytest.raises(ConfigError, match="num_rays 2"):
        RadialDistancesHead(SIZES, num_rays=2)


def test_a_model_trains_predicts_and_comes_back_from_its_folder(tmp_path):
    model = CellViT(**SMALL, **STAR, num_nuclei_classes=3, class_names=["b", "s", "l"])
    batch = {key: value[..., :16] for key, value in squares().items() if key in ("image", "instance_map")}
    batch["nuclei_type_map"] = batch["instance_map"]
    outputs = model(batch["image"])
    assert {"object_probability", "radial_distances", "nuclei_type_map"} <= set(outputs)
    loss = torch.stack([v for n, h in model.heads.items() for v in h.losses(outputs[n], batch).values()]).sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval().save_pretrained(tmp_path)
    again = CellViT.from_pretrained(tmp_path)
    assert again.settings == model.settings
    maps = model.predict_maps(batch["image"])
    for name, value in again.predict_maps(batch["image"]).items():
        torch.testing.assert_close(value, maps[name])


def test_the_postprocessor_refuses_other_heads():
    with pytest.raises(ConfigError, match="radial_distances"):
        CellViT(**SMALL, postprocessor="star-nms")
