import errno
import inspect
import json
import os
import re
import warnings
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from types import MappingProxyType

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from slide_drawings import areas, block, compare, drawn_nuclei, drawn_slide
from support.drawn_slides import CLASSES, DrawnModel
from support.stand_ins import DarkSpots

from cellvit import io
from cellvit.errors import ConfigError, DataError, ImageError, OutputError
from cellvit.inference import fingerprints, pipeline, prepare
from cellvit.inference import outputs as formats
from cellvit.inference import resume as journal
from cellvit.inference.plan import plan_slide
from cellvit.inference.resume import ResumeFolder
from cellvit.inference.settings import FORMATS, SlideSettings
from cellvit.inference.slide import segment_slide
from cellvit.postprocess.hv import HVPostprocessor
from cellvit.slide import tiling
from cellvit.slide.tissue import TissueMask

PLAIN = {"device": "cpu", "workers": 0, "tissue_filter": False, "formats": ()}
SIZE = (1500, 1300)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return drawn_slide(tmp_path_factory.mktemp("slides"), *SIZE)


@pytest.fixture(scope="module")
def done(slide, tmp_path_factory):
    """Return a finished slide with every format."""
    out = tmp_path_factory.mktemp("done") / "drawn"
    settings = {**PLAIN, "formats": tuple(name for name in FORMATS if name not in ("spatialdata", "dicom-3d"))}
    return segment_slide(slide, out, model=DrawnModel(), tile_size=512, **settings)


