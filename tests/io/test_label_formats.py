"""Labels of other tools: what is read of each kind, what is said of the rest, and what is refused."""

import gzip
import json
import sys
import zipfile
from functools import partial

import numpy as np
import pytest
import scipy.io
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cellvit.classes import PANNUKE
from cellvit.errors import ConfigError, DataError
from cellvit.io.coco import decoded_runs
from cellvit.io.detections import images_in, read_nuclei
from cellvit.io.label_maps import is_mask
from cellvit.io.labels import read_label

SHAPE = (40, 70)
CORNERS = [(3, 4), (3, 30), (20, 4), (25, 50)]  # row and column of four squares of 8 px


def squares(values=(1, 2, 3, 4)):
    labels = np.zeros(SHAPE, np.int64)
    for (row, col), value in zip(CORNERS, values, strict=True):
        labels[row : row + 8, col : col + 8] = value
    return labels


def ring(row, col, size=7):
    return [[col, row], [col + size, row], [col + size, row + size], [col, row + size]]


def said(stated):
    return {note.what: note.count for note in stated.notes}


def write_json(path, data):
    path.write_text(json.dumps(data))
    return path


def same_nuclei(instances, expected):
    """Return whether two maps show the same nuclei, whatever their numbers."""
    pairs = np.unique(np.stack([instances.ravel(), expected.ravel()]), axis=1)
    return len(pairs.T) == len(np.unique(expected)) == len(np.unique(instances)) and (0, 0) in set(map(tuple, pairs.T))


# masks


def write_png(array, path):
    Image.fromarray(array).save(path)


MASKS = {
    "255": lambda m: (m * 255).astype(np.uint8),
    "1": lambda m: m.astype(np.uint8),
    "7": lambda m: (m * 7).astype(np.uint16),
    "65535": lambda m: (m * 65535).astype(np.uint16),
    "flags": lambda m: m,
    "grey as RGB": lambda m: np.repeat((m * 255).astype(np.uint8)[..., None], 3, axis=2),
    "opaque RGBA": lambda m: np.dstack([*[(m * 255).astype(np.uint8)] * 3, np.full(SHAPE, 255, np.uint8)]),
    "red on black": lambda m: np.dstack([(m * 255).astype(np.uint8), *[np.zeros(SHAPE, np.uint8)] * 2]),
}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".npz"])
@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_becomes_its_pieces_and_that_is_said(tmp_path, suffix, kind):
    array, path = MASKS[kind](squares() > 0), tmp_path / f"a{suffix}"
    write = {
        ".png": write_png,
        ".tif": lambda a, p: tifffile.imwrite(p, a, photometric="rgb" if a.ndim == 3 else "minisblack"),
        ".npy": lambda a, p: np.save(p, a),
        ".npz": lambda a, p: np.savez(p, inst_map=a),
    }
    write[suffix](array, path)
    stated = read_nuclei(path)
    assert same_nuclei(stated.instance_map, squares())
    (note,) = stated.notes
    assert note.count == 4
    assert "mask" in note.what
    with pytest.raises(DataError, match=r"is a mask: .*give one number per nucleus"):
        read_label(path)


def test_one_nucleus_is_no_mask_and_a_speck_beside_it_changes_nothing():
    one = np.zeros(SHAPE, np.uint8)
    one[3:12, 3:12] = 1
    assert not is_mask(one)
    one[20, 20] = 1
    assert not is_mask(one)
    assert is_mask(one * np.uint8(255))
    assert is_mask(one, flags=True)
    assert not is_mask(np.zeros(SHAPE, np.uint8))
    one[20:29, 20:29] = 1
    assert is_mask(one)
    assert not is_mask(one, pieces=3)
    assert not is_mask(squares())


def test_types_follow_the_pieces_of_a_mask(tmp_path):
    np.savez(tmp_path / "a.npz", inst_map=(squares() > 0).astype(int), inst_type=[0, 3])
    assert read_nuclei(tmp_path / "a.npz").types.tolist() == [0, 3, 3, 3, 3]


