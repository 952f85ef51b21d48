"""Which nuclei to label next: those a classifier is not sure of, and that differ from each other and from the rest."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cellvit.classification.apply import table_path
from cellvit.classification.classifier import TypeClassifier, as_classifier
from cellvit.classification.crops import contact_sheet, draw_crop, slide_of
from cellvit.classification.features import EMBEDDING
from cellvit.classification.samples import rows_of
from cellvit.classification.table import TypedTable, score_table
from cellvit.errors import ConfigError, DataError
from cellvit.io.atomic import make_folder
from cellvit.io.geojson import write_geojson
from cellvit.io.parquet import ParquetStream
from cellvit.io.tables import data_uri, render, write_text
from cellvit.labels.match import labels_of, labels_path
from cellvit.plotting.overlay import write_picture
from cellvit.types import Nuclei

POOL = 20_000
"""Nuclei of a slide that are looked at: drawn by chance, the less sure the likelier."""

_LEAST = 0.02  # share of the uncertainty that a nucleus has of which the classifier is sure
NAMES = ("suggestions.geojson", "suggestions.png", "suggestions.html")


@dataclass(frozen=True)
class Suggestions:
    """Nuclei of a slide to label next.

    Attributes:
        nucleus: ``(K,)`` rows of the table, in the order in which they tell most.
        nuclei: The nuclei, without types.
        guess: ``(K,)`` object, the most probable type; empty without a classifier.
        probability: ``(K,)`` of it; NaN without a classifier.
        files: What was written.
        notes: What the user should know.
    """

    nucleus: NDArray[np.int64]
    nuclei: Nuclei
    guess: NDArray[np.object_]
    probability: NDArray[np.float64]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def suggest_nuclei(
    folder: str | Path,
    *,
    count: int = 50,
    classifier: TypeClassifier | str | Path | None = None,
    out: str | Path | None = None,
    slides: str | Path | None = None,
    trust: Sequence[str] = (),
    seed: int = 0,
) -> Suggestions:
    """Choose nuclei of a slide whose labels would teach most, and write them as points for QuPath and as pictures.

    Each is drawn with a probability that grows with the entropy of its types, as the classifier sees them, and with
    the squared distance of its features to the nearest nucleus that is labelled or chosen already, as k-means++ [1]
    draws its centres. Without a classifier only the distance counts. Points have no class, so that a file that nobody
    has worked on teaches nothing.

    Args:
        folder: Results of a slide, or a table of nuclei.
        count: How many, at most.
        classifier: Fitted, or the folder of a saved one; None chooses by embeddings alone.
        out: Where ``suggestions.geojson``, ``.png`` and ``.html`` are written; None is beside the table.
        slides: Where the slide lies, if not where it was; without a slide there are no crops.
        trust: Packages whose classes the classifier's file may name.
        seed: Of the drawing.

    Raises:
        ConfigError: If the count is below 1.
        DataError: If there are no features, or embeddings of another model.
        OutputError: If a file cannot be written.

    References:
        [1] Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
    """
    given = Path(folder)
    path = table_path(given)
    result = choose_nuclei(path, count=count, classifier=classifier, trust=trust, seed=seed)
    return replace(result, files=_write(result, given, Path(out) if out is not None else path.parent, slides))


def choose_nuclei(
    path: Path,
    *,
    count: int = 50,
    classifier: TypeClassifier | str | Path | None = None,
    trust: Sequence[str] = (),
    seed: int = 0,
) -> Suggestions:
    """Choose nuclei as :func:`suggest_nuclei` does, and write nothing.

    Args:
        path: A table of nuclei.
        count: How many, at most.
        classifier: Fitted, or the folder of a saved one; None chooses by embeddings alone.
        trust: Packages whose classes the classifier's file may name.
        seed: Of the drawing.

    Raises:
        ConfigError: If the count is below 1.
        DataError: If there are no features, or embeddings of another model.
    """
    if count < 1:
        raise ConfigError(f"count={count} nuclei to label; ask for at least one")
    rng = np.random.default_rng(seed)
    chosen = None if classifier is None else as_classifier(classifier, trust=trust)
    features = (EMBEDDING,) if chosen is None else tuple(chosen.features)
    labelled = labels_of(path).current().nucleus if labels_path(path).exists() else np.zeros(0, np.int64)
    stream = ParquetStream(path)
    found: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()
    weight = np.ones(len(stream))
    if chosen is not None:
        scores = score_table(TypedTable(path), chosen)
        found, notes = scores.probabilities, scores.notes
        weight = np.nan_to_num(entropy(found)) + _LEAST
    weight[labelled] = 0
    pool = _pool(weight, rng)
    rows = np.unique(np.append(pool, labelled))
    nuclei, x = rows_of(stream, rows, features)
    is_known = np.asarray(np.isfinite(x).all(axis=1))
    is_labelled = np.isin(rows, labelled)
    picked = spread_out(_standard(x, is_known), weight[rows] * is_known, is_labelled & is_known, count, rng)
    if not len(picked):
        raise DataError(f"{str(path)!r} holds no nucleus without a label whose features are known; nothing to suggest")
    nucleus = rows[picked]
    plain = replace(nuclei.select(picked), type=np.zeros(len(picked), np.int32), classes=None, measurements={})
    guess, probability = np.full(len(picked), "", object), np.full(len(picked), np.nan)
    if chosen is not None and found is not None:
        best = found[nucleus]
        guess = np.asarray(chosen.classes_)[best.argmax(axis=1)].astype(object)
        probability = best.max(axis=1).astype(np.float64)
    return Suggestions(nucleus, plain, guess, probability, (), notes)


def entropy(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the entropy of probabilities ``(N, K)`` relative to the largest there is, in [0, 1].

    Example:
        >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
        [1.0, 0.0]
    """
    share = np.asarray(probabilities, np.float64)
    terms = share * np.log(np.where(share > 0, share, 1.0))
    return np.asarray(np.abs(terms.sum(axis=1)) / np.log(share.shape[1]))


