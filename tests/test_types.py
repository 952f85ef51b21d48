"""The table of nuclei: select, concatenate, transform, empty, and columns that do not belong together."""

import pickle
from dataclasses import FrozenInstanceError, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellvit.errors import CellViTError, ConfigError, DataError
from cellvit.types import Nuclei, NucleiClasses

CLASSES = NucleiClasses(names=("Background", "Round"), colors=((0, 0, 0), (255, 0, 0)))
PLAIN = {
    "centroid": (np.float64, 2),
    "bbox": (np.float64, 4),
    "type": (np.int32, None),
    "type_prob": (np.float32, None),
    "label": (np.int32, None),
}


def make(lengths, *, seed=0, embedding_dim=3, classes=CLASSES):
    """Return nuclei whose contours have the given numbers of points and whose every value is different."""
    rng = np.random.default_rng(seed)
    n = len(lengths)
    columns = {
        name: (rng.random((n,) if width is None else (n, width)) * 1000).astype(dtype)
        for name, (dtype, width) in PLAIN.items()
    }
    return Nuclei(
        **columns,
        contour_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        contour_points=rng.random((sum(lengths), 2)) * 1000,
        embedding=None if embedding_dim is None else rng.random((n, embedding_dim)).astype(np.float32),
        classes=classes,
    )


def rows(nuclei):
    """Return the table as a list of rows, the slow and obvious way."""
    return [
        (
            *(getattr(nuclei, name)[i].tolist() for name in PLAIN),
            nuclei.contour(i).tolist(),
            None if nuclei.embedding is None else nuclei.embedding[i].tolist(),
        )
        for i in range(len(nuclei))
    ]


def assert_sound(nuclei):
    """Assert the declared shapes and dtypes of every column."""
    n = len(nuclei)
    for name, (dtype, width) in PLAIN.items():
        column = getattr(nuclei, name)
        assert column.dtype == dtype, name
        assert column.shape == ((n,) if width is None else (n, width)), name
    assert nuclei.contour_offsets.dtype == np.int64
    assert nuclei.contour_offsets.shape == (n + 1,)
    assert nuclei.contour_points.dtype == np.float64
    assert nuclei.contour_points.shape == (nuclei.contour_offsets[-1], 2)
    if nuclei.embedding is not None:
        assert nuclei.embedding.dtype == np.float32
        assert nuclei.embedding.shape[0] == n


@st.composite
def tables(draw, *, min_size=0, embedding_dim=3):
    lengths = draw(st.lists(st.integers(0, 5), min_size=min_size, max_size=8))
    return make(lengths, seed=draw(st.integers(0, 1000)), embedding_dim=embedding_dim)


# Empty


@pytest.mark.parametrize("dim", [None, 0, 5])
def test_empty_has_every_column(dim):
    nuclei = Nuclei.empty(embedding_dim=dim, classes=CLASSES)
    assert len(nuclei) == 0
    assert_sound(nuclei)
    assert nuclei.embedding is None if dim is None else nuclei.embedding.shape == (0, dim)
    assert nuclei.classes == CLASSES


@pytest.mark.parametrize("dim", [None, 5])
def test_empty_survives_every_operation(dim):
    empty = Nuclei.empty(embedding_dim=dim)
    for result in (
        empty.select(np.zeros(0, bool)),
        empty.select(np.zeros(0, np.int64)),
        empty.transform(scale=(2, 3), shift=(1, 1)),
        Nuclei.concatenate([empty, empty]),
    ):
        assert len(result) == 0
        assert_sound(result)
        assert (result.embedding is None) == (dim is None)


# Select


@given(tables(min_size=1), st.data())
def test_select_by_index_equals_taking_rows(nuclei, data):
    index = data.draw(st.lists(st.integers(-len(nuclei), len(nuclei) - 1), max_size=12))
    chosen = nuclei.select(np.array(index, np.int64))
    assert_sound(chosen)
    assert rows(chosen) == [rows(nuclei)[i] for i in index]
    assert chosen.classes == nuclei.classes


@given(tables(), st.data())
def test_select_by_mask_equals_filtering_rows(nuclei, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(nuclei), max_size=len(nuclei)))
    chosen = nuclei.select(np.array(mask, bool))
    assert_sound(chosen)
    assert rows(chosen) == [row for row, keep in zip(rows(nuclei), mask, strict=True) if keep]


@given(tables())
def test_selecting_all_or_none(nuclei):
    assert rows(nuclei.select(np.arange(len(nuclei)))) == rows(nuclei)
    assert rows(nuclei.select(np.zeros(len(nuclei), bool))) == []


