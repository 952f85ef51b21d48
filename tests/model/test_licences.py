import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellvit.weights import licences
from cellvit.weights.licences import (
    ACCEPT,
    LICENCES,
    RANKS,
    LicenceNotice,
    announce,
    announce_model,
    find_licence,
    model_licence,
    plain_notices,
)

NC = LICENCES["CC-BY-NC-ND-4.0"]
NANO = {"name": "nano", "licence": "research use only: the training images are under mixed licences"}


@pytest.fixture(autouse=True)
def _first_process(monkeypatch):
    """Nothing announced yet, in a process that would announce."""
    monkeypatch.setattr(licences, "_announced", set())
    for variable in (ACCEPT, *RANKS):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def notices():
    """Collect what is shown; a warning that is not shown is not in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@given(
    licence=st.sampled_from(list(LICENCES.values())),
    titled=st.booleans(),
    separator=st.sampled_from(["-", " ", "_", "  "]),
    change=st.sampled_from([str.upper, str.lower, str]),
)
def test_any_spelling_of_a_known_name_is_found(licence, titled, separator, change):
    name = (licence.title if titled else licence.id).replace(" ", separator).replace("-", separator)
    assert find_licence(f" {change(name)} ") == licence


@pytest.mark.parametrize(
    ("text", "commercial"),
    [
        ("research use only", False),
        ("for non-commercial use", False),
        ("noncommercial", False),
        ("academic research", False),
        ("CC BY-NC-SA 3.0", False),
        ("not stated by the authors", False),
        ("Apache-2.0 with the Commons Clause of 2018", False),
        ("Apache-2.0: research only", False),  # the note takes back what the name gives
        ("CC BY 4.0: that of the images", True),
        ("our house rules", True),
        ("ask the concern", True),  # no "nc" of its own in it
    ],
)
def test_a_free_text_is_restricted_if_it_says_so(text, commercial):
    assert find_licence(text).commercial is commercial


def test_what_follows_a_colon_is_a_note():
    free = find_licence("research use only: images under CC BY-NC 4.0: all of them")
    assert (free.id, free.title, free.note) == ("", "research use only", "images under CC BY-NC 4.0: all of them")
    known = find_licence("CC BY-NC-SA 4.0: that of PanNuke")
    assert (known.id, known.note) == ("CC-BY-NC-SA-4.0", "that of PanNuke")
    assert len(find_licence("word " * 100).title) <= 80


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("text", ["research use only", "Apache-2.0", "CC BY-NC 4.0", "our house rules"])
def test_what_the_model_states_counts_more_than_its_text(text, stated):
    assert model_licence({"licence": text, "commercial": stated}).commercial is stated


def test_a_model_may_state_nothing():
    assert model_licence(None) is model_licence({}) is model_licence({"licence": " ", "data": "mine"}) is None
    assert model_licence({"licence": 3}) is None
    assert model_licence({"commercial": False}).commercial is False
    assert model_licence({"licence": "research use", "commercial": "yes"}).commercial is False  # no boolean


def test_each_weight_is_announced_once(notices):
    for name in ("nano", "uni", "nano", "uni"):
        announce(name, NC)
    assert [str(notice.message).split(":")[0] for notice in notices] == ["licence of nano", "licence of uni"]
    assert all(notice.category is LicenceNotice for notice in notices)
    assert "CC BY-NC-ND 4.0; not for commercial use" in str(notices[0].message)


def test_other_licences_are_silent(notices):
    announce("sam-b", LICENCES["Apache-2.0"])
    announce("mine", None)
    announce_model({}, "mine")
    assert notices == []


def test_a_model_is_called_by_its_own_name(notices):
    announce_model(NANO, "folder")
    announce_model({"licence": "CC BY-NC 4.0"}, "folder")
    assert [str(notice.message).split(":")[0] for notice in notices] == ["licence of nano", "licence of folder"]
    assert "research use only;" in str(notices[0].message)


@pytest.mark.parametrize(("value", "shown"), [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_the_user_can_hide_notices(notices, monkeypatch, value, shown):
    monkeypatch.setenv(ACCEPT, value)
    announce("nano", NC)
    assert len(notices) == shown


@pytest.mark.parametrize("variable", RANKS)
def test_only_the_first_process_speaks(notices, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    announce("nano", NC)
    assert notices == []
    monkeypatch.setenv(variable, "0")
    announce("nano", NC)
    assert len(notices) == 1


def test_where_warnings_are_errors_asking_again_goes_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LicenceNotice):
            announce("nano", NC)
        announce("nano", NC)


def test_the_notice_points_at_the_users_line(notices):
    announce_model(NANO, "nano")
    announce("uni", NC)
    assert {notice.filename for notice in notices} == {__file__}


def test_plain_notices_are_single_lines_on_standard_error():
    code = (
        "import warnings\n"
        "from cellvit.weights.licences import announce, find_licence, plain_notices\n"
        "with plain_notices():\n"
        "    announce('nano', find_licence('research use only'))\n"
        "    warnings.warn('something else')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[0] == f"licence of nano: research use only; not for commercial use ({ACCEPT}=1 hides this line)"
    assert "UserWarning: something else" in lines[1]  # others look as always
    assert done.stdout == ""


def test_plain_notices_end_with_their_context():
    before = warnings.showwarning
    with plain_notices():
        assert warnings.showwarning is not before
    assert warnings.showwarning is before
