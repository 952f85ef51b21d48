"""Maps averaged over views: by fakes whose true maps are known, and by a small network, view by view."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from cellvit.errors import ConfigError
from cellvit.geometry.symmetry import symmetries
from cellvit.heads import BinaryHead, HVHead, RadialDistancesHead, TissueHead
from cellvit.inference.image import segment_image
from cellvit.inference.protocol import NucleiModel, evaluation_mode, load_model
from cellvit.inference.tta import TestTimeAugmentation, unwrap_tta, with_tta
from cellvit.testing.head import SIZES
from cellvit.types import NucleiClasses

CLASSES = NucleiClasses(("background", "one"), ((0, 0, 0), (255, 0, 0)))
ODD_SIDES = [(32, 48), (37, 50), (16, 1)]


class Fake:
    """What all fakes share; images are padded as the network does it."""

    classes, mpp, training, device = CLASSES, 0.25, False, torch.device("cpu")

    def __init__(self, rays=8):
        self.heads = {
            "nuclei_binary_map": BinaryHead(SIZES),
            "hv_map": HVHead(SIZES),
            "radial_distances": RadialDistancesHead(SIZES, num_rays=rays),
            "tissue_types": TissueHead(SIZES),
        }
        self.seen = []

    def to(self, device):
        self.device = device

    def train(self, mode=True):
        self.training = mode

    def postprocess(self, maps):
        raise NotImplementedError

    def predict_maps(self, image):
        height, width = image.shape[-2:]
        self.seen.append((height, width))
        padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
        maps = self.maps(padded) | {"embedding_map": F.avg_pool2d(padded, 16)}
        dense = {name for name in maps if name not in ("embedding_map", "tissue_types")}
        return {name: value[..., :height, :width] if name in dense else value for name, value in maps.items()}


class Equivariant(Fake):
    """Turns its maps with the image: the slope of the brightness, and its value a few pixels along four rays."""

    def maps(self, image):
        grey = image.mean(1, keepdim=True)
        slopes = [(grey.roll(-1, axis) - grey.roll(1, axis)) / 2 for axis in (-1, -2)]
        rays = [grey.roll((-3 * y, -3 * x), (-2, -1)) for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return {
            "nuclei_binary_map": torch.cat([grey, 1 - grey], 1),
            "hv_map": torch.cat(slopes, 1),
            "radial_distances": torch.cat(rays, 1),
            "tissue_types": image.mean((-2, -1)),
        }


class Constant(Fake):
    """Sees nothing, and says the same everywhere."""

    def maps(self, image):
        probabilities = torch.tensor([0.1, 0.9]).view(1, 2, 1, 1).expand(len(image), 2, *image.shape[-2:])
        return {"nuclei_binary_map": probabilities, "tissue_types": torch.full((len(image), 3), 1 / 3)}


class Placed(Fake):
    """Says where a pixel is in the picture it is shown, whatever that holds."""

    def maps(self, image):
        columns = torch.arange(image.shape[-1]).float().expand(len(image), 2, *image.shape[-2:])
        return {"nuclei_binary_map": columns}


@pytest.fixture
def network(tiny_model):
    return load_model(tiny_model, device="cpu")


@pytest.mark.parametrize("views", [1, 2, 4, 8])
@pytest.mark.parametrize("sides", ODD_SIDES)
def test_a_model_that_turns_with_its_image_gives_the_same_maps(views, sides):
    image, model = torch.rand(2, 3, *sides), Equivariant(rays=4)
    plain, mean = model.predict_maps(image), TestTimeAugmentation(model, views).predict_maps(image)
    assert plain.keys() == mean.keys()
    for name, values in plain.items():
        torch.testing.assert_close(mean[name], values, msg=name)


@pytest.mark.parametrize("views", [2, 4, 8])
def test_what_does_not_depend_on_the_view_is_unchanged_to_the_last_bit(views):
    image, model = torch.full((1, 3, 21, 34), 0.7), Constant()
    plain, mean = model.predict_maps(image), TestTimeAugmentation(model, views).predict_maps(image)
    for name, values in plain.items():
        assert torch.equal(mean[name], values), name


def test_what_depends_on_the_view_is_averaged_over_the_padded_image():
    model = Placed()
    mean = TestTimeAugmentation(model, 2).predict_maps(torch.rand(1, 3, 20, 37))
    assert model.seen == [(32, 48), (32, 48)]
    torch.testing.assert_close(mean["nuclei_binary_map"], torch.full((1, 2, 20, 37), 47 / 2))
    model.seen.clear()
    TestTimeAugmentation(model, 8).predict_maps(torch.rand(1, 3, 20, 37))
    assert model.seen == [(32, 48)] * 4 + [(48, 32)] * 4


def test_the_maps_of_a_network_are_the_means_over_its_views(network):
    image = torch.rand(1, 3, 32, 48)
    with evaluation_mode(network):
        mean = TestTimeAugmentation(network, 8).predict_maps(image)
        views = [(symmetry, network.predict_maps(symmetry.apply(image))) for symmetry in symmetries(8)]
    for name in ("nuclei_binary_map", "nuclei_type_map", "embedding_map"):
        expected = torch.stack([symmetry.undo(maps[name]) for symmetry, maps in views]).mean(0)
        torch.testing.assert_close(mean[name], expected)
        assert not torch.allclose(mean[name], views[0][1][name])
    vectors = torch.stack([symmetry.undo_vectors(maps["hv_map"]) for symmetry, maps in views]).mean(0)
    torch.testing.assert_close(mean["hv_map"], vectors)
    torch.testing.assert_close(mean["nuclei_type_map"].sum(1), torch.ones(1, 32, 48))


def test_averaged_maps_turn_with_the_image(network):
    image = torch.rand(1, 3, 32, 32)
    with evaluation_mode(network):
        model = TestTimeAugmentation(network, 8)
        mean = model.predict_maps(image)
        for symmetry in symmetries(8)[1:]:
            turned = model.predict_maps(symmetry.apply(image))
            for name, head in network.heads.items():
                torch.testing.assert_close(head.restore(turned[name], symmetry), mean[name], atol=1e-5, rtol=1e-4)


def test_half_precision_maps_are_summed_in_full(network):
    model = Constant()
    model.maps = lambda image: {"nuclei_binary_map": image[:, :2].bfloat16()}
    image = torch.rand(1, 3, 16, 16)
    mean = TestTimeAugmentation(model, 4).predict_maps(image)["nuclei_binary_map"]
    assert mean.dtype == torch.float32
    assert torch.equal(mean, image[:, :2].bfloat16().float())


def test_the_first_map_may_be_overwritten_by_the_model():
    memory = torch.zeros(1, 2, 16, 16)
    model = Constant()

    def maps(image):
        memory.add_(1)
        return {"nuclei_binary_map": memory}

    model.maps = maps
    mean = TestTimeAugmentation(model, 4).predict_maps(torch.rand(1, 3, 16, 16))["nuclei_binary_map"]
    torch.testing.assert_close(mean, torch.full_like(mean, 2.5))


def test_everything_else_is_the_model(network):
    model = TestTimeAugmentation(network, 4)
    assert isinstance(model, NucleiModel)
    assert load_model(model, device="cpu") is model
    assert (model.classes, model.mpp, model.device) == (network.classes, network.mpp, network.device)
    assert model.postprocessor is network.postprocessor
    assert model.settings is network.settings
    assert model.state_dict().keys() == network.state_dict().keys()
    with evaluation_mode(model):
        assert not model.training
        assert not network.training
    model.train()
    assert model.training
    assert network.training
    model.training = False
    assert not network.training
    assert model.to(torch.device("cpu")) is model
    with pytest.raises(AttributeError, match="colour"):
        _ = model.colour


def test_it_can_be_copied_and_sent_to_another_process():
    model = TestTimeAugmentation(Equivariant(rays=4), 8)
    image = torch.rand(1, 3, 20, 30)
    maps = model.predict_maps(image)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert other.views == 8
        assert all(torch.equal(values, maps[name]) for name, values in other.predict_maps(image).items())


def test_views_are_asked_for_once():
    model = Equivariant()
    assert with_tta(model, 1) is model
    twice = with_tta(model, 4)
    assert (unwrap_tta(twice, 1), unwrap_tta(model, 8)) == ((model, 4), (model, 8))
    assert with_tta(twice, 1).views == 4
    assert with_tta(twice, 1).model is model
    for ask in (with_tta, unwrap_tta):
        with pytest.raises(ConfigError, match="averages 4 views already; leave out tta 4"):
            ask(twice, 4)
        with pytest.raises(ConfigError, match="use 1"):
            ask(model, 3)
    with pytest.raises(ConfigError, match=r"already.*\.model"):
        TestTimeAugmentation(twice, 2)


def test_models_that_cannot_be_turned_back_are_refused():
    with pytest.raises(ConfigError, match=r"6 rays .* tta 2"):
        TestTimeAugmentation(Fake(rays=6), 8)
    assert TestTimeAugmentation(Fake(rays=6), 4).views == 4
    headless = Constant()
    del headless.heads
    with pytest.raises(ConfigError, match="Constant has no heads"):
        TestTimeAugmentation(headless, 2)
    stranger = Constant()
    stranger.heads = {"hv_map": HVHead(SIZES)}
    with pytest.raises(ConfigError, match=r"'nuclei_binary_map' .* has no head"):
        TestTimeAugmentation(stranger, 2).predict_maps(torch.rand(1, 3, 16, 16))


def test_an_image_is_segmented_with_the_averaged_maps(network, tmp_path):
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((128, 160)), 4)
    image = np.repeat(np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))[..., None], 3, axis=2)
    with torch.no_grad():  # an untrained network says nearly the same everywhere
        for name in ("nuclei_binary_map", "hv_map"):
            output = network.heads[name].output
            output.weight *= 1000
            logits = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[name]
            output.bias -= logits[0].flatten(1).median(1).values
    network.save_pretrained(tmp_path / "model")
    plain, averaged = (segment_image(image, model=network, tta=tta) for tta in (1, 4))
    wrapped = segment_image(image, model=TestTimeAugmentation(network, 4))
    named = segment_image(image, model=tmp_path / "model", device="cpu", tta=4)
    for other in (wrapped, named):
        np.testing.assert_array_equal(other.centroid, averaged.centroid)
        np.testing.assert_array_equal(other.embedding, averaged.embedding)
    assert len(averaged)
    assert averaged.embedding.shape[1:] == plain.embedding.shape[1:]
    assert not np.array_equal(averaged.centroid, plain.centroid)
    with pytest.raises(ConfigError, match="tta 3"):
        segment_image(image, model=network, tta=3)
