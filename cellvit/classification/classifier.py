"""A classifier of nuclei that follows scikit-learn's conventions, on arrays and on tables of nuclei."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellvit.classes import BACKGROUND_COLOR, NucleiClasses, Rgb, standard_colors
from cellvit.classification.base import ClassWeight, build_estimator
from cellvit.classification.features import EMBEDDING, Floats, assemble, embedded_columns
from cellvit.classification.folds import choose_folds, out_of_fold
from cellvit.classification.storage import read_estimator, write_estimator
from cellvit.errors import ConfigError, DataError
from cellvit.evaluation.calibration import negative_log_likelihood
from cellvit.io.spatial import require
from cellvit.types import Nuclei

require("sklearn", extra="classify")
from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402

UNSURE = "unsure"
"""Type of nuclei whose most probable type is less probable than the user wants."""

Calibration = Literal["temperature", "sigmoid"] | None

_TINY = 1e-12
_EXPONENTS = (-6, 4)  # of two: temperatures that are tried


class TypeClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn states no types
    """Tells the types of nuclei from a few labels; a classifier of scikit-learn in all it does.

    Fit it on an array ``(N, D)`` and ``N`` labels, or on :class:`~cellvit.types.Nuclei` with one name per nucleus, None
    for those without a label. What it is fitted on it also takes afterwards.

    Args:
        estimator: ``"logistic"``, ``"gradient-boosting"``, ``"knn"``, another name in
            :data:`~cellvit.classification.CLASSIFIERS`, the dotted path of a class like those of scikit-learn, a
            mapping with ``class_path`` and ``init_args``, or an estimator.
        features: Of nuclei: ``"embedding"``, ``"neighborhood"`` (the mean embedding of the others within 50 µm, at most
            the 32 nearest), kinds of measurements such as ``"shape"`` and ``"stain"``, or names of single ones.
        unsure_below: In [0, 1]; below this probability the answer is ``"unsure"``.
        class_weight: ``"balanced"`` makes rare types count as much as frequent ones, None does not.
        calibration: How probabilities are made true on labels that were held out: ``"temperature"`` (one number; the
            most probable type stays), ``"sigmoid"`` (Platt, two numbers a type), or None.
        random_state: Seed of what is drawn by chance.

    Attributes:
        classes_: ``(K,)`` the types, sorted.
        n_features_in_: Number of features.
        estimator_: The fitted estimator; its classes are numbers of :attr:`classes_`.
        temperature_: Divides the logarithms of the probabilities; 1 without calibration.
        notes_: What the user should know of the fit.
        embedding_model_: What made the embeddings, see :func:`~cellvit.classification.samples.embedding_model`; None
            where that is not known.
        colors_: Colours of types by name, where others are wanted than those of the palette.

    Example:
        >>> import numpy as np
        >>> near, far = np.zeros((6, 2)), np.full((6, 2), 9.0)
        >>> x = np.concatenate([near, far]) + np.arange(12)[:, None] % 3
        >>> model = TypeClassifier().fit(x, ["lymphocyte"] * 6 + ["tumour"] * 6)
        >>> model.predict([[0.5, 0.5], [10.0, 10.0]]).tolist()
        ['lymphocyte', 'tumour']
    """

    embedding_model_: Mapping[str, Any] | None
    colors_: Mapping[str, Rgb]

    def __init__(
        self,
        estimator: Any = "logistic",
        *,
        features: Sequence[str] = (EMBEDDING,),
        unsure_below: float = 0.0,
        class_weight: ClassWeight = "balanced",
        calibration: Calibration = "temperature",
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.features = features
        self.unsure_below = unsure_below
        self.class_weight = class_weight
        self.calibration = calibration
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> "TypeClassifier":  # noqa: N803
        """Learn from labels.

        Args:
            X: ``(N, D)`` features, or nuclei.
            y: ``(N,)`` types; with nuclei, None or an empty name for those without a label.
            groups: ``(N,)`` slide or image of each, which are held out as a whole for the calibration.

        Returns:
            Itself.

        Raises:
            DataError: If there are fewer than two types, or a labelled nucleus has no known embedding.
            ConfigError: If a setting cannot work.
        """
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import validate_data

        self._check_settings()
        if isinstance(X, Nuclei):
            X, y, groups = self._labelled(X, y, groups)  # noqa: N806
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])  # noqa: N806
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                f"the labels hold one class only, {str(self.classes_[0])!r}; label nuclei of at least two types, such "
                "as 'other'"
            )
        self._fit_codes(X, codes, None if groups is None else np.asarray(groups))
        return self

    def _fit_codes(self, x: Floats, codes: NDArray[np.int64], groups: NDArray[Any] | None) -> None:
        from sklearn.base import clone
        from sklearn.calibration import CalibratedClassifierCV

        blank = self._blank(codes)
        self.temperature_, self.notes_ = 1.0, list[str]()
        self.embedding_model_ = None
        self.colors_ = {}
        folds = choose_folds(codes, groups, seed=self.random_state) if self.calibration else []
        if self.calibration and not folds:
            self.notes_.append("too few labels to calibrate: probabilities are those of the estimator")
        if folds and self.calibration == "sigmoid":
            self.estimator_ = CalibratedClassifierCV(blank, method="sigmoid", ensemble=False, cv=folds).fit(x, codes)
            return
        self.estimator_ = clone(blank).fit(x, codes)
        if folds:
            self.temperature_ = temperature_of(out_of_fold(blank, x, codes, folds), codes)

    def _blank(self, codes: NDArray[np.int64]) -> Any:
        """Return the estimator before it is fitted."""
        weight = self.class_weight
        if isinstance(weight, Mapping):
            weight = {number: float(weight.get(name, 1.0)) for number, name in enumerate(self.classes_)}
        blank = build_estimator(self.estimator, class_weight=weight, seed=self.random_state)
        few = int(len(codes) * 0.5)  # a fold leaves out half at most
        voters = {
            name: few for name, value in blank.get_params().items() if name.endswith("n_neighbors") and value > few
        }
        return blank.set_params(**{name: max(1, value) for name, value in voters.items()})

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return the probability of every type, ``(N, K)`` in the order of ``classes_``.

        A nucleus whose embedding is not known has NaN; features that were not measured count as typical.

        Args:
            X: ``(N, D)`` features, or nuclei.
        """
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self)
        if isinstance(X, Nuclei):
            return self.probabilities(assemble(X, self.features, source="the table"))
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)  # noqa: N806
        return self._calibrated(X)

    def probabilities(self, x: Floats) -> NDArray[np.float64]:
        """Return :meth:`predict_proba` of features as :func:`~cellvit.classification.features.assemble` has them.

        Args:
            x: ``(N, D)``; NaN where something is not known.

        Raises:
            DataError: If they are of another number.
        """
        if x.shape[1] != self.n_features_in_:
            raise DataError(
                f"nuclei with {x.shape[1]} features and a classifier of {self.n_features_in_}: their embeddings are "
                "of another width, so of another model; train a classifier on labels of these nuclei"
            )
        found = np.full((len(x), len(self.classes_)), np.nan)
        known = np.isfinite(x)
        if not known.all():
            typical = getattr(self, "typical_", np.full(x.shape[1], np.nan))
            x = np.where(known, x, typical.astype(x.dtype))
        rows = np.isfinite(x).all(axis=1)
        if rows.any():
            found[rows] = self._calibrated(x if rows.all() else x[rows])
        return found

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the most probable type of each, ``(N,)``, or ``"unsure"``; None where the embedding is not known.

        Args:
            X: ``(N, D)`` features, or nuclei.
        """
        return self.names_of(self.predict_proba(X))

    def names_of(self, probabilities: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Return the types that probabilities ``(N, K)`` mean, as :meth:`predict` does."""
        codes = self.codes_of(probabilities)
        if codes.min(initial=1) >= 1 and codes.max(initial=0) <= len(self.classes_):
            return np.asarray(self.classes_[codes - 1])
        names = np.array([None, *self.classes_.tolist(), UNSURE], object)
        return np.asarray(names[codes])

    def codes_of(self, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
        """Return the ids in :meth:`nuclei_classes` that probabilities ``(N, K)`` mean; 0 where they are not known."""
        known = np.isfinite(probabilities).all(axis=1)
        best = np.where(known[:, None], probabilities, 0.0)
        codes = best.argmax(axis=1) + 1
        codes[best.max(axis=1) < self.unsure_below] = len(self.classes_) + 1
        return np.where(known, codes, 0).astype(np.int32)

    @property
    def nuclei_classes(self) -> NucleiClasses:
        """Names and colours of the types: stated ones, PanNuke's by name, others by the palette; grey is not sure."""
        names = ("Background", *map(str, self.classes_))
        colors = tuple(self.colors_.get(name, color) for name, color in zip(names, standard_colors(names), strict=True))
        if self.unsure_below > 0:
            names, colors = (*names, UNSURE), (*colors, BACKGROUND_COLOR)
        return NucleiClasses(names, colors)

    def assign(self, nuclei: Nuclei) -> Nuclei:
        """Return nuclei with the types of this classifier, and how probable each is.

        Args:
            nuclei: With the features it was fitted on.
        """
        found = self.predict_proba(nuclei)
        probability = found.max(axis=1, initial=0) if len(found) else np.zeros(0)
        return replace(
            nuclei,
            type=self.codes_of(found),
            type_prob=probability.astype(np.float32),
            classes=self.nuclei_classes,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the classifier into a folder, without pickle: ``config.json`` and the estimator in skops' format.

        Args:
            folder: Made if missing; a classifier in it is replaced.

        Raises:
            ConfigError: If the extra ``classify`` is missing.
            OutputError: If it cannot be written.
        """
        settings = self.get_params(deep=False)
        if not isinstance(self.estimator, str | Mapping):
            kind = self.estimator if isinstance(self.estimator, type) else type(self.estimator)
            settings["estimator"] = f"{kind.__module__}.{kind.__qualname__}"
        facts = {
            "settings": {**settings, "features": list(self.features)},
            "classes": self.classes_.tolist(),
            "features": int(self.n_features_in_),
            "typical": getattr(self, "typical_", np.zeros(0)).tolist(),
            "temperature": self.temperature_,
            "notes": self.notes_,
            "embedding_model": self.embedding_model_,
            "colors": {name: list(color) for name, color in self.colors_.items()},
        }
        return write_estimator(folder, self.estimator_, facts)

    @classmethod
    def load(cls, folder: str | Path, *, trust: Sequence[str] = ()) -> "TypeClassifier":
        """Return a classifier that :meth:`save` has written.

        A file may only name classes of scikit-learn that hold plain data, those that installed plug-ins register as
        classifiers, and those of packages that the user trusts; whatever else it names is not imported.

        Args:
            folder: The folder.
            trust: Packages whose classes it may name; the environment variable ``CELLVIT_TRUST`` adds to them.

        Raises:
            DataError: If there is no classifier, or it is damaged or of a newer version.
            PluginError: If it names classes of other packages.
            ConfigError: If the extra ``classify`` is missing.
        """
        estimator, facts = read_estimator(folder, trust=trust)
        found = cls(**facts["settings"])
        found.classes_ = np.array(facts["classes"])
        found.n_features_in_ = int(facts["features"])
        if facts["typical"]:
            found.typical_ = np.array([np.nan if value is None else value for value in facts["typical"]], np.float32)
        found.estimator_, found.temperature_ = estimator, float(facts["temperature"])
        found.notes_, found.embedding_model_ = list(facts["notes"]), facts["embedding_model"]
        found.colors_ = {name: (int(r), int(g), int(b)) for name, (r, g, b) in facts.get("colors", {}).items()}
        return found

    def _calibrated(self, x: Floats) -> NDArray[np.float64]:
        found = np.asarray(self.estimator_.predict_proba(x), np.float64)
        return found if self.temperature_ == 1 else with_temperature(found, self.temperature_)

    def _labelled(
        self, nuclei: Nuclei, y: Any, groups: ArrayLike | None
    ) -> tuple[Floats, NDArray[Any], NDArray[Any] | None]:
        """Return features, types and groups of the nuclei that have a label."""
        names = np.asarray(y, object)
        if names.shape != (len(nuclei),):
            raise DataError(f"{names.shape} labels for {len(nuclei)} nuclei; give one for each, None for those without")
        rows = np.flatnonzero([name is not None and name != "" for name in names])
        x = assemble(nuclei, self.features, source="the table")[rows]
        chosen = names[rows]
        labels = chosen.astype(str) if all(isinstance(name, str) for name in chosen) else np.array(chosen.tolist())
        x = self.fill_typical(x, embedded_columns(nuclei, self.features))
        return x, labels, None if groups is None else np.asarray(groups)[rows]

    def fill_typical(self, x: Floats, embedded: int) -> Floats:
        """Return features to fit on, with the median in place of measurements that are not known; keep the medians.

        Args:
            x: ``(N, F)`` of labelled nuclei.
            embedded: How many of the columns, the first ones, are of embeddings; those must be known.

        Raises:
            DataError: If an embedding is not known.
        """
        known = np.isfinite(x)
        broken = int((~known[:, :embedded].all(axis=1)).sum())
        if broken:
            raise DataError(
                f"{broken} of {len(x)} labelled nuclei have embeddings that are no numbers (NaN or inf); leave these "
                "out, or segment the slide again"
            )
        typical = [np.median(x[known[:, i], i]) if known[:, i].any() else 0.0 for i in range(embedded, x.shape[1])]
        self.typical_ = np.array([np.nan] * embedded + typical, np.float32)
        return np.where(known, x, self.typical_.astype(x.dtype))

    def _check_settings(self) -> None:
        if not 0 <= self.unsure_below <= 1:
            raise ConfigError(f"unsure_below {self.unsure_below} is no probability; give 0 (never unsure) to 1")
        if self.calibration not in ("temperature", "sigmoid", None):
            raise ConfigError(f"calibration {self.calibration!r} is unknown; use 'temperature', 'sigmoid' or None")


def temperature_of(probabilities: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Return the temperature that makes probabilities ``(N, K)`` of held-out labels most likely [1].

    References:
        [1] Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    from scipy.optimize import minimize_scalar

    def cost(exponent: float) -> float:
        return negative_log_likelihood(with_temperature(probabilities, 2.0**exponent), codes + 1)

    return round(float(2 ** minimize_scalar(cost, bounds=_EXPONENTS, method="bounded").x), 4)


def with_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return probabilities ``(N, K)`` with their logarithms divided by a temperature."""
    log = np.log(np.maximum(probabilities, _TINY)) / temperature
    powers = np.exp(log - log.max(axis=1, keepdims=True))
    return cast("NDArray[np.float64]", powers / powers.sum(axis=1, keepdims=True))


def as_classifier(given: TypeClassifier | str | Path, *, trust: Sequence[str] = ()) -> TypeClassifier:
    """Return a classifier that is given as such or by its folder."""
    if isinstance(given, TypeClassifier):
        return given
    if not isinstance(given, str | Path):
        raise ConfigError(f"classifier {given!r} is none; give a TypeClassifier or the folder of one")
    return TypeClassifier.load(given, trust=trust)
