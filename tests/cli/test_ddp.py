import csv
import json
import os
import subprocess
import sys

import pytest
from drawn_folds import write_folds, write_folds_config

from cellvit.cli import main

SCRIPT = """
import sys
from pathlib import Path

import lightning as L
import torch

from cellvit.cli import main


class SameEverywhere(L.Callback):
    def on_train_end(self, trainer, pl_module):
        weights = torch.cat([p.detach().flatten() for p in pl_module.encoder.parameters()])
        ranks = trainer.strategy.all_gather(weights)
        assert ranks.shape[0] == 2
        assert torch.equal(ranks[0], ranks[1]), "the encoders of the ranks have drifted apart"
        Path(sys.argv[0]).with_name(f"same_{trainer.global_rank}").touch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


VIT = '{"class_path": "vit-256", "init_args": {"embed_dim": 24, "depth": 4, "num_heads": 2}}'


@pytest.mark.slow
@pytest.mark.parametrize("model", [[], ["--model.encoder", VIT]], ids=["hybrid", "vit without a tissue head"])
def test_two_processes_train_one_model_also_after_the_encoder_thaws(training_config, tmp_path, model):
    script = tmp_path / "train_two.py"
    script.write_text(SCRIPT)
    arguments = ["fit", "--config", str(training_config), "--trainer.callbacks+=__main__.SameEverywhere"]
    distributed = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "3", *model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(script), *arguments, *distributed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "same_0").exists()
    assert (tmp_path / "same_1").exists()
    with (tmp_path / "run/csv/version_0/metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss_step"]]
    assert steps == [0, 1, 2]  # four crops an epoch, two ranks, two crops a batch: one step an epoch


def scores(folder):
    """Return the evaluation scores of a run's last logged row that has any, without the losses."""
    with next(folder.glob("csv/version_*/metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/bPQ") or row.get("test/bPQ")]
    kept = {}
    for name, value in rows[-1].items():
        _, _, short = name.partition("/")
        if name.startswith(("val/", "test/")) and value and not short.startswith(BRANCHES):
            kept[short] = value
    return kept


BRANCHES = ("loss", "hv_map", "nuclei_", "tissue_types")
LONG = ["--trainer.max_epochs", "24", "--trainer.check_val_every_n_epoch", "24"]  # only the last epoch is compared
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.mark.slow
def test_two_processes_score_exactly_what_one_process_scores(tmp_path):
    # five patches per fold: one of the two processes has to fill up its share
    config = write_folds_config(tmp_path / "folds.yaml", write_folds(tmp_path / "folds", patches=5))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

    def run(name, verb, *arguments):
        folder = tmp_path / name
        logger = {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(folder), "name": "csv"},
        }
        command = [verb, "--config", str(config), f"--trainer.logger={json.dumps(logger)}", *arguments]
        if "ddp" not in arguments:  # one process is this one
            assert main(command) == 0
            return scores(folder)
        command = [sys.executable, "-m", "cellvit", *command]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        return scores(folder)

    point = {
        "class_path": "cellvit.evaluation.cross_validation.callbacks.ResumePoint",
        "init_args": {"dirpath": str(tmp_path)},
    }
    trained = run("fit", "fit", *TWO, f"--trainer.callbacks+={json.dumps(point)}", *LONG)
    checkpoint = ["--ckpt_path", str(tmp_path / "last.ckpt")]
    assert float(trained["F1_d"]) > 0, "nothing was found: the comparison would show nothing"
    assert run("validate", "validate", *checkpoint) == trained
    assert run("test_two", "test", *TWO, *checkpoint) == run("test_one", "test", *checkpoint)
