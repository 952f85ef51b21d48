"""What inference asks of a model, the devices and precisions it runs at, and how a model is loaded for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cellvit.errors import ConfigError
from cellvit.heads.base import Head
from cellvit.inference.acceleration import accelerated_inference, one_thread_after_fork
from cellvit.inference.instanseg import InstanSegModel, is_instanseg
from cellvit.inference.settings import AUTO, DEVICES, PRECISIONS
from cellvit.model.network import CellViTNetwork
from cellvit.postprocess.base import Postprocessor
from cellvit.postprocess.base import postprocessor_of as postprocessor_of  # one of the functions below
from cellvit.types import NucleiClasses, NucleiPrediction

Progress = Callable[[int, int], None]
"""Called with the number of finished tiles and the number of all tiles."""


@runtime_checkable
class NucleiModel(Protocol):
    """What inference needs of a model. What it uses beside that if it is there, :class:`FullModel` declares.

    Attributes:
        classes: Names and colours of the types.
        mpp: Resolution the model is made for, in microns per pixel.
        training: Whether it is in training mode.
    """

    classes: NucleiClasses
    mpp: float
    training: bool

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def to(self, device: torch.device) -> Any:
        """Move the model."""

    def train(self, mode: bool = True) -> Any:
        """Set or leave training mode."""

    def predict_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Return activated maps of a batch ``(B, 3, H, W)`` in [0, 1]."""

    def postprocess(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Return the nuclei of one image from its maps."""


class FullModel(NucleiModel, Protocol):
    """All that inference knows of a model; :class:`cellvit.model.network.CellViTNetwork` is one.

    A model may lack what is declared here. Nothing but the functions below reads it.

    Attributes:
        about: Free facts: licence, data, origin, citation.
        postprocessor: What :meth:`postprocess` is made of and worker processes may run; None where it is not known.
    """

    about: dict[str, Any]
    postprocessor: Postprocessor

    @property
    def heads(self) -> Any:
        """The :class:`cellvit.heads.base.Head` of each map, by name; ``items()`` gives them."""


def about_of(model: NucleiModel) -> Mapping[str, Any]:
    """Return the free facts about a model, such as its licence; empty if it states none."""
    return cast(FullModel, model).about if hasattr(model, "about") else {}


def heads_of(model: NucleiModel) -> dict[str, Head] | None:
    """Return the heads of a model by the name of their map; None if it has none."""
    return dict(cast(FullModel, model).heads.items()) if hasattr(model, "heads") else None


def load_model(model: str | Path | NucleiModel, *, device: str = "auto", trust: Sequence[str] = ()) -> NucleiModel:
    """Return a model on a device; one that is loaded is a plain network in evaluation mode.

    Args:
        model: Name, path, or a model; a folder with ``instanseg.pt`` is an
            :class:`cellvit.inference.instanseg.InstanSegModel`. A model that is passed in stays where it is if
            ``device`` is ``"auto"``.
        device: ``"auto"`` (CUDA, else MPS, else CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        trust: Packages whose classes the model's file may name, see :func:`cellvit.model.checkpoint.load`.

    Raises:
        ConfigError: If the device does not exist here.
        UnknownPluginError: If there is no model of that name.
        WeightsError: If the weights cannot be used.
    """
    one_thread_after_fork()
    if isinstance(model, str | Path):
        target = choose_device(device)
        if is_instanseg(model):
            script: NucleiModel = InstanSegModel(model, trust=trust).to(target)
            return script
        loaded: FullModel = CellViTNetwork.from_pretrained(model, trust=trust).to(target)
        return loaded
    if not isinstance(model, NucleiModel):
        raise ConfigError(f"model {model!r} is neither a name, a path nor a CellViT; pass 'nano' or a path")
    if device != "auto":
        model.to(choose_device(device))
    return model


def choose_device(device: str = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        device: ``"auto"`` takes CUDA, else MPS, else the CPU; or the name of one, also with a number (``"cuda:1"``).

    Raises:
        ConfigError: If the name is unknown or there is no such device.
    """
    kind, _, number = device.partition(":")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if available[name]))
    if kind not in available or (number and not number.isdecimal()):
        raise ConfigError(f"device {device!r} is unknown; choose from {', '.join(DEVICES)}")
    if int(number or 0) >= available[kind]:
        usable = ", ".join(f"{name!r}" for name, count in available.items() if count)
        raise ConfigError(f"device {device!r} is not available here; use 'auto' or one of: {usable}")
    return torch.device(device)


def autocast_context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which a network runs at a precision.

    Args:
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        device: Where it runs.

    Raises:
        ConfigError: If the precision is unknown, or the device cannot compute in it.
    """
    check_precision(precision, device)
    if precision == AUTO:
        raise ConfigError(f"precision 'auto' says nothing here; choose from {', '.join(PRECISIONS[1:])}")
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that does not exist or that a device cannot do.

    Args:
        precision: One of :data:`cellvit.inference.settings.PRECISIONS`.
        device: Where the network is to run.

    Raises:
        ConfigError: With the choices.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and device.type == "cpu":
        raise ConfigError("precision '16-mixed' needs a GPU; use 'auto', 'bf16-mixed' or '32-true' on the CPU")
    if precision == "bf16-mixed" and not has_bfloat16(device):
        raise ConfigError(f"{device} cannot do precision 'bf16-mixed'; use 'auto', '32-true' or '16-mixed'")


def has_bfloat16(device: torch.device) -> bool:
    """Return whether torch computes in bfloat16 on a device, on a graphics card in units of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" or bool(torch.backends.mps.is_macos_or_newer(14, 0))


@contextmanager
def evaluation_mode(model: NucleiModel) -> Iterator[None]:
    """Switch training mode off, and back on afterwards if it was on, also after an error.

    Within it a network runs as :func:`cellvit.inference.acceleration.accelerated_inference` describes.

    Args:
        model: A network, or any other model.
    """
    if isinstance(model, nn.Module):
        with accelerated_inference(vars(model).get("changed_from", model)):  # threads may use both at a time
            yield
        return
    was_training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was_training)
