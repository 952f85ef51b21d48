"""Learning rates that fall towards the input of the encoder."""

import pytest
import torch
from support.tiny import SHARED_UNETR, VIT

from cellvit import CellViT
from cellvit.encoders import ViTEncoder
from cellvit.errors import ConfigError
from cellvit.model.optimizers import build_optimisers, parameter_groups

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
HALVING = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}


def make_model(**settings):
    return CellViT(VIT, 3, 2, decoder=SHARED_UNETR, optimizer=SGD, lr_scheduler=HALVING, **settings)


def rates(optimizer):
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def test_each_layer_learns_at_its_power_of_the_decay():
    configured = make_model(layer_decay=0.5).configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    # stem, four blocks and the final norm; what follows the encoder learns at the full rate
    expected = {"rest": 0.5, **{f"encoder.{k}": 0.5 * 0.5 ** (6 - k) for k in range(6)}}
    assert rates(optimizer) == pytest.approx(expected)
    optimizer.step()
    scheduler.step()
    assert rates(optimizer) == pytest.approx({name: rate / 2 for name, rate in expected.items()})


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_parameter_is_in_one_group(layer_decay):
    model = make_model()
    groups = parameter_groups(model, model.encoder, layer_decay=layer_decay)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len(groups) == (1 if layer_decay == 1 else 7)


def test_without_a_decay_nothing_differs():
    optimizer = make_model().configure_optimizers()["optimizer"]
    assert rates(optimizer) == {"all": 0.5}


def test_one_step_moves_layers_by_their_rates():
    model = make_model(layer_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.encoder.named_parameters()}
    optimizer = model.configure_optimizers()["optimizer"]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: (before[name] - p).mean().item() for name, p in model.encoder.named_parameters()}
    assert moved["vit.patch_embed.proj.weight"] == pytest.approx(0.5 * 0.5**6, rel=1e-4)
    assert moved["vit.blocks.3.attn.qkv.weight"] == pytest.approx(0.5 * 0.5**2, rel=1e-4)


def test_a_schedule_that_sets_the_rates_itself_is_refused():
    one_cycle = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.1, "total_steps": 9}}
    model = make_model()
    options = {"optimizer": SGD, "lr_scheduler": one_cycle}
    build_optimisers(model, model.encoder, layer_decay=1.0, **options)
    with pytest.raises(ConfigError, match=r"OneCycleLR' sets the learning rates itself and undoes layer_decay 0.5"):
        build_optimisers(model, model.encoder, layer_decay=0.5, **options)


@pytest.mark.parametrize(
    ("name", "arguments", "works"),
    [
        ("CosineAnnealingLR", {"T_max": 5}, True),
        ("CosineAnnealingLR", {"T_max": 5, "eta_min": 1e-3}, False),
        ("CosineAnnealingWarmRestarts", {"T_0": 5, "eta_min": 1e-3}, False),
        ("ExponentialLR", {"gamma": 0.9}, True),
        ("ReduceLROnPlateau", {}, True),
        ("ReduceLROnPlateau", {"min_lr": 1e-3}, False),
    ],
)
def test_a_schedule_with_a_floor_undoes_the_decay_later_and_is_refused_at_once(name, arguments, works):
    model = make_model()
    schedule = {"class_path": f"torch.optim.lr_scheduler.{name}", "init_args": arguments}
    options = {"optimizer": SGD, "lr_scheduler": schedule, "layer_decay": 0.5}
    if works:
        _, built = build_optimisers(model, model.encoder, **options)
        assert type(built).__name__ == name
    else:
        with pytest.raises(ConfigError, match="undoes layer_decay"):
            build_optimisers(model, model.encoder, **options)


class Forgetful(ViTEncoder):
    """An encoder whose groups leave parameters out."""

    def layer_groups(self):
        return super().layer_groups()[1:]


def test_an_encoder_whose_groups_leave_something_out_is_named():
    model = CellViT(Forgetful(**VIT["init_args"]), 3, decoder=SHARED_UNETR, layer_decay=0.5)
    with pytest.raises(ConfigError, match="encoder Forgetful cannot train with layer_decay"):
        model.configure_optimizers()


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1.5])
def test_a_decay_outside_its_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=rf"layer_decay {wrong} must be above 0 and at most 1"):
        make_model(layer_decay=wrong)


def test_it_is_saved_with_the_model(tmp_path):
    make_model(layer_decay=0.75).save_pretrained(tmp_path)
    assert CellViT.from_pretrained(tmp_path).layer_decay == 0.75
