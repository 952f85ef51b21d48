"""Tables of nuclei as frames of other packages, and back."""

import sys
from dataclasses import replace

import geopandas
import numpy as np
import pandas as pd
import polars
import pytest
from export_samples import PANNUKE, assert_same, make_nuclei, many, nuclei, square, star_outlines, with_embedding
from hypothesis import given, settings
from PIL import Image
from shapely.geometry import MultiPolygon, Point, Polygon, box

from cellvit import Nuclei, io
from cellvit.errors import ConfigError, DataError

FLAT = ("centroid", "bbox", "type", "type_prob", "label")
TABLE = replace(many(40), mpp=0.25)


@given(nuclei(star_outlines(), embeddings=False))
@settings(max_examples=25)
def test_frames_give_back_what_they_were_made_of(table):
    table = replace(table, mpp=0.5)
    back = Nuclei.from_pandas(table.to_pandas())
    assert_same(table, back, FLAT)
    assert back.mpp == 0.5
    drawn = Nuclei.from_geopandas(table.to_geopandas())
    assert drawn.label.tolist() == table.label.tolist()
    assert drawn.type.tolist() == table.type.tolist()
    np.testing.assert_array_equal(drawn.contour_points, table.contour_points)
    np.testing.assert_array_equal(drawn.contour_offsets, table.contour_offsets)
    assert drawn.classes == table.classes


def test_polars_holds_the_same_columns():
    frame = TABLE.to_polars()
    assert frame.columns == TABLE.to_pandas().columns.tolist()
    assert frame["type"].dtype == polars.String
    assert_same(TABLE, Nuclei.from_polars(frame), FLAT)


def test_columns_are_what_people_work_with():
    table = replace(make_nuclei([square(0, 0), square(20, 0)], type=[3, 0]), mpp=0.5)
    frame = table.to_pandas()
    assert frame["type"].cat.categories.tolist() == list(PANNUKE.names[1:])
    assert frame["type"].isna().tolist() == [False, True]
    assert frame["area_px"].tolist() == [64, 64]
    assert frame["area_um2"].tolist() == [16, 16]
    assert "area_um2" not in replace(table, mpp=None).to_pandas()


def test_rows_may_be_sorted_left_out_and_corrected():
    frame = TABLE.to_pandas().sort_values("x").iloc[::2]
    frame.loc[frame.index[0], "type"] = "Dead"
    back = Nuclei.from_pandas(frame)
    assert back.label.tolist() == frame["label"].tolist()
    assert [nucleus.type_name for nucleus in back] == frame["type"].tolist()
    assert back[0].type == 4


def test_types_without_the_list_of_classes_keep_their_numbers():
    classes = type(PANNUKE)(("Background", "a", "b", "c"), ((0, 0, 0),) * 4)
    table = make_nuclei([square(0, 0)] * 2, type=[3, 2], classes=classes)
    frame = table.to_pandas()
    frame.attrs.clear()
    assert Nuclei.from_pandas(frame).type.tolist() == [3, 2]
    frame = frame.drop(columns="type")
    back = Nuclei.from_pandas(frame)
    assert (back.type.tolist(), back.classes) == ([3, 2], None)


def test_a_frame_of_others_needs_places_only():
    back = Nuclei.from_pandas(pd.DataFrame({"x": [1.5, 7], "y": [2.5, 8], "type": ["tumour", None]}))
    assert back.bbox.tolist() == [[1, 2, 2, 3], [7, 8, 8, 9]]
    assert [nucleus.type_name for nucleus in back] == ["tumour", "No type"]
    assert back.label.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"needs columns x and y, or polygons"):
        Nuclei.from_pandas(pd.DataFrame({"a": [1]}))


def test_polygons_of_others_are_outlines():
    shapes = [MultiPolygon([box(0, 0, 4, 4), box(9, 9, 19, 19)]), Point(3, 4), Polygon([(0, 0), (6, 0), (0, 6)])]
    back = Nuclei.from_geopandas(geopandas.GeoDataFrame(geometry=shapes))
    np.testing.assert_array_equal(back.area, [100, np.nan, 18])
    assert back.centroid.tolist()[1:] == [[3, 4], [2, 2]]
    moved = TABLE.to_geopandas()
    moved.geometry = moved.geometry.translate(500, 0)
    np.testing.assert_allclose(Nuclei.from_geopandas(moved).centroid - TABLE.centroid, [[500, 0]] * 40, atol=1)


def test_geojson_read_by_geopandas_is_read(tmp_path):
    io.write_geojson(TABLE, tmp_path / "a.geojson")
    back = Nuclei.from_geopandas(geopandas.read_file(tmp_path / "a.geojson", engine="pyogrio"))
    assert back.label.tolist() == TABLE.label.tolist()
    assert [one.type_name for one in back] == [one.type_name for one in TABLE]


def test_anndata_gives_back_all_but_outlines():
    table = with_embedding(TABLE, 4)
    data = table.to_anndata()
    assert data.obs["type"].tolist() == [nucleus.type_name for nucleus in table]
    back = Nuclei.from_anndata(data)
    assert_same(table, back, FLAT)
    np.testing.assert_array_equal(back.embedding, table.embedding)
    assert back.mpp == 0.25
    data.uns.clear()
    with pytest.raises(DataError, match="the AnnData"):
        Nuclei.from_anndata(data)


@pytest.mark.parametrize(("module", "method"), [("polars", "to_polars"), ("geopandas", "to_geopandas")])
def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, module, method):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"'{module}'.*pip install '\.\[formats\]'"):
        getattr(TABLE, method)()


def test_areas_are_in_pixels_and_in_micrometres():
    table = make_nuclei([square(0, 0), [], [(1, 1)]])
    np.testing.assert_array_equal(table.area, [64, np.nan, 0])
    with pytest.raises(DataError, match=r"not known.*mpp=0.25"):
        _ = table.area_um2
    sized = replace(table, mpp=0.5)
    assert sized.area_um2[0] == 16
    # the nuclei stay as large in µm, wherever they are drawn
    assert sized.transform(scale=(2, 2)).mpp == 0.25
    assert sized.transform(scale=(2, 8)).area_um2[0] == pytest.approx(16)


def test_the_resolution_is_kept_as_far_as_it_is_one():
    table = replace(make_nuclei([square(0, 0)]), mpp=0.5)
    assert Nuclei.concatenate([table, table])[0:1].mpp == 0.5
    assert Nuclei.concatenate([table, replace(table, mpp=0.25)]).mpp is None


def test_a_picture_is_one_that_notebooks_show():
    picture = make_nuclei([square(8, 8, 40)]).plot(np.full((60, 80, 3), 255, np.uint8), legend=False)
    assert isinstance(picture, Image.Image)
    assert picture.size == (80, 60)
    assert np.asarray(picture).min() < 100
