import errno
import gzip
import os

import numpy as np
import pytest
from export_samples import make_nuclei, square

from cellvit.errors import CellViTError, OutputError
from cellvit.io import atomic_path, atomic_text, write_geojson, write_json, write_parquet
from cellvit.plotting import write_overlay


def test_the_file_appears_complete_with_the_users_mode(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
        assert temporary.suffix == ".txt"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises((type(error), OutputError)):
        fail()
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "may write to"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "disk"),
    ],
)
def test_errors_of_the_system_say_what_to_do(tmp_path, code, advice):
    with pytest.raises(OutputError, match=advice) as caught, atomic_path(tmp_path / "a.txt"):
        raise OSError(code, os.strerror(code))
    assert "a.txt" in str(caught.value)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, CellViTError)


def test_our_own_errors_pass_unchanged(tmp_path):
    with pytest.raises(OutputError, match=r"^mine$"), atomic_path(tmp_path / "a.txt"):
        raise OutputError("mine")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    with atomic_path(tmp_path / "link.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "x"


def test_pipes_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a plain file"), atomic_path(tmp_path / "pipe"):
        pass


def test_compressed_text_does_not_depend_on_name_or_time(tmp_path, monkeypatch):
    for name, now in (("a.txt.gz", 1.0), ("b.txt.gz", 1e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        with atomic_text(tmp_path / name) as file:
            file.write("é\n")
    one, two = (tmp_path / "a.txt.gz").read_bytes(), (tmp_path / "b.txt.gz").read_bytes()
    assert one == two
    assert gzip.decompress(one).decode() == "é\n"


def _overlay(nuclei, path):
    write_overlay(np.zeros((20, 20, 3), np.uint8), nuclei, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_json, "a.json"), (write_geojson, "a.geojson.gz"), (write_parquet, "a.parquet"), (_overlay, "a.png")],
)
def test_every_writer_says_where_it_cannot_write(tmp_path, write, name):
    nuclei = make_nuclei([square(1, 1)])
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match="a part of its folder's path is a file"):
        write(nuclei, tmp_path / "file" / name)
    with pytest.raises(OutputError, match="create it first"):
        write(nuclei, tmp_path / "missing" / name)
    with pytest.raises(OutputError, match="choose another name"):
        write(nuclei, tmp_path / "folder" / name)
    with pytest.raises(OutputError, match="shorter"):
        write(nuclei, tmp_path / ("a" * 300 + name))
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["file", "folder", name])
