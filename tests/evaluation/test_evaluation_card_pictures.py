from dataclasses import replace
from functools import partial

import numpy as np
from support import shapes

from cellvit.classes import default_classes
from cellvit.evaluation.calibration import calibrate, sample_types
from cellvit.evaluation.model_card.files import write_card
from cellvit.evaluation.model_card.measure import CardImage, CardSettings, Measurements
from cellvit.evaluation.model_card.pictures import Window, choose_windows, draw_window, worst_window
from cellvit.evaluation.model_card.tables import group_scores
from cellvit.evaluation.rasterize import nuclei_from_labels
from cellvit.evaluation.scoring import ScoreSettings, score_nuclei
from cellvit.io.labels import ImageRecord
from cellvit.types import Nuclei

squares = partial(shapes.squares, shape=(128, 128), side=6)


RECORD = ImageRecord("data/a b", "data", None, None)


def test_the_worst_window_is_where_the_errors_are():
    corners = [(r, c) for r in range(4, 120, 16) for c in range(4, 120, 16)]
    target = nuclei_from_labels(squares(*corners), np.array([0, *([1] * 63), 2])).nuclei
    kept = [corner for corner in corners if corner not in [(100, 100), (100, 116), (116, 100)]]
    pred = nuclei_from_labels(squares(*kept, (92, 92), (10, 12)), np.ones(99, int)).nuclei
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    window = worst_window(RECORD, image, target, pred, radius=5, side=64)
    assert (window.left, window.top, window.true, window.missed, window.invented) == (64, 64, 16, 3, 1)
    assert window.errors == 4 / 16
    np.testing.assert_array_equal(window.image, image[64:, 64:])
    assert np.bincount(window.target.type).tolist() == [0, 13, 3]
    assert np.bincount(window.pred.type).tolist() == [0, 12, 1, 1]  # the last true one is of another type
    assert sorted(window.target.centroid[window.target.type == 2].tolist()) == [
        [39, 39],
        [39, 55],
        [55, 39],
    ]
    assert worst_window(RECORD, image, target, target, radius=5) is None
    picture = draw_window(window)
    assert picture.dtype == np.uint8
    assert picture.shape[1] > 3 * 64


def test_without_tissue_a_picture_holds_outlines_and_nothing_of_the_image():
    target, pred = (nuclei_from_labels(squares((20, 20), at), None).nuclei for at in ((60, 60), (90, 90)))
    noise = np.random.default_rng(0).integers(0, 255, (2, 128, 128, 3)).astype(np.uint8)
    windows = [worst_window(RECORD, image, target, pred, radius=5, side=128) for image in noise]
    shown = [draw_window(window, tissue=False) for window in windows]
    np.testing.assert_array_equal(*shown)
    assert shown[0].shape[1] < draw_window(windows[0]).shape[1]
    assert len(np.unique(shown[0].reshape(-1, 3), axis=0)) > 2
    assert (draw_window(windows[0]) != draw_window(windows[1])).any()


def test_a_stray_nucleus_alone_is_not_the_worst():
    target = nuclei_from_labels(squares(*[(4 + 10 * i, 4 + 10 * j) for i in range(4) for j in range(5)]), None).nuclei
    lost = nuclei_from_labels(
        squares(*[(4 + 10 * i, 4 + 10 * j) for i in range(4) for j in range(1, 5)], (100, 100)), None
    ).nuclei
    window = worst_window(RECORD, np.zeros((128, 128, 3), np.uint8), target, lost, radius=5, side=64)
    assert (window.left, window.top, window.missed, window.invented) == (0, 0, 4, 0)


def window_of(dataset, missed):
    nothing, image = Nuclei.empty(classes=default_classes(3)), np.full((32, 32, 3), 200, np.uint8)
    return Window(
        replace(RECORD, name=f"{dataset}/i{missed}", dataset=dataset), 0, 0, 20, missed, 0, image, nothing, nothing
    )


def test_the_worst_are_chosen_over_data_sets_in_turn_also_one_by_one():
    windows = [window_of(d, n) for d, n in (("a", 5), ("a", 9), ("b", 7), ("a", 8), ("b", 6), ("c", 1), ("a", 10))]
    chosen = choose_windows(windows, 5)
    assert [(w.record.dataset, w.missed) for w in chosen] == [("a", 10), ("b", 7), ("c", 1), ("a", 9), ("b", 6)]
    for number in range(6):
        kept = ()
        for window in windows:
            kept = choose_windows([*kept, window], number)
        assert kept == choose_windows(windows, number)


def measurements(windows, *, typed=True):
    """Return what was measured of one image on which the model is right."""
    truth = nuclei_from_labels(squares((4, 4), (30, 30)), np.array([0, 1, 2]))
    scores = score_nuclei(truth, truth, ScoreSettings(class_names=("Background", "Red", "Blue")))
    probabilities = np.full((3, 128, 128), 1 / 3)
    calibration = calibrate(sample_types(truth, truth, probabilities, radius=1)) if typed else None
    image = CardImage(RECORD, typed, (0, 1, 1), {0.25: scores})
    return Measurements((image,), calibration, tuple(windows), 0.25, "majority")


def test_pictures_of_an_earlier_card_are_replaced(tmp_path):
    settings = CardSettings(root=tmp_path, mpp=(0.25,), resamples=5)
    facts = {"name": "painted", "sha256": None, "class_names": ["Background", "Red", "Blue"]}

    def written(found):
        groups = group_scores(found.images, facts["class_names"], settings)
        write_card(tmp_path, found, groups, model=facts, settings=settings, seconds=1)
        return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))

    long = replace(window_of("b", 3), record=replace(RECORD, name="b/" + 300 * "ä"))
    files = written(measurements([window_of("a", 5), long]))
    assert files[:4] == ["card.json", "card.md", "failures/01_a_i5.png", f"failures/02_b_{58 * 'ä'}.png"]
    assert files[4:] == ["images.csv", "reliability.png"]
    (tmp_path / "failures" / "03_mine.png").write_text("")
    assert written(measurements([window_of("c", 5)]))[2:4] == ["failures/01_c_i5.png", "failures/03_mine.png"]
    assert written(measurements([], typed=False)) == ["card.json", "card.md", "failures/03_mine.png", "images.csv"]
