"""Plans of slides: what is known without computing, what is measured, and what follows from it."""

import dataclasses
import json
import shutil
import tempfile
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from slide_drawings import drawn_nuclei, drawn_slide
from support.drawn_slides import DrawnModel

from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.inference import plan as planning
from cellvit.inference import prepare
from cellvit.inference.cohort.report import write_report
from cellvit.inference.cohort.run import SlideOutcome
from cellvit.inference.pipeline import TileStream
from cellvit.inference.plan import estimate as plan_estimate
from cellvit.inference.plan import picture as plan_picture
from cellvit.inference.plan import plan_slide
from cellvit.inference.plan.estimate import Range, estimate_needs
from cellvit.inference.plan.file_costs import Cost
from cellvit.inference.plan.measure import Sample, spread, tile_boxes
from cellvit.inference.settings import SlideSettings
from cellvit.inference.slide import segment_slide
from cellvit.slide.tiling import TileGrid
from cellvit.slide.tissue import TissueMask

SIZE = (1500, 1300)
PLAIN = {"device": "cpu", "workers": 0, "tissue_filter": False, "formats": ("points",), "tile_size": 512}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return drawn_slide(tmp_path_factory.mktemp("slides"), *SIZE)


@pytest.fixture(autouse=True)
def scratch(monkeypatch, tmp_path):
    """Return the temporary folder, in which nothing may be left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.glob("cellvit-plan-*")) == []


def plan(slide, **changes):
    return plan_slide(slide, **{"model": DrawnModel(), **PLAIN, **changes})


def run(slide, out, **changes):
    return segment_slide(slide, out, model=DrawnModel(), **{**PLAIN, **changes})


def region_file(path, *corners):
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [[*corners, corners[0]]]}))
    return path


def test_what_is_known_of_a_slide_without_computing(slide, monkeypatch):
    monkeypatch.setattr(TileStream, "run", lambda *a, **k: pytest.fail("computed"))
    found = plan(slide, sample=0)
    assert (found.sample, found.estimate, found.started, found.warnings) == (None, None, None, ())
    assert (found.reader, found.level_sizes[0], found.bounds) == ("tiff", SIZE, (0, 0, *SIZE))
    assert (found.stated_mpp, found.resolution.mpp, found.resolution.source) == ((0.25, 0.25), (0.25, 0.25), "slide")
    assert (found.view_size, found.level, found.factor) == (SIZE, 0, 1)
    assert (found.tiles_total, found.tiles, found.tiles_left) == (12, 12, 12)
    assert (found.tissue_source, found.tissue_share) == ("whole slide", 1.0)
    assert found.tissue_mm2 == pytest.approx(SIZE[0] * SIZE[1] * 0.25**2 / 1e6)
    assert found.size_bytes == slide.stat().st_size
    assert (found.model, found.device, found.workers) == ("DrawnModel", "cpu", 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.tiles = 1


def test_a_slide_of_another_resolution_is_resampled_from_the_level_that_fits(slide):
    found = plan(slide, sample=0, mpp=0.5)
    assert (found.view_size, found.level, found.factor) == ((3000, 2600), 0, 2)
    assert found.resolution.source == "mpp"
    assert len(found.warnings) == 1
    assert "states 0.25" in found.warnings[0]
    found = plan(slide, sample=0, mpp=0.05)
    assert (found.view_size, found.level) == ((300, 260), 1)
    assert found.factor == pytest.approx(0.8)


def test_what_is_predicted_is_what_a_run_gives(slide, tmp_path):
    formats = ("geojson", "points", "json", "overlay", "density", "closeups")
    found = plan(slide, sample=4, formats=formats)
    done = run(slide, tmp_path / "out", formats=formats, keep_parts=True)
    needs = found.estimate
    assert needs.nuclei.low <= done.summary["nuclei"]["total"] <= needs.nuclei.high
    sizes = {name: (tmp_path / "out" / file).stat().st_size for name, file in done.summary["files"].items()}
    for name in ("parquet", "geojson", "points", "json"):
        assert 0.9 * needs.files[name].low <= sizes[name] <= 1.1 * needs.files[name].high, name
    for name in ("overlay", "density", "closeups"):
        assert 0.5 * needs.files[name].low <= sizes[name] <= 2 * needs.files[name].high, name
    parts = sum(path.stat().st_size for path in (tmp_path / "out" / ".work").iterdir())
    assert 0.8 * needs.working_disk.low <= parts <= 1.2 * needs.working_disk.high
    assert needs.disk.high == pytest.approx(sum(size.high for size in needs.files.values()))
    assert 0 < needs.seconds.low <= needs.seconds.high
    assert needs.memory > 10**8
    assert needs.slowest in ("read", "network", "postprocess", "cores")


def test_a_sample_of_all_tiles_counts_all_nuclei(slide, tmp_path):
    found = plan(slide, sample=12)
    drawn = drawn_nuclei(*SIZE)
    drawn = drawn.select(~(drawn.cut & (drawn.area < 60)))
    assert sum(found.sample.nuclei) == pytest.approx(len(drawn), rel=0.01)
    assert sum(found.sample.tissue_mm2) == pytest.approx(found.tissue_mm2)
    assert found.sample.tiles.tolist() == list(range(12))
    roi = region_file(tmp_path / "roi.geojson", (200, 100), (1200, 100), (1200, 900), (200, 900))
    found = plan(slide, sample=12, roi=roi)
    inside = ((drawn.centroid > (200, 100)) & (drawn.centroid < (1200, 900))).all(axis=1)
    assert sum(found.sample.nuclei) == pytest.approx(inside.sum(), rel=0.02)
    assert found.tissue_source == "region"
    assert found.region_mm2 == pytest.approx(1000 * 800 * 0.25**2 / 1e6)
    assert found.sample.rows == pytest.approx(inside.sum(), rel=0.02)


def test_batches_and_stages_are_measured_one_by_one(slide):
    found = plan(slide, sample=2, batch_size=3)
    sample = found.sample
    assert (sample.groups, len(sample.tiles)) == ((3, 3), 6)
    for name in ("read", "forward", "postprocess", "write"):
        values = getattr(sample, name)
        assert len(values) == 2
        assert min(values) > 0, name
    assert sample.map_bytes > 512**2
    assert sample.part_bytes > 0
    assert set(sample.costs) == {"parquet", "points"}
    assert found.estimate.device_memory is None


def test_the_model_and_its_mode_stay_as_they_are(slide):
    model = DrawnModel()
    model.train(True)
    plan(slide, model=model, sample=1)
    assert model.training is True


def test_what_is_done_in_the_folder_is_counted_and_nothing_in_it_touched(slide, tmp_path):
    out = tmp_path / "out"
    assert plan(slide, sample=0, out=out).started is None
    assert not out.exists()
    run(slide, out, tile_size=256, keep_parts=True)
    found = plan(slide, out=out, tile_size=256)
    assert (found.started.finished, found.started.missing, found.tiles_left) == (True, (), 0)
    assert found.estimate is None
    assert plan(slide, out=out, tile_size=256, formats=("points", "json")).started.missing == ("json",)
    total = found.tiles
    assert total > 40
    (out / "summary.json").unlink()
    (out / ".work" / "part-000001.arrow").unlink()
    (out / ".work" / "part-000000.arrow").write_bytes(b"damaged")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    picture = tmp_path / "plan.png"
    found = plan(slide, sample=1, out=out, tile_size=256, thumbnail=picture)
    assert found.started.finished is False
    assert found.started.parts == (0, *range(2, -(-total // 16)))
    assert (found.started.tiles, found.tiles_left) == (total - 16, 16)
    assert found.estimate.seconds.high > 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    whole = plan(slide, sample=1, tile_size=256, thumbnail=tmp_path / "whole.png")
    assert whole.estimate.working_disk.high == pytest.approx(found.estimate.working_disk.high, rel=0.3)
    assert greenness(picture) > greenness(tmp_path / "whole.png") + 5


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def greenness(path):
    pixels = pixels_of(path)
    return (pixels[..., 1] - pixels[..., 0]).mean()


def test_another_run_in_the_folder_is_told(slide, tmp_path):
    out = tmp_path / "out"
    run(slide, out)
    found = plan(slide, sample=0, out=out, overlap=32)
    assert found.started.differs[0] == "settings overlap was 64, is 32"
    assert found.tiles_left == found.tiles
    (out / "summary.json").write_text("[]")
    found = plan(slide, sample=0, out=out)
    assert found.started.differs == ("summary.json is damaged (TypeError)",)


def test_too_little_disk_or_memory_is_a_warning(slide, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(path):
        asked.append(path)
        return usage(10**12, 10**12, 10**4)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(planning, "free_memory", lambda: 10**6)
    found = plan(slide, sample=1, out=tmp_path / "not" / "there", workers=3)
    assert asked == [tmp_path]
    assert len(found.warnings) == 2
    assert "embeddings=False" in found.warnings[0]
    assert "workers" in found.warnings[1]
    monkeypatch.setattr(planning, "free_memory", lambda: None)
    assert len(plan(slide, sample=1, out=tmp_path).warnings) == 1


def test_nuclei_off_the_tissue_are_not_predicted_and_counted(tmp_path, monkeypatch):
    slide = drawn_slide(tmp_path, 500, 400)
    mask = np.tile(np.arange(200) < 90, (10, 1))
    monkeypatch.setattr(prepare, "find_tissue", lambda thumbnail, mpp: TissueMask(mask))
    found = plan(slide, sample=4, tissue_filter=True, tile_size=256)
    done = run(slide, tmp_path / "out", tissue_filter=True, tile_size=256).summary["nuclei"]
    assert sum(found.sample.nuclei) == pytest.approx(done["total"], rel=0.02)
    # a tile tells which nuclei are its own, and the run knows of more that reach into a tile
    assert 0 < found.sample.off_tissue <= done["off_tissue"]


def test_an_empty_slide_has_nothing_to_do(tmp_path):
    path = tmp_path / "white.png"
    Image.new("RGB", (900, 700), "white").save(path)
    found = plan(path, mpp=0.25, tissue_filter=True, thumbnail=tmp_path / "plan.png")
    assert (found.tiles, found.tissue_mm2, found.estimate) == (0, 0, None)
    assert (tmp_path / "plan.png").stat().st_size > 0


def test_a_slide_without_nuclei_has_a_plan(tmp_path):
    path = tmp_path / "plain.png"
    Image.new("RGB", (900, 700), (0, 128, 128)).save(path)
    found = plan(path, mpp=0.25)
    assert (found.estimate.nuclei, found.sample.rows) == ((0, 0), 0)
    assert found.estimate.disk.low > 0


def test_what_cannot_be_planned_is_refused(slide, tmp_path):
    Image.new("RGB", (90, 70)).save(tmp_path / "plain.png")
    with pytest.raises(ImageError, match=r"plain\.png.* mpp="):
        plan(tmp_path / "plain.png")
    with pytest.raises(ImageError, match="does not exist"):
        plan(tmp_path / "missing.svs")
    with pytest.raises(ConfigError, match="sample -1"):
        plan(slide, sample=-1)
    with pytest.raises(ConfigError, match="overlap"):
        plan(slide, overlap=2)
    with pytest.raises(ConfigError, match="no picture format"):
        plan(slide, sample=0, thumbnail=tmp_path / "plan.txt")
    with pytest.raises(DataError, match="roi"):
        plan(slide, roi=tmp_path / "roi.geojson")


def test_the_plan_is_plain_data(slide, tmp_path):
    found = plan(slide, out=tmp_path)
    data = json.loads(json.dumps(found.as_data()))
    assert data["path"] == str(slide)
    assert data["tiles_left"] == 12
    assert data["resolution"] == {"mpp": [0.25, 0.25], "source": "slide"}
    assert set(data["estimate"]["seconds"]) == {"low", "high"}
    assert set(data["estimate"]["stages"]) == {"read", "network", "postprocess", "write"}
    assert len(data["sample"]["tiles"]) == 2
    assert set(data["sample"]["costs"]["parquet"]) == {"seconds", "seconds_per_nucleus", "size", "size_per_nucleus"}
    run(slide, tmp_path)
    assert json.loads(json.dumps(plan(slide, out=tmp_path).as_data()))["started"]["folder"] == str(tmp_path)


def test_the_picture_shows_tiles_region_and_what_is_left_out(slide, tmp_path):
    roi = region_file(tmp_path / "roi.geojson", (600, 500), (900, 500), (900, 800), (600, 800))
    found = plan(slide, sample=1, roi=roi, thumbnail=tmp_path / "plan.png", tile_size=256)
    pixels = pixels_of(tmp_path / "plan.png")
    assert pixels.shape[1] == SIZE[0]
    assert pixels.shape[0] > SIZE[1]  # a legend below
    picture = pixels[: SIZE[1]]
    for color in (plan_picture.REGION, plan_picture.TILE, plan_picture.MEASURED):
        assert (picture == color).all(axis=2).sum() > 300, color
    assert not (picture == plan_picture.DONE).all(axis=2).any()
    original = pixels_of(slide)
    inside, outside = (slice(560, 740), slice(660, 840)), (slice(0, 150), slice(0, 150))
    assert found.tiles < found.tiles_total
    assert (picture[outside] > original[outside]).any(axis=2).all()  # faded
    assert (picture[inside] == original[inside]).all(axis=2).mean() > 0.5


def test_a_real_slide(test_data):
    found = plan_slide(test_data / "wsi/cmu_small_region.svs", model=DrawnModel(), device="cpu", sample=0)
    assert (found.reader, found.resolution.source, found.level) == ("openslide", "slide", 0)
    assert found.factor == pytest.approx(0.499 / 0.25, rel=0.01)
    assert 0.3 < found.tissue_share < 0.7
    assert 0 < found.tiles < found.tiles_total
    without = test_data / "wsi/tcga_pyramid_without_mpp.svs"
    with pytest.raises(ImageError, match=r"mpp=0\.25"):
        plan_slide(without, model=DrawnModel(), sample=0)
    assert plan_slide(without, model=DrawnModel(), sample=0, mpp=0.5).resolution.source == "mpp"


# The choice of tiles, and the arithmetic


def prepared(width, height, mask, *, tile_size=64, overlap=8):
    grid = TileGrid(width, height, tile_size, overlap)
    tissue = TissueMask(mask)
    numbers = np.arange(len(grid))
    fake = SimpleNamespace(grid=grid, tissue=tissue, size=(width, height), tiles=numbers)
    fake.tiles = np.flatnonzero(tissue.coverage(tile_boxes(fake, numbers), (width, height)) > 0)
    return fake


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(20, 700), st.integers(20, 700)),
    count=st.integers(1, 6),
    batch=st.integers(1, 7),
)
def test_batches_of_a_sample_are_apart_and_in_order(seed, size, count, batch):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 11)) < rng.random()
    mask[rng.integers(9), rng.integers(11)] = True
    fake = prepared(*size, mask)
    groups = spread(fake, count, batch)
    tiles = np.concatenate(groups)
    assert (np.diff(tiles) > 0).all()
    assert np.isin(tiles, fake.tiles).all()
    assert len(tiles) == min(len(fake.tiles), count * batch)
    assert max(map(len, groups)) <= batch
    assert len(groups) <= count
    for group in groups:  # neighbours in the order of the run
        assert np.diff(np.searchsorted(fake.tiles, group)).tolist() == [1] * (len(group) - 1)


def test_tiles_are_chosen_where_the_tissue_is():
    mask = np.zeros((100, 100), bool)
    mask[:, :3] = True  # a sliver on the left
    mask[40:60, 30:70] = True
    fake = prepared(5600, 5600, mask)
    chosen = np.concatenate(spread(fake, 8, 1))
    share = fake.tissue.coverage(tile_boxes(fake, chosen), fake.size)
    assert share.mean() > fake.tissue.coverage(tile_boxes(fake, fake.tiles), fake.size).mean()
    rows = chosen // len(fake.grid.columns.starts)
    assert np.ptp(rows) > 10


@given(width=st.integers(1, 500), height=st.integers(1, 500))
def test_cores_of_tiles_partition_the_view(width, height):
    fake = prepared(width, height, np.ones((2, 2), bool))
    cores = tile_boxes(fake, np.arange(len(fake.grid)), core=True)
    area = (cores[:, 2] - cores[:, 0]) * (cores[:, 3] - cores[:, 1])
    assert area.sum() == pytest.approx(width * height)
    whole = tile_boxes(fake, np.arange(len(fake.grid)))
    for index in range(len(fake.grid)):
        tile = fake.grid.tile(index)
        assert whole[index].tolist() == [tile.x, tile.y, tile.x + tile.width, tile.y + tile.height]


def sample_of(**changes):
    values = {
        "tiles": np.array([1, 5]),
        "groups": (1, 1),
        "read": (0.01, 0.01),
        "forward": (0.1, 0.1),
        "postprocess": (0.05, 0.05),
        "write": (0.0016, 0.0016),
        "nuclei": (100, 100),
        "tissue_mm2": (0.05, 0.05),
        "part_bytes": 1000.0,
        "map_bytes": 500.0,
        "rows": 200,
        "costs": {"parquet": Cost(0.0, 0.0, 100.0, 10.0)},
        "device_bytes": None,
    }
    return Sample(**{**values, **changes})


def needs(sample, **changes):
    values = {
        "device": "cuda",
        "workers": 4,
        "tiles": 1000,
        "all_tiles": 1000,
        "tissue_mm2": 50.0,
        "prepared_in": 0.0,
        "process_bytes": 10**9,
    }
    return estimate_needs(sample, changes.pop("settings", SlideSettings(formats=())), **{**values, **changes})


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have 16 cores, all of which torch uses."""
    monkeypatch.setattr(plan_estimate, "available_cores", lambda: 16)
    monkeypatch.setattr(plan_estimate.torch, "get_num_threads", lambda: 16)


