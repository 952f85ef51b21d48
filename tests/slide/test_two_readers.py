"""Two readers, one picture: every format that is drawn here, as each reader sees it, ours and other libraries.

What was drawn is known, so it says who is right. ``python tests/slide/test_two_readers.py``, with ``tests`` on the
path, writes the table of docs/pages/explanation/readers.md anew.
"""

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from tempfile import TemporaryDirectory

import imagecodecs
import numpy as np
import pytest
import tifffile
from dicom_drawings import write_dicom
from drawn_pyramids import draw, found, shrunk, write_aperio, write_ome, write_plain
from PIL import Image, ImageCms
from support.drawn_czi import CziTile, cut, write_czi
from support.drawn_zarr import write_ome_zarr

from cellvit.slide.compare import compare_readers
from cellvit.slide.open import open_slide
from cellvit.slide.referees import REFEREES

WIDTH, HEIGHT = 450, 300
PAGE = Path(__file__).parents[2] / "docs/pages/explanation/readers.md"
PER_CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
MEAN = 3.0  # grey levels by which JPEG and JPEG XR may change the drawing on average at these qualities
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILE = SRGB.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")  # red shows as blue


def picture():
    """Return the drawing ``(H, W, 3)`` and the centres of its discs; a red and a blue bar lie between them."""
    image, centres = draw(WIDTH, HEIGHT)
    soft = np.clip(np.minimum.outer(np.minimum(np.arange(20), 19 - np.arange(20)), np.full(60, 9)) / 6, 0, 1)[..., None]
    for (left, top), colour in (((10, 65), (214, 60, 84)), ((386, 215), (64, 80, 204))):
        part = image[top : top + 20, left : left + 60]
        part[:] = np.rint(part + soft * (np.array(colour) - part))
    return image, centres


IMAGE, CENTRES = picture()
LEVELS = [IMAGE, shrunk(IMAGE, 2), shrunk(IMAGE, 4)]


def jpeg_tiff(path, *, coded, tag):
    """Write tiles of JPEG whose colours are coded in one way, and a tag that says so, or the other."""
    padded = np.pad(IMAGE, ((0, -HEIGHT % 128), (0, -WIDTH % 128), (0, 0)), mode="edge")
    tiles = (
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(padded[y : y + 128, x : x + 128]), 95, colorspace="RGB", outcolorspace=coded
        )
        for y in range(0, HEIGHT, 128)
        for x in range(0, WIDTH, 128)
    )
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "jpeg", "metadata": None, **PER_CM}
    tifffile.imwrite(path, tiles, shape=IMAGE.shape, dtype=np.uint8, **options)
    with tifffile.TiffFile(path, mode="r+") as tiff:  # the writer says YCbCr whatever the tiles are
        tiff.pages[0].tags[262].overwrite(tag)
    return path


def big_tiff(path):
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for i, level in enumerate(LEVELS):
            options = {"photometric": "rgb", "tile": (128, 128), "compression": "deflate", "metadata": None}
            writer.write(level, subfiletype=int(i > 0), **options, **PER_CM)
    return path


def turned_tiff(path):
    """Write the picture on its side, and a tag that turns it up again."""
    stored = np.ascontiguousarray(np.rot90(IMAGE))
    tag = (274, 3, 1, 6, True)  # Orientation: turn it clockwise by a quarter
    tifffile.imwrite(path, stored, photometric="rgb", compression="deflate", metadata=None, extratags=[tag], **PER_CM)
    return path


def pillow_file(path, dpi=101_600, **options):
    Image.fromarray(IMAGE).save(path, **options, **({"dpi": (dpi, dpi)} if dpi else {}))
    return path


def strips(path):
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, rowsperstrip=32, **PER_CM)
    return path


def czi_file(path, *, tiles=None, **options):
    return write_czi(path, tiles or [t for i, level in enumerate(LEVELS) for t in cut(level, ratio=2**i)], **options)


def czi_with_gap(path):
    """Write a mosaic that lacks a tile where there is only glass: outside the picture, at its lower right."""
    return czi_file(path, tiles=[*cut(IMAGE), CziTile(IMAGE[:20, 100:160], (WIDTH + 40, HEIGHT + 30))])


