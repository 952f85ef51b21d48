"""SpatialData is imported in processes of its own: its import is slow, and warns of what is not ours."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tifffile
from export_samples import many, with_embedding

from cellvit.cli import main
from cellvit.errors import ConfigError, OutputError
from cellvit.io import write_parquet, write_spatialdata
from cellvit.io.spatialdata import _atomic_store
from cellvit.types import Nuclei

READ = """
    import json, sys, warnings
    import numpy as np
    from cellvit import Nuclei, read_nuclei
    from cellvit.io import ParquetStream, write_spatialdata
    source, target, picture = sys.argv[1:]

    class DrawnSlide:
        path = None

        def __init__(self, pixels):
            self.pixels, self.level_sizes = pixels, (pixels.shape[1::-1],)

        def read_region(self, x, y, width, height, *, level=0):
            return self.pixels[y : y + height, x : x + width]

    if picture == "with":
        more = {"image": np.arange(600, dtype=np.uint8).reshape(10, 20, 3), "bounds": (100, 200, 200, 50)}
    else:
        more = {}
    import spatialdata
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):  # the second replaces the first
            write_spatialdata(ParquetStream(source), target, metadata={"base_mpp": 0.25}, **more)
    data = spatialdata.read_zarr(target)
    table = data["table"]
    embedding = table.obsm["embedding"]
    found = {
        "elements": sorted(name for _, name, _ in data.gen_elements()),
        "obs": {name: table.obs[name].astype(object).tolist() for name in table.obs},
        "categories": table.obs["type"].cat.categories.tolist(),
        "attributes": table.uns.get("spatialdata_attrs"),
        "colors": table.uns["type_colors"].tolist(),
        "metadata": table.uns["cellvit"]["metadata"],
        "spatial": table.obsm["spatial"].tolist(),
        "embedding": [embedding.shape, str(embedding.dtype), embedding.tolist()],
    }
    if "nuclei" in found["elements"]:
        shapes = data["nuclei"]
        found["index"] = shapes.index.tolist()
        found["outlines"] = [list(map(list, shape.exterior.coords)) for shape in shapes.geometry]
        found["valid"] = bool(shapes.is_valid.all())
        joined, _ = spatialdata.join_spatialelement_table(
            sdata=data, spatial_element_names="nuclei", table_name="table", how="inner"
        )
        found["joined"] = len(joined["nuclei"])
    found["attrs"] = {name: data.attrs[name] for name in sorted(data.attrs) if name != "spatialdata_attrs"}
    if "nuclei" in found["elements"]:
        found["colored by"] = [shapes["class"].tolist(), shapes["prob"].tolist()]
    back = [read_nuclei(target), Nuclei.from_spatialdata(read_nuclei(target).to_spatialdata())]
    found["read"] = [[one.label.tolist(), one.type.tolist(), one.area.tolist(), one.mpp] for one in back]
    if picture == "with":
        image = data["thumbnail"]
        found["pixel"] = np.asarray(image.isel(y=3, x=4)).tolist()
        matrix = spatialdata.transformations.get_transformation(image).to_affine_matrix(("x", "y"), ("x", "y"))
        found["matrix"] = matrix.tolist()
    if picture == "with":  # an open slide: written whole, in levels that the file need not have
        slide = DrawnSlide(np.random.default_rng(0).integers(0, 256, (1300, 1100, 3), dtype=np.uint8))
        write_spatialdata(ParquetStream(source), target, image=slide)
        whole = spatialdata.read_zarr(target)
        found["whole"] = [sorted(whole.images), whole.attrs["cell_segmentation_image"], len(whole["image"])]
        found["same"] = bool((whole["image"]["scale0"].image.values == slide.pixels.transpose(2, 0, 1)).all())
    print(json.dumps(found))
