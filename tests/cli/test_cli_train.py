import csv
import json
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from drawn_folds import write_folds

from cellvit import CellViT
from cellvit.callbacks import EncoderFreezing, PretrainedEncoder
from cellvit.classes import PANNUKE, PANNUKE_TISSUES
from cellvit.cli import main
from cellvit.cli.config import config_texts
from cellvit.encoders.base import ENCODERS
from cellvit.errors import ConfigError
from cellvit.io import read_parquet
from cellvit.plugins.components import import_path
from cellvit.weights.catalogue import published_files

LAYER = "Not run by itself"
CONFIGS = [
    p for p in sorted((Path(__file__).parents[2] / "docs/configs").rglob("*.yaml")) if LAYER not in p.read_text()
]
SMALL_SAM = '{"class_path": "sam-b", "init_args": {"embed_dim": 32, "depth": 4, "num_heads": 2}}'


def read_csv(run):
    rows = []
    for path in sorted(run.glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            rows += list(csv.DictReader(file))
    return rows


@pytest.fixture
def trained(training_config, tmp_path):
    assert main(["fit", "--config", str(training_config)]) == 0
    return tmp_path / "run"


class Stop(L.Callback):
    """Sends this process a signal in the middle of a training."""

    def __init__(self, name: str):
        self.number = getattr(signal, name)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        signal.raise_signal(self.number)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_training_that_is_stopped_says_so_and_returns_the_number_of_the_signal(training_config, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
    for name in ("SIGHUP", "SIGTERM", "SIGINT"):
        stop = json.dumps({"class_path": f"{__name__}.Stop", "init_args": {"name": name}})
        command = [
            "fit",
            "--config",
            str(training_config),
            f"--trainer.callbacks=[{stop}]",
            "--trainer.logger",
            "false",
        ]
        assert main(command) == 128 + getattr(signal, name)
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("interrupted")]
        assert told == ["interrupted; the checkpoints that were written are kept, and --ckpt_path goes on from one"]
        signal.signal(signal.SIGINT, before[2])  # which Lightning leaves ignored
    assert [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)] == before