def run(slide, out, **changes):
    return segment_slide(slide, out, model=DrawnModel(), **{**PLAIN, "tile_size": 512, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("tile_size", [512, 768, 1024])
def test_every_tile_size_gives_the_drawn_nuclei_whole(tmp_path, tile_size):
    width, height = 2700, 2500
    path = drawn_slide(tmp_path, width, height)
    found = run(path, tmp_path / "out", tile_size=tile_size).nuclei(embedding=False)
    drawn = drawn_nuclei(width, height)
    drawn = drawn.select(~(drawn.cut & (drawn.area < 60)))
    once, strange = compare(found, drawn)
    assert abs(len(found) - len(drawn)) <= 0.005 * len(drawn)
    assert once.mean() >= 0.995
    assert strange.mean() <= 0.005
    order = np.argsort(found.centroid[:, 0])
    found = found.select(order[~strange[order]])
    from scipy.spatial import cKDTree

    nearest = cKDTree(drawn.centroid).query(found.centroid)[1]
    assert np.abs(areas(found) / drawn.area[nearest] - 1).max() <= 0.25
    assert (np.abs(found.bbox - drawn.bbox[nearest]).max(axis=1) <= 2).mean() >= 0.995
    assert (found.type == drawn.type[nearest]).all()


class Undecided(DrawnModel):
    """Knows no type in a share of the columns of each tile, and all of them elsewhere."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    @torch.inference_mode()
    def predict_maps(self, image):
        maps = super().predict_maps(image)
        unsure = maps["nuclei_type_map"][..., : int(self.share * image.shape[-1])]
        unsure[:, 0], unsure[:, 1:] = 1, 0
        return maps


def test_many_nuclei_without_a_type_are_a_reason_to_warn(tmp_path):
    path = drawn_slide(tmp_path, 500, 500)
    with pytest.warns(UserWarning, match="[4-6][0-9]% of the nuclei have no type"):
        result = segment_slide(path, tmp_path / "half", model=Undecided(0.5), **PLAIN)
    assert any("have no type" in note for note in result.summary["warnings"])
    few = segment_slide(path, tmp_path / "few", model=Undecided(0.1), **PLAIN)  # a warning would be an error here
    assert not any("have no type" in note for note in few.summary["warnings"])


def test_the_result_does_not_depend_on_batch_workers_and_order(slide, done, tmp_path, monkeypatch):
    reference = (done.out / "nuclei.parquet").read_bytes()
    run(slide, tmp_path / "batch", batch_size=5)
    assert (tmp_path / "batch" / "nuclei.parquet").read_bytes() == reference
    assert run(slide, tmp_path / "workers", workers=2).summary["workers"] == {"number": 2, "kind": "processes"}
    assert (tmp_path / "workers" / "nuclei.parquet").read_bytes() == reference
    # parts in another order: only the last, then the first is lost and made again
    out = tmp_path / "order"
    run(slide, out, keep_parts=True)
    (out / "summary.json").unlink()
    (out / ".work" / "part-000000.arrow").unlink()
    run(slide, out)
    assert (out / "nuclei.parquet").read_bytes() == reference


def test_nuclei_are_labelled_typed_and_have_their_embeddings(done):
    found = done.nuclei()
    assert found.label.tolist() == list(range(1, len(found) + 1))
    assert found.classes == CLASSES
    assert found.embedding.shape == (len(found), 8)
    # a token holds the share of nucleus pixels; of a nucleus's own tokens it is well above the mean of the block
    assert found.embedding[:, 3].mean() > 1.2 * (block().pixels[..., 0] > 0).mean()
    light = done.nuclei(embedding=False)
    assert light.embedding is None
    np.testing.assert_array_equal(light.centroid, found.centroid)


def test_every_file_holds_the_same_nuclei(done):
    found = done.nuclei()
    for other in (io.read_json(done.out / "cells.json.gz"), io.read_geojson(done.out / "nuclei.geojson.gz")):
        np.testing.assert_array_equal(other.bbox, found.bbox)
        np.testing.assert_array_equal(other.type, found.type)
    points = io.read_geojson(done.out / "points.geojson.gz")
    np.testing.assert_allclose(points.centroid, found.centroid)
    tables = io.read_anndata(done.out / "nuclei.h5ad")
    np.testing.assert_array_equal(tables.embedding, found.embedding)
    assert (done.out / "nuclei.geojson").stat().st_size > (done.out / "nuclei.geojson.gz").stat().st_size
    for picture in ("overlay.png", "density.png", "closeups.png", "tissue.png"):
        with Image.open(done.out / picture) as image:
            assert min(image.size) > 100
    files = {path.name for path in done.out.iterdir() if not path.name.startswith(".")}
    assert files == {*done.summary["files"].values(), "summary.json"}


def test_the_summary_says_what_was_done(done, slide):
    summary = json.loads((done.out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(done.summary))
    assert summary["schema"] == 1
    assert summary["slide"]["name"] == slide.name
    assert len(summary["slide"]["sha256"]) == 64
    assert (summary["slide"]["width"], summary["slide"]["height"]) == SIZE
    assert summary["resolution"] == {"mpp": [0.25, 0.25], "source": "slide"}
    assert summary["nuclei"]["total"] == sum(summary["nuclei"]["by_type"].values()) == len(done.nuclei())
    area = SIZE[0] * SIZE[1] * 0.25**2 / 1e6
    assert summary["tissue"]["area_mm2"] == pytest.approx(area, rel=1e-3)
    assert summary["nuclei"]["density_per_mm2"] == pytest.approx(len(done.nuclei()) / area, rel=1e-3)
    assert summary["tiles"] == {"total": 12, "done": 12, "unreadable": []}
    assert {"cellvit", "python", "torch"} <= set(summary["versions"])
    assert set(summary["seconds"]) >= {"read", "forward", "postprocess", "seams", "export", "total"}
    assert summary["settings"]["tile_size"] == 512


def test_released_layout_names_the_tile_of_each_nucleus(done):
    import gzip

    data = json.loads(gzip.decompress((done.out / "cells.json.gz").read_bytes()))
    for cell in data["cells"][::97]:
        (rmin, cmin), (rmax, cmax) = cell["bbox"]
        row, col = cell["offset_global"]
        x, y = cell["centroid"]
        assert row <= y <= row + 512
        assert col <= x <= col + 512
        inside = min(rmin - row, cmin - col) >= 64 and max(rmax - row, cmax - col) <= 512 - 64
        assert (cell["cell_status"] == 0) == inside
        assert (
            cell["patch_coordinates"] == [round(row / 448), round(col / 448)]
            or row + 512 == SIZE[1]
            or col + 512 == SIZE[0]
        )


def test_a_finished_slide_is_not_done_again_but_gets_missing_formats(slide, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(slide, out)
    monkeypatch.setattr(pipeline.TileStream, "run", lambda *a, **k: pytest.fail("computed again"))
    before = (out / "nuclei.parquet").stat().st_mtime_ns
    again = run(slide, out, formats=("points",), batch_size=4)
    assert (out / "nuclei.parquet").stat().st_mtime_ns == before
    assert again.summary["files"] == {**first.summary["files"], "points": "points.geojson.gz"}
    assert len(io.read_geojson(out / "points.geojson.gz")) == first.summary["nuclei"]["total"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tile_size": 768}, "tile_size was 512, is 768"),
        ({"overlap": 32}, "overlap was 64, is 32"),
        ({"embeddings": False}, "embeddings was True, is False"),
        ({"mpp": 0.26}, "mpp was"),
        ({"postprocessor": {"min_size": 500}}, r"postprocessor was None, is \{'min_size': 500\}"),
    ],
)
def test_other_settings_are_refused_and_named(slide, done, changes, words):
    before = (done.out / "nuclei.parquet").read_bytes()
    with pytest.raises(OutputError, match=words):
        run(slide, done.out, **changes)
    assert (done.out / "nuclei.parquet").read_bytes() == before


def test_settings_of_the_postprocessor_are_plain_and_told(slide, tmp_path):
    done = run(slide, tmp_path / "out", postprocessor=MappingProxyType({"min_size": np.int64(500)}))
    assert done.summary["settings"]["postprocessor"] == {"min_size": 500}
    assert min(done.nuclei().area) >= 500
    with pytest.raises(OutputError, match=r"results of another run: settings postprocessor was \{'min_size': 500\}"):
        run(slide, tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot be written down"):
        run(slide, tmp_path / "out", postprocessor={"min_size": float("inf")})


def test_another_slide_or_model_is_refused(slide, done, tmp_path):
    other = drawn_slide(tmp_path, SIZE[0], SIZE[1] + 1)
    with pytest.raises(OutputError, match="quick_hash was"):
        run(other, done.out)
    model = DrawnModel()
    model.postprocessor.magnification = 20
    with pytest.raises(OutputError, match="weights was"):
        segment_slide(slide, done.out, model=model, **PLAIN, tile_size=512)


def test_a_begun_folder_is_refused_too_and_overwrite_starts_anew(slide, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(io, "write_parquet_stream", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(slide, out)
    monkeypatch.undo()
    assert [path.name for path in (out / ".work").glob("part*")] == ["part-000000.arrow"]
    with pytest.raises(OutputError, match="tile_size was 512, is 768"):
        run(slide, out, tile_size=768)
    (out / "notes.txt").write_text("mine")
    assert run(slide, out, tile_size=768, overwrite=True).summary["settings"]["tile_size"] == 768
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / ".work").exists()


def test_a_second_process_is_told(slide, tmp_path):
    out = tmp_path / "out"
    with ResumeFolder(out), pytest.raises(OutputError, match=f"being written by process {os.getpid()} on "):
        run(slide, out)
    run(slide, out)


def test_a_full_disk_is_a_clear_error_and_loses_nothing(slide, tmp_path, monkeypatch):
    out = tmp_path / "out"

    monkeypatch.setattr(journal, "TILES_PER_CHUNK", 6)
    from cellvit.inference import prepare as preparation

    monkeypatch.setattr(preparation, "TILES_PER_CHUNK", 6)
    opened = journal.pa.ipc.new_file
    calls = []

    def new_file(sink, *args, **kwargs):
        calls.append(sink)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(sink, *args, **kwargs)

    monkeypatch.setattr(journal.pa.ipc, "new_file", new_file)
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        run(slide, out)
    assert [path.name for path in (out / ".work").glob("part*")] == ["part-000000.arrow"]
    monkeypatch.setattr(journal.pa.ipc, "new_file", opened)
    progress = []
    segment_slide(slide, out, model=DrawnModel(), progress=lambda *a: progress.append(a), **PLAIN, tile_size=512)
    assert progress[0] == (6, 12)
    assert progress[-1] == (12, 12)


def test_a_damaged_part_is_made_again(slide, done, tmp_path):
    out = tmp_path / "out"
    run(slide, out, keep_parts=True)
    (out / "summary.json").unlink()
    part = out / ".work" / "part-000000.arrow"
    part.write_bytes(part.read_bytes()[:2000])
    run(slide, out)
    assert (out / "nuclei.parquet").read_bytes() == (done.out / "nuclei.parquet").read_bytes()


def test_a_part_with_damage_within_is_made_again(slide, done, tmp_path):
    out = tmp_path / "out"
    run(slide, out, keep_parts=True)
    (out / "summary.json").unlink()
    part = out / ".work" / "part-000000.arrow"
    data = bytearray(part.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 4000] = b"\xff" * 4000
    part.write_bytes(data)
    run(slide, out)
    assert (out / "nuclei.parquet").read_bytes() == (done.out / "nuclei.parquet").read_bytes()


def test_an_unreadable_place_costs_its_tiles_only(slide, done, tmp_path, monkeypatch):
    from cellvit.slide.view import SlideView

    read = SlideView.read

    def damaged(self, x, y, width, height):
        if (x, y) == (448, 448) and width == 512:
            raise ImageError("damaged")
        return read(self, x, y, width, height)

    monkeypatch.setattr(SlideView, "read", damaged)
    with pytest.warns(UserWarning, match="1 of 12 tiles could not be read"):
        result = run(slide, tmp_path / "out", keep_parts=True)
    assert result.summary["tiles"]["unreadable"] == [[448, 448, 512, 512]]
    found, whole = result.nuclei(embedding=False).centroid, done.nuclei(embedding=False).centroid
    inside = ((found > 520) & (found < (880, 780))).all(axis=1)  # no other tile covers that
    assert not inside.any()
    outside = ~((whole > 440) & (whole < 970)).all(axis=1)
    assert len(found) >= outside.sum()
    # what is known of the damage is part of the finished work
    (tmp_path / "out" / "summary.json").unlink()
    monkeypatch.setattr(SlideView, "read", read)
    with pytest.warns(UserWarning, match="1 of 12 tiles could not be read"):
        run(slide, tmp_path / "out")

    monkeypatch.setattr(SlideView, "read", lambda self, *box: (_ for _ in ()).throw(ImageError("damaged")))
    monkeypatch.setattr(SlideView, "thumbnail", lambda self, side: np.full((60, 80, 3), 255, np.uint8))
    with pytest.raises(ImageError, match="no tile of it can be read"):
        run(slide, tmp_path / "none")


def test_a_slide_changed_while_it_was_done_is_refused(slide, tmp_path, monkeypatch):
    copy = tmp_path / "copy.tif"
    copy.write_bytes(slide.read_bytes())
    out = tmp_path / "out"
    run(copy, out, keep_parts=True)
    (out / "summary.json").unlink()
    copy.write_bytes(copy.read_bytes() + b"0")
    monkeypatch.setattr(fingerprints, "_SAMPLE_BYTES", 0)  # the quick digest misses it
    with pytest.raises(OutputError, match="quick_hash was"):
        run(copy, out)
    quick = json.loads((out / ".work" / "journal.json").read_text())["fingerprints"]["slide"]["quick_hash"]
    monkeypatch.setattr("cellvit.inference.prepare.quick_hash", lambda slide: quick)
    with pytest.raises(ImageError, match="was changed since its results were begun"):
        run(copy, out)


def test_a_model_that_is_changed_in_place_is_another_model():
    model = DrawnModel()
    before = fingerprints.weights_hash(model)
    assert fingerprints.weights_hash(DrawnModel()) == before
    model.postprocessor.extra = {"thresholds": np.array([0.5, 0.5])}
    middle = fingerprints.weights_hash(model)
    model.postprocessor.extra = {"thresholds": np.array([0.9, 0.1])}
    assert len({before, middle, fingerprints.weights_hash(model)}) == 3


def test_pixel_statistics_of_a_network_are_part_of_its_digest(tiny_model):
    from cellvit.inference.protocol import load_model

    model = load_model(tiny_model, device="cpu")
    before = fingerprints.weights_hash(model)
    assert fingerprints.weights_hash(load_model(tiny_model, device="cpu")) == before
    statistics = [buffer for name, buffer in model.named_buffers() if name not in model.state_dict()]
    assert statistics
    statistics[0].add_(0.1)
    assert fingerprints.weights_hash(model) != before


def test_a_finished_folder_that_lost_files_gets_them_back(slide, done, tmp_path):
    out = tmp_path / "out"
    run(slide, out, formats=("points",))
    for lost in ("nuclei.parquet", "points.geojson.gz", "tissue.png"):
        (out / lost).unlink()
        run(slide, out, formats=("points",))
        assert (out / lost).read_bytes() == (done.out / lost).read_bytes()


def test_files_of_other_settings_are_never_taken_for_finished_ones(slide, tmp_path):
    out = tmp_path / "out"
    run(slide, out, formats=("points",))
    (out / "summary.json").unlink()
    with pytest.warns(UserWarning, match=r"kept as nuclei\.parquet\.1, tissue\.png\.1, points\.geojson\.gz\.1"):
        result = run(slide, out, tile_size=768)
    assert not (out / "points.geojson.gz").exists()
    with pytest.warns(UserWarning, match="kept as"):
        again = run(slide, out, tile_size=768, formats=("points",))
    assert again.summary["settings"]["formats"] == ["points"]
    assert len(io.read_geojson(out / "points.geojson.gz")) == result.summary["nuclei"]["total"]


def test_a_finished_folder_needs_no_lock(slide, tmp_path):
    out = tmp_path / "out"
    first = run(slide, out)
    with ResumeFolder(out):
        assert run(slide, out).summary == first.summary


def test_unknown_settings_are_named(slide, tmp_path):
    with pytest.raises(ConfigError, match="no setting 'tilesize'; did you mean 'tile_size'"):
        run(slide, tmp_path / "out", tilesize=3)


def test_the_keywords_of_segment_slide_are_the_fields_of_its_settings():
    given = inspect.signature(segment_slide).parameters.values()
    others = {"path", "out", "model", "device", "progress", "trust", "unknown"}
    keywords = [p for p in given if p.name not in others]
    assert [(p.name, p.default, p.annotation) for p in keywords] == [
        (field.name, field.default, field.type) for field in fields(SlideSettings)
    ]
    assert {p.kind for p in keywords} == {inspect.Parameter.KEYWORD_ONLY}


def test_every_keyword_of_segment_slide_is_documented():
    text = segment_slide.__doc__.split("Args:")[1].split("Returns:")[0]
    named = re.findall(r"^ {8}\**(\w+):", text, flags=re.MULTILINE)
    assert named == list(inspect.signature(segment_slide).parameters)


class OnlyHere(HVPostprocessor):
    """A post-processor that cannot be sent to another process."""

    def __init__(self):
        super().__init__(normalisation="fixed")
        self.hook = lambda: None


def test_what_cannot_be_sent_to_a_worker_stays_in_this_process(slide, done, tmp_path):
    model = DrawnModel()
    model.postprocessor = OnlyHere()
    result = segment_slide(slide, tmp_path / "out", model=model, tile_size=512, **{**PLAIN, "workers": 2})
    assert result.summary["workers"]["kind"] == "threads"
    assert result.summary["nuclei"] == done.summary["nuclei"]


def test_a_region_counts_from_the_scanned_part_with_that_origin(tmp_path):
    from types import SimpleNamespace

    from cellvit.inference.prepare import prepare_slide
    from cellvit.inference.settings import SlideSettings

    pixels = np.full((800, 900, 3), 255, np.uint8)
    slide = SimpleNamespace(
        path=tmp_path / "x.mrxs",
        bounds=(200, 100, 500, 500),
        level_sizes=((900, 800),),
        stated_mpp=(0.25, 0.25),
        stated_magnification=None,
        read_region=lambda x, y, width, height, level=0: pixels[y : y + height, x : x + width],
    )
    roi = polygon_file(tmp_path / "roi.json", [[0, 0], [150, 0], [150, 150], [0, 150]])
    settings = SlideSettings(roi=roi, tissue_filter=False, origin="bounds", formats=())
    prepared = prepare_slide(slide, settings, model_mpp=0.25)
    assert prepared.region.contains(np.array([[201.0, 101.0], [349.0, 249.0], [351.0, 101.0]])).tolist() == [1, 1, 0]
    with pytest.raises(DataError, match="does not touch"):
        prepare_slide(slide, replace(settings, origin="slide"), model_mpp=0.25)


def test_a_killed_worker_is_a_clear_error(slide, tmp_path, monkeypatch):
    class Dies:
        def result(self):
            raise BrokenProcessPool("a child was terminated")

    monkeypatch.setattr(pipeline.PostprocessPool, "submit", lambda self, maps, finish: Dies())
    Dies.done = lambda self: True
    with pytest.raises(OutputError, match="fewer workers"):
        run(slide, tmp_path / "out")


def polygon_file(path, *rings):
    geometry = {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    return path


class NotesSizes(DrawnModel):
    """Notes the sizes of the batches that go through it, and may be stopped."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.sizes, self.stop_after = [], stop_after

    def predict_maps(self, image):
        if len(self.sizes) == self.stop_after:
            raise KeyboardInterrupt
        self.sizes.append(tuple(image.shape))
        return super().predict_maps(image)


def test_tiles_cut_down_to_a_region_give_the_same_nuclei_also_when_killed(slide, tmp_path, monkeypatch):
    roi = polygon_file(tmp_path / "roi.geojson", [[40, 50], [900, 60], [420, 400], [950, 1250], [30, 1200], [40, 50]])
    settings = {**PLAIN, "tile_size": 256, "roi": roi, "batch_size": 3, "measurements": False}
    found = {}
    for step in (10_000, 64):  # never, and in small steps
        monkeypatch.setattr(tiling, "CROP_STEP", step)
        model = NotesSizes()
        result = segment_slide(slide, tmp_path / str(step), model=model, **settings)
        pixels = sum(np.prod(size) for size in model.sizes)
        found[step] = result, pixels, {size[2:] for size in model.sizes}
    (whole, most, sizes), (cut, least, cut_sizes) = found.values()
    assert sizes == {(256, 256)}
    assert all(side % 64 == 0 for size in cut_sizes for side in size)
    assert least < 0.9 * most
    boxes = [sorted(map(tuple, result.nuclei(embedding=False).bbox.tolist())) for result in (whole, cut)]
    assert len(boxes[0]) > 200
    assert boxes[0] == boxes[1]
    assert whole.summary["fingerprints"]["settings"]["tiles"] != cut.summary["fingerprints"]["settings"]["tiles"]
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        segment_slide(slide, out, model=NotesSizes(stop_after=len(model.sizes) - 1), **settings)
    assert list((out / ".work").glob("part-*.arrow"))
    again = NotesSizes()
    segment_slide(slide, out, model=again, **settings)
    assert 0 < len(again.sizes) < len(model.sizes)
    assert (out / "nuclei.parquet").read_bytes() == (cut.out / "nuclei.parquet").read_bytes()
    monkeypatch.setattr(tiling, "CROP_STEP", 128)
    with pytest.raises(OutputError, match="tiles"):  # begun with other crops, a slide does not go on
        segment_slide(slide, out, model=DrawnModel(), **settings)
    monkeypatch.setattr(tiling, "CROP_STEP", 64)
    planned = plan_slide(slide, model=DrawnModel(), sample=0, **settings)
    assert planned.whole_tiles * 3 * 256**2 == least
    assert (planned.whole_tiles, planned.tiles) == (planned.whole_tiles_left, cut.summary["tiles"]["done"])


def test_a_region_keeps_the_nuclei_inside_and_skips_tiles_outside(slide, done, tmp_path):
    roi = polygon_file(tmp_path / "roi.geojson", [[100, 100], [700, 120], [650, 600], [90, 500], [100, 100]])
    result = run(slide, tmp_path / "out", roi=roi)
    whole, found = done.nuclei(embedding=False), result.nuclei(embedding=False)
    from shapely import Polygon, contains_xy

    shape = Polygon([[100, 100], [700, 120], [650, 600], [90, 500]])
    inside = contains_xy(shape, whole.centroid)
    assert sorted(map(tuple, found.bbox.tolist())) == sorted(map(tuple, whole.bbox[inside].tolist()))
    assert result.summary["tiles"]["done"] < result.summary["tiles"]["total"]
    assert result.summary["tissue"]["source"] == "region"
    assert result.summary["tissue"]["area_mm2"] == pytest.approx(shape.area * 0.25**2 / 1e6, rel=0.05)
    with pytest.raises(DataError):
        run(slide, tmp_path / "bad", roi=tmp_path / "missing.geojson")
    elsewhere = polygon_file(tmp_path / "elsewhere.geojson", [[9000, 0], [9900, 0], [9900, 99], [9000, 0]])
    with pytest.raises(DataError, match="does not touch the slide"):
        run(slide, tmp_path / "bad", roi=elsewhere)


@pytest.fixture
def left_part(monkeypatch):
    """Let the left 247.5 of 500 columns of a slide be tissue: a border that runs through nuclei."""
    mask = np.arange(1000) < 495
    monkeypatch.setattr(prepare, "find_tissue", lambda thumbnail, mpp: TissueMask(np.tile(mask, (40, 1))))


def test_nuclei_off_the_tissue_are_left_out_and_counted(tmp_path, left_part):
    slide = drawn_slide(tmp_path, 500, 400)
    tiles = {"tile_size": 128, "overlap": 32}
    whole = run(slide, tmp_path / "whole", **tiles)
    assert whole.summary["nuclei"]["off_tissue"] == 0
    whole = whole.nuclei(embedding=False)
    x, y = whole.centroid.T + 0.5
    result = run(slide, tmp_path / "out", tissue_filter=True, keep_parts=True, **tiles)
    found = result.nuclei(embedding=False)
    on = x < 247.5
    assert sorted(found.bbox.tolist()) == sorted(whole.bbox[on].tolist())
    assert found.label.tolist() == list(range(1, on.sum() + 1))
    nuclei = result.summary["nuclei"]
    assert nuclei["total"] == sum(nuclei["by_type"].values()) == on.sum()
    assert 0 < nuclei["off_tissue"] < (~on).sum()  # those of tiles that hold no tissue were never looked for
    assert nuclei["density_per_mm2"] == pytest.approx(on.sum() / (400 * 247.5 * 0.25**2 / 1e6), rel=1e-4)
    # a run that goes on leaves out the same
    reference = (result.out / "nuclei.parquet").read_bytes()
    (result.out / "summary.json").unlink()
    (result.out / ".work" / "part-000000.arrow").unlink()
    assert run(slide, result.out, tissue_filter=True, **tiles).summary["nuclei"] == nuclei
    assert (result.out / "nuclei.parquet").read_bytes() == reference
    # a region replaces the tissue, or both must agree
    roi = polygon_file(tmp_path / "roi.geojson", [[150, 0], [350, 0], [350, 280], [150, 280], [150, 0]])
    inside = (x > 150) & (x < 350) & (y < 280)
    every = run(slide, tmp_path / "every", roi=roi, **tiles).summary["nuclei"]
    assert (every["total"], every["off_tissue"]) == (inside.sum(), 0)
    agreed = run(slide, tmp_path / "agreed", roi=roi, tissue_filter=True, **tiles).summary["nuclei"]
    assert agreed["total"] == (inside & on).sum()
    assert 0 < agreed["off_tissue"] <= (inside & ~on).sum()


def test_an_empty_slide_gives_whole_empty_files(tmp_path):
    Image.new("RGB", (900, 700), (244, 243, 245)).save(tmp_path / "white.png")
    formats = tuple(name for name in FORMATS if name not in ("spatialdata", "dicom-3d"))
    settings = {**PLAIN, "tissue_filter": True, "formats": formats}
    with pytest.warns(UserWarning, match="no tissue was found"):
        result = segment_slide(tmp_path / "white.png", tmp_path / "out", model=DrawnModel(), mpp=0.25, **settings)
    assert result.summary["nuclei"] == {
        "total": 0,
        "by_type": dict.fromkeys(CLASSES.names[1:], 0),
        "density_per_mm2": None,
        "off_tissue": 0,
    }
    assert result.summary["tiles"]["done"] == 0
    assert len(result.nuclei()) == 0
    assert len(io.read_geojson(tmp_path / "out" / "nuclei.geojson.gz")) == 0


def test_a_slide_at_another_resolution_comes_back_in_its_own_pixels(tmp_path):
    """Discs on a slide at 0.5 µm per pixel are found by a model of 0.25 µm per pixel, in pixels of the slide."""
    centers = np.array([[60.0, 80.0], [300.25, 90.5], [500.0, 333.0]])
    y, x = np.mgrid[:400, :600]
    image = np.full((400, 600, 3), 255, np.uint8)
    for cx, cy in centers:
        image[(x - cx) ** 2 + (y - cy) ** 2 < 12**2] = 20
    Image.fromarray(image).save(tmp_path / "discs.png")
    settings = {**PLAIN, "mpp": 0.5, "tile_size": 256}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the picture is nearly black")  # what is searched for tissue is
        result = segment_slide(tmp_path / "discs.png", tmp_path / "out", model=DarkSpots(), **settings)
    found = result.nuclei(embedding=False).centroid
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], centers, atol=0.5)
    assert result.summary["workers"]["kind"] == "threads"