def test_selection_does_not_share_memory():
    nuclei = make([3, 4])
    nuclei.select(np.array([1])).contour_points[:] = -1
    assert (nuclei.contour_points >= 0).all()


def test_select_refuses_what_does_not_fit():
    nuclei = make([3, 4])
    for mask in ([True], [True, False, True]):
        with pytest.raises(DataError, match=f"mask of {len(mask)} rows for 2 nuclei"):
            nuclei.select(np.array(mask))
    with pytest.raises(IndexError):
        nuclei.select(np.array([2]))


# Concatenate


@given(st.lists(tables(), min_size=1, max_size=5))
def test_concatenation_is_rows_one_after_another(parts):
    whole = Nuclei.concatenate(parts)
    assert_sound(whole)
    assert rows(whole) == [row for part in parts for row in rows(part)]
    assert whole.classes == CLASSES


@given(st.lists(tables(), min_size=1, max_size=5))
def test_selecting_each_part_of_a_concatenation_gives_it_back(parts):
    whole = Nuclei.concatenate(parts)
    start = 0
    for part in parts:
        piece = whole.select(np.arange(start, start + len(part)))
        assert rows(piece) == rows(part)
        assert np.array_equal(piece.contour_offsets, part.contour_offsets)
        start += len(part)


@given(tables(), tables(), tables())
def test_concatenation_is_associative(a, b, c):
    left = Nuclei.concatenate([Nuclei.concatenate([a, b]), c])
    right = Nuclei.concatenate([a, Nuclei.concatenate([b, c])])
    assert rows(left) == rows(right)


def test_embeddings_survive_empty_parts_without_one():
    part = make([3, 4])
    whole = Nuclei.concatenate([Nuclei.empty(), part, Nuclei.empty()])
    assert rows(whole) == rows(part)


def test_embedding_is_dropped_if_nuclei_lack_it():
    whole = Nuclei.concatenate([make([3]), make([4], embedding_dim=None)])
    assert whole.embedding is None
    assert len(whole) == 2


def test_concatenation_of_nothing_is_refused():
    with pytest.raises(DataError, match=r"use Nuclei.empty\(\)"):
        Nuclei.concatenate([])


def test_concatenation_keeps_the_names_of_the_types():
    assert Nuclei.concatenate([make([3], classes=None), make([3])]).classes == CLASSES
    assert Nuclei.concatenate([make([3], classes=None)]).classes is None
    other = NucleiClasses(names=("Background", "Spindle"), colors=CLASSES.colors)
    with pytest.raises(DataError, match=r"different types \('Background', 'Round'\) and \('Background', 'Spindle'\)"):
        Nuclei.concatenate([make([3]), make([3], classes=other)])


# Transform


def test_transform_by_hand():
    nuclei = replace(
        make([1]),
        centroid=np.array([[1.0, 2.0]]),
        bbox=np.array([[0.0, 1.0, 2.0, 3.0]]),
        contour_points=np.ones((1, 2)),
    )
    moved = nuclei.transform(scale=(2, 10), shift=(0.5, -1))
    assert moved.centroid.tolist() == [[2.5, 19.0]]
    assert moved.bbox.tolist() == [[0.5, 9.0, 4.5, 29.0]]
    assert moved.contour_points.tolist() == [[2.5, 9.0]]
    assert_sound(moved)


FACTOR = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0])  # powers of two: the arithmetic is exact
STEP = st.integers(-1000, 1000).map(float)


@given(tables(), st.tuples(FACTOR, FACTOR), st.tuples(STEP, STEP))
def test_transform_has_an_inverse(nuclei, scale, shift):
    there = nuclei.transform(scale=scale, shift=shift)
    back = there.transform(shift=(-shift[0], -shift[1])).transform(scale=(1 / scale[0], 1 / scale[1]))
    for name in ("centroid", "bbox", "contour_points"):
        np.testing.assert_allclose(getattr(back, name), getattr(nuclei, name), atol=1e-9)
    for name in ("type", "type_prob", "label", "embedding", "contour_offsets"):
        assert getattr(there, name) is getattr(nuclei, name)


@given(tables())
def test_transform_commutes_with_select(nuclei):
    index = np.arange(len(nuclei))[::-1]
    one = nuclei.transform(scale=(2, 3), shift=(5, 7)).select(index)
    two = nuclei.select(index).transform(scale=(2, 3), shift=(5, 7))
    assert rows(one) == rows(two)