def test_fit_logs_saves_draws_and_the_other_verbs_read_it(trained, training_config, tmp_path, capsys):
    rows = read_csv(trained)
    names = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss_epoch", "val/loss", "val/F1_d", "val/bPQ", "val/mPQ", "val/PQ/Small", "val/F1/Large"} <= names
    assert {"train/hv_map/msge", "train/nuclei_binary_map/dice", "train/nuclei_type_map/cross_entropy"} <= names
    assert list(trained.glob("tensorboard/version_0/events*"))
    assert len(list(trained.glob("tensorboard/version_0/pictures/epoch_*/*.png"))) == 2
    checkpoint = trained / "checkpoints/last.ckpt"

    model = CellViT.from_pretrained(checkpoint)
    assert model.classes.names == ("Background", "Small", "Large")
    raw = torch.load(checkpoint, weights_only=True)  # plain data only: nothing in it can run
    assert raw["hyper_parameters"]["encoder"]["class_path"] == "hybrid"

    for verb in ("validate", "test"):
        assert main([verb, "--config", str(training_config), "--ckpt_path", str(checkpoint)]) == 0
    assert "test/F1_d" in capsys.readouterr().out

    images = training_config.parent / "data/val/images"
    command = ["predict", "--config", str(training_config), "--ckpt_path", str(checkpoint)]
    writer = ["--trainer.callbacks+=PredictionWriter", f"--trainer.callbacks.out={tmp_path}/predicted"]
    assert main([*command, "--data.predict_dir", str(images), *writer]) == 0
    assert {p.name for p in (tmp_path / "predicted").iterdir()} == {
        "t0.png.geojson", "t0.png.parquet", "t1.png.geojson", "t1.png.parquet",
    }  # fmt: skip
    assert read_parquet(tmp_path / "predicted/t0.png.parquet").classes == model.classes

    assert main(["export", str(checkpoint), "--out", str(tmp_path / "exported"), "--dtype", "float16"]) == 0
    assert CellViT.from_pretrained(tmp_path / "exported").settings == model.settings


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_training_resumes_where_it_stopped(trained, training_config):
    checkpoint = trained / "checkpoints/last.ckpt"
    command = ["fit", "--config", str(training_config), "--ckpt_path", str(checkpoint)]
    assert main([*command, "--trainer.max_epochs", "3"]) == 0
    resumed = torch.load(checkpoint, weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (2, 6)
    steps = [int(row["step"]) for row in read_csv(trained) if row.get("train/loss_step")]
    assert steps == [0, 1, 2, 3, 4, 5]  # no step twice, none left out


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_documented_configuration_runs(config, tissue_folder, tmp_path, monkeypatch):
    """Two steps of training and one validation batch on small pictures; only the largest encoders are shrunk."""
    layers = [yaml.safe_load(text) for text in config_texts(str(config))]
    told = {key: value for layer in layers for key, value in layer.get("model", {}).items()}
    of_folds = any("PanNuke" in layer.get("data", {}).get("class_path", "") for layer in layers)
    monkeypatch.setenv("PANNUKE", str(tmp_path))
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    names = told.get("class_names", PANNUKE.names)
    tissues = told.get("tissue_names", PANNUKE_TISSUES)
    small = [
        *("--trainer.fast_dev_run", "2"),
        *("--trainer.accelerator", "cpu"),
        *("--trainer.default_root_dir", str(tmp_path)),
        *("--trainer.callbacks", "[]"),
        *("--trainer.enable_model_summary", "false"),
        *("--data.batch_size", "2"),
        *("--data.num_workers", "0"),
        *("--data.samples_per_epoch", "4"),
    ]
    if of_folds:
        write_folds(tmp_path / "prepared", classes=names, tissues=tissues)
        write_folds(tmp_path / "prepared-mpp0.5", classes=names, tissues=tissues, mpp=0.5)
        small += ["--data.root", str(tmp_path)] if config.stem == "pannuke-like" else []
    else:
        small += ["--data.root", str(tissue_folder), "--data.crop_size", "64", "--data.datasets", "null"]
        small += ["--data.dataset_weights", "null"]
    encoder = told.get("encoder")
    if isinstance(encoder, dict) and encoder.get("init_args", {}).get("weights"):  # a file that is not here
        arguments = {k: v for k, v in encoder["init_args"].items() if k != "weights"}
        small += ["--model.encoder", json.dumps({**encoder, "init_args": arguments})]
    if "sam-" in config.stem:
        small += ["--model.encoder", SMALL_SAM]
    assert main(["fit", "--config", str(config), *small]) == 0


@pytest.mark.slow
def test_a_pannuke_configuration_starts_from_published_weights_and_freezes_them(tmp_path, monkeypatch):
    """All callbacks of the file, on a network small enough to be saved in a moment."""
    arguments = {"embed_dim": 16, "depth": 4, "num_heads": 2}
    encoder = ENCODERS.get("vit-256")(**arguments)
    stored = {f"module.backbone.{name}": value for name, value in encoder.vit.state_dict().items()}
    torch.save({"teacher": stored}, tmp_path / "vit256_small_dino.pth")
    monkeypatch.setenv("PANNUKE", str(tmp_path))
    monkeypatch.setenv("CELLVIT_WEIGHTS", str(tmp_path))
    write_folds(tmp_path / "prepared", classes=PANNUKE.names, tissues=PANNUKE_TISSUES)
    config = Path(__file__).parents[2] / "docs/configs/pannuke/cellvit-256.yaml"
    small = [
        *("--trainer.max_epochs", "1"),
        *("--trainer.log_every_n_steps", "1"),
        *("--trainer.accelerator", "cpu"),
        *("--trainer.default_root_dir", str(tmp_path)),
        *("--trainer.enable_model_summary", "false"),
        *("--model.encoder", json.dumps({"class_path": "vit-256", "init_args": arguments})),
        *("--model.decoder", '{"class_path": "unetr", "init_args": {"widths": [4, 6, 8, 10], "image_width": 3}}'),
        *("--data.batch_size", "2"),
        *("--data.num_workers", "0"),
    ]
    assert main(["fit", "--config", str(config), *small]) == 0
    (saved,) = tmp_path.rglob("last.ckpt")
    trained = torch.load(saved, weights_only=True)["state_dict"]
    for name, value in encoder.vit.state_dict().items():
        assert torch.equal(trained[f"encoder.vit.{name}"], value), name
    monkeypatch.delenv("CELLVIT_WEIGHTS")
    monkeypatch.setenv("CELLVIT_DEBUG", "1")
    with pytest.raises(ConfigError, match="CELLVIT_WEIGHTS"):
        main(["fit", "--config", str(config), *small])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_the_callbacks_of_every_configuration_can_be_made(config):
    layers = [yaml.safe_load(text).get("trainer", {}) for text in config_texts(str(config))]
    listed = [spec for layer in layers for key in ("callbacks", "callbacks+") for spec in layer.get(key, [])]
    made = [import_path(spec["class_path"], what="callback")(**spec.get("init_args", {})) for spec in listed]
    assert made
    assert all(isinstance(callback, L.Callback) for callback in made)
    weights = [Path(callback.path).name for callback in made if isinstance(callback, PretrainedEncoder)]
    assert all(name in published_files() for name in weights)
    pretrained = any(part in config.stem for part in ("256", "sam-", "raw", "over", "aug"))
    assert (len(weights), sum(isinstance(c, EncoderFreezing) for c in made)) == (pretrained, pretrained)


def test_facts_about_a_model_stay_the_text_they_are(training_config, tmp_path):
    config = yaml.safe_load(training_config.read_text())
    facts = {"licence": "CC BY-NC-SA 4.0: that of the images", "year": 2024, "commercial": False}
    config["model"]["about"] = facts
    config["trainer"]["max_epochs"] = 1
    training_config.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(training_config)]) == 0
    assert CellViT.from_pretrained(tmp_path / "run/checkpoints/last.ckpt").about == facts