"""


def run(folder, table, picture="without"):
    write_parquet(table, folder / "a.parquet")
    code = textwrap.dedent(READ)
    command = [sys.executable, "-c", code, str(folder / "a.parquet"), str(folder / "a.zarr"), picture]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_polygons_and_their_table_are_read_back(tmp_path):
    table = with_embedding(many(40, points=8), 3)
    table.type[7] = 0
    found = run(tmp_path, table, "with")
    assert found["elements"] == ["nuclei", "table", "thumbnail"]
    assert found["index"] == found["obs"]["nucleus"] == list(range(1, 41))
    assert set(found["obs"]["region"]) == {"nuclei"}
    assert found["attributes"] == {"region": "nuclei", "region_key": "region", "instance_key": "nucleus"}
    assert found["joined"] == 40
    assert found["valid"]
    assert [outline[:-1] for outline in found["outlines"]] == [table.contour(i).tolist() for i in range(40)]
    assert found["obs"]["label"] == table.label.tolist()
    assert found["obs"]["type_id"] == table.type.tolist()
    assert found["obs"]["type"] == [table.classes.names[kind] if kind else "No type" for kind in table.type.tolist()]
    assert len(found["colors"]) == len(found["categories"]) == len(set(table.type.tolist()))
    assert json.loads(found["metadata"]) == {"base_mpp": 0.25}
    assert found["read"] == [[table.label.tolist(), table.type.tolist(), table.area.tolist(), 0.25]] * 2
    assert found["spatial"] == table.centroid.tolist()
    assert found["embedding"] == [[40, 3], "float32", table.embedding.tolist()]
    assert found["pixel"] == [(3 * 20 + 4) * 3 % 256 + c for c in range(3)]
    # 20 x 10 pixels over 200 x 50 units; the centre of the first (0.5, 0.5) lies at (100, 200) + (5, 2.5)
    x, y, _ = np.array(found["matrix"]) @ [0.5, 0.5, 1]
    assert (x, y) == (105, 202.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "a.zarr"]
    assert found["attrs"] == {"boundaries_shapes": "nuclei"}
    assert found["colored by"] == [found["obs"]["type"], found["obs"]["type_prob"]]
    assert found["whole"] == [["image"], "image", 2]
    assert found["same"]


@pytest.mark.slow
def test_zero_nuclei_have_a_table_with_all_columns(tmp_path):
    found = run(tmp_path, Nuclei.empty(embedding_dim=3, classes=many(1).classes))
    assert found["elements"] == ["table"]
    assert found["read"] == [[[], [], [], 0.25]] * 2
    assert found["embedding"] == [[0, 3], "float32", []]
    assert {"label", "type", "type_id", "type_prob", "area_px"} < set(found["obs"])
    assert found["categories"] == []


def test_a_slide_is_given_to_a_store_of_spatialdata(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("cellvit.io.spatialdata.write_spatialdata", lambda *_, image, **__: given.update(image=image))
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(16, 16))
    write_parquet(many(3), tmp_path / "a.parquet")
    command = ["convert-nuclei", tmp_path / "a.parquet", tmp_path / "a.zarr", "--slide", tmp_path / "s.tif"]
    assert main(list(map(str, command))) == 0
    assert given["image"].level_sizes == ((64, 64),)


def make_store(folder, text):
    folder.mkdir()
    (folder / "zarr.json").write_text(text)


def test_a_store_takes_the_place_of_another_when_complete(tmp_path):
    target = tmp_path / "a.zarr"
    for text in ("one", "two"):
        with _atomic_store(target) as temporary:
            make_store(temporary, text)
            assert temporary.parent == tmp_path
            assert not target.exists() or (target / "zarr.json").read_text() == "one"
        assert (target / "zarr.json").read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_failure_leaves_the_old_store_and_no_other(tmp_path, error):
    target = tmp_path / "a.zarr"
    make_store(target, "old")

    def fail():
        with _atomic_store(target) as temporary:
            make_store(temporary, "half")
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        fail()
    assert (target / "zarr.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_only_stores_are_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("thesis", "file"):
        with pytest.raises(OutputError, match="choose another name"), _atomic_store(tmp_path / name):
            pass
    with pytest.raises(OutputError, match="create it first"), _atomic_store(Path(tmp_path, "missing", "a.zarr")):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "thesis"]
    assert (tmp_path / "thesis" / "text").read_text() == "mine"


def test_a_package_that_is_missing_is_named_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(ConfigError, match=r"'spatialdata'.*from a checkout: pip install '\.\[spatial\]'"):
        write_spatialdata(many(3), tmp_path / "a.zarr")
    with pytest.raises(ConfigError, match="of no image"):
        write_spatialdata(many(3), tmp_path / "a.zarr", bounds=(0, 0, 1, 1))


@pytest.mark.slow
def test_what_is_refused_leaves_no_store(tmp_path):
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        from export_samples import CutStream, many
        from cellvit.errors import DataError
        from cellvit.io import write_spatialdata
        table = many(9)
        table.bbox[7, 0] = np.nan
        for metadata in ({"a": object()}, {}):
            try:
                write_spatialdata(CutStream(table, [3]), sys.argv[2], metadata=metadata)
            except DataError as error:
                print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parent), str(tmp_path / "a.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "plain data" in done.stdout
    assert "bbox of nucleus 7 holds" in done.stdout
    assert list(tmp_path.iterdir()) == []
