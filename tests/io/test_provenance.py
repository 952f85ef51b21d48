import pytest

from cellvit.errors import OutputError
from cellvit.io.provenance import differences, file_state, read_record, write_record


def test_the_same_facts_do_not_differ_whether_stored_or_not(tmp_path):
    facts = {"mpp": 0.5, "folds": (1, 2), "file": {"bytes": 3, "name": "µ"}}
    write_record(tmp_path / "a.json", facts)
    stored = read_record(tmp_path / "a.json", advice="")
    assert stored == {**facts, "folds": [1, 2]}
    assert differences(stored, facts) == differences(facts, stored) == []


def test_what_differs_is_named_with_both_values():
    before = {"mpp": 0.5, "file": {"bytes": 3, "digest": "0" * 64}, "gone": True, "folds": [1, 2]}
    now = {"mpp": 0.25, "file": {"bytes": 3, "digest": "1" * 64}, "new": "x", "folds": [1, 3]}
    assert differences(before, now) == [
        "file digest was 000000000000…, is 111111111111…",
        "folds was [1, 2], is [1, 3]",
        "gone was True, is None",
        "mpp was 0.5, is 0.25",
        "new was None, is x",
    ]
    (line,) = differences({"a": list(range(500))}, {"a": []})
    assert len(line) < 250


def test_a_file_that_is_replaced_has_another_state(tmp_path):
    path = tmp_path / "a"
    path.write_text("abc")
    before = file_state(path)
    assert before["bytes"] == 3
    assert file_state(path) == before
    path.write_text("abcd")
    assert file_state(path) != before


@pytest.mark.parametrize("text", ["{", "[1]", "7", "null"])
def test_a_damaged_record_says_what_to_do(tmp_path, text):
    assert read_record(tmp_path / "none.json", advice="") is None
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OutputError, match=r"a\.json' is damaged .*; start anew"):
        read_record(tmp_path / "a.json", advice="start anew")
