"""An average of weights that forgets the first ones quickly, in a Trainer."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from cellvit.errors import ConfigError
from cellvit.training.averaging import WarmupEMA

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Counter(L.LightningModule):
    """Its weight and its statistics are the number of the step, 100 before the first."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(1, 1), nn.BatchNorm1d(1)
        self.layer.weight.data.fill_(100.0)

    def training_step(self, batch, batch_idx):
        self.layer.weight.data.fill_(float(self.global_step))
        self.norm.running_mean.fill_(float(self.global_step))
        self.norm.num_batches_tracked.fill_(self.global_step)
        return 0 * self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(average, folder, steps, *, ckpt_path=None):
    keep = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=steps, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[average, keep], default_root_dir=folder,
    )  # fmt: skip
    model = Counter()
    trainer.fit(model, torch.ones(1, 4, 1), ckpt_path=ckpt_path)
    return model.layer.weight.item(), model.norm.running_mean.item(), model.norm.num_batches_tracked.item()


def expected(decay, steps):
    average = 0.0
    for step in range(1, steps):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * step
    return average


@pytest.mark.parametrize("decay", [0.999, 0.3, 0.0])
def test_the_decay_rises_with_the_steps_to_the_stated_one(decay, tmp_path):
    weight, mean, count = fit(WarmupEMA(decay), tmp_path, 30)
    assert weight == pytest.approx(expected(decay, 30))
    assert mean == pytest.approx(weight)
    assert count == 29


def test_it_is_near_the_last_weights_where_the_average_of_lightning_is_near_the_first(tmp_path):
    assert fit(WarmupEMA(), tmp_path, 30)[0] > 20
    assert fit(EMAWeightAveraging(decay=0.999), tmp_path / "plain", 30)[0] < 1


def test_a_training_that_is_resumed_goes_on_with_its_average(tmp_path):
    whole = fit(WarmupEMA(), tmp_path / "whole", 20)
    fit(WarmupEMA(), tmp_path / "begun", 12)
    assert fit(WarmupEMA(), tmp_path / "rest", 20, ckpt_path=tmp_path / "begun/last.ckpt") == pytest.approx(whole)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ConfigError, match="must be from 0 to below 1"):
        WarmupEMA(decay)
