import math

import pytest
import torch

from cellvit.errors import ConfigError
from cellvit.model.schedules import WarmupConstantLR, WarmupCosineLR, WarmupStableDecayLR


def rates(steps, schedule=WarmupCosineLR, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = schedule(optimizer, **settings)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def test_rises_linearly_and_falls_along_half_a_cosine():
    found = rates(21, total_steps=20, warmup=0.2)
    assert found[:4] == pytest.approx([2 * k / 5 for k in (1, 2, 3, 4)])
    expected = [1 + math.cos(math.pi * k / 16) for k in range(17)]
    assert found[4:] == pytest.approx(expected)


def test_stays_at_its_last_rate():
    assert rates(12, total_steps=5, warmup=0.0, final=0.1)[5:] == pytest.approx([0.2] * 7)


def test_state_survives_a_round_trip_as_plain_data(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = WarmupCosineLR(optimizer, total_steps=10)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    torch.save(scheduler.state_dict(), tmp_path / "s.pt")
    again = WarmupCosineLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0), total_steps=10)
    again.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True))
    assert again.last_epoch == 3
    assert again.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize(
    "settings", [{"total_steps": 0}, {"total_steps": 5, "warmup": 1.0}, {"total_steps": 5, "warmup": -0.1}]
)
def test_impossible_schedules_are_refused(settings):
    with pytest.raises(ConfigError, match="total_steps"):
        rates(1, **settings)


def test_constant_rises_stays_and_falls_where_asked():
    assert rates(8, WarmupConstantLR, warmup_steps=3) == pytest.approx([0.5, 1.0, 1.5, 2, 2, 2, 2, 2])
    found = rates(9, WarmupConstantLR, warmup_steps=0, cooldown_start=2, cooldown_steps=4, final=0.2)
    assert found == pytest.approx([2, 2, 2, 1.6, 1.2, 0.8, 0.4, 0.4, 0.4])


def test_shares_of_a_training_rise_stay_and_fall():
    found = rates(11, WarmupStableDecayLR, total_steps=10, warmup=0.3, decay=0.4, final=0.2)
    assert found == pytest.approx([0.5, 1.0, 1.5, 2, 2, 2, 2, 1.6, 1.2, 0.8, 0.4])
    assert rates(3, WarmupStableDecayLR, total_steps=1, warmup=0.0, decay=1.0) == pytest.approx([2, 0, 0])
    assert rates(4, WarmupStableDecayLR, total_steps=3, warmup=0.5, decay=0.5)[-1] == 0


@pytest.mark.parametrize(
    "settings", [{"total_steps": 0}, {"warmup": -0.1}, {"decay": 0.0}, {"warmup": 0.5, "decay": 0.6}]
)
def test_impossible_shares_are_refused(settings):
    with pytest.raises(ConfigError, match=r"must be at least 1, warmup .* together at most 1"):
        rates(1, WarmupStableDecayLR, **{"total_steps": 9, **settings})


def test_a_resumed_training_may_begin_to_fall():
    first = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = WarmupConstantLR(first, warmup_steps=1)
    for _ in range(5):
        first.step()
        scheduler.step()
    second = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    again = WarmupConstantLR(second, warmup_steps=1, cooldown_start=5, cooldown_steps=2)
    again.load_state_dict(scheduler.state_dict())
    for expected in (1.0, 0.0, 0.0):
        second.step()
        again.step()
        assert second.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": -1}, {"cooldown_steps": 0}, {"warmup_steps": 9, "cooldown_start": 8}]
)
def test_impossible_constant_schedules_are_refused(settings):
    with pytest.raises(ConfigError, match="warmup_steps"):
        rates(1, WarmupConstantLR, **settings)
