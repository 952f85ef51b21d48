"""What must not change a result: batches, order, processes, padding, the numbers of the labels."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_samples import (
    CLASSES,
    TISSUES,
    Sample,
    assert_same,
    binary,
    draw_data_set,
    draw_sample,
    feed,
    new_metrics,
    prediction,
    score_on_two_processes,
    states,
)

from cellvit.metrics import (
    METRICS,
    AggregatedJaccard,
    BinaryOverlap,
    CentroidDetection,
    PanopticQuality,
    TissueAccuracy,
)

NAMES = list(new_metrics())
DATA = draw_data_set(0, num=14)


@pytest.fixture(scope="module")
def expected():
    """Return the results of the data set, fed image by image in order."""
    metrics = new_metrics()
    for metric in metrics.values():
        feed(metric, DATA)
    return {name: metric.compute() for name, metric in metrics.items()}


def test_every_metric_of_the_package_is_tested_here():
    ours = {name for name in METRICS if METRICS.get(name).__module__.startswith("cellvit.metrics.")}
    assert ours == {name.split(",")[0] for name in NAMES}


def test_the_data_set_has_scores_of_every_kind(expected):
    scores = {key: value.item() for name in NAMES for key, value in expected[name].items()}
    assert len(scores) == 6 + 3 + 2 + 6 + 8 + 9 + 1 + 2 + 1
    assert [name for name, value in scores.items() if not 0 < value < 1] == []
    assert expected["centroid-detection"]["P_d"] != expected["centroid-detection, typed"]["P_d"]
    assert expected["panoptic-quality"]["bPQ"] != expected["panoptic-quality, all"]["bPQ"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(DATA))), cuts=st.sets(st.integers(0, len(DATA)), max_size=2), data=st.data())
def test_order_batches_and_ranks_change_no_bit(expected, name, order, cuts, data):
    bounds = [0, *sorted(cuts), len(DATA)]
    ranks = []
    for start, stop in pairwise(bounds):
        metric = new_metrics()[name]
        feed(metric, [DATA[i] for i in order[start:stop]], batch=data.draw(st.integers(1, 5)))
        ranks.append(states(metric))
    merged = new_metrics()[name]
    merged._update_count = 1  # the states are set by hand: torchmetrics need not warn
    for state in merged._defaults:
        setattr(merged, state, sum(rank[state] for rank in ranks))
    assert_same(merged.compute(), expected[name])


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    everything = list(range(20))
    splits = [(everything[12:], everything[:12]), (everything[::-1], [])]  # uneven, and a process without images
    arguments = (tmp_path / "rendezvous", tmp_path, splits, 3)
    torch.multiprocessing.spawn(score_on_two_processes, arguments, nprocs=2)
    alone = new_metrics()
    for metric in alone.values():
        feed(metric, draw_data_set(3))
    for rank in range(2):
        for results in torch.load(tmp_path / f"{rank}.pt"):
            for name, metric in alone.items():
                assert_same(results[name], metric.compute())


@pytest.mark.parametrize("name", NAMES)
def test_states_are_integer_sums(name):
    metric = new_metrics()[name]
    assert {reduction.__name__ for reduction in metric._reductions.values()} == {"dim_zero_sum"}
    assert not any(state.is_floating_point() for state in states(metric).values())


@pytest.mark.parametrize("name", NAMES)
def test_results_are_scalars_and_reset_starts_anew(name):
    metric = new_metrics()[name]
    feed(metric, DATA[7:9])
    first = metric.compute()
    assert {(value.shape, value.dtype) for value in first.values()} == {(torch.Size([]), torch.float32)}
    metric.reset()
    feed(metric, DATA[7:9])
    assert_same(metric.compute(), first)


@pytest.mark.parametrize("name", NAMES)
def test_images_without_any_nucleus_and_tissue_say_nothing(name):
    metric = new_metrics()[name]
    feed(metric, [DATA[6]])
    assert all(value.isnan() for value in metric.compute().values())
    feed(metric, DATA[7:10])
    scores = metric.compute()
    other = new_metrics()[name]
    feed(other, DATA[7:10])
    assert_same(scores, other.compute())


def test_images_with_nuclei_on_one_side_only():
    missed, invented = DATA[0], DATA[1]
    assert not len(missed.pred.nuclei)
    assert not len(invented.target.nuclei)
    for sample in (missed, invented):
        assert len(sample.pred.nuclei) + len(sample.target.nuclei)
    panoptic, detection, aji, overlap = (
        PanopticQuality(),
        CentroidDetection(),
        AggregatedJaccard(),
        BinaryOverlap(),
    )
    for metric in (panoptic, detection, aji, overlap):
        feed(metric, [invented])
    assert panoptic.compute()["bPQ"].isnan()
    assert detection.compute()["R_d"].isnan()
    assert detection.compute()["P_d"] == aji.compute()["AJI"] == overlap.compute()["Dice"] == 0
    for metric in (panoptic, detection, aji, overlap):
        metric.reset()
        feed(metric, [missed])
    assert detection.compute()["P_d"].isnan()
    assert panoptic.compute()["bPQ"] == detection.compute()["R_d"] == aji.compute()["AJI"] == 0
    assert overlap.compute()["Jaccard"] == 0


def test_padding_of_a_batch_that_is_not_counted_changes_nothing(expected):
    batch = [*DATA, *DATA[:4], DATA[7]]
    valid = torch.arange(len(batch)) < len(DATA)
    overlap, accuracy = BinaryOverlap(), TissueAccuracy()
    maps = [torch.stack([binary(getattr(s, side)) for s in batch]) for side in ("pred", "target")]
    overlap.update(*maps, valid=valid)
    logits = torch.stack([torch.from_numpy(s.tissue_logits) for s in batch])
    accuracy.update(logits, torch.tensor([s.tissue for s in batch]), valid=valid)
    assert_same(overlap.compute(), expected["binary-overlap"])
    assert_same(accuracy.compute(), expected["tissue-accuracy"])


def relabelled(nuclei, random):
    """Return the same nuclei under other numbers, their types moved along."""
    count = len(nuclei.nuclei)
    new = np.array(random.sample(range(1, count + 1), count), int)
    types = np.zeros(count, int)
    types[new - 1] = nuclei.nuclei.type
    return prediction(np.append(0, new)[nuclei.instance_map], types)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tissue-accuracy"])
@settings(max_examples=8, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_the_numbers_of_the_labels_change_no_bit(expected, name, random):
    metric = new_metrics()[name]
    for sample in DATA:
        feed(metric, [Sample(relabelled(sample.pred, random), relabelled(sample.target, random), sample.tissue)])
    assert_same(metric.compute(), expected[name])


def test_truth_against_itself_is_perfect():
    metrics = new_metrics()
    rng = np.random.default_rng(5)
    for tissue in range(3):
        truth = draw_sample(rng, tissue=tissue, tiny=0).target  # tiny ones are no truth for detection
        for name in NAMES[:-1]:
            feed(metrics[name], [Sample(truth, truth, tissue)])
    for name in NAMES[:-1]:
        for key, value in metrics[name].compute().items():
            # every type and tissue occurs; the formulas of panoptic quality add 1e-6 to what they divide by
            assert value.item() == pytest.approx(1, abs=1e-5 if "panoptic" in name else 0), key
    assert {f"PQ/{name}" for name in CLASSES[1:]} | {f"mPQ/{name}" for name in TISSUES} <= set(
        metrics["panoptic-quality"].compute()
    )
