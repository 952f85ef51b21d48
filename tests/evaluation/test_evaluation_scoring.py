import json
from dataclasses import replace

import numpy as np
import pytest
from support.shapes import squares

from cellvit.classes import PANNUKE
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.pairing import Pair
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.evaluation.results import group_rows, image_rows, score_rows, write_results
from cellvit.evaluation.scoring import (
    ScoreSettings,
    pooled_scores,
    score_nuclei,
    score_pair,
    score_pairs,
    truth_classes,
)
from cellvit.io import write_geojson, write_parquet
from cellvit.io.tables import markdown_table, render, write_csv
from cellvit.metrics import AggregatedJaccard, BinaryOverlap, CentroidDetection, PanopticQuality
from cellvit.metrics.functional import panoptic_quality
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import NucleiClasses

CLASSES = ("Background", "Small", "Large")


TRUE = squares((2, 2), (2, 20), (30, 30))
FOUND = squares((2, 3), (2, 40), (31, 30))  # one column off, far away, one row off


def write_pair(folder, name, pred, truth, pred_types=None, true_types=None, **more):
    folder.mkdir(exist_ok=True)
    for side, instances, types in (("pred", pred, pred_types), ("truth", truth, true_types)):
        given = {} if types is None else {"inst_type": np.asarray(types)}
        np.savez(folder / f"{name}.{side}.npz", inst_map=instances, **given)
    return Pair(name, folder / f"{name}.pred.npz", folder / f"{name}.truth.npz", **more)


def test_scores_of_one_image_by_hand(tmp_path):
    pair = write_pair(tmp_path, "a", FOUND, TRUE, [0, 1, 1, 1], [0, 1, 2, 2])
    image = score_pair(pair, ScoreSettings(class_names=CLASSES, radius=5))
    iou = 56 / 72
    assert (image.true, image.predicted, image.occluded, image.typed) == (3, 3, 0, True)
    expected = {
        "bDQ": 2 / 3,
        "bSQ": iou,
        "bPQ": 2 / 3 * iou,
        "PQ/Small": iou / (1 + 0.5 * 2),  # one match, two wrong
        "PQ/Large": 0,
        "F1_d": 4 / 6,
        "Dice": 2 * 112 / (192 + 192),
        "Jaccard": 112 / (384 - 112),
        "AJI": 112 / (72 + 72 + 64 + 64),  # two pairs, one missed, one unused
        "F1/Small": 2 / (2 + 2 * 1 + 1),
    }
    for name, value in expected.items():
        assert image.scores[name] == pytest.approx(value, abs=2e-6), name
    assert image.scores["mPQ"] == pytest.approx((iou / 2 + 0) / 2, abs=2e-6)


def random_pair(seed):
    rng = np.random.default_rng(seed)
    corners = [(r, c) for r in range(0, 48, 12) for c in range(0, 48, 12) if rng.random() < 0.7]
    truth = squares(*corners)
    pred = squares(*[(r + rng.integers(0, 4), c + rng.integers(0, 4)) for r, c in corners if rng.random() < 0.8])
    types = [rng.integers(low, 3, 20) for low in (0, 1)]  # some predicted nuclei have none
    return pred, truth, types[0], types[1]