def _pool(weight: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return rows drawn by chance, each at most once, the heavier the likelier [Efraimidis and Spirakis 2006]."""
    candidates = np.flatnonzero(weight > 0)
    keys = rng.exponential(size=len(candidates)) / weight[candidates]
    return np.sort(candidates[np.argsort(keys, kind="stable")[:POOL]])


def _standard(x: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return features of mean 0 and deviation 1; those that are not known are 0."""
    clean = np.where(known[:, None], x, np.nan)
    if not known.any():
        return np.zeros(x.shape, np.float32)
    mean, deviation = np.nanmean(clean, axis=0), np.nanstd(clean, axis=0)
    scaled = (clean - mean) / np.where(deviation > 0, deviation, 1)
    return np.asarray(np.nan_to_num(scaled), np.float32)


def spread_out(
    x: NDArray[np.float32],
    weight: NDArray[np.float64],
    taken: NDArray[np.bool_],
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return rows drawn one after the other, by weight times squared distance to the nearest that is taken.

    Args:
        x: ``(N, F)`` features of comparable size.
        weight: ``(N,)``; rows of weight 0 are never drawn.
        taken: ``(N,)`` rows that are there already.
        count: How many, at most.
        rng: Source of chance.
    """
    distance = np.full(len(x), np.inf)
    for row in np.flatnonzero(taken).tolist():
        distance = np.minimum(distance, ((x - x[row]) ** 2).sum(axis=1))
    picked: list[int] = []
    while len(picked) < count:
        mass = weight * np.where(np.isfinite(distance), distance, 1.0)
        mass[picked] = 0
        if not mass.sum() > 0:
            break
        picked.append(int(rng.choice(len(x), p=mass / mass.sum())))
        distance = np.minimum(distance, ((x - x[picked[-1]]) ** 2).sum(axis=1))
    return np.array(picked, np.int64)


def _write(found: Suggestions, folder: Path, out: Path, slides: str | Path | None) -> tuple[Path, ...]:
    """Write points, contact sheet and page; without the slide points only."""
    make_folder(out)
    points, picture, page = (out / name for name in NAMES)
    write_geojson(found.nuclei, points, object_type="annotation", points=True)
    texts = [
        f"{number}" + (f" {guess[:10]} {probability:.2f}" if guess else "")
        for number, (guess, probability) in enumerate(zip(found.guess, found.probability, strict=True), start=1)
    ]
    with slide_of(folder, slides) as opened:
        if opened is None:
            return (points,)
        crops = [draw_crop(opened, found.nuclei, row, text) for row, text in enumerate(texts)]
    write_picture(contact_sheet(crops, f"{len(crops)} nuclei to label next"), picture)
    rows = [
        {"text": text, "x": round(x), "y": round(y), "uri": _uri(crop)}
        for text, crop, (x, y) in zip(texts, crops, found.nuclei.centroid.tolist(), strict=True)
    ]
    write_text(page, render("classification/suggestions.html.jinja", title=f"Label next: {folder.name}", rows=rows))
    return points, picture, page


def _uri(crop: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")
