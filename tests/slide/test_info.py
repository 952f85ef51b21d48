"""What a file is: each fact from a drawn file that states it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.errors import ImageError
from cellvit.slide import info as slide_infos
from cellvit.slide.info import Picture, info_of, slide_info

RGB = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
TILED = {"tile": (16, 16), "photometric": "rgb"}
CENTIMETRE = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}


def test_a_pyramid_with_its_levels_resolution_and_pixels(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, **TILED, **CENTIMETRE, compression="zlib")
        writer.write(RGB[::2, ::2], **TILED, subfiletype=1)
    info = slide_info(path)
    assert (info.path, info.size_bytes, info.reader) == (path, path.stat().st_size, "tiff")
    assert (info.level_sizes, info.bounds) == (((96, 64), (48, 32)), (0, 0, 96, 64))
    assert (info.mpp, info.magnification, info.warnings) == ((0.25, 0.25), None, ())
    facts = info.pixels
    assert (facts.channels, facts.bits, facts.significant_bits, facts.alpha) == (3, 8, None, None)
    assert facts.compression == "ADOBE_DEFLATE"
    assert [picture.size for picture in facts.scenes] == [(96, 64)]
    assert facts.associated == ()


@pytest.mark.parametrize(("stated", "alpha"), [("assocalpha", "associated"), ("unassalpha", "unassociated")])
def test_alpha_is_named_as_the_file_does(tmp_path, stated, alpha):
    tifffile.imwrite(tmp_path / "a.tif", RGB[..., [0, 1, 2, 0]], **TILED, extrasamples=[stated])
    facts = slide_info(tmp_path / "a.tif").pixels
    assert (facts.channels, facts.alpha, facts.compression) == (4, alpha, "NONE")


def test_a_fourth_sample_of_which_nothing_is_said_is_not_called_alpha(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB[..., [0, 1, 2, 0]], **TILED, extrasamples=["unspecified"])
    assert slide_info(tmp_path / "a.tif").pixels.alpha == "unspecified"


def test_an_ome_file_states_used_bits_names_and_objective(tmp_path):
    path = tmp_path / "a.ome.tif"
    deep = np.moveaxis(RGB.astype(np.uint16), 2, 0)
    pixels = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "SignificantBits": 12}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(deep, photometric="minisblack", metadata={"axes": "CYX", "Name": "scan", **pixels})
        writer.write(RGB[:20, :30], photometric="rgb", metadata={"axes": "YXS", "Name": "label"})
    info = slide_info(path)
    assert info.mpp == (0.5, 0.5)
    facts = info.pixels
    assert (facts.kind, facts.channels, facts.bits, facts.significant_bits) == ("ome", 3, 16, 12)
    assert facts.scenes == (Picture("scan", (96, 64)),)
    assert facts.associated == (Picture("label", (30, 20)),)


def test_scenes_are_listed_also_where_the_reader_wants_one_chosen(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, size in (("one", 64), ("two", 60)):
            writer.write(RGB[:size], photometric="rgb", metadata={"axes": "YXS", "Name": name})
    scenes = (Picture("one", (96, 64)), Picture("two", (96, 60)))

    def refuse(path):
        raise ImageError("several images of full size; choose one")

    monkeypatch.setattr(slide_infos, "open_slide", refuse)
    info = slide_info(path)
    assert (info.reader, info.level_sizes, info.warnings) == (None, (), ("several images of full size; choose one",))
    assert info.pixels.scenes == scenes
    tifffile.imwrite(tmp_path / "one.tif", RGB)
    with pytest.raises(ImageError, match="several"):
        slide_info(tmp_path / "one.tif")


@pytest.mark.parametrize(
    ("mode", "channels", "bits", "alpha"),
    [("RGB", 3, 8, None), ("RGBA", 4, 8, "unassociated"), ("L", 1, 8, None), ("1", 1, 1, None), ("I;16", 1, 16, None)],
)
def test_images_of_pillow(tmp_path, mode, channels, bits, alpha):
    Image.new(mode, (9, 7)).save(tmp_path / "a.png")
    info = slide_info(tmp_path / "a.png")
    assert (info.reader, info.level_sizes, info.mpp) == ("pillow", ((9, 7),), None)
    facts = info.pixels
    assert (facts.kind, facts.channels, facts.bits, facts.alpha) == ("PNG", channels, bits, alpha)
    assert "without mpp=0.25 that is assumed" in info.warnings[-1]


def test_a_slide_without_resolution_and_what_a_reader_says_more(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, **TILED)
    info = slide_info(tmp_path / "a.tif")
    assert info.mpp is None
    assert "states no resolution" in info.warnings[0]
    slide = SimpleNamespace(
        path=tmp_path / "a.tif",
        reader="mine",
        level_sizes=((96, 64),),
        bounds=(0, 0, 96, 64),
        stated_mpp=(0.25, 0.25),
        stated_magnification=40.0,
        stated_place="its XML",
        warnings=("dark",),
    )
    found = info_of(slide)
    assert (found.mpp, found.mpp_place, found.magnification, found.warnings) == ((0.25,) * 2, "its XML", 40, ("dark",))
    assert replace(found, reader="tiff").pixels == info.pixels


def test_a_file_that_only_its_reader_knows_has_no_facts_about_pixels(tmp_path):
    (tmp_path / "a.mine").write_bytes(b"of another package")
    slide = SimpleNamespace(
        path=tmp_path / "a.mine",
        reader="mine",
        level_sizes=((9, 9),),
        bounds=(0, 0, 9, 9),
        stated_mpp=(0.5, 0.5),
        stated_magnification=None,
    )
    assert info_of(slide).pixels == slide_infos.PixelFacts()


def test_files_that_cannot_be_read_are_errors(tmp_path):
    (tmp_path / "broken.svs").write_bytes(b"no slide at all")
    with pytest.raises(ImageError, match=r"broken\.svs"):
        slide_info(tmp_path / "broken.svs")
    with pytest.raises(ImageError, match="does not exist"):
        slide_info(tmp_path / "none.svs")


def test_a_real_slide_tells_its_pictures(test_data):
    info = slide_info(test_data / "wsi" / "cmu_small_region.svs")
    assert (info.reader, info.mpp, info.magnification) == ("openslide", (0.499, 0.499), 20)
    assert (info.pixels.kind, info.pixels.compression) == ("aperio", "JPEG")
    assert [picture.name for picture in info.pixels.associated] == ["label", "macro", "thumbnail"]
    assert info.pixels.associated[1].size == (1280, 431)
    levels = slide_info(test_data / "wsi" / "tcga_pyramid_without_mpp.svs")
    assert (len(levels.level_sizes), levels.mpp) == (2, None)
