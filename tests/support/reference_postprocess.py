"""The published post-processing written down literally: one full-size mask per nucleus, no shortcut. Slow."""

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import watershed

from cellvit.geometry.outlines import border_rings
from cellvit.geometry.polygons import polygon_area

SOBEL_SIZE = {40: 21, 20: 11}
MIN_MARKER_SIZE = {40: 10, 20: 3}


def literal_instances(binary_map, hv_map, magnification):
    """Return the instance map, ids 1..N without gaps, before outlines are looked at."""
    binary = remove_small(ndimage.label(binary_map.argmax(axis=0))[0], 10) > 0

    edges = []
    for channel, (dx, dy) in enumerate([(1, 0), (0, 1)]):
        distance = cv2.normalize(hv_map[channel].astype(np.float32), None, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F)
        gradient = cv2.Sobel(distance, cv2.CV_64F, dx, dy, ksize=SOBEL_SIZE[magnification])
        edges.append(1 - cv2.normalize(gradient, None, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F))
    edge = np.maximum(edges[0], edges[1]).astype(np.float64)
    edge = edge - (1 - binary.astype(np.float64))
    edge[edge < 0] = 0

    energy = -cv2.GaussianBlur((1 - edge) * binary, (3, 3), 0)
    marker = binary.astype(np.int32) - (edge >= 0.4).astype(np.int32)
    marker[marker < 0] = 0
    marker = ndimage.binary_fill_holes(marker).astype(np.uint8)
    marker = cv2.morphologyEx(marker, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    marker = remove_small(ndimage.label(marker)[0], MIN_MARKER_SIZE[magnification])
    return without_gaps(watershed(energy, marker, mask=binary))


def literal_nuclei(instance_map, type_map=None, nucleus_prob=None):
    """Return the map of those instances that have an outline, and one dictionary per nucleus."""
    kept = np.zeros_like(instance_map)
    nuclei = []
    for label in np.unique(instance_map):
        if label == 0:
            continue
        mask = instance_map == label
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        ymin, xmin, ymax, xmax = rows[0], cols[0], rows[-1] + 1, cols[-1] + 1
        crop = mask[ymin:ymax, xmin:xmax]
        contour = literal_contour(crop) + np.array([xmin, ymin])
        if len(contour) < 3:
            continue
        kept[mask] = len(nuclei) + 1
        rows, cols = np.nonzero(crop)
        nucleus = {
            "centroid": (xmin + cols.mean() + 0.5, ymin + rows.mean() + 0.5),
            "bbox": (xmin, ymin, xmax, ymax),
            "contour": contour,
            "piece": filled_piece(crop),
        }
        if type_map is None:
            nucleus["type"] = 1
            nucleus["type_prob"] = 1.0 if nucleus_prob is None else nucleus_prob[mask].astype(np.float64).mean()
        else:
            nucleus["type"], nucleus["type_prob"] = literal_type(type_map[mask])
        nuclei.append(nucleus)
    return kept, nuclei


def literal_contour(mask):
    largest = largest_piece(mask, np.ones((3, 3)))
    contours, _ = cv2.findContours(largest.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return contours[0][:, 0]


def largest_piece(mask, structure):
    pieces, _ = ndimage.label(mask, structure)
    return pieces == max(range(1, pieces.max() + 1), key=lambda piece: (pieces == piece).sum())


def filled_piece(mask):
    """Return the pixels that an outline encloses, and whether it had to be cut at a corner."""
    filled = ndimage.binary_fill_holes(largest_piece(mask, np.ones((3, 3))))
    part = largest_piece(filled, None)
    return int(part.sum()), bool((part != filled).any())


def literal_type(types):
    """Return the most frequent type, background only where there is nothing else, and its share."""
    counts = {int(t): int((types == t).sum()) for t in np.unique(types)}
    ranked = sorted(counts, key=lambda t: (-counts[t], t))
    chosen = ranked[1] if ranked[0] == 0 and len(ranked) > 1 else ranked[0]
    return chosen, counts[chosen] / len(types)


def remove_small(labels, min_size):
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] < min_size, 0, labels)


def without_gaps(labels):
    return np.searchsorted(np.unique(np.append(labels, 0)), labels).astype(np.int32)


def assert_same(prediction, expected_map, expected):
    """Compare a prediction with what :func:`literal_nuclei` returns."""
    nuclei = prediction.nuclei
    assert prediction.instance_map.dtype == np.int32
    np.testing.assert_array_equal(prediction.instance_map, expected_map)
    assert len(nuclei) == len(expected)
    assert nuclei.label.tolist() == list(range(1, len(expected) + 1))
    for i, nucleus in enumerate(expected):
        np.testing.assert_allclose(nuclei.centroid[i], nucleus["centroid"], rtol=0, atol=1e-9)
        assert tuple(nuclei.bbox[i]) == nucleus["bbox"]
        area, cut = nucleus["piece"]
        ends = np.array([0, len(nuclei.contour(i))])
        assert polygon_area(nuclei.contour(i), ends).tolist() == [area]
        if not cut:
            np.testing.assert_array_equal(border_rings(nuclei.contour(i), ends)[0], nucleus["contour"])
        assert nuclei.type[i] == nucleus["type"]
        assert nuclei.type_prob[i] == pytest.approx(nucleus["type_prob"], abs=1e-6)
