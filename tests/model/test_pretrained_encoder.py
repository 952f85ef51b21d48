"""The callback that fills the encoder: before training, not when resuming, in every process."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from support.tiny import SHARED_UNETR, VIT, make_loader

from cellvit import CellViT
from cellvit.callbacks import EncoderFreezing, PretrainedEncoder
from cellvit.encoders import ViTEncoder
from cellvit.errors import ConfigError, WeightsError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


@pytest.fixture
def weights(tmp_path):
    """Return a file as HIPT publishes it, of a small network."""
    state = {
        f"module.backbone.{k}": torch.randn_like(v) for k, v in ViTEncoder(**VIT["init_args"]).vit.state_dict().items()
    }
    path = tmp_path / "vit256_small_dino.pth"
    torch.save({"teacher": {**state, "module.head.mlp.0.weight": torch.zeros(2, 24)}}, path)
    return path


def make_model():
    return CellViT(VIT, 3, num_tissue_classes=2, decoder=SHARED_UNETR)


class Start(L.Callback):
    """Keeps the encoder's state as training starts."""

    def __init__(self):
        self.states = []

    def on_train_start(self, trainer, pl_module):
        self.states.append({k: v.clone() for k, v in pl_module.encoder.vit.state_dict().items()})


def make_trainer(folder, *callbacks, epochs=1, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder,
        **{"devices": 1, "enable_checkpointing": False, **quiet, **options},
    )  # fmt: skip


def holds(state, path):
    teacher = torch.load(path, weights_only=True)["teacher"]
    return all(torch.equal(value, teacher[f"module.backbone.{name}"]) for name, value in state.items())


@pytest.mark.parametrize("freezing_first", [False, True])
def test_training_starts_from_the_file_also_with_a_frozen_encoder(freezing_first, weights, tmp_path):
    start, model = Start(), make_model()
    callbacks = [PretrainedEncoder(str(weights)), EncoderFreezing(unfreeze_epoch=1)]
    make_trainer(tmp_path, *(reversed(callbacks) if freezing_first else callbacks), start).fit(model, make_loader())
    assert holds(start.states[0], weights)
    assert holds(model.encoder.vit.state_dict(), weights)  # frozen: still what the file holds


def test_the_encoder_trains_on_from_the_file(weights, tmp_path):
    start, model = Start(), make_model()
    make_trainer(tmp_path, PretrainedEncoder(str(weights)), start).fit(model, make_loader())
    assert holds(start.states[0], weights)
    assert not holds(model.encoder.vit.state_dict(), weights)


def test_a_resumed_training_needs_no_file(weights, tmp_path):
    first = make_model()
    trainer = make_trainer(tmp_path, PretrainedEncoder(str(weights)))
    trainer.fit(first, make_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    weights.unlink()
    start, second = Start(), make_model()
    resuming = make_trainer(tmp_path, PretrainedEncoder(str(weights)), start, epochs=2)
    resuming.fit(second, make_loader(), ckpt_path=tmp_path / "last.ckpt")
    trained = first.encoder.vit.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in start.states[0].items())


def test_training_on_with_the_same_trainer_keeps_what_was_learnt(weights, tmp_path):
    start, model = Start(), make_model()
    trainer = make_trainer(tmp_path, PretrainedEncoder(str(weights)), start)
    trainer.fit(model, make_loader())
    trained = {k: v.clone() for k, v in model.encoder.vit.state_dict().items()}
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, make_loader())
    assert all(torch.equal(value, trained[name]) for name, value in start.states[1].items())


@pytest.mark.parametrize("form", ["$CELLVIT_WEIGHTS/{}", "${{CELLVIT_WEIGHTS}}/{}"])
def test_environment_variables_are_replaced(form, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(weights.parent))
    start = Start()
    make_trainer(tmp_path, PretrainedEncoder(form.format(weights.name)), start).fit(make_model(), make_loader())
    assert holds(start.states[0], weights)


@pytest.mark.parametrize("form", ["$CELLVIT_WEIGHTS/x.pth", "${CELLVIT_WEIGHTS}/x.pth"])
def test_an_unset_variable_is_named_with_the_origin_of_the_file(form, tmp_path, monkeypatch):
    monkeypatch.delenv("CELLVIT_WEIGHTS", raising=False)
    with pytest.raises(ConfigError, match=r"names CELLVIT_WEIGHTS, which is not set.*vit256_small_dino\.pth of HIPT"):
        make_trainer(tmp_path, PretrainedEncoder(form)).fit(make_model(), make_loader())


def test_a_missing_file_is_named_with_its_origin(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.pth'.*no such file.*sam_vit_b_01ec64\.pth"):
        make_trainer(tmp_path, PretrainedEncoder(str(tmp_path / "gone.pth"))).fit(make_model(), make_loader())


def test_validation_loads_nothing(tmp_path):
    make_trainer(tmp_path, PretrainedEncoder("gone.pth")).validate(make_model(), make_loader(), verbose=False)


def test_it_needs_a_cellvit():
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="PretrainedEncoder works on CellViT, not LightningModule"):
        PretrainedEncoder("x.pth").on_fit_start(trainer, L.LightningModule())


SCRIPT = """
import sys
from pathlib import Path

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import lightning as L
import torch
from test_pretrained_encoder import EncoderFreezing, PretrainedEncoder, holds, make_loader, make_model, make_trainer

weights = Path(sys.argv[2])


class SameEverywhere(L.Callback):
    def on_train_start(self, trainer, pl_module):
        assert holds(pl_module.encoder.vit.state_dict(), weights)

    def on_train_end(self, trainer, pl_module):
        flat = torch.cat([p.detach().flatten() for p in pl_module.encoder.parameters()])
        ranks = trainer.strategy.all_gather(flat)
        assert ranks.shape[0] == 2
        assert torch.equal(ranks[0], ranks[1])
        assert not holds(pl_module.encoder.vit.state_dict(), weights)
        (weights.parent / f"same_{trainer.global_rank}").touch()


if __name__ == "__main__":
    torch.manual_seed(0)
    callbacks = PretrainedEncoder(str(weights)), EncoderFreezing(unfreeze_epoch=1), SameEverywhere()
    trainer = make_trainer(weights.parent, *callbacks, epochs=2, devices=2, strategy="ddp")
    trainer.fit(make_model(), make_loader())
"""


@pytest.mark.slow
def test_every_process_starts_from_the_file(weights, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(script), str(Path(__file__).parent), str(weights)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "same_0").exists()
    assert (tmp_path / "same_1").exists()
