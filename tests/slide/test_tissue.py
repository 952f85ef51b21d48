from functools import lru_cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cellvit.errors import ConfigError, DataError, ImageError
from cellvit.io.images import read_image
from cellvit.slide.tissue import TissueMask, find_tissue

MPP = 2.0  # of the drawn slides; 4 x 3 mm
WIDTH, HEIGHT = 2000, 1500
WHITE, GREY = (244, 243, 245), (206, 205, 207)
EOSIN, HAEMATOXYLIN, PALE = (224, 158, 196), (112, 76, 152), (226, 208, 224)
PENS = {
    "blue": (38, 74, 176),
    "light blue": (60, 150, 215),
    "dark blue": (32, 36, 120),
    "green": (30, 130, 70),
    "teal": (0, 140, 140),
    "red": (205, 38, 52),
    "black": (28, 26, 30),
}


@lru_cache
def noise(shape, sigma, seed=0):
    """Smooth noise of standard deviation 1."""
    field = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), (0, 0), sigma)
    return (field / field.std())[..., None]


@lru_cache
def glass(color=WHITE, seed=0):
    grain = np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH, 3), np.float32)
    return np.array(color, np.float32) + np.float32(1.5) * grain


@lru_cache
def stained(color=EOSIN):
    """Eosin of uneven strength with nuclei of 8 microns."""
    shape = (HEIGHT, WIDTH)
    base = np.array(color, np.float32) + 6 * noise(shape, 10, 1) + 5 * noise(shape, 1, 2)
    nuclei = noise(shape, 2, 3) > 1.3
    return np.where(nuclei, np.array(HAEMATOXYLIN, np.float32) * 0.7 + 0.3 * base, base)


def ellipse(centre=(700, 700), axes=(400, 300)):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, centre, axes, 20, 0, 360, 1, -1)
    return mask.astype(bool)


def with_tissue(slide, where, color=EOSIN):
    soft = cv2.GaussianBlur(where.astype(np.float32), (0, 0), 1.5)[..., None]
    return slide * (1 - soft) + stained(color) * soft


def with_stroke(slide, color, points, width=200, opacity=1.0):
    """A stroke of a pen with a soft border; returns the slide and where it is opaque."""
    line = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.polylines(line, [np.array(points, np.int32)], False, 1, width)
    soft = cv2.GaussianBlur(line.astype(np.float32), (0, 0), 4)[..., None] * opacity
    ink = np.array(color, np.float32) + 6 * noise((HEIGHT, WIDTH), 30, 9)
    return slide * (1 - soft) + ink * soft, line.astype(bool)