def test_pooling_is_the_metrics_on_all_images(tmp_path):
    tissues = ("colon", "breast")
    pairs, predictions = [], []
    for seed in range(6):
        pred, truth, pred_types, true_types = random_pair(seed)
        pairs.append(write_pair(tmp_path, f"i{seed}", pred, truth, pred_types, true_types, tissue=tissues[seed % 2]))
        predictions.append(
            (nuclei_from_labels(pred, pred_types), nuclei_from_labels(truth, true_types), tissues[seed % 2])
        )
    settings = ScoreSettings(class_names=CLASSES, tissue_names=("breast", "colon"), radius=4)
    scores = pooled_scores(score_pairs(pairs, settings))
    quality = PanopticQuality(class_names=CLASSES, tissue_names=("breast", "colon"))
    detection, aji = CentroidDetection(class_names=CLASSES, radius=4), AggregatedJaccard()
    for pred, target, tissue in predictions:
        quality.update_nuclei(pred, target, tissue=("breast", "colon").index(tissue))
        detection.update_nuclei(pred, target)
        aji.update_nuclei(pred, target)
    direct = {k: v.item() for m in (quality, detection, aji) for k, v in m.compute().items()}
    assert direct.keys() | {"Dice", "Jaccard"} == scores.keys()
    for name, value in direct.items():
        assert scores[name] == value, name
    assert any((p.nuclei.type == 0).any() for p, _, _ in predictions)
    typed = [np.where(np.append(0, p.nuclei.type)[p.instance_map] > 0, p.instance_map, 0) for p, _, _ in predictions]
    means = [panoptic_quality(p, t.instance_map).pq for p, (_, t, _) in zip(typed, predictions, strict=True)]
    assert scores["bPQ"] == pytest.approx(np.mean(means), abs=1e-6)
    assert scores["bPQ_tissue_mean"] == pytest.approx(np.mean([np.mean(means[::2]), np.mean(means[1::2])]), abs=1e-6)


@pytest.mark.slow  # a worker imports the package anew
def test_workers_change_nothing(tmp_path):
    pairs = [write_pair(tmp_path, f"i{seed}", *random_pair(seed)) for seed in range(3)]
    settings = ScoreSettings(class_names=CLASSES)
    seen = []
    alone = score_pairs(pairs, settings)
    shared = score_pairs(pairs, settings, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert [i.name for i in shared] == ["i0", "i1", "i2"]
    np.testing.assert_equal([i.scores for i in shared], [i.scores for i in alone])
    np.testing.assert_equal(pooled_scores(shared), pooled_scores(alone))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_perfect_and_empty_predictions(tmp_path):
    nothing = np.zeros_like(TRUE)
    scores = pooled_scores(score_pairs([write_pair(tmp_path, "a", TRUE, TRUE)], ScoreSettings()))
    assert all(value == pytest.approx(1, abs=1e-6) for value in scores.values())
    empty = pooled_scores(score_pairs([write_pair(tmp_path, "b", nothing, TRUE)], ScoreSettings()))
    assert empty["bPQ"] == empty["F1_d"] == empty["Dice"] == empty["AJI"] == 0
    no_truth = pooled_scores(score_pairs([write_pair(tmp_path, "c", FOUND, nothing)], ScoreSettings()))
    assert np.isnan(no_truth["bPQ"])
    assert no_truth["P_d"] == 0


def test_truth_against_itself_is_perfect_also_with_specks(tmp_path):
    specks = TRUE.copy()
    specks[50, 50], specks[55, 50:52] = 8, 9
    (image,) = score_pairs([write_pair(tmp_path, "a", specks, specks)], ScoreSettings())
    assert (image.scores["F1_d"], image.scores["P_d"], image.scores["R_d"]) == (1, 1, 1)


def test_without_types_only_binary_scores(tmp_path):
    settings = ScoreSettings(class_names=CLASSES)
    scores = pooled_scores(score_pairs([write_pair(tmp_path, "a", FOUND, TRUE, None, [0, 1, 2, 2])], settings))
    assert {name.split("_")[0] for name in scores} == {"bPQ", "bDQ", "bSQ", "F1", "P", "R", "Dice", "Jaccard", "AJI"}
    assert scores["bPQ"] > 0.4  # nuclei without a type are nuclei


def test_an_image_without_any_predicted_type_does_not_stop_the_others(tmp_path):
    pairs = [
        write_pair(tmp_path, "a", FOUND, TRUE, [0, 1, 1, 1], [0, 1, 2, 2]),
        write_pair(tmp_path, "b", FOUND, TRUE, None, [0, 1, 2, 2]),
        write_pair(tmp_path, "c", np.zeros_like(TRUE), TRUE, None, [0, 1, 2, 2]),  # nothing found: nothing to state
        write_pair(tmp_path, "d", FOUND, TRUE, [0, 0, 0, 0], [0, 1, 2, 2]),
    ]
    a, b, c, d = score_pairs(pairs, ScoreSettings(class_names=CLASSES))
    assert (a.typed, b.typed, c.typed, d.typed) == (True, False, None, True)
    assert (a.untyped, b.untyped, c.untyped, d.untyped) == (0, 3, 0, 3)
    assert a.scores["bPQ"] > 0.4
    assert b.scores["bPQ"] == d.scores["bPQ"] == 0  # nuclei of type 0 are left out, as in cellvit test
    assert b.scores["F1_d"] == d.scores["F1_d"] == a.scores["F1_d"] > 0  # detection counts them


def write_npz(nuclei, path):
    np.savez(path, inst_map=FOUND, inst_type=np.concatenate([[0], nuclei.type]))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("write", "suffix"), [(write_parquet, "parquet"), (write_geojson, "geojson"), (write_npz, "npz")]
)
def test_an_untyped_image_beside_a_typed_one_is_scored(tmp_path, write, suffix, named):
    """Our own files, with classes and without; a map without classes has no ``inst_type``."""
    classes = NucleiClasses(CLASSES, ((0, 0, 0),) * len(CLASSES))
    pairs = []
    for name, types in (("a", [0, 1, 1, 1]), ("b", [0, 0, 0, 0])):
        pair = write_pair(tmp_path, name, FOUND, TRUE, None, [0, 1, 2, 2])
        if suffix != "npz" or named or name == "a":
            has = classes if named or name == "a" else None
            nuclei = replace(nuclei_from_labels(FOUND, np.array(types)).nuclei, classes=has)
            pair = replace(pair, pred=tmp_path / f"{name}.{suffix}")
            write(nuclei, pair.pred)
        pairs.append(pair)
    images = score_pairs(pairs, ScoreSettings(class_names=CLASSES))
    assert [image.typed for image in images] == [True, named]
    assert [image.untyped for image in images] == [0, 3]
    iou = 56 / 72
    scores = pooled_scores(images)
    assert scores["bPQ"] == pytest.approx((2 / 3 * iou + 0) / 2, abs=2e-6)
    assert scores["PQ/Small"] == pytest.approx((iou / 2 + 0) / 2, abs=2e-6)
    assert scores["F1_d"] == pytest.approx(4 / 6, abs=2e-6)


