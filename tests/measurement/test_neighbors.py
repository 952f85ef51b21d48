"""Neighbours against the slow obvious loops."""

import numpy as np
import pytest
from scipy.spatial import Delaunay

from cellvit.classes import PANNUKE, NucleiClasses
from cellvit.measurement.neighbors import measure_neighbors, neighbor_columns


def test_distances_and_counts_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    points, kind = rng.uniform(0, 400, (120, 2)), rng.integers(0, 4, 120).astype(np.int32)
    found = measure_neighbors(points, kind, classes=PANNUKE, mpp=(0.5, 0.25))
    assert tuple(found) == neighbor_columns(PANNUKE)
    scaled = points * (0.5, 0.25)
    away = np.hypot(*(scaled[:, None] - scaled[None]).transpose(2, 0, 1))
    np.fill_diagonal(away, np.inf)
    np.testing.assert_allclose(found["nearest_um"], away.min(axis=1), rtol=1e-6)
    for radius in (25, 50):
        np.testing.assert_array_equal(found[f"neighbors_{radius}um"], (away <= radius).sum(axis=1))
    names = {1: "nearest_neoplastic_um", 2: "nearest_inflammatory_um", 3: "nearest_connective_um"}
    for code, name in names.items():
        np.testing.assert_allclose(found[name], away[:, kind == code].min(axis=1), rtol=1e-6)
    assert np.isnan(found["nearest_epithelial_um"]).all()
    edges = {tuple(sorted(pair)) for t in Delaunay(scaled).simplices for pair in zip(t, np.roll(t, 1), strict=True)}
    np.testing.assert_array_equal(found["delaunay_neighbors"], np.bincount(np.ravel(list(edges)), minlength=120))


def test_few_and_odd_places():
    assert all(len(values) == 0 for values in measure_neighbors(np.zeros((0, 2)), np.zeros(0, np.int32)).values())
    alone = measure_neighbors(np.zeros((1, 2)), np.ones(1, np.int32), classes=PANNUKE)
    assert alone["neighbors_100px"].tolist() == [0]
    assert np.isnan([alone["nearest_px"][0], alone["delaunay_neighbors"][0], alone["nearest_neoplastic_px"][0]]).all()
    line = measure_neighbors(np.array([[0.0, 0], [1, 1], [2, 2], [3, 3]]), np.ones(4, np.int32))
    assert np.isnan(line["delaunay_neighbors"]).all()
    twice = np.array([[0.0, 0], [0, 0], [8, 0], [0, 8], [np.nan, 1]])
    found = measure_neighbors(twice, np.ones(5, np.int32))
    assert found["nearest_px"][:4].tolist() == [0, 0, 8, 8]
    assert found["delaunay_neighbors"][:4].tolist() == [2, 2, 2, 2]
    assert found["neighbors_100px"][:4].tolist() == [3, 3, 3, 3]
    assert all(np.isnan(values[4]) for values in found.values())


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("bg", "T cell", "T-cell", "µ"), ("nearest_t_cell_um", "nearest_t_cell_2_um", "nearest_µ_um")),
        (("bg", "+", "-"), ("nearest_type_um", "nearest_type_2_um")),
    ],
)
def test_every_type_has_a_column(names, columns):
    classes = NucleiClasses(names, ((0, 0, 0),) * len(names))
    assert neighbor_columns(classes)[4:] == columns
