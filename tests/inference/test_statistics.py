"""Statistics of the nuclei of a slide: against loops, and with chance kept out."""

import numpy as np
import pytest

from cellvit.inference.statistics import FEWEST, slide_statistics
from cellvit.slide.tissue import TissueMask
from cellvit.types import Nuclei, NucleiClasses

CLASSES = NucleiClasses(("Background", "A", "B", "C"), ((0, 0, 0),) * 4)
MPP = (0.5, 0.25)
BOUNDS = (100, 200, 8000, 12000)  # 4 x 3 mm
WHOLE = TissueMask(np.ones((30, 40), bool))


def table(points, kinds):
    """Nuclei without outlines."""
    points, number = np.asarray(points, float).reshape(-1, 2), len(kinds)
    return Nuclei(
        centroid=points,
        bbox=np.concatenate([points, points + 1], axis=1),
        type=np.asarray(kinds, np.int32),
        type_prob=np.ones(number, np.float32),
        contour_offsets=np.zeros(number + 1, np.int64),
        contour_points=np.zeros((0, 2)),
        label=np.arange(number, dtype=np.int32),
        classes=CLASSES,
    )


class Stream:
    classes, embedding_dim = CLASSES, None

    def __init__(self, *chunks):
        self.chunks = chunks

    def __iter__(self):
        return iter(self.chunks)

    def __len__(self):
        return sum(map(len, self.chunks))


def found(points, kinds, tissue=WHOLE):
    half = len(kinds) // 2
    chunks = [table(points[:half], kinds[:half]), table(points[half:], kinds[half:])]
    return slide_statistics(Stream(*chunks), bounds=BOUNDS, mpp=MPP, tissue=tissue)


@pytest.fixture(scope="module")
def scattered():
    rng = np.random.default_rng(4)
    points = np.array(BOUNDS[:2]) + rng.uniform(0, 1, (1400, 2)) * BOUNDS[2:]
    return points, rng.choice([1, 2, 3], 1400, p=[0.6, 0.38, 0.02])


def test_densities_and_ratios_are_those_of_the_counts_and_lie_in_their_intervals(scattered):
    points, kinds = scattered
    numbers = found(points, kinds)
    n = np.bincount(kinds)
    assert n[3] < FEWEST
    assert list(numbers["density_per_mm2"]) == ["all", "A", "B"]  # few are left out
    for name, count in (("all", 1400), ("A", n[1]), ("B", n[2])):
        density = numbers["density_per_mm2"][name]
        assert density["value"] == pytest.approx(count / 12, rel=1e-3)
        # scattered at random, so that the count varies by its root
        assert density["high"] - density["low"] == pytest.approx(4 * np.sqrt(count) / 12, rel=0.3)
    (pair,) = numbers["ratios"]
    assert (pair["of"], pair["to"]) == ("A", "B")
    assert pair["value"] == pytest.approx(n[1] / n[2], rel=1e-3)
    assert pair["low"] < pair["value"] < pair["high"]


def test_distances_are_those_of_the_loop_in_microns(scattered):
    points, kinds = scattered
    microns = points * MPP
    for pair in found(points, kinds)["neighbours"]:
        a, b = (microns[kinds == " ABC".index(pair[key])] for key in ("from", "to"))
        distance = np.linalg.norm(a[:, None] - b[None], axis=2)
        if pair["from"] == pair["to"]:
            np.fill_diagonal(distance, np.inf)
        np.testing.assert_allclose(pair["nearest_um"], np.percentile(distance.min(axis=1), [25, 50, 75]), atol=0.006)
        assert pair["within"] == pytest.approx((distance <= 50).sum() / len(a), rel=1e-3)


def test_hot_spots_are_found_and_grouped_nuclei_have_wide_intervals(scattered):
    points, kinds = scattered
    spot = np.array([4000.0, 9000.0])
    clustered = points.copy()
    clustered[:400] = spot + np.random.default_rng(0).normal(0, 100, (400, 2))
    before, after = found(points, kinds), found(clustered, kinds)
    first = after["hot_spots"]["all"][0]
    assert first["x"] < spot[0] < first["x"] + first["width"]
    assert first["y"] < spot[1] < first["y"] + first["height"]
    assert (first["width"], first["height"]) == (1000, 2000)  # 500 microns
    assert first["nuclei"] > 350
    assert first["per_mm2"] == pytest.approx(first["nuclei"] / 0.25, rel=0.01)
    widths = [s["density_per_mm2"]["all"]["high"] - s["density_per_mm2"]["all"]["low"] for s in (before, after)]
    assert widths[1] > 3 * widths[0]
    assert all(spot["nuclei"] >= FEWEST for spots in after["hot_spots"].values() for spot in spots)


def test_only_tissue_counts_as_area(scattered):
    points, kinds = scattered
    left = TissueMask(np.arange(40)[None].repeat(30, 0) < 20)
    on = points[:, 0] < BOUNDS[0] + BOUNDS[2] / 2
    density = found(points[on], kinds[on], tissue=left)["density_per_mm2"]["all"]
    assert density["value"] == pytest.approx(on.sum() / 6, rel=1e-3)


@pytest.mark.parametrize("number", [0, 1, 49])
def test_few_nuclei_have_no_statistics(number):
    points = np.full((number, 2), 500.0)
    numbers = found(points, np.ones(number, int))
    assert not any(numbers[key] for key in ("density_per_mm2", "ratios", "neighbours", "hot_spots"))


def test_small_tissue_has_no_interval_and_nuclei_without_place_or_type_count_nowhere():
    points = np.concatenate([np.full((60, 2), 500.0), np.full((5, 2), np.nan)])
    numbers = found(points, [0] * 65)
    assert numbers["density_per_mm2"]["all"]["value"] == pytest.approx(5)  # 60 on 12 mm2, in blocks with tissue
    assert list(numbers["hot_spots"]) == ["all"]
    speck = TissueMask(np.zeros((24, 16), bool))
    speck.mask[0, 0] = True  # 0.25 x 0.125 mm
    density = found(points, [1] * 65, tissue=speck)["density_per_mm2"]["all"]
    assert density == {"value": pytest.approx(60 / 0.03125, rel=1e-3), "low": None, "high": None}
