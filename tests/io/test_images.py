import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvit.errors import ImageError
from cellvit.io import images as reader
from cellvit.io.images import read_image, read_mpp, to_rgb

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (13, 21, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = (RGB.astype(np.uint16) * 257) ^ 1  # one off: rounding must bring it back


def test_eight_bit_rgb_is_returned_as_it_is():
    assert to_rgb(RGB) is RGB


@pytest.mark.parametrize("array", [GREY, GREY[..., None], (GREY.astype(np.uint16) * 257)], ids=["hw", "hw1", "16 bit"])
def test_grey_is_repeated(array):
    np.testing.assert_array_equal(to_rgb(array), GREY[..., None].repeat(3, axis=2))


def test_sixteen_bits_and_floats_keep_their_range():
    np.testing.assert_array_equal(to_rgb(DEEP), RGB)
    np.testing.assert_array_equal(to_rgb(RGB / 255.0), RGB)
    np.testing.assert_array_equal(to_rgb((RGB / 255.0).astype(np.float32)), RGB)
    assert to_rgb(np.array([[0, 128, 129, 65535]], np.uint16))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_alpha_is_laid_on_white():
    image = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert to_rgb(image).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert to_rgb(image[..., [0, 3]])[0, :, 0].tolist() == [10, 255, 204]


def test_a_strided_view_becomes_contiguous():
    view = RGB[::2, ::-1]
    assert to_rgb(view).flags.c_contiguous
    np.testing.assert_array_equal(to_rgb(view), view)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("a.png", "read_image"),
        (np.zeros((3, 8, 9), np.uint8), "channels last"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"\(2, 8, 9, 3\)"),
        (np.zeros((8, 9, 5), np.uint8), r"\(8, 9, 5\)"),
        (np.zeros(8, np.uint8), r"\(8,\)"),
        (np.zeros((0, 9, 3), np.uint8), "no pixels"),
        (np.full((8, 9, 3), 1.5), "from 1.5 to 1.5"),
        (np.full((8, 9, 3), -0.1), "scale it to"),
        (np.full((8, 9, 3), np.nan), "nan"),
        (np.zeros((8, 9, 3), np.int64), "int64"),
        (np.zeros((8, 9, 3), bool), "bool"),
        (np.array([["x"]]), "values"),
        (None, r"\(\)"),
    ],
)
def test_other_arrays_are_refused_with_a_way_out(image, words):
    with pytest.raises(ImageError, match=words):
        to_rgb(image)


def saved(tmp_path, name, image, **options):
    path = tmp_path / name
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("a.png", "RGB", RGB),
        ("a.tif", "RGB", RGB),
        ("a.tiff", "RGB", RGB),
        ("a.bmp", "RGB", RGB),
        ("a.png", "L", GREY[..., None].repeat(3, axis=2)),
        ("a.tif", "L", GREY[..., None].repeat(3, axis=2)),
    ],
)
def test_lossless_files_are_read_exactly(tmp_path, name, mode, expected):
    np.testing.assert_array_equal(read_image(saved(tmp_path, name, RGB if mode == "RGB" else GREY)), expected)


def test_the_suffix_does_not_matter(tmp_path):
    path = saved(tmp_path, "a.dat", RGB, format="PNG")
    np.testing.assert_array_equal(read_image(path), RGB)
    path = saved(tmp_path, "tiff.jpg", RGB, format="TIFF")
    np.testing.assert_array_equal(read_image(str(path)), RGB)