def test_an_image_in_which_nothing_was_found_is_not_untyped(tmp_path):
    nothing = np.zeros_like(TRUE)
    files = [write_pair(tmp_path, name, nothing, TRUE, None, [0, 1, 2, 2]) for name in "ab"]
    write_geojson(nuclei_from_instances(nothing).nuclei, tmp_path / "b.geojson")
    files[1] = replace(files[1], pred=tmp_path / "b.geojson")
    images = score_pairs(files, ScoreSettings(class_names=CLASSES))
    assert [image.typed for image in images] == [None, None]
    scores = pooled_scores(images)
    assert scores["bPQ"] == scores["mPQ"] == scores["F1/Small"] == 0


def test_nuclei_of_type_0_count_where_the_true_types_or_all_types_are_unknown(tmp_path):
    settings = ScoreSettings(class_names=CLASSES)
    known, unknown = [0, 1, 2, 2], [0, 1, -1, 2]
    half = [0, 0, 1, 1]  # the first nucleus, a match, is of type 0
    iou = 56 / 72
    by_truth = {
        name: score_pair(write_pair(tmp_path, name, FOUND, TRUE, half, true), settings).scores["bPQ"]
        for name, true in (("known", known), ("unknown", unknown), ("none", None))
    }
    assert by_truth["known"] == pytest.approx(iou / (1 + 0.5 + 0.5 * 2), abs=2e-6)  # a match, one wrong, two missed
    assert by_truth["unknown"] == by_truth["none"] == pytest.approx(2 / 3 * iou, abs=2e-6)
    binary = score_pair(write_pair(tmp_path, "binary", FOUND, TRUE, half, known), ScoreSettings())
    assert binary.scores["bPQ"] == by_truth["none"]
    untyped = score_pair(write_pair(tmp_path, "plain", FOUND, TRUE, None, known), settings)
    assert untyped.scores["bPQ"] == by_truth["none"]
    assert np.isnan(untyped.scores["mPQ"])
    pred, target = nuclei_from_labels(FOUND, np.array(half)), nuclei_from_labels(TRUE, np.array(known))
    monuseg = score_nuclei(pred, target, ScoreSettings(ignore_background=True))
    assert monuseg.scores["bPQ"] == by_truth["none"]
    assert monuseg.scores["R_d"] == pytest.approx(1 / 3, abs=2e-6)


