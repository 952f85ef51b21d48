"""Files of strangers: too large, too deep, with numbers that no image has. Each is an error that names the file."""

import gzip
import io
import json
import os
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import shapely
import tifffile

from cellvit import geometry
from cellvit.cli import main as run_command
from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.geometry.regions import Region
from cellvit.io import detections, read_image, read_nuclei, regions
from cellvit.io.limits import VARIABLE, expanded_limit, max_expanded
from cellvit.io.regions import read_region
from cellvit.slide.open import open_slide

DEEP = 100_000
HUGE = "9" * 400
PARSERS = 5000  # digits that Python refuses to make a number of
NUMBERS = {"400 digits": HUGE, "5000 digits": "9" * PARSERS, "1e15": "1e15", "1e999": "1e999", "NaN": "NaN"}


def ring(number: str) -> str:
    return f"[[{number}, 2], [9, 2], [9, 9]]"


def geojson(number: str) -> str:
    return f'{{"type": "Feature", "geometry": {{"type": "Polygon", "coordinates": [{ring(number)}]}}}}'


def cells(number: str) -> str:
    return f'{{"cells": [{{"bbox": [[1, 1], [2, 2]], "centroid": [1, 1], "contour": {ring(number)}, "type": 1}}]}}'


def hovernet(number: str) -> str:
    return f'{{"nuc": {{"1": {{"contour": {ring(number)}, "type": 1}}}}}}'


def labelme(number: str) -> str:
    return f'{{"shapes": [{{"label": "a", "points": {ring(number)}, "shape_type": "polygon"}}]}}'


def coco(number: str) -> str:
    head = '"images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}], "categories": []'
    shape = f"[[{number}, 2, 9, 2, 9, 9]]"
    return f'{{{head}, "annotations": [{{"image_id": 1, "category_id": 1, "segmentation": {shape}}}]}}'


def imagescope(number: str) -> str:
    points = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((number, 2), (9, 2), (9, 9)))
    return f"<A><Annotation><Regions><Region><Vertices>{points}</Vertices></Region></Regions></Annotation></A>"


LAYOUTS = {f.__name__: f for f in (geojson, cells, hovernet, labelme, coco, imagescope)}


def npy(array: np.ndarray, **head: object) -> bytes:
    """Return a file whose head claims something else than follows."""
    stream = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape} | head
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue() + array.tobytes()


def archive(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name.replace("_npy", ".npy").replace("_roi", ".roi"), data)
    return stream.getvalue()


def matlab(**variables: np.ndarray) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables, do_compression=True)
    return stream.getvalue()


def hdf5(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("inst_map", shape=shape, dtype="i4", chunks=(64, 64))
    return stream.getvalue()


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)


def relabelled(data: bytes, size: int) -> bytes:
    """Return an archive of one entry that says to be of another size."""
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<I", size) + data[at + 28 :]


SMALL = np.ones((4, 4), np.int32)
LARGE = np.zeros((1500, 1500), np.int32)
MAPS = {
    "npz, head claims more": ("a.npz", archive(inst_map_npy=npy(SMALL, shape=(10**6, 10**6)))),
    "npz, head claims less": ("a.npz", archive(inst_map_npy=npy(SMALL, shape=(2, 2)))),
    "npz, negative shape": ("a.npz", archive(inst_map_npy=npy(SMALL, shape=(-4, -4)))),
    "npz, no archive": ("a.npz", b"PK\3\4" + b"x" * 100),
    "npz, expands": ("a.npz", archive(inst_map_npy=npy(LARGE))),
    "npz, states too little": ("a.npz", relabelled(archive(inst_map_npy=npy(LARGE)), 200)),
    "npy, head claims more": ("a.npy", npy(SMALL, shape=(10**6, 10**6))),
    "npy, nothing many times": ("a.npy", npy(SMALL[:0], shape=(10**12, 0, 300))),
    "npy, negative shape": ("a.npy", npy(SMALL, shape=(-4, 4))),
    "mat, expands": ("a.mat", matlab(inst_map=LARGE)),
    "mat 7.3, claims 10^12": ("a.mat", hdf5((10**6, 10**6))),
    "png of 16 bits, claims 10^18": ("a.png", png(2**30, 2**30)),
    "imagej, expands": ("a.zip", archive(one_roi=b"Iout" + bytes(10**7))),
    "coco, a mask of 10^12": (
        "a.json",
        b'[{"image_id": 1, "category_id": 1, "segmentation": {"size": [1000000, 1000000], "counts": [1]}}]',
    ),
    "coco, runs without end": (
        "a.json",
        b'[{"image_id": 1, "category_id": 1, "segmentation": {"size": [4, 4], "counts": "%s0"}}]' % (b"o" * 50),
    ),
    "cells, a type of 10^9": ("a.json", b'{"type_map": {"1000000000": "a"}, "cells": []}'),
    "gz, expands": ("a.json.gz", gzip.compress(b"[" + b" " * 10**7 + b"]")),
    "json, too large": ("a.json", b"[" + b" " * 10**7 + b"]"),
    "json, too deep": ("a.json", b"[" * DEEP),
    "json, keys too deep": ("a.json", b'{"a":' * DEEP),
}


