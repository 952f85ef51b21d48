import io
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from support.http_files import served

from cellvit.errors import ConfigError, ImageError, SourceLostError
from cellvit.io import remote, remote_requests
from cellvit.io.images import read_image, read_resolution
from cellvit.io.remote import CACHE_VARIABLE, RemotePath, as_path, identity_of, remote_remarks
from cellvit.io.remote_requests import TIMEOUT_VARIABLE
from cellvit.slide.info import slide_info
from cellvit.slide.open import open_slide

PICTURE = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(remote_requests, "PAUSE", 0.0)


@pytest.fixture
def server(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png", dpi=(101600, 101600))
    tifffile.imwrite(tmp_path / "a.tif", PICTURE, tile=(64, 64), photometric="rgb", compression="zlib")
    with served(tmp_path) as state:
        yield state


def test_an_address_is_a_path(server):
    path = as_path(f"{server.address}/a.tif?key=secret")
    assert isinstance(path, Path)
    assert (path.name, path.stem, path.suffix) == ("a.tif", "a", ".tif")
    assert str(path) == os.fspath(path) == f"{server.address}/a.tif"
    assert "secret" not in repr(path)
    assert path.resolve() is path.absolute() is path
    assert pickle.loads(pickle.dumps(path)) == path
    assert len({path, as_path(f"{server.address}/a.tif?key=secret"), as_path(f"{server.address}/b.tif")}) == 2
    assert (path.exists(), path.is_file(), path.is_dir()) == (True, True, False)
    assert path.stat().st_size == (server.folder / "a.tif").stat().st_size
    assert not as_path(f"{server.address}/b.tif").exists()
    assert as_path(Path(f"{server.address}/a.tif")) == as_path(f"{server.address}/a.tif")  # what Path makes of one
    with pytest.raises(ConfigError, match="is only read"):
        path.open("wb")


def test_what_is_local_stays_local(tmp_path):
    for text in ("a.tif", "/data/a b.tif", "C:/a.tif", "a:b/c.tif"):
        assert as_path(text) == Path(text)
        assert type(as_path(text)) is type(Path())
    assert as_path((tmp_path / "a b.tif").as_uri()) == tmp_path / "a b.tif"


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("https://user:word@host/a.tif", "the address at 'host' holds a user or a password"),
        ("https://token@host/a.tif", "at 'host' holds a user or a password"),
        ("s3://key:word@bucket/a.tif", "at 'bucket' holds a user or a password"),
        ("zip://a.tif::s3://bucket/b.zip", "joins several"),
    ],
)
def test_passwords_are_refused_and_not_repeated(address, match):
    with pytest.raises(ImageError, match=match) as refusal:
        as_path(address)
    assert not re.search("word|token|key", str(refusal.value).replace("a user or a password", ""))


def test_a_missing_package_and_an_unknown_kind_of_address_say_what_to_do(monkeypatch):
    with pytest.raises(ImageError, match="no file system is called 'nowhere'; give a local file"):
        as_path("nowhere://bucket/a.tif").exists()

    def missing(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.url_to_fs", missing)
    with pytest.raises(ImageError, match=r"needs a package: Install s3fs .* pip install '.\[remote\]'"):
        as_path("s3://bucket/a.tif").exists()


def test_a_file_is_read_in_blocks_that_are_kept(server, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    monkeypatch.setenv(CACHE_VARIABLE, "0.003")
    content, path = (server.folder / "a.tif").read_bytes(), as_path(f"{server.address}/a.tif")
    with path.open() as file:
        assert (file.read(10), file.tell(), file.seek(-5, io.SEEK_END)) == (content[:10], 10, len(content) - 5)
        assert file.read(100) == content[-5:]
        asked = len(server.requests)
        assert file.read_at(2500, 700) == content[2500:3200]
        assert file.read_at(2100, 300) == content[2100:2400]
        assert len(server.requests) == asked + 2
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(file.read_at, starts := range(0, len(content), 777), [777] * len(starts)))
        assert b"".join(parts) == content
        assert file._blocks.maxblocks == 3
    with path.open() as file:  # opened again, unchanged: the blocks are there
        asked = len(server.requests)
        file.read(10)
        file.seek(len(content) - 10)
        file.read(10)
        assert len(server.requests) <= asked + 2
    (server.folder / "a.tif").write_bytes(content[::-1])
    with path.open() as file:
        assert file.read(10) == content[::-1][:10]


@pytest.mark.parametrize(("variable", "value"), [(CACHE_VARIABLE, "much"), (TIMEOUT_VARIABLE, "-1")])
def test_limits_are_numbers(server, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}='{value}' is no number of"):
        as_path(f"{server.address}/a.tif").open()


def test_images_and_slides_are_read_at_their_address(server):
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_image(f"{server.address}/{name}"), PICTURE)
    assert read_resolution(f"{server.address}/a.png").mpp == pytest.approx((0.25, 0.25), rel=0.01)
    info = slide_info(f"{server.address}/a.tif")
    assert (info.reader, info.size_bytes) == ("tiff", (server.folder / "a.tif").stat().st_size)
    import fsspec

    with fsspec.open("memory://slides/a.tif", "wb") as file:
        file.write((server.folder / "a.tif").read_bytes())
    with open_slide("memory://slides/a.tif") as slide:
        np.testing.assert_array_equal(slide.read_region(10, 20, 90, 50), PICTURE[20:70, 10:100])
    fsspec.filesystem("memory").rm("/slides", recursive=True)


