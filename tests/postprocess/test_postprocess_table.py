import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.drawn_nuclei import draw_ellipses
from support.reference_postprocess import assert_same, literal_nuclei

from cellvit.errors import DataError
from cellvit.postprocess import nuclei_from_instances
from cellvit.postprocess.measure import nuclei_embeddings
from cellvit.types import NucleiClasses


def block(shape, *boxes):
    instances = np.zeros(shape, np.int32)
    for label, rows, cols in boxes:
        instances[rows, cols] = label
    return instances


@settings(max_examples=60, deadline=None)
@given(
    instances=arrays(np.int32, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 5)),
    seed=st.integers(0, 99),
)
def test_equals_the_literal_table_on_scattered_instances(instances, seed):
    # Random labels give gaps, many pieces, holes, pieces in holes, lines and single pixels.
    types = np.random.default_rng(seed).integers(0, 4, instances.shape)
    assert_same(nuclei_from_instances(instances, type_map=types), *literal_nuclei(instances, types))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_ground_truth_of_any_integer_type_with_gaps(dtype):
    instances = block((20, 20), (7, slice(0, 5), slice(0, 5)), (200, slice(10, 16), slice(8, 20)))
    prediction = nuclei_from_instances(instances.astype(dtype))
    np.testing.assert_array_equal(prediction.instance_map, np.searchsorted([0, 7, 200], instances))
    assert prediction.nuclei.bbox.tolist() == [[0, 0, 5, 5], [8, 10, 20, 16]]


def test_ids_that_are_codes_need_no_large_tables():
    instances = block((20, 20), (2**31 - 5, slice(0, 5), slice(0, 5)), (12, slice(9, 16), slice(9, 16))).astype(
        np.int64
    )
    instances[17:, 17:] = 2**40
    assert nuclei_from_instances(instances).nuclei.bbox[:, 0].tolist() == [9, 0, 17]
    assert nuclei_from_instances(instances[:5, :5]).instance_map.tolist() == [[1] * 5] * 5


def test_instances_without_outline_are_no_nuclei():
    instances = block(
        (20, 20), (1, 0, 0), (2, slice(3, 6), slice(3, 6)), (3, 9, slice(2, 12)), (4, slice(12, 18), slice(4, 9))
    )
    prediction = nuclei_from_instances(instances)
    np.testing.assert_array_equal(prediction.instance_map, np.array([0, 0, 1, 0, 2])[instances])
    assert prediction.nuclei.label.tolist() == [1, 2]
    assert len(nuclei_from_instances(instances[:, :1]).nuclei) == 0


def test_instances_of_any_size_are_nuclei_where_one_point_suffices():
    instances = block((20, 20), (3, 0, 0), (5, slice(3, 6), slice(3, 6)), (8, 9, slice(2, 12)))
    prediction = nuclei_from_instances(instances, min_contour_points=1)
    np.testing.assert_array_equal(prediction.instance_map, np.searchsorted([0, 3, 5, 8], instances))
    nuclei = prediction.nuclei
    assert [nuclei.contour(i).tolist() for i in (0, 2)] == [
        [[0, 0], [0, 1], [1, 1], [1, 0]],
        [[2, 9], [2, 10], [12, 10], [12, 9]],
    ]
    assert nuclei.centroid.tolist() == [[0.5, 0.5], [4.5, 4.5], [7, 9.5]]
    assert nuclei.bbox.tolist() == [[0, 0, 1, 1], [3, 3, 6, 6], [2, 9, 12, 10]]
    assert len(nuclei_from_instances(instances, min_contour_points=2).nuclei) == 2


def test_contour_is_that_of_the_largest_piece_but_all_pieces_count():
    instances = block((30, 30), (1, slice(2, 5), slice(2, 5)), (1, slice(10, 20), slice(12, 20)))
    nuclei = nuclei_from_instances(instances).nuclei
    assert nuclei.contour(0).tolist() == [[12, 10], [12, 20], [20, 20], [20, 10]]
    assert nuclei.bbox.tolist() == [[2, 2, 20, 20]]
    expected = (9 * 3.5 + 80 * 16) / 89, (9 * 3.5 + 80 * 15) / 89
    np.testing.assert_allclose(nuclei.centroid[0], expected, atol=1e-9)


def test_a_large_piece_inside_the_hole_of_a_thin_one_is_found():
    instances = block((30, 30), (1, slice(1, 29), slice(1, 29)), (0, slice(2, 28), slice(2, 28)))
    instances[4:26, 4:26] = 1
    assert nuclei_from_instances(instances).nuclei.contour(0).tolist() == [[4, 4], [4, 26], [26, 26], [26, 4]]


