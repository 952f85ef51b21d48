"""What a file states about its resolution, in every spelling, and what is said where it cannot be used."""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.io.images import read_mpp, read_resolution
from cellvit.io.lengths import micrometres_of
from cellvit.slide.readers.openslide import resolution_of

RGB = np.full((8, 12, 3), 200, np.uint8)
MICRO, MU, ANGSTROM, ANGSTROM_SIGN = "\u00b5", "\u03bc", "\u00c5", "\u212b"

# 0.5 micrometres in every length of the OME schema that a number can say
OME_UNITS = {
    **{"Ym": -30, "Zm": -27, "Em": -24, "Pm": -21, "Tm": -18, "Gm": -15, "Mm": -12, "km": -9, "hm": -8, "dam": -7},
    **{"m": -6, "dm": -5, "cm": -4, "mm": -3, f"{MICRO}m": 0, f"{MU}m": 0, "um": 0, "nm": 3, "pm": 6, "fm": 9},
    **{"am": 12, "zm": 15, "ym": 18, ANGSTROM: 4, ANGSTROM_SIGN: 4},
}
INCHES = {"in": 1, "thou": 1000, "mil": 1000, "li": 12, "ft": 1 / 12, "yd": 1 / 36, "mi": 1 / 63_360, "pt": 72}


def ome(path, attributes, *, more="", tags=None, image="", **options):
    """Write an OME-TIFF whose Pixels have attributes."""
    h, w = RGB.shape[:2]
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{more}'
        f'<Image ID="Image:0">{image}<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{w}" '
        f'SizeY="{h}" SizeC="3" SizeZ="1" SizeT="1" {attributes}><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        "<TiffData/></Pixels></Image></OME>"
    )
    resolution = {} if tags is None else {"resolution": tags, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, RGB, photometric="rgb", description=xml.encode(), metadata=None, **resolution, **options)
    return path


def sizes(x, y=None, unit=None):
    return " ".join(
        f'PhysicalSize{axis}="{value}"' + (f' PhysicalSize{axis}Unit="{unit}"' if unit else "")
        for axis, value in (("X", x), ("Y", x if y is None else y))
    )


def tagged(path, **tags):
    """Write a TIFF whose resolution tags are given as they lie in the file: numerator, denominator."""
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb", metadata=None, resolution=(10, 10), resolutionunit="NONE")
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("XResolution", "YResolution", "ResolutionUnit"):
            tag = file.pages[0].tags[name]
            if name in tags:
                tag.overwrite(tags[name])
            else:  # a tag that nobody knows in its place
                file.filehandle.seek(tag.offset)
                file.filehandle.write((tag.code + 60_000).to_bytes(2, "little"))
    return path


def imagej(path, unit, per_unit=2.0, **options):
    resolution = per_unit if isinstance(per_unit, tuple) else (per_unit, per_unit)
    tifffile.imwrite(path, RGB, imagej=True, resolution=resolution, metadata={"unit": unit}, **options)
    return path


@pytest.mark.parametrize("unit", [*OME_UNITS, *INCHES])
def test_every_length_of_ome(tmp_path, unit):
    value = f"0.5e{OME_UNITS[unit]}" if unit in OME_UNITS else repr(0.5 / 25_400 * INCHES[unit])
    found = read_resolution(ome(tmp_path / "a.tif", sizes(value, unit=unit)))
    assert found.mpp == pytest.approx((0.5, 0.5))
    assert (found.place, found.notes) == ("OME-XML", ())


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        *((text, 1.0) for text in ("micron", "Microns", "micrometer", "micrometres", "UM", "\\u00B5m", "\\u03bcm")),
        *((text, 1.0) for text in ("\u00c2\u00b5m", " um ", "um/px", f"{MICRO}m / pixel", "microns per pixel")),
        *((text, 25_400.0) for text in ("inch", "inches", "INCH", '"', "\u2033")),
        *(
            ("Mm", 1e12),
            ("mm", 1e3),
            ("MM", 1e3),
            ("Pm", 1e21),
            ("pm", 1e-6),
            ("nanometers", 1e-3),
            ("feet", 304_800.0),
        ),
        *((text, None) for text in ("pixel", "pixels", "px", "reference frame", "", "\ufffdm", "parsnip")),
    ],
)
def test_units_as_people_spell_them(spelling, expected):
    assert micrometres_of(spelling) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (
            sizes("1", unit="pixel"),
            """PhysicalSizeX="1" PhysicalSizeXUnit="pixel" .*'pixel' is not a unit""",
        ),
        (sizes("1", unit="reference frame"), "'reference frame' is not a unit of length"),
        (sizes("0.5", unit="parsnip"), "'parsnip' is not a unit of length"),
        (sizes("0"), "'0' is not a number above 0"),
        (sizes("nan"), "'nan' is not a number above 0"),
        (sizes("-0.5"), "'-0.5' is not a number above 0"),
        (sizes("INF"), "'INF' is not a number above 0"),
        (sizes("unknown", "0.5"), "'unknown' is not a number above 0"),
        (sizes("500"), "500 µm/px is not a resolution of a microscope, which is 0.01 to 20"),
        (sizes("0.5", unit="mm"), 'PhysicalSizeXUnit="mm" .*500 µm/px is not a resolution'),
        (sizes("1e-320", unit="ym"), "is not a length"),
        (sizes("0.5", "0"), "'0' is not a number above 0"),
    ],
)
def test_what_cannot_be_used_is_quoted(tmp_path, attributes, words):
    path = ome(tmp_path / "a.tif", attributes)
    found = read_resolution(path)
    assert (found.mpp, read_mpp(path)) == (None, None)
    (note,) = found.notes
    assert note.startswith("states no resolution that can be used: PhysicalSizeX=")
    assert re.search(words, note)


