"""The Python of the tutorial runs as it stands, one piece after the other."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellvit import read_nuclei

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "tutorials" / "first-image.md"


def drawn_tissue():
    """Return pink tissue with dark round nuclei."""
    rows, cols = np.mgrid[:256, :320]
    image = np.full((256, 320, 3), (235, 190, 215), np.uint8)
    for y in range(24, 256, 40):
        for x in range(24, 320, 40):
            image[(rows - y) ** 2 + (cols - x) ** 2 < 81] = (75, 45, 120)
    return image


@pytest.mark.slow
def test_the_python_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(drawn_tissue()).save("tissue.png")
    Image.fromarray(drawn_tissue()).save("slide.svs", format="png")
    pieces = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}
    for piece in pieces:
        exec(compile(piece, str(PAGE), "exec"), names)
    nuclei = names["again"]
    assert len(nuclei) > 10
    assert len(names["first"]) == 10
    assert (Path("results") / "slide" / "nuclei.geojson.gz").is_file()
    assert len(names["nuclei"]) == len(read_nuclei("results/slide"))
    assert capsys.readouterr().out.startswith(repr(nuclei))