def border():
    """Return a map of insides (128) and borders (255)."""
    array = (squares() > 0).astype(np.uint8) * 255
    for row, col in CORNERS:
        array[row + 1 : row + 7, col + 1 : col + 7] = 128
    return array


def smooth():
    mask = Image.fromarray((squares() > 0).astype(np.uint8) * 255)
    return np.asarray(mask.resize((210, 120), Image.Resampling.BILINEAR))


def types_by_pixel():
    tiled = np.tile(squares((1, 2, 2, 1)), (1, 3))
    return tiled.astype(np.uint8)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (border(), "no map of nuclei: its 2 labels"),
        (smooth(), "no map of nuclei"),
        (types_by_pixel(), r"no map of nuclei: its 2 labels \(1, 2\) lie in 12"),
        (np.where(squares() > 0, 0, 255).astype(np.uint8), "seems inverted"),
        (np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8), "colours do not say"),
        (squares() - 1, "holds -1"),
        ((squares() - 1).astype(np.uint32), "-1 without its sign"),
        (squares() / 2, "whole numbers"),
        (np.where(squares() > 0, 1, np.nan), "whole numbers"),
    ],
    ids=["border", "smooth", "types", "inverted", "photo", "negative", "unsigned", "halves", "nan"],
)
def test_what_is_no_map_of_nuclei_is_refused(tmp_path, array, text):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=text) as caught:
        read_nuclei(tmp_path / "a.npy")
    assert "a.npy" in str(caught.value)


@pytest.mark.parametrize("factor", [1, 100, 70_000, 2**40])
@pytest.mark.parametrize("kind", [np.int64, np.float64, np.uint64])
def test_labels_of_any_size_and_kind(tmp_path, factor, kind):
    labels = (squares((1, 3, 4, 9)) * factor).astype(kind)
    np.save(tmp_path / "a.npy", labels)
    stated = read_nuclei(tmp_path / "a.npy")
    assert same_nuclei(stated.instance_map, labels)
    assert stated.instance_map.max() < 2**24
    assert stated.notes == ()


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int32, np.float32])
def test_label_tiffs(tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", squares((1, 2, 300, 4)).astype(kind))
    np.testing.assert_array_equal(read_nuclei(tmp_path / "a.tif").instance_map, squares((1, 2, 300, 4)))
    tifffile.imwrite(tmp_path / "b.tif", squares()[None].astype(kind))
    assert read_nuclei(tmp_path / "b.tif").instance_map.shape == SHAPE


# .mat


def mat(path, **variables):
    scipy.io.savemat(path, {name.removesuffix("_"): value for name, value in variables.items()})
    return read_nuclei(path)


def test_lizard_types_follow_their_ids(tmp_path):
    labels = squares((2, 5, 7, 90_000))
    stated = mat(tmp_path / "a.mat", inst_map=labels, id=[[7], [90_000], [2], [5]], class_=[[3], [6], [1], [0]])
    assert {i: stated.types[i] for i in (2, 5, 7, 90_000)} == {2: 1, 5: 0, 7: 3, 90_000: 6}
    assert stated.notes == ()
    labels, types = read_label(tmp_path / "a.mat")
    assert types[[0, 2, 5, 7]].tolist() == [0, 1, -1, 3]  # training calls an unknown type -1


def test_rows_and_labels_that_have_no_other_are_counted(tmp_path):
    ids, kinds = [[1], [2], [3], [77], [0], [-4]], [[1], [2], [3], [4], [5], [6]]
    stated = mat(tmp_path / "a.mat", inst_map=squares(), id=ids, class_=kinds, extra=[[1]], bbox=np.zeros((6, 4)))
    assert stated.types.tolist() == [0, 1, 2, 3, 0]
    told = " | ".join(f"{count} {what}" for what, count in said(stated).items())
    assert "1 labels have no row" in told
    assert "1 rows of types belong to labels that do not occur" in told
    assert "2 rows of types have an id below 1" in told
    assert "1 variables of the file were not used: extra" in told


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"id": [[1], [2]], "class_": [[1], [2], [3]]}, "3 entries in 'class' but 2 in 'id'"),
        ({"id": [[1], [2], [2], [4]], "class_": [[1], [2], [3], [3]]}, "lists 2 several times in 'id'"),
        ({"inst_type": [[1.5], [1], [1], [1]]}, "'inst_type' of float64, not all of it whole"),
        ({"inst_type": [[1], [1]]}, "label 4 but 2 types"),
        ({"type_map": np.ones((3, 3))}, r"type_map of \(3, 3\)"),
    ],
)
def test_types_that_do_not_fit_are_refused(tmp_path, variables, text):
    with pytest.raises(DataError, match=text):
        mat(tmp_path / "a.mat", inst_map=squares(), **variables)


