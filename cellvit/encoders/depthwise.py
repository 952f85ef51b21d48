"""Depthwise convolutions whose gradients take no longer on a CPU than their results."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution without bias; the same as ``nn.Conv2d(channels, channels, ..., groups=channels)``.

    In half precision on a CPU torch computes two of its gradients up to 100 times slower than the convolution:
    that of the image where the stride is 2, and that of a filter of 5 x 5. Here the first is computed in float32, the
    second as a sum of products per filter tap, both with the channels last in memory. Results and gradients are those
    of ``nn.Conv2d`` up to rounding.

    Args:
        channels: Channels of input and output.
        kernel_size: Odd side of the filters; half of it is padded.
        stride: 1 or 2.
    """

    def __init__(self, channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)``."""
        half = torch.is_autocast_enabled("cpu") and input.device.type == "cpu"
        if not (half and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return super().forward(input)
        dtype = torch.get_autocast_dtype("cpu")
        done: Tensor = _Depthwise.apply(input.to(dtype), self.weight.to(dtype), self.stride[0])
        return done


class _Depthwise(torch.autograd.Function):
    """The convolution and its gradients in half precision."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, stride: int) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(image, weight)
        ctx.stride = stride
        return F.conv2d(image, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        image, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_image = of_weight = None
        if ctx.needs_input_grad[0]:
            exact = torch.float32 if ctx.stride > 1 else image.dtype
            of_image = _built_in(gradient.to(exact), image.to(exact), weight.to(exact), ctx.stride, first=True)
            of_image = of_image.to(image.dtype)
        if ctx.needs_input_grad[1]:
            small = weight.shape[-1] <= _BUILT_IN
            of_weight = (
                _built_in(gradient, image, weight, ctx.stride, first=False)
                if small
                else filter_gradient(image, gradient, kernel=weight.shape[-1], stride=ctx.stride).to(weight.dtype)
            )
        return of_image, of_weight, None


_BUILT_IN = 3


def filter_gradient(image: Tensor, gradient: Tensor, *, kernel: int, stride: int) -> Tensor:
    """Return the gradient of the filters of a depthwise convolution, ``(C, 1, kernel, kernel)``.

    Args:
        image: ``(B, C, H, W)`` input.
        gradient: ``(B, C, h, w)`` gradient of the output.
        kernel: Side of the filters; half of it was padded.
        stride: Of the convolution.

    Example:
        >>> filter_gradient(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), kernel=3, stride=1)[0, 0]
        tensor([[0., 0., 0.],
                [0., 6., 0.],
                [0., 0., 0.]])
    """
    height, width = gradient.shape[-2:]
    padded = F.pad(image, [kernel // 2] * 4)
    rows = [slice(at, at + stride * (height - 1) + 1, stride) for at in range(kernel)]
    columns = [slice(at, at + stride * (width - 1) + 1, stride) for at in range(kernel)]
    taps = [
        (padded[:, :, row, column] * gradient).sum((0, 2, 3), dtype=torch.float32) for row in rows for column in columns
    ]
    return torch.stack(taps, 1).view(-1, 1, kernel, kernel)


def _built_in(gradient: Tensor, image: Tensor, weight: Tensor, stride: int, *, first: bool) -> Tensor:
    """Return one gradient as torch computes it."""
    padding, mask = [weight.shape[-1] // 2] * 2, [first, not first, False]
    found = torch.ops.aten.convolution_backward(
        gradient, image, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(weight), mask
    )
    result: Tensor = found[0 if first else 1]
    return result
