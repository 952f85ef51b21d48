from pathlib import Path

import pytest
import yaml

from cellvit.cli.config import config_layers, config_texts, expand_bases
from cellvit.errors import ConfigError


def write(folder, name, **content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_file_without_base_stays_a_path(tmp_path):
    plain = write(tmp_path, "plain.yaml", trainer={"max_epochs": 3})
    assert expand_bases(["fit", "--config", plain, "--data.root", "x"]) == [
        "fit",
        "--config",
        plain,
        "--data.root",
        "x",
    ]


def test_bases_come_before_what_builds_on_them_however_deep(tmp_path):
    low = write(tmp_path, "low.yaml", a=1)
    side = write(tmp_path, "other/side.yaml", b=2)
    write(tmp_path, "mid.yaml", base=["low.yaml", "other/side.yaml"], c=3)
    top = write(tmp_path, "deep/top.yaml", base="../mid.yaml", d=4)
    first, second, third, fourth = config_layers(top)
    assert Path(first).samefile(low)
    assert Path(second).samefile(side)
    assert (yaml.safe_load(third), yaml.safe_load(fourth)) == ({"c": 3}, {"d": 4})
    assert [yaml.safe_load(t) for t in config_texts(top)] == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}]


@pytest.mark.parametrize("spelling", [["--config", "{}"], ["--config={}"], ["-c", "{}"]])
def test_every_spelling_of_the_flag_is_understood(tmp_path, spelling):
    low = write(tmp_path, "low.yaml", a=1)
    top = write(tmp_path, "top.yaml", base="low.yaml", b=2)
    expanded = expand_bases(["fit", *(part.format(top) for part in spelling), "--x", "1"])
    assert expanded[:2] == ["fit", "--config"]
    assert expanded[2] == str(tmp_path / "low.yaml") == low
    assert yaml.safe_load(expanded[4]) == {"b": 2}
    assert expanded[5:] == ["--x", "1"]


def test_text_and_missing_files_are_left_to_the_parser():
    assert expand_bases(["fit", "--config", "a: 1"]) == ["fit", "--config", "a: 1"]
    assert expand_bases(["fit", "--config", "no.yaml"]) == ["fit", "--config", "no.yaml"]
    assert expand_bases(["fit", "--config", "x" * 5000]) == ["fit", "--config", "x" * 5000]


def test_a_missing_base_and_a_circle_are_errors_that_name_the_files(tmp_path):
    top = write(tmp_path, "top.yaml", base="gone.yaml")
    with pytest.raises(ConfigError, match=r"top\.yaml.*gone\.yaml"):
        config_layers(top)
    write(tmp_path, "a.yaml", base="b.yaml")
    b = write(tmp_path, "b.yaml", base="a.yaml")
    with pytest.raises(ConfigError, match="circle"):
        config_layers(b)
