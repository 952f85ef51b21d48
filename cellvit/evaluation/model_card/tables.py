"""Tables of a model card: scores of every data set and of all together, per type, per image, and calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

from cellvit.evaluation.calibration import TEMPERATURES, Calibration
from cellvit.evaluation.model_card.measure import CardImage, CardSettings
from cellvit.evaluation.model_card.scores import SCORES, TYPE_SCORES, Estimate, estimate_scores, image_sums
from cellvit.io.format import readable_number
from cellvit.io.tables import Cell

ALL = "all"
"""Name of the group of all data sets."""

_COLUMNS = {"bDQ": "DQ", "bSQ": "SQ"}


@dataclass(frozen=True)
class GroupScores:
    """Scores of a group of images at a resolution.

    Attributes:
        group: Name of the data set, or :data:`ALL`.
        mpp: Microns per pixel the images were given at.
        images: Number of images.
        typed_images: Number of images of which all types are known.
        nuclei: True nuclei.
        type_nuclei: True nuclei per type of the typed images, by name.
        scores: Per name.
    """

    group: str
    mpp: float
    images: int
    typed_images: int
    nuclei: int
    type_nuclei: dict[str, int]
    scores: dict[str, Estimate]


def group_scores(
    images: Sequence[CardImage], class_names: Sequence[str], settings: CardSettings
) -> tuple[GroupScores, ...]:
    """Return the scores of every data set, and of all where there are several, at every resolution.

    Args:
        images: At least one.
        class_names: Names of the types, background first.
        settings: Resolutions, resamples and seed are read.
    """
    names = list(dict.fromkeys(image.record.dataset for image in images))
    groups = {name: [i for i in images if i.record.dataset == name] for name in names}
    if len(groups) > 1:
        name = ALL if ALL not in groups else f"{ALL} data sets"
        groups[name] = list(images)
    return tuple(
        _group(name, members, m, class_names, settings) for m in settings.mpp for name, members in groups.items()
    )


def _group(
    name: str, images: Sequence[CardImage], mpp: float, class_names: Sequence[str], settings: CardSettings
) -> GroupScores:
    typed = [image for image in images if image.typed]
    counts = [sum(image.types[kind] for image in typed) for kind in range(len(class_names))]
    return GroupScores(
        group=name,
        mpp=mpp,
        images=len(images),
        typed_images=len(typed),
        nuclei=sum(sum(image.types) for image in images),
        type_nuclei=dict(zip(class_names[1:], counts[1:], strict=True)),
        scores=estimate_scores(
            [image.scores[mpp] for image in images],
            class_names,
            strata=[image.record.dataset for image in images],
            resamples=settings.resamples,
            seed=settings.seed,
        ),
    )


def score_table(groups: Sequence[GroupScores], *, intervals: bool = True) -> list[dict[str, Cell]]:
    """Return one row per group with the scores of all nuclei.

    Args:
        groups: One per data set and resolution, from :func:`group_scores`.
        intervals: Write them behind the scores; without, cells are numbers.
    """
    rows: list[dict[str, Cell]] = []
    for group in groups:
        row: dict[str, Cell] = {"data set": group.group, "µm/px": f"{group.mpp:g}"}
        row |= {"images": group.images, "nuclei": group.nuclei}
        rows.append(row | {_COLUMNS.get(n, n): _cell(group.scores[n], intervals) for n in SCORES})
    return rows


def type_table(groups: Sequence[GroupScores]) -> list[dict[str, Cell]]:
    """Return one row per typed group and type; all data sets together only where several are typed."""
    rows: list[dict[str, Cell]] = []
    for mpp in dict.fromkeys(group.mpp for group in groups):
        typed = [group for group in groups if group.mpp == mpp and group.typed_images]
        # two are one data set and, last, all together, which says the same; several data sets make at least three
        for group in typed[:1] if len(typed) == 2 else typed:
            for name, nuclei in group.type_nuclei.items():
                row: dict[str, Cell] = {"data set": group.group, "µm/px": f"{mpp:g}", "type": name, "nuclei": nuclei}
                rows.append(row | {score: _cell(group.scores[f"{score}/{name}"], True) for score in TYPE_SCORES})
    return rows


def confusion_table(found: Calibration, class_names: Sequence[str]) -> list[dict[str, Cell]]:
    """Return one row per true type: how many of its found nuclei were given which type, and the right share.

    Args:
        found: Its nuclei were paired by their centroids; those that nobody found are not among them.
        class_names: Names of the types, background first.
    """
    rows: list[dict[str, Cell]] = []
    for true, (none, *counts) in enumerate(found.confusion):
        row: dict[str, Cell] = {"true type": class_names[true + 1], "nuclei found": none + sum(counts)}
        row |= {f"as {name}": count for name, count in zip(class_names[1:], counts, strict=True)}
        row |= {"no type": none} if found.no_type else {}
        rows.append(row | {"right": counts[true] / (none + sum(counts)) if none + sum(counts) else None})
    return rows


def image_table(images: Sequence[CardImage], class_names: Sequence[str]) -> list[dict[str, Cell]]:
    """Return one row per image and resolution: counts and scores."""
    rows: list[dict[str, Cell]] = []
    for image in images:
        for mpp, scores in image.scores.items():
            pairs, wrong, missed = image_sums([scores])["counts"][0].tolist()
            record = image.record
            row: dict[str, Cell] = {"image": record.name, "dataset": record.dataset, "image_mpp": record.mpp}
            row |= {"given_mpp": mpp, "typed": "yes" if image.typed else "no"}
            row |= {"true_nuclei": scores.true, "predicted_nuclei": scores.predicted, "no_type": scores.untyped}
            row |= {"tp": pairs, "fp": wrong, "fn": missed}
            row |= {_COLUMNS.get(name, name): scores.scores[name] for name in SCORES}
            row |= {score: scores.scores[score] for score in ("Dice", "AJI")}
            typed = [f"{score}/{name}" for name in class_names[1:] for score in ("F1", "PQ")]
            rows.append(row | {name: scores.scores[name] for name in typed})
    return rows


def calibration_table(found: Calibration) -> list[dict[str, Cell]]:
    """Return one row per kind of probability: as stated, mean over the nucleus, and at the fitted temperature."""
    rows: list[dict[str, Cell]] = [
        {
            "probability": "type_prob as the model states it",
            "T": None,
            "nuclei": found.nuclei - found.no_type,
            "right": found.accuracy,
            "NLL": None,
            "ECE": found.stated.ece,
        }
    ]
    for name, temperature, fit in (
        ("mean over the nucleus", 1.0, found.before),
        ("mean at T, on held-out images", found.temperature, found.after),
    ):
        if fit is not None:
            row: dict[str, Cell] = {"probability": name, "T": temperature, "nuclei": found.nuclei}
            rows.append(row | {"right": fit.accuracy, "NLL": fit.nll, "ECE": fit.reliability.ece})
    return rows


def bin_table(found: Calibration) -> list[dict[str, Cell]]:
    """Return one row per bin of ``type_prob``."""
    stated, bins = found.stated, len(found.stated.count)
    values = zip(stated.count, stated.confidence, stated.accuracy, strict=True)
    return [
        {"type_prob": f"{i / bins:.1f} to {(i + 1) / bins:.1f}", "nuclei": n, "mean type_prob": c, "right": a}
        for i, (n, c, a) in enumerate(values)
    ]


def calibration_notes(found: Calibration, type_rule: str) -> list[str]:
    """Return what a reader of the calibration must know, a sentence each."""
    rules = {
        "majority": "`type_prob` is the share of a nucleus's pixels whose most probable type is the nucleus's "
        "(`type_rule: majority`)",
        "mean": "`type_prob` is the mean probability over a nucleus's pixels without background (`type_rule: mean`)",
    }
    rule = rules.get(type_rule, f"`type_prob` follows the rule {type_rule!r}")
    notes = [f"{rule}; the mean probabilities are measured whatever the rule is."]
    if found.no_type:
        notes.append(f"{found.no_type:,} of {found.nuclei:,} matched nuclei have no type and no part in the first row.")
    if found.temperature is None or found.after is None:
        return [*notes, "One image alone has such nuclei: no temperature was fitted, for none could be held out."]
    helps = found.after.nll < found.before.nll
    notes.append(
        "T is fitted on all images, and multiplies the temperature that the head of the model has (1 if none is set). "
        f"NLL and ECE at T come from {found.folds} groups of images, each judged at the temperature of the others: on "
        f"images it has not seen, it {'lowers' if helps else 'does not lower'} the NLL."
    )
    if min(abs(found.temperature - bound) for bound in TEMPERATURES) < 0.01 * found.temperature:
        notes.append(f"T is at the end of what is tried, {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}.")
    return notes


def _cell(estimate: Estimate, interval: bool) -> Cell:
    if not interval:
        return estimate.value
    text = readable_number(estimate.value, digits=3)
    return text if estimate.low is None else f"{text} ({estimate.low:.3f} to {estimate.high:.3f})"
