import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed
from support.drawn_nuclei import draw_ellipses, noisy_maps, perfect_maps
from support.reference_postprocess import assert_same, literal_instances, literal_nuclei, remove_small, without_gaps

from cellvit.errors import ConfigError, DataError
from cellvit.plugins.components import build
from cellvit.postprocess import POSTPROCESSORS, HVPostprocessor, hv
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.postprocess.watershed import marker_watershed


def mirrored_pairs():
    """Touching discs that mirror each other exactly, so that energies tie across the line between them."""
    instances = np.zeros((160, 200), np.int32)
    rows, cols = np.indices((40, 40))
    disc = (rows - 20) ** 2 + (cols - 20) ** 2 <= 14.5**2
    for i, (r, c) in enumerate([(0, 0), (0, 29), (60, 5), (60, 33), (60, 61), (100, 120), (128, 120), (110, 20)]):
        view = instances[r : r + 40, c : c + 40][:40, :40]
        view[disc[: len(view)] & (view == 0)] = i + 1
    return instances


def nested():
    """A ring, a nucleus in its hole, and one that covers a corner."""
    rows, cols = np.indices((120, 120))
    distance = np.hypot(rows - 60, cols - 60)
    instances = ((distance <= 40) & (distance >= 22)).astype(np.int32)
    instances[distance <= 12] = 2
    instances[np.hypot(rows, cols) <= 18] = 3
    return instances


DRAWN = {
    "touching": lambda: draw_ellipses(110, (256, 320), seed=1),
    "sparse": lambda: draw_ellipses(12, (200, 160), seed=2),
    "large and small": lambda: draw_ellipses(40, (256, 256), radius=(4, 30), seed=3),
    "tiny": lambda: draw_ellipses(60, (128, 160), radius=(2, 5), seed=4),
    "strip": lambda: draw_ellipses(20, (9, 300), seed=5),
    "mirrored": mirrored_pairs,
    "nested": nested,
    "empty": lambda: np.zeros((64, 48), np.int32),
    "full": lambda: np.ones((48, 64), np.int32),
    "pixel": lambda: np.ones((1, 1), np.int32),
}


@pytest.mark.parametrize("magnification", [40, 20])
@pytest.mark.parametrize("make_maps", [perfect_maps, noisy_maps])
@pytest.mark.parametrize("drawing", DRAWN)
def test_equals_the_literal_implementation(drawing, make_maps, magnification):
    maps = make_maps(DRAWN[drawing]())
    types = maps["nuclei_type_map"].argmax(axis=0) if "nuclei_type_map" in maps else None
    expected = literal_nuclei(
        literal_instances(maps["nuclei_binary_map"], maps["hv_map"], magnification),
        types,
        maps["nuclei_binary_map"][1],
    )

    assert_same(HVPostprocessor(magnification=magnification)(maps), *expected)


def test_drawings_exercise_the_watershed():
    maps = noisy_maps(DRAWN["touching"]())
    found = len(HVPostprocessor()(maps).nuclei)
    assert found > 60
    pieces = without_gaps(remove_small(ndimage.label(maps["nuclei_binary_map"].argmax(axis=0))[0], 10)).max()
    assert pieces < 0.8 * found


def test_labels_give_the_same_nuclei_as_probabilities():
    maps = noisy_maps(DRAWN["touching"]())
    from_probabilities = HVPostprocessor()(maps)
    for binary_type, type_type in [(np.uint8, np.uint8), (bool, np.int64), (np.int64, np.uint16)]:
        labels = {
            "nuclei_binary_map": maps["nuclei_binary_map"].argmax(axis=0).astype(binary_type),
            "nuclei_type_map": maps["nuclei_type_map"].argmax(axis=0).astype(type_type),
            "hv_map": maps["hv_map"],
        }
        from_labels = HVPostprocessor()(labels)
        np.testing.assert_array_equal(from_labels.instance_map, from_probabilities.instance_map)
        np.testing.assert_array_equal(from_labels.nuclei.type, from_probabilities.nuclei.type)
        np.testing.assert_array_equal(from_labels.nuclei.type_prob, from_probabilities.nuclei.type_prob)


