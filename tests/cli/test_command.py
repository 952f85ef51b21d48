"""What all verbs share: what is imported when, words of the user in errors, results for programs, completion."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellvit.cli import SHELLS, TRAINING_VERBS, VERBS, main, usage
from cellvit.cli.console import Output
from cellvit.cli.flags import as_flags, flags_of
from cellvit.cli.segment import build_parser
from cellvit.cli.verb import UsageError, command, verb_parser
from cellvit.errors import ConfigError, OutputError

OURS = [name for name in VERBS if name not in TRAINING_VERBS]
HEAVY = ("torch", "lightning", "torchmetrics", "torchvision", "transformers", "timm", "albumentations")
SLOW = (*HEAVY, "cv2", "shapely", "pyarrow", "numpy", "scipy", "pandas", "matplotlib")
PROBE = """
import contextlib, io, json, sys
from cellvit.cli import main
for command in json.loads(sys.argv[1]):
    before, text = set(sys.modules), io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main(command)
    loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    print(json.dumps([code, loaded, text.getvalue()]))
"""


def probe(*commands):
    """Return exit code, newly imported packages and output of each command, all run in one fresh process."""
    call = [sys.executable, "-c", PROBE, json.dumps(commands)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_help_of_a_verb_imports_nothing_heavy():
    for name, (code, loaded, text) in zip(OURS, probe(*([name, "--help"] for name in OURS)), strict=True):
        assert code == 0, name
        assert f"usage: cellvit {name}" in text
        assert not set(loaded) & set(SLOW), name


def test_what_is_missing_or_misspelt_is_told_before_anything_heavy_is_imported(tmp_path):
    out, none = str(tmp_path / "out"), str(tmp_path / "none")
    told = {
        "none.png' does not exist": ["segment", f"{none}.png", "--out", out],
        "none.svs' does not exist": ["plan", f"{none}.svs"],
        "none.svs' does not exist; check": ["segment", f"{none}.svs", "--out", out],
        "did you mean 'nano'?": ["segment", f"{none}.svs", "--out", out, "--model", "nanno"],
        "cellvit models CellViT-SAM-H-x40": ["plan", f"{none}.svs", "--model", "CellViT-SAM-H-x40"],
        "weights of an encoder; 'cellvit models uni'": ["card", "--model", "UNI", "--data", none, "--out", out],
        "none' does not exist": ["card", "--model", "nano", "--data", none, "--out", out],
        "gone' does not exist": ["evaluate", f"{none}/gone", "--truth", none, "--out", out],
        "no model 'none.ckpt'": ["export", "none.ckpt", "--out", out],
        "no file 'none.pth'": ["convert", "none.pth", "--out", out],
        "pannuke' does not exist": ["prepare", "monuseg", str(tmp_path / "pannuke")],
        "none.yaml' does not exist": ["cross-validate", "none.yaml", "--out", out],
    }
    for words, (code, loaded, text) in zip(told, probe(*told.values()), strict=True):
        assert code in (1, 2), words
        assert words in text
        assert not set(loaded) & set(HEAVY), words


def test_usage_names_every_verb_once_and_all_can_be_imported():
    lines = usage().splitlines()
    named = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in VERBS]
    assert named == list(VERBS)
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(("verb", "meant"), [("segmnt", "segment"), ("Doctor", "doctor"), ("crossvalidate", "cross-")])
def test_a_misspelt_verb_is_met_with_the_one_that_was_meant(verb, meant, capsys):
    assert main([verb]) == 2
    assert f"no verb {verb!r}; did you mean '{meant}" in capsys.readouterr().err


def test_messages_speak_of_options():
    flags = flags_of(build_parser())
    told = {
        "tile_size 30 is too small": "--tile-size 30 is too small",
        "pass mpp=0.25 or magnification=40": "pass --mpp 0.25 or --magnification 40",
        "pass overwrite=True to start anew, or choose another out=FOLDER": (
            "pass --overwrite to start anew, or choose another --out FOLDER"
        ),
        "search everything with tissue_filter=False": "search everything with --no-tissue-filter",
        "give pixels from 80 to 16384": None,
        "device 'tpu' is unknown": "--device 'tpu' is unknown",
        "fewer workers, or smaller batch_size": "fewer workers, or smaller --batch-size",
        "no model 'nanno': the model 'x' states a magnification of 20": None,
        "cannot write into '/data/mpp=0.5/tile_size' (no such folder)": None,
        "--mpp 0.25 and a formats=x.y=2 of nobody": "--mpp 0.25 and a --formats x.y=2 of nobody",
    }
    for text, words in told.items():
        assert as_flags(text, flags) == (words or text)
    lists = flags_of(argparse.ArgumentParser()) | {"accept": "--accept", "folds": "--folds"}
    assert as_flags("(accept=['empty-masks'] allows it)", lists) == "(--accept empty-masks allows it)"
    assert as_flags("several, such as 'a'", {"as": "--as"}) == "several, such as 'a'"
    assert as_flags("name them, as in folds=[1, 2]", lists) == "name them, as in --folds 1 2"


def verb(run, **settings):
    def build():
        parser = verb_parser("try", "Nothing.")
        parser.add_argument("--tile-size", type=int)
        parser.add_argument("--debug", action="store_true")
        return parser

    return command(build, run, **settings)


def raising(error):
    def run(options, output):
        raise error

    return run


@pytest.mark.parametrize("kind", [ConfigError, OutputError])
def test_errors_of_a_verb_are_told_in_its_options(kind, capsys):
    with pytest.raises(kind, match="--tile-size 3 is too small"):
        verb(raising(kind("tile_size=3 is too small")))([])
    assert verb(raising(kind("tile_size=3 is too small")), failure=2)([]) == 2
    assert capsys.readouterr().err == "error: --tile-size 3 is too small\n"
    with pytest.raises(kind):
        verb(raising(kind("x")), failure=2)(["--debug"])


def test_exit_codes_of_a_verb(capsys):
    assert verb(lambda options, output: 0)(["--tile-size", "3"]) == 0
    assert verb(lambda options, output: 0)(["--tile", "3", "more"]) == 2
    assert "unrecognized arguments: more" in capsys.readouterr().err
    assert verb(lambda options, output: len(options.others), rest=True)(["more", "--and", "more"]) == 3
    assert verb(raising(UsageError("not both")))([]) == 2
    assert "usage: cellvit try" in capsys.readouterr().err
    assert verb(raising(KeyboardInterrupt()), resumes=True)([]) == 130
    assert "goes on with the rest" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_ends_a_verb_unless_it_is_to_be_ignored(capsys):
    def hang_up(options, output):
        signal.raise_signal(signal.SIGHUP)
        return 0

    before = signal.getsignal(signal.SIGHUP)
    assert verb(hang_up, resumes=True)([]) == 129
    assert capsys.readouterr().err == (
        "interrupted; what is finished is kept, and the same command goes on with the rest\n"
    )
    assert signal.getsignal(signal.SIGHUP) == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert verb(hang_up)([]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


CLOSED = """
import os, pty, signal, sys
child, terminal = pty.fork()
if child:
    os.read(terminal, 1)  # it works
    os.close(terminal)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
