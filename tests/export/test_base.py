import pytest

from cellvit.errors import ConfigError, OutputError
from cellvit.export import exporter
from cellvit.io.atomic import atomic_folder


def test_an_unknown_target_is_refused():
    with pytest.raises(ConfigError, match="target 'qpath' is unknown"):
        exporter("qpath")


def test_a_folder_is_there_when_all_of_it_is(tmp_path):
    out = tmp_path / "above" / "model"
    with atomic_folder(out) as folder:
        (folder / "a.txt").write_text("a")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a.txt"]
    with pytest.raises(OutputError, match="it exists; choose another name"), atomic_folder(out):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["above", "model", "a.txt"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model") as folder:
        (folder / "a.txt").write_text(str(1 / 0))
    with pytest.raises(OutputError, match="disk"), atomic_folder(tmp_path / "model"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
