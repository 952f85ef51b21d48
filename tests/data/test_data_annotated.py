"""Annotations of people as a data set: patches cut to what is complete, no slide in two splits, faults told."""

import json

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from cellvit.cli import main
from cellvit.data import FolderDataset
from cellvit.data.datasets import annotated
from cellvit.data.datasets.annotated import CLASSES_FILE, prepare_annotated
from cellvit.errors import ConfigError, DataError, OutputError
from cellvit.io.images import read_image
from cellvit.io.labels import read_label

SIDE = 96


def box(left, top, width, height):
    ring = [[left, top], [left + width, top], [left + width, top + height], [left, top + height], [left, top]]
    return {"type": "Polygon", "coordinates": [ring]}


def feature(geometry, name=None, kind="annotation"):
    classification = {} if name is None else {"classification": {"name": name}}
    return {"type": "Feature", "properties": {"objectType": kind, **classification}, "geometry": geometry}


def write_image(path, *, side=SIDE, mpp=None, seed=0):
    """A TIFF that states a resolution, or a PNG; no two rows are alike, nor two columns."""
    rows, columns = np.indices((side, side), np.uint8)
    pixels = np.stack([rows, columns, np.full_like(rows, seed)], axis=-1)
    if mpp is None:
        Image.fromarray(pixels).save(path)
    else:
        dots = 10_000 / mpp
        tifffile.imwrite(path, pixels, photometric="rgb", resolution=(dots, dots), resolutionunit="CENTIMETER")
    return pixels


def write_annotations(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}), encoding="utf-8")
    return path


def several(folder, count, nuclei=lambda number: 1):
    """Images with small outlines, without regions."""
    files = []
    for number in range(count):
        write_image(folder / f"s{number}.png", side=64, seed=number)
        outlines = [feature(box(10 * i, 10, 5, 5), "A") for i in range(nuclei(number))]
        files.append(write_annotations(folder / f"s{number}.geojson", *outlines))
    return files