def test_consep_and_types_by_pixel_or_in_words(tmp_path):
    centres = np.zeros((4, 2))
    stated = mat(
        tmp_path / "a.mat", inst_map=squares().astype(float), inst_type=[[4], [1], [2], [3]], inst_centroid=centres
    )
    assert stated.types.tolist() == [0, 4, 1, 2, 3]
    indexed = mat(tmp_path / "b.mat", inst_map=squares(), inst_type=[[0], [4], [1], [2], [3]])
    assert indexed.types.tolist() == [0, 4, 1, 2, 3]
    by_pixel = mat(tmp_path / "c.mat", inst_map=squares((1, 2, 3, 8)), type_map=squares((4, 1, 2, 3)))
    assert by_pixel.types[[1, 2, 3, 8]].tolist() == [4, 1, 2, 3]
    words = np.array(["tumor", "lymphocyte", "tumor", "background"], dtype=object)[:, None]
    named = mat(tmp_path / "d.mat", inst_map=squares(), inst_type=words)
    assert (named.types.tolist(), named.names) == ([0, 1, 2, 1, 0], ("Background", "tumor", "lymphocyte"))
    with pytest.raises(DataError, match="give numbers from 1, which mean the same in every file"):
        read_label(tmp_path / "d.mat")


def test_matlab_7_3_has_the_axes_the_other_way_round(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["inst_map"] = squares().T.astype(float)
        file["inst_type"] = np.array([[4.0, 1, 2, 3]])
        file.create_group("#refs#")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, written by a test".ljust(512))
    stated = read_nuclei(path)
    np.testing.assert_array_equal(stated.instance_map, squares())
    assert stated.types.tolist() == [0, 4, 1, 2, 3]
    assert stated.notes == ()


def test_what_to_install_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0001.roi", b"Iout")
    for package, name in (("h5py", "a.mat"), ("roifile", "a.zip")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=f"{name}' .*pip install {package}"):
            read_nuclei(tmp_path / name)


# channels


def test_pannuke_channels(tmp_path):
    masks = np.zeros((2, *SHAPE, 6))
    masks[0, ..., 0] = squares((1, 0, 0, 0))
    masks[0, ..., 4] = squares((0, 1, 2, 0))  # the same id in another channel is another nucleus
    masks[0, 4, 4, 2] = 9
    masks[..., 5] = masks[..., :5].sum(axis=-1) == 0
    np.save(tmp_path / "a.npy", masks[0])
    stated = read_nuclei(tmp_path / "a.npy")
    assert sorted(stated.types[1:]) == [1, 3, 5, 5]
    assert stated.names == PANNUKE.names
    assert list(said(stated).values()) == [1]  # one pixel of two types
    np.save(tmp_path / "all.npy", masks)
    assert images_in(tmp_path / "all.npy") == ("0", "1")
    assert len(read_nuclei(tmp_path / "all.npy", image="0").types) == 5
    assert not read_nuclei(tmp_path / "all.npy", image="1").instance_map.any()
    with pytest.raises(DataError, match="holds 2 images"):
        read_nuclei(tmp_path / "all.npy")


def test_a_stack_of_maps_is_not_channels(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([squares(), squares((4, 3, 2, 1)), squares((1, 0, 0, 2))] * 2))
    assert images_in(tmp_path / "a.npy") == ("0", "1", "2", "3", "4", "5")
    np.testing.assert_array_equal(read_nuclei(tmp_path / "a.npy", image="1").instance_map, squares((4, 3, 2, 1)))


def test_channels_of_ids_and_types(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([squares(), squares((3, 1, 2, 6))], axis=-1).astype(np.uint16))
    assert read_nuclei(tmp_path / "a.npy").types.tolist() == [0, 3, 1, 2, 6]


# JSON


def test_hovernet_json(tmp_path):
    nuclei = {
        "1": {"contour": ring(3, 4), "type": 2, "type_prob": 0.9, "centroid": [7, 7], "bbox": [[3, 4], [11, 12]]},
        "7": {"contour": ring(3, 30), "type": 0},
        "8": {"contour": [[1, 1], [2, 2]], "type": 1},
    }
    stated = read_nuclei(write_json(tmp_path / "a.json", {"mag": 40, "nuc": nuclei}))
    assert (stated.types.tolist(), stated.names) == ([0, 2, 0], None)
    assert stated.outlines.contour_points[:2].tolist() == [[4, 3], [11, 3]]
    told = said(stated)
    assert told["outlines of fewer than three points were left out"] == 1
    assert any("magnification 40" in what for what in told)
    bare = {"1": {"contour": ring(1, 1), "type": None}}
    assert read_nuclei(write_json(tmp_path / "b.json", {"nuc": bare})).types is None
    assert len(read_nuclei(write_json(tmp_path / "c.json", {"mag": 40, "nuc": {}})).outlines) == 0
    for wrong in ({"centroid": [1, 1]}, {"contour": [1, 2, 3, 4]}, {"contour": [[1], [2]]}, 5):
        with pytest.raises(DataError, match=r"d\.json' is not in the layout of HoVer-Net"):
            read_nuclei(write_json(tmp_path / "d.json", {"nuc": {"1": wrong}}))


def coco(*annotations, images=(("a.png", 1),), categories=((0, "tumor"), (9, "lymphocyte"))):
    return {
        "images": [{"id": i, "file_name": name, "height": SHAPE[0], "width": SHAPE[1]} for name, i in images],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 0, "iscrowd": 0, **a} for n, a in enumerate(annotations)
        ],
    }


