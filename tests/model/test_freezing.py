"""Parts that do not train: which parameters and statistics stay, when they thaw."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from cellvit import CellViT
from cellvit.errors import ConfigError
from cellvit.freezing import EncoderFreezing, PartFreezing

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
HYBRID = {"class_path": "hybrid", "init_args": {"widths": [4, 4, 8], "embed_dim": 12, "depth": 4, "num_heads": 3}}
DECODER = {
    "class_path": "unetr",
    "init_args": {"widths": [4, 6, 8, 10], "skip_widths": [6, 4], "image_width": 3, "shared_levels": 3},
}


def make_model():
    torch.manual_seed(0)
    return CellViT(HYBRID, 3, 2, decoder=DECODER)


def make_loader():
    torch.manual_seed(1)
    labels = torch.zeros(32, 32, dtype=torch.int64)
    labels[8:20, 8:20] = 1
    maps = dict.fromkeys(("instance_map", "nuclei_binary_map", "nuclei_type_map"), labels)
    item = {"image": torch.rand(3, 32, 32), "hv_map": torch.zeros(2, 32, 32), "tissue_types": torch.tensor(0)}
    return DataLoader([{**item, **maps, "name": "a"}] * 4, batch_size=2)


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
    ],
)
def test_what_does_not_fit_the_model_is_refused_when_training_starts(options, message):
    with pytest.raises(ConfigError, match=message):
        PartFreezing(**options).setup(None, make_model(), "fit")
