import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from cellvit.encoders import ENCODERS, EfficientNetLiteEncoder
from cellvit.encoders.depthwise import DepthwiseConv2d, filter_gradient
from cellvit.errors import ConfigError, WeightsError
from cellvit.inference.acceleration import accelerated_inference
from cellvit.testing import EncoderContract


class TestWholeResolution(EncoderContract):
    def make(self):
        return EfficientNetLiteEncoder(neck_channels=8)


class TestHalfResolution(EncoderContract):
    def make(self):
        return EfficientNetLiteEncoder(size=2, shrink=2, neck_channels=8)


def test_features_have_the_strides_of_the_image():
    whole, half = (EfficientNetLiteEncoder(shrink=shrink, neck_channels=24) for shrink in (1, 2))
    assert [tuple(f) for f in whole.features] == [(16, 2), (24, 4), (40, 8), (24, 16)]
    assert [tuple(f) for f in half.features] == [(16, 4), (24, 8), (40, 16), (24, 16)]
    assert ENCODERS.get("efficientnet-lite") is EfficientNetLiteEncoder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a network of timm, in a file as timm names them; the network pads alike on both sides."""
    net = timm.create_model("efficientnet_lite0", bn_eps=1e-3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file({k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return path, net.eval()


def test_maps_with_weights_of_timm_are_those_of_timm(weights):
    path, net = weights
    encoder, image = EfficientNetLiteEncoder(weights=str(path)).eval(), torch.randn(1, 3, 64, 96)
    maps = []
    for stage in (0, 1, 2, 6):
        net.blocks[stage].register_forward_hook(lambda _, __, output: maps.append(output))
    with torch.inference_mode():
        output = encoder(image)
        net.forward_features(image)
    torch.testing.assert_close([*output.features[:3], output.pooled], [*maps[:3], maps[3].mean((2, 3))])
    assert len(encoder.init_args["sha256"]) == 64


def test_half_resolution_sees_the_averaged_image(weights):
    path, _ = weights
    whole, half = (EfficientNetLiteEncoder(weights=str(path), shrink=shrink).eval() for shrink in (1, 2))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        small = nn.functional.avg_pool2d(image, 2)
        torch.testing.assert_close(half(image).features[:3], whole(small).features[:3])


def test_environment_variables_in_the_path_are_replaced(weights, monkeypatch):
    monkeypatch.setenv("WEIGHTS_HERE", str(weights[0].parent))
    EfficientNetLiteEncoder(weights="$WEIGHTS_HERE/lite0.safetensors")


def test_weights_of_another_size_or_with_parts_missing_are_refused(weights, tmp_path):
    path, net = weights
    with pytest.raises(WeightsError, match=r"of another shape|missing"):
        EfficientNetLiteEncoder(size=2, weights=str(path))
    kept = {k: v for k, v in net.state_dict().items() if "blocks.2.1.conv_dw" not in k}
    save_file(kept | {"strange.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"missing: stages\.2\.1\.layers\.3\.weight; unused: strange\.weight"):
        EfficientNetLiteEncoder(weights=str(tmp_path / "part.safetensors"))
    with pytest.raises(WeightsError, match="SHA-256"):
        EfficientNetLiteEncoder(weights=str(path), sha256="0" * 64)


@pytest.mark.parametrize("settings", [{"size": 1}, {"shrink": 3}, {"neck_channels": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match="give size 0 or 2, shrink 1 or 2"):
        EfficientNetLiteEncoder(**settings)


def test_batch_norms_of_depthwise_convolutions_are_fused_too():
    encoder, image = EfficientNetLiteEncoder(neck_channels=8).eval(), torch.randn(1, 3, 64, 64)
    norms = []
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            norms.append(module)
    with torch.inference_mode():
        plain = encoder(image)
        with accelerated_inference(encoder):
            assert all("forward" in vars(norm) for norm in norms)
            fast = encoder(image)
    torch.testing.assert_close(fast.features, plain.features, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(12, 16), (7, 9)])
def test_gradients_of_a_depthwise_convolution_in_half_precision(kernel, stride, size):
    """Against torch in double precision, on numbers that half precision represents, so that only sums are rounded."""
    convolution = DepthwiseConv2d(6, kernel, stride=stride)
    with torch.no_grad():
        convolution.weight.copy_(torch.randint(-4, 5, convolution.weight.shape) / 4)
    image = (torch.randint(-4, 5, (2, 6, *size)) / 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = convolution(image)
    assert output.dtype == torch.bfloat16
    gradient = torch.randint(-4, 5, output.shape).bfloat16() / 4
    output.backward(gradient)
    exact, filters = image.detach().double().requires_grad_(), convolution.weight.detach().double().requires_grad_()
    expected = nn.functional.conv2d(exact, filters, None, stride, kernel // 2, 1, 6)
    expected.backward(gradient.double())
    torch.testing.assert_close(output.double(), expected, rtol=0.01, atol=0.02)
    torch.testing.assert_close(image.grad.double(), exact.grad, rtol=0.01, atol=0.02)
    torch.testing.assert_close(convolution.weight.grad.double(), filters.grad, rtol=0.01, atol=0.05)


def test_filter_gradient_is_that_of_torch():
    image, filters = torch.randn(2, 3, 8, 9).double(), torch.randn(3, 1, 5, 5).double().requires_grad_()
    output = nn.functional.conv2d(image, filters, None, 2, 2, 1, 3)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    found = filter_gradient(image, gradient, kernel=5, stride=2)
    torch.testing.assert_close(found, filters.grad.float())


def test_frozen_filters_and_images_without_gradient_get_none():
    convolution = DepthwiseConv2d(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        convolution(torch.randn(1, 2, 4, 4)).sum().backward()
        assert convolution.weight.grad is not None
        convolution.weight.requires_grad_(False).grad = None
        image = torch.randn(1, 2, 4, 4, requires_grad=True)
        convolution(image).sum().backward()
    assert image.grad is not None
    assert convolution.weight.grad is None
