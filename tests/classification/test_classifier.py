"""The classifier on arrays and on tables of nuclei: scikit-learn's conventions, saving, features, bad input."""

import json
import pickletools
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.utils.estimator_checks import check_estimator

from cellvit.classes import PANNUKE
from cellvit.classification import UNSURE, TypeClassifier
from cellvit.classification.features import NEIGHBORS, REACH_UM, assemble, neighborhood_means, neighbors
from cellvit.classification.folds import blocks_of, choose_folds, out_of_fold
from cellvit.classification.samples import one_spelling
from cellvit.classification.storage import CONFIG, ESTIMATOR
from cellvit.classification.suggest import entropy, spread_out
from cellvit.classification.validation import validate
from cellvit.errors import ConfigError, DataError, PluginError, UnknownPluginError
from cellvit.types import Nuclei

KINDS = ("lymphocyte", "stroma", "tumour")


def points(count=40, *, seed=0, apart=2.0):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(3), count)
    x = rng.normal(size=(3 * count, 5)).astype(np.float32)
    x[np.arange(len(x)), codes] += apart
    return x, np.array(KINDS)[codes]


def table(x, *, side=400.0, seed=1):
    rng = np.random.default_rng(seed)
    count = len(x)
    return Nuclei(
        centroid=rng.random((count, 2)) * side,
        bbox=np.zeros((count, 4)),
        type=np.ones(count, np.int32),
        type_prob=np.ones(count, np.float32),
        contour_offsets=np.zeros(count + 1, np.int64),
        contour_points=np.zeros((0, 2)),
        label=np.arange(1, count + 1, dtype=np.int32),
        embedding=x,
        classes=PANNUKE,
        measurements={"area_um2": np.abs(x[:, 0]) * 10},
        mpp=0.25,
    )