def polygon(*args):
    return np.ravel(ring(*args)).tolist()


def test_coco_polygons(tmp_path):
    data = coco(
        {"segmentation": [polygon(3, 4)]},
        {"segmentation": [polygon(3, 30)], "category_id": 9},
        {"segmentation": [polygon(20, 4)], "category_id": 5},
        {"segmentation": [], "bbox": [1, 1, 2, 2]},
        {"segmentation": {"size": [1, 1], "counts": [1]}, "iscrowd": 1},
        {"segmentation": [polygon(25, 50)], "image_id": 2},
        images=(("folder/a.png", 1), ("folder\\b.png", 2)),
    )
    stated = read_nuclei(write_json(tmp_path / "a.json", data))
    assert (stated.types.tolist(), stated.names) == ([0, 1, 2, 0], ("Background", "tumor", "lymphocyte"))
    assert sorted(said(stated).values()) == [1, 1, 1]  # no polygon, a crowd, an unknown category
    assert len(read_nuclei(tmp_path / "a.json", image="b").outlines) == 1
    assert images_in(tmp_path / "a.json") == ("a", "b")
    (tmp_path / "a.json").rename(tmp_path / "c.json")
    with pytest.raises(DataError, match=r"holds 2 images \(a, b\), none of which is called 'c'"):
        read_nuclei(tmp_path / "c.json")
    one = coco({"segmentation": [polygon(3, 4)]})
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps(one).encode()))
    assert len(read_nuclei(tmp_path / "d.json.gz").outlines) == 1  # of one image the name does not matter


def runs(mask):
    """Return the runs of a mask, slowly."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def packed(counts):
    """Return runs as COCO's text, one digit of 5 bits at a time."""
    text = ""
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
    return text