def test_palette_alpha_bilevel_and_cmyk(tmp_path):
    flat = Image.fromarray(np.repeat(np.repeat(RGB[:2, :2], 4, axis=0), 4, axis=1))
    for name in ("p.png", "p.tif", "p.gif"):
        np.testing.assert_array_equal(read_image(saved(tmp_path, name, flat.quantize(16))), np.asarray(flat))
    alpha = np.dstack([RGB, np.where(GREY > 99, 255, 0).astype(np.uint8)])
    for name in ("a.png", "a.tif", "la.png"):
        image = Image.fromarray(alpha) if name != "la.png" else Image.fromarray(alpha).convert("LA")
        read = read_image(saved(tmp_path, name, image))
        assert (read[GREY <= 99] == 255).all()
    clear = flat.quantize(16)
    read = read_image(saved(tmp_path, "clear.png", clear, transparency=clear.getpixel((0, 0))))
    assert read[0, 0].tolist() == [255, 255, 255]
    read = read_image(saved(tmp_path, "key.png", RGB, transparency=tuple(RGB[0, 0].tolist())))
    assert read[0, 0].tolist() == [255, 255, 255]
    bits = GREY > 99
    for name in ("b.png", "b.tif"):
        np.testing.assert_array_equal(read_image(saved(tmp_path, name, Image.fromarray(bits)))[..., 1] == 255, bits)
    cmyk = Image.fromarray(np.zeros((4, 4, 4), np.uint8), mode=None).convert("RGB").convert("CMYK")
    for name in ("c.jpg", "c.tif"):
        assert np.abs(read_image(saved(tmp_path, name, cmyk)).astype(int) - np.asarray(cmyk.convert("RGB"))).max() <= 3


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("grey.png", GREY, GREY),
        ("alpha.png", np.dstack([RGB, GREY]), None),
        ("grey_alpha.png", np.dstack([GREY, GREY]), None),
        ("deep.png", GREY.astype(np.uint16) * 257, GREY),
        ("deep.tif", RGB.astype(np.uint16) * 257, RGB),
    ],
)
def test_other_pixel_formats_become_rgb(tmp_path, name, array, expected):
    path = tmp_path / name
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="rgb")
    else:
        Image.fromarray(array).save(path)
    if expected is None:  # alpha is laid on white
        colour, alpha = array[..., :-1].astype(float), array[..., -1:] / 255
        expected = np.floor(colour * alpha + 255 * (1 - alpha) + 0.5)
    expected = np.broadcast_to(expected if expected.ndim == 3 else expected[..., None], RGB.shape)
    np.testing.assert_array_equal(read_image(path), expected)


def test_a_palette_of_256_colours_becomes_rgb(tmp_path):
    image = Image.fromarray(RGB).quantize(256)
    np.testing.assert_array_equal(read_image(saved(tmp_path, "p.png", image)), np.asarray(image.convert("RGB")))


def test_sixteen_bit_files(tmp_path):
    deep_grey = GREY.astype(np.uint16) * 257
    expected = GREY[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(read_image(saved(tmp_path, "g.png", Image.fromarray(deep_grey))), expected)
    np.testing.assert_array_equal(read_image(saved(tmp_path, "g.tif", Image.fromarray(deep_grey))), expected)
    tifffile.imwrite(tmp_path / "rgb.tif", DEEP, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.tif"), RGB)
    tifffile.imwrite(tmp_path / "f.tif", (RGB / 255).astype(np.float32), photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "f.tif"), RGB)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (16, 16), "compression": "zlib"},
        {"planarconfig": "separate"},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"ome": True},
        {"compression": "lzw", "predictor": True},
    ],
    ids=str,
)
def test_tiff_layouts(tmp_path, options):
    data = np.moveaxis(RGB, -1, 0) if options.get("planarconfig") == "separate" else RGB
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(data), photometric="rgb", **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB)


def test_the_largest_level_of_a_pyramid_is_read(tmp_path):
    big = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "p.tif", ome=True) as writer:
        writer.write(big, subifds=1, photometric="rgb", tile=(16, 16))
        writer.write(big[::2, ::2], subfiletype=1, photometric="rgb", tile=(16, 16))
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif"), big)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path, "a.png", RGB, exif=exif)
    upright = read_image(path)
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), upright)
    if orientation == 1:
        np.testing.assert_array_equal(upright, RGB)
    if orientation == 6:
        np.testing.assert_array_equal(upright, np.rot90(RGB, -1))


