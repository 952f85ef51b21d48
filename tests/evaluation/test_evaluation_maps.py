import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cellvit.classes import PANNUKE, default_classes
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.pairing import check_complete, find_pairs
from cellvit.evaluation.rasterize import draw_outlines, drawn_maps, nuclei_from_labels
from cellvit.io import read_geojson, write_geojson, write_json, write_parquet
from cellvit.io.detections import read_nuclei, translated_types
from cellvit.postprocess.measure import nuclei_from_instances


def solid_nuclei(seed, size=96, count=14):
    """Return an instance map of touching discs and crescents, each in one piece and without holes."""
    rng = np.random.default_rng(seed)
    instances = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    for label in range(1, count + 1):
        cy, cx, radius = rng.integers(0, size), rng.integers(0, size), rng.integers(3, 13)
        new = ((y - cy) ** 2 + (x - cx) ** 2 <= radius**2) & (instances == 0)
        whole = ndimage.label(new)[1] == 1  # an outline is cut where pixels touch at a corner only
        if whole and (ndimage.binary_fill_holes(new) == new).all():
            instances[new] = label
    return nuclei_from_instances(instances).instance_map


def separate_discs():
    instances = np.zeros((90, 120), np.int32)
    y, x = np.mgrid[:90, :120]
    for label, (cy, cx, radius) in enumerate([(10, 10, 8), (40, 30, 12), (2, 60, 6), (70, 100, 15), (89, 5, 4)], 1):
        instances[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = label
    return instances


def typed_nuclei(instances, kinds, classes=PANNUKE):
    found = nuclei_from_instances(instances).nuclei
    return replace(found, type=np.asarray(kinds, np.int32), classes=classes)


def feature(ring, name=None):
    properties = {} if name is None else {"classification": {"name": name}}
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def write_features(path, features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.mark.parametrize("suffix", [".geojson", ".geojson.gz", ".json", ".parquet"])
def test_outlines_come_back_pixel_for_pixel(tmp_path, suffix):
    instances = separate_discs()
    path = tmp_path / f"a{suffix}"
    writer = {".json": write_json, ".parquet": write_parquet}.get(suffix, write_geojson)
    writer(typed_nuclei(instances, [1, 2, 3, 4, 5]), path)
    stated = read_nuclei(path)
    np.testing.assert_array_equal(draw_outlines(stated.outlines, instances.shape), instances)
    assert stated.types.tolist() == [0, 1, 2, 3, 4, 5]
    assert stated.names == PANNUKE.names


@given(st.integers(0, 10_000))
def test_solid_nuclei_come_back_pixel_for_pixel(seed):
    instances = solid_nuclei(seed)
    drawn = draw_outlines(nuclei_from_instances(instances).nuclei, instances.shape)
    np.testing.assert_array_equal(drawn, instances)


def test_a_fractional_outline_takes_the_pixels_it_runs_through_and_those_inside():
    nuclei = replace(
        nuclei_from_instances(np.ones((3, 3), int)).nuclei,
        contour_points=np.array([[1.2, 1.2], [4.9, 1.2], [4.9, 3.8], [1.2, 3.8]]),
    )
    expected = np.zeros((6, 7), int)
    expected[1:5, 1:6] = 1
    np.testing.assert_array_equal(draw_outlines(nuclei, expected.shape, corners=False), expected)


@given(st.lists(st.tuples(st.integers(-3, 12), st.integers(-3, 12)), min_size=3, max_size=6, unique=True))
def test_corner_outlines_take_pixels_whose_centre_is_inside(ring):
    import shapely

    shape = shapely.Polygon(ring)
    if not shape.is_valid or shape.area == 0:
        return
    nuclei = replace(
        nuclei_from_instances(np.ones((3, 3), int)).nuclei,
        contour_points=np.array(ring, float),
        contour_offsets=np.array([0, len(ring)]),
    )
    drawn = draw_outlines(nuclei, (10, 10), corners=True)
    for row in range(10):
        for col in range(10):
            centre = shapely.Point(col + 0.5, row + 0.5)
            if shape.boundary.distance(centre) > 1e-9:
                assert bool(drawn[row, col]) == shape.contains(centre)


def test_later_outlines_lie_over_earlier_ones(tmp_path):
    square = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
    moved = [[x + 3, y] for x, y in square]
    path = write_features(tmp_path / "a.geojson", [feature(square), feature(moved)])
    drawn = draw_outlines(read_nuclei(path).outlines, (5, 9), corners=False)
    assert drawn[0].tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 0]


def test_label_files_with_types(tmp_path):
    instances = np.array([[0, 2, 2], [7, 7, 0]])
    np.savez(tmp_path / "a.npz", inst_map=instances, inst_type=np.array([0, 0, 3, 0, 0, 0, 0, 1]))
    stated = read_nuclei(tmp_path / "a.npz")
    np.testing.assert_array_equal(stated.instance_map, instances)
    assert (stated.types[2], stated.types[7], stated.names) == (3, 1, None)
    np.savez(tmp_path / "b.npz", inst_map=instances, inst_type=np.array([0, 1, 3]))
    with pytest.raises(DataError, match=r"b\.npz' has the label 7 but inst_type of 3"):
        read_nuclei(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", instances)
    assert read_nuclei(tmp_path / "c.npy").types is None


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"inst_type": [[3], [1]]}, {2: 3, 7: 1}),  # in the order of the labels
        ({"inst_type": [[3], [1]], "inst_uid": [[7], [2]]}, {2: 1, 7: 3}),
        ({"inst_type": [[9], [3], [9], [9], [9], [9], [1]]}, {2: 3, 7: 1}),  # for every number from 1
    ],
)
def test_mat_files(tmp_path, extra, expected):
    instances = np.array([[0, 2, 2], [7, 7, 0]], float)
    scipy.io.savemat(tmp_path / "a.mat", {"inst_map": instances, **extra})
    stated = read_nuclei(tmp_path / "a.mat")
    np.testing.assert_array_equal(stated.instance_map, instances)
    assert {label: stated.types[label] for label in expected} == expected


