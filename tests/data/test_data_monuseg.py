import os
import time

import numpy as np
import pytest
import shapely
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvit.cli import main as cellvit
from cellvit.data import FolderDataset
from cellvit.data.datasets.monuseg import fill_outlines, prepare_monuseg, read_outlines
from cellvit.errors import ConfigError, DataError, OutputError

SQUARE = [(2, 3), (6, 3), (6, 5), (2, 5)]  # x 2..6, y 3..5
OTHER = [(5, 4), (9, 4), (9, 9), (5, 9)]


@pytest.fixture(autouse=True)
def do_not_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr("cellvit.io.atomic._sync", lambda path: None)


def xml(*regions, head='<?xml version="1.0"?>'):
    """Return outlines as Aperio ImageScope writes them, with a second annotation that holds none."""
    text = ""
    for i, points in enumerate(regions):
        vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
        text += f'<Region Id="{i + 1}"><Attributes/><Vertices>{vertices}</Vertices></Region>'
    second = "<Annotation Id='2'><Regions><RegionAttributeHeaders/></Regions></Annotation>"
    first = f'<Annotation Id="1"><Regions><RegionAttributeHeaders/>{text}</Regions></Annotation>'
    return f'{head}<Annotations MicronsPerPixel="0.252">{first}{second}</Annotations>'


def add(folder, stem, outlines, *, height=12, width=16, images="Tissue Images", annotations="Annotations"):
    """Write one pair and return the pixels."""
    pixels = np.random.default_rng(len(stem)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for name, suffix, content in ((images, ".tif", None), (annotations, ".xml", outlines)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        path = folder / name / f"{stem}{suffix}"
        tifffile.imwrite(path, pixels) if content is None else path.write_text(content)
    return pixels


@pytest.mark.parametrize("places", [("Tissue Images", "Annotations"), ("", ""), ("a/b", "a")])
def test_images_and_maps_by_hand(tmp_path, places):
    pixels = add(tmp_path, "TCGA-1.a", xml(SQUARE, OTHER), images=places[0], annotations=places[1])
    add(tmp_path, "TCGA-2", xml(OTHER), images=places[0], annotations=places[1])
    made = prepare_monuseg(tmp_path)
    assert [(one.name, one.nuclei, one.dropped, one.occluded, one.kept) for one in made] == [
        ("TCGA-1.a", 2, 0, 0, False),
        ("TCGA-2", 1, 0, 0, False),
    ]
    expected = np.zeros((12, 16), int)
    expected[3:6, 2:7] = 1  # rows are Y, columns X
    expected[4:10, 5:10] = 2
    with np.load(tmp_path / "prepared" / "labels" / "TCGA-1.a.npz") as label:
        np.testing.assert_array_equal(label["inst_map"], expected)
        assert label["inst_map"].dtype == np.uint16
    item = FolderDataset(tmp_path / "prepared", split=None)[0]
    assert item["name"] == "prepared/TCGA-1.a"
    np.testing.assert_array_equal((item["image"] * 255).round().permute(1, 2, 0), pixels)
    assert torch.equal(item["instance_map"], torch.from_numpy(expected))


def test_hidden_and_too_short_outlines_are_counted(tmp_path):
    inner = [(3, 4), (4, 4), (4, 5)]
    around = [(1, 2), (7, 2), (7, 6), (1, 6)]
    add(tmp_path, "a", xml(inner, [(1, 1), (2, 2)], around, [], OTHER))
    (one,) = prepare_monuseg(tmp_path)
    assert (one.nuclei, one.dropped, one.occluded) == (2, 2, 1)
    with np.load(tmp_path / "prepared" / "labels" / "a.npz") as label:
        assert np.unique(label["inst_map"]).tolist() == [0, 1, 2]
        assert label["inst_map"][4, 3] == 1


def test_every_annotation_counts_and_what_is_not_kept_is_told(tmp_path, capsys):
    def layer(name, *regions, excluded=0):
        vertices = ["".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points) for points in regions]
        text = "".join(f'<Region NegativeROA="{excluded}"><Vertices>{v}</Vertices></Region>' for v in vertices)
        return f'<Annotation><Attributes><Attribute Name="{name}"/></Attributes><Regions>{text}</Regions></Annotation>'

    layers = layer("Epithelial", SQUARE), layer("Neutrophil", OTHER), layer("", [(0, 0), (9, 0), (9, 9)], excluded=1)
    add(tmp_path, "a", f"<Annotations>{''.join(layers)}</Annotations>")
    (one,) = prepare_monuseg(tmp_path)
    assert (one.nuclei, one.dropped, one.excluded, one.layers) == (2, 0, 1, ("Epithelial", "Neutrophil"))
    assert cellvit(["prepare", "monuseg", str(tmp_path), "--out", str(tmp_path / "new")]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "1 regions marked as excluded" in told
    assert "Epithelial, Neutrophil were taken together; types are not kept" in told


def test_outlines_may_leave_the_image_a_little(tmp_path):
    add(tmp_path, "a", xml([(-2.6, -1), (3, -1), (3, 2), (-2.6, 2)], [(14, 10), (20, 10), (20, 14), (14, 14)]))
    (one,) = prepare_monuseg(tmp_path)
    expected = np.zeros((12, 16), int)
    expected[:3, :4], expected[10:, 14:] = 1, 2
    with np.load(tmp_path / "prepared" / "labels" / "a.npz") as label:
        np.testing.assert_array_equal(label["inst_map"], expected)
    assert one.nuclei == 2


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 29)), min_size=3, max_size=7, unique=True))
@settings(max_examples=200, deadline=None)
def test_filled_pixels_are_those_in_the_polygon_and_on_its_outline(points):
    hull = shapely.MultiPoint(points).convex_hull
    if hull.geom_type != "Polygon":
        return
    filled = fill_outlines([np.array(hull.exterior.coords)[:-1].astype(float)], (30, 20)) == 1
    cols, rows = np.meshgrid(np.arange(20), np.arange(30))
    distance = shapely.distance(hull, shapely.points(cols, rows))
    assert filled[distance == 0].all()
    assert distance[filled].max() <= 0.75  # half a pixel aside of the outline