def test_another_place_is_used_and_it_is_said(tmp_path):
    found = read_resolution(ome(tmp_path / "a.tif", sizes("1", unit="pixel"), tags=(20_000, 20_000)))
    assert (found.mpp, found.place) == ((0.5, 0.5), "TIFF tags")
    assert "'pixel' is not a unit of length); 0.5 µm/px of its TIFF tags is used" in found.notes[0]


def test_numbers_with_exponent_and_comma(tmp_path):
    assert read_resolution(ome(tmp_path / "a.tif", sizes("2.5E-7", unit="m"))).mpp == (0.25, 0.25)
    assert read_resolution(ome(tmp_path / "a.tif", sizes("0,25", unit="um"))).mpp == (0.25, 0.25)
    assert read_resolution(ome(tmp_path / "a.tif", sizes("1,000.5", unit="nm"))).mpp is None


def test_one_axis_is_enough_with_a_note(tmp_path):
    for axis, other in ("XY", "YX"):
        found = read_resolution(ome(tmp_path / "a.tif", f'PhysicalSize{axis}="500" PhysicalSize{axis}Unit="nm"'))
        assert found.mpp == (0.5, 0.5)
        (note,) = found.notes
        assert f'states PhysicalSize{axis}="500" PhysicalSize{axis}Unit="nm" in its OME-XML: ' in note
        assert f"PhysicalSize{other} is missing and pixels are taken as square; 0.5 µm/px" in note
    assert read_resolution(ome(tmp_path / "a.tif", 'PhysicalSizeXUnit="nm"')) == read_resolution(tmp_path / "none")


def test_a_unit_of_one_axis_counts_for_both_where_only_that_fits(tmp_path):
    found = read_resolution(ome(tmp_path / "a.tif", 'PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="500"'))
    assert found.mpp == (0.5, 0.5)
    assert "one axis names no unit and is taken in 'nm'" in found.notes[0]
    schema = 'PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.5"'  # micrometres, as the schema says
    assert read_resolution(ome(tmp_path / "a.tif", schema)).notes == ()


def test_axes_that_differ_are_both_kept(tmp_path):
    few = ome(tmp_path / "a.tif", sizes("0.5", "0.52"))
    assert read_resolution(few).mpp == (0.5, 0.52)
    assert read_mpp(few) == 0.51
    far = ome(tmp_path / "a.tif", sizes("0.25", "0.5"))
    assert read_resolution(far).mpp == (0.25, 0.5)
    assert read_mpp(far) is None


def test_the_objective_of_the_image_is_found_among_several(tmp_path):
    objectives = "".join(f'<Objective ID="Objective:{i}" NominalMagnification="{p}"/>' for i, p in enumerate((10, 40)))
    instrument = f'<Instrument ID="Instrument:0">{objectives}</Instrument>'
    settings = '<ObjectiveSettings ID="Objective:1"/>'
    assert read_resolution(ome(tmp_path / "a.tif", sizes("0.25"), more=instrument, image=settings)).magnification == 40
    assert read_resolution(ome(tmp_path / "a.tif", sizes("0.25"), more=instrument)).magnification is None


def test_the_image_of_the_same_size_is_meant(tmp_path):
    other = '<Image ID="Image:9"><Pixels SizeX="5" SizeY="5" PhysicalSizeX="4" PhysicalSizeY="4"/></Image>'
    # tifffile refuses such a description; Pillow reads the pixels
    assert read_resolution(ome(tmp_path / "a.tif", sizes("0.25"), more=other)).mpp == (0.25, 0.25)


def test_damaged_xml_is_told(tmp_path):
    found = read_resolution(ome(tmp_path / "a.tif", 'PhysicalSizeX=0.25"', tags=(40_000, 40_000)))
    assert found.mpp == (0.25, 0.25)
    assert "a text that is cut short or damaged in its OME-XML" in found.notes[0]