def tiff(path: Path, tag: int, value: int) -> Path:
    """Write a tiled TIFF of which one number is another."""
    tifffile.imwrite(path, np.zeros((40, 40, 3), np.uint8), photometric="rgb", tile=(16, 16))
    with tifffile.TiffFile(path) as file:
        found = file.pages[0].tags[tag]
    data = bytearray(path.read_bytes())
    struct.pack_into({3: "<H", 4: "<I"}[int(found.dtype)], data, found.valueoffset, value)
    path.write_bytes(data)
    return path


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.005")


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_numbers_that_no_image_has_are_an_error_of_their_file(tmp_path, layout, number):
    path = tmp_path / ("a.xml" if layout is imagescope else "a.json")
    path.write_text(layout("1"))
    assert len(detections.read_nuclei(path).outlines) == 1
    path.write_text(layout(number))
    with pytest.raises(DataError, match=r"a\.(json|xml)") as caught:
        detections.read_nuclei(path)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    if layout in (geojson, cells):
        with pytest.raises(DataError, match=r"a\.json"):
            read_nuclei(path)
    if layout is geojson:
        with pytest.raises(DataError, match=r"a\.json"):
            read_region(path)


@pytest.mark.parametrize(("name", "content"), MAPS.values(), ids=MAPS)
def test_what_a_file_claims_is_checked_before_memory_is_taken(tmp_path, small_limit, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        detections.read_nuclei(path, image="1" if b"image_id" in content else None)
    assert name in str(caught.value) or "mask" in str(caught.value)
    assert detections.images_in(path) == ()


def test_the_limit_can_be_raised(tmp_path, small_limit):
    (tmp_path / "a.npz").write_bytes(archive(inst_map_npy=npy(LARGE)))
    (tmp_path / "a.mat").write_bytes(matlab(inst_map=LARGE))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(cells("1").encode() + b" " * 10**7))
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match=rf"expands to .* MB, allowed are 5.0 MB; .*{VARIABLE}=1"):
            detections.read_nuclei(path)
        with max_expanded(1):
            assert detections.read_nuclei(path).path == path
    assert expanded_limit() == 5_000_000


def test_the_command_line_has_an_option_for_it(tmp_path, capsys):
    source, target = tmp_path / "a.geojson.gz", str(tmp_path / "a.csv")
    source.write_bytes(gzip.compress(geojson("1").encode() + b" " * 10**6))
    arguments = ["convert-nuclei", str(source), target]
    assert run_command([*arguments, "--max-expanded-gb", "0.0005"]) == 1
    assert "allow --max-expanded-gb 1 or set" in capsys.readouterr().err
    assert VARIABLE not in os.environ
    assert run_command(arguments) == 0


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much"])
def test_a_limit_that_is_none_is_told(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=VARIABLE):
        expanded_limit()


def test_text_in_properties_is_not_parsed_without_end(tmp_path):
    feature = json.loads(geojson("1"))
    for text in ("[" * DEEP, "[" + "-" * 9000 + "1]", "{" + "'a':{" * 90, f"[{'9' * PARSERS}]"):
        (tmp_path / "a.json").write_text(json.dumps(feature | {"properties": {"measurements": text, "nucleus": text}}))
        with suppress(DataError):
            assert len(read_nuclei(tmp_path / "a.json")) == 1


@pytest.mark.parametrize(("tag", "value"), [(322, 0), (323, 0), (256, 0), (257, 0), (277, 0), (258, 0)])
def test_a_tiff_whose_numbers_cannot_be_is_an_error(tmp_path, tag, value):
    path = tiff(tmp_path / "a.tif", tag, value)
    for read in (open_slide, read_image):
        with pytest.raises(ImageError, match=r"a\.tif"):
            read(path)
    with pytest.raises(DataError, match=r"a\.tif"):
        detections.read_nuclei(path)


def star(corners: int) -> list[list[float]]:
    angle = np.linspace(0, 2 * np.pi, corners)
    return (3e4 + 2e4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).tolist()


def test_a_region_of_very_many_corners_is_simplified_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "MAX_CORNERS", 2000)
    path = tmp_path / "roi.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [star(20_001)]}))
    region, (note,) = read_region(path)
    assert "corners and were simplified to" in note
    assert "1 px at most" in note
    assert region.area_px == pytest.approx(np.pi * 4e8, rel=1e-4)
    whole = Region(shapely.Polygon(star(20_001)))
    assert region.geometry.boundary.hausdorff_distance(whole.geometry.boundary) <= 1


@pytest.mark.parametrize(
    ("corners", "words"), [(200, "cross themselves"), (1400, "cross"), (2100, "at most 2,000 are")]
)
def test_a_region_that_crosses_itself_without_end_is_refused(tmp_path, monkeypatch, corners, words):
    for module in (regions, geometry.regions):
        monkeypatch.setattr(module, "MAX_CORNERS", 2000)
    points = np.random.default_rng(0).random((corners, 2)) * 4e4
    (tmp_path / "roi.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [points.tolist()]}))
    with pytest.raises(DataError, match=rf"roi\.geojson.*{words}"):
        read_region(tmp_path / "roi.geojson")