class TestPatches:
    def test_patches_are_cut_to_the_regions_and_hold_what_is_in_them(self, tmp_path):
        pixels = write_image(tmp_path / "one.tif", mpp=0.25)
        file = write_annotations(
            tmp_path / "one.geojson",
            feature(box(10, 20, 40, 50), "Region*"),
            feature(box(15, 25, 10, 10), "Tumor"),
            feature(box(20, 30, 10, 10), "Stroma: Reactive"),  # over a corner of the one before
            feature(box(45, 60, 20, 4)),  # of no class, and cut by the edge of the region
            feature(box(70, 70, 10, 10), "Tumor"),  # outside
            feature(box(12, 60, 4, 4), "Ignore*"),
            feature({"type": "Point", "coordinates": [12, 22]}, "Tumor"),
        )
        made = prepare_annotated([file], tmp_path / "set", val=0.0)
        assert made.class_names == ("Background", "Stroma: Reactive", "Tumor")
        (patch,) = made.patches
        assert (patch.box, patch.mpp, patch.split, patch.slide) == ((10, 20, 40, 50), 0.25, "train", "one.tif")
        assert patch.nuclei == {"Tumor": 1, "Stroma: Reactive": 1, "": 1}
        folder = tmp_path / "set" / "set"
        assert (read_image(folder / "images" / "one_000.png") == pixels[20:70, 10:50]).all()
        instances, types = read_label(folder / "labels" / "one_000.npz")
        expected = np.zeros((50, 40), int)
        expected[5:15, 5:15], expected[10:20, 10:20], expected[40:44, 35:] = 1, 2, 3
        assert (instances == expected).all()
        assert types.tolist() == [0, 2, 1, -1]
        said = " ".join(made.notes)
        for text in ("1 outlines lie outside", "1 points outline nothing", "1 annotations of a class that ends in '*'"):
            assert text in said
        dataset = FolderDataset(tmp_path / "set", split="train", num_nuclei_classes=3)
        assert sorted(np.unique(dataset[0]["nuclei_type_map"]).tolist()) == [-1, 0, 1, 2]
        settings = yaml.safe_load((tmp_path / "set" / CLASSES_FILE).read_text())
        assert settings["model"]["class_names"] == list(made.class_names)
        assert settings["model"]["num_nuclei_classes"] == 3

    def test_large_regions_become_pieces_without_gap_or_overlap(self, tmp_path):
        write_image(tmp_path / "one.png")
        file = write_annotations(
            tmp_path / "one.png.geojson", feature(box(1.5, 3, 90, 70), "region"), feature(box(20, 20, 50, 40), "A")
        )
        made = prepare_annotated([file], tmp_path / "set", patch_size=40, mpp=0.5)
        seen = np.zeros((SIDE, SIDE), int)
        for patch in made.patches:
            x, y, width, height = patch.box
            assert max(width, height) <= 40
            seen[y : y + height, x : x + width] += 1
        expected = np.zeros_like(seen)
        expected[3:73, 2:91] = 1  # the whole pixels inside
        assert (seen == expected).all()
        assert len(made.patches) == 6
        assert {patch.mpp for patch in made.patches} == {0.5}

    def test_pieces_of_a_nucleus_are_one_and_detections_outrank_areas(self, tmp_path):
        write_image(tmp_path / "one.png")
        two = {"type": "MultiPolygon", "coordinates": [box(5, 5, 4, 4)["coordinates"], box(20, 5, 4, 4)["coordinates"]]}
        file = write_annotations(
            tmp_path / "one.geojson", feature(two, "A", "detection"), feature(box(0, 0, 90, 90), "Tumor area")
        )
        made = prepare_annotated([file], tmp_path / "set")
        assert made.class_names == ("Background", "A")
        instances, _ = read_label(tmp_path / "set" / "set" / "labels" / "one_000.npz")
        assert np.unique(instances).tolist() == [0, 1]
        assert (instances > 0).sum() == 32
        assert "1 drawn annotations lie beside detections" in " ".join(made.notes)
        assert "annotated completely" in " ".join(made.notes)

    def test_coco_labelme_and_label_images(self, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        for name in ("a", "b", "c", "d", "e", "f"):
            write_image(images / f"{name}.png")
        flat = [10, 10, 20, 10, 20, 20, 10, 20]
        coco = {
            "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
            "categories": [{"id": 1, "name": "Tumor"}],
            "annotations": [{"image_id": i, "category_id": 1, "segmentation": [flat]} for i in (1, 2)],
        }
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        one = {**coco, "images": [{"id": 1, "file_name": "f.png"}], "annotations": coco["annotations"][:1]}
        (tmp_path / "all.json").write_text(json.dumps(one))  # called by its image, not by its own name
        shapes = [{"label": "lymphocyte", "points": [[5, 5], [15, 5], [15, 15]]}]
        (tmp_path / "c.json").write_text(json.dumps({"shapes": shapes}))
        labels = np.zeros((SIDE, SIDE), np.uint16)
        labels[10:20, 10:20], labels[30:40, 30:40], labels[50:60, 50:60] = 3, 7, 9
        np.savez(tmp_path / "d.npz", inst_map=labels, inst_type=np.array([0, 0, 0, 1, 0, 0, 0, 2, 0, -1]))
        Image.fromarray(labels).save(tmp_path / "e.tif")
        files = [tmp_path / name for name in ("coco.json", "all.json", "c.json", "d.npz", "e.tif")]
        made = prepare_annotated(
            files,
            tmp_path / "set",
            images=[images],
            class_map={"lymphocyte": "Immune"},
            class_names=["Tumor", "Immune"],
            val=["b"],
            test=["c", "d"],
        )
        assert made.problems == ()
        assert {one.slide: (one.split, one.nuclei) for one in made.patches} == {
            "a.png": ("train", {"Tumor": 1}),
            "b.png": ("val", {"Tumor": 1}),
            "c.png": ("test", {"Immune": 1}),
            "d.png": ("test", {"Tumor": 1, "Immune": 1, "": 1}),
            "e.png": ("train", {"": 3}),
            "f.png": ("train", {"Tumor": 1}),
        }


class TestSplit:
    def test_no_slide_is_in_two_splits_and_shares_are_kept(self, tmp_path):
        files = several(tmp_path, 6, nuclei=lambda number: 1 + number)
        made = prepare_annotated(files, tmp_path / "set", val=0.2, test=0.1, patch_size=40)
        of = {}
        for patch in made.patches:
            assert of.setdefault(patch.slide, patch.split) == patch.split
        assert len(made.patches) == 24
        # the largest slide trains, the next two fill what would be empty, the others go where most is missing
        assert of == {
            **{"s5.png": "train", "s4.png": "val", "s3.png": "test"},
            **{"s2.png": "train", "s1.png": "train", "s0.png": "train"},
        }

    def test_one_slide_is_not_enough_and_said_so(self, tmp_path):
        made = prepare_annotated(several(tmp_path, 1), tmp_path / "set")
        assert "no slide is left for val: 1 annotated in all" in " ".join(made.notes)
        with pytest.raises(ConfigError, match="val names"):
            prepare_annotated(several(tmp_path, 1), tmp_path / "b", val=["s7"])
        with pytest.raises(ConfigError, match="nothing to train on"):
            prepare_annotated(several(tmp_path, 1), tmp_path / "b", val=0.7, test=0.3)


class TestFaults:
    def test_each_is_told_and_the_others_are_prepared(self, tmp_path, monkeypatch):
        monkeypatch.setattr(annotated, "_WHOLE", 100)
        write_image(tmp_path / "large.png", side=120)
        files = several(tmp_path, 2)
        turned = {"type": "Polygon", "coordinates": [[[40, 0], [80, 40], [40, 80], [0, 40], [40, 0]]]}
        write_image(tmp_path / "turned.png")
        (tmp_path / "more").mkdir()
        files += [
            write_annotations(tmp_path / "large.geojson", feature(box(5, 5, 9, 9), "A")),
            write_annotations(
                tmp_path / "turned.geojson",
                *(feature(area, "Region*") for area in (turned, box(0, 0, 20, 20), box(90, 0, 99, 99))),
                feature(box(5, 5, 9, 9), "A"),
            ),
            write_annotations(tmp_path / "lonely.geojson", feature(box(5, 5, 9, 9), "A")),
            write_annotations(tmp_path / "more" / "s0.geojson", feature(box(5, 5, 9, 9), "A")),
            tmp_path / "broken.geojson",
        ]
        files[-1].write_text("{")
        write_image(tmp_path / "broken.png")
        np.save(tmp_path / "s1.npy", np.ones((5, 5), np.uint8))
        files.append(tmp_path / "s1.npy")
        made = prepare_annotated(files, tmp_path / "set")
        assert {one.slide for one in made.patches} == {"s0.png", "s1.png"}
        said = "\n".join(made.problems)
        for text in (
            "have no region, and the image of 120 x 120 px is larger than 100; draw a rectangle",
            "the region at x=0, y=0 is no rectangle",
            "shows 20 x 20 px of the image",
            "shows 6 x 96 px of the image",
            "no image of the name 'lonely'; pass images=FOLDER",
            "annotates 's0.png', as",
            "is not JSON",
            "is 5 x 5 px, its image 64 x 64",
        ):
            assert text in said, text

    def test_what_cannot_be_prepared_at_all_is_refused(self, tmp_path):
        files = several(tmp_path, 2)
        prepare_annotated(files, tmp_path / "set")
        with pytest.raises(OutputError, match="holds a data set already"):
            prepare_annotated(files, tmp_path / "set")
        with pytest.raises(DataError, match=r"classes \['A'\], which are not among \['B'\]"):
            prepare_annotated(files, tmp_path / "b", class_names=["B"])
        with pytest.raises(ConfigError, match="patch_size=8"):
            prepare_annotated(files, tmp_path / "b", patch_size=8)
        points = write_annotations(tmp_path / "s0.geojson", feature({"type": "Point", "coordinates": [5, 5]}, "A"))
        with pytest.raises(DataError, match=r"nothing to prepare: .*points are not enough"):
            prepare_annotated([points], tmp_path / "b")


def test_the_verb_draws_pictures_counts_and_says_what_is_next(tmp_path, capsys):
    files = several(tmp_path, 3, nuclei=lambda number: 3)
    out = tmp_path / "mine"
    arguments = ["prepare", "labels", *map(str, files), "--out", str(out), "--class", "A=Tumor", "--pictures", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "Tumor" in printed.out
    assert "next: cellvit fit" in printed.out
    assert "3 images state no resolution and are trained on as they are; pass --mpp 0.25" in printed.err
    pictures = sorted(path.name for path in (out / "checks").iterdir())
    assert len(pictures) == 2
    assert read_image(out / "checks" / pictures[0]).shape[0] >= SIDE
    assert main(arguments) == 1
    assert "choose another --out" in capsys.readouterr().err
    assert main(["prepare", "labels", str(files[0]), str(tmp_path / "x.geojson"), "--out", str(tmp_path / "z")]) == 1
    assert "x.geojson" in capsys.readouterr().err
    assert main(["prepare", "labels", str(files[0]), "--class", "A"]) == 2
