import drawn_pyramids as drawn
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.errors import ConfigError, ImageError
from cellvit.slide.resolution import Resolution, image_resolution, slide_resolution

PIXEL = np.zeros((1, 1, 3), np.uint8)


def slide(mpp=None, magnification=None):
    return drawn.ArraySlide([PIXEL], stated_mpp=mpp, stated_magnification=magnification)


def test_what_the_slide_states_is_used():
    assert slide_resolution(slide((0.499, 0.499), 20)) == (Resolution((0.499, 0.499), "slide"), [])
    assert slide_resolution(slide((0.5, 0.504))) == (Resolution((0.5, 0.504), "slide"), [])


def test_pixels_that_are_not_square_are_a_warning():
    resolution, warnings = slide_resolution(slide((0.5, 0.52)))
    assert resolution.mpp == (0.5, 0.52)
    assert len(warnings) == 1
    assert "'array.svs' states pixels that are not square: 0.5 x 0.52 µm/px" in warnings[0]


def test_what_the_user_says_wins():
    assert slide_resolution(slide(), mpp=0.3) == (Resolution((0.3, 0.3), "mpp"), [])
    assert slide_resolution(slide(), magnification=20) == (Resolution((0.5, 0.5), "magnification"), [])
    assert slide_resolution(slide((0.5, 0.52)), mpp=0.51) == (Resolution((0.51, 0.51), "mpp"), [])
    assert slide_resolution(slide(), mpp=0.26, magnification=40)[0] == Resolution((0.26, 0.26), "mpp")


@pytest.mark.parametrize(("given", "warned"), [(0.56, True), (0.54, False), (0.46, False), (0.45, True), (0.25, True)])
def test_a_contradiction_to_the_slide_is_a_warning(given, warned):
    resolution, warnings = slide_resolution(slide((0.5, 0.5)), mpp=given)
    assert resolution.mpp == (given, given)
    assert [f"states 0.5 µm/px; mpp makes it {given} µm/px" in text for text in warnings] == [True] * warned


def test_one_axis_that_contradicts_is_enough():
    assert "states 0.5 x 0.56 µm/px; magnification" in slide_resolution(slide((0.5, 0.56)), magnification=20)[1][0]


def test_another_objective_than_the_slide_states_is_a_warning():
    assert slide_resolution(slide(magnification=40), mpp=0.22)[1] == []
    (warning,) = slide_resolution(slide(magnification=20), mpp=0.25)[1]
    assert "states a magnification of 20 (about 0.5 µm/px); mpp makes it 0.25 µm/px" in warning


def test_two_values_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"mpp=0.25 and magnification=20 \(about 0.5 µm/px\) contradict"):
        slide_resolution(slide((0.25, 0.25)), mpp=0.25, magnification=20)
    slide_resolution(slide(), mpp=0.27, magnification=40)
    with pytest.raises(ConfigError, match="give one of them"):
        slide_resolution(slide(), mpp=0.28, magnification=40)


def test_a_slide_that_states_nothing_is_refused_with_the_way_out():
    with pytest.raises(ImageError) as caught:
        slide_resolution(slide())
    assert str(caught.value) == ("slide 'array.svs' states no resolution; pass mpp=0.25 or magnification=40")


def test_a_stated_magnification_is_not_a_resolution():
    with pytest.raises(ImageError, match=r"only a magnification of 20.*pass mpp=0\.5 or magnification=20 if"):
        slide_resolution(slide(magnification=20))
    with pytest.raises(ImageError, match=r"states no resolution; pass mpp=0\.25"):
        slide_resolution(slide(magnification=0.1))


@pytest.mark.parametrize("mpp", [0.0, -0.25, float("nan"), 250.0, 0.009, float("inf")])
def test_values_that_are_no_resolution(mpp):
    with pytest.raises(ConfigError, match="not a resolution of a microscope"):
        slide_resolution(slide((0.25, 0.25)), mpp=mpp)


@pytest.mark.parametrize("magnification", [0, -40.0, float("nan"), float("inf"), 0.25, 1001])
def test_values_that_are_no_magnification(magnification):
    with pytest.raises(ConfigError, match="give a number such as 40"):
        slide_resolution(slide((0.25, 0.25)), magnification=magnification)


@pytest.fixture
def scan(tmp_path):
    """Return the file of an image that states 0.5 µm/px."""
    path = tmp_path / "scan.tif"
    Image.new("RGB", (6, 5)).save(path, resolution=20_000, resolution_unit=3)
    return path


def test_an_image_follows_the_rule_of_slides_but_may_state_nothing(scan, tmp_path):
    assert image_resolution(scan) == (Resolution((0.5, 0.5), "file"), [])
    assert image_resolution(scan, mpp=0.52) == (Resolution((0.52, 0.52), "mpp"), [])
    assert image_resolution(scan, magnification=20) == (Resolution((0.5, 0.5), "magnification"), [])
    found, warnings = image_resolution(scan, mpp=0.25)
    assert found == Resolution((0.25, 0.25), "mpp")
    assert warnings == ["image 'scan.tif' states 0.5 µm/px; mpp makes it 0.25 µm/px, which is used"]
    Image.new("RGB", (6, 5)).save(tmp_path / "plain.png")
    assert image_resolution(tmp_path / "plain.png") == (Resolution((0.25, 0.25), "default"), [])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mpp": 0.25, "magnification": 20}, r"mpp=0\.25 and magnification=20 .* contradict each other; give one"),
        ({"mpp": 250.0}, "mpp=250 is not a resolution of a microscope"),
        ({"magnification": -40.0}, "magnification=-40 is not one of a microscope"),
    ],
)
def test_slides_and_images_refuse_the_same(scan, given, words):
    with pytest.raises(ConfigError, match=words):
        image_resolution(scan, **given)
    with pytest.raises(ConfigError, match=words):
        slide_resolution(slide((0.5, 0.5)), **given)