def test_bad_files_say_what_is_wrong(tmp_path):
    bad = {
        "a.mat": b"no matlab",
        "b.npz": b"no zip",
        "c.geojson": b"{",
        "d.geojson.gz": gzip.compress(b"{}")[:-4],
        "e.txt": b"1",
        "f.parquet": b"PAR1",
        "g.png": b"no png",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_nuclei(tmp_path / name)
    scipy.io.savemat(tmp_path / "h.mat", {"map": np.ones((2, 2))})
    with pytest.raises(DataError, match="inst_map"):
        read_nuclei(tmp_path / "h.mat")
    scipy.io.savemat(tmp_path / "i.mat", {"inst_map": np.array([[0, 1], [2, 3]]), "inst_type": [[1], [1]]})
    with pytest.raises(DataError, match="label 3 but 2 types"):
        read_nuclei(tmp_path / "i.mat")


def test_points_are_refused_and_no_nuclei_are_fine(tmp_path):
    write_geojson(typed_nuclei(separate_discs(), [1] * 5), tmp_path / "a.geojson", points=True)
    with pytest.raises(DataError, match="5 of 5 nuclei without an outline"):
        read_nuclei(tmp_path / "a.geojson")
    empty = read_nuclei(write_features(tmp_path / "b.geojson", []))
    assert len(empty.outlines) == 0
    assert not draw_outlines(empty.outlines, (4, 4)).any()


def test_shapes_must_agree_and_outlines_must_meet_the_image(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 5), int))
    np.save(tmp_path / "b.npy", np.ones((5, 4), int))
    far = write_features(tmp_path / "c.geojson", [feature([[900, 900], [910, 900], [905, 910], [900, 900]])])
    a, b, c = read_nuclei(tmp_path / "a.npy"), read_nuclei(tmp_path / "b.npy"), read_nuclei(far)
    with pytest.raises(DataError, match=r"a\.npy' is \(4, 5\) and '.*b\.npy' \(5, 4\)"):
        drawn_maps(a, b)
    with pytest.raises(DataError, match=r"outside the 5x4 px.*910"):
        drawn_maps(c, a)


def test_two_sides_of_outlines_share_the_smallest_grid(tmp_path):
    one = write_features(
        tmp_path / "a.geojson", [feature([[5000, 70], [5003, 70], [5003, 72], [5000, 72], [5000, 70]])]
    )
    other = write_features(
        tmp_path / "b.geojson", [feature([[5002, 70], [5004, 70], [5004, 71], [5002, 71], [5002, 70]])]
    )
    pred, target = drawn_maps(read_nuclei(one), read_nuclei(other))
    assert pred.tolist() == [[1, 1, 1, 1, 0]] * 3
    assert target.tolist() == [[0, 0, 1, 1, 1]] * 2 + [[0] * 5]
    nothing = read_nuclei(write_features(tmp_path / "c.geojson", []))
    assert not np.any(drawn_maps(nothing, nothing))
    huge = write_features(tmp_path / "d.geojson", [feature([[0, 0], [90_000, 0], [0, 90_000], [0, 0]])])
    with pytest.raises(DataError, match="span 90001x90001 px"):
        drawn_maps(read_nuclei(huge), nothing)


