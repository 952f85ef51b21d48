"""Result files of runs: what is written is read, what is wrong is named, and what mean and spread leave out."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellvit.errors import DataError, OutputError
from cellvit.evaluation.cross_validation.scores import (
    DatasetFacts,
    FoldScores,
    Summary,
    read_runs,
    summarise,
    write_scores,
)

RUN = FoldScores(
    config="cellvit-256",
    train_folds=(1,),
    val_folds=(2,),
    test_folds=(3,),
    epochs=130,
    checkpoint="run-1/checkpoints/last.ckpt",
    class_names=("Background", "Neoplastic", "Dead"),
    tissue_names=("Colon", "Skin"),
    dataset=DatasetFacts("pannuke", 0.25, 2722),
    scores={"bPQ": 0.5, "PQ/Dead": math.nan},
    seconds={"fit": 10.5, "test": 2},
    versions={"torch": "2.8"},
)


def with_scores(**scores):
    return replace(RUN, scores=scores)


def written(folder, *runs):
    for number, run in enumerate(runs, start=1):
        (folder / f"run-{number}").mkdir()
        write_scores(folder / f"run-{number}" / "scores.json", run)
    return folder


def changed(path, **changes):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def test_a_written_run_is_read_as_it_was(tmp_path):
    other = replace(RUN, test_folds=(1, 4), scores={"bPQ": 1 / 3, "loss": 7.0}, seconds={})
    first, second = read_runs(written(tmp_path, RUN, other))
    assert second == other
    assert replace(first, scores={}) == replace(RUN, scores={})
    assert first.scores["bPQ"] == 0.5
    assert math.isnan(first.scores["PQ/Dead"])
    assert json.loads((tmp_path / "run-1/scores.json").read_text())["test"]["PQ/Dead"] is None


def test_runs_come_in_the_order_of_their_numbers(tmp_path):
    runs = [replace(RUN, scores={"bPQ": k / 100}) for k in range(1, 12)]
    assert [run.scores["bPQ"] for run in read_runs(written(tmp_path, *runs))] == [k / 100 for k in range(1, 12)]


def test_every_fault_is_named_in_one_error(tmp_path):
    folder = written(tmp_path, *[RUN] * 6)
    (folder / "run-3" / "scores.json").unlink()
    (folder / "run-4" / "scores.json").write_text("{")
    changed(folder / "run-5" / "scores.json", version=2)
    changed(folder / "run-6" / "scores.json", epochs=1.5, test={"bPQ": "good"})
    (folder / "run-9").mkdir()
    with pytest.raises(DataError) as caught:
        read_runs(folder)
    text = str(caught.value)
    for part in (
        "run-7 is missing; run-8 is missing",
        "run-3/scores.json: is missing; the run is not finished",
        "run-4/scores.json: is not JSON",
        "run-5/scores.json: is of version 2, this program reads 1",
        "run-6/scores.json: 'epochs' is 1.5, not a whole number",
        "run-6/scores.json: 'test' is {'bPQ': 'good'}, not finite numbers or null",
    ):
        assert part in text
    assert "run-1/" not in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config": "sam-h"}, "run-2/scores.json: configuration 'sam-h', but 'cellvit-256' in run-1/scores.json"),
        ({"class_names": ["Background", "Dead"]}, r"class names \('Background', 'Dead'\), but"),
        ({"tissue_names": []}, r"tissue names \(\), but"),
        ({"dataset": {"name": "consep", "mpp": 0.25, "patches": 1}}, "data set 'consep', but 'pannuke'"),
        ({"dataset": {"name": "pannuke", "mpp": 0.5, "patches": 1}}, "microns per pixel 0.5, but 0.25"),
    ],
)
def test_runs_of_different_kinds_are_not_mixed(tmp_path, change, text):
    changed(written(tmp_path, RUN, RUN) / "run-2" / "scores.json", **change)
    with pytest.raises(DataError, match=text):
        read_runs(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "other"}, '"format": "cellvit-scores"'),
        ({"test_folds": [0]}, "'test_folds' is \\[0\\], not a list of fold numbers from 1"),
        ({"class_names": ["a", "a"]}, "not a list of different names"),
        ({"dataset": {"name": "pannuke"}}, "'dataset' is"),
        ({"dataset": {"name": "pannuke", "mpp": 0, "patches": 3}}, "'dataset' is"),
        ({"seconds": {"fit": True}}, "'seconds' is"),
        ({"versions": {"torch": 2}}, "'versions' is"),
        ({"test": {"bPQ": float("nan")}}, "'test' is"),
        ({"test": [0.5]}, "'test' is"),
    ],
)
def test_fields_of_another_form_are_refused(tmp_path, change, text):
    changed(written(tmp_path, RUN) / "run-1" / "scores.json", **change)
    with pytest.raises(DataError, match=text):
        read_runs(tmp_path)


def test_a_missing_field_is_named(tmp_path):
    path = written(tmp_path, RUN) / "run-1" / "scores.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "checkpoint"}))
    with pytest.raises(DataError, match="has no 'checkpoint'"):
        read_runs(tmp_path)


def test_a_folder_without_runs_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="holds no folder run-1"):
            read_runs(folder)


def test_the_list_of_faults_stays_readable(tmp_path):
    for number in range(1, 31):
        (tmp_path / f"run-{number}").mkdir()
    with pytest.raises(DataError, match="and 18 more"):
        read_runs(tmp_path)


def test_what_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(DataError, match="'test' is"):
        write_scores(tmp_path / "scores.json", with_scores(bPQ=math.inf))
    with pytest.raises(DataError, match="'epochs' is -1"):
        write_scores(tmp_path / "scores.json", replace(RUN, epochs=-1))
    with pytest.raises(OutputError):
        write_scores(tmp_path / "missing" / "scores.json", RUN)
    assert list(tmp_path.iterdir()) == []


def test_the_spread_is_divided_by_the_number_of_runs():
    runs = [with_scores(bPQ=value) for value in (0.1, 0.2, 0.6)]
    # mean 0.3; squared distances 0.04, 0.01, 0.09; their mean 0.14 / 3
    mean, std, folds = summarise(runs)["bPQ"]
    assert (mean, std, folds) == (pytest.approx(0.3), pytest.approx(math.sqrt(0.14 / 3)), 3)


def test_runs_without_a_value_are_left_out():
    runs = [with_scores(a=0.2, b=math.nan), with_scores(a=math.nan, b=math.nan), with_scores(a=0.4, c=0.5)]
    found = summarise(runs)
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == Summary(pytest.approx(0.3), pytest.approx(0.1), 2)
    assert math.isnan(found["b"].mean)
    assert found["b"].folds == 0
    assert found["c"].mean == 0.5
    assert math.isnan(found["c"].std)
    assert found["c"].folds == 1


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-1e3, 1e3)), min_size=1, max_size=6))
def test_mean_and_spread_agree_with_numpy(values):
    mean, std, folds = summarise([with_scores(x=value) for value in values])["x"]
    known = np.array([value for value in values if not math.isnan(value)])
    assert folds == len(known)
    assert math.isnan(mean) == (len(known) == 0)
    assert math.isnan(std) == (len(known) < 2)
    if len(known) > 1:
        assert mean == pytest.approx(known.mean(), abs=1e-9)
        assert std == pytest.approx(known.std(ddof=0), abs=1e-6)
