import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from cellvit import CellViT
from cellvit.callbacks import EncoderFreezing
from cellvit.errors import ConfigError


def make_loader(count=2):
    item = {
        "image": torch.rand(3, 32, 32),
        "instance_map": torch.zeros(32, 32, dtype=torch.int64),
        "nuclei_binary_map": torch.zeros(32, 32, dtype=torch.int64),
        "hv_map": torch.zeros(2, 32, 32),
        "nuclei_type_map": torch.zeros(32, 32, dtype=torch.int64),
        "tissue_types": torch.tensor(-1),
        "name": "a",
    }
    for key in ("instance_map", "nuclei_binary_map", "nuclei_type_map"):
        item[key][8:20, 8:20] = 1
    return DataLoader([item] * count, batch_size=count)


class Watch(L.Callback):
    """Notes per epoch whether the encoder's weights moved and whether it was in training mode."""

    def __init__(self):
        self.moved, self.training = [], []

    def weights(self, module):
        return torch.cat([p.detach().flatten() for p in module.encoder.parameters()])

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = self.weights(pl_module).clone()
        self.training.append(pl_module.encoder.training)

    def on_train_epoch_end(self, trainer, pl_module):
        self.moved.append(not torch.equal(self.before, self.weights(pl_module)))


def fit(settings, callbacks, epochs, tmp_path, **trainer):
    model = CellViT(**settings, num_tissue_classes=2)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, callbacks=callbacks, default_root_dir=tmp_path,
        **quiet, **trainer,
    ).fit(model, make_loader())  # fmt: skip
    return model


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_encoder_is_frozen_until_its_epoch_and_stays_in_training_mode(small_settings, tmp_path):
    watch = Watch()
    fit(small_settings, [EncoderFreezing(unfreeze_epoch=2), watch], 4, tmp_path)
    assert watch.moved == [False, False, True, True]
    assert watch.training == [True] * 4


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_zero_never_freezes(small_settings, tmp_path):
    watch = Watch()
    fit(small_settings, [EncoderFreezing(unfreeze_epoch=0), watch], 1, tmp_path)
    assert watch.moved == [True]


def test_negative_epoch_is_refused():
    with pytest.raises(ConfigError, match="negative"):
        EncoderFreezing(unfreeze_epoch=-1)


def test_freezing_needs_a_cellvit():
    with pytest.raises(ConfigError, match="works on CellViT"):
        EncoderFreezing().setup(None, L.LightningModule(), "fit")