@pytest.mark.parametrize("calibration", ["temperature", "sigmoid"])
def test_scikit_learn_accepts_it(calibration):
    """All checks apply; those of the array API are skipped where the machine does not ask for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping check check_array_api_input")
        if calibration == "sigmoid":  # the same code but for the calibration: what it may spoil is looked at
            x, y = points()
            found = TypeClassifier(calibration="sigmoid").fit(x, y)
            assert np.allclose(found.predict_proba(x).sum(axis=1), 1)
            assert (found.predict(x) == y).mean() > 0.8
            return
        check_estimator(TypeClassifier())


@pytest.mark.parametrize(
    "estimator",
    [
        "logistic",
        "knn",
        {"class_path": "gradient-boosting", "init_args": {"max_iter": 5}},
        "sklearn.naive_bayes.GaussianNB",
        LogisticRegression(C=0.1),
    ],
    ids=["logistic", "knn", "boosting", "dotted path", "instance"],
)
def test_saved_classifiers_say_the_same_and_hold_no_pickle(tmp_path, estimator):
    x, y = points()
    made = TypeClassifier(estimator, unsure_below=0.5).fit(x, y)
    made.save(tmp_path / "types")
    loaded = TypeClassifier.load(tmp_path / "types")
    assert np.array_equal(loaded.predict_proba(x), made.predict_proba(x))
    assert loaded.predict(x).tolist() == made.predict(x).tolist()
    assert (made.predict(x) == y).mean() > 0.8
    assert sorted(path.name for path in (tmp_path / "types").iterdir()) == [CONFIG, ESTIMATOR]
    with zipfile.ZipFile(tmp_path / "types" / ESTIMATOR) as archive:
        for name in archive.namelist():
            assert name == "schema.json" or archive.read(name).startswith(b"\x93NUMPY"), name
    with pytest.raises(ValueError, match=r"opcode|pickle"):
        list(pickletools.genops((tmp_path / "types" / CONFIG).read_bytes()))


def test_foreign_classes_are_imported_only_if_they_are_trusted(tmp_path):
    x, y = points()
    made = TypeClassifier("nearest_mean.NearestMean").fit(x, y)
    made.save(tmp_path)
    with pytest.raises(PluginError, match=r"nearest_mean\.NearestMean.*trust=\['nearest_mean'\]"):
        TypeClassifier.load(tmp_path)
    loaded = TypeClassifier.load(tmp_path, trust=["nearest_mean"])
    assert np.array_equal(loaded.predict_proba(x), made.predict_proba(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / ESTIMATOR).write_bytes(b"PK"), "not what was written"),
        (lambda folder: (folder / ESTIMATOR).unlink(), "missing"),
        (lambda folder: (folder / CONFIG).unlink(), "holds no classifier"),
        (lambda folder: rewrite(folder / CONFIG, version=99), "update cellvit"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, change, message):
    TypeClassifier().fit(*points(10)).save(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        TypeClassifier.load(tmp_path)


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_settings_that_cannot_work_are_named():
    x, y = points(10)
    for settings, error, message in (
        ({"unsure_below": 2.0}, ConfigError, "unsure_below 2.0"),
        ({"calibration": "isotonic"}, ConfigError, "'temperature', 'sigmoid' or None"),
        ({"estimator": "logistc"}, UnknownPluginError, "did you mean 'logistic'"),
        ({"estimator": "sklearn.cluster.KMeans"}, ConfigError, "lacks predict_proba"),
        ({"estimator": {"class_path": "knn", "init_args": {"k": 3}}}, ConfigError, "takes no argument"),
    ):
        with pytest.raises(error, match=message):
            TypeClassifier(**settings).fit(x, y)
    with pytest.raises(DataError, match=r"one class only, 'tumour'"):
        TypeClassifier().fit(x, ["tumour"] * len(x))


def test_nuclei_get_types_and_what_it_is_not_sure_of_says_so():
    x, y = points(60, apart=1.0)
    nuclei = table(x)
    some = np.where(np.arange(len(x)) % 3 == 0, y, None)
    made = TypeClassifier(unsure_below=0.6).fit(nuclei, some)
    same = TypeClassifier(unsure_below=0.6).fit(x[::3], y[::3])
    assert np.allclose(made.predict_proba(nuclei), same.predict_proba(x))
    typed = made.assign(nuclei)
    assert typed.classes.names == ("Background", *KINDS, UNSURE)
    names = np.array(typed.classes.names)[typed.type]
    assert names.tolist() == made.predict(nuclei).tolist()
    assert (names[typed.type_prob < 0.6] == UNSURE).all()
    assert 0 < (names == UNSURE).sum() < len(x)
    assert nuclei.classes is PANNUKE


def test_features_are_embeddings_measurements_and_the_neighbourhood():
    x, y = points(30)
    nuclei = table(x, side=800)
    around = np.empty_like(x)
    for row in range(len(x)):  # a slow, obvious loop
        away = np.linalg.norm(nuclei.centroid - nuclei.centroid[row], axis=1) * nuclei.mpp
        away[row] = np.inf
        near = [k for k in np.argsort(away)[:NEIGHBORS] if away[k] < REACH_UM]
        around[row] = x[near].mean(axis=0) if near else x[row]
    found = assemble(nuclei, ["embedding", "neighborhood", "area_um2"], source="it")
    assert np.allclose(found, np.column_stack([x, around, nuclei.measurements["area_um2"]]), atol=1e-5)
    rows = np.array([3, 17])
    assert np.allclose(neighborhood_means(x, neighbors(nuclei, rows), rows), around[rows], atol=1e-5)
    made = TypeClassifier(features=["embedding", "area_um2"]).fit(nuclei, y)
    area = nuclei.measurements["area_um2"].copy()
    area[5] = np.nan
    unmeasured = replace(nuclei, measurements={"area_um2": area})
    assert np.isfinite(made.predict_proba(unmeasured)).all()


def test_bad_nuclei_are_told_and_good_ones_keep_their_types():
    x, y = points(20)
    nuclei = table(x)
    made = TypeClassifier().fit(nuclei, y)
    broken = x.copy()
    broken[4, 2] = np.nan
    found = made.assign(replace(nuclei, embedding=broken))
    assert found.type[4] == 0
    assert np.isnan(found.type_prob[4])
    assert made.predict(replace(nuclei, embedding=broken))[4] is None
    kept = np.arange(len(x)) != 4
    assert np.array_equal(found.type[kept], made.assign(nuclei).type[kept])
    with pytest.raises(DataError, match=r"1 of 60 labelled nuclei have embeddings that are no numbers"):
        TypeClassifier().fit(replace(nuclei, embedding=broken), y)
    with pytest.raises(DataError, match=r"no embeddings.*features="):
        made.predict(replace(nuclei, embedding=None))
    with pytest.raises(DataError, match=r"3 features and a classifier of 5"):
        made.predict(replace(nuclei, embedding=x[:, :3]))
    with pytest.raises(DataError, match=r"lacks measurements of kind 'shape'"):
        TypeClassifier(features=["shape"]).fit(nuclei, y)
    with pytest.raises(ConfigError, match=r"no feature 'embeddings'.*did you mean 'embedding'"):
        TypeClassifier(features=["embeddings"]).fit(nuclei, y)
    with pytest.raises(DataError, match=r"resolution of these nuclei is not known"):
        TypeClassifier(features=["neighborhood"]).fit(replace(nuclei, mpp=None), y)


def test_scores_are_those_of_scikit_learn_on_held_out_groups():
    x, y = points(40, apart=1.0)
    codes = np.unique(y, return_inverse=True)[1]
    groups = np.arange(len(y)) % 6
    made = TypeClassifier().fit(x, y, groups=groups)
    folds = choose_folds(codes, groups, seed=0)
    assert all(not set(groups[fit]) & set(groups[held]) for fit, held in folds)
    found = validate(made, x, codes, groups, folds, names=KINDS)
    stated = out_of_fold(made._blank(codes), x, codes, folds).argmax(axis=1)  # a temperature changes no order
    assert np.allclose([score.f1 for score in found.types], f1_score(codes, stated, average=None))
    assert found.confusion.sum() == len(y)
    careful = validate(made.set_params(unsure_below=0.7), x, codes, groups, folds, names=KINDS)
    assert [score.f1 for score in careful.types] == [score.f1 for score in found.types]
    assert careful.confusion[:, -1].tolist() == [round(score.unsure * score.labels) for score in careful.types]
    assert careful.confusion[:, -1].sum() > 0
    assert all(score.low <= score.f1 <= score.high for score in found.types)
    assert [point.labels for point in found.curve][:2] == [5, 10]
    assert found.curve[-1].mean == pytest.approx(found.macro_f1)
    assert found.calibrated.ece < found.stated.ece


def test_temperature_makes_probabilities_of_noise_modest():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 30)), np.tile(["a", "b"], 30)
    weak = {"class_path": "logistic", "init_args": {"regularization": 1.0}}
    sharp, calm = (
        TypeClassifier(weak, calibration=how).fit(x, y).predict_proba(x).max(axis=1) for how in (None, "temperature")
    )
    assert calm.mean() < sharp.mean() - 0.1


def test_temperature_makes_a_strong_penalty_good():
    x, y = points(60, apart=4.0)
    modest, sure = (
        TypeClassifier(calibration=how).fit(x, y).predict_proba(x).max(axis=1) for how in (None, "temperature")
    )
    assert modest.mean() < 0.6
    assert sure.mean() > 0.9


def test_a_slide_is_cut_into_parts_of_as_many_labels_and_types_get_one_spelling():
    found = blocks_of(np.random.default_rng(0).random((90, 2)))
    assert np.unique(found, return_counts=True)[1].tolist() == [10] * 9
    names, said = one_spelling(np.array(["T-cell", "t cell", "T-cell", "B cell"], object))
    assert names.tolist() == ["T-cell"] * 3 + ["B cell"]
    assert said == ["'t cell' is taken for 'T-cell'"]


def test_what_is_drawn_next_is_unsure_and_far_from_what_is_known():
    assert entropy(np.array([[0.25] * 4, [1.0, 0, 0, 0]])).tolist() == [1.0, 0.0]
    x = np.repeat(np.eye(3, dtype=np.float32) * 50, 40, axis=0)
    x += np.random.default_rng(0).normal(size=x.shape)
    taken = np.arange(120) < 5  # of the first group
    found = spread_out(x, np.ones(120), taken, 2, np.random.default_rng(0))
    assert set(found // 40) == {1, 2}
    weight = np.where(np.arange(120) % 2, 1.0, 0.0)
    assert (spread_out(x, weight, taken, 20, np.random.default_rng(0)) % 2 == 1).all()