import time
from cellvit.cli.verb import command, verb_parser

def work(options, output):
    try:
        sys.stderr.write("x")
        sys.stderr.flush()
        time.sleep(60)
    finally:
        sys.stderr.write("tidying up")  # as the bars do
        sys.stderr.flush()
    return 0

signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(command(lambda: verb_parser("try", "Nothing."), work)([]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_what_is_printed_to_a_terminal_that_was_closed_hides_nothing():
    pytest.importorskip("pty")
    assert subprocess.run([sys.executable, "-c", CLOSED], timeout=100).returncode == 129


def test_output_for_programs_and_for_nobody(capsys):
    row = {"path": Path("a\udce4.png"), "value": float("nan"), "types": {"a": 1}}
    for output in (Output(json=True), Output(quiet=True), Output()):
        output.row(row)
        output.line("wrote x")
        output.scores([{"score": "F1", "value": 0.5}], title="scores")
        output.note("by the way", "warning")
    printed = capsys.readouterr()
    first, *others = printed.out.splitlines()
    assert json.loads(first) == {"path": "a\udce4.png", "value": None, "types": {"a": 1}}
    assert others[0] == "wrote x"  # of the last alone
    assert printed.err == 2 * "warning: by the way\n"


@pytest.fixture
def images(tmp_path):
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8)
    for name in ("a", "b"):
        Image.fromarray(noise).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "cut.jpg").write_text("no image")
    return tmp_path / "in"


