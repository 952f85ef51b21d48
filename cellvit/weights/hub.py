"""Where weight files come from: the Hugging Face hub, its cache, or a path; and whether they are the expected ones."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cellvit.errors import ConfigError, WeightsError
from cellvit.io.paths import expand_path
from cellvit.io.schema import checked
from cellvit.plugins.trust import is_loading
from cellvit.weights.catalogue import SUFFIXES
from cellvit.weights.locate import hub_cache

HUB_PREFIX = re.compile(r"hf[-_]hub:")
CONFIG_NAMES = ("config.json",)


class HubFile(NamedTuple):
    """A file in the hub's cache and the commit it belongs to."""

    path: Path
    revision: str


class Access(NamedTuple):
    """How a repository is asked.

    Attributes:
        token: Of the user; None takes the one of ``hf auth login``.
        cache: Folder of the cache; None is the usual one.
        force: Whether files are fetched although they are in the cache.
        offline: Whether the cache alone is asked, as ``HF_HUB_OFFLINE`` also says.
    """

    token: str | bool | None = None
    cache: str | Path | None = None
    force: bool = False
    offline: bool = False


_USUAL = Access()


class HubConfig(NamedTuple):
    """What the ``config.json`` of a timm model on the hub says, and the commit it belongs to."""

    architecture: str
    arguments: dict[str, Any]
    pretrained_cfg: dict[str, Any]
    revision: str


def hub_name(model: str, *, revision: str | None) -> tuple[str, str | None] | None:
    """Return the repository and the revision of a name such as ``hf-hub:timm/resnet18.a1_in1k@main``.

    Args:
        model: Name of a model.
        revision: The revision if the name states none.

    Returns:
        None if the name is not one of the hub.

    Raises:
        ConfigError: If name and ``revision`` differ.

    Example:
        >>> hub_name("hf-hub:timm/resnet18.a1_in1k@abc", revision=None)
        ('timm/resnet18.a1_in1k', 'abc')
    """
    prefix = HUB_PREFIX.match(model)
    if prefix is None:
        return None
    repo, _, stated = model[prefix.end() :].partition("@")
    if stated and revision and stated != revision:
        raise ConfigError(f"model {model!r} states another revision than revision {revision!r}; give one of them")
    return repo, stated or revision


def fetch(repo: str, names: Sequence[str], *, revision: str | None, access: Access = _USUAL) -> HubFile:
    """Return the first of some files that a hub repository has, from the cache or the network.

    ``HF_HUB_OFFLINE``, ``HF_HUB_CACHE`` and ``HF_HOME`` mean what they mean everywhere, and are read at each call.
    While the file of a model is loaded, the cache alone is asked: whom it names does not hear of it.

    Args:
        repo: ``owner/name``.
        names: Files, the preferred one first.
        revision: Commit, tag or branch; None is the main branch.
        access: Who asks, and where files are kept.

    Raises:
        WeightsError: If the file cannot be had; the message says what to do.
        ConfigError: If ``repo`` is no name of a repository.
    """
    unreachable = is_loading() or access.offline
    for name in names:
        try:
            path = Path(_download(repo, name, revision=revision, offline=unreachable or _is_offline(), access=access))
        except LocalEntryNotFoundError:  # derives from the next one
            unreachable = True  # then the other names are looked for in the cache alone
        except EntryNotFoundError:
            continue
        else:
            return HubFile(path, _commit(path))
    missing = f"{' or '.join(names)} of {_where(repo, revision)}"
    if is_loading():
        message = (
            f"{missing} is not in the cache, and loading a saved model asks no network; export it again where it can "
            f"be loaded, or fetch the file first with 'hf download {repo}'"
        )
        raise WeightsError(message)
    if unreachable:
        message = (
            f"{missing} is not in the cache and the hub cannot be reached (offline mode or no network); where there "
            f"is a network run 'hf download {repo}' (gated models: log in first with 'hf auth login') and bring the "
            "cache along, or give a local file as weights: PATH"
        )
        raise WeightsError(message)
    raise WeightsError(f"there is no {missing}; fetch the right file and give it as weights: PATH")


def fetch_config(repo: str, *, revision: str | None) -> HubConfig:
    """Return what the ``config.json`` of a timm model on the hub says.

    Raises:
        WeightsError: If it cannot be had or read, or is not one of timm.
    """
    path, commit = fetch(repo, CONFIG_NAMES, revision=revision)
    what = f"config.json of hub repository {repo!r} cannot be read"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{what} ({error.strerror or error}); fetch it again") from error
    content = checked(text, dict[str, Any], what=what, advice="fetch it again", error=WeightsError)
    architecture = content.get("architecture")
    arguments, pretrained = content.get("model_args", {}), content.get("pretrained_cfg", content)
    if not isinstance(architecture, str) or not isinstance(arguments, dict) or not isinstance(pretrained, dict):
        message = (
            f"config.json of hub repository {repo!r} describes no timm model (keys: {', '.join(sorted(content))}); "
            "name timm's architecture as model and give the file as weights: PATH"
        )
        raise WeightsError(message)
    return HubConfig(architecture, arguments, pretrained, commit)


def local_file(weights: str) -> Path:
    """Return the path of a weight file, environment variables and ``~`` expanded.

    Raises:
        ConfigError: If a variable in it is not set.
        WeightsError: If it cannot be a weight file.
    """
    path = expand_path(weights)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"weights {str(path)!r} is no weight file by its name; give one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsError(f"weights {str(path)!r}: no such file; fetch it or correct the path")
    return path


def checked_digest(path: Path, *, expected: str | None) -> str:
    """Return the SHA-256 of a file.

    Raises:
        WeightsError: If another one is expected.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and digest != expected.lower():
        message = (
            f"weights {str(path)!r} have SHA-256 {digest}, the configuration says {expected}; "
            "fetch the right file, or correct or leave out sha256"
        )
        raise WeightsError(message)
    return digest


def _download(repo: str, name: str, *, revision: str | None, offline: bool, access: Access) -> str:
    where = _where(repo, revision)
    try:
        return hf_hub_download(
            repo,
            name,
            revision=revision,
            cache_dir=access.cache or hub_cache(),
            token=access.token,
            force_download=access.force and not offline,
            local_files_only=offline,
        )
    except EntryNotFoundError:  # the caller may know another name
        raise
    except GatedRepoError as error:
        message = (
            f"{where} is gated: accept its terms at https://huggingface.co/{repo}, then log in with 'hf auth login', "
            "or give a local file of it as weights: PATH"
        )
        raise WeightsError(message) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{where} does not exist; correct revision or leave it out") from error
    except RepositoryNotFoundError as error:
        message = f"{where} does not exist or is private; correct the name, or log in with 'hf auth login'"
        raise WeightsError(message) from error
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a hub repository, which is owner/name ({error})") from error
    except Exception as error:  # a broken connection, by whatever library the hub's client uses
        message = f"{name!r} of {where} cannot be fetched ({error}); try again, or give weights: PATH"
        raise WeightsError(message) from error


def _where(repo: str, revision: str | None) -> str:
    return f"hub repository {repo!r}{f' at revision {revision!r}' if revision else ''}"


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _commit(path: Path) -> str:
    """Return the commit in a path of the cache, ``.../snapshots/COMMIT/...``."""
    return path.parts[len(path.parts) - path.parts[::-1].index("snapshots")]