def test_without_types_every_nucleus_is_type_one():
    maps = noisy_maps(DRAWN["sparse"]())
    del maps["nuclei_type_map"]
    nuclei = HVPostprocessor()(maps).nuclei
    assert set(nuclei.type) == {1}
    assert ((nuclei.type_prob > 0.8) & (nuclei.type_prob < 1)).all()

    maps["nuclei_binary_map"] = maps["nuclei_binary_map"].argmax(axis=0)
    assert set(HVPostprocessor()(maps).nuclei.type_prob) == {1.0}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_float_types_and_strides_are_accepted(dtype):
    maps = {name: a.astype(np.float16) for name, a in noisy_maps(DRAWN["sparse"]()).items()}
    expected = HVPostprocessor()({name: a.astype(np.float32) for name, a in maps.items()})
    turned = {name: np.asfortranarray(a.astype(dtype)) for name, a in maps.items()}
    np.testing.assert_array_equal(HVPostprocessor()(turned).instance_map, expected.instance_map)


def test_leaves_the_given_maps_and_the_thread_setting_alone():
    maps = noisy_maps(DRAWN["touching"]())
    before, threads = {name: a.copy() for name, a in maps.items()}, cv2.getNumThreads()
    HVPostprocessor()(maps)
    HVPostprocessor(normalisation="fixed")(maps)
    assert cv2.getNumThreads() == threads
    for name, array in maps.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("normalisation", ["tile", "fixed"])
@pytest.mark.parametrize("dim", [None, 5])
def test_an_image_without_nuclei_is_a_valid_result(normalisation, dim):
    maps = perfect_maps(np.zeros((32, 48), np.int32)) | {"nuclei_type_map": np.ones((6, 32, 48), np.float32) / 6}
    if dim:
        maps["embedding_map"] = np.ones((dim, 2, 3), np.float32)
    prediction = HVPostprocessor(normalisation=normalisation)(maps)
    assert prediction.instance_map.dtype == np.int32
    assert prediction.instance_map.shape == (32, 48)
    assert not prediction.instance_map.any()
    assert len(prediction.nuclei) == 0
    assert prediction.nuclei.embedding is None if dim is None else prediction.nuclei.embedding.shape == (0, dim)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 20),
    setting=st.sampled_from([(40, "tile"), (40, "fixed"), (20, "tile"), (20, "fixed")]),
)
def test_separated_nuclei_are_recovered(seed, num, setting):
    instances = draw_ellipses(num, (160, 160), radius=(8, 13), gap=2, seed=seed)
    # A sliver at the border has no side to measure and may be too small to be a nucleus.
    cut = np.unique(np.concatenate([instances[0], instances[-1], instances[:, 0], instances[:, -1]]))
    instances = without_gaps(np.where(np.isin(instances, cut), 0, instances))
    postprocess = HVPostprocessor(magnification=setting[0], normalisation=setting[1])

    found = postprocess(perfect_maps(instances)).instance_map

    pairs = np.unique(np.stack([instances.ravel(), found.ravel()]), axis=1)
    assert pairs.shape[1] == instances.max() + 1
    np.testing.assert_array_equal(found > 0, instances > 0)