@pytest.mark.parametrize(
    ("types", "chosen", "share"),
    [
        ([0, 0, 0, 0, 0, 2, 2, 3, 3], 2, 2 / 9),  # background wins, the next one counts, ties to the smallest id
        ([3, 3, 3, 3, 2, 2, 2, 2, 0], 2, 4 / 9),
        ([0, 0, 0, 0, 2, 2, 2, 2, 3], 2, 4 / 9),
        ([0] * 9, 0, 1),
        ([0] * 8 + [5], 5, 1 / 9),
        ([-1] * 9, 0, 1),
        ([-1] * 5 + [4] * 4, 4, 4 / 9),
    ],
)
def test_type_is_the_majority_that_is_not_background(types, chosen, share):
    instances = block((5, 5), (1, slice(1, 4), slice(1, 4)))
    type_map = np.full((5, 5), 1)
    type_map[1:4, 1:4] = np.reshape(types, (3, 3))
    nuclei = nuclei_from_instances(instances, type_map=type_map).nuclei
    assert nuclei.type.tolist() == [chosen]
    assert nuclei.type_prob[0] == pytest.approx(share)
    assert (nuclei.type.dtype, nuclei.type_prob.dtype) == (np.int32, np.float32)


def test_probabilities_count_by_their_first_maximum():
    instances = draw_ellipses(20, (90, 90), seed=3)
    probabilities = np.random.default_rng(0).integers(0, 3, (6, 90, 90)).astype(np.float32)  # many ties
    by_label = nuclei_from_instances(instances, type_map=probabilities.argmax(axis=0)).nuclei
    by_probability = nuclei_from_instances(instances, type_map=probabilities).nuclei
    np.testing.assert_array_equal(by_probability.type, by_label.type)
    np.testing.assert_array_equal(by_probability.type_prob, by_label.type_prob)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), num_types=st.integers(2, 5))
def test_by_mean_a_type_is_that_of_the_largest_mean_probability_without_background(seed, num_types):
    rng = np.random.default_rng(seed)
    instances = draw_ellipses(8, (60, 60), seed=seed)
    probabilities = rng.dirichlet(np.ones(num_types), (60, 60)).transpose(2, 0, 1).astype(np.float32)
    prediction = nuclei_from_instances(instances, type_map=probabilities, type_rule="mean")
    for row, label in enumerate(prediction.nuclei.label):
        means = probabilities[1:, prediction.instance_map == label].astype(np.float64).mean(axis=1)
        assert prediction.nuclei.type[row] == 1 + means.argmax()
        assert prediction.nuclei.type_prob[row] == pytest.approx(means.max() / means.sum())


def test_by_mean_doubt_counts_and_background_gives_way():
    instances = block((5, 5), (1, slice(1, 4), slice(1, 4)))
    probabilities = np.zeros((3, 5, 5))
    probabilities[:, 1:3] = np.reshape([0.5, 0.26, 0.24], (3, 1, 1))  # six pixels: just type 1
    probabilities[:, 3:] = np.reshape([0.5, 0.1, 0.4], (3, 1, 1))  # three: clearly type 2
    mean = nuclei_from_instances(instances, type_map=probabilities, type_rule="mean").nuclei
    assert mean.type.tolist() == [2]
    assert mean.type_prob[0] == pytest.approx((6 * 0.24 + 3 * 0.4) / (9 * 0.5))
    majority = nuclei_from_instances(instances, type_map=probabilities).nuclei
    assert (majority.type.tolist(), majority.type_prob.tolist()) == ([0], [1.0])


def test_by_mean_a_nucleus_that_is_background_alone_has_no_type():
    instances = block((5, 5), (1, slice(1, 4), slice(1, 4)))
    certain = np.zeros((3, 5, 5))
    certain[0] = 1
    nuclei = nuclei_from_instances(instances, type_map=certain, type_rule="mean").nuclei
    assert (nuclei.type.tolist(), nuclei.type_prob.tolist()) == ([0], [1.0])


