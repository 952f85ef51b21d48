"""The page and the notebook "from a slide to a table" run as they stand, and are the same."""

import importlib.util
import json
import runpy
from pathlib import Path

import geopandas
import numpy as np
import pytest
from PIL import Image
from test_first_image import drawn_tissue

from cellvit import read_nuclei

DOCS = Path(__file__).parents[2] / "docs"
MAKER = runpy.run_path(str(DOCS / "make_notebook.py"))
NOTEBOOK = MAKER["NOTEBOOK"].read_text(encoding="utf-8")


def test_the_notebook_is_that_of_the_page():
    assert MAKER["notebook"](MAKER["PAGE"].read_text(encoding="utf-8")) == NOTEBOOK
    kinds = [cell["cell_type"] for cell in json.loads(NOTEBOOK)["cells"]]
    assert kinds.count("code") >= 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning:squidpy")
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.tile(drawn_tissue(), (2, 2, 1))).save("slide.svs", format="png", dpi=(101600, 101600))
    names = {}
    for cell in json.loads(NOTEBOOK)["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code" or ("import squidpy" in code and not importlib.util.find_spec("squidpy")):
            continue  # squidpy is no dependency; tests/io/test_export_anndata.py says what it does with our files
        exec(compile(code, str(MAKER["NOTEBOOK"]), "exec"), names)
    nuclei, table = names["nuclei"], names["table"]
    assert len(table) == len(nuclei) > 40
    assert nuclei.mpp == pytest.approx(0.25)
    np.testing.assert_allclose(table["area_um2"], nuclei.area_um2, rtol=1e-5)
    assert len(geopandas.read_parquet(names["result"].out / "region.parquet")) == len(names["inside"])
    back = read_nuclei(names["result"].out / "region.geojson")
    small = names["inside"]["area_um2"] < 10
    assert ((back.type == 0) == small.to_numpy()).all() or small.sum() == 0
    assert f"of {len(table)} nuclei have a type" in capsys.readouterr().out
