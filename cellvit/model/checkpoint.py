"""Saving and loading a model as safetensors and JSON.

Weights are read without running anything. Parts are named in the configuration and imported by that name, so a
configuration can choose among the code that is installed, and add none.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from cellvit.encoders.base import ENCODERS
from cellvit.errors import CellViTError, ConfigError, OutputError, WeightsError
from cellvit.model.released import describe_other, is_released, read_released
from cellvit.model.requirements import required_packages
from cellvit.plugins.components import resolve
from cellvit.weights.catalogue import BUNDLED
from cellvit.weights.licences import announce_model
from cellvit.weights.locate import model_path
from cellvit.weights.safe_loading import open_safely
from cellvit.weights.state_dict import misfits

M = TypeVar("M", bound="Storable")

FORMAT = "cellvit"
SCHEMA = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class Storable(Protocol):
    """What is saved and loaded: a module that its settings build again.

    Attributes:
        settings: Arguments of its class, plain data.
    """

    settings: dict[str, Any]

    def __init__(self, **settings: Any) -> None:
        """Build it from its settings."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return its tensors by name."""

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> Any:
        """Take tensors by name."""

    def eval(self) -> Self:
        """Switch training mode off."""


class PretrainedMixin:
    """Gives a module that its ``settings`` build again ways to be loaded and saved."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """Load a model for inference; see :func:`cellvit.model.checkpoint.load`."""
        return load(cls, name_or_path)  # type: ignore[type-var]  # what the mix-in is mixed into is Storable

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write weights and settings; see :func:`cellvit.model.checkpoint.save`."""
        save(self, folder, dtype=dtype)  # type: ignore[arg-type]


def bundled_models() -> list[str]:
    """Return the names of the models that ship inside the package."""
    return sorted(p.parent.name for p in BUNDLED.glob(f"*/{CONFIG_NAME}"))


