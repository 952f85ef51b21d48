"""A network as one graph that other programs run: bytes of an image in, activated maps out, nothing else to do."""

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cellvit.errors import ConfigError
from cellvit.model.network import STRIDE, CellViTNetwork
from cellvit.types import EMBEDDING_MAP

INPUT = "image"
MIN_SIDE, MAX_SIDE, MAX_BATCH = 80, 16384, 1024
TOLERANCE = 1e-4
"""Largest difference between maps of a file and of its model; of values above 1, as a share of the largest."""

_EXAMPLE = (2, 3, 264, 344)  # of no size that could be taken for a special case
_TRIAL = (1, 3, 90, 135)

Size = int | tuple[int, int] | None
"""Height and width of all images, one number for both; None leaves them and the batch open."""


def plain_copy(model: Any) -> CellViTNetwork:
    """Return a copy of a network on the CPU, in float32 and out of training mode, without what Lightning adds.

    Args:
        model: It stays as it is.
    """
    copied: CellViTNetwork = deepcopy(getattr(model, "network", model)).cpu().float().eval().requires_grad_(False)
    return copied


class ExportedNetwork(nn.Module):
    """A network with all that stands around it: scaling, padding, normalisation, activations and cropping.

    Args:
        network: It is copied, see :func:`plain_copy`.
    """

    def __init__(self, network: CellViTNetwork) -> None:
        super().__init__()
        self.net = plain_copy(network)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the maps by name.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.
        """
        height, width = image.shape[-2:]
        # Rows and columns are picked and not sliced: the exporter would have to prove that they are there.
        down, across = (_padded(side, image.device) for side in (height, width))
        outputs = self.net(image.index_select(2, down).index_select(3, across).float() / 255)
        maps = {}
        for name, head in self.net._heads():
            activated = head.activate(outputs[name].float())
            if activated.ndim == 4:
                rows, columns = (torch.arange(side, device=image.device) for side in (height, width))
                activated = activated.index_select(2, rows).index_select(3, columns)
            maps[name] = activated
        return {**maps, EMBEDDING_MAP: outputs[EMBEDDING_MAP]}


@dataclass(frozen=True)
class Graph:
    """A traced network.

    Attributes:
        module: What was traced.
        program: The graph.
        size: Height and width; None if they and the batch are open.
        outputs: Names of the maps in the order of the graph's results.
    """

    module: ExportedNetwork
    program: torch.export.ExportedProgram
    size: tuple[int, int] | None
    outputs: tuple[str, ...]

    @cached_property
    def trial(self) -> tuple[Tensor, dict[str, Tensor]]:
        """An image of noise, of another size than the traced one where that is open, and the model's maps."""
        shape = _TRIAL if self.size is None else (1, 3, *self.size)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return image, self.module.net.predict_maps(image.float() / 255)


def trace(network: CellViTNetwork, size: Size = None) -> Graph:
    """Return the graph of a network.

    Args:
        network: It stays as it is.
        size: Height and width of all images, of any number of pixels from 80; None leaves them and the batch open.

    Raises:
        ConfigError: If the encoder can do one size only and none is given, or torch cannot trace a part.
    """
    sides = _sides(size)
    if sides is None and not network.encoder.exports_any_size:
        encoder = network.settings["encoder"]["class_path"]
        raise ConfigError(
            f"encoder {encoder!r} cannot be exported for images of any size; give the one size that all images have, "
            f"such as size=512: any from {MIN_SIDE} px works, as the graph pads to multiples of {STRIDE} itself"
        )
    module = ExportedNetwork(network)
    image = torch.zeros(_EXAMPLE if sides is None else (1, 3, *sides), dtype=torch.uint8)
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, (image,), dynamic_shapes={INPUT: open_dimensions() if sides is None else None}, strict=False
            )
    except Exception as error:  # what a part does that cannot be traced fails in any way
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ConfigError(
            f"torch.export cannot trace the network ({type(error).__name__}: {reason}); a part of it decides by values "
            "or sizes of an image: give size=512, or another encoder or decoder"
        ) from error
    return Graph(module, program, sides, (*module.net.heads, EMBEDDING_MAP))


def open_dimensions() -> dict[int, Any]:
    """Return the axes of an image that may have any length, by number."""
    return {
        0: torch.export.Dim("batch", min=1, max=MAX_BATCH),
        2: torch.export.Dim("height", min=MIN_SIDE, max=MAX_SIDE),
        3: torch.export.Dim("width", min=MIN_SIDE, max=MAX_SIDE),
    }


def check(graph: Graph, found: dict[str, Tensor], file: str) -> None:
    """Refuse maps of an exported file that are not the model's.

    Args:
        graph: What was exported.
        found: What the file makes of the image of :attr:`Graph.trial`, by name.
        file: Name of the file, for the message.

    Raises:
        ConfigError: With the map that differs most, and by how much.
    """
    expected = graph.trial[1]
    off = {name: _difference(found[name], maps) for name, maps in expected.items()}
    worst = max(off, key=lambda name: off[name])
    if off[worst] > TOLERANCE:
        raise ConfigError(
            f"{file} differs from the model by {off[worst]:.2g} in {worst}, more than {TOLERANCE:g}: this exporter "
            f"does something else than torch {torch.__version__}; try another version of torch or onnxscript"
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    off = float((found - expected).abs().amax() / expected.abs().amax().clamp(min=1))
    return float("inf") if math.isnan(off) else off


def _padded(side: int, device: torch.device) -> Tensor:
    """Return which row or column each of a padded image is: the last one is repeated."""
    whole = (side + STRIDE - 1) // STRIDE * STRIDE
    return torch.arange(whole, device=device).clamp(max=side - 1)


def _sides(size: Size) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise ConfigError(
            f"size {size!r} is no size of images; give pixels from {MIN_SIDE} to {MAX_SIDE}, as size=512 or (384, 640)"
        )
    return sides