def test_nano_states_where_its_weights_come_from():
    config = yaml.safe_load((Path(__file__).parents[2] / "docs/configs/nano.yaml").read_text())
    assert "research use" in config["model"]["about"]["licence"]
    assert {"data", "origin"} <= set(config["model"]["about"])


def test_missing_data_folder_says_what_to_do(training_config, capsys):
    assert main(["fit", "--config", str(training_config), "--data.root", "no/such/folder"]) == 1
    message = capsys.readouterr().err
    assert "no/such/folder" in message
    assert "Traceback" not in message


def test_checkpoints_that_are_not_ours_or_do_not_fit_say_so(trained, training_config, tmp_path, capsys):
    (tmp_path / "x.ckpt").write_bytes(b"no")
    command = ["validate", "--config", str(training_config), "--ckpt_path"]
    assert main([*command, str(tmp_path / "x.ckpt")]) == 1
    assert "x.ckpt" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "missing.ckpt")]) == 1
    assert "missing.ckpt" in capsys.readouterr().err
    more = ["--model.num_nuclei_classes", "5", "--model.class_names", "[a, b, c, d, e]"]
    assert main([*command, str(trained / "checkpoints/last.ckpt"), *more]) == 1
    message = capsys.readouterr().err
    assert "does not fit the model" in message
    assert "nuclei_type_map" in message


def test_a_second_configuration_and_the_command_line_replace_parts(training_config, tmp_path, capsys):
    """A short file over a common base names other parts; what they do not name stays."""
    over = tmp_path / "over.yaml"
    over.write_text(
        "model:\n  encoder: {class_path: vit-256, init_args: {embed_dim: 24, depth: 4, num_heads: 2}}\n"
        "  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}\n"
    )
    command = ["fit", "--config", str(training_config), "--config", str(over)]
    flags = ["--trainer.fast_dev_run", "1", "--trainer.callbacks", "[]"]
    decoder = '{"class_path": "unetr", "init_args": {"widths": [5, 6, 7, 8]}}'
    assert main([*command, *flags, f"--model.decoder={decoder}", "--model.postprocessor", "hv-watershed"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--model.decoder", decoder, "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)["model"]
    assert shown["encoder"] == {"class_path": "vit-256", "init_args": {"embed_dim": 24, "depth": 4, "num_heads": 2}}
    assert shown["decoder"]["init_args"] == {"widths": [5, 6, 7, 8]}
    assert shown["optimizer"]["class_path"] == "torch.optim.SGD"
    assert shown["class_names"] == ["Background", "Small", "Large"]


@pytest.mark.parametrize("value", ["hybird", '{"class_path": "hybrid", "init_args": {"dept": 3}}', "[1, 2]"])
def test_a_misspelt_part_is_refused_without_a_traceback(training_config, value, capsys):
    try:
        code = main(["fit", "--config", str(training_config), "--model.encoder", value])
    except SystemExit as stop:  # the parser's own refusal
        code = stop.code
    assert code in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_types_beyond_the_models_classes_are_refused_before_training(training_config, capsys):
    assert main(["fit", "--config", str(training_config), "--model.num_nuclei_classes", "2",
                 "--model.class_names", "[a, b]"]) == 1  # fmt: skip
    assert "has type 2 but there are 2 classes" in capsys.readouterr().err


def test_a_tissue_head_without_tissues_is_refused_before_training(training_config, capsys):
    assert main(["fit", "--config", str(training_config), "--model.num_tissue_classes", "3"]) == 1
    assert "num_tissue_classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "usage: cellvit"),
        (["--help"], 0, "cellvit fit"),
        (["--version"], 0, "cellvit "),
        (["segmnt"], 2, "segment"),
    ],
)
def test_top_level(arguments, code, text, capsys):
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err


def test_export_of_something_else_is_an_error_without_a_traceback(tmp_path, capsys):
    (tmp_path / "x.ckpt").write_bytes(b"no")
    assert main(["export", str(tmp_path / "x.ckpt"), "--out", str(tmp_path / "o")]) == 1
    assert "x.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