def test_places_that_contradict_each_other(tmp_path):
    found = read_resolution(ome(tmp_path / "a.tif", sizes("0.25"), tags=(20_000, 20_000)))
    assert found.mpp == (0.25, 0.25)
    assert found.notes == (
        "contradicts itself: it states 0.25 µm/px in its OME-XML and 0.5 µm/px in its TIFF tags; 0.25 µm/px of its "
        "OME-XML is used",
    )
    for tags in ((40_000, 40_000), (39_000, 41_000), (28, 28)):  # 72 dots per inch say nothing
        assert read_resolution(ome(tmp_path / "a.tif", sizes("0.25"), tags=tags)).notes == ()
    found = read_resolution(imagej(tmp_path / "a.tif", "um", 4, resolutionunit="CENTIMETER"))
    assert (found.mpp, found.notes) == ((0.25, 0.25), ())
    tifffile.imwrite(
        tmp_path / "a.tif",
        RGB,
        photometric="rgb",
        description="Aperio x|MPP = 0.25|AppMag = 40",
        metadata=None,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    found = read_resolution(tmp_path / "a.tif")
    assert (found.mpp, found.magnification) == ((0.25, 0.25), 40)
    assert "0.25 µm/px in its Aperio description and 0.5 µm/px in its TIFF tags" in found.notes[0]


@pytest.mark.parametrize(
    ("unit", "per_unit"),
    [
        *((unit, 2) for unit in ("um", "micron", "microns", "\\u00B5m", "\\u00b5m", "micrometer")),
        *(("nm", 0.002), ("mm", 2000), ("cm", 20_000), ("inch", 50_800), ("m", 2e6), ("pm", 2e-6), ("\\u00c5", 0.0002)),
    ],
)
def test_every_unit_of_imagej(tmp_path, unit, per_unit):
    found = read_resolution(imagej(tmp_path / "a.tif", unit, per_unit))
    assert found.mpp == pytest.approx((0.5, 0.5), rel=1e-4)
    assert (found.place, found.notes) == ("ImageJ description", ())


def test_what_imagej_does_not_say(tmp_path):
    for unit in ("pixel", "pixels", "furlong"):
        found = read_resolution(imagej(tmp_path / "a.tif", unit))
        assert found.mpp is None
        assert f"unit={unit} XResolution=2/1 YResolution=2/1 in its ImageJ description" in found.notes[0]
        assert f"'{unit}' is not a unit of length" in found.notes[0]
    found = read_resolution(imagej(tmp_path / "a.tif", "pixel", 20_000, resolutionunit="CENTIMETER"))
    assert (found.mpp, found.place) == ((0.5, 0.5), "TIFF tags")
    tifffile.imwrite(tmp_path / "a.tif", RGB, imagej=True)
    assert read_resolution(tmp_path / "a.tif").notes == ()
    tifffile.imwrite(tmp_path / "a.tif", RGB, imagej=True, resolution=(2, 2))  # a number without a unit
    assert "XResolution=2/1 YResolution=2/1 ResolutionUnit=1" in read_resolution(tmp_path / "a.tif").notes[0]
    tifffile.imwrite(
        tmp_path / "a.tif", RGB, imagej=True, resolution=(2, 0.002), metadata={"unit": "um", "yunit": "nm"}
    )
    assert read_resolution(tmp_path / "a.tif").mpp == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("tags", "mpp", "words"),
    [
        ({"XResolution": (40_000, 1), "YResolution": (40_000, 1), "ResolutionUnit": 3}, 0.25, None),
        ({"XResolution": (50_800, 1), "YResolution": (50_800, 1), "ResolutionUnit": 2}, 0.5, None),
        ({"XResolution": (50_800, 1), "YResolution": (50_800, 1)}, 0.5, None),  # inch is the default
        ({"XResolution": (4000, 1), "YResolution": (4000, 1), "ResolutionUnit": 4}, 0.25, None),
        ({"XResolution": (1, 1), "YResolution": (1, 1), "ResolutionUnit": 1}, None, None),
        ({"XResolution": (40_000, 1), "YResolution": (40_000, 1), "ResolutionUnit": 1}, None, "'none' is not a unit"),
        (
            {"XResolution": (40_000, 1), "YResolution": (40_000, 1), "ResolutionUnit": 9},
            None,
            "9 is not a unit of TIFF",
        ),
        (
            {"XResolution": (40_000, 0), "YResolution": (40_000, 1), "ResolutionUnit": 3},
            None,
            "40000/0 is not a number",
        ),
        ({"XResolution": (0, 1), "YResolution": (0, 1), "ResolutionUnit": 3}, None, "0/1 is not a number above 0"),
        (
            {"XResolution": (72, 1), "YResolution": (72, 1), "ResolutionUnit": 2},
            None,
            "352.8 µm/px is not a resolution",
        ),
        ({"XResolution": (40_000, 1), "ResolutionUnit": 3}, 0.25, "YResolution is missing"),
        ({"YResolution": (40_000, 1), "ResolutionUnit": 3}, 0.25, "XResolution is missing"),
    ],
)
def test_tags_of_tiff(tmp_path, tags, mpp, words):
    found = read_resolution(tagged(tmp_path / "a.tif", **tags))
    assert found.mpp == (None if mpp is None else (mpp, mpp))
    assert [words in note for note in found.notes] == ([] if words is None else [True])