def test_formats_that_are_local_only_say_so(server):
    (server.folder / "a.czi").write_bytes(b"ZISRAWFILE" + bytes(1000))
    with pytest.raises(ImageError, match=r"not a slide or an image that is read at an address.* copy the file here"):
        open_slide(f"{server.address}/a.czi")
    (server.folder / "a.svs").write_bytes((server.folder / "a.tif").read_bytes())
    with open_slide(f"{server.address}/a.svs") as slide:
        assert "a local copy would be read by OpenSlide" in slide.warnings[0]
    with pytest.raises(ImageError, match=r"nope\.tif' does not exist"):
        open_slide(f"{server.address}/nope.tif")


def test_a_server_without_ranges_is_refused(server, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    server.ranges = False
    with pytest.raises(SourceLostError, match="gives the whole file where a part is asked for"):
        open_slide(f"{server.address}/a.tif")


def test_a_file_that_goes_away_is_lost_and_not_damaged(server, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 1000)
    monkeypatch.setenv(CACHE_VARIABLE, "0.001")
    with open_slide(f"{server.address}/a.tif") as slide:
        server.fail_after = len(server.requests)
        for status, match in [(404, "no longer there"), (403, "may not be read"), (500, "cannot be reached")]:
            server.status = status
            slide._cache.clear()
            asked = len(server.requests)
            with pytest.raises(SourceLostError, match=f"{match}.*; finished parts of a slide are kept"):
                slide.read_region(0, 0, 100, 75)
            assert len(server.requests) == asked + (3 if status == 500 else 1)  # what may pass is asked for again
        server.fail_after = None
        slide._cache.clear()
        np.testing.assert_array_equal(slide.read_region(0, 0, 100, 75), PICTURE)


def test_a_slow_network_is_told(server, monkeypatch):
    monkeypatch.setattr(remote_requests, "TRIES", 1)
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.1")
    server.wait = 0.4
    with pytest.raises(SourceLostError, match=r"gave no answer within 0\.1 s; .* set CELLVIT_REMOTE_TIMEOUT=0\.2"):
        as_path(f"{server.address}/a.tif").stat()


def test_what_is_known_of_a_file_is_what_its_server_says(server):
    path = as_path(f"{server.address}/a.tif")
    known = identity_of(path)
    assert known["etag"]
    assert known["modified"]
    assert identity_of(path) == known
    assert remote_remarks(path) == remote_remarks(Path("a.tif")) == []
    server.stated = False
    known = identity_of(path)
    assert (known["etag"], known["modified"], len(known["ends_sha256"])) == (None, None, 64)
    assert "states neither an ETag nor a time of change" in remote_remarks(path)[0]


def test_keys_of_an_address_are_in_no_message(server):
    server.status, server.fail_after = 500, 0
    with pytest.raises(SourceLostError) as lost:
        as_path(f"{server.address}/a.tif?key=secret").stat()
    assert "secret" not in str(lost.value)
    assert isinstance(as_path(f"{server.address}/a.tif"), RemotePath)


def test_a_bucket_is_read_and_lacking_credentials_are_told(server, monkeypatch):
    pytest.importorskip("s3fs", reason="s3:// needs the extra remote")
    import fsspec

    (server.folder / "bucket").mkdir()
    (server.folder / "a.tif").rename(server.folder / "bucket" / "a.tif")
    place = {"endpoint_url": server.address, "client_kwargs": {"region_name": "us-east-1"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {**place, "anon": True})
    with open_slide("s3://bucket/a.tif") as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 100, 75), PICTURE)
        assert identity_of(slide.path)["etag"]
    assert not as_path("s3://bucket/b.tif").exists()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(fsspec.config.conf, "s3", place)
    with pytest.raises(SourceLostError, match=r"may not be read \(NoCredentials.* set AWS_ACCESS_KEY_ID and"):
        as_path("s3://bucket/a.tif").stat()