FORMATS = {
    "TIFF, strips": strips,
    "TIFF, pyramid": lambda path: write_plain(path, LEVELS),
    "BigTIFF, pyramid": big_tiff,
    "TIFF, JPEG as YCbCr": lambda path: jpeg_tiff(path, coded="YCBCR", tag=6),
    "TIFF, JPEG as YCbCr, tag RGB": lambda path: jpeg_tiff(path, coded="YCBCR", tag=2),
    "TIFF, JPEG as RGB": lambda path: jpeg_tiff(path, coded="RGB", tag=2),
    "TIFF, JPEG as RGB, tag YCbCr": lambda path: jpeg_tiff(path, coded="RGB", tag=6),
    "TIFF, Orientation 6": turned_tiff,
    "OME-TIFF, sub-resolutions": lambda path: write_ome(path.with_suffix(".ome.tif"), LEVELS),
    "OME-TIFF, levels as images": lambda path: write_ome(path.with_suffix(".ome.tif"), LEVELS, separate=True),
    "Aperio, JPEG": lambda path: write_aperio(path.with_suffix(".svs"), LEVELS, compression="jpeg"),
    "Aperio, Deflate": lambda path: write_aperio(path.with_suffix(".svs"), LEVELS),
    "DICOM, JPEG": lambda path: write_dicom(path.with_suffix(""), LEVELS, icc=False)[0],
    "DICOM, JPEG 2000": lambda path: write_dicom(path.with_suffix(""), LEVELS, codec="jpeg2000-lossless", icc=False)[0],
    "DICOM, pixels not square": lambda path: write_dicom(
        path.with_suffix(""), LEVELS, codec="jpeg2000-lossless", mpp=(0.25, 0.5), icc=False
    )[0],
    "OME-Zarr 0.4": lambda path: write_ome_zarr(path.with_suffix(".zarr"), LEVELS),
    "OME-Zarr 0.5, sharded": lambda path: write_ome_zarr(path.with_suffix(".zarr"), LEVELS, version="0.5", shard=2),
    "CZI, uncompressed": lambda path: czi_file(path.with_suffix(".czi")),
    "CZI, Zstandard": lambda path: czi_file(path.with_suffix(".czi"), compression="zstd1"),
    "CZI, JPEG XR": lambda path: czi_file(path.with_suffix(".czi"), compression="jpegxr"),
    "CZI, gap": lambda path: czi_with_gap(path.with_suffix(".czi")),
    "PNG": lambda path: pillow_file(path.with_suffix(".png")),
    "PNG, ICC profile": lambda path: pillow_file(path.with_suffix(".png"), icc_profile=PROFILE),
    "JPEG": lambda path: pillow_file(path.with_suffix(".jpg"), dpi=50_800, quality=95, subsampling=0),
    "JPEG without resolution": lambda path: pillow_file(path.with_suffix(".jpg"), None, quality=95, subsampling=0),
}
MPP = {"DICOM, pixels not square": (0.25, 0.5), "JPEG": (0.5, 0.5), "JPEG without resolution": None}
LOSSY = {name for name in FORMATS if "JPEG" in name and "2000" not in name}
PYRAMIDS = {name for name in FORMATS if name.startswith(("OME", "Aperio", "DICOM", "CZI")) or "pyramid" in name} - {
    "CZI, gap"
}
KNOWN = {
    ("OpenSlide", "OME-TIFF, sub-resolutions"): "a",
    ("OpenSlide", "OME-TIFF, levels as images"): "a",
    ("tifffile", "OME-TIFF, levels as images"): "b",
    ("tifffile", "TIFF, Orientation 6"): "c",
    ("libvips", "TIFF, Orientation 6"): "c",
    ("slideio", "TIFF, Orientation 6"): "c",
    ("tifffile", "Aperio, JPEG"): "d",
    ("tifffile", "Aperio, Deflate"): "d",
    ("Pillow", "Aperio, JPEG"): "d",
    ("Pillow", "Aperio, Deflate"): "d",
    ("libvips", "Aperio, JPEG"): "d",
    ("libvips", "Aperio, Deflate"): "d",
    ("Pillow", "OME-TIFF, sub-resolutions"): "a",
    ("Pillow", "OME-TIFF, levels as images"): "a",
    ("libvips", "OME-TIFF, sub-resolutions"): "a",
    ("libvips", "OME-TIFF, levels as images"): "a",
    ("slideio", "OME-TIFF, sub-resolutions"): "e",
    ("slideio", "OME-TIFF, levels as images"): "e",
    ("slideio", "TIFF, pyramid"): "f",
    ("slideio", "BigTIFF, pyramid"): "f",
    ("slideio", "DICOM, JPEG"): "g",
    ("slideio", "CZI, uncompressed"): "h",
    ("slideio", "CZI, JPEG XR"): "h",
    ("slideio", "CZI, gap"): "h",
    ("pylibCZIrw", "CZI, uncompressed"): "h",
    ("pylibCZIrw", "CZI, Zstandard"): "h",
    ("pylibCZIrw", "CZI, JPEG XR"): "h",
    ("pylibCZIrw", "CZI, gap"): "i",
    ("OpenSlide", "TIFF, JPEG as YCbCr, tag RGB"): "k",
    ("OpenSlide", "TIFF, JPEG as RGB, tag YCbCr"): "k",
    ("libvips", "TIFF, JPEG as YCbCr, tag RGB"): "k",
    ("libvips", "TIFF, JPEG as RGB, tag YCbCr"): "k",
    ("libvips", "JPEG without resolution"): "j",
    ("slideio", "JPEG without resolution"): "j",
}
"""Where another library differs from ours, by the note on the page that says how it is known who is right."""


