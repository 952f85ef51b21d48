"""Parts that do not train: which parameters and statistics stay, when they thaw."""

import lightning as L
import pytest
import torch
from support.tiny import SHARED_UNETR, make_loader

from cellvit import CellViT
from cellvit.errors import ConfigError
from cellvit.training.freezing import EncoderFreezing, PartFreezing

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
HYBRID = {"class_path": "hybrid", "init_args": {"widths": [4, 4, 8], "embed_dim": 12, "depth": 4, "num_heads": 3}}


def make_model():
    torch.manual_seed(0)
    return CellViT(HYBRID, 3, 2, decoder=SHARED_UNETR)


class Watch(L.Callback):
    """Keeps the state at the end of each epoch."""

    def __init__(self):
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({k: v.clone() for k, v in pl_module.state_dict().items() if not k.startswith("scores")})


def fit(folder, callback, *, epochs=2, model=None):
    model, watch = make_model() if model is None else model, Watch()
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("scores")}
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[callback, watch], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, make_loader(), make_loader())
    return [before, *watch.states]


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_parts_keep_weights_and_statistics(tmp_path):
    before, _, after = fit(tmp_path, PartFreezing(["encoder", "heads.hv_map"]))
    moved = changed(before, after)
    assert any(".running_mean" in name for name in before if name.startswith("encoder."))  # there is something to hold
    assert not [name for name in moved if name.startswith(("encoder.", "heads.hv_map."))]
    assert {"heads.nuclei_binary_map.output.weight", "heads.tissue_types.output.weight"} <= moved
    statistics = {name for name in before if name.startswith("decoder.") and "running" in name}
    assert statistics
    assert statistics <= moved


def test_parts_thaw_in_their_epoch_with_their_statistics(tmp_path):
    before, first, second = fit(tmp_path, PartFreezing(["encoder"], unfreeze_epoch=1))
    assert not [name for name in changed(before, first) if name.startswith("encoder.")]
    moved = {name for name in changed(first, second) if name.startswith("encoder.")}
    assert any("running_mean" in name for name in moved)
    assert any(name.endswith("weight") for name in moved)


def test_the_first_layer_groups_of_the_encoder_can_be_frozen_alone(tmp_path):
    model = make_model()
    groups = model.encoder.layer_groups()
    assert len(groups) >= 4
    inside = {id(p) for group in groups[:2] for p in group}
    names = {f"encoder.{name}" for name, p in model.encoder.named_parameters() if id(p) in inside}
    before, _, after = fit(tmp_path, PartFreezing(["encoder"], encoder_groups=2), model=model)
    moved = changed(before, after)
    assert names
    assert not names & moved
    later = {f"encoder.{n}" for n, p in model.encoder.named_parameters() if id(p) not in inside and p.requires_grad}
    assert later & moved


def test_the_published_freezing_lets_statistics_of_the_encoder_move(tmp_path):
    before, after = fit(tmp_path, EncoderFreezing(unfreeze_epoch=9), epochs=1)
    moved = {name for name in changed(before, after) if name.startswith("encoder.")}
    assert moved
    assert all("running" in name or "num_batches" in name for name in moved)


class Record(L.Callback):
    """Notes at every step how many parameters of the encoder train, and how many of its batch norms do."""

    def __init__(self):
        self.steps = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        norms = [m for m in pl_module.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        trains = sum(p.requires_grad for p in pl_module.encoder.parameters())
        self.steps[trainer.global_step] = (trains, sum(m.training for m in norms))


class Save(L.Callback):
    """Writes a checkpoint after a step, as one that saves every few steps does."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def record(folder, *callbacks, ckpt_path=None):
    recorder = Record()
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, limit_val_batches=0,
        enable_model_summary=False, callbacks=[*callbacks, recorder], default_root_dir=folder,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(make_model(), make_loader(8), ckpt_path=ckpt_path)
    return recorder.steps


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("save_at", [1, 3, 4, 5, 6, 8])
def test_a_training_resumed_anywhere_trains_what_an_uninterrupted_one_does(save_at, tmp_path):
    def freezing():
        return PartFreezing(["encoder"], unfreeze_epoch=1)

    whole = record(tmp_path, freezing(), Save(save_at, tmp_path / "at.ckpt"))
    assert len({trains for trains, _ in whole.values()}) == 2
    resumed = record(tmp_path, freezing(), ckpt_path=tmp_path / "at.ckpt")
    assert resumed
    assert resumed == {step: state for step, state in whole.items() if step in resumed}


@pytest.mark.parametrize("reverse", [False, True])
def test_parts_thaw_step_by_step_in_any_order_of_callbacks(reverse, tmp_path):
    callbacks = [
        PartFreezing(["encoder"], unfreeze_epoch=1),
        PartFreezing(["encoder"], encoder_groups=2, unfreeze_epoch=2),
    ]
    steps = record(tmp_path, *(reversed(callbacks) if reverse else callbacks))
    trains = [steps[step][0] for step in (0, 4, 8)]
    model = make_model()
    early = {id(p) for group in model.encoder.layer_groups()[:2] for p in group}
    count = sum(p.requires_grad for p in model.encoder.parameters())
    assert trains == [0, count - sum(id(p) in early for p in model.encoder.parameters()), count]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": []}, r"parts \[\] must be a list such as"),
        ({"parts": "encoder"}, r"parts 'encoder' must be a list such as"),
        ({"parts": ["decoder"], "encoder_groups": 2}, "encoder_groups 2 needs 'encoder' among the parts"),
        ({"parts": ["encoder"], "encoder_groups": 0}, "encoder_groups 0 .* must be at least 1"),
        ({"parts": ["encoder"], "unfreeze_epoch": -1}, "unfreeze_epoch -1 is negative"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        PartFreezing(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["stem"]}, "no part 'stem' to freeze; it has: encoder, decoder, heads, heads.nuclei_binary_map"),
        ({"parts": ["heads.wrong"]}, "no part 'heads.wrong'"),
        (
            {"parts": ["encoder"], "encoder_groups": 99},
            "encoder_groups 99: encoder HybridEncoder has ",
        ),
        ({"parts": ["encoder", "decoder", "heads"]}, "freeze the whole model; leave something to train"),
        (
            {"parts": ["encoder", "decoder", "heads"], "unfreeze_epoch": 2},
            "freeze the whole model; leave something to train",
        ),
        ({"parts": ["scores"]}, r"parts \['scores'\] hold no parameters that train"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_when_training_starts(options, message):
    with pytest.raises(ConfigError, match=message):
        PartFreezing(**options).setup(None, make_model(), "fit")
