"""A reader of a new format is one class that is registered; the readers' libraries wait until a slide is opened."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cellvit.errors import ConfigError, ImageError
from cellvit.plugins.listing import plugin_rows
from cellvit.slide.naming import expand_inputs
from cellvit.slide.open import is_slide, open_slide
from cellvit.slide.readers.base import READERS, OtherReaderError, SlideReader


class TextSlide(SlideReader):
    """Numbers in lines of text, as a grey picture."""

    reader = "text"
    suffixes = frozenset({".grey"})

    def __init__(self, path):
        rows = [line.split() for line in path.read_text().splitlines()]
        if not all(word.isdigit() for row in rows for word in row):
            raise OtherReaderError("not only numbers")
        if len({len(row) for row in rows}) != 1:
            raise ImageError("its lines differ in length")
        self._pixels = np.array(rows, np.uint8)[..., None].repeat(3, axis=2)
        super().__init__(path, level_sizes=((len(rows[0]), len(rows)),), stated_mpp=(0.5, 0.5))

    def _read(self, level, x, y, width, height):
        return self._pixels[y : y + height, x : x + width].copy()


@pytest.fixture
def readers(monkeypatch):
    """Return the registry of readers, which forgets what a test adds."""
    READERS.load()
    monkeypatch.setattr(READERS, "_entries", dict(READERS._entries))
    return READERS


@pytest.fixture
def grey(tmp_path):
    path = tmp_path / "a.grey"
    path.write_text("0 10\n20 30\n40 50\n")
    return path


def test_our_own_readers_and_the_order_in_which_they_are_asked():
    assert READERS.names() == ["czi", "dicom", "image", "ome-zarr", "openslide", "tiff"]
    priority = {name: READERS.get(name).priority for name in READERS}
    order = sorted(READERS, key=priority.get, reverse=True)
    assert order == ["czi", "ome-zarr", "dicom", "openslide", "tiff", "image"]
    assert SlideReader.priority > priority["ome-zarr"]
    assert [row["name"] for row in plugin_rows(["reader"])] == READERS.names()
    assert all(row["summary"] for row in plugin_rows(["reader"]))


def test_a_registered_reader_opens_its_files(readers, grey):
    assert not is_slide(grey)
    assert expand_inputs([str(grey.parent)])[0] == []
    with pytest.raises(ImageError, match=r"a\.grey' is not a slide or an image"):
        open_slide(grey)
    readers.register("text")(TextSlide)
    assert is_slide(grey)
    assert expand_inputs([str(grey.parent)])[0] == [grey]
    with open_slide(grey) as slide:
        assert (slide.reader, slide.level_sizes, slide.stated_mpp) == ("text", ((2, 3),), (0.5, 0.5))
        assert slide.read_region(1, 1, 2, 2)[..., 0].tolist() == [[30, 255], [50, 255]]


def test_what_readers_said_is_told(readers, grey):
    readers.register("text")(TextSlide)
    grey.write_text("no numbers")
    with pytest.raises(ImageError, match=r"a\.grey' is not a slide .* \(text: not only numbers\); copy or"):
        open_slide(grey)
    grey.write_text("1 2\n3\n")
    with pytest.raises(ImageError, match=r"a\.grey': its lines differ in length"):
        open_slide(grey)


def test_the_priority_decides_who_is_asked_first(readers, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), "red").save(path)

    class Last(TextSlide):
        priority = 0

        @classmethod
        def accepts(cls, path):
            return True

    class First(Last):
        priority = 200

        def __init__(self, path):
            raise OtherReaderError("not today")

    readers.register("last")(Last)
    readers.register("first")(First)
    with open_slide(path) as slide:
        assert slide.reader == "pillow"
    path.write_text("7")
    with open_slide(path) as slide:
        assert slide.reader == "text"


def test_a_reader_that_a_package_declares_is_used(tmp_path, grey):
    site = tmp_path / "site"
    info = site / "grey_slides-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: grey-slides\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cellvit.readers]\ntext = grey_slides:TextSlide\n")
    source = Path(__file__).read_text(encoding="utf-8")
    start, stop = (source.index(words) for words in ("class TextSlide", "@pytest.fixture"))
    imports = "import numpy as np\nfrom cellvit.errors import ImageError\nfrom cellvit.slide.readers.base import *\n"
    (site / "grey_slides.py").write_text(imports + source[start:stop])
    script = (
        "import sys; from cellvit.slide.open import open_slide; from cellvit.plugins.listing import plugin_rows\n"
        "print(open_slide(sys.argv[1]).reader, [row['distribution'] for row in plugin_rows(['reader'])])\n"
    )
    paths = os.pathsep.join([str(site), *sys.path])
    command = [sys.executable, "-c", script, str(grey)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("text ['cellvit-lightning', "), done.stderr
    assert "'grey-slides'" in done.stdout


def test_what_is_no_reader_is_refused(readers):
    with pytest.raises(ConfigError, match="must be a class that derives from SlideReader"):
        readers.register("odd")(int)


def test_the_libraries_are_loaded_when_a_slide_is_opened(tmp_path):
    script = (
        "import sys\n"
        "from cellvit.slide.open import open_slide\n"
        "from cellvit.slide.readers import base\n"
        "loaded = [name for name in ('openslide', 'tifffile', 'pydicom', 'wsidicom') if name in sys.modules]\n"
        "assert not loaded, loaded\n"
        "try:\n    open_slide('missing.svs')\nexcept Exception as error:\n    print(error)\n"
        "assert not {'openslide', 'tifffile', 'pydicom', 'wsidicom'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "does not exist" in done.stdout