def test_segment_prints_one_object_per_image(images, tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["segment", str(images), str(tmp_path / "gone.png"), "--out", str(out), "--model", tiny_model]
    command.append("--no-measurements")
    assert main([*command, "--device", "cpu", "--formats", "geojson", "--json"]) == 1
    printed = capsys.readouterr()
    gone, first, second, cut = (json.loads(line) for line in printed.out.splitlines())
    assert "does not exist" in gone["error"]
    assert (first["path"], first["error"]) == (str(images / "a.png"), None)
    assert first["nuclei"] == sum(first["types"].values()) > 0
    assert first["mpp"] == 0.25
    assert second["files"] == {"geojson": str(out / "b.geojson")}
    assert "cut.jpg" in cut["error"]
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["error", "error"]
    assert main([*command, "--device", "cpu", "--formats", "json", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["error", "error"]


def test_segment_prints_one_object_per_slide(images, tiny_model, tmp_path, capsys):
    command = ["segment", str(images / "a.png"), str(tmp_path / "gone.svs"), "--as", "slide", "--mpp", "0.25"]
    command += ["--out", str(tmp_path / "out"), "--model", tiny_model, "--device", "cpu", "--workers", "0"]
    command += ["--no-tissue-filter", "--formats", "points"]
    assert main([*command, "--json"]) == 1
    rows = {Path(row["path"]).name: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == {"a.png", "gone.svs"}
    assert rows["gone.svs"]["error"].endswith("does not exist; check the spelling")
    assert rows["a.png"]["nuclei"] == sum(rows["a.png"]["types"].values()) > 0
    assert Path(rows["a.png"]["folder"], "nuclei.parquet").is_file()
    assert main([*command, "--quiet"]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_verbs_and_options(shell, capsys):
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in VERBS)
    assert "--tile-size" in script or "tile-size" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_completion_of_an_unknown_shell(capsys):
    assert main(["--print-completion", "fish"]) == 2
    assert "bash, zsh, tcsh" in capsys.readouterr().err


def test_a_class_in_the_current_folder_can_be_named(training_config, tmp_path, monkeypatch, capsys):
    """As the console script has it, whose ``sys.path`` lacks the current folder."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "my_lab_beside.py").write_text(
        textwrap.dedent(
            """
            from cellvit.encoders.hybrid import HybridEncoder

            class Mine(HybridEncoder):
                def __init__(self):
                    super().__init__(widths=(4, 8, 8), embed_dim=24, depth=1, num_heads=2)
            """
        )
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(folder)
    command = ["fit", "--config", str(training_config), "--trainer.fast_dev_run", "1", "--trainer.callbacks", "[]"]
    assert main([*command, "--model.encoder", "my_lab_beside.Mine"]) == 0
    assert sys.path[-1] == str(folder)  # behind everything that is installed


def test_a_configuration_whose_variable_is_not_set_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.delenv("CELLVIT_TEST_DATA", raising=False)
    config = Path(__file__).parents[2] / "docs/configs/nano.yaml"
    assert main(["fit", "--config", str(config)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellvit fit:")]
    assert "CELLVIT_TEST_DATA" in line
    assert "export" in line


@pytest.mark.parametrize("verb", ["segment", "plan"])
@pytest.mark.parametrize("kind", ["image", "slide"])
def test_a_resolution_said_twice_and_differently_is_refused(images, tmp_path, capsys, verb, kind):
    extra = ["--out", str(tmp_path / "out"), "--mpp", "0.25", "--magnification", "20", "--as", "slide"]
    if kind == "image" and verb == "segment":
        extra[-1] = "image"
    assert main([verb, str(images / "a.png"), *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --mpp 0.25 and --magnification 20 (about 0.5 µm/px) contradict each other")
    assert not list((tmp_path / "out").glob("*.json"))
