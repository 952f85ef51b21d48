"""The report: its tables, parsed back, hold the numbers of the runs; warnings appear where they must; pictures fit."""

import json
import math
import re
from dataclasses import replace
from functools import lru_cache
from statistics import fmean, pstdev

import numpy as np
import pytest
from PIL import Image

from cellvit.classes import PANNUKE, PANNUKE_TISSUES
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.cross_validation.figures import Bars, draw_bars, draw_samples, read_samples
from cellvit.evaluation.cross_validation.published import published
from cellvit.evaluation.cross_validation.report import write_report
from cellvit.evaluation.cross_validation.scores import DatasetFacts, FoldScores, write_scores
from cellvit.metrics import METRICS, AggregatedJaccard, CentroidDetection, PanopticQuality
from cellvit.types import Nuclei, NucleiPrediction

TYPES, TISSUES = PANNUKE.names, ("Colon", "Skin", "Adrenal_gland")
ROTATION = ((1, 2, 3), (2, 1, 3), (3, 2, 1))
NONE = "–"  # noqa: RUF001
TEXT, DATA, SAMPLES, SCORES = "report.md", "report.json", "report.png", "report-scores.png"


@lru_cache
def score_names(types, tissues):
    """The names that the metrics themselves give."""
    metrics = [
        PanopticQuality(class_names=types, tissue_names=tissues),
        CentroidDetection(class_names=types),
        AggregatedJaccard(),
    ]
    empty = NucleiPrediction(np.zeros((8, 8), np.int32), Nuclei.empty())
    for metric in metrics:
        metric.update_nuclei(empty, empty)
    return [*(name for metric in metrics for name in metric.compute()), "Dice", "Jaccard", "tissue_accuracy"]


def fold_scores(run, *, types=TYPES, tissues=TISSUES, dataset="pannuke", mpp=0.25, missing=(), extra=()):
    rng = np.random.default_rng(run)
    names = [*score_names(types, tissues), *extra]
    values = zip(names, rng.random(len(names)).tolist(), strict=True)
    scores = {name: math.nan if name in missing else value for name, value in values}
    train, val, test = ROTATION[(run - 1) % 3]
    patches = {1: 2656, 2: 2500, 3: 2722}[test]
    return FoldScores(
        config="cellvit-256",
        train_folds=(train,),
        val_folds=(val,),
        test_folds=(test,),
        epochs=130,
        checkpoint=f"run-{run}/checkpoints/last.ckpt",
        class_names=types,
        tissue_names=tissues,
        dataset=DatasetFacts(dataset, mpp, patches),
        scores=scores,
        seconds={"fit": 3661.4, "test": 59.6},
        versions={"torch": "2.8.0"},
    )


def write_runs(folder, runs):
    for number, run in enumerate(runs, start=1):
        (folder / f"run-{number}").mkdir(parents=True, exist_ok=True)
        write_scores(folder / f"run-{number}" / "scores.json", run)
    return folder


def report(folder, runs, *, name="cellvit-256", title="A report"):
    path = write_report(write_runs(folder, runs), published=name, title=title)
    assert path == folder / TEXT
    return path.read_text(encoding="utf-8")