@cache
def folder():
    return TemporaryDirectory(prefix="cellvit-two-readers-")


@cache
def written(name):
    """Return the file of a format, drawn when it is first asked for."""
    place = Path(folder().name) / str(list(FORMATS).index(name))
    place.mkdir()
    return FORMATS[name](place / "a.tif")


@cache
def views(name):
    return compare_readers(written(name))


@pytest.mark.parametrize("name", FORMATS)
def test_ours_is_what_was_drawn(name):
    with open_slide(written(name)) as slide:
        sizes = [(WIDTH // 2**i, HEIGHT // 2**i) for i in range(3 if name in PYRAMIDS else 1)]
        bounds = (0, 0, 550, 350) if name == "CZI, gap" else (0, 0, WIDTH, HEIGHT)
        assert list(slide.level_sizes) == ([bounds[2:]] if name == "CZI, gap" else sizes)
        mpp = MPP.get(name, (0.25, 0.25))
        assert slide.stated_mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        full = slide.read_region(0, 0, *bounds[2:])
        rest = np.concatenate([full[HEIGHT:].ravel(), full[:, WIDTH:].ravel()])
        if name == "CZI, gap":
            assert np.mean(rest == 255) > 0.9
        for drawn, size, level in zip(LEVELS, sizes, range(3), strict=False):
            gap = np.abs(slide.read_region(0, 0, *size, level=level).astype(int) - drawn)
            assert gap.mean() <= (MEAN if name in LOSSY else 0)
        nearest = np.abs(found(full[:HEIGHT, :WIDTH])[None] - CENTRES[:, None]).max(axis=2).min(axis=1)
        assert nearest.max() < 0.5


@pytest.mark.parametrize("name", FORMATS)
def test_readers_agree_or_it_is_known_why_not(name):
    first, *others = views(name)
    own = {view.name: view.disagreements for view in others if view.name.startswith("cellvit") and view.disagreements}
    # readers of ours that are asked later know fewer levels, and nothing else of them differs
    assert all("instead of 3" in text for texts in own.values() for text in texts), own
    different = {view.name for view in others if view.disagreements} - set(own)
    known = {reader for reader, known_name in KNOWN if known_name == name}
    assert different <= known, [view for view in others if view.name in different - known]
    for view in others:  # whatever else differs, nobody of those that see this picture sees it elsewhere
        shifts = [difference.shift for difference in view.differences if difference.shift]
        if view.level_sizes and view.level_sizes[0] == first.level_sizes[0] and KNOWN.get((view.name, name)) != "e":
            assert all(max(map(abs, shift)) <= 0.5 for shift in shifts), (view.name, shifts)


def table():
    """Return the matrix as a table of the page."""
    readers = [referee.name for referee in REFEREES]
    lines = ["| | ours | " + " | ".join(readers) + " |", "|---" * (len(readers) + 2) + "|"]
    for name in FORMATS:
        first, *others = views(name)
        seen = {view.name: view for view in others}
        cells = [name, first.name.removeprefix("cellvit "), *(_cell(seen[reader], name) for reader in readers)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(view, name):
    if view.refusal:
        return ""
    return f"**{KNOWN[view.name, name]}**" if view.disagreements else "same"


def versions():
    """Return which versions the matrix is of, as a line of the page."""
    return ", ".join(f"{referee.name} {referee.version()}" for referee in REFEREES)


def test_the_page_shows_the_matrix():
    text = PAGE.read_text(encoding="utf-8")
    try:
        here = versions()
    except PackageNotFoundError as error:
        pytest.skip(f"a reader of the page is not installed: {error}")
    if here not in text:
        pytest.skip(f"the page is of other versions than {here}")
    assert table() in text
    different = {(view.name, name) for name in FORMATS for view in views(name) if view.disagreements}
    assert {pair for pair in different if not pair[0].startswith("cellvit")} == set(KNOWN)


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    start, stop = (old.index(mark) + shift for mark, shift in (("<!-- matrix -->", 15), ("<!-- end -->", 0)))
    PAGE.write_text(f"{old[:start]}\n{versions()}\n\n{table()}\n\n{old[stop:]}", encoding="utf-8")
    sys.stdout.write(table() + "\n")