def test_real_slides(test_data):
    from cellvit.slide.open import open_slide

    with open_slide(test_data / "wsi" / "cmu_small_region.svs") as real:
        assert slide_resolution(real) == (Resolution((0.499, 0.499), "slide"), [])
    with open_slide(test_data / "wsi" / "tcga_pyramid_without_mpp.svs") as real:
        with pytest.raises(ImageError, match=r"'tcga_pyramid_without_mpp\.svs' states no resolution; pass mpp=0\.25"):
            slide_resolution(real)
        assert slide_resolution(real, magnification=40) == (Resolution((0.25, 0.25), "magnification"), [])


class Noted(drawn.ArraySlide):
    """A slide with notes about what it states."""

    def __init__(self, *notes, **stated):
        super().__init__([PIXEL], **stated)
        self.resolution_notes = notes


def test_what_a_slide_states_in_vain_is_told():
    resolution, warnings = slide_resolution(Noted("states nonsense", stated_mpp=(0.5, 0.5)))
    assert resolution == Resolution((0.5, 0.5), "slide")
    assert warnings == ["slide 'array.svs' states nonsense"]
    vain = Noted("states no resolution that can be used: MPP = 0")
    with pytest.raises(ImageError, match=r"'array.svs' states no resolution that can be used: MPP = 0; pass mpp=0\.25"):
        slide_resolution(vain)
    assert slide_resolution(vain, mpp=0.25) == (Resolution((0.25, 0.25), "mpp"), [])


@pytest.mark.parametrize(("mpp", "power", "warned"), [
    *((0.25, 40, False), (0.17, 40, False), (0.37, 40, False), (0.16, 40, True), (0.38, 40, True)),
    *((0.025, 40, True), (1.0, 40, True), (0.5, 20, False), (0.25, 20, True), (0.5, 40, True)),
])  # fmt: skip
def test_an_objective_that_contradicts_the_pixels_is_a_warning(mpp, power, warned):
    resolution, warnings = slide_resolution(slide((mpp, mpp), power))
    assert resolution == Resolution((mpp, mpp), "slide")
    assert [f"contradicts itself: it states {mpp:g} µm/px and a magnification of {power}" in w for w in warnings] == (
        [True] * warned
    )
    assert all(f"{mpp:g} µm/px is used; if that is wrong, pass mpp={10 / power:g}" in text for text in warnings)
    assert slide_resolution(slide((mpp, mpp), power), mpp=mpp)[1] == []  # the user has said what is right


def test_axes_far_apart_are_kept_and_those_of_no_camera_refused(tmp_path):
    path = tmp_path / "far.tif"
    for unit, (x, y) in {"far": (40_000, 20_000), "none": (40_000, 4000)}.items():
        tags = {"x_resolution": x, "y_resolution": y, "resolution_unit": "cm"}
        Image.new("RGB", (6, 5)).save(path, **tags)
        if unit == "far":
            found, warnings = image_resolution(path)
            assert found == Resolution((0.25, 0.5), "file")
            assert warnings == [
                "image 'far.tif' states pixels that are not square: 0.25 x 0.5 µm/px; they are made square"
            ]
            assert slide_resolution(slide((0.25, 0.5)))[0].mpp == found.mpp
    for ask in (lambda: image_resolution(path), lambda: slide_resolution(slide((0.25, 2.5)))):
        with pytest.raises(ImageError, match=r"of 0\.25 x 2\.5 µm/px, which no camera makes.*mpp=0\.25 or"):
            ask()
    assert image_resolution(path, mpp=0.25)[0].mpp == (0.25, 0.25)


def test_the_default_is_not_silent_where_an_image_states_something(tmp_path):
    path = tmp_path / "a.tif"
    Image.new("RGB", (6, 5)).save(path, dpi=(72, 72))
    found, (warning,) = image_resolution(path)
    assert found == Resolution((0.25, 0.25), "default")
    assert warning.startswith("image 'a.tif' states no resolution that can be used: XResolution=72/1 YResolution=72/1")
    assert "352.8 µm/px is not a resolution" in warning
    assert warning.endswith("0.25 µm/px is assumed; if that is wrong, pass mpp=0.5")
    assert image_resolution(path, mpp=0.25)[1] == []
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="Instrument:0"><Objective '
        'ID="Objective:0" NominalMagnification="20"/></Instrument><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="6" SizeY="5" SizeC="3" SizeZ="1" SizeT="1"><Channel '
        'ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, np.zeros((5, 6, 3), np.uint8), photometric="rgb", description=xml, metadata=None)
    assert "only a magnification of 20 (about 0.5 µm/px); 0.25 µm/px is assumed" in image_resolution(path)[1][0]
