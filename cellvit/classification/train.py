"""From labels of slides to a classifier in a folder, with a report of how good it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellvit.classes import Rgb
from cellvit.classification.base import ClassWeight, takes_class_weight
from cellvit.classification.classifier import Calibration, TypeClassifier
from cellvit.classification.features import EMBEDDING, embedded_columns
from cellvit.classification.folds import blocks_of, choose_folds
from cellvit.classification.report import write_report
from cellvit.classification.samples import Sample, read_sample
from cellvit.classification.validation import Validation, validate
from cellvit.errors import DataError
from cellvit.io.atomic import make_folder

FEWEST = 2
"""Labels that a type needs: one to learn from, one to be judged by."""


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier that was trained and judged.

    Attributes:
        classifier: Fitted on all labels.
        validation: Scores on labels that were held out.
        report: The page about it.
        notes: What the user should know.
    """

    classifier: TypeClassifier
    validation: Validation
    report: Path
    notes: tuple[str, ...]


def train_classifier(
    labels: Sequence[str | Path],
    out: str | Path,
    *,
    estimator: Any = "logistic",
    features: Sequence[str] = (EMBEDDING,),
    unsure_below: float = 0.0,
    class_weight: ClassWeight = "balanced",
    calibration: Calibration = "temperature",
    without: Sequence[str] = (),
    slides: str | Path | None = None,
    colors: Mapping[str, Rgb] | None = None,
    seed: int = 0,
) -> TrainedClassifier:
    """Train a classifier on labelled nuclei, judge it on slides it has not seen, and write both into a folder.

    Slides are held out as a whole. Of a single slide, parts of it are: nuclei side by side resemble each other, and
    scores of random ones would flatter.

    Args:
        labels: Result folders of slides with labels, see :mod:`cellvit.labels`, or the labels beside the nuclei.
        out: The folder.
        estimator: See :class:`~cellvit.classification.TypeClassifier`, as for all that is not named here.
        features: What the classifier is told of a nucleus.
        unsure_below: Below this probability nuclei are ``"unsure"``.
        class_weight: ``"balanced"`` or None.
        calibration: ``"temperature"``, ``"sigmoid"`` or None.
        without: Types to leave out.
        slides: Where the slides are, for pictures of nuclei, if not where they were.
        colors: Colours of types by name; others have PanNuke's, or those of the palette.
        seed: Of what is drawn by chance.

    Raises:
        DataError: If there are no labels, fewer than two types, a type with a single label, or no features.
        OutputError: If the folder cannot be written.
    """
    classifier = TypeClassifier(
        estimator,
        features=tuple(features),
        unsure_below=unsure_below,
        class_weight=class_weight,
        calibration=calibration,
        random_state=seed,
    )
    sample = read_sample(labels, features, without=without)
    _check_labels(sample.name)
    make_folder(Path(out))
    groups, held_out = _groups(sample)
    x = classifier.fill_typical(sample.x, embedded_columns(sample.nuclei, features))
    codes = np.unique(sample.name.astype(str), return_inverse=True)[1]
    folds = choose_folds(codes, groups, seed=seed)
    if not folds:  # a type lies on one slide only
        groups, held_out = np.arange(len(codes)), "single labels, as a type lies in one place only: scores flatter"
        folds = choose_folds(codes, None, seed=seed)
    classifier.fit(x, sample.name.astype(str), groups=groups)
    classifier.embedding_model_ = sample.model
    classifier.colors_ = {name: color for name, color in (colors or {}).items() if name in classifier.classes_}
    found = validate(classifier, x, codes, groups, folds, names=[str(name) for name in classifier.classes_])
    notes = [*sample.notes, *classifier.notes_, *_weights_note(classifier)]
    model = "" if sample.model is None else f", embeddings of {sample.model['model']}"
    facts = {
        "title": f"Types: {', '.join(map(str, classifier.classes_))}",
        "about": f"{_name(estimator)} on {', '.join(features)}{model}",
        "labels": len(codes),
        "slides": len(sample.tables),
        "held_out": f"Every label was held out once, in {len(folds)} parts: {held_out}.",
    }
    classifier.save(out)
    report = write_report(Path(out), found, sample, facts=facts, notes=notes, slides=slides)
    return TrainedClassifier(classifier, found, report, tuple(notes))


def _name(estimator: Any) -> str:
    if isinstance(estimator, str):
        return estimator
    return str(estimator["class_path"]) if isinstance(estimator, Mapping) else type(estimator).__name__


def _groups(sample: Sample) -> tuple[NDArray[np.int64], str]:
    """Return what is held out together, and what that is in words."""
    if len(sample.tables) > 1:
        return sample.group, "whole slides"
    return blocks_of(sample.nuclei.centroid), "parts of the one slide, side by side; another slide may differ more"


def _check_labels(names: NDArray[np.object_]) -> None:
    """Refuse labels from which nothing can be learnt, or nothing be judged."""
    kinds, counts = np.unique(names.astype(str), return_counts=True)
    if len(kinds) < 2:
        raise DataError(
            f"all {len(names)} labels are of one class, {str(kinds[0])!r}; label nuclei of at least two types, such as "
            "'other'"
        )
    few = [str(kind) for kind, count in zip(kinds, counts, strict=True) if count < FEWEST]
    if few:
        raise DataError(
            f"types with a single label: {', '.join(map(repr, few))}; label more of them, or leave them out: "
            f"without={few}"
        )


def _weights_note(classifier: TypeClassifier) -> list[str]:
    if classifier.class_weight is None or takes_class_weight(classifier.estimator_):
        return []
    return [f"{_name(classifier.estimator)} takes no class weights: frequent types count more"]
