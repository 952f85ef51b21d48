"""What embeddings say of the place of a nucleus in its image."""

from pathlib import Path

import numpy as np

from cellvit.evaluation.model_card.measure import CardSettings
from cellvit.evaluation.model_card.probe import PLACES, PlaceSample, probe_places, sample_places
from cellvit.io.tables import render
from cellvit.types import Nuclei


def sample(seed, *, telling, count=200):
    rng = np.random.default_rng(seed)
    place = rng.random((count, 3)) * (1, 1, 128)
    noise = rng.normal(0, 0.1, (count, 6)).astype(np.float32)
    noise[:, : len(telling)] += place[:, telling] / (1, 1, 128)[: len(telling)] if telling else 0
    noise[:, 5] += seed  # every image has a look of its own
    return PlaceSample(noise, place)


def test_probe_tells_what_embeddings_know_and_nothing_else():
    found = probe_places([sample(seed, telling=[0]) for seed in range(7)])
    assert (found.nuclei, found.images, tuple(found.r2)) == (1400, 7, PLACES)
    assert found.r2["x"] > 0.8
    assert max(found.r2["y"], found.r2["border"]) < 0.02
    # what two images have in common by chance is not known of a third
    assert probe_places([sample(seed, telling=[]) for seed in range(2)]) is None
    assert probe_places([sample(seed, telling=[], count=9) for seed in range(5)]) is None


def test_places_are_of_nuclei_that_the_border_does_not_cut():
    box = np.array([[0, 10, 8, 20], [20, 30, 40, 50], [150, 100, 160, 110], [195, 100, 200, 110]], float)
    nuclei = Nuclei.empty(embedding_dim=2)
    assert len(sample_places(nuclei, (400, 200), seed=0).place) == 0
    assert sample_places(Nuclei.empty(), (400, 200), seed=0) is None
    many = Nuclei(
        centroid=(box[:, :2] + box[:, 2:]) / 2,
        bbox=box,
        type=np.zeros(4, np.int32),
        type_prob=np.ones(4, np.float32),
        contour_offsets=np.zeros(5, np.int64),
        contour_points=np.zeros((0, 2)),
        label=np.arange(1, 5, dtype=np.int32),
        embedding=np.arange(8, dtype=np.float32).reshape(4, 2),
    )
    found = sample_places(many, (400, 200), seed=0)
    order = np.argsort(found.place[:, 0])
    np.testing.assert_allclose(found.place[order], [[0.15, 0.1, 30], [0.775, 0.2625, 45]])
    assert found.embedding[order].tolist() == [[2, 3], [4, 5]]


def test_the_card_says_it():
    found = probe_places([sample(seed, telling=[0]) for seed in range(3)])
    rows = {name: [{"a": 1}] for name in ("data", "scores")}
    nothing = dict.fromkeys(("types", "confusion", "calibration", "failures", "no_calibration", "learnt_on"))
    page = render(
        "evaluation/model_card/card.md.jinja",
        model={"name": "drawn", "sha256": None},
        settings=CardSettings(Path("data")),
        places=found,
        **rows,
        **nothing,
    )
    assert f"embeddings of 600 nuclei of 3 images: {found.r2['x']:.3f} of x" in page