def test_transform_leaves_the_original_alone():
    nuclei = make([3])
    before = rows(nuclei)
    nuclei.transform(scale=(2, 2), shift=(1, 1))
    assert rows(nuclei) == before
    assert rows(nuclei.transform()) == before


# Contours


def test_contour_of_each_nucleus():
    nuclei = make([2, 0, 3])
    assert nuclei.contour(0).tolist() == nuclei.contour_points[:2].tolist()
    assert nuclei.contour(1).shape == (0, 2)
    assert nuclei.contour(2).tolist() == nuclei.contour(-1).tolist() == nuclei.contour_points[2:].tolist()
    for outside in (3, -4):
        with pytest.raises(IndexError):
            nuclei.contour(outside)


# Bad columns


@pytest.mark.parametrize("name", [*PLAIN, "embedding"])
@pytest.mark.parametrize("change", [-1, 1])
def test_columns_of_different_length_are_refused(name, change):
    nuclei = make([3, 4])
    column = getattr(nuclei, name)
    wrong = column[:change] if change < 0 else np.concatenate([column, column[:1]])
    with pytest.raises(DataError, match=f"columns of different lengths {sorted([2, 2 + change])}".replace("[", r"\[")):
        replace(nuclei, **{name: wrong})


@pytest.mark.parametrize("offsets", [[], [0], [0, 7], [0, 3, 5, 7]])
def test_offsets_of_another_length_are_refused(offsets):
    with pytest.raises(DataError, match="columns of different lengths"):
        replace(make([3, 4]), contour_offsets=np.array(offsets, np.int64))


@pytest.mark.parametrize("offsets", [[0, 3, 6], [1, 3, 7], [0, 3, 8]])
def test_offsets_that_do_not_cover_the_points_are_refused(offsets):
    with pytest.raises(DataError, match=rf"run from {offsets[0]} to {offsets[-1]} but there are 7 contour points"):
        replace(make([3, 4]), contour_offsets=np.array(offsets, np.int64))


def test_errors_can_be_caught_as_builtins_and_as_ours():
    for kind in (ValueError, CellViTError):
        with pytest.raises(kind):
            replace(make([3, 4]), type=np.zeros(1, np.int32))


def test_classes_need_one_colour_per_name():
    assert len(CLASSES) == 2
    with pytest.raises(ConfigError, match="1 class names but 2 colours; give one colour per name"):
        NucleiClasses(names=("Background",), colors=CLASSES.colors)


def test_the_table_is_closed():
    with pytest.raises(FrozenInstanceError):
        make([3]).type = np.zeros(1, np.int32)


def test_pickle_round_trip():
    nuclei = make([3, 0, 4])
    twin = pickle.loads(pickle.dumps(nuclei))
    assert rows(twin) == rows(nuclei)
    assert twin.classes == nuclei.classes


# Indexing


def same(one, two):
    """Return whether two tables hold the same rows, types included."""
    assert_sound(one)
    return rows(one) == rows(two) and one.classes == two.classes


@given(tables(), st.data())
def test_slices_masks_and_indices_agree(nuclei, data):
    n = len(nuclei)
    cut = data.draw(st.slices(n))
    wanted = np.arange(n)[cut]
    mask = np.isin(np.arange(n), wanted)
    assert same(nuclei[cut], nuclei.select(wanted))
    assert same(nuclei[wanted], nuclei.select(wanted))
    assert same(nuclei[wanted.tolist()], nuclei.select(wanted))
    assert same(nuclei[wanted - n], nuclei.select(wanted))
    assert same(nuclei[mask], nuclei.select(np.sort(wanted)))
    assert same(nuclei[mask.tolist()] if n else nuclei, nuclei[mask])


@given(tables(), st.integers(-20, 20), st.integers(-20, 20))
def test_a_slice_beyond_the_table_is_that_of_a_list(nuclei, start, stop):
    assert rows(nuclei[start:stop]) == rows(nuclei)[start:stop]


def test_a_slice_shares_the_memory_of_the_columns():
    nuclei = make([3, 4, 5])
    for name in (*PLAIN, "contour_points", "embedding"):
        assert np.shares_memory(getattr(nuclei[1:], name), getattr(nuclei, name))


@given(tables(min_size=1), st.data())
def test_a_row_holds_what_the_columns_do(nuclei, data):
    index = data.draw(st.integers(-len(nuclei), len(nuclei) - 1))
    for position in (index, np.int64(index)):
        row = nuclei[position]
        assert [getattr(row, name) for name in ("type", "label")] == [nuclei.type[index], nuclei.label[index]]
        assert row.type_prob == nuclei.type_prob[index]
        assert row.centroid.tolist() == nuclei.centroid[index].tolist()
        assert row.bbox.tolist() == nuclei.bbox[index].tolist()
        assert row.contour.tolist() == nuclei.contour(index).tolist()
        assert row.embedding.tolist() == nuclei.embedding[index].tolist()


