"""How the parts of a model are checked, built and fed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cellvit.errors import ConfigError
from cellvit.heads.base import HEADS, Head
from cellvit.metrics.base import METRICS, NucleiMetric
from cellvit.parts import PartSpec, import_path, keyword_names, normalise_spec, resolve
from cellvit.postprocess.table import nuclei_from_instances
from cellvit.types import Batch, NucleiPrediction


def true_nuclei(batch: Batch) -> list[NucleiPrediction]:
    """Return the true nuclei of every image of a batch; type -1 marks a nucleus of unknown type."""
    result = []
    for instances, types in zip(
        batch["instance_map"].cpu().numpy(), batch["nuclei_type_map"].cpu().numpy(), strict=True
    ):
        truth = nuclei_from_instances(instances)
        known = np.zeros(truth.instance_map.max(initial=0) + 1, np.int32)
        known[truth.instance_map] = types
        result.append(replace(truth, nuclei=replace(truth.nuclei, type=known[truth.nuclei.label])))
    return result


def build_metric(spec: PartSpec, class_names: Sequence[str]) -> NucleiMetric:
    """Return a metric, told the class names if it takes them.

    Args:
        spec: See :data:`cellvit.parts.PartSpec`.
        class_names: Names of the nucleus types, background first.

    Raises:
        ConfigError: If it is no metric on nuclei.
    """
    plain = normalise_spec(spec, what="metric")
    cls = resolve(METRICS, plain["class_path"])
    if not issubclass(cls, NucleiMetric):
        raise ConfigError(f"metric {plain['class_path']!r} does not compare nuclei: derive it from NucleiMetric")
    accepted = keyword_names(cls) or set()
    named = {"class_names": class_names} if "class_names" in accepted else {}
    return cls(**named, **plain["init_args"])


def head_class(branch: str, spec: PartSpec) -> type[Head]:
    """Return the class of a head.

    Args:
        branch: The branch it is listed under.
        spec: See :data:`cellvit.parts.PartSpec`.

    Raises:
        ConfigError: If the head makes another branch.
    """
    cls = resolve(HEADS, normalise_spec(spec, what="head")["class_path"])
    if cls.branch != branch:
        raise ConfigError(
            f"head {cls.__name__} makes {cls.branch!r} but is listed as {branch!r}; list it under its own name"
        )
    return cls


def check_branches(heads: Mapping[str, PartSpec], needs: frozenset[str], postprocessor: PartSpec) -> None:
    """Raise ConfigError unless the heads make every map that the postprocessor needs."""
    missing = sorted(needs - set(heads))
    if missing:
        raise ConfigError(
            f"postprocessor {postprocessor!r} needs {missing}, but the heads are {sorted(heads)}; add the heads"
        )


def instantiate(spec: Mapping[str, Any], first: Any, *, what: str) -> Any:
    """Return an object of any importable class.

    Args:
        spec: ``{"class_path": dotted path, "init_args": {...}}``.
        first: Its first argument, such as the parameters of an optimiser.
        what: What the object is for; named in errors.

    Raises:
        ConfigError: If the arguments do not fit.
        UnknownPluginError: If there is no such class.
    """
    cls = import_path(spec["class_path"], what=what)
    try:
        return cls(first, **spec["init_args"])
    except TypeError as error:
        raise ConfigError(f"{what} {spec['class_path']}: {error}; check its init_args") from error
