"""Plain data that do not fit are told by field and value; pydantic is loaded for such data only."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from cellvit.errors import ConfigError, DataError
from cellvit.io.schema import checked
from cellvit.weights import catalogue


@dataclass(frozen=True)
class Size:
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    width: int
    name: str = ""


def test_text_and_plain_data_become_dataclasses():
    assert checked('{"width": 3}', Size, what="a.json", advice="export it") == Size(3)
    assert checked([{"width": 3, "name": "x"}], tuple[Size, ...], what="a.json", advice="") == (Size(3, "x"),)


def test_every_fault_is_a_line_with_field_and_value():
    data = {"a": {"width": "wide", "nmae": "x"}, "b": {}}
    with pytest.raises(ConfigError) as caught:
        checked(data, dict[str, Size], what="a.json", advice="export it again", error=ConfigError)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith("a.json: a.width is 'wide': input should be a valid integer")
    assert second.startswith("a.nmae is 'x': ")
    assert third == "b.width is missing; export it again"


def test_text_that_is_no_json_and_long_values_are_one_line():
    with pytest.raises(DataError, match=r"^a\.json: content is '\{': invalid JSON.*; export it again$"):
        checked("{", Size, what="a.json", advice="export it again")
    with pytest.raises(DataError) as caught:
        checked({"width": "9" * 500 + "x"}, Size, what="a.json", advice="")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gflop": "many"}, r"catalogue\.json of cellvit: 0\.gflop is 'many': .*; reinstall cellvit-lightning"),
        ({"license": "MIT"}, r"0\.license is 'MIT': "),
    ],
)
def test_a_broken_catalogue_is_told_by_field(monkeypatch, change, message):
    document = {"classes": {}, "entries": [{**catalogue._document()["entries"][-1], **change}]}
    monkeypatch.setattr(catalogue, "_document", lambda: document)
    with pytest.raises(DataError, match=message):
        catalogue._published.__wrapped__()


@pytest.mark.parametrize(
    "start", ["import cellvit", "import cellvit.types", "import cellvit.cli; cellvit.cli.main(['--help'])"]
)
def test_a_start_loads_no_pydantic(start):
    code = f"import sys; {start}; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
