import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellvit.io.remote import as_path
from cellvit.slide.naming import expand_inputs, output_names

SUFFIXES = [".geojson", ".png"]


def names(*paths, out="out"):
    inputs = [Path(path) for path in paths]
    return list(output_names(inputs, Path(out), suffixes=SUFFIXES).values())


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("a.png", "b.tif"), ["a", "b"]),
        (("slide 1.v2.png",), ["slide 1.v2"]),
        (("x/a.png", "y/a.png", "b.png"), ["x_a", "y_a", "b"]),
        (("x/a.png", "x/a.tif"), ["x_a_png", "x_a_tif"]),
        (("x/a.png", "y/A.png"), ["x_a", "y_A"]),
        (("a.tif", "out/a.png"), None),
        (("out/a.png",), ["a_nuclei"]),
        (("out/a.tif",), ["a"]),
        (("out/a.png", "a_nuclei.tif"), None),
    ],
)
def test_names(paths, expected):
    found = names(*paths)
    assert expected is None or found == expected
    assert len({name.casefold() for name in found}) == len(paths)


@given(
    st.lists(
        st.sampled_from(
            [
                f"{a}{b}{c}{d}"
                for a in ("", "p/", "q/p/")
                for b in "xX"
                for c in ("", "_nuclei", "_png")
                for d in (".png", ".tif", "")
            ]
        ),
        unique=True,
        min_size=1,
        max_size=12,
    ),
    st.randoms(),
)
def test_names_never_clash_nor_replace_an_input_nor_depend_on_the_order(paths, random):
    for out in ("out", ".", "p"):
        inputs = [Path(path) for path in paths]
        chosen = output_names(inputs, Path(out), suffixes=SUFFIXES)
        assert len({name.casefold() for name in chosen.values()}) == len(paths)
        results = {str(Path(out).resolve() / f"{n}{s}").casefold() for n in chosen.values() for s in SUFFIXES}
        assert results.isdisjoint(str(path.resolve()).casefold() for path in inputs)
        random.shuffle(inputs)
        assert output_names(inputs, Path(out), suffixes=SUFFIXES) == chosen


def test_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder/deeper").mkdir(parents=True)
    Path("none").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png", "deeper/c.png"):
        Path("folder", name).touch()
    Path("[1].png").touch()
    files, missing = expand_inputs(["folder", "folder/a.jpg", "[1].png", "gone.png"])
    assert files == [Path("folder/a.jpg"), Path("folder/b.PNG"), Path("[1].png"), Path("gone.png")]
    assert missing == []
    files, missing = expand_inputs(["folder/*.jpg", "folder/**/c.*", str(tmp_path / "folder" / "no*"), "x*", "none"])
    assert files == [Path("folder/a.jpg"), Path("folder/deeper/c.png"), tmp_path / "folder" / "notes.txt"]
    assert [text for text, _ in missing] == ["x*", "none"]
    assert all(text in reason for text, reason in missing)


def test_names_are_text_and_no_folder_above(tmp_path):
    odd = tmp_path / os.fsdecode(b"\xe4x.tif")
    names = output_names([tmp_path / "...tif", odd], tmp_path / "out", suffixes=[""])
    assert names == {tmp_path / "...tif": "slide..", odd: "_x"}


def test_addresses_that_differ_in_what_they_ask_for_have_names_of_their_own():
    places = [as_path(f"https://host/get?id={number}&key=secret") for number in (1, 2)]
    names = output_names(places, Path("results"), suffixes=[""])
    assert len(set(names.values())) == 2
    assert not any("secret" in str(name) for name in names.values())
