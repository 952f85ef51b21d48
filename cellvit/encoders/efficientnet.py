"""EfficientNet-Lite: a small convolutional pyramid that can start from ImageNet weights."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.depthwise import DepthwiseConv2d
from cellvit.encoders.pretrained import load_encoder_weights
from cellvit.encoders.resolution import DEEPEST, enlarged, shrunk
from cellvit.errors import ConfigError
from cellvit.types import EncoderOutput, FeatureInfo
from cellvit.weights.hub import checked_digest, local_file


class _Stage(NamedTuple):
    kernel: int
    stride: int


_STAGES = (_Stage(3, 1), _Stage(3, 2), _Stage(5, 2), _Stage(3, 2), _Stage(5, 1), _Stage(5, 2), _Stage(3, 1))
_STEM = 32
_EPS = 1e-3
"""Of the batch norms; the weights were trained with it."""
_EXPANSION = 6
_LEVELS = (0, 1, 2, 4, 6)
"""Stages whose output is the last at its stride: 2, 4, 8, 16 and 32 pixels of what the network sees."""


class _Size(NamedTuple):
    channels: tuple[int, ...]
    depths: tuple[int, ...]


SIZES: Mapping[int, _Size] = MappingProxyType(
    {
        0: _Size((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
        2: _Size((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
    }
)
"""Channels and blocks per stage of EfficientNet-Lite 0 and 2."""


@ENCODERS.register("efficientnet-lite")
class EfficientNetLiteEncoder(Encoder):
    """EfficientNet-Lite [1, 2] with a neck that joins its deepest maps at stride 16.

    The network is that of timm's ``tf_efficientnet_lite0`` and ``lite2`` without the classifier and the convolution
    before it, and reads their weight files. Convolutions are padded alike on both sides, where the original pads the
    right and the bottom only: the same filters, looking half a stride to the left. Maps whose stride is beyond 16 px
    go down the neck: each is enlarged by two (nearest pixel) and added to the next finer one, both brought to
    ``neck_channels``, and a 3x3 convolution follows [3].

    With ``shrink`` 2 the image is averaged over 2 x 2 pixels first, so that the network works at half the resolution
    of the image, for a quarter of the cost: its maps then have the strides 4, 8, 16, 32 and 64 of the image, and the
    features are those of 4, 8 and 16 and the neck's.

    Args:
        size: 0 or 2, the EfficientNet-Lite of that number.
        shrink: 1, or 2 for half the resolution.
        neck_channels: Channels of the neck, and of the deepest feature map.
        weights: File of timm's weights for the body; environment variables in it are replaced. The neck starts at
            random. None starts all at random.
        sha256: What the weight file must have.
        drop_path_rate: Stochastic depth of the last residual block; earlier blocks have linearly less.

    Raises:
        ConfigError: If there is no such size, or a number is out of range.
        WeightsError: If the weights cannot be read, are not the expected ones or do not fit.

    References:
        [1] Tan and Le, EfficientNet: Rethinking model scaling for convolutional neural networks, ICML 2019.
        [2] Liu, Higher accuracy on vision models with EfficientNet-Lite, TensorFlow blog, 2020.
        [3] Lin et al., Feature pyramid networks for object detection, CVPR 2017.
    """

    weight_sources: ClassVar[Mapping[str, Any]] = MappingProxyType({"weights": None})
    exports_any_size = True

    def __init__(
        self,
        *,
        size: int = 0,
        shrink: int = 1,
        neck_channels: int = 128,
        weights: str | None = None,
        sha256: str | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if size not in SIZES or shrink not in (1, 2) or neck_channels < 1:
            message = f"encoder 'efficientnet-lite' has size {size}, shrink {shrink}, neck_channels {neck_channels}"
            raise ConfigError(f"{message}; give size {' or '.join(map(str, SIZES))}, shrink 1 or 2, channels from 1")
        channels, depths = SIZES[size]
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.shrink = shrink
        self.stem = nn.Sequential(*_conv(3, _STEM, 3, stride=2))
        self.stages = nn.ModuleList(
            _stage(a, b, stage, expansion=_EXPANSION if place else 1, rates=list(itertools.islice(rates, depth)))
            for place, ((a, b), stage, depth) in enumerate(
                zip(itertools.pairwise((_STEM, *channels)), _STAGES, depths, strict=True)
            )
        )
        strides = [shrink * 2 ** (i + 1) for i in range(len(_LEVELS))]
        deep = [channels[stage] for stage, stride in zip(_LEVELS[3:], strides[3:], strict=True)]
        self.neck = _Neck(deep, neck_channels, extra=strides[3] // DEEPEST)
        shallow = [FeatureInfo(channels[stage], stride) for stage, stride in zip(_LEVELS[:3], strides, strict=False)]
        self.features = [*shallow, FeatureInfo(neck_channels, DEEPEST)]
        self.pooled_channels = channels[-1]
        if weights is not None:
            path = local_file(weights)
            digest = checked_digest(path, expected=sha256)
            load_encoder_weights(self, path)
            self.init_args["sha256"] = digest

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        size = (image.shape[-2] // DEEPEST, image.shape[-1] // DEEPEST)
        x = self.stem(shrunk(image, self.shrink))
        maps = []
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place in _LEVELS:
                maps.append(x)
        return EncoderOutput([*maps[:3], self.neck(maps[3:], size)], x.mean((2, 3)))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the stem, each stage, then the neck."""
        return [list(part.parameters()) for part in (self.stem, *self.stages, self.neck)]

    def weights_from(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Read a file of timm; the neck, the counters of batch norms and what else it lacks stay as they are."""
        own, used = dict(self.state_dict()), set()
        for name in self.state_dict():
            theirs = _timm_name(name)
            if theirs is not None and theirs in content:
                own[name] = content[theirs]
                used.add(theirs)
            elif theirs is not None and not name.endswith("num_batches_tracked"):
                del own[name]  # reported as missing
        unused = {name: value for name, value in content.items() if name not in used and not name.startswith(_HEAD)}
        return {name: own[name] for name in self.state_dict() if name in own} | unused


class _Neck(nn.Module):
    """Joins maps from the deepest up, and enlarges the result ``extra`` times."""

    def __init__(self, channels: Sequence[int], width: int, *, extra: int) -> None:
        super().__init__()
        self.extra = extra
        self.inputs = nn.ModuleList(nn.Sequential(*_conv(c, width, 1)) for c in channels)
        self.outputs = nn.ModuleList(nn.Sequential(*_conv(width, width, 3)) for _ in channels[1:])

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        x = self.inputs[-1](maps[-1])
        for finer, enter, leave in zip(maps[-2::-1], reversed(self.inputs[:-1]), self.outputs, strict=True):
            x = leave(enter(finer) + enlarged(x, 2, finer.shape[-2:]))
        return enlarged(x, self.extra, size)


class _Residual(nn.Module):
    """Layers beside an identity."""

    def __init__(self, layers: nn.Sequential, *, drop_path: float) -> None:
        super().__init__()
        self.layers = layers
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.layers(x))  # type: ignore[no-any-return]


def _stage(channels: int, out_channels: int, stage: _Stage, *, expansion: int, rates: Sequence[float]) -> nn.Sequential:
    """Return blocks of a pointwise, a depthwise and a pointwise convolution; later ones stand beside an identity."""
    blocks: list[nn.Module] = []
    for place, rate in enumerate(rates):
        inner = channels * expansion
        layers = nn.Sequential(
            *(_conv(channels, inner, 1) if expansion > 1 else ()),
            DepthwiseConv2d(inner, stage.kernel, stride=1 if place else stage.stride),
            *_normed(inner),
            *_conv(inner, out_channels, 1)[:-1],
        )
        blocks.append(_Residual(layers, drop_path=rate) if place else layers)
        channels = out_channels
    return nn.Sequential(*blocks)


def _conv(channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return [convolution, *_normed(out_channels)]


def _normed(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels, eps=_EPS), nn.ReLU6(inplace=True)]


_HEAD = ("conv_head.", "bn2.", "classifier.")
_WITH_EXPANSION = {0: "conv_pw", 1: "bn1", 3: "conv_dw", 4: "bn2", 6: "conv_pwl", 7: "bn3"}
_WITHOUT_EXPANSION = {0: "conv_dw", 1: "bn1", 3: "conv_pw", 4: "bn2"}


def _timm_name(name: str) -> str | None:
    """Return timm's name of a tensor; None for those of the neck.

    Example:
        >>> _timm_name("stages.1.0.3.weight"), _timm_name("stages.0.0.1.bias"), _timm_name("neck.inputs.0.0.weight")
        ('blocks.1.0.conv_dw.weight', 'blocks.0.0.bn1.bias', None)
    """
    part, *rest = name.replace(".layers.", ".").split(".")
    if part == "stem":
        return f"{('conv_stem', 'bn1')[int(rest[0])]}.{rest[1]}"
    if part != "stages":
        return None
    stage, block, place, kind = rest
    layers = _WITHOUT_EXPANSION if stage == "0" else _WITH_EXPANSION
    return f"blocks.{stage}.{block}.{layers[int(place)]}.{kind}"