def test_no_resolution_is_a_refusal_before_the_model_is_loaded(tmp_path):
    Image.new("RGB", (300, 200), (200, 100, 200)).save(tmp_path / "plain.png")
    with pytest.raises(ImageError, match=r"pass mpp=0\.25"):
        segment_slide(tmp_path / "plain.png", tmp_path / "out", model="there is no such model")
    assert not (tmp_path / "out").exists()


def test_a_contradiction_is_a_warning_and_kept(slide, tmp_path):
    with pytest.warns(UserWarning, match=r"0\.25"):
        result = run(
            slide, tmp_path / "out", mpp=0.5, roi=polygon_file(tmp_path / "r.json", [[0, 0], [99, 0], [99, 99]])
        )
    assert result.summary["resolution"] == {"mpp": [0.5, 0.5], "source": "mpp"}
    assert len([text for text in result.summary["warnings"] if "published vectors" not in text]) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"formats": ("pdf",)}, "pdf"),
        ({"formats": "geojson"}, "tuple"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"origin": "corner"}, "origin"),
        ({"mpp": float("nan")}, "mpp"),
        ({"magnification": 0.0}, "magnification"),
        ({"overlap": 4}, "overlap"),
        ({"precision": "8-bit"}, "precision"),
    ],
)
def test_settings_that_cannot_work_are_refused(slide, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        run(slide, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_formats_of_an_extra_that_is_missing_are_refused(slide, tmp_path, monkeypatch):
    from cellvit.inference import settings

    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == "anndata" else object())
    with pytest.raises(ConfigError, match=r"from a checkout: pip install '\.\[spatial\]'"):
        run(slide, tmp_path / "out", formats=("h5ad",))


def test_the_table_is_columns_on_disk(done):
    with pq.ParquetFile(done.out / "nuclei.parquet") as file:
        names = file.schema_arrow.names
        facts = json.loads(file.schema_arrow.metadata[b"cellvit"])
    assert {"label", "type", "type_prob", "centroid", "bbox", "contour", "embedding", "geometry"} <= set(names)
    assert facts["metadata"]["base_mpp"] == 0.25
    assert facts["metadata"]["mpp_source"] == "slide"


def test_files_written_beside_each_other_are_the_same(slide, done, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "PARALLEL_EXPORT_MIN_NUCLEI", 1)
    monkeypatch.setattr(formats, "available_cores", lambda: 2)
    out = tmp_path / "out"
    names = ("geojson", "json", "points", "h5ad", "overlay")
    run(slide, out, formats=names)
    for name in names:
        assert (out / FORMATS[name]).read_bytes() == (done.out / FORMATS[name]).read_bytes()


def test_an_error_in_another_process_reaches_the_user(slide, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "PARALLEL_EXPORT_MIN_NUCLEI", 1)
    monkeypatch.setattr(formats, "available_cores", lambda: 2)
    out = tmp_path / "out"
    (out / FORMATS["points"]).mkdir(parents=True)
    with pytest.raises(OutputError, match="a folder of that name exists"):
        run(slide, out, formats=("points", "overlay"))
    (out / FORMATS["points"]).rmdir()
    assert run(slide, out, formats=("points", "overlay")).summary["nuclei"]["total"] > 0


def test_a_format_that_cannot_hold_the_slide_is_refused_before_the_work(slide, tmp_path):
    with pytest.raises(DataError, match="only a slide in DICOM"):
        run(slide, tmp_path / "out", formats=("dicom-3d",))
    assert not (tmp_path / "out").exists()