def sections(text):
    """Return the text of every section by heading."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(text):
    """Return the rows of every table of a text by section, each a dictionary by column."""
    found = {}
    for heading, body in sections(text).items():
        lines = [line for line in body.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        if cells:
            assert len({len(row) for row in cells}) == 1, heading
            assert all(re.fullmatch(r"---:?", cell) for cell in cells[1])
            found[heading] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def by_score(text):
    rows = {}
    for table in tables(text).values():
        for row in table:
            if "Score" in row and "Run 1" in row and "Mean ± std" in row:
                name = row["Score"].strip("`")
                assert name not in rows, f"{name} stands in two tables"
                rows[name] = row
    return rows


def test_every_score_stands_in_one_table_with_its_numbers(tmp_path):
    runs = [fold_scores(k, extra=("loss", "AJI_plus")) for k in (1, 2, 3)]
    text = report(tmp_path, runs)
    rows = by_score(text)
    assert set(rows) == set(runs[0].scores)
    for name, row in rows.items():
        values = [run.scores[name] for run in runs]
        assert [row[f"Run {k}"] for k in (1, 2, 3)] == [f"{value:.4f}" for value in values]
        assert row["Mean ± std"] == f"{fmean(values):.4f} ± {pstdev(values):.4f}"
    assert [row["Score"] for row in tables(text)["Further scores"]][-2:] == ["`loss`", "`AJI_plus`"]


def test_the_scores_of_our_metrics_all_have_a_place_in_the_papers_tables(tmp_path):
    text = report(tmp_path, [fold_scores(1)])
    further = [row["Score"].strip("`") for row in tables(text).get("Further scores", [])]
    assert all(name.endswith("_image_mean") for name in further)  # which the paper does not have
    scored = {heading: rows for heading, rows in tables(text).items() if "Score" in rows[0]}
    found = {heading: [row["Score"].strip("`") for row in rows] for heading, rows in scored.items()}
    first, *_ = found
    assert first.startswith("Table 1. Detection")
    assert found[first][:6] == ["F1_d", "P_d", "R_d", "F1/Neoplastic", "P/Neoplastic", "R/Neoplastic"]
    assert found["Table 2a. mPQ per tissue"] == ["mPQ/Colon", "mPQ/Skin", "mPQ/Adrenal_gland", "mPQ_tissue_mean"]
    assert found["Table 2b. bPQ per tissue"][-1] == "bPQ_tissue_mean"
    over_images = found["Table 3. Panoptic quality, averaged over images"]
    assert over_images == [*(f"PQ/{t}" for t in TYPES[1:]), "mPQ", "mDQ", "mSQ", "bPQ", "bDQ", "bSQ"]
    assert found["Overlap and tissue"] == ["Dice", "Jaccard", "AJI", "tissue_accuracy"]
    assert {"panoptic-quality", "centroid-detection", "binary-overlap", "aggregated-jaccard"} <= set(METRICS.names())


def test_runs_of_different_length_are_reported_with_a_warning(tmp_path):
    text = report(tmp_path, [fold_scores(1), replace(fold_scores(2), epochs=71)])
    assert "**The runs were trained for different numbers of epochs**" in text
    assert [row["Epochs"] for row in tables(text)["What was run"]] == ["130", "71"]


def test_published_columns_hold_the_published_numbers_and_the_difference(tmp_path):
    runs = [fold_scores(k) for k in (1, 2, 3)]
    text = report(tmp_path, runs)
    rows, entry = by_score(text), published("cellvit-256")
    assert (rows["F1_d"]["Paper v1"], rows["mPQ_tissue_mean"]["Paper v1"]) == ("0.83", "0.5000")
    assert rows["bPQ_tissue_mean"]["Authors' logs"] == "0.6696 ± 0.0034"
    assert rows["mPQ/Skin"]["Authors' logs"] == "0.3661"
    assert rows["P/Dead"]["Authors' logs"] == NONE
    assert rows["P/Dead"]["Mean - logs"] == NONE
    assert "Paper v1" not in rows["bPQ"]  # no number of that table is in the first version
    for name in set(rows) & set(entry.logs):
        mean = fmean(run.scores[name] for run in runs)
        assert float(rows[name]["Mean - logs"]) == pytest.approx(mean - entry.logs[name], abs=5.1e-5)
        assert rows[name]["Mean - logs"][0] in "+-"
    for heading, part in (("Paper v1", "superseded"), ("Authors' logs", "run `ViT256/Best-Setting`, mean over 3 runs")):
        assert re.search(rf"\*\*{heading}\*\*: .*{part}", text)


def test_runs_stand_beside_the_logs_of_the_same_folds(tmp_path):
    runs = [fold_scores(3), fold_scores(1)]  # in another order than the logs
    (heading, table) = next((h, t) for h, t in tables(report(tmp_path, runs)).items() if h.startswith("Run by run"))
    row = next(row for row in table if row["Score"] == "`mPQ`")
    assert list(row) == ["Score", "Run 1", "Logs, fold 3", "Difference", "Run 2", "Logs, fold 1"], heading
    assert (row["Logs, fold 3"], row["Logs, fold 1"]) == ("0.4915", "0.4788")
    assert float(row["Difference"]) == pytest.approx(
        runs[1].scores["mPQ"] - 0.4788, abs=5.1e-5
    )  # the last of this name


def test_other_data_are_shown_under_a_warning_and_without_differences(tmp_path):
    text = report(tmp_path, [fold_scores(k, dataset="consep") for k in (1, 2, 3)])
    assert (
        "**The published numbers must not be compared with the scores here: they are of the data set `pannuke`" in text
    )
    rows = by_score(text)
    assert rows["bPQ"]["Authors' logs"].startswith("0.6537")
    assert not any("Mean - logs" in row for row in rows.values())
    assert not any(heading.startswith("Run by run") for heading in sections(text))
    assert "Lines mark published values" not in text
    data = json.loads((tmp_path / DATA).read_text())
    assert data["published"]["not_comparable"]
    assert data["scores"]["bPQ"]["logs"] == 0.6537
    assert data["scores"]["bPQ"]["mean_minus_logs"] is None


def test_the_same_data_carry_no_such_warning(tmp_path):
    text = report(tmp_path, [fold_scores(k) for k in (1, 2, 3)])
    assert "must not be compared" not in text
    assert "Lines mark published values" in text


@pytest.mark.parametrize(("name", "warned"), [("cellvit-256-x20", True), ("sam-b", False)])
def test_another_resolution_is_a_warning_too(tmp_path, name, warned):
    text = report(tmp_path, [fold_scores(k) for k in (1, 2, 3)], name=name)
    assert ("must not be compared" in text) == warned
    assert ("of 0.5 microns per pixel, the scores here of 0.25" in text) == warned


def test_without_published_scores_no_such_column_appears(tmp_path):
    text = report(tmp_path, [fold_scores(k) for k in (1, 2)], name=None)
    assert "Authors' logs" not in text
    assert "Paper v1" not in text
    assert "beside: nothing" in text
    assert json.loads((tmp_path / DATA).read_text())["published"] is None


def test_one_run_has_no_spread(tmp_path):
    run = fold_scores(1)
    text = report(tmp_path, [run])
    row = by_score(text)["bPQ"]
    assert "Run 2" not in row
    assert row["Mean ± std"] == f"{run.scores['bPQ']:.4f} ± {NONE}"
    assert "**1 run here, 3 in the published means" in text


def test_absent_types_and_tissues_are_dashes(tmp_path):
    runs = [fold_scores(1, missing=("PQ/Dead", "bPQ/Skin")), fold_scores(2, missing=("PQ/Dead",)), fold_scores(3)]
    rows = by_score(report(tmp_path, runs))
    assert [rows["PQ/Dead"][f"Run {k}"] for k in (1, 2)] == [NONE, NONE]
    assert rows["PQ/Dead"]["Mean ± std"] == f"{runs[2].scores['PQ/Dead']:.4f} ± {NONE} (1 of 3 runs)"
    assert rows["bPQ/Skin"]["Mean ± std"].endswith("(2 of 3 runs)")
    never = by_score(report(tmp_path / "never", [fold_scores(1, missing=("PQ/Dead",))]))["PQ/Dead"]
    assert (never["Mean ± std"], never["Mean - logs"]) == (NONE, NONE)


def test_folds_tested_twice_and_folds_seen_in_training_are_said(tmp_path):
    text = report(tmp_path, [fold_scores(k) for k in (1, 2, 3)])
    assert "the folds of the authors' three runs" in text
    assert "Fold 3 is tested 2 times, in runs 1 and 2, and fold 2 is never tested" in text
    proper = [
        replace(fold_scores(k), test_folds=(k,), train_folds=(k % 3 + 1,), val_folds=((k + 1) % 3 + 1,))
        for k in (1, 2, 3)
    ]
    text = report(tmp_path / "proper", proper)
    assert "tested 2 times" not in text
    assert "authors' three runs" not in text
    text = report(tmp_path / "seen", [replace(fold_scores(1), train_folds=(1, 3))])
    assert "**Run 1 is tested on fold 3, which it was trained or validated on.**" in text


def test_a_part_of_the_test_set_is_said(tmp_path):
    run = fold_scores(1)
    text = report(tmp_path, [replace(run, dataset=run.dataset._replace(patches=40))])
    assert "**Run 1 was tested on 40 patches of fold 3, the published ones on 2,722" in text


def test_both_averages_are_explained(tmp_path):
    text = sections(report(tmp_path, [fold_scores(1)]))["How to read the tables"]
    assert "Table 2 takes the mean over the images of each tissue, then the mean over the tissues" in text
    assert "Table 3 takes the mean over all images" in text
    assert "published mPQ and bPQ of a method are those of Table 2" in text
    assert "population standard deviation" in text


def test_only_times_and_versions_change_the_report(tmp_path):
    runs = [fold_scores(k) for k in (1, 2, 3)]
    for folder, seconds, versions in (
        ("a", {"fit": 1.0}, {"torch": "2.8"}),
        ("b", {"fit": 7200.0}, {"torch": "9", "timm": "1"}),
    ):
        report(tmp_path / folder, [replace(run, seconds=seconds, versions=versions) for run in runs])
    texts = [(tmp_path / folder / TEXT).read_text() for folder in "ab"]
    first, second = (text.split("## How it was run") for text in texts)
    assert first[0] == second[0]
    assert "| Time, fit | 0:00:01 | 0:00:01 | 0:00:01 |" in first[1]
    assert "| Time, fit | 2:00:00 | 2:00:00 | 2:00:00 |" in second[1]
    assert "| Version of timm | 1 | 1 | 1 |" in second[1]
    data = [json.loads((tmp_path / folder / DATA).read_text()) for folder in "ab"]
    assert data[0].pop("how_it_was_run") != data[1].pop("how_it_was_run")
    assert data[0] == data[1]
    assert (tmp_path / "a" / SCORES).read_bytes() == (tmp_path / "b" / SCORES).read_bytes()


def test_writing_again_changes_no_byte_and_leaves_nothing_behind(tmp_path):
    runs = [fold_scores(k) for k in (1, 2, 3)]
    report(tmp_path, runs)
    store_sample(tmp_path, 1, "Colon")
    report(tmp_path, runs)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    report(tmp_path, runs)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert before == after
    assert set(after) == {TEXT, DATA, SAMPLES, SCORES}


def test_the_data_hold_all_numbers(tmp_path):
    runs = [fold_scores(k, missing=("PQ/Dead",)) for k in (1, 2, 3)]
    report(tmp_path, runs, title="T")
    data = json.loads((tmp_path / DATA).read_text())
    assert (data["format"], data["version"], data["title"], data["config"]) == ("cellvit-report", 1, "T", "cellvit-256")
    assert [run["test_folds"] for run in data["runs"]] == [[3], [3], [1]]
    values = [run.scores["mPQ_tissue_mean"] for run in runs]
    assert data["scores"]["mPQ_tissue_mean"] == {
        "runs": values,
        "mean": pytest.approx(fmean(values)),
        "std": pytest.approx(pstdev(values)),
        "folds": 3,
        "paper_v1": 0.5,
        "logs": 0.4846,
        "logs_std": 0.0079,
        "mean_minus_logs": pytest.approx(fmean(values) - 0.4846),
    }
    assert data["scores"]["PQ/Dead"]["runs"] == [None] * 3
    assert data["scores"]["PQ/Dead"]["mean"] is None
    assert "NaN" not in (tmp_path / DATA).read_text()


def test_names_cannot_break_a_table(tmp_path):
    runs = [fold_scores(1, types=("Background", "a|b"), tissues=("x\ny", "z"))]
    text = report(tmp_path, runs, title="One\nline", name=None)
    assert text.startswith("# One line\n")
    assert "PQ/a\\|b" in by_score(text)
    assert tables(text)["Table 2a. mPQ per tissue"][0][""] == "x y"


def test_names_with_html_stay_text(tmp_path):
    runs = [fold_scores(1, types=("Background", "<b>x</b>"), tissues=("<script>y</script>", "z"))]
    text = report(tmp_path, runs, title="<i>T</i>", name=None)
    assert "PQ, &lt;b>x&lt;/b>" in text
    assert not re.search(r"<[a-z/]", text)


def test_names_in_any_script_can_be_drawn():
    picture = draw_bars(
        ["\u4e2d\u6587 $x^", "\U0001f52c"], [Bars("bPQ", [0.5, 0.2], [0.1, 0.1], {})], title="\u4e2d $_"
    )
    assert picture.shape[1] >= 1200


def test_a_model_without_types_and_tissues_is_reported(tmp_path):
    text = report(tmp_path, [fold_scores(1, types=(), tissues=())], name="sam-h")
    assert "bPQ and F1" not in text.split("##")[0]
    assert "The runs hold no such scores." in sections(text)["Table 2a. mPQ per tissue"]
    assert "bPQ and F1 of detection of all nuclei" in sections(text)["Pictures"]


def test_without_types_the_chart_shows_what_there_is(tmp_path):
    text = report(tmp_path, [fold_scores(1, types=())], name=None)
    assert "bPQ per tissue: mean and" in sections(text)["Pictures"]
    assert "mPQ" not in sections(text)["Pictures"]


def test_nothing_is_written_when_something_is_wrong(tmp_path):
    write_runs(tmp_path, [fold_scores(1)])
    with pytest.raises(ConfigError, match="known are"):
        write_report(tmp_path, published="cellvit", title="T")
    (tmp_path / "run-3").mkdir()
    with pytest.raises(DataError, match="run-2 is missing"):
        write_report(tmp_path, published=None, title="T")
    (tmp_path / "run-3").rmdir()
    store_sample(tmp_path, 1, "Colon").write_bytes(b"PK\x03\x04 damaged")
    store_sample(tmp_path, 1, "Skin", number=5, true_types=np.zeros(0, int))
    with pytest.raises(DataError, match=r"00_Colon.npz: .*05_Skin.npz: map \(24, 32\) with 0 types"):
        write_report(tmp_path, published=None, title="T")
    assert {path.name for path in tmp_path.iterdir()} == {"run-1"}


# Pictures


def bars(count, shape=(24, 32)):
    """Return an instance map of nuclei 6 px high and 8 px wide, one below the other."""
    instances = np.zeros(shape, np.int32)
    for label in range(1, count + 1):
        instances[8 * label - 6 : 8 * label, 4:12] = label
    return instances


def store_sample(folder, run, tissue, *, number=0, shape=(24, 32), **changes):
    path = folder / f"run-{run}" / "samples" / f"{number:02d}_{tissue}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "image": np.full((*shape, 3), 200, np.uint8),
        "true_instances": bars(2, shape),
        "pred_instances": bars(1, shape),
        "true_types": np.array([1, 4]),
        "pred_types": np.array([2]),
        "name": np.array(f"{number}_patch"),
        "tissue": np.array(tissue),
    }
    np.savez(path, **(arrays | changes))
    return path


def count_of(picture, color):
    return int((picture == np.array(color)).all(axis=2).sum())


def test_samples_of_the_first_run_that_has_any_are_drawn(tmp_path):
    runs = [fold_scores(k) for k in (1, 2)]
    text = report(tmp_path, runs)
    assert "No test images were stored" in text
    assert f"({SAMPLES})" not in text
    assert not (tmp_path / SAMPLES).exists()
    store_sample(tmp_path, 2, "Colon")
    text = report(tmp_path, runs)
    assert f"![One test image per tissue, run 2: the image, its true and its predicted nuclei.]({SAMPLES})" in text
    assert "No test images" not in text
    for name in (SAMPLES, SCORES):
        with Image.open(tmp_path / name) as picture:
            assert picture.mode == "RGB"
            assert picture.width >= 1000


def test_one_image_per_tissue_is_read_in_order(tmp_path):
    for number, tissue in ((3, "Colon"), (1, "Skin"), (7, "Colon")):
        store_sample(tmp_path, 1, tissue, number=number)
    samples = read_samples(tmp_path / "run-1", TYPES)
    assert [(s.name, s.tissue) for s in samples] == [("1_patch", "Skin"), ("3_patch", "Colon")]
    assert samples[0].target.nuclei.type.tolist() == [1, 4]
    assert samples[0].pred.nuclei.type.tolist() == [2]
    assert read_samples(tmp_path / "run-2", TYPES) == ()
    with pytest.raises(DataError, match="no samples"):
        draw_samples((), title="T")


def test_panels_show_the_types_in_their_colours(tmp_path):
    store_sample(tmp_path, 1, "Colon", shape=(32, 32))
    (sample,) = read_samples(tmp_path / "run-1", TYPES)
    picture = draw_samples([sample], title="T")
    body = picture[-512 - 12 :]  # the three panels, below all text
    image, truth, prediction = (body[:, 17 + i * 518 : 17 + i * 518 + 512] for i in range(3))
    neoplastic, inflammatory, dead = (PANNUKE.colors[i] for i in (1, 2, 4))
    assert [count_of(image, c) for c in (neoplastic, inflammatory, dead)] == [0, 0, 0]
    assert count_of(truth, neoplastic) > 100
    assert count_of(truth, dead) > 100
    assert count_of(truth, inflammatory) == 0
    assert count_of(prediction, inflammatory) > 100
    assert count_of(prediction, neoplastic) == count_of(prediction, dead) == 0
    # label 1 covers rows 2 to 7 and columns 4 to 11: its outline, 16 times as large, runs along their edges
    rows, columns = np.nonzero((truth == np.array(neoplastic)).all(axis=2))
    assert (rows.min() // 16, rows.max() // 16, columns.min() // 16, columns.max() // 16) == (2, 8, 4, 12)


def test_nuclei_without_type_or_classes_are_drawn(tmp_path):
    store_sample(tmp_path, 1, "Colon", true_types=np.array([-1, 4]), pred_types=np.array([0]))
    (typed,) = read_samples(tmp_path / "run-1", TYPES)
    assert typed.target.nuclei.type.tolist() == [0, 4]
    (plain,) = read_samples(tmp_path / "run-1", ())
    assert plain.target.nuclei.type.tolist() == [1, 1]
    assert draw_samples([typed], title="T").shape[0] > draw_samples([plain], title="T").shape[0]  # a legend


def test_all_tissues_fit_in_a_grid(tmp_path):
    for number, tissue in enumerate(PANNUKE_TISSUES):
        shape = ((24, 32), (400, 300), (64, 64))[number % 3]
        store_sample(tmp_path, 1, tissue, number=number, shape=shape, name=np.array("a long name " * 20))
    samples = read_samples(tmp_path / "run-1", TYPES)
    picture = draw_samples(samples, title="T")
    assert len(samples) == 19
    height, width, _ = picture.shape
    assert width == 2 * (3 * 384 + 2 * 6 + 2 * 17)
    assert 10 * 384 < height < 10 * 470
    margin = picture[:, [0, 1, 2, -3, -2, -1]]
    assert (margin == 255).all()  # nothing is cut at the sides


def test_bars_are_as_long_as_their_values():
    groups = [
        Bars("bPQ", [0.25, 1.0, math.nan], [0.0, math.nan, math.nan], {"Logs": [0.5, math.nan, 0.75]}),
        Bars("mPQ", [0.5, 0.0, 0.1], [math.nan] * 3, {}),
    ]
    picture = draw_bars(["first", "second", "third"], groups, title="T")
    blue, orange, red = (64, 116, 180), (226, 140, 50), (200, 0, 60)
    assert picture.dtype == np.uint8
    assert count_of(picture, red) > 0
    lower = picture[100:]  # below the legend
    lengths = {}
    for name, color in (("bPQ", blue), ("mPQ", orange)):
        widths = (lower == np.array(color)).all(axis=2).sum(axis=1)
        lengths[name] = max(widths)
    assert lengths["mPQ"] == pytest.approx(lengths["bPQ"] / 2, abs=4)
    assert (picture[:, -3:] == 255).all()
    assert (picture[:, :3] == 255).all()


def test_long_labels_widen_the_chart():
    label = "a tissue with a long name " * 8
    assert draw_bars([label], [Bars("bPQ", [0.5], [0.1], {})], title="T").shape[1] > 1900


def test_real_tissue_is_drawn(tmp_path, test_data):
    folder = test_data / "nuclei" / "consep"
    path = sorted((folder / "images").glob("*.jpg"))[0]
    with np.load(folder / "labels" / f"{path.stem}.npz") as labels, Image.open(path) as image:
        kept = labels["inst_map"][:256, :256]
        ids, instances = np.unique(kept, return_inverse=True)
        instances = instances.reshape(kept.shape).astype(np.int32) + (ids[0] > 0)
        types = labels["inst_type"][ids[ids > 0]].astype(int)
        pixels = np.asarray(image.convert("RGB"))[:256, :256]
    sides = {f"{s}_{w}": v for s in ("true", "pred") for w, v in (("instances", instances), ("types", types))}
    store_sample(tmp_path, 1, "Colon", image=pixels, **sides)
    (sample,) = read_samples(tmp_path / "run-1", ("Background", "Other", "Inflammatory", "Epithelial", "Spindle"))
    assert len(sample.target.nuclei) > 10
    body = draw_samples([sample], title="T")[-512 - 12 :, 17:-17].astype(int)
    image, truth, prediction = (body[:512, i * 518 : i * 518 + 512] for i in range(3))
    assert (truth == prediction).all()
    assert 0.005 < (image != truth).any(axis=2).mean() < 0.5