def test_measured_keeps_single_pixels_and_labels_with_gaps():
    instances = np.array([[5, 0, 9], [0, 0, 9], [0, 2, 9]])
    found = nuclei_from_labels(instances, np.array([0, 0, 4, 0, 0, 1, 0, 0, 0, 3]))
    assert found.nuclei.type.tolist() == [4, 1, 3]
    assert found.instance_map.tolist() == [[2, 0, 3], [0, 0, 3], [0, 1, 3]]
    assert nuclei_from_labels(instances, None).nuclei.type.tolist() == [-1, -1, -1]


def test_names_are_translated_without_regard_to_case(tmp_path):
    rings = [[[10 * i, 0], [10 * i + 4, 0], [10 * i, 4], [10 * i, 0]] for i in range(4)]
    names = ["Tumor", None, "STROMA", "immune"]
    path = write_features(tmp_path / "a.geojson", [feature(r, n) for r, n in zip(rings, names, strict=True)])
    classes = ("Background", "Neoplastic", "Immune", "Stroma")
    types = translated_types(read_nuclei(path), classes, class_map={"tumor": "neoplastic"})
    assert types.tolist() == [0, 1, 0, 3, 2]
    with pytest.raises(DataError, match=r"\['Tumor'\].*'Neoplastic'.*class_map") as caught:
        translated_types(read_nuclei(path), classes)
    assert "a.geojson" in str(caught.value)
    assert translated_types(read_nuclei(path), classes, class_map={"Tumor": "Background"}).tolist() == [0, 0, 0, 3, 2]


def test_classes_that_do_not_occur_need_no_translation(tmp_path):
    write_geojson(typed_nuclei(separate_discs(), [1, 1, 1, 1, 1]), tmp_path / "a.geojson")
    types = translated_types(read_nuclei(tmp_path / "a.geojson"), ("Background", "neoplastic"))
    assert types.tolist() == [0, 1, 1, 1, 1, 1]


def test_numbers_need_names_they_stand_for(tmp_path):
    np.savez(tmp_path / "a.npz", inst_map=np.array([[1, 2]]), inst_type=np.array([0, 1, 3]))
    stated = read_nuclei(tmp_path / "a.npz")
    assert translated_types(stated, ("B", "x", "y", "z")).tolist() == [0, 1, 3]
    with pytest.raises(DataError, match="type 3, but the classes are"):
        translated_types(stated, ("B", "x", "y"))
    with pytest.raises(DataError, match="numbers its types"):
        translated_types(stated, ("B", "x", "y", "z"), numbered=False)


@pytest.mark.parametrize("suffix", [".geojson", ".json", ".parquet"])
def test_named_classes_state_types_even_if_no_nucleus_has_one(tmp_path, suffix):
    writer = {".json": write_json, ".parquet": write_parquet}.get(suffix, write_geojson)
    for kind in (0, -1):
        writer(typed_nuclei(separate_discs(), [kind] * 5), tmp_path / f"a{suffix}")
        stated = read_nuclei(tmp_path / f"a{suffix}")
        assert stated.names == PANNUKE.names
        assert translated_types(stated, ("Background", "x")).tolist() == [0] * 6
        writer(typed_nuclei(separate_discs(), [kind] * 5, None), tmp_path / f"b{suffix}")
        assert read_nuclei(tmp_path / f"b{suffix}").types is None


def test_numbers_of_no_type_need_no_names(tmp_path):
    np.savez(tmp_path / "a.npz", inst_map=np.array([[1, 2]]), inst_type=np.array([0, 0, 0]))
    assert translated_types(read_nuclei(tmp_path / "a.npz"), ("B", "x"), numbered=False).tolist() == [0, 0, 0]


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_files_are_paired_by_stem(tmp_path):
    pred, truth = tmp_path / "pred", tmp_path / "truth"
    touch(pred / "a.v1.geojson.gz", pred / "b.png", pred / "b.geojson", pred / "c.json", pred / ".d.npz")
    touch(truth / "a.v1.npz", truth / "b.mat", truth / "d.npy", truth / "notes.txt")
    found = find_pairs(pred, truth)
    assert [(p.name, p.pred.name, p.truth.name) for p in found.pairs] == [
        ("a.v1", "a.v1.geojson.gz", "a.v1.npz"),
        ("b", "b.geojson", "b.mat"),  # the .png beside it is a picture
    ]
    assert found.missing == ("d",)
    assert [p.name for p in found.unused] == ["c.json"]
    with pytest.raises(DataError, match=r"1 of 3 images have no prediction in .*: d; add them, .* skip_missing=True"):
        check_complete(found, pred=pred)