def picture(slide, mpp=MPP, quality=None):
    """Eight bits at a resolution, maybe through JPEG."""
    image = np.clip(np.rint(slide), 0, 255).astype(np.uint8)
    factor = MPP / mpp
    if factor != 1:
        size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    if quality is None:
        return image
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def overlap(one, other):
    """Intersection over union of two masks, the second brought to the size of the first."""
    other = cv2.resize(other.astype(np.float32), one.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
    return (one & other).sum() / (one | other).sum()


def share(found, where):
    """Share of a place that was called tissue."""
    full = cv2.resize(found.mask.astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    return full[where].mean()


def vignette():
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    return (1 - 0.35 * (x**2 + y**2))[..., None].astype(np.float32)


EMPTY = {
    "white": lambda: np.full((HEIGHT, WIDTH, 3), 255.0),
    "black": lambda: np.zeros((HEIGHT, WIDTH, 3)),
    "noise": lambda: 4 * glass(seed=1) - 3 * np.array(WHITE, np.float32),
    "grey": lambda: glass(GREY),
    "yellowed": lambda: glass((240, 236, 214)),
    "rosy": lambda: glass((243, 233, 240)),
    "vignette": lambda: glass() * vignette(),
    "rosy vignette": lambda: glass((243, 233, 240)) * vignette(),
    "half scanned": lambda: np.where(np.arange(WIDTH)[None, :, None] < 900, 255.0, glass((240, 234, 240))),
    "smear": lambda: glass() - 12 * (noise((HEIGHT, WIDTH), 30) > 0.5) * np.array((0.4, 1, 0.5), np.float32),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize(("mpp", "quality"), [(2.0, 40), (8.0, None), (16.0, 70), (64.0, None)])
def test_empty_slides_hold_no_tissue(name, mpp, quality):
    assert not find_tissue(picture(EMPTY[name](), mpp, quality), mpp=mpp).mask.any()


@pytest.mark.parametrize("ground", [WHITE, GREY, (240, 236, 214), (243, 233, 240)])
@pytest.mark.parametrize("color", [EOSIN, PALE])
def test_stained_and_pale_tissue_is_found_on_glass_of_any_grey(ground, color):
    where = ellipse()
    found = find_tissue(picture(with_tissue(glass(ground), where, color), quality=80), mpp=MPP)
    assert overlap(found.mask, where) > 0.97


def test_the_result_hardly_depends_on_the_resolution_of_the_thumbnail():
    where = ellipse() | ellipse((1500, 400), (150, 90))
    where[650:690, 600:640] = False  # a gap of 80 microns belongs to the tissue, one of 400 does not
    where[600:800, 750:950] = False
    slide = with_tissue(glass(), where)
    where[650:690, 600:640] = True
    areas = []
    for mpp in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        found = find_tissue(picture(slide, mpp), mpp=mpp)
        assert overlap(found.mask, where) > 0.95
        areas.append(found.area_mm2((WIDTH, HEIGHT), MPP))
    assert max(areas) / min(areas) < 1.06
    assert areas[0] == pytest.approx(where.sum() * MPP**2 / 1e6, rel=0.03)


def test_small_pictures_of_cells_are_tissue():
    crop = picture(stained())[:64, :64]
    fine = cv2.resize(crop, (512, 512), interpolation=cv2.INTER_CUBIC)
    assert find_tissue(fine, mpp=0.25).mask.mean() > 0.95
    assert find_tissue(fine[:1, :1], mpp=0.25).mask.shape == (1, 1)
    assert find_tissue(fine[:3, :300], mpp=64.0).mask.shape == (3, 300)


@pytest.mark.parametrize("name", PENS)
@pytest.mark.parametrize("mpp", [4.0, 24.0])
def test_pens_are_no_tissue_beside_it_and_across_its_border(name, mpp):
    where = ellipse()
    slide, crossing = with_stroke(with_tissue(glass(), where), PENS[name], [(900, 200), (1000, 900), (800, 1200)])
    slide, apart = with_stroke(slide, PENS[name], [(1500, 300), (1800, 900), (1500, 1300)], 120)
    found = find_tissue(picture(slide, mpp, 85), mpp=mpp)
    assert share(found, apart | crossing) < 0.02
    pens = cv2.dilate((apart | crossing).astype(np.uint8), np.ones((61, 61))).astype(bool)
    assert share(found, ~pens & ~ellipse(axes=(415, 315))) < 0.01
    assert share(found, where & ~pens) > 0.97


@pytest.mark.parametrize("name", PENS)
def test_a_slide_with_nothing_but_pen_is_empty(name):
    slide, _ = with_stroke(glass(), PENS[name], [(300, 300), (1500, 500), (900, 1200)], 150)
    assert not find_tissue(picture(slide, 8.0, 85), mpp=8.0).mask.any()
    slide, _ = with_stroke(glass(), PENS[name], [(300, 300), (1500, 500), (900, 1200)], 400, opacity=0.85)
    assert not find_tissue(picture(slide, 16.0), mpp=16.0).mask.any()


def frame():
    mask = np.ones((HEIGHT, WIDTH), bool)
    mask[150:-100, 120:-200] = False
    return mask


def beside(slope):
    """Left of a line that is not quite upright, as the edge of a scan that was turned a little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return x < 200 + slope * y


def round_view():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.hypot(x - WIDTH / 2, y - HEIGHT / 2) > 850


def islands():
    return ~(ellipse((500, 600), (300, 200)) | ellipse((1500, 900), (300, 250)))


def corner():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[1000:, 1500:] = True
    return mask


RIMS = {
    "frame": frame,
    "one side": lambda: beside(0),
    "a turned side": lambda: beside(0.1),
    "corner": corner,
    "round": round_view,
    "islands": islands,
}


@pytest.mark.parametrize("name", RIMS)
@pytest.mark.parametrize(("grey", "mpp", "quality"), [(3, 8.0, 80), (60, 4.0, None), (20, 16.0, 70)])
def test_tissue_is_kept_up_to_a_black_rim_which_is_none(name, grey, mpp, quality):
    rim = RIMS[name]()
    slide = np.where(rim[..., None], grey + 6 * noise((HEIGHT, WIDTH), 2, 5), stained())
    found = find_tissue(picture(slide, mpp, quality), mpp=mpp)
    assert share(found, ~rim) > 0.98
    beyond = 4 * round(mpp / MPP) + 1  # a pixel of the thumbnail may be half rim, and the next one half of that
    assert share(found, cv2.erode(rim.astype(np.uint8), np.ones((beyond, beyond))).astype(bool)) < 0.01


def test_a_rim_takes_no_nuclei_of_a_small_picture():
    crop = picture(stained())[:128, :128]
    padded = np.pad(crop, ((64, 64), (64, 64), (0, 0)), constant_values=10)
    assert find_tissue(padded, mpp=0.5).mask[64:-64, 64:-64].mean() > 0.95
    assert find_tissue(padded, mpp=MPP).mask[64:-64, 64:-64].mean() > 0.98


@pytest.mark.parametrize("end", [(1000, 1700), (300, 1700), (2300, 700)])
def test_black_strokes_that_leave_the_picture_are_pen_beside_a_rim_too(end):
    slide, stroke = with_stroke(stained(), PENS["black"], [(1000, 600), end], 120)
    stroke[:80] = False
    for rim in (0, 60):
        slide[:rim] = 8
        found = find_tissue(picture(slide, 8.0), mpp=8.0)
        around = cv2.dilate(stroke.astype(np.uint8), np.ones((17, 17))).astype(bool)
        assert share(found, around) < 0.05  # with the border of the stroke, which is soft
        assert share(found, ~cv2.dilate(stroke.astype(np.uint8), np.ones((81, 81))).astype(bool)) > 0.95


@pytest.mark.parametrize("mpp", [2.0, 16.0])
def test_dust_frames_and_edges_of_the_cover_glass_are_no_tissue(mpp):
    where = ellipse()
    slide = with_tissue(glass(), where).copy()
    slide[:, :60] = slide[:50] = 12  # the frame of the scanner
    slide[1350:] *= 0.8  # beyond the edge of the cover glass...
    slide[1345:1350] = (90, 92, 95)  # ...which is a dark line
    for x, y, radius in ((1500, 300, 12), (1700, 800, 5), (1300, 1200, 20), (1600, 1000, 3)):
        cv2.circle(slide, (x, y), radius, (95, 90, 88), -1)  # dust
    cv2.circle(slide, (1400, 600), 8, (150, 90, 140), -1)  # and a speck that is stained
    found = find_tissue(picture(slide, mpp, 85), mpp=mpp)
    assert overlap(found.mask, where) > 0.9  # JPEG spreads colour over two pixels
    assert share(found, ~ellipse(axes=(440, 340))) < 1e-4


@pytest.mark.parametrize("mpp", [1.0, 2.0, 4.0, 8.0])
def test_fat_is_tissue_with_the_gaps_between_its_walls(mpp):
    rng = np.random.default_rng(4)
    where = ellipse()
    cells = cv2.Subdiv2D((0, 0, WIDTH, HEIGHT))
    for y in range(20, HEIGHT - 20, 40):  # cells of 80 microns
        for x in range(20, WIDTH - 20, 40):
            cells.insert((float(x + rng.uniform(-10, 10)), float(y + rng.uniform(-10, 10))))
    facets, _ = cells.getVoronoiFacetList([])
    walls = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.polylines(walls, [np.rint(f).astype(np.int32) for f in facets], True, 1, 1)
    faint = glass() - walls[..., None] * np.array((14, 42, 22), np.float32)  # a line of 2 microns
    slide = np.where(where[..., None], faint, glass())
    slide = with_tissue(slide, ellipse((700, 950), (80, 60)))  # fat alone is hardly seen without a vessel or septum
    found = find_tissue(picture(slide, mpp), mpp=mpp)
    assert overlap(found.mask, where) > 0.9


def test_the_same_thumbnail_gives_the_same_mask_and_is_not_changed():
    thumbnail = picture(with_tissue(glass(), ellipse()), 8.0, 70)
    before = thumbnail.copy()
    one, two = find_tissue(thumbnail, mpp=8.0), find_tissue(thumbnail, mpp=8.0)
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_array_equal(thumbnail, before)
    assert one.mask.shape == thumbnail.shape[:2]


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_a_resolution_must_be_positive(mpp):
    with pytest.raises(ConfigError, match="microns per pixel"):
        find_tissue(np.zeros((4, 4, 3), np.uint8), mpp=mpp)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_other_pictures_are_refused(shape):
    with pytest.raises(ImageError, match="give uint8"):
        find_tissue(np.zeros(shape, np.uint8), mpp=8.0)
    with pytest.raises(ImageError, match="float64"):
        find_tissue(np.zeros((4, 4, 3)), mpp=8.0)


def slow_share(mask, box, size):
    """The share by adding up the cut part of every pixel."""
    (height, width), (xmin, ymin, xmax, ymax) = mask.shape, box
    area = (xmax - xmin) * (ymax - ymin)
    total = 0.0
    for row in range(height):
        for col in range(width):
            left, right = col * size[0] / width, (col + 1) * size[0] / width
            top, below = row * size[1] / height, (row + 1) * size[1] / height
            across, down = min(right, xmax) - max(left, xmin), min(below, ymax) - max(top, ymin)
            total += mask[row, col] * max(0, across) * max(0, down)
    return total / area if area > 0 else 0.0


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    st.lists(st.tuples(*[st.floats(-20, 80, width=32)] * 4), min_size=1, max_size=6),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
@settings(max_examples=150)
def test_coverage_is_that_of_the_loop(mask, boxes, size):
    ordered = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    boxes = [b for b in ordered if b[2] - b[0] > 0.01 and b[3] - b[1] > 0.01] + [(5, 5, 5, 9), (9, 9, 4, 4)]
    found = TissueMask(mask).coverage(np.array(boxes, float), size)
    expected = [slow_share(mask, b, size) if b[2] > b[0] else 0 for b in boxes]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_coverage_of_whole_pixels_is_exact_and_of_no_boxes_empty():
    rng = np.random.default_rng(0)
    tissue = TissueMask(rng.random((90, 120)) > 0.5)
    boxes = np.stack(np.meshgrid(np.arange(12), np.arange(9)), -1).reshape(-1, 2) * 100.0
    found = tissue.coverage(np.concatenate([boxes, boxes + 100], axis=1), (1200, 900))
    np.testing.assert_array_equal(found, tissue.mask.reshape(9, 10, 12, 10).mean((1, 3)).ravel())
    assert tissue.coverage(np.zeros((0, 4)), (1200, 900)).shape == (0,)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=50)
def test_points_are_on_tissue_as_the_pixels_of_the_view_around_them_are(mask, width, height):
    points = np.stack(np.meshgrid(np.arange(-1, width + 1), np.arange(-1, height + 1)), -1).reshape(-1, 2)
    found = TissueMask(mask).contains(points + 0.5, (width, height))
    rows, columns = mask.shape
    for (x, y), on in zip(points.tolist(), found, strict=True):
        inside = 0 <= x < width and 0 <= y < height
        assert on == (inside and mask[int((y + 0.5) * rows / height), int((x + 0.5) * columns / width)])


def test_area_and_picture_of_a_mask():
    tissue = TissueMask(np.array([[True, False], [True, True]]))
    assert tissue.area_mm2((2000, 1000), 0.5) == pytest.approx(0.75 * 1.0 * 0.5)
    assert tissue.area_mm2((2000, 1000), (0.5, 1.0)) == pytest.approx(0.75 * 1.0 * 1.0)
    assert tissue.to_png().tolist() == [[255, 0], [255, 255]]
    assert tissue.to_png().dtype == np.uint8


@pytest.mark.parametrize("mask", [np.zeros((2, 2), np.uint8), np.zeros(3, bool), np.zeros((0, 2), bool)])
def test_masks_of_other_forms_are_refused(mask):
    with pytest.raises(DataError, match="give bool"):
        TissueMask(mask)


def test_real_tissue_is_found(test_data):
    shares = []
    for folder in ("consep", "monuseg", "nucls"):
        for path in sorted((test_data / "nuclei" / folder / "images").glob("*.jpg"))[::3]:
            shares.append(find_tissue(read_image(path), mpp=0.25).mask.mean())
    assert len(shares) >= 20
    assert np.median(shares) > 0.99
    assert min(shares) > 0.5


def test_a_real_slide_gives_the_same_tissue_at_every_scale(test_data):
    slide = read_image(test_data / "wsi" / "cmu_small_region.svs")
    shares = []
    for mpp in (0.499, 2, 8, 16, 32):
        size = (round(slide.shape[1] * 0.499 / mpp), round(slide.shape[0] * 0.499 / mpp))
        small = np.asarray(Image.fromarray(slide).resize(size, Image.Resampling.BOX))
        shares.append(find_tissue(small, mpp=mpp).mask.mean())
    assert 0.40 < min(shares) <= max(shares) < 0.425