def test_unknown_true_types_leave_an_image_out_of_typed_scores(tmp_path):
    pairs = [
        write_pair(tmp_path, "a", TRUE, TRUE, [0, 1, 2, 2], [0, 1, 2, 2]),
        write_pair(tmp_path, "b", TRUE, TRUE, [0, 2, 2, 2], [0, 1, -1, 1]),
    ]
    images = score_pairs(pairs, ScoreSettings(class_names=CLASSES))
    assert np.isnan(images[1].scores["mPQ"])
    assert pooled_scores(images)["mPQ"] == images[0].scores["mPQ"]


def test_all_problems_are_listed(tmp_path):
    good = write_pair(tmp_path, "a", FOUND, TRUE)
    torn = write_pair(tmp_path, "b", FOUND, TRUE)
    torn.pred.write_bytes(b"")
    other = write_pair(tmp_path, "c", FOUND[:30], TRUE)
    with pytest.raises(DataError, match="2 of 3 images cannot be scored, nothing was written") as caught:
        score_pairs([good, torn, other], ScoreSettings())
    text = str(caught.value)
    assert "b.pred.npz" in text
    assert "(30, 60)" in text
    assert "(60, 60)" in text
    with pytest.raises(DataError, match="no images to score"):
        score_pairs([], ScoreSettings())


def test_outlines_score_like_the_map_they_came_from(tmp_path):
    instances, truth = squares((2, 3), (2, 40), (31, 30)), write_pair(tmp_path, "a", FOUND, TRUE, None, [0, 5, 1, 1])
    nuclei = nuclei_from_instances(instances).nuclei
    nuclei = replace(nuclei, type=np.array([5, 1, 1], np.int32), classes=PANNUKE)
    write_geojson(nuclei, tmp_path / "a.geojson")
    settings = ScoreSettings(class_names=PANNUKE.names)
    drawn = score_pair(replace(truth, pred=tmp_path / "a.geojson"), settings)
    stored = score_pair(write_pair(tmp_path, "b", FOUND, TRUE, [0, 5, 1, 1], [0, 5, 1, 1]), settings)
    np.testing.assert_equal(drawn.scores, stored.scores)
    # the second nucleus lies under the third and has no pixel left
    hidden = np.array(nuclei.contour_points)
    hidden[nuclei.contour_offsets[1] : nuclei.contour_offsets[2]] = nuclei.contour(2)
    write_geojson(replace(nuclei, contour_points=hidden), tmp_path / "c.geojson")
    under = score_pair(replace(truth, pred=tmp_path / "c.geojson"), settings)
    assert (under.predicted, under.occluded, under.occluded_true) == (2, 1, 0)
    assert image_rows([under])[0]["occluded_predicted"] == 1


def test_classes_of_the_truth(tmp_path):
    numbered = write_pair(tmp_path, "a", FOUND, TRUE, None, [0, 1, 3, 3])
    plain = write_pair(tmp_path, "b", FOUND, TRUE)
    assert truth_classes([plain.truth]) == ((), True)
    assert truth_classes([plain.truth, numbered.truth]) == (("Background", "Type 1", "Type 2", "Type 3"), True)
    features = [
        {
            "type": "Feature",
            "properties": {"classification": {"name": name}},
            "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
        }
        for name in ("Tumor", "immune", "tumor")
    ]
    (tmp_path / "t.geojson").write_text(json.dumps(features))
    assert truth_classes([tmp_path / "t.geojson", tmp_path / "none.npz"]) == (("Background", "Tumor", "immune"), False)


