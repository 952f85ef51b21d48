"""Labels that are given in the viewer are on the disk at once, are taken back, and never overwrite those of others."""

import json

import numpy as np
import pytest
from view_samples import drawn_nuclei, write_table

from cellvit.classes import PALETTE
from cellvit.errors import ConfigError, DataError
from cellvit.io import read_parquet, write_parquet
from cellvit.labels import Labels, import_labels, nuclei_digest, read_labels, write_labels
from cellvit.viewer.gallery import Gallery
from cellvit.viewer.labeling import Labeling
from cellvit.viewer.labels import LabelClasses, LabelConflictError, LabelSession, class_name, color_of


def session_of(table, who="Ann"):
    return LabelSession(table, who=who)


def give(session, rows, name):
    return session.give(np.array(rows), name)


def on_disk(table):
    """What another program reads."""
    current = read_labels(table.parent).current()
    return dict(zip(current.nucleus.tolist(), current.class_name.tolist(), strict=True))


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "results" / "slide")


def test_every_change_is_in_the_table_before_the_call_returns(table):
    session = session_of(table)
    assert session.reason is None
    assert not session.can_undo
    assert give(session, [5, 3, 5], "A") == 2
    assert on_disk(table) == {3: "A", 5: "A"}
    assert give(session, [3, 4], "B") == 2
    assert give(session, [3, 4], "B") == 0  # says nothing new
    assert on_disk(table) == {3: "B", 4: "B", 5: "A"}
    assert give(session, [4, 9], None) == 1
    assert on_disk(table) == {3: "B", 5: "A"}
    assert session.counts() == {"A": 1, "B": 1}
    with pytest.raises(DataError, match="row 256 of 256"):
        give(session, [256], "A")
    assert [session.label_of(row) for row in (3, 4, 5, 255)] == ["B", None, "A", None]
    labels = read_labels(table.parent)
    assert labels.matched_to == nuclei_digest(drawn_nuclei().centroid)
    assert set(labels.who) == {"Ann"}
    assert set(labels.source) == {"cellvit view"}
    assert labels.x[0] == drawn_nuclei().centroid[3, 0]


def test_steps_are_taken_back_one_by_one_also_by_the_next_viewer(table):
    first = session_of(table)
    for rows, name in (([1, 2], "A"), ([2], "B"), ([1, 2], None)):
        give(first, rows, name)
    first.close()
    second = session_of(table)
    states = []
    while second.can_undo:
        states.append((second.undo(), on_disk(table)))
    assert states == [(2, {1: "A", 2: "B"}), (1, {1: "A", 2: "A"}), (2, {})]
    with pytest.raises(LabelConflictError, match="nothing to undo"):
        second.undo()


def test_labels_of_others_are_not_taken_back_and_the_last_one_counts(table):
    late = np.datetime64("2999-01-01", "ms")  # of a clock that is ahead
    given = Labels.of(nucleus=[7], x=[225], y=[15], class_name=["A"], who="Bob", when=late)
    write_labels(table.with_name("labels.parquet"), Labels.concatenate([given]))
    session = session_of(table)
    assert session.note  # they were matched to nobody knows which nuclei
    assert not session.can_undo
    assert give(session, [7], "B") == 1
    assert on_disk(table) == {7: "B"}
    assert session.undo() == 1
    assert on_disk(table) == {7: "A"}


def test_a_table_that_another_program_changed_is_read_again_and_not_overwritten(table, tmp_path):
    session = session_of(table)
    give(session, [1], "A")
    points = tmp_path / "points.csv"
    points.write_text("x,y,class\n75,15,C\n")
    import_labels([points], table.parent, who="Bob")
    with pytest.raises(LabelConflictError, match="changed by another program"):
        give(session, [1], "B")
    assert on_disk(table) == {1: "A", 2: "C"}
    assert not session.can_undo  # the last label is not of this viewer
    assert give(session, [1], "B") == 1
    assert on_disk(table) == {1: "B", 2: "C"}


