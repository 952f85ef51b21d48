"""An encoder without attention."""

from itertools import pairwise

from torch import Tensor, nn

from cellvit import Encoder, EncoderOutput, FeatureInfo
from cellvit.errors import ConfigError


class ConvStem(Encoder):
    """Four convolutional stages, each at half the resolution of the one before.

    Args:
        width: Channels of the first stage; each stage has twice as many as the one before.

    Raises:
        ConfigError: If the width is not positive.
    """

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"width {width} must be 1 or more")
        widths = [width * 2**stage for stage in range(4)]
        self.stages = nn.ModuleList(_stage(a, b) for a, b in pairwise([3, *widths]))
        self.features = [FeatureInfo(channels, 2 ** (i + 1)) for i, channels in enumerate(widths)]
        self.pooled_channels = widths[-1]

    def forward(self, image: Tensor) -> EncoderOutput:
        """Return the output of every stage, and the mean of the last."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return EncoderOutput(maps, maps[-1].mean((2, 3)))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return one group per stage: a training may give the early ones a smaller learning rate."""
        return [list(stage.parameters()) for stage in self.stages]


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1),
        nn.GroupNorm(1, channels_out),  # like batch norm, but it also works on batches of one
        nn.GELU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.GELU(),
    )
