"""The metric classes against the literal protocol, over random data sets."""

import literal_protocol as literal
import pytest
from metric_samples import CLASSES, TISSUES, draw_data_set, feed, new_metrics
from support.reference_postprocess import literal_contour

RADIUS = 6


@pytest.mark.parametrize("seed", range(8))
def test_every_score_equals_the_literal_protocol(seed):
    samples = draw_data_set(seed)
    aji, binary = literal.overlap(samples)
    expected = {
        "panoptic-quality": literal.panoptic(samples, CLASSES, TISSUES),
        "panoptic-quality, all": literal.panoptic(samples, CLASSES, (), ignore_background=False),
        "centroid-detection": literal.detection(samples, CLASSES, RADIUS),
        "centroid-detection, typed": literal.detection(samples, CLASSES, RADIUS, ignore_background=True),
        "aggregated-jaccard": aji,
        "binary-overlap": binary,
    }
    metrics = new_metrics()
    for name, scores in expected.items():
        feed(metrics[name], samples, batch=4)
        found = {key: value.item() for key, value in metrics[name].compute().items()}
        assert found == pytest.approx(scores, abs=1e-6, nan_ok=True), name


def test_the_data_sets_show_what_the_protocol_tells_apart():
    samples = [sample for seed in range(4) for sample in draw_data_set(seed)]
    types = [set(s.target.nuclei.type.tolist()) for s in samples]
    assert {frozenset(t) for t in types} >= {frozenset(), frozenset({2}), frozenset({1, 2, 3})}
    assert any(-1 in t for t in types)
    assert sum((s.pred.nuclei.type == 0).sum() for s in samples) > 10
    maps = [(s.target.instance_map, label) for s in samples for label in s.target.nuclei.label]
    lengths = {len(literal_contour(instances == label)) for instances, label in maps}
    assert {1, 2, 4} <= lengths
    assert {s.tissue for s in samples} == {-1, 0, 1, 2}