def test_two_files_are_a_pair_whatever_their_names(tmp_path):
    touch(tmp_path / "x.geojson", tmp_path / "y.npz")
    (pair,) = find_pairs(tmp_path / "x.geojson", tmp_path / "y.npz").pairs
    assert (pair.name, pair.pred.name) == ("y", "x.geojson")
    with pytest.raises(ConfigError, match="both be files or both be folders"):
        find_pairs(tmp_path, tmp_path / "y.npz")
    with pytest.raises(DataError, match=r"truth '.*z' does not exist"):
        find_pairs(tmp_path, tmp_path / "z")
    with pytest.raises(ConfigError, match="leave out split"):
        find_pairs(tmp_path / "x.geojson", tmp_path / "y.npz", split="val")


def test_nothing_in_common(tmp_path):
    touch(tmp_path / "pred" / "a.npz", tmp_path / "truth" / "b.npz")
    with pytest.raises(DataError, match=r"\['a'\] and \['b'\]"):
        find_pairs(tmp_path / "pred", tmp_path / "truth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"truth folder '.*empty' holds none of"):
        find_pairs(tmp_path / "pred", tmp_path / "empty")


def data_folder(root):
    touch(
        *(root / d / k / f"i{n}{s}" for d in "ab" for n in (1, 2) for k, s in (("images", ".png"), ("labels", ".npz")))
    )
    rows = ["dataset,image,split,tissue", "a,i1,val,Breast", "a,i2,train,", "b,i1,val,Colon", "b,i2,val,Breast"]
    (root / "manifest.csv").write_text("\n".join(rows))
    return root


def test_a_data_folder_is_the_truth(tmp_path):
    truth = data_folder(tmp_path / "data")
    touch(tmp_path / "pred" / "b" / "i1.npz", tmp_path / "pred" / "b" / "i2.npz", tmp_path / "pred" / "i1.geojson")
    found = find_pairs(tmp_path / "pred", truth, split="val")
    assert [(p.name, p.tissue, p.pred.relative_to(tmp_path).as_posix()) for p in found.pairs] == [
        ("a/i1", "Breast", "pred/i1.geojson"),
        ("b/i1", "Colon", "pred/b/i1.npz"),
        ("b/i2", "Breast", "pred/b/i2.npz"),
    ]
    assert found.missing == ()
    every = find_pairs(tmp_path / "pred", truth)
    assert len(every.pairs) == 3
    assert every.missing == ("a/i2",)
    with pytest.raises(DataError, match=r"\['i1'\] and \['i2'\]"):
        find_pairs(tmp_path / "pred", truth, split="train")


def test_one_prediction_cannot_serve_two_images(tmp_path):
    truth = data_folder(tmp_path / "data")
    touch(tmp_path / "pred" / "i1.npz")
    with pytest.raises(DataError, match=r"would be the prediction of a/i1 and b/i1"):
        find_pairs(tmp_path / "pred", truth, split="val")
    assert len(find_pairs(tmp_path / "pred", truth, split="val", datasets=["a"]).pairs) == 1


def test_data_folders_with_faults(tmp_path):
    touch(tmp_path / "d" / "val" / "images" / "x.png", tmp_path / "pred" / "x.npz")
    with pytest.raises(DataError, match=r"choose a(nother)? split"):
        find_pairs(tmp_path / "pred", tmp_path / "d")
    with pytest.raises(DataError, match=r"1 of 1 images .* have no label: .*x\.npz"):
        find_pairs(tmp_path / "pred", tmp_path / "d", split="val")
    with pytest.raises(DataError, match="split 'dev' is unknown"):
        find_pairs(tmp_path / "pred", tmp_path / "d", split="dev")


def test_qupath_polygons_differ_by_half_a_pixel(tmp_path):
    """A square of 10 x 10 pixels as QuPath draws it is 11 x 11 when its corners are taken for pixel centres."""
    path = write_features(tmp_path / "a.geojson", [feature([[5, 5], [15, 5], [15, 15], [5, 15], [5, 5]], "x")])
    nuclei = read_geojson(path)
    assert draw_outlines(nuclei, (30, 30), corners=False).sum() == 121
    corners = draw_outlines(nuclei, (30, 30), corners=True)
    assert corners.sum() == 100
    assert corners[5:15, 5:15].all()


def test_default_classes_are_not_guessed(tmp_path):
    write_parquet(typed_nuclei(separate_discs(), [1, 2, 1, 2, 1], default_classes(3)), tmp_path / "a.parquet")
    assert read_nuclei(tmp_path / "a.parquet").names == ("Background", "Type 1", "Type 2")