def test_stacks_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((4, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match=r"z\.tif.*4 planes"):
        read_image(tmp_path / "z.tif")
    tifffile.imwrite(tmp_path / "c.ome.tif", np.zeros((5, 20, 30), np.uint16), metadata={"axes": "CYX"})
    with pytest.raises(ImageError, match="5 planes"):
        read_image(tmp_path / "c.ome.tif")


def test_files_that_are_no_images(tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    with pytest.raises(ImageError, match=r"notes\.png.*not an image"):
        read_image(text)
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty file"):
        read_image(tmp_path / "empty.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("truncated", "is damaged or cut short"),
        ("text", "is not an image"),
        ("empty", "is an empty file"),
        ("missing", "does not exist"),
    ],
)
def test_damaged_image_is_named(tmp_path, suffix, damage, words):
    path = tmp_path / f"bad{suffix}"
    if damage == "truncated":
        saved(tmp_path, path.name, RNG.integers(0, 256, (80, 80, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage != "missing":
        path.write_text("not an image" if damage == "text" else "")
    with pytest.raises(ImageError, match=f"bad{suffix}' {words}"):
        read_image(path)


def test_floats_outside_0_to_1_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "float.tif", np.full((8, 8), 200.0, np.float32))
    with pytest.raises(ImageError, match=r"float\.tif.*from 200 to 200; scale it to"):
        read_image(tmp_path / "float.tif")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "tiled.tif", "a.webp", "a.gif", "a.bmp"])
def test_truncated_files_are_refused(tmp_path, name, part):
    noise = RNG.integers(0, 256, (160, 150, 3), dtype=np.uint8)
    if name == "tiled.tif":
        tifffile.imwrite(tmp_path / name, noise, photometric="rgb", tile=(64, 64), compression="zlib")
    else:
        saved(tmp_path, name, noise)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ImageError, match="damaged or cut short") as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_damaged_middle_is_refused(tmp_path):
    path = saved(tmp_path, "a.png", RNG.integers(0, 256, (160, 150, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="damaged"):
        read_image(path)


def test_large_images_are_read_without_a_warning_and_huge_ones_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # stands for an image above the limit of Pillow
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == RGB.shape
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(reader, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="21 x 13 px is too large"):
        read_image(path)
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "a.tif")


def test_unreadable_file(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.png", RGB)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(ImageError, match="permissions"):
        read_image(path)


def test_resolution_is_read_where_it_is_stated(tmp_path):
    plain = saved(tmp_path, "a.png", RGB)
    assert read_mpp(plain) is None
    assert read_mpp(tmp_path / "missing.tif") is None
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    assert read_mpp(path) == 0.25
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(50_800, 50_800), resolutionunit="INCH")
    assert read_mpp(path) == 0.5
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(72, 72), resolutionunit="INCH")
    assert read_mpp(path) is None
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(40_000, 20_000), resolutionunit="CENTIMETER")
    assert read_mpp(path) is None
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(40_000, 40_000), resolutionunit="NONE")
    assert read_mpp(path) is None
    metadata = {"PhysicalSizeX": 230.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.23}
    tifffile.imwrite(path, RGB, photometric="rgb", ome=True, metadata=metadata)
    assert read_mpp(path) == 0.23
    tifffile.imwrite(path, RGB, photometric="rgb", ome=True)
    assert read_mpp(path) is None


def test_real_slides(test_data):
    assert read_mpp(test_data / "wsi" / "cmu_small_region.svs") == 0.499
    assert read_mpp(test_data / "wsi" / "tcga_pyramid_without_mpp.svs") is None
    assert read_image(test_data / "wsi" / "cmu_small_region.svs").shape == (2967, 2220, 3)
    with pytest.raises(ImageError):
        read_image(test_data / "wsi" / "broken.svs")
