"""Cross-validation as a user runs it: to the end, killed and gone on with, and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_folds import write_folds, write_folds_config

from cellvit.cli import main
from cellvit.evaluation.cross_validation.scores import read_runs

COMMAND = [sys.executable, "-m", "cellvit", "cross-validate"]


def start(config, out, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, str(config), "--out", str(out), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-4000:]
    return text


def wait_for(path, process):
    end = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def comparable(report):
    """Return a report without what depends on time and place."""
    return {name: value for name, value in report.items() if name != "how_it_was_run"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted cross-validation: its configuration, folder and output."""
    folder = tmp_path_factory.mktemp("cross_validation")
    config = write_folds_config(folder / "drawn.yaml", write_folds(folder / "folds", patches=5))
    return config, folder / "out", finish(start(config, folder / "out"))


@pytest.mark.slow
def test_three_runs_are_trained_tested_and_reported(whole):
    _, out, text = whole
    assert f"report: {out / 'report.md'}" in text
    runs = read_runs(out)
    assert [(r.train_folds, r.val_folds, r.test_folds) for r in runs] == [
        ((1,), (2,), (3,)),
        ((2,), (1,), (3,)),
        ((3,), (2,), (1,)),
    ]
    for run in runs:
        assert (run.epochs, run.dataset.name, run.dataset.patches) == (3, "drawn", 5)
        assert {"bPQ_tissue_mean", "mPQ/Colon", "F1/Small", "Dice", "AJI", "tissue_accuracy"} <= set(run.scores)
        assert set(run.seconds) == {"fit", "test"}
    assert runs[0].scores["loss"] != runs[1].scores["loss"] != runs[2].scores["loss"]
    with np.load(out / "run-1/samples/01_Skin.npz") as sample:
        assert sample["image"].shape == (64, 64, 3)
        assert (str(sample["tissue"]), str(sample["name"])) == (
            "Skin",
            "fold3/0003",
        )  # the later of two with equally many nuclei
        assert len(sample["true_types"]) == sample["true_instances"].max()
    assert (out / "report.png").is_file()
    assert json.loads((out / "report.json").read_text())


@pytest.mark.slow
def test_a_run_killed_half_way_goes_on_to_the_same_report(whole, tmp_path):
    config, out, _ = whole
    process = start(config, tmp_path / "out")
    wait_for(tmp_path / "out/run-1/checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGKILL)  # the training it had started must notice
    process.communicate()
    assert not (tmp_path / "out/run-1/fitted.json").exists(), "killed too late to show anything"
    for run in ("run-2", "run-3"):  # they would be run from the start again, as in the other folder
        shutil.copytree(out / run, tmp_path / "out" / run)
    text = finish(start(config, tmp_path / "out"))
    assert "run 1 of 3: train on fold 1" in text
    assert "Restored all states from the checkpoint" in text
    again, first = (json.dumps([dict(run.scores) for run in read_runs(folder)]) for folder in (tmp_path / "out", out))
    assert again == first
    reports = [json.loads((folder / "report.json").read_text()) for folder in (tmp_path / "out", out)]
    assert comparable(reports[0]) == comparable(reports[1])


def child_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    return int(children.read_text().split()[0])


@pytest.mark.slow
def test_a_training_that_was_told_to_stop_is_not_taken_for_finished(whole, tmp_path):
    config, _, _ = whole
    process = start(config, tmp_path / "out")
    wait_for(tmp_path / "out/run-1/checkpoints/last.ckpt", process)
    os.kill(child_of(process), signal.SIGTERM)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 1, text[-3000:]
    assert "training of run 1 failed with exit code 143" in text
    assert not (tmp_path / "out/run-1/fitted.json").exists()


@pytest.mark.slow
def test_what_is_finished_is_not_run_again_and_something_else_is_refused(whole, capsys):
    config, out, _ = whole
    report = (out / "report.json").read_bytes()
    (out / "report.json").unlink()
    assert main(["cross-validate", str(config), "--out", str(out)]) == 0
    assert capsys.readouterr().err.count("finished before") == 3
    assert (out / "report.json").read_bytes() == report
    assert main(["cross-validate", str(config), "--out", str(out), "--trainer.max_epochs", "9"]) == 1
    assert 'overrides was [], is ["--trainer.max_epochs", "9"]' in capsys.readouterr().err
    assert main(["cross-validate", str(config), "--out", str(out), "--rotation", "full"]) == 1
    assert "rotation was [[1, 2, 3], [2, 1, 3], [3, 2, 1]], is" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_fails_says_so_and_keeps_the_rest(whole, tmp_path, capfd):
    config, _, _ = whole
    out = tmp_path / "out"
    assert main(["cross-validate", str(config), "--out", str(out), "--data.root", str(tmp_path / "nowhere")]) == 1
    text = capfd.readouterr().err
    assert "nowhere" in text
    assert "training of run 1 failed with exit code 1" in text
    assert "Traceback" not in text


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("stop", [1, 2])  # before and after the encoder thaws
def test_a_resumed_training_repeats_an_uninterrupted_one(folds_config, tmp_path, stop):
    def fit(name, *more):
        point = {
            "class_path": "cellvit.evaluation.cross_validation.callbacks.ResumePoint",
            "init_args": {"dirpath": str(tmp_path / name)},
        }
        command = ["fit", "--config", str(folds_config), "--trainer.default_root_dir", str(tmp_path / name)]
        assert main([*command, f"--trainer.callbacks+={json.dumps(point)}", *more]) == 0
        return tmp_path / name / "last.ckpt"

    whole = fit("whole")
    fit("parts", "--trainer.max_epochs", str(stop))
    resumed = fit("parts", "--ckpt_path", str(tmp_path / "parts/last.ckpt"))
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in (whole, resumed)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_a_folder_in_use_and_a_missing_file_are_refused(tmp_path, capsys, monkeypatch, folds_config):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("cellvit.evaluation.cross_validation.run._WAIT", 0.1)
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["cross-validate", str(folds_config), "--out", str(out)]) == 1
    assert "another process works in" in capsys.readouterr().err
    for flag in ("--config", "--data.train_folds", "--data.init_args.test_folds=[1]"):
        assert main(["cross-validate", str(folds_config), "--out", str(out), flag, "x"]) == 1
        assert "takes no --" in capsys.readouterr().err
    assert main(["cross-validate", str(tmp_path / "no.yaml"), "--out", str(out)]) == 1
    assert "no.yaml' does not exist" in capsys.readouterr().err