def save(model: "Storable", folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a folder.

    The configuration holds the classes of the parts with their arguments, class names and colours, resolution,
    normalisation, the free facts in ``about`` (licence, origin) and the SHA-256 of the weights.

    Args:
        model: The model.
        folder: Made if it does not exist; existing files of these names are replaced.
        dtype: Floating-point type of the stored weights; ``torch.float16`` halves the file.

    Raises:
        ConfigError: If a setting is no plain data, or a value of the weights is too large for ``dtype``.
        OutputError: If the folder cannot be written.
    """
    target = Path(folder)
    state = _stored_as(dtype, model.state_dict())
    try:
        json.dumps(model.settings)
    except (TypeError, ValueError) as error:
        message = f"the settings of the model cannot be written as JSON ({error}); give its parts plain arguments only"
        raise ConfigError(message) from error
    try:
        target.mkdir(parents=True, exist_ok=True)
        weights = target / f"{WEIGHTS_NAME}.part"
        weights.write_bytes(serialise(state, metadata={"format": "pt"}))  # save_file would hide it from other users
        config = {
            "format": FORMAT,
            "schema": SCHEMA,
            "cellvit_version": version("cellvit-lightning"),
            "requires": required_packages(model.settings),
            "model": model.settings,
            "weights": {"file": WEIGHTS_NAME, "sha256": sha256(weights), "dtype": str(dtype).removeprefix("torch.")},
        }
        text = target / f"{CONFIG_NAME}.part"
        text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights.replace(target / WEIGHTS_NAME)
        text.replace(target / CONFIG_NAME)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"model cannot be written to {str(target)!r} ({error}); choose a folder you may write to"
        ) from error


def _stored_as(dtype: torch.dtype, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    largest = torch.finfo(dtype).max
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    over = [name for name, value in floats.items() if value.numel() and value.abs().amax() > largest]
    if over:
        raise ConfigError(f"{dtype} cannot hold the values of {over[0]}; use bfloat16 or float32")
    stored = {name: value.to(dtype) if name in floats else value for name, value in state.items()}
    return {name: value.detach().cpu().contiguous() for name, value in stored.items()}


def load(cls: type[M], name_or_path: str | Path) -> M:
    """Return a model in evaluation mode with its weights.

    Args:
        cls: The class to build.
        name_or_path: Name of a bundled model, a folder made by :func:`save`, a checkpoint that ``cellvit fit`` wrote,
            or one of the published implementation. What a file is, its content decides, not its name.

    Returns:
        The model on the CPU in float32.

    Raises:
        UnknownPluginError: If there is neither such a model nor such a path.
        WeightsError: If the files are damaged, not ours, or do not fit each other.
    """
    stored = _read(name_or_path)
    try:
        model = cls(**_offline(stored.settings))
    except (
        TypeError,
        ValueError,
        RuntimeError,
        AssertionError,
        AttributeError,
        ArithmeticError,
        CellViTError,
    ) as error:
        made = f" (it was made with {', '.join(stored.requires)}; install what is missing)" if stored.requires else ""
        raise WeightsError(f"the settings in {str(name_or_path)!r} build no model: {error}{made}") from error
    _fill(model, stored, name_or_path)
    return model.eval()


def read_model(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the settings and the tensors of a model without building it.

    Args:
        name_or_path: Name of a bundled model, a folder made by :func:`save`, or a checkpoint.

    Raises:
        UnknownPluginError: If there is neither such a model nor such a path.
        WeightsError: If the files are damaged or not ours.
    """
    stored = _read(name_or_path)
    return stored.settings, stored.state


class _Stored(NamedTuple):
    """Settings, tensors under our names, what the file calls a tensor of ours, and packages that bring its parts."""

    settings: dict[str, Any]
    state: dict[str, torch.Tensor]
    name_of: Callable[[str], str] = str
    requires: tuple[str, ...] = ()


def _read(name_or_path: str | Path) -> _Stored:
    path = model_path(name_or_path)
    stored = _read_folder(path) if path.is_dir() else _read_file(path)
    about = stored.settings.get("about")
    announce_model(about if isinstance(about, Mapping) else None, path.name)
    return stored


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_folder(folder: Path) -> _Stored:
    config_path = folder / CONFIG_NAME
    if not config_path.is_file():
        raise WeightsError(f"folder {str(folder)!r} has no {CONFIG_NAME}; give a folder made by save_pretrained")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        is_ours = config["format"] == FORMAT and isinstance(config["model"], dict)
        schema, weights, digest = int(config["schema"]), folder / config["weights"]["file"], config["weights"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{str(config_path)!r} is not a cellvit configuration ({error!r}); export the model again"
        ) from error
    if not is_ours:
        raise WeightsError(f"{str(config_path)!r} states format {config['format']!r}, not {FORMAT!r}; it is not ours")
    if schema > SCHEMA:
        raise WeightsError(
            f"{str(config_path)!r} has schema {schema}, this version knows {SCHEMA}; upgrade cellvit-lightning"
        )
    try:
        state = load_file(weights)
        actual = sha256(weights)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"weights {str(weights)!r} cannot be read ({error}); fetch or export them again") from error
    if actual != digest:
        raise WeightsError(
            f"weights {str(weights)!r} have SHA-256 {actual}, the configuration says {digest}; fetch them again"
        )
    stated = config.get("requires")  # not in folders of older versions
    packages = [f"{name} {made}".strip() for name, made in stated.items()] if isinstance(stated, dict) else []
    return _Stored(config["model"], state, requires=tuple(packages))


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the settings and the tensors of a Lightning checkpoint that ``cellvit fit`` wrote.

    Args:
        path: The file.

    Raises:
        WeightsError: If it is no such file, is damaged, or holds more than plain data.
    """
    try:
        return _lightning_parts(open_safely(path))
    except WeightsError as error:
        raise WeightsError(f"{str(path)!r} {error}") from error


def _read_file(path: Path) -> _Stored:
    try:
        content = open_safely(path)
        if not is_released(content):
            return _Stored(*_lightning_parts(content))
        return _Stored(*read_released(content, source={"file": path.name, "sha256": sha256(path)}))
    except WeightsError as error:
        raise WeightsError(f"{str(path)!r} {error}") from error


def _lightning_parts(checkpoint: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    known = isinstance(checkpoint, dict) and {"state_dict", "hyper_parameters"} <= set(checkpoint)
    if not known or not all(isinstance(checkpoint[key], Mapping) for key in ("state_dict", "hyper_parameters")):
        raise WeightsError(
            f"holds no cellvit checkpoint: it {describe_other(checkpoint)}; give a cellvit model folder, a checkpoint "
            "written by 'cellvit fit', or one of the published implementation"
        )
    return dict(checkpoint["hyper_parameters"]), checkpoint["state_dict"]


def _offline(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose encoder neither fetches nor reads weights that are about to be replaced."""
    return {key: _without_weights(value) if key == "encoder" else value for key, value in settings.items()}


def _without_weights(spec: Any) -> Any:
    """Return the spec of an encoder, also of one inside another, without the sources of its weights."""
    arguments = spec.get("init_args") if isinstance(spec, Mapping) else None
    if not isinstance(arguments, Mapping):
        return spec
    try:
        sources = resolve(ENCODERS, spec.get("class_path", "")).weight_sources
    except (CellViTError, AttributeError, TypeError):
        return spec  # it cannot be built either, and that error says why
    plain = {key: _without_weights(value) for key, value in arguments.items()}
    return {**spec, "init_args": plain | {key: empty for key, empty in sources.items() if key in plain}}


def _fill(model: "Storable", stored: _Stored, name: str | Path) -> None:
    """Fill the model; errors spell the names of tensors as the file does."""
    own, given = (
        {stored.name_of(tensor): value for tensor, value in sorted(state.items())}
        for state in (model.state_dict(), stored.state)
    )
    problems = misfits(own, given)
    if problems:
        raise WeightsError(f"the weights in {str(name)!r} do not fit the model; {'; '.join(problems)}")
    model.load_state_dict(stored.state)
