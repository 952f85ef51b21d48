import pytest
import torch

from cellvit import CellViT
from cellvit.decoders import DECODERS, PyramidDecoder
from cellvit.errors import ConfigError
from cellvit.testing import DecoderContract
from cellvit.types import FeatureInfo

WHOLE = [FeatureInfo(4, 2), FeatureInfo(8, 4), FeatureInfo(12, 8), FeatureInfo(16, 16)]
HALF = [FeatureInfo(4, 4), FeatureInfo(8, 8), FeatureInfo(12, 16), FeatureInfo(16, 16)]


class TestHalfResolution(DecoderContract):
    features = tuple(HALF)

    def make(self, features, branches):
        return PyramidDecoder(features, branches, widths=(2, 4, 6, 8, 10), detail=3, branch_width=3)


class TestWithoutDetail(DecoderContract):
    def make(self, features, branches):
        return PyramidDecoder(features, branches, widths=(2, 4, 6, 8), detail=0, branch_convs=0, shared_convs=2)


class TestDetailBesideAMapOfStride2(DecoderContract):
    def make(self, features, branches):
        return PyramidDecoder(features, branches)


class TestPlainViT(DecoderContract):
    features = (FeatureInfo(6, 16),) * 4

    def make(self, features, branches):
        return PyramidDecoder(features, branches, widths=(2, 4, 6, 8, 10))


def test_a_pixel_of_detail_reaches_the_output_at_full_resolution():
    decoder = PyramidDecoder(HALF, ["a"], widths=(2, 4, 6, 8, 10), branch_convs=0).eval()
    image = torch.rand(1, 3, 32, 32)
    maps = [torch.randn(1, f.channels, 32 // f.stride, 32 // f.stride) for f in HALF]
    other = image.clone()
    other[..., 16, 16] += 1
    with torch.inference_mode():
        changed = (decoder(image, maps)["a"] != decoder(other, maps)["a"]).any(1)[0].nonzero()
    assert len(changed)
    assert ((changed - 16).abs() <= 5).all()  # a strided convolution of 4, one of 3 at stride 2, and the square


@pytest.mark.parametrize("features", [WHOLE[:3], WHOLE[::-1], [FeatureInfo(4, 1), *WHOLE[1:]]])
def test_strides_that_do_not_fit_are_named(features):
    with pytest.raises(ConfigError, match=rf"strides .* are \({features[0].stride}, "):
        PyramidDecoder(features, ["a"])


def test_detail_may_be_left_out_only_beside_a_map_of_stride_2():
    with pytest.raises(ConfigError, match="finest map has stride 4; give detail from 1"):
        PyramidDecoder(HALF, ["a"], widths=(2, 4, 6, 8), detail=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"widths": (2, 4, 6, 8)},
        {"widths": (2, 0, 6, 8, 10)},
        {"branch_width": 0},
        {"shared_convs": 0},
        {"shared_convs": (1, 2, 1)},
        {"shared_convs": (1, 2, 0, 1)},
        {"branch_convs": -1},
        {"detail": -1, "widths": (2, 4, 6, 8, 10)},
    ],
)
def test_settings_that_make_no_decoder_are_refused(settings):
    with pytest.raises(ConfigError, match="give 5 widths, all from 1, detail and branch_convs from 0"):
        PyramidDecoder(WHOLE, ["a"], **settings)


def test_levels_may_have_convolutions_of_their_own_number():
    decoder = PyramidDecoder(HALF, ["a"], widths=(2, 4, 6, 8, 10), shared_convs=(1, 2, 3, 1))
    assert [len(level) for level in decoder.levels] == [1, 3, 2, 1]


@pytest.mark.parametrize(("features", "quarter"), [(HALF, 1), (WHOLE, 2), ([FeatureInfo(6, 16)] * 4, None)])
def test_an_embedding_is_the_shared_levels_and_the_path_of_types_at_stride_4(features, quarter):
    branches, image = ["nuclei_type_map", "a"], torch.randn(2, 3, 32, 48)
    maps = [torch.randn(2, f.channels, 32 // f.stride, 48 // f.stride) for f in features]
    settings = {"widths": (2, 4, 6, 8, 10), "branch_width": 5}
    decoder, seen = PyramidDecoder(features, branches, embedding=True, **settings).eval(), []
    for layers in (*decoder.levels, decoder.paths["nuclei_type_map"][0]):
        layers.register_forward_hook(lambda _, __, made: seen.append(made))
    plain = PyramidDecoder(features, branches, **settings).eval()
    plain.load_state_dict(decoder.state_dict())  # it has no weights of its own
    with torch.inference_mode():
        found, without = decoder(image, maps), plain(image, maps)
        expected = torch.nn.functional.avg_pool2d(torch.cat(seen[3:], dim=1), 2)
    coarser = [] if quarter is None else [seen[3 - quarter]]
    torch.testing.assert_close(found.pop("embedding_map"), torch.cat([*coarser, expected], dim=1))
    assert expected.shape == (2, 4 + 5, 8, 12)
    torch.testing.assert_close(found, without)
    with pytest.raises(ConfigError, match="'pyramid' has embedding True, which needs a branch 'nuclei_type_map'"):
        PyramidDecoder(HALF, ["a"], embedding=True)


def test_a_model_is_built_with_it_by_name():
    assert DECODERS.get("pyramid") is PyramidDecoder
    encoder = {"class_path": "efficientnet-lite", "init_args": {"shrink": 2, "neck_channels": 8}}
    model = CellViT(encoder, num_nuclei_classes=6, decoder="pyramid").eval()
    with torch.inference_mode():
        maps = model.predict_maps(torch.rand(1, 3, 50, 40))
    assert maps["nuclei_type_map"].shape == (1, 6, 50, 40)
    assert maps["embedding_map"].shape == (1, 8, 4, 3)
