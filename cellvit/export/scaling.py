"""Undoing what QuPath does to the colours of a region before a model sees it."""

import torch
from torch import Tensor, nn

GUESS = (
    (0.397, 0.427, 0.328, 0.950, 0.749, 0.808),
    (-0.352, -0.419, -0.016, -0.022, 0.006, 0.050),
    (0.540, 0.464, 0.920, -0.488, -0.486, -0.268),
    (-0.076, -0.095, -0.467, 0.490, 0.647, 0.381),
    (-0.956, -1.451, -0.230, -0.501, -0.444, -0.172),
    (-0.203, -0.612, 0.227, -0.771, -0.914, -0.572),
    (0.345, 1.183, -0.873, 1.363, 1.674, 0.955),
)
"""Black and white of R, G and B (columns) by 1, mean and standard deviation of R, G and B of a scaled tile (rows).

``tests/benchmarks/fit_scaling.py`` finds them from images of the ``train`` splits of nano's data. Nothing about a model
is in them: they say how dark the darkest and how bright the brightest pixels of tissue stained with H&E are.
"""

BLACK, WHITE = (0.0, 0.6), (0.6, 1.0)
"""What is within reason for either."""


class PercentileUndo(nn.Module):
    """Brings an image that was stretched between its percentiles back to about the colours it had.

    QuPath gives a model ``(v - p0.1) / (p99.9 - p0.1)`` of each channel, and tells it neither percentile. They are
    guessed from mean and deviation of what it gives.
    """

    guess: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("guess", torch.tensor(GUESS))
        self.black, self.white = BLACK, WHITE

    def forward(self, scaled: Tensor) -> Tensor:
        """Return the image in [0, 1].

        Args:
            scaled: ``(B, 3, H, W)`` float32 in [-0.5, 1.5].
        """
        flat = scaled.flatten(2)
        mean = flat.mean(2)
        deviation = (flat - mean[:, :, None]).square().mean(2).sqrt()
        known = torch.cat([torch.ones_like(mean[:, :1]), mean, deviation], 1)
        low, high = (known @ self.guess).chunk(2, 1)
        low, high = low.clamp(self.black[0], self.black[1]), high.clamp(self.white[0], self.white[1])
        return (low[:, :, None, None] + scaled * (high - low)[:, :, None, None]).clamp(0, 1)
