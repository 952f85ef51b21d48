"""How classifiers of nuclei are named and built, and the registry of those that have a short name."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from cellvit.errors import ConfigError
from cellvit.plugins.components import build, import_path, normalise_spec
from cellvit.plugins.registry import Registry

ClassWeight = str | Mapping[Any, float] | None


class ClassifierRecipe(ABC):
    """Builds a classifier of scikit-learn; the keyword-only arguments of a subclass are its whole configuration."""

    @abstractmethod
    def build(self, *, class_weight: ClassWeight, seed: int) -> Any:
        """Return a classifier of scikit-learn that is not fitted and knows ``predict_proba``.

        Args:
            class_weight: ``"balanced"``, a weight by number of the class, or None; ignored where it has none.
            seed: Of what is drawn by chance.
        """


CLASSIFIERS: Registry[ClassifierRecipe] = Registry(
    "classifier",
    ClassifierRecipe,
    package="cellvit.classification",
    group="cellvit.classifiers",
    own={"logistic": "estimators", "gradient-boosting": "estimators", "knn": "estimators"},
)
"""Kinds of classifiers by name."""


def build_estimator(spec: Any, *, class_weight: ClassWeight, seed: int) -> Any:
    """Return a classifier of scikit-learn that is not fitted.

    Args:
        spec: A name in :data:`CLASSIFIERS`, the dotted path of a class like those of scikit-learn, or
            ``{"class_path": ..., "init_args": {...}}``; an estimator is cloned and keeps its own settings.
        class_weight: Passed on to classes that take a ``class_weight``.
        seed: Passed on to classes that take a ``random_state``.

    Raises:
        ConfigError: If the class lacks ``fit`` or ``predict_proba``, or does not take an argument.
        UnknownPluginError: If there is no such name or class.
    """
    from sklearn.base import clone

    if hasattr(spec, "fit") and not isinstance(spec, type):
        return clone(_checked(spec, type(spec).__name__))
    plain = normalise_spec(spec, what="classifier")
    path, args = plain["class_path"], plain["init_args"]
    cls = spec if isinstance(spec, type) else _class_of(path)
    if issubclass(cls, ClassifierRecipe):
        return build(CLASSIFIERS, {"class_path": path, "init_args": args}).build(class_weight=class_weight, seed=seed)
    known = inspect.signature(cls).parameters
    offered = {"class_weight": class_weight, "random_state": seed}
    try:
        return _checked(cls(**{**{name: value for name, value in offered.items() if name in known}, **args}), path)
    except TypeError as error:
        raise ConfigError(f"classifier {path!r} cannot be built: {error}; check its init_args") from error


def takes_class_weight(estimator: Any) -> bool:
    """Tell whether an estimator, or a step of a pipeline, has a ``class_weight``."""
    return any(name.rpartition("__")[2] == "class_weight" for name in estimator.get_params())


def _class_of(path: str) -> type:
    if "." not in path or path in CLASSIFIERS:
        return CLASSIFIERS.get(path)
    found = import_path(path, what="classifier")
    if not isinstance(found, type):
        raise ConfigError(f"classifier {path!r} is no class; name one like sklearn.svm.SVC")
    return found


def _checked(estimator: Any, name: str) -> Any:
    missing = [method for method in ("fit", "predict_proba", "get_params") if not hasattr(estimator, method)]
    if missing:
        raise ConfigError(
            f"classifier {name!r} lacks {', '.join(missing)}; give a classifier of scikit-learn with probabilities"
        )
    return estimator