@pytest.mark.parametrize("magnification", [40, 20])
def test_fixed_normalisation_gives_a_crop_the_nuclei_of_the_whole(magnification):
    margin = 16
    maps = noisy_maps(draw_ellipses(200, (400, 420), seed=7))
    maps["hv_map"][0, :30, :30] *= 3  # an outlier far from the crop
    crop = (slice(100, 330), slice(90, 350))
    cropped = {name: array[:, crop[0], crop[1]] for name, array in maps.items()}
    inside = ndimage.label(cropped["nuclei_binary_map"].argmax(axis=0))[0]
    near_border = np.ones(inside.shape, bool)
    near_border[margin:-margin, margin:-margin] = False
    compared = (inside > 0) & ~np.isin(inside, np.unique(inside[near_border]))

    def differs(normalisation):
        postprocess = HVPostprocessor(magnification=magnification, normalisation=normalisation)
        whole, part = postprocess(maps).instance_map[crop], postprocess(cropped).instance_map
        return not np.array_equal(without_gaps(whole * compared), without_gaps(part * compared))

    assert compared.sum() > 5000
    assert not differs("fixed")
    assert differs("tile")


def test_fixed_normalisation_finds_small_nuclei_where_the_published_rule_finds_none():
    rows, cols = np.indices((120, 120))
    instances = np.zeros((120, 120), np.int32)
    for i, (r, c) in enumerate((r, c) for r in range(12, 120, 24) for c in range(12, 120, 24)):
        instances[np.hypot(rows - r, cols - c) <= 3.5] = i + 1
    maps = perfect_maps(instances)
    assert len(HVPostprocessor()(maps).nuclei) == 0
    assert len(HVPostprocessor(normalisation="fixed")(maps).nuclei) == 25


@pytest.mark.parametrize("magnification", [40, 20])
def test_fixed_normalisation_separates_touching_nuclei(magnification):
    postprocess = HVPostprocessor(magnification=magnification, normalisation="fixed")
    found = postprocess(perfect_maps(mirrored_pairs())).instance_map
    assert found.max() == 8


@pytest.mark.parametrize("width", [1, 70, 448, 512, 1024])
def test_sobel_is_that_of_opencv_at_any_width(width):
    values = np.random.default_rng(0).random((24, width)).astype(np.float32)
    for axis in (0, 1):
        expected = cv2.Sobel(values, cv2.CV_64F, 1 - axis, axis, ksize=21)
        np.testing.assert_array_equal(hv._sobel(values, axis, 21), expected)


@pytest.mark.parametrize("seed", range(4))
def test_flood_of_a_smooth_energy_equals_the_whole_watershed(seed):
    # As measured ones are: most pixels lie on a way downhill to a marker, and few ask for a queue.
    rng = np.random.default_rng(seed)
    smooth = [cv2.GaussianBlur(rng.normal(size=(150, 170)), (0, 0), scale) for scale in (2, 6)]
    mask, energy = smooth[1] > 0, smooth[0]
    markers = ndimage.label((energy < np.quantile(energy, 0.1)) & mask)[0].astype(np.int32)
    components = ndimage.label(mask)[0].astype(np.int32)
    found = marker_watershed(energy, markers, components)
    np.testing.assert_array_equal(found, watershed(energy, markers, mask=mask))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([2, 5, 50, 10**9]), fill=st.floats(0.4, 0.9))
def test_flood_equals_the_whole_watershed(seed, levels, fill):
    # Few levels mean many equal energies, where the order of the queue decides.
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 40, 2))
    mask = rng.random(shape) < fill
    energy = rng.integers(0, levels, shape) / levels
    markers = ndimage.label(rng.random(shape) < 0.08)[0].astype(np.int32)
    if seed % 2:  # several separate pieces of one marker
        markers = (markers % 5).astype(np.int32)
    components = ndimage.label(mask)[0].astype(np.int32)

    found = marker_watershed(energy, markers, components)

    np.testing.assert_array_equal(found, watershed(energy, markers, mask=mask))
    assert found.dtype == np.int32


def test_is_registered_and_keeps_its_settings():
    postprocess = build(POSTPROCESSORS, {"class_path": "hv-watershed", "init_args": {"magnification": 20}})
    assert type(postprocess) is HVPostprocessor
    assert postprocess.init_args == {"magnification": 20}
    assert postprocess.needs == {"nuclei_binary_map", "hv_map"}