def test_axes_turn_with_the_picture(tmp_path):
    turned = [(274, "H", 1, 6, True)]
    tifffile.imwrite(
        tmp_path / "a.tif",
        RGB,
        photometric="rgb",
        metadata=None,
        resolution=(40_000, 20_000),
        resolutionunit="CENTIMETER",
        extratags=turned,
    )
    assert read_resolution(tmp_path / "a.tif").mpp == (0.5, 0.25)


def levels(path, full, small):
    options = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for number, (side, per_cm) in enumerate(((256, full), (128, small))):
            resolution = {} if per_cm is None else {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
            pixels = np.full((side, side, 3), 200, np.uint8)
            writer.write(pixels, subfiletype=number, **resolution, **options)
    return read_resolution(path)


def test_levels_that_state_other_values(tmp_path):
    assert levels(tmp_path / "a.tif", 40_000, 20_000).notes == ()  # each its own
    assert levels(tmp_path / "a.tif", 40_000, 40_000).notes == ()  # copied
    found = levels(tmp_path / "a.tif", 40_000, 5000)
    assert found.mpp == (0.25, 0.25)
    assert "0.25 µm/px in its TIFF tags and 1 µm/px in its TIFF tags of a smaller level" in found.notes[0]
    found = levels(tmp_path / "a.tif", None, 20_000)
    assert found.mpp == (0.25, 0.25)
    assert "scaled to the full image, which is 2 times as wide" in found.notes[0]


def test_other_images_state_it_too(tmp_path):
    image, dots = Image.fromarray(RGB), 50_800
    image.save(tmp_path / "a.png", dpi=(dots, dots))
    assert read_resolution(tmp_path / "a.png").mpp == pytest.approx((0.5, 0.5), rel=1e-3)
    image.save(tmp_path / "a.jpg", dpi=(dots, dots))
    assert read_resolution(tmp_path / "a.jpg").mpp == pytest.approx((0.5, 0.5), rel=1e-3)
    for suffix in ("png", "jpg"):
        image.save(tmp_path / f"plain.{suffix}")
        assert read_resolution(tmp_path / f"plain.{suffix}").notes == ()
        image.save(tmp_path / f"screen.{suffix}", dpi=(96, 96))
        assert "pixels per inch in its" in read_resolution(tmp_path / f"screen.{suffix}").notes[0]
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)  # Pillow says 72 dots per inch, the file does not
    assert read_resolution(tmp_path / "turned.jpg").notes == ()
    exif.update({282: 20_000.0, 283: 40_000.0, 296: 3})
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = read_resolution(tmp_path / "turned.jpg")
    assert (found.mpp, found.place) == ((0.25, 0.5), "EXIF tags")


def test_what_openslide_says():
    agreed = {"openslide.vendor": "aperio", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25", "aperio.MPP": "0.25"}
    tags = {"tiff.XResolution": "20000", "tiff.YResolution": "20000", "tiff.ResolutionUnit": "centimeter"}
    found = resolution_of({**agreed, "openslide.objective-power": "40", "tiff.ResolutionUnit": "inch"})
    assert (found.mpp, found.place, found.magnification, found.notes) == ((0.25, 0.25), "metadata (aperio)", 40, ())
    assert (
        "contradicts itself: it states 0.25 µm/px in its metadata (aperio)"
        in resolution_of({**agreed, **tags}).notes[0]
    )
    found = resolution_of({"aperio.MPP": "unknown", **tags})
    assert found.mpp == (0.5, 0.5)
    assert "states MPP = unknown in its Aperio description, which cannot be used" in found.notes[0]
    assert resolution_of({"openslide.vendor": "mirax", "openslide.mpp-x": "0.25"}).mpp == (0.25, 0.25)
    found = resolution_of({"openslide.vendor": "mirax", "openslide.mpp-x": "250", "openslide.mpp-y": "250"})
    assert "mpp-x = 250 mpp-y = 250 in its metadata (mirax) (250 µm/px is not" in found.notes[0]
    assert resolution_of({}).notes == ()