def test_real_points_are_rounded_to_pixels(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(xml([(1.4, 2.6), (5.5, 2.6), (5.2, 7.0)]))
    (outline,) = read_outlines(path)
    assert outline.tolist() == [[1.4, 2.6], [5.5, 2.6], [5.2, 7.0]]
    rows, cols = np.nonzero(fill_outlines([outline], (12, 16)))
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (3, 7, 1, 6)


def line_of(root):
    """Return the only line of the error that a preparation ends with."""
    with pytest.raises(DataError) as caught:
        prepare_monuseg(root)
    (line,) = str(caught.value).splitlines()[1:]
    return line


BROKEN = {
    "no XML": ("hello", "cannot be read"),
    "empty file": ("", "cannot be read"),
    "cut": (xml(SQUARE)[:-30], "cannot be read"),
    "document type": (
        xml(SQUARE, head='<!DOCTYPE x [<!ENTITY a "b">]>'),
        "declares the document type 'x', which is not allowed",
    ),
    "no annotation": ("<Annotations></Annotations>", "hold no Annotation"),
    "no region": (xml(), "hold no nucleus"),
    "only short ones": (xml([(1, 1), (2, 2)]), "hold no nucleus"),
    "text as number": (xml(SQUARE, [("x", 1), (2, 2), (3, 3)]), "region 2 has a point that is none"),
    "not finite": (xml(SQUARE, [("nan", 1), (2, 2), (3, 3)]), "region 2 has a point that is not finite"),
    "no X": (xml(SQUARE).replace('X="6"', 'x="6"'), "region 1 has a point that is none"),
    "below": (xml(SQUARE, [(1, 13), (4, 13), (4, 15)]), "region 2 lies outside the image of 16x12 px"),
    "left": (xml([(-5, 3), (-1, 3), (-1, 5)], SQUARE), "region 1 lies outside"),
    "far": (xml(SQUARE, [(1, 1), (1e12, 1), (1, 5)]), "region 2 lies outside"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_outlines_that_cannot_be_used(tmp_path, case):
    content, expected = BROKEN[case]
    add(tmp_path, "bad", content)
    add(tmp_path, "good", xml(SQUARE))
    line = line_of(tmp_path)
    assert expected in line
    assert "bad.xml" in line
    assert sorted(p.name for p in (tmp_path / "prepared").rglob("*.*")) == ["good.npz", "good.png"]


def test_files_without_a_partner_and_others_are_named_at_once(tmp_path):
    for stem in ("a", "b", "c", "d"):
        add(tmp_path, stem, xml(SQUARE))
    (tmp_path / "Annotations" / "a.xml").unlink()
    (tmp_path / "Tissue Images" / "b.tif").unlink()
    (tmp_path / "Tissue Images" / "c.tif").write_bytes(b"II*\0")
    add(tmp_path, "d", xml(SQUARE), images="again", annotations="Annotations")
    with pytest.raises(DataError) as caught:
        prepare_monuseg(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 4
    for part in (
        "a.tif' has no outlines",
        "b.xml' has no image",
        "image 'd' is there 2 times",
        "c.tif' is damaged or cut short",
    ):
        assert sum(part in line for line in lines) == 1


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        prepare_monuseg(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no \.tif"):
        prepare_monuseg(tmp_path)


def test_results_do_not_replace_the_source(tmp_path):
    add(tmp_path, "a", xml(SQUARE), images="images", annotations="labels")
    with pytest.raises(ConfigError, match="holds the source"):
        prepare_monuseg(tmp_path, tmp_path)
    assert len(prepare_monuseg(tmp_path)) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another out="):
        prepare_monuseg(tmp_path, tmp_path / "file")


def test_too_many_outlines(tmp_path):
    add(tmp_path, "a", xml(*[SQUARE] * 65536))
    assert "hold 65536 nuclei" in line_of(tmp_path)


def test_finished_images_are_kept_unless_a_source_is_newer(tmp_path):
    for stem in ("a", "b", "c", "d"):
        add(tmp_path, stem, xml(SQUARE))
    prepare_monuseg(tmp_path)
    out = tmp_path / "prepared"
    before = {p: p.read_bytes() for p in sorted(out.rglob("*.*"))}
    assert all(one.kept for one in prepare_monuseg(tmp_path))
    later = time.time_ns() + 10**9
    os.utime(tmp_path / "Annotations" / "a.xml", ns=(later, later))
    (out / "labels" / "b.npz").unlink()
    (out / "labels" / "c.npz").write_bytes(b"PK\x03\x04")
    made = prepare_monuseg(tmp_path)
    assert [one.kept for one in made] == [False, False, False, True]
    assert {p: p.read_bytes() for p in sorted(out.rglob("*.*"))} == before


def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(what, done, total):
        if done == 2:
            raise StoppedError

    for stem in ("a", "b", "c"):
        add(tmp_path, stem, xml(SQUARE, OTHER))
    with pytest.raises(StoppedError):
        prepare_monuseg(tmp_path, tmp_path / "stopped", report=stop)
    assert [one.kept for one in prepare_monuseg(tmp_path, tmp_path / "stopped")] == [True, True, False]
    (tmp_path / "whole").mkdir()
    prepare_monuseg(tmp_path, tmp_path / "whole")
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(tmp_path / "whole")).read_bytes()