def test_by_mean_labels_are_certain_probabilities():
    instances = draw_ellipses(12, (80, 80), seed=5)
    labels = np.random.default_rng(1).integers(0, 4, (80, 80))
    certain = np.eye(4)[labels].transpose(2, 0, 1)
    by_label, by_probability = (
        nuclei_from_instances(instances, type_map=types, type_rule="mean").nuclei for types in (labels, certain)
    )
    np.testing.assert_array_equal(by_label.type, by_probability.type)
    np.testing.assert_allclose(by_label.type_prob, by_probability.type_prob, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "grid", "stride"),
    [
        ((128, 160), (8, 10), 16),
        ((121, 146), (8, 10), 16),  # the image was padded to whole tokens
        ((128, 160), (4, 5), 32),
    ],
)
def test_embedding_is_the_mean_of_wide_tokens_under_the_box(shape, grid, stride):
    instances = draw_ellipses(40, shape, seed=5)
    tokens = np.random.default_rng(1).normal(3, 1, (4, *grid)).astype(np.float32)
    nuclei = nuclei_from_instances(instances, embedding_map=tokens).nuclei
    assert nuclei.embedding.dtype == np.float32
    for (xmin, ymin, xmax, ymax), found in zip(nuclei.bbox.astype(int), nuclei.embedding, strict=True):
        covered = [
            tokens[:, row, col]
            for row in range(grid[0])
            for col in range(grid[1])
            if row * stride < ymax and (row + 1) * stride > ymin and col * stride < xmax and (col + 1) * stride > xmin
        ]
        np.testing.assert_allclose(found, np.mean(covered, axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "grid", "stride"), [((128, 160), (16, 20), 8), ((121, 146), (32, 40), 4), ((128, 160), (128, 160), 1)]
)
def test_embedding_is_the_mean_of_fine_tokens_under_the_pixels(shape, grid, stride):
    instances = draw_ellipses(40, shape, seed=5)
    tokens = np.random.default_rng(1).normal(3, 1, (4, *grid)).astype(np.float32)
    found = nuclei_from_instances(instances, embedding_map=tokens)
    assert found.nuclei.embedding.dtype == np.float32
    of_pixels = tokens.repeat(stride, 1).repeat(stride, 2)[:, : shape[0], : shape[1]]
    expected = [of_pixels[:, found.instance_map == label].mean(axis=1) for label in found.nuclei.label]
    np.testing.assert_allclose(found.nuclei.embedding, expected, rtol=1e-5)
    hidden = np.where(found.instance_map == 1, 0, found.instance_map)
    (x0, y0, x1, y1), again = found.nuclei.bbox[0].astype(int), nuclei_embeddings(tokens, hidden, found.nuclei.bbox)
    under_box = tokens[:, y0 // stride : -(-y1 // stride), x0 // stride : -(-x1 // stride)].mean(axis=(1, 2))
    np.testing.assert_allclose(again, [under_box, *expected[1:]], rtol=1e-5)


def test_class_names_are_passed_on_and_must_suffice():
    classes = NucleiClasses(("background", "nucleus"), ((0, 0, 0), (255, 0, 0)))
    instances = block((9, 9), (1, slice(2, 6), slice(2, 6)))
    assert nuclei_from_instances(instances, classes=classes).nuclei.classes is classes
    assert nuclei_from_instances(instances * 0, classes=classes).nuclei.classes is classes
    with pytest.raises(DataError, match="3 types but only 2 class names"):
        nuclei_from_instances(instances, type_map=instances * 2, classes=classes)


@pytest.mark.parametrize(
    ("instances", "maps", "message"),
    [
        (np.zeros((4, 4)), {}, "instance_map must be integers"),
        (np.zeros((1, 4, 4), int), {}, "instance_map must be integers"),
        (np.zeros((0, 4), int), {}, "at least one pixel"),
        (np.full((4, 4), -1), {}, "holds the id -1"),
        (np.ones((4, 4), int), {"type_map": np.full((4, 4), -2)}, "holds the type -2"),
        (np.ones((4, 4), int), {"type_map": np.zeros((3, 4, 4), int)}, "nuclei_type_map must be"),
        (np.ones((4, 4), int), {"type_map": np.zeros((4, 5), int)}, "nuclei_type_map must be"),
        (np.ones((4, 4), int), {"nucleus_prob": np.full((4, 4), 3.0)}, r"spans \[3, 3\]"),
        (np.ones((4, 4), int), {"nucleus_prob": np.ones((4, 5))}, "nucleus_prob must be"),
        (np.ones((4, 4), int), {"embedding_map": np.ones((0, 4, 5))}, "embedding_map must be"),
    ],
)
def test_bad_maps_are_refused(instances, maps, message):
    with pytest.raises(DataError, match=message):
        nuclei_from_instances(instances, **maps)