@given(st.integers(0, 10_000))
def test_runs_are_decoded(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 40, 2))) < rng.choice([0, 0.02, 0.5, 0.98, 1])
    size = list(mask.shape)
    for counts in (runs(mask), packed(runs(mask)), packed(runs(mask)).encode()):
        pixels, shape = decoded_runs({"size": size, "counts": counts})
        np.testing.assert_array_equal(np.isin(np.arange(mask.size), pixels).reshape(shape[::-1]).T, mask)


def test_the_text_of_pycocotools_is_decoded():
    mask = pytest.importorskip("pycocotools.mask")
    array = np.asfortranarray(squares() > 0).astype(np.uint8)
    pixels, _ = decoded_runs(mask.encode(np.asfortranarray(array)))
    assert pixels.tolist() == np.flatnonzero(array.T.ravel()).tolist()


@pytest.mark.parametrize("form", [runs, lambda m: packed(runs(m))])
def test_coco_masks_and_nuclei_of_several_polygons(tmp_path, form):
    ringed = squares((1, 0, 0, 0)) > 0
    ringed[6:8, 6:8] = False  # a hole, which outlines would fill
    data = coco(
        {"segmentation": {"size": list(SHAPE), "counts": form(ringed)}},
        {"segmentation": [polygon(3, 30), polygon(20, 4), [1, 1, 2, 2]], "category_id": 9},
        {"segmentation": [polygon(25, 50, 2)]},
        {"segmentation": [polygon(25, 50)]},
    )
    stated = read_nuclei(write_json(tmp_path / "a.json", data))
    expected = squares((1, 2, 2, 4))
    expected[6:8, 6:8] = 0
    np.testing.assert_array_equal(stated.instance_map, expected)
    assert stated.types.tolist() == [0, 1, 2, 1, 1]
    assert sorted(said(stated).values()) == [1, 1]  # a polygon of two points, a nucleus under another


def test_coco_that_cannot_be_used_is_refused(tmp_path):
    wrong = {
        "short": coco({"segmentation": {"size": list(SHAPE), "counts": [3, 4]}}),
        "text": coco({"segmentation": {"size": list(SHAPE), "counts": "~~"}}),
        "size": coco({"segmentation": {"size": [1, 2], "counts": [2]}}),
        "image": {"images": [{"file_name": "a.png"}], "annotations": []},
        "odd": coco({"segmentation": [[1, 2, 3]]}),
    }
    for name, data in wrong.items():
        with pytest.raises(DataError, match=f"{name}.json"):
            read_nuclei(write_json(tmp_path / f"{name}.json", data))
    twice = coco(images=(("x/a.png", 1), ("y/a.png", 2)))
    with pytest.raises(DataError, match="several images called 'a'"):
        images_in(write_json(tmp_path / "twice.json", twice))


def test_coco_results_are_numbered(tmp_path):
    results = [{"image_id": 5, "category_id": 2, "segmentation": [polygon(3, 4)], "score": 0.9}]
    stated = read_nuclei(write_json(tmp_path / "a.json", results))
    assert (stated.types.tolist(), stated.names) == ([0, 2], None)


def test_labelme(tmp_path):
    shapes = [
        {"label": "tumor", "points": ring(3, 4), "shape_type": "polygon", "group_id": None},
        {"label": "stroma", "points": [[30, 3], [37, 10]], "shape_type": "rectangle", "group_id": 4},
        {"label": "Tumor", "points": [[20, 20], [20, 24]], "shape_type": "circle"},
        {"label": "tumor", "points": [[1, 1]], "shape_type": "point"},
        {"label": "tumor", "points": [[1, 1]], "shape_type": "point"},
        {"label": "edge", "points": [[1, 1], [2, 2]], "shape_type": "line"},
    ]
    data = {"version": "5.0", "shapes": shapes, "imagePath": "a.png", "imageHeight": 40, "imageWidth": 70}
    stated = read_nuclei(write_json(tmp_path / "a.json", data))
    assert (stated.types.tolist(), stated.names) == ([0, 1, 2, 1], ("Background", "tumor", "stroma"))
    told = said(stated)
    assert told["shapes of the kind 'point' are no outlines and were left out"] == 2
    assert told["shapes of the kind 'line' are no outlines and were left out"] == 1
    with pytest.raises(DataError, match=r"holds no outline of a nucleus \(2 shapes of the kind 'point'"):
        read_nuclei(write_json(tmp_path / "b.json", {"shapes": shapes[3:5]}))


