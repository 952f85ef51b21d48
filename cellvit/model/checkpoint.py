"""Saving and loading a model as safetensors and JSON.

Weights are read without running anything. Parts are named in the configuration. A name leads to what cellvit or an
installed plug-in registers, to a class of cellvit, or to a module that is imported already; any other module is
imported only if the user trusts its package. So a configuration can choose among the code that is there, and add none.
Nothing is fetched from a network but the two files of a model that is asked for by its name on the hub.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from cellvit.errors import ConfigError, OutputError, PluginError, WeightsError
from cellvit.io.provenance import sha256
from cellvit.io.schema import checked
from cellvit.model.hub import fetch_model, push, repository_of
from cellvit.model.released import describe_other, is_released, read_released
from cellvit.model.requirements import required_packages
from cellvit.model.stated import check_numbers, no_larger_than
from cellvit.plugins.trust import loading_file
from cellvit.weights.catalogue import BUNDLED, file_inside
from cellvit.weights.hub import Access
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
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        trust: Sequence[str] = (),
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load a model for inference: one of the package, a path, or ``owner/name`` on the Hugging Face hub.

        The names of the arguments are those of ``huggingface_hub``'s mix-ins. A repository's configuration may name
        what a folder's may, see :func:`cellvit.model.checkpoint.load`. The commit is kept in ``about["hub"]`` and
        stands in the summary of every result.

        Args:
            name_or_path: The model; ``hf-hub:owner/name@revision`` always means the hub.
            trust: Packages whose classes the configuration may name.
            revision: Commit, tag or branch; a commit is always the same model.
            token: Of the hub; None takes the one of ``hf auth login``.
            cache_dir: Folder of the hub's cache.
            force_download: Fetch files that are in the cache, too.
            local_files_only: Ask the cache alone, as ``HF_HUB_OFFLINE=1`` does.

        Raises:
            UnknownPluginError: If there is neither such a model nor such a path.
            WeightsError: If the files cannot be had or used, or name a class of a package that is not trusted.
            ConfigError: If ``trust`` is no list of names, or ``revision`` is not for this model.
        """
        repository = repository_of(name_or_path, revision)
        if repository is None:
            return load(cls, name_or_path, trust=trust)  # type: ignore[type-var]  # what it is mixed into is Storable
        access = Access(token, cache_dir, force_download, local_files_only)
        found = fetch_model(repository[0], (CONFIG_NAME, WEIGHTS_NAME), revision=repository[1], access=access)
        model: Any = load(cls, found.folder, trust=trust)  # type: ignore[type-var]
        model.about["hub"] = found.name
        return model  # type: ignore[no-any-return]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push model using huggingface_hub.",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Upload the model to the Hugging Face hub, with a card of what it states of itself.

        The names of the arguments are those of ``huggingface_hub``'s mix-ins.

        Args:
            repo_id: ``owner/name``; made if it does not exist.
            commit_message: What was done.
            private: Whether a new repository is private; None is what the hub does.
            token: Of the hub; None takes the one of ``hf auth login``.
            branch: Where to; None is the main branch.
            create_pr: Open a pull request in place of a commit.
            dtype: Floating-point type of the stored weights.

        Returns:
            The commit, for ``from_pretrained(repo_id, revision=...)``.

        Raises:
            ConfigError: If ``repo_id`` is no name of a repository, or the model cannot be saved.
            WeightsError: If the hub cannot be reached or refuses.
        """
        return push(
            self,
            repo_id,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            commit_message=commit_message,
            dtype=dtype,
        )

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
    is_new = not target.exists()
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
    finally:
        with suppress(OSError):
            for name in (WEIGHTS_NAME, CONFIG_NAME):
                (target / f"{name}.part").unlink(missing_ok=True)
            if is_new and not any(target.iterdir()):
                target.rmdir()


def _stored_as(dtype: torch.dtype, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    largest = torch.finfo(dtype).max
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    over = [name for name, value in floats.items() if value.numel() and value.abs().amax() > largest]
    if over:
        raise ConfigError(f"{dtype} cannot hold the values of {over[0]}; use bfloat16 or float32")
    stored = {name: value.to(dtype) if name in floats else value for name, value in state.items()}
    return {name: value.detach().cpu().contiguous() for name, value in stored.items()}


def load(cls: type[M], name_or_path: str | Path, *, trust: Sequence[str] = ()) -> M:
    """Return a model in evaluation mode with its weights.

    Args:
        cls: The class to build.
        name_or_path: Name of a bundled model, a folder made by :func:`save`, a checkpoint that ``cellvit fit`` wrote,
            or one of the published implementation. What a file is, its content decides, not its name.
        trust: Packages, by the names they are imported by, whose classes the file may name although nobody has imported
            them yet; those of the environment variable ``CELLVIT_TRUST`` are added.

    Returns:
        The model on the CPU in float32.

    Raises:
        UnknownPluginError: If there is neither such a model nor such a path.
        WeightsError: If the files are damaged, not ours, do not fit each other, or name a class of a package that is
            not trusted.
        ConfigError: If ``trust`` is no list of names.
    """
    stored = _read(name_or_path)
    size = sum(tensor.numel() for tensor in stored.state.values() if isinstance(tensor, torch.Tensor))
    with loading_file(trust):
        try:
            with no_larger_than(size):
                model = cls(**stored.settings)
        except Exception as error:  # settings that cannot work fail in any way
            raise _no_model(name_or_path, error, () if isinstance(error, PluginError) else stored.requires) from error
    _fill(model, stored, name_or_path)
    return model.eval()


def _no_model(name_or_path: str | Path, error: Exception, requires: Sequence[str] = ()) -> WeightsError:
    reason = " ".join(str(error).split()) or type(error).__name__
    made = f" (it was made with {', '.join(requires)}; install what is missing)" if requires else ""
    return WeightsError(f"the settings in {str(name_or_path)!r} build no model: {reason}{made}")


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
    try:
        check_numbers(stored.settings)
    except ConfigError as error:
        raise _no_model(name_or_path, error) from error
    about = stored.settings.get("about")
    announce_model(about if isinstance(about, Mapping) else None, path.name)
    return stored


@dataclass(frozen=True)
class _WeightsFacts:
    file: str
    sha256: str


@dataclass(frozen=True)
class _Configuration:
    """``config.json`` of a model folder; those of older versions have no ``requires``."""

    format: str
    schema: int
    model: dict[str, Any]
    weights: _WeightsFacts
    requires: Any = None


def _read_folder(folder: Path) -> _Stored:
    config_path = folder / CONFIG_NAME
    if not config_path.is_file():
        raise WeightsError(f"folder {str(folder)!r} has no {CONFIG_NAME}; give a folder made by save_pretrained")
    what = f"{str(config_path)!r} is not a cellvit configuration"
    try:
        content = config_path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{str(config_path)!r} cannot be read ({error.strerror or error})") from error
    config = checked(content, _Configuration, what=what, advice="export the model again", error=WeightsError)
    if config.format != FORMAT:
        raise WeightsError(f"{str(config_path)!r} states format {config.format!r}, not {FORMAT!r}; it is not ours")
    if config.schema > SCHEMA:
        raise WeightsError(
            f"{str(config_path)!r} has schema {config.schema}, this version knows {SCHEMA}; upgrade cellvit-lightning"
        )
    weights, digest = file_inside(folder, config.weights.file), config.weights.sha256
    try:
        state = load_file(weights)
        actual = sha256(weights)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"weights {str(weights)!r} cannot be read ({error}); fetch or export them again") from error
    if actual != digest:
        raise WeightsError(
            f"weights {str(weights)!r} have SHA-256 {actual}, the configuration says {digest}; fetch them again"
        )
    stated = config.requires
    packages = [f"{name} {made}".strip() for name, made in stated.items()] if isinstance(stated, dict) else []
    return _Stored(config.model, state, requires=tuple(packages))


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
