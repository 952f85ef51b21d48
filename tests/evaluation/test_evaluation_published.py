"""The published numbers agree with each other: runs with means, tissues with means over tissues, spreads with runs."""

import math
from statistics import fmean, pstdev

import pytest

from cellvit.classes import PANNUKE_COLORS, PANNUKE_TISSUES
from cellvit.errors import ConfigError
from cellvit.evaluation.cross_validation.published import (
    known_names,
    published,
    published_sources,
    reasons_not_comparable,
    score_lines,
)
from cellvit.evaluation.cross_validation.scores import DatasetFacts, FoldScores

WITH_TISSUES = ("cellvit-256", "sam-b", "sam-l", "sam-h")
ROUNDING = 1.01e-4  # the mean of rounded values, itself rounded: half a unit each


def run_of(name="pannuke", mpp=0.25, **scores):
    return FoldScores("x", (1,), (2,), (3,), 1, "last.ckpt", (), (), DatasetFacts(name, mpp, 2722), scores)


@pytest.mark.parametrize("name", known_names())
def test_the_mean_is_the_mean_of_the_three_runs(name):
    entry = published(name)
    assert [fold.fold for fold in entry.folds] == [1, 2, 3]
    assert set(entry.folds[0].scores) == set(entry.logs) - {n for n in entry.logs if "/" in n}
    for score in entry.folds[0].scores:
        assert fmean(fold.scores[score] for fold in entry.folds) == pytest.approx(entry.logs[score], abs=ROUNDING), (
            score
        )


@pytest.mark.parametrize("name", known_names())
def test_the_runs_use_the_published_folds(name):
    entry = published(name)
    assert {fold.rotation for fold in entry.folds} == {(1, 2, 3), (2, 1, 3), (3, 2, 1)}
    assert {fold.rotation[2]: fold.patches for fold in entry.folds} == {3: 2722, 1: 2656}
    for fold in entry.folds:
        assert entry.fold(fold.rotation) is fold
    assert entry.fold((1, 3, 2)) is None


@pytest.mark.parametrize("quality", ["mPQ", "bPQ"])
@pytest.mark.parametrize("name", WITH_TISSUES)
def test_the_mean_over_tissues_is_the_mean_of_the_tissues(name, quality):
    logs = published(name).logs
    tissues = [logs[f"{quality}/{tissue}"] for tissue in PANNUKE_TISSUES]  # a name that is spelt otherwise is missing
    assert fmean(tissues) == pytest.approx(logs[f"{quality}_tissue_mean"], abs=ROUNDING)


@pytest.mark.parametrize("name", ["cellvit-256", "sam-h"])
def test_the_stated_spread_is_the_population_deviation_of_the_runs(name):
    entry = published(name)
    for score in ("mPQ_tissue_mean", "bPQ_tissue_mean"):
        assert pstdev(fold.scores[score] for fold in entry.folds) == pytest.approx(entry.logs_std[score], abs=ROUNDING)
    assert set(entry.logs_std) == set(entry.folds[0].scores)


def test_values_lie_in_range_and_follow_from_each_other():
    for name in known_names():
        entry = published(name)
        assert all(0 < value < 1 for value in entry.logs.values())
        assert {n for n in entry.logs if n.startswith(("PQ/", "F1/"))} == {
            f"{m}/{t}" for m in ("PQ", "F1") for t in PANNUKE_COLORS
        }
        for fold in entry.folds:
            p, r = fold.scores["P_d"], fold.scores["R_d"]
            assert fold.scores["F1_d"] == pytest.approx(2 * p * r / (p + r), abs=1.5e-4)


def test_numbers_that_are_known_by_heart():
    tissue_means = {
        "cellvit-256": (0.4846, 0.6696),
        "sam-b": (0.4923, 0.6772),
        "sam-l": (0.4983, 0.6804),
        "sam-h": (0.4980, 0.6793),
    }
    for name, (multi, binary) in tissue_means.items():
        logs = published(name).logs
        assert (logs["mPQ_tissue_mean"], logs["bPQ_tissue_mean"]) == (multi, binary)
    order = ["raw", "over", "random", "flips", "shared-decoders", "aug", "cellvit-256", "no-focal-tversky"]
    multi_means = [published(name).logs["mPQ_tissue_mean"] for name in order]
    assert multi_means == [0.4034, 0.4043, 0.4417, 0.4748, 0.4826, 0.4839, 0.4846, 0.4849]
    assert [published(n).mpp for n in ("sam-h", "sam-h-x20", "cellvit-256-x20")] == [0.25, 0.5, 0.5]


def test_the_first_version_of_the_paper_is_kept_as_printed():
    assert published("cellvit-256").paper_v1 == {
        "mPQ_tissue_mean": "0.5000",
        "bPQ_tissue_mean": "0.6464",
        "F1_d": "0.83",
    }
    assert published("sam-h").paper_v1["bPQ_tissue_mean"] == "0.6538"
    assert published("raw").paper_v1 == {}
    assert set(published_sources()) == {"paper_v1", "logs"}


def test_changing_an_entry_changes_no_other_reader():
    published("sam-h").logs["bPQ"] = 0.0
    assert published("sam-h").logs["bPQ"] == 0.6656


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"under 'sam-x'; known are cellvit-256, sam-b, .*no-focal-tversky"):
        published("sam-x")


def test_lines_stand_beside_published_values_of_the_same_name_only():
    lines = score_lines([run_of(mPQ_tissue_mean=0.49, loss=3.0)], published("cellvit-256"))
    mean, other = lines["mPQ_tissue_mean"], lines["loss"]
    assert (mean.logs, mean.logs_std, mean.paper_v1) == (0.4846, 0.0079, "0.5000")
    assert mean.difference == pytest.approx(0.49 - 0.4846)
    assert math.isnan(other.logs)
    assert math.isnan(other.difference)
    assert other.paper_v1 is None
    assert math.isnan(score_lines([run_of(bPQ=0.5)], None)["bPQ"].logs)


@pytest.mark.parametrize(
    ("data", "mpp", "count"), [("PanNuke", 0.25, 0), ("pannuke", 0.5, 1), ("consep", 0.25, 1), ("consep", 0.5, 2)]
)
def test_other_data_or_another_resolution_forbid_a_comparison(data, mpp, count):
    assert len(reasons_not_comparable([run_of(data, mpp)], published("sam-b"))) == count
