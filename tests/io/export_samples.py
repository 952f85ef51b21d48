"""Nuclei for the tests of the export package, and the slow obvious comparison of two tables."""

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellvit.classes import PANNUKE
from cellvit.geometry.outlines import edge_rings
from cellvit.io.frames import find_border
from cellvit.types import Nuclei, NucleiClasses

COLUMNS = ("centroid", "bbox", "type", "type_prob", "label", "contour_offsets", "contour_points")


def make_nuclei(contours, *, type=None, classes=PANNUKE, embedding=None, label=None, type_prob=None):
    """Nuclei from lists of (x, y); centroid and box are the obvious ones."""
    count = len(contours)
    arrays = [np.asarray(c, np.float64).reshape(-1, 2) for c in contours]
    return Nuclei(
        centroid=np.array([a.mean(0) if len(a) else (5.5, 7.25) for a in arrays], np.float64).reshape(-1, 2),
        bbox=np.array([[*a.min(0), *a.max(0)] if len(a) else (5, 7, 6, 8) for a in arrays], np.float64).reshape(-1, 4),
        type=np.asarray([1] * count if type is None else type, np.int32),
        type_prob=np.asarray([0.9] * count if type_prob is None else type_prob, np.float32),
        contour_offsets=np.cumsum([0, *map(len, arrays)]).astype(np.int64),
        contour_points=np.concatenate([np.zeros((0, 2)), *arrays]),
        label=np.asarray(np.arange(1, count + 1) if label is None else label, np.int32),
        embedding=embedding,
        classes=classes,
    )


def square(x, y, side=8.0):
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def many(count, points=30, seed=0):
    """Round nuclei with whole coordinates."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    centre, radius = rng.uniform(20, 50_000, (count, 1, 2)), rng.uniform(8, 14, (count, 1, 1))
    outline = np.rint(centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return Nuclei(
        centroid=centre[:, 0],
        bbox=np.concatenate([outline.min(1), outline.max(1)], axis=1),
        type=rng.integers(1, 6, count).astype(np.int32),
        type_prob=rng.uniform(0.5, 1, count).astype(np.float32),
        contour_offsets=np.arange(count + 1, dtype=np.int64) * points,
        contour_points=outline.reshape(-1, 2),
        label=np.arange(1, count + 1, dtype=np.int32),
        classes=PANNUKE,
    )


coordinates = st.one_of(
    st.integers(-1000, 200_000).map(float), st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)
)
loose_outlines = st.lists(st.tuples(coordinates, coordinates), max_size=6, unique=True)
"""Any distinct points, also crossing, on a line or none at all."""

masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 1)).filter(
    np.any
)


@st.composite
def pixel_outlines(draw):
    """The outline of some pixels, as post-processing gives it."""
    border = find_border(draw(masks), draw(st.tuples(st.integers(0, 300), st.integers(0, 300))))
    return edge_rings(border, np.array([0, len(border)]))[0].tolist()


grid_outlines = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=9)
"""Points on a small grid: often repeated, collinear, touching or crossing."""


@st.composite
def star_outlines(draw):
    """A simple polygon: one point on each of some rays around a centre."""
    count = draw(st.integers(3, 9))
    radii = np.array(draw(st.lists(st.floats(1, 20), min_size=count, max_size=count)))
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False) + draw(st.floats(0, 1))
    centre = np.array(draw(st.tuples(st.floats(-50, 1e5), st.floats(-50, 1e5))))
    return centre + radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


colors = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def class_lists(draw):
    names = draw(st.lists(st.text(max_size=12), min_size=1, max_size=5))
    return NucleiClasses(tuple(names), tuple(draw(st.lists(colors, min_size=len(names), max_size=len(names)))))


@st.composite
def nuclei(draw, outlines=loose_outlines, embeddings=True):
    contours = draw(st.lists(outlines, max_size=5))
    count = len(contours)
    column = lambda dtype, elements: draw(hnp.arrays(dtype, count, elements=elements))  # noqa: E731
    width = draw(st.integers(1, 4))
    embedding = hnp.arrays(np.float32, (count, width), elements=st.floats(-10, 10, width=32))
    given_embedding = draw(st.one_of(st.none(), embedding)) if embeddings else None
    base = make_nuclei(
        contours,
        type=column(np.int32, st.integers(-1, 7)),
        type_prob=column(np.float32, st.one_of(st.floats(0, 1, width=32), st.just(float("nan")))),
        label=column(np.int32, st.integers(1, 2**31 - 1)) if draw(st.booleans()) else None,
        classes=draw(st.one_of(st.none(), class_lists())),
        embedding=given_embedding,
    )
    centroid = draw(hnp.arrays(np.float64, (count, 2), elements=coordinates))
    return Nuclei(**{**base.__dict__, "centroid": centroid})


def assert_same(one, two, columns=COLUMNS):
    for name in columns:
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert one.classes == two.classes


class CutStream:
    """A table as a stream of chunks cut at the given rows."""

    def __init__(self, table, cuts, *, count=None):
        self.table, self.cuts = table, [0, *sorted(min(c, len(table)) for c in cuts), len(table)]
        self.count = len(table) if count is None else count
        self.classes = table.classes
        self.embedding_dim = None if table.embedding is None else table.embedding.shape[1]

    def __len__(self):
        return self.count

    def __iter__(self):
        for start, stop in pairwise(self.cuts):
            yield self.table.select(np.arange(start, stop))


def with_embedding(table, width, seed=0):
    values = np.random.default_rng(seed).normal(size=(len(table), width)).astype(np.float32)
    return Nuclei(**{**table.__dict__, "embedding": values})


@st.composite
def cut_tables(draw, outlines=loose_outlines):
    """A table of up to a dozen nuclei, and rows where to cut it; some rows twice, which gives chunks of zero rows."""
    parts = draw(st.lists(nuclei(outlines, embeddings=False), max_size=3))
    base = parts[0] if parts else make_nuclei([])
    table = Nuclei.concatenate([base, *[Nuclei(**{**p.__dict__, "classes": base.classes}) for p in parts[1:]]])
    if draw(st.booleans()):
        table = with_embedding(table, draw(st.integers(1, 4)))
    return table, draw(st.lists(st.integers(0, 15), max_size=6))
