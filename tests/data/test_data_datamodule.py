import json
import os
import subprocess
import sys

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from cellvit.data import FolderDataModule, WeightedDraws
from cellvit.errors import ConfigError


def module(root, **settings):
    defaults = {"crop_size": 24, "batch_size": 4, "samples_per_epoch": 12, "num_workers": 0}
    return FolderDataModule(str(root), **{**defaults, **settings})


def test_loaders(two_datasets):
    data = module(two_datasets, class_names=["Background", "a", "b", "c", "d"], seed=1)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [tuple(b["image"].shape) for b in batches] == [(4, 3, 24, 24)] * 3
    assert {n for b in batches for n in b["name"]} <= {"typed/a", "typed/b", "plain/c"}
    assert [b["name"] for b in data.val_dataloader()] == [["plain/d"], ["typed/e"]]


@pytest.mark.parametrize("augmentation", [None, {}], ids=["published", "none"])
def test_workers_do_not_change_the_draws(two_datasets, augmentation):
    sums = []
    for workers in (0, 2):
        data = module(two_datasets, num_workers=workers, seed=1, augmentation=augmentation)
        data.setup("fit")
        loader = data.train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append(torch.cat([b["image"] for b in loader]))
        assert not torch.equal(*epochs)
        sums.append(torch.stack(epochs))
    assert torch.equal(*sums)


def test_data_sets_are_chosen_for_training_and_evaluation(two_datasets):
    data = module(two_datasets, datasets=["typed"], val_datasets=["plain"])
    data.setup("fit")
    assert {n for b in data.train_dataloader() for n in b["name"]} <= {"typed/a", "typed/b"}
    assert [b["name"] for b in data.val_dataloader()] == [["plain/d"]]
    data = module(two_datasets, datasets=["typed"], dataset_weights={"typed": 1.0})
    data.setup("fit")
    assert [b["name"] for b in data.val_dataloader()] == [["typed/e"]]


def test_balance_and_weights_hold_for_training_alone(two_datasets):
    """No validation image of the data set is typed, and the weights do not name a set that only val has."""
    settings = {"datasets": ["typed"], "val_datasets": ["plain"], "dataset_weights": {"typed": 1.0}}
    data = module(two_datasets, type_balance=1.0, samples_per_epoch=40, augmentation={}, **settings)
    data.setup("fit")
    types = torch.cat([b["nuclei_type_map"] for b in data.train_dataloader()])
    assert (types.flatten(1).max(1).values > 0).all()
    plain = module(two_datasets, **settings)
    plain.setup("fit")
    for ours, theirs in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert ours["name"] == theirs["name"] == ["plain/d"]
        assert torch.equal(ours["image"], theirs["image"])
    for stage in ("validate", "test"):
        data.setup(stage)
    assert [b["name"] for b in data.test_dataloader()] == [["plain/d"]]


def test_weights_and_balance_decide_the_draws_together(two_datasets):
    def drawn(**settings):
        data = module(two_datasets, samples_per_epoch=60, seed=2, **settings)
        data.setup("fit")
        return [name.split("/")[0] for b in data.train_dataloader() for name in b["name"]]

    only_plain = {"typed": 0.0, "plain": 1.0}
    assert set(drawn(dataset_weights=only_plain)) == {"plain"}
    mostly_plain = {"typed": 0.02, "plain": 0.98}
    assert drawn(dataset_weights=mostly_plain).count("typed") < 10
    assert 20 < drawn(dataset_weights=mostly_plain, type_balance=0.5).count("typed") < 40
    with pytest.raises(ConfigError, match=r"type_balance 0\.5 needs nuclei of known type"):
        drawn(dataset_weights=only_plain, type_balance=0.5)
    with pytest.raises(ConfigError, match="dataset_weights names"):
        drawn(dataset_weights={"typed": 1.0})


def test_evaluation_leaves_out_training_sets_without_images_of_the_split(data_folder):
    data_folder.add("a", "1", "train").add("b", "2", "train").add("b", "3", "val").add("c", "4", "val")
    data = module(data_folder.write(), datasets=["a", "b"])
    data.setup("validate")
    assert [b["name"] for b in data.val_dataloader()] == [["b/3"]]


def test_test_uses_its_split_or_val(data_folder):
    data_folder.add_plain("train", "x").add_plain("val", "y")
    data = module(data_folder.root)
    data.setup("test")
    assert [b["name"] for b in data.test_dataloader()] == [["nuclei/y"]]
    data_folder.add_plain("test", "z")
    data = module(data_folder.root)
    data.setup("test")
    assert [b["name"] for b in data.test_dataloader()] == [["nuclei/z"]]


