"""``evaluate``: one call that scores files, folders and nuclei in memory as the command line does."""

import json
import math

import numpy as np
import pytest

from cellvit.cli import main
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.evaluation.scoring import evaluate
from cellvit.io.parquet import write_parquet
from cellvit.types import Nuclei, NucleiClasses

CLASSES = NucleiClasses(("Background", "Small", "Large"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def nuclei_at(*corners, types=(1, 2)):
    instances = np.zeros((64, 64), np.int32)
    for label, (row, col) in enumerate(corners, start=1):
        instances[row : row + 8, col : col + 8] = label
    found = nuclei_from_labels(instances, np.array([0, *types]))
    return Nuclei(**{**vars(found.nuclei), "classes": CLASSES})


@pytest.fixture
def folders(tmp_path):
    truth, found = nuclei_at((4, 4), (30, 30)), nuclei_at((4, 4), (50, 10))
    for folder, tables in (("truth", [truth, truth]), ("found", [truth, found])):
        (tmp_path / folder).mkdir()
        for name, nuclei in zip("ab", tables, strict=True):
            write_parquet(nuclei, tmp_path / folder / f"{name}.parquet")
    return tmp_path


def test_folders_files_and_nuclei_give_the_same_scores(folders):
    found, truth = folders / "found", folders / "truth"
    whole = evaluate(found, truth)
    assert whole.settings.class_names == CLASSES.names
    assert whole["F1_d"] == pytest.approx(0.75)
    files = [[folder / f"{name}.parquet" for name in "ab"] for folder in (found, truth)]
    listed = evaluate(*files)
    memory = evaluate(
        [nuclei_at((4, 4), (30, 30)), nuclei_at((4, 4), (50, 10))], [nuclei_at((4, 4), (30, 30)) for _ in range(2)]
    )
    for other in (listed, memory):
        np.testing.assert_equal(other.scores, whole.scores)
    single = evaluate(nuclei_at((4, 4), (30, 30)), truth / "a.parquet")
    assert single["bPQ"] == pytest.approx(1, abs=1e-5)
    assert [row["image"] for row in whole.table()] == ["a", "b"]
    assert {row["type or tissue"] for row in whole.groups()} == {"Small", "Large"}
    assert repr(whole).startswith("Evaluation(2 images: bPQ 0.")
    assert json.dumps(whole.to_dict()["settings"])


def test_the_command_line_writes_the_same_numbers(folders):
    out = folders / "out"
    assert main(["evaluate", str(folders / "found"), "--truth", str(folders / "truth"), "--out", str(out)]) == 0
    stored = json.loads((out / "scores.json").read_text())["scores"]
    for name, value in evaluate(folders / "found", folders / "truth").scores.items():
        assert stored[name] is None if math.isnan(value) else stored[name] == pytest.approx(value, abs=1e-6)


def test_notes_say_what_a_reader_must_know(folders):
    (folders / "truth" / "c.parquet").write_bytes((folders / "truth" / "a.parquet").read_bytes())
    with pytest.raises(DataError, match="1 of 3 images have no prediction"):
        evaluate(folders / "found", folders / "truth")
    assert (
        "1 of 3 images have no prediction" in evaluate(folders / "found", folders / "truth", skip_missing=True).notes[0]
    )
    assert "the same path" in evaluate(folders / "truth", folders / "truth").notes[0]


def test_what_cannot_be_compared_is_refused(folders):
    nuclei, path = nuclei_at((4, 4), types=(1,)), folders / "truth"
    with pytest.raises(ConfigError, match="2 predictions for 1 truths"):
        evaluate([nuclei, nuclei], [nuclei])
    with pytest.raises(ConfigError, match="is a folder among single images"):
        evaluate(nuclei, path)
    with pytest.raises(ConfigError, match="choose images of a data folder"):
        evaluate(nuclei, nuclei, split="val")
    with pytest.raises(ConfigError, match="binary=True leaves types out"):
        evaluate(nuclei, nuclei, binary=True, class_names=CLASSES.names)
    with pytest.raises(ConfigError, match="magnification 10 has no published radius"):
        evaluate(nuclei, nuclei, magnification=10)