def middle(span):
    return sum(span) / 2


@pytest.mark.parametrize(
    ("sample", "changes", "slowest", "seconds"),
    [
        ({}, {}, "network", 1000 * 0.1),
        ({"postprocess": (1.0, 1.0)}, {}, "postprocess", 1000 * 1.0 / 4),
        ({"postprocess": (1.0, 1.0)}, {"workers": 8}, "postprocess", 1000 * 1.0 / 8),
        ({"read": (1.6, 1.6)}, {}, "read", 1000 * 1.6 / 8),
        ({}, {"device": "cpu"}, "cores", 1000 * (0.1 + 0.061 / 16)),
        ({}, {"tiles": 500}, "network", 500 * 0.1),
    ],
)
def test_the_slowest_stage_decides_the_time(machine, sample, changes, slowest, seconds):
    found = needs(sample_of(**sample), **changes)
    assert found.slowest == slowest
    assert middle(found.seconds) == pytest.approx(seconds, rel=0.12)
    assert found.seconds.low < seconds < found.seconds.high


def test_files_and_time_grow_with_the_nuclei(machine):
    costs = {"parquet": Cost(2.0, 0.001, 100.0, 10.0), "overlay": Cost(1.0, 0.0, 5000.0, 0.0)}
    found = needs(sample_of(costs=costs))
    without = needs(sample_of())
    assert middle(found.nuclei) == pytest.approx(2000 * 50)
    assert middle(found.files["parquet"]) == pytest.approx(100 + 10 * 100_000, rel=0.03)
    assert middle(found.files["overlay"]) == pytest.approx(5000)
    assert middle(found.seconds) - middle(without.seconds) == pytest.approx(3 + 100, rel=0.1)
    assert middle(found.working_disk) == pytest.approx(1000 * 1000)
    assert found.memory > 10**9 + 4 * found.worker_memory