@pytest.mark.parametrize("magnification", [10, 40.5, "40", None])
def test_unknown_magnification(magnification):
    with pytest.raises(ConfigError, match="use 40 or 20"):
        HVPostprocessor(magnification=magnification)


def test_unknown_normalisation():
    with pytest.raises(ConfigError, match=r"'tile' .published. or 'fixed'"):
        HVPostprocessor(normalisation="none")


def test_types_by_mean_probability_need_the_probabilities():
    maps = noisy_maps(DRAWN["touching"]())
    postprocess = HVPostprocessor(type_rule="mean")
    assert HVPostprocessor().takes_labels - postprocess.takes_labels == {"nuclei_type_map"}
    found, published = postprocess(maps), HVPostprocessor()(maps)
    np.testing.assert_array_equal(found.instance_map, published.instance_map)
    expected = nuclei_from_instances(found.instance_map, type_map=maps["nuclei_type_map"], type_rule="mean").nuclei
    np.testing.assert_array_equal(found.nuclei.type, expected.type)
    np.testing.assert_array_equal(found.nuclei.type_prob, expected.type_prob)
    assert (found.nuclei.type_prob != published.nuclei.type_prob).any()
    with pytest.raises(ConfigError, match=r"'majority' .published. or 'mean'"):
        HVPostprocessor(type_rule="median")


def with_nan(array):
    array = array.copy()
    array.flat[array.size // 2] = np.nan
    return array


BAD_MAPS = {
    "no hv map": ({"hv_map": None}, "lacks hv_map"),
    "batch axis": ({"nuclei_binary_map": np.zeros((1, 2, 32, 32))}, r"nuclei_binary_map must be .* not float64 \(1, 2"),
    "one probability": ({"nuclei_binary_map": np.zeros((32, 32))}, "nuclei_binary_map must be"),
    "integers in two channels": ({"nuclei_binary_map": np.zeros((2, 32, 32), int)}, "nuclei_binary_map must be"),
    "instances for labels": ({"nuclei_binary_map": np.full((32, 32), 7)}, "labels span 7..7"),
    "no pixels": ({"nuclei_binary_map": np.zeros((2, 0, 32))}, "no pixels"),
    "NaN probability": ({"nuclei_binary_map": with_nan(np.zeros((2, 32, 32)))}, "nuclei_binary_map holds 1 value"),
    "other size": ({"hv_map": np.zeros((2, 32, 31))}, r"hv_map must be floats \(2, 32, 32\)"),
    "integer hv": ({"hv_map": np.zeros((2, 32, 32), int)}, "hv_map must be floats"),
    "NaN hv": ({"hv_map": with_nan(np.zeros((2, 32, 32), np.float32))}, "hv_map holds 1 value"),
    "infinite hv": ({"hv_map": np.full((2, 32, 32), np.inf)}, "hv_map holds 2048 values"),
    "types of other size": ({"nuclei_type_map": np.zeros((6, 16, 16))}, "nuclei_type_map must be"),
    "float type labels": ({"nuclei_type_map": np.zeros((32, 32))}, "nuclei_type_map must be"),
    "NaN types": ({"nuclei_type_map": with_nan(np.zeros((6, 32, 32)))}, "nuclei_type_map holds 1 value"),
    "flat embedding": ({"embedding_map": np.zeros((2, 4))}, "embedding_map must be"),
    "NaN embedding": ({"embedding_map": with_nan(np.zeros((3, 2, 2)))}, "embedding_map holds 1 value"),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_bad_maps(case):
    change, message = BAD_MAPS[case]
    maps = perfect_maps(np.zeros((32, 32), np.int32)) | change
    with pytest.raises(DataError, match=message):
        HVPostprocessor()({name: array for name, array in maps.items() if array is not None})


def test_large_finite_values_are_not_taken_for_infinity():
    maps = perfect_maps(DRAWN["sparse"]())
    maps["hv_map"] = np.full_like(maps["hv_map"], 3e38)
    assert len(HVPostprocessor(normalisation="fixed")(maps).nuclei) > 0