def test_labels_stay_on_their_nuclei_where_these_are_found_anew_in_another_order(table):
    session = session_of(table)
    give(session, [10], "A")
    write_parquet(read_parquet(table)[::-1], table)
    assert session.label_of(245) == "A"
    assert give(session, [10], "A") == 1
    assert on_disk(table) == {10: "A", 245: "A"}


def test_a_second_viewer_sees_labels_and_cannot_change_them(table):
    first, second = session_of(table), session_of(table, who="Bob")
    assert first.reason is None
    assert "another viewer" in second.reason
    give(first, [1], "A")
    assert second.label_of(1) == "A"
    with pytest.raises(LabelConflictError, match="another viewer"):
        give(second, [2], "B")
    first.close()
    assert second.reason is None
    assert give(second, [2], "B") == 1


def test_a_damaged_table_is_told_and_stays_as_it_is(table):
    table.with_name("labels.parquet").write_bytes(b"PAR1 and then nothing")
    session = session_of(table)
    assert "no readable table of labels" in session.reason
    with pytest.raises(LabelConflictError, match="no readable table"):
        give(session, [1], "A")
    assert table.with_name("labels.parquet").read_bytes() == b"PAR1 and then nothing"


def test_names_and_colours_of_classes_are_checked(tmp_path):
    assert class_name("  <b>tumour</b> ") == "<b>tumour</b>"
    for wrong in ("", " ", None, 3, "a\x1b[2J", "x" * 101):
        with pytest.raises(ConfigError, match="class name"):
            class_name(wrong)
    assert color_of("#C81e1E") == (200, 30, 30)
    for wrong in ("red", "#12345", "#1234567", "# 1 2 3", None, 5, ["#", 1]):
        with pytest.raises(ConfigError, match="colour"):
            color_of(wrong)
    (tmp_path / "label-classes.json").write_text('{"classes": [{"name": "A"}]}')
    with pytest.raises(DataError, match="no list of classes"):
        LabelClasses(tmp_path / "label-classes.json").all()


def test_classes_are_shared_by_the_slides_of_a_viewer(tmp_path):
    tables = [write_table(tmp_path / "results" / name) for name in ("one", "two")]
    slides = list(Gallery(tables).slides.values())
    labeling = Labeling(slides)
    assert labeling.folder == tmp_path / "results" / "viewer"
    labeling.set_class(slides[0], "A", (1, 2, 3))
    labeling.set_class(slides[0], "B")
    labeling.session(slides[1]).give(np.array([4, 5]), "A")
    labeling.session(slides[1]).give(np.array([6]), "Round")
    assert labeling.classes(slides[0]) == [
        {"name": "A", "color": "#010203", "count": 0},
        {"name": "B", "color": "#{:02x}{:02x}{:02x}".format(*PALETTE[0]), "count": 0},
    ]
    assert labeling.classes(slides[1])[2] == {"name": "Round", "color": "#c81e1e", "count": 1}  # as the type
    assert labeling.rename_class("A", "Z") == 2
    assert [one["name"] for one in labeling.classes(slides[0])] == ["Z", "B"]
    assert labeling.remove_class("Z") == 2
    assert on_disk(tables[1]) == {6: "Round"}
    assert labeling.saved() == [f"1 labels are in {tmp_path / 'results' / 'two' / 'labels.parquet'}"]
    assert [one["name"] for one in json.loads(labeling.own.path.read_text())["classes"]] == ["B"]


def test_a_damaged_list_of_classes_is_told_and_not_replaced(tmp_path):
    table = write_table(tmp_path / "slide")
    (slide,) = Gallery([table]).slides.values()
    labeling = Labeling([slide])
    labeling.set_class(slide, "A")
    labeling.own.path.write_text("{")
    state = labeling.state(slide)
    assert not state["editable"]
    assert "no list of classes" in state["reason"]
    with pytest.raises(DataError, match="no list of classes"):
        labeling.set_class(slide, "B")
    assert labeling.own.path.read_text() == "{"
    labeling.close()
