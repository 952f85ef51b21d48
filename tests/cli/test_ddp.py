import csv
import os
import subprocess
import sys

import pytest

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