def test_foreground_replaces_the_instances_for_dice():
    pred, target = nuclei_from_labels(FOUND, None), nuclei_from_labels(TRUE, None)
    image = score_nuclei(pred, target, ScoreSettings(), foreground=TRUE > 0)
    assert image.scores["Dice"] == 1
    assert image.scores["bPQ"] < 0.6
    assert image.scores["Jaccard"] == BinaryOverlap()(*[_tensor(TRUE > 0)] * 2)["Jaccard"]


def _tensor(array):
    import torch

    return torch.from_numpy(array)[None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": -1}, "radius -1 is no distance"),
        ({"radius": float("nan")}, "radius nan"),
        ({"iou_threshold": 1.0}, "iou_threshold 1.0"),
        ({"class_names": ("Background",)}, "lack a type"),
        ({"class_names": ("Background", "A", "a")}, "repeat one"),
        ({"class_names": CLASSES, "class_map": {"x": "Huge"}}, r"leads to \['Huge'\]"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        ScoreSettings(**settings)


def test_files_hold_what_was_computed(tmp_path):
    pairs = [write_pair(tmp_path, "a", FOUND, TRUE, [0, 1, 1, 1], [0, 1, 2, 2], tissue="colon")]
    pairs.append(write_pair(tmp_path, "b", FOUND, np.zeros_like(TRUE), [0, 1, 1, 1], None))
    settings = ScoreSettings(class_names=CLASSES, tissue_names=("colon",))
    images = score_pairs(pairs, settings)
    scores = pooled_scores(images)
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"pred": tmp_path, "truth": tmp_path}
    write_results(out, images, scores, settings=settings, inputs=inputs, notes=["Mind | this."])
    stored = json.loads((out / "scores.json").read_text())
    assert stored["scores"]["bPQ"] == pytest.approx(scores["bPQ"], abs=1e-6)
    assert (stored["images"], stored["true_nuclei"], stored["predicted_nuclei"]) == (2, 3, 6)
    assert stored["settings"]["class_names"] == list(CLASSES)
    assert stored["versions"].keys() >= {"cellvit-lightning", "torch", "python"}
    rows = (out / "images.csv").read_text().splitlines()
    assert rows[0] == "image,tissue,true_nuclei,predicted_nuclei,bPQ,DQ,SQ,mPQ,F1,P,R,F1_within,Dice,Jaccard,AJI"
    assert rows[2].startswith("b,,0,3,,,,,0.0,0.0,,0.0")
    text = (out / "scores.md").read_text()
    assert "**Note**: Mind | this." in text
    assert f"| bPQ | {scores['bPQ']:.4f} |" in text
    assert {row["type or tissue"] for row in group_rows(scores)} == {"Small", "Large", "colon"}
    assert "bPQ_tissue_mean" in {row["score"] for row in score_rows(scores)}


def test_names_with_html_stay_text(tmp_path):
    assert markdown_table([{"<b>": "<i>"}]).splitlines()[::2] == ["| &lt;b> |", "| &lt;i> |"]
    page = render(
        "evaluation/monuseg.md.jinja",
        **{key: [{"a": "<b>"}] for key in ("rows", "published")},
        count=1,
        data="<script>",
        notes=["<u>"],
        about=["<s>"],
    )
    assert not any(f"<{tag}>" in page for tag in ("b", "u", "s", "script"))


def test_tables(tmp_path):
    assert markdown_table([{"a|b": "x|y", "n": 1234}]).splitlines()[2] == "| x\\|y | 1,234 |"
    write_csv(tmp_path / "a.csv", [{"a": "x,y", "b": float("nan")}, {"a": None, "b": 0.12345678}])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n"x,y",\n,0.123457\n'