@given(tables())
def test_iteration_gives_every_row_once(nuclei):
    assert [row.label for row in nuclei] == nuclei.label.tolist()
    assert [row.contour.tolist() for row in nuclei] == [nuclei.contour(i).tolist() for i in range(len(nuclei))]


@given(st.lists(st.integers(0, 3), max_size=12))
def test_the_names_of_types_part_the_table(types):
    classes = NucleiClasses(("Background", "Round", "Long"), ((0, 0, 0),) * 3)
    nuclei = replace(make([3] * len(types), classes=classes), type=np.array(types, np.int32))
    names = ["No type", "Round", "Long", *(["Type 3"] if 3 in types else [])]
    found = {name: nuclei[name] for name in names}
    for kind, name in enumerate(names):
        assert same(found[name], nuclei[nuclei.type == kind])
        assert {row.type_name for row in found[name]} <= {name}
    assert sum(map(len, found.values())) == len(nuclei)
    assert nuclei.counts() == {name: len(part) for name, part in found.items() if len(part)}
    assert list(nuclei.counts().values()) == sorted(nuclei.counts().values(), reverse=True)


def test_two_types_of_one_name_are_one():
    classes = NucleiClasses(("Background", "Round", "Round"), ((0, 0, 0),) * 3)
    nuclei = replace(make([3, 3, 3], classes=classes), type=np.array([1, 2, 2], np.int32))
    assert len(nuclei["Round"]) == 3
    assert nuclei.counts() == {"Round": 3}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (2, IndexError, "row 2 of 2 nuclei; rows count from 0"),
        (-3, IndexError, "row -3 of 2 nuclei"),
        (np.array([5]), IndexError, "5"),
        ("round", DataError, "no type 'round'; choose from 'No type', 'Round'"),
        ("Background", DataError, "no type 'Background'; choose from"),
        ([True], DataError, "mask of 1 rows for 2 nuclei"),
        (True, DataError, "rows of shape"),
        (0.5, DataError, "rows of shape"),
        (None, DataError, "rows of shape"),
        ([0.0, 1.0], DataError, "rows of shape .* type float64; give a mask of 2 values"),
        (np.zeros((2, 2), int), DataError, r"rows of shape \(2, 2\)"),
        (["Round"], DataError, "or the name of a type"),
    ],
)
def test_rows_that_are_none_are_told(rows, error, message):
    nuclei = replace(make([3, 4]), type=np.array([0, 1], np.int32))
    with pytest.raises(error, match=message):
        nuclei[rows]


# What a user sees


def test_repr_is_one_line_of_counts():
    names = ("Background", "Spindle\nshaped", "Round", "A", "B", "C")
    classes = NucleiClasses(names, ((0, 0, 0),) * 6)
    types = np.repeat(np.arange(6), [1, 6, 5, 4, 3, 2]).astype(np.int32)
    nuclei = replace(make([3] * len(types), classes=classes), type=types)
    assert repr(nuclei) == "Nuclei(21: 6 Spindle shaped, 5 Round, 4 A, 3 B, …; embeddings 3)"
    assert repr(nuclei["No type"]) == "Nuclei(1: 1 No type; embeddings 3)"
    assert repr(Nuclei.empty()) == "Nuclei(0)"
    assert repr(make([], embedding_dim=5)) == "Nuclei(0; embeddings 5)"
    assert "array([[" not in repr(nuclei[0])
    assert len(repr(nuclei[0]).splitlines()) == 1


def test_html_is_escaped_and_short():
    classes = NucleiClasses(("Background", "<script>alert(1)</script>"), ((0, 0, 0),) * 2)
    nuclei = replace(make([3] * 1000, classes=classes), type=np.ones(1000, np.int32))
    page = nuclei._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == 2 + 6  # a heading and a type; a heading and the first rows
    assert "and 995 more" in page
    assert "more" not in make([3])._repr_html_()
    ElementTree.fromstring(f"<div>{page}</div>")
    ElementTree.fromstring(f"<div>{Nuclei.empty()._repr_html_()}</div>")


def test_tables_are_equal_and_hashable_by_identity():
    nuclei = make([3])
    assert nuclei == nuclei
    assert nuclei != make([3])
    assert {nuclei: 1}[nuclei] == 1