# what a file is


def test_the_content_says_what_a_file_is(tmp_path):
    np.save(tmp_path / "a.npy", squares())
    (tmp_path / "a.npy").rename(tmp_path / "a.png")
    np.testing.assert_array_equal(read_nuclei(tmp_path / "a.png").instance_map, squares())
    scipy.io.savemat(tmp_path / "b.mat", {"inst_map": squares()})
    (tmp_path / "b.mat").rename(tmp_path / "b.tif")
    np.testing.assert_array_equal(read_nuclei(tmp_path / "b.tif").instance_map, squares())
    data = {"nuc": {"1": {"contour": ring(1, 1), "type": 2}}}
    assert len(read_nuclei(write_json(tmp_path / "c.geojson", data)).outlines) == 1


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7", b'{"a": 1}', b"7", b"<svg/>", b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize("suffix", [".json", ".mat", ".png", ".zip", ".xml"])
def test_another_kind_is_an_error_that_names_the_file(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\{suffix}'"):
        read_nuclei(path)


def test_what_is_read_is_listed(tmp_path):
    (tmp_path / "a.dat").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"of no kind that can be read; give one of .*Lizard.*COCO.*ImageJ"):
        read_nuclei(tmp_path / "a.dat")


# XML and regions


def imagescope(*layers):
    text = ""
    for name, rings, excluded in layers:
        regions = "".join(
            f'<Region NegativeROA="{int(excluded)}"><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
            + "</Vertices></Region>"
            for points in rings
        )
        attribute = f'<Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes>'
        text += f'<Annotation Name="">{attribute}<Regions>{regions}</Regions></Annotation>'
    return f"<Annotations>{text}</Annotations>"


def test_every_annotation_of_imagescope_counts(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(
        imagescope(("Description", [ring(3, 4), ring(3, 30)], False), ("Description", [ring(20, 4)], False))
    )
    stated = read_nuclei(path)
    assert (len(stated.outlines), stated.types, stated.notes) == (3, None, ())
    path.write_text(
        imagescope(
            ("Epithelial", [ring(3, 4), [[1, 1]]], False),
            ("Lymphocyte", [ring(20, 4)], False),
            ("", [ring(1, 1)], True),
        )
    )
    stated = read_nuclei(path)
    assert (stated.types.tolist(), stated.names) == ([0, 1, 2], ("Background", "Epithelial", "Lymphocyte"))
    assert sorted(said(stated).values()) == [1, 1]  # excluded, and a single point
    path.write_text(imagescope(("Nuclei", [ring(3, 4)], False)))
    stated = read_nuclei(path)
    assert stated.types is None
    assert list(said(stated)) == ["outlines have no type: their only layer is called Nuclei"]


def test_regions_of_imagej(tmp_path):
    roifile = pytest.importorskip("roifile")
    kinds = roifile.ROI_TYPE
    make = partial(roifile.ImagejRoi.frompoints)
    regions = [make(np.array(ring(*corner, 8)), name=f"n{i}") for i, corner in enumerate(CORNERS)]
    for i, region in enumerate(regions):
        region.roitype, region.group = kinds.POLYGON, i
    point = make(np.array([[1, 1]]), name="p")
    point.roitype = kinds.POINT
    roifile.roiwrite(tmp_path / "a.zip", [*regions, point])
    stated = read_nuclei(tmp_path / "a.zip")
    assert (stated.types.tolist(), stated.corners) == ([0, 0, 1, 2, 3], True)
    assert list(said(stated).values()) == [1]