def test_tiles_that_differ_make_the_ranges_wider(machine):
    alike, apart = needs(sample_of()), needs(sample_of(nuclei=(20, 180), postprocess=(0.2, 1.8)))
    assert np.ptp(apart.nuclei) > 3 * np.ptp(alike.nuclei)
    assert np.ptp(apart.seconds) > np.ptp(alike.seconds)
    many = sample_of(nuclei=(20, 180) * 8, tissue_mm2=(0.05,) * 16)
    assert np.ptp(needs(many).nuclei) < np.ptp(apart.nuclei) / 2
    one = sample_of(
        groups=(1,), read=(0.1,), forward=(0.1,), postprocess=(0.1,), write=(0.1,), nuclei=(9,), tissue_mm2=(0.05,)
    )
    assert np.ptp(needs(one).nuclei) > 0


@given(
    values=st.lists(st.tuples(*[st.floats(1e-4, 10)] * 4, st.integers(0, 2000)), min_size=1, max_size=5),
    workers=st.integers(0, 20),
    tiles=st.integers(1, 10**5),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_ranges_are_ranges(values, workers, tiles, device):
    read, forward, post, write, nuclei = zip(*values, strict=True)
    sample = sample_of(
        groups=(1,) * len(values),
        read=read,
        forward=forward,
        postprocess=post,
        write=write,
        nuclei=nuclei,
        tissue_mm2=(0.05,) * len(values),
    )
    found = needs(sample, workers=workers, tiles=tiles, all_tiles=tiles, device=device)
    more = needs(sample, workers=workers, tiles=tiles + 1, all_tiles=tiles + 1, device=device)
    for span in (found.nuclei, found.seconds, found.disk, found.working_disk, *found.files.values()):
        assert 0 <= span.low <= span.high < np.inf
    for span in found.stages.values():
        assert 0 < span.low <= span.high
    assert more.seconds.high >= found.seconds.high * (1 - 1e-9)


def test_arithmetic_of_ranges():
    assert Range(1, 2).times(3) == Range(3, 6)
    assert Range(1, 2).times(0.5, 2) == Range(0.5, 4)
    assert Range(1, 2).plus(1) == Range(2, 3)
    assert Range(1, 2).plus(1, 5) == Range(2, 7)


def test_a_slide_that_contradicts_itself_is_told_by_plan_summary_and_report(tmp_path):
    path, pixels = tmp_path / "a.tif", np.full((256, 256, 3), 200, np.uint8)
    text = "Aperio Image Library v11|AppMag = 40|MPP = 1.0"
    tags = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), description=text, metadata=None, **tags)
    settings = {"tile_size": 256}
    told = plan(path, sample=0, **settings).warnings
    assert "contradicts itself: it states 1 µm/px in its metadata (aperio) and 0.5 µm/px in its TIFF tags" in told[0]
    assert "contradicts itself: it states 1 µm/px and a magnification of 40, which is about 0.25 µm/px" in told[1]
    with pytest.warns(UserWarning, match="contradicts itself"):
        result = run(path, tmp_path / "out", **settings)
    assert set(told) <= set(result.summary["warnings"])
    outcome = SlideOutcome(path, tmp_path / "out", result.summary, None, 1.0, "cpu", {}, None)
    write_report([outcome], tmp_path / "report.html", title="Nuclei")
    assert "a magnification of 40, which is about 0.25" in (tmp_path / "report.html").read_text(encoding="utf-8")
