"""Tables are data: what strangers called a slide or a class does nothing in a spreadsheet, a terminal or a page."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellvit.io import tables
from cellvit.io.format import visible
from cellvit.io.tables import console_table, csv_cell, csv_writer, markdown_text, plain_cell, read_csv, write_csv

NAMES = (
    "=1+1",
    "+1 day",
    "-a",
    "@a",
    "\ta",
    "\ra",
    "'=1",
    "''-x",
    "a\nb",
    "a\x1b[2Jb",
    "a\u202eb",
    r"C:\u005cx",
    "it's",
)
CONTROL = [chr(i) for i in (*range(32), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x2028, 0x202E, 0x2066, 0x2069)]
# what names are made of, and every character that means something to the code
TEXTS = st.text(
    st.one_of(st.sampled_from([*"=+-@'\\u0051,\"; \t\r\n", *CONTROL]), st.characters(codec=None)), max_size=12
)


def written(rows: list[dict[str, object]]) -> str:
    stream = io.StringIO(newline="")
    csv_writer(stream, rows[0])(rows)
    return stream.getvalue()


@given(st.lists(TEXTS, min_size=2, max_size=4, unique=True))
def test_what_was_written_is_read(texts):
    rows = [dict(zip(texts, texts, strict=True)), dict(zip(texts, reversed(texts), strict=True))]
    text = written(rows)
    assert read_csv(io.StringIO(text, newline="")) == (texts, rows)
    for line in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell[:1] in ("=", "@", "\t", "\r") for cell in line)
        assert visible(text, keep="\n") == text
        assert all(cell == "".join(cell.splitlines()) for cell in line)


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.integers().map(str)))
def test_numbers_stay_numbers(number):
    assert csv_cell(number) == number


@pytest.mark.parametrize("name", NAMES)
def test_names_of_strangers_do_nothing_in_a_spreadsheet(tmp_path, name):
    write_csv(tmp_path / "a.csv", [{"slide": name, "nuclei": -1, "error": None}])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        (_, (cell, number, empty)) = csv.reader(file)
    assert (number, empty, plain_cell(cell)) == ("-1", "", name)
    assert cell[0] not in "=+-@\t\r"
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert read_csv(file)[1] == [{"slide": name, "nuclei": "-1", "error": ""}]


def test_names_of_strangers_do_nothing_in_a_terminal_or_a_page():
    from rich.console import Console

    name = "a\x1b[2J\x9b\u202e[red]<b>"
    stream = io.StringIO()
    Console(file=stream, width=99).print(console_table([{name: name}]))
    shown = "a\\u001b[2J\\u009b\\u202e[red]<b>"
    assert stream.getvalue().count(shown) == 2
    assert visible(stream.getvalue(), keep="\n") == stream.getvalue()
    assert markdown_text(name) == shown.replace("<", "&lt;")
    page = tables._environment(html=True).from_string("{{ name }}").render(name=name)
    assert page == shown.replace("<", "&lt;").replace(">", "&gt;")


def test_whatever_acts_on_a_terminal_is_shown():
    for character in CONTROL:
        assert visible(f"a{character}") == f"a\\u{ord(character):04x}"
    assert visible("a\nb\udcff\u00e9", keep="\n") == "a\nb\\udcff\u00e9"
