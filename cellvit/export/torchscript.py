"""A network and its post-processing as one TorchScript module, which needs nothing but torch."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cellvit.errors import ConfigError
from cellvit.export.graph import plain_copy
from cellvit.export.scaling import PercentileUndo
from cellvit.model.network import STRIDE, CellViTNetwork
from cellvit.postprocess.hv import HVPostprocessor
from cellvit.postprocess.hv_torch import HVSeparation, nucleus_types
from cellvit.types import HV_MAP, NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP

NEEDS = (NUCLEI_BINARY_MAP, HV_MAP, NUCLEI_TYPE_MAP)
OLDEST_TORCH = Version("2.7")
TRACED_AT = (144, 176)
CHECKED_AT = ((64, 64), (96, 288), (272, 160))
TOLERANCE = 1e-3
"""Largest difference of a map at a size the network was not traced at; rounding makes 1e-5."""


class NucleiScript(nn.Module):
    """What a tile of QuPath goes through: colours, padding, network, nuclei, types; for ``torch.jit.script``.

    Args:
        network: Traced: images ``(1, 3, H, W)`` in [0, 1], sides multiples of 16, to the three activated maps.
        settings: The post-processor of the model.
    """

    def __init__(self, network: nn.Module, settings: HVPostprocessor) -> None:
        super().__init__()
        self.network = network
        self.undo = PercentileUndo()
        self.separation = HVSeparation(settings)
        self.by_majority = settings.type_rule == "majority"
        self.stride = STRIDE

    def forward(self, image: Tensor, channels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the nuclei of a tile.

        Args:
            image: ``(1, 3, H, W)`` floats, each channel stretched between its percentiles.
            channels: Not used: QuPath may say here which of nuclei and cells it wants of a model that has both.

        Returns:
            Labels ``(1, 1, H, W)`` float32, 1..N without gaps, 0 is background; and the place of the type of each
            nucleus among the types without background ``(N, 1)`` float32.
        """
        if image.shape[0] != 1:
            raise ValueError("give one tile at a time")
        height, width = image.shape[2], image.shape[3]
        raw = self.undo(image.float())
        padded = F.pad(raw, [0, -width % self.stride, 0, -height % self.stride], mode="replicate")
        if padded.is_cpu:
            padded = padded.contiguous(memory_format=torch.channels_last)  # convolutions then take half as long
        binary, hv_map, types = self.network(padded)
        labels = self.separation(binary[0, :, :height, :width].contiguous(), hv_map[0, :, :height, :width].contiguous())
        found = nucleus_types(labels, types[0, :, :height, :width].contiguous(), self.by_majority) - 1
        return labels[None, None].float(), found[:, None].float()


class _Maps(nn.Module):
    """A network that returns its three activated maps as a tuple."""

    def __init__(self, network: CellViTNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        logits = self.network(image)
        return tuple(cast(Any, self.network.heads[name]).activate(logits[name].float()) for name in NEEDS)


def to_torchscript(model: CellViTNetwork) -> torch.jit.ScriptModule:
    """Return a model as one script that takes tiles of any size; see :class:`NucleiScript`.

    Args:
        model: It stays as it is.

    Raises:
        ConfigError: If torch is too old, the model lacks a head or has another post-processor, or a part of it cannot
            do without the size of the image.
    """
    settings = check_exportable(model)
    maps = _Maps(plain_copy(model))
    _fuse(maps)
    with torch.no_grad(), _quiet():
        network = _traced(maps, model)
        script: torch.jit.ScriptModule = torch.jit.script(NucleiScript(network, settings).eval())
    return script


def check_exportable(model: CellViTNetwork) -> HVPostprocessor:
    """Return the post-processor of a model that can be exported.

    Raises:
        ConfigError: If torch is too old, or the model lacks a head or has another post-processor.
    """
    if Version(torch.__version__) < OLDEST_TORCH:
        raise ConfigError(f"torch {torch.__version__} is too old to export a script; install {OLDEST_TORCH} or newer")
    missing, found = sorted(set(NEEDS) - set(model.heads)), model.postprocessor
    if missing or not isinstance(found, HVPostprocessor):
        what = f"lacks the heads {', '.join(missing)}" if missing else f"has the post-processor {type(found).__name__}"
        raise ConfigError(
            f"the model {what}; nuclei are separated and typed in a script by 'hv-watershed' or 'hv-torch' from "
            f"{', '.join(NEEDS)}: export a model that has these, such as 'nano'"
        )
    return found


def _traced(maps: _Maps, model: CellViTNetwork) -> nn.Module:
    """Return the traced network, whose maps are the model's at sizes it has not seen."""
    encoder = model.settings["encoder"]["class_path"]
    advice = "export a model whose encoder takes any, such as 'nano' with encoder 'hybrid'"
    try:
        trace = cast(Any, torch.jit.trace)
        traced: nn.Module = trace(maps, torch.rand(1, 3, *TRACED_AT), check_trace=False)
    except Exception as error:  # what a part does that cannot be traced fails in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"the network with encoder {encoder!r} cannot be traced ({reason}); {advice}") from error
    for height, width in CHECKED_AT:
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        expected = maps(image)
        try:
            worst = max(float((a - b).abs().max()) for a, b in zip(traced(image), expected, strict=True))
        except RuntimeError:  # shapes that do not fit each other
            worst = float("inf")
        if not worst <= TOLERANCE:
            raise ConfigError(
                f"the network with encoder {encoder!r} works at {TRACED_AT[0]}x{TRACED_AT[1]} px, where it was traced, "
                f"and not at {height}x{width} px, but QuPath's tiles are of any size; {advice}"
            )
    return traced


def _fuse(network: nn.Module) -> None:
    """Let convolutions compute the batch norms that follow them, in place."""
    for sequence in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for place in range(len(sequence) - 1):
            conv, norm = sequence[place], sequence[place + 1]
            is_transposed = isinstance(conv, nn.ConvTranspose2d)
            fits = isinstance(conv, nn.Conv2d) or (isinstance(conv, nn.ConvTranspose2d) and conv.groups == 1)
            if fits and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
                sequence[place] = fuse_conv_bn_eval(cast(Any, conv), norm, transpose=is_transposed)
                sequence[place + 1] = nn.Identity()


@contextmanager
def _quiet() -> Iterator[None]:
    """Let torch not say that scripts are of the past, which QuPath is not, nor that a trace holds constants.

    What comes of those is checked at other sizes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit")
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield
