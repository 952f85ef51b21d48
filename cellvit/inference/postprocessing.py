"""Other settings for the post-processing of a model, such as how certain a nucleus has to be."""

import copy
from collections.abc import Mapping
from typing import Any

from cellvit.errors import ConfigError
from cellvit.inference.protocol import NucleiModel
from cellvit.plugins.components import build, normalise_spec
from cellvit.postprocess.base import POSTPROCESSORS, postprocessor_of


def with_postprocessor(model: NucleiModel, changes: Mapping[str, Any] | None) -> NucleiModel:
    """Return a model whose post-processor has other arguments; the weights are shared, the model stays as it is.

    Args:
        model: A model; not one that averages views, but the one in it.
        changes: Arguments of its post-processor by name, such as ``{"min_prob": 0.5, "min_size": 30}``; those left out
            stay as the model has them. None or empty returns the model.

    Raises:
        ConfigError: If the model has no post-processor with arguments, or it does not take these.
    """
    if not changes:
        return model
    before = postprocessor_of(model)
    if before is None:
        raise ConfigError(
            f"model {type(model).__name__} has no post-processor whose settings could be changed; leave out "
            f"postprocessor {dict(changes)}"
        )
    spec = normalise_spec(before, what="postprocessor")
    changed = copy.copy(model)
    try:
        after = build(POSTPROCESSORS, {**spec, "init_args": {**spec["init_args"], **changes}})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # a value of another kind, such as text for a number
        raise ConfigError(
            f"postprocessor {type(before).__name__} does not work with {dict(changes)}: {error}"
        ) from error
    changed.postprocessor = after  # type: ignore[attr-defined]
    # past nn.Module, which would take it for a part of the network, and of the model itself too
    object.__setattr__(changed, "changed_from", unchanged(model))
    return changed


def unchanged(model: Any) -> Any:
    """Return the model whose weights a model of :func:`with_postprocessor` shares; any other model itself."""
    return vars(model).get("changed_from", model) if hasattr(model, "__dict__") else model