def test_predict_reads_images_alone(data_folder, monkeypatch):
    data_folder.add_plain("", "b").add_plain("", "a")
    monkeypatch.setenv("SOME_FOLDER", str(data_folder.root))
    data = module("unused", predict_dir="${SOME_FOLDER}/images")
    data.setup("predict")
    assert [b["name"] for b in data.predict_dataloader()] == [["a.png"], ["b.png"]]
    with pytest.raises(ConfigError, match="predict_dir is not set"):
        module("unused").setup("predict")


def test_variables_in_the_root_are_expanded(two_datasets, monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", str(two_datasets.parent))
    assert module("${SOME_FOLDER}/nuclei").root == two_datasets
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(ConfigError, match=r"names \$\{SOME_FOLDER\}, which is not set; .* export SOME_FOLDER="):
        module("${SOME_FOLDER}/nuclei")


@pytest.mark.parametrize("name", ["crop_size", "batch_size", "samples_per_epoch", "val_batch_size"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"{name} is 0; give"):
        module("x", **{name: 0})
    with pytest.raises(ConfigError, match="num_workers is -1"):
        module("x", num_workers=-1)


class Recorder(LightningModule):
    """Keeps what it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch):
        self.seen.append((self.current_epoch, batch["image"].clone()))
        return self.layer(batch["image"].mean()[None]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*no `validation_step`")
def test_trainer_advances_the_draws_each_epoch_and_repeats_them(two_datasets, monkeypatch, tmp_path):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    runs = []
    for _ in range(2):
        recorder = Recorder()
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=tmp_path,
        )
        trainer.fit(recorder, datamodule=module(two_datasets))
        assert type(trainer.train_dataloader.sampler) is WeightedDraws
        runs.append(recorder.seen)
    epochs = [torch.cat([image for e, image in runs[0] if e == epoch]) for epoch in range(2)]
    assert not torch.equal(*epochs)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*runs, strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_processes_together_count_every_image_once(data_folder, as_rank, ranks):
    for stem in "abc":
        data_folder.add("x", stem, "val")
    data_folder.write()
    valid, lengths = [], set()
    for rank in range(ranks):
        as_rank(rank, ranks)
        data = module(data_folder.root)
        for stage, loader in (("validate", data.val_dataloader), ("test", data.test_dataloader)):
            data.setup(stage)
            batches = list(loader())
            lengths.add(len(batches))
            valid += [(stage, b["name"][0]) for b in batches if b["valid"].item()]
    assert len(lengths) == 1
    assert sorted(valid) == [(stage, f"x/{stem}") for stage in ("test", "validate") for stem in "abc"]


EVALUATE = """
import json, sys
from pathlib import Path
import lightning as L
import torch
from cellvit.data import FolderDataModule

class Names(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []
    def test_step(self, batch):
        self.seen += zip(batch["name"], batch["valid"].tolist())
    def on_test_epoch_end(self):
        Path(sys.argv[0]).with_name(f"rank_{self.global_rank}.json").write_text(json.dumps(self.seen))

if __name__ == "__main__":
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", enable_checkpointing=False, **quiet)
    trainer.test(Names(), datamodule=FolderDataModule(sys.argv[1], num_workers=0), verbose=False)
"""


@pytest.mark.slow
def test_two_real_processes_count_every_image_once(data_folder, tmp_path):
    """Lightning leaves the shares as they are."""
    for stem in "abc":
        data_folder.add("x", stem, "test")
    script = tmp_path / "evaluate_two.py"
    script.write_text(EVALUATE)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(script), str(data_folder.write())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert seen == [[["x/a", True], ["x/c", True]], [["x/b", True], ["x/a", False]]]


def test_real_tissue(test_data, monkeypatch):
    monkeypatch.setenv("CELLVIT_TEST_DATA", str(test_data))
    names = ["Background", "Other", "Inflammatory", "Epithelial", "Spindle-shaped"]
    data = module("${CELLVIT_TEST_DATA}/nuclei", crop_size=256, class_names=names, seed=0, samples_per_epoch=24)
    data.setup("fit")
    batches = list(data.train_dataloader())
    types = torch.cat([b["nuclei_type_map"].ravel() for b in batches]).unique()
    assert {-1, 0} < set(types.tolist()) <= {-1, 0, 1, 2, 3, 4}
    share = torch.cat([b["nuclei_binary_map"].ravel() for b in batches]).float().mean()
    assert 0.05 < share < 0.5
    inside = torch.cat([b["image"].mean(1)[b["nuclei_binary_map"] > 0] for b in batches]).mean()
    outside = torch.cat([b["image"].mean(1)[b["nuclei_binary_map"] == 0] for b in batches]).mean()
    assert inside < outside - 0.1  # nuclei are dark: labels lie where they should
    assert len(data.val_dataloader()) == 31
