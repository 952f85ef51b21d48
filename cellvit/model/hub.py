"""Models on the Hugging Face hub: fetched at a commit, and pushed with a card of what they state of themselves."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from cellvit.errors import ConfigError, WeightsError
from cellvit.weights.catalogue import BUNDLED
from cellvit.weights.hub import Access, fetch, hub_name
from cellvit.weights.licences import SPDX, model_licence

LIBRARY, TASK = "cellvit", "image-segmentation"
TAGS = ("cellvit", "pathology", "histology", "nuclei", "instance-segmentation", "H&E")
DATASETS = ("PanNuke", "CoNSeP", "MoNuSeg", "NuCLS", "Lizard", "TNBC", "CryoNuSeg", "Kumar", "DSB 2018", "MIDOG")
"""Names of data sets that a card lists where a model's ``data`` mentions them."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_CARD = """\
# {name}

Finds, outlines and types cell nuclei in H&E-stained tissue, with `cellvit` at {mpp:g} µm/px.

```python
from cellvit import CellViT, segment_image

model = CellViT.from_pretrained("{repo}")
nuclei = segment_image(image, model=model, mpp=0.25)
```

* classes: {classes}
* licence of the weights: {licence}
{facts}"""


class HubModel(NamedTuple):
    """A model in the hub's cache.

    Attributes:
        folder: Its files.
        name: Repository and commit, ``owner/name@commit``.
    """

    folder: Path
    name: str


def repository_of(name: str | Path, revision: str | None) -> tuple[str, str | None] | None:
    """Return the repository and the revision that a name stands for; None for a path or a model of the package.

    Args:
        name: ``owner/name`` where neither such a path nor a folder ``owner`` exists, or ``hf-hub:owner/name@revision``.
        revision: Commit, tag or branch, if the name states none.

    Raises:
        ConfigError: If a revision is given for what is no repository, or two.
    """
    text = str(name)
    stated = hub_name(text, revision=revision)
    if stated is not None:
        return stated
    is_here = Path(text).exists() or Path(text).parent.is_dir()  # the second is a mistyped path
    is_repository = isinstance(name, str) and _REPOSITORY.fullmatch(text) and not is_here
    if is_repository and not text.endswith((".ckpt", ".pth", ".pt", ".safetensors")):
        return text, revision
    if revision is not None:
        what = "a model of the package" if (BUNDLED / text).is_dir() else "no repository 'owner/name' of the hub"
        raise ConfigError(f"revision {revision!r} is given, but {text!r} is {what}; leave revision out")
    return None


def fetch_model(repo: str, files: Sequence[str], *, revision: str | None, access: Access) -> HubModel:
    """Return the folder of a model on the hub, from the cache or the network; nothing in it is run.

    Args:
        repo: ``owner/name``.
        files: What must be there; all are taken from one commit.
        revision: Commit, tag or branch; None is the main branch.
        access: Who asks, and where it is kept.

    Raises:
        WeightsError: If a file cannot be had.
        ConfigError: If ``repo`` is no name of a repository.
    """
    commit = revision
    for file in files:
        try:
            found = fetch(repo, [file], revision=commit, access=access)
        except WeightsError as error:
            raise WeightsError(f"{error} ({repo!r} is no path here, so the hub was asked)") from error
        commit = found.revision  # the branch may move between two files
    return HubModel(found.path.parent, f"{repo}@{commit}")


def push(
    model: Any,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    branch: str | None,
    create_pr: bool | None,
    commit_message: str,
    dtype: Any,
) -> str:
    """Upload a model with its card; see :meth:`cellvit.model.checkpoint.PretrainedMixin.push_to_hub`."""
    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder, dtype=dtype)
            Path(folder, "README.md").write_text(card_of(model.settings, repo), encoding="utf-8")
            done = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=branch, create_pr=create_pr, commit_message=commit_message
            )
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is no name of a hub repository, which is owner/name ({error})") from error
    except HfHubHTTPError as error:
        message = f"{repo_id!r} cannot be written ({error}); log in with 'hf auth login', or give another repo_id"
        raise WeightsError(message) from error
    except OSError as error:  # no network, by whatever library the hub's client uses; offline mode is one of them
        raise WeightsError(f"{repo_id!r} cannot be written: the hub cannot be reached ({error}); try again") from error
    return str(getattr(done, "oid", "") or done)


def card_of(settings: Mapping[str, Any], repo: str) -> str:
    """Return the card of a model: what the hub lists it by, then what it states of itself.

    Args:
        settings: Of the model.
        repo: ``owner/name``.
    """
    about = {name: fact for name, fact in (settings.get("about") or {}).items() if fact is not None}
    licence = model_licence(about)
    known = licence is not None and licence.id in SPDX
    data = str(about.get("data", ""))
    card = ModelCardData(
        license=licence.id.lower() if licence and known else "other",
        license_name=None if known else (licence.title if licence else "not stated"),
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=list(TAGS),
        datasets=[name.lower().replace(" ", "-") for name in DATASETS if name.lower() in data.lower()] or None,
    )
    facts = [f"* {name}: {fact}" for name, fact in about.items() if name not in ("name", "licence", "hub")]
    text = _CARD.format(
        name=about.get("name") or repo.rpartition("/")[2],
        mpp=settings["mpp"],
        repo=repo,
        classes=", ".join(settings["class_names"][1:]),
        licence=about.get("licence", "not stated"),
        facts="\n".join(facts),
    )
    return str(ModelCard(f"---\n{card.to_yaml()}\n---\n\n{text.rstrip()}\n", ignore_metadata_errors=True))
