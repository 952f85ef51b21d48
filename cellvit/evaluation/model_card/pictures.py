"""Pictures of a model card: where most goes wrong, and how far confidence is from accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from cellvit.evaluation.calibration import Reliability
from cellvit.io.labels import ImageRecord
from cellvit.metrics.functional.detection import match_centroids
from cellvit.plotting.charts import COLORS, new_axes, to_picture
from cellvit.plotting.legend import Picture, draw_legend, stack_rows
from cellvit.plotting.overlay import draw_comparison
from cellvit.types import Nuclei, NucleiClasses

WINDOW = 256
"""Side of a window in pixels at the model's resolution."""

_STEP = 64
_FEW = 10  # nuclei; a window with fewer true ones counts as having so many, or one stray nucleus would be the worst
_RIGHT, _WRONG, _OTHER = (60, 110, 255), (255, 235, 0), (0, 235, 235)
_TRUTH = NucleiClasses(("Background", "Found", "Missed"), ((0, 0, 0), _RIGHT, _WRONG))
_FOUND = NucleiClasses(("Background", "True nucleus", "Invented"), ((0, 0, 0), _RIGHT, _WRONG))
_TYPED = NucleiClasses((*_FOUND.names, "Of another type"), (*_FOUND.colors, _OTHER))

_DARK = 30
_TEXT = 18  # height in pixels


@dataclass(frozen=True)
class Window:
    """A part of an image.

    Attributes:
        record: Files of the image.
        left: x of its left edge, in pixels of the image at the model's resolution.
        top: y of its top edge, in the same pixels.
        true: True nuclei whose centroid lies inside.
        missed: Number of those that were not found.
        invented: Predicted nuclei inside that are no true one.
        image: ``uint8 (h, w, 3)`` RGB.
        target: True nuclei, of type 1 where found and 2 where missed.
        pred: Predicted nuclei, of type 1 if they are true ones, 2 if invented, 3 if of another type than the true one.
    """

    record: ImageRecord
    left: int
    top: int
    true: int
    missed: int
    invented: int
    image: Picture
    target: Nuclei
    pred: Nuclei

    @property
    def errors(self) -> float:
        """Missed and invented nuclei relative to true ones."""
        return (self.missed + self.invented) / max(self.true, _FEW)


def worst_window(
    record: ImageRecord, image: NDArray[np.uint8], target: Nuclei, pred: Nuclei, *, radius: float, side: int = WINDOW
) -> Window | None:
    """Return the window of an image with most missed and invented nuclei relative to true ones.

    Args:
        record: Files of the image.
        image: ``(H, W, 3)`` RGB.
        target: True nuclei in pixels of the image; type -1 is unknown.
        pred: Predicted nuclei likewise.
        radius: Largest distance of a pair of centroids in pixels.
        side: Width and height of the window in pixels; it is cut to the image.

    Returns:
        The first of the worst in reading order; None if nothing is wrong anywhere.
    """
    match = match_centroids(pred.centroid, target.centroid, radius=radius)
    lost, stray = target.centroid[match.unmatched_target], pred.centroid[match.unmatched_pred]
    if not len(lost) + len(stray):
        return None
    height, width = min(side, image.shape[0]), min(side, image.shape[1])
    tops, lefts = (_starts(length, side) for length in image.shape[:2])
    true, missed, invented = (_counts(p, lefts, tops, (width, height)) for p in (target.centroid, lost, stray))
    errors = (missed + invented) / np.maximum(true, _FEW)
    row, column = np.unravel_index(int(errors.argmax()), errors.shape)
    top, left = int(tops[row]), int(lefts[column])
    states, found = _judged(target, pred, match.pairs, match.unmatched_pred)
    box = (left, top, width, height)
    return Window(
        record=record,
        left=left,
        top=top,
        true=int(true[row, column]),
        missed=int(missed[row, column]),
        invented=int(invented[row, column]),
        image=image[top : top + height, left : left + width].copy(),
        target=_cut(states, box),
        pred=_cut(found, box),
    )


def choose_windows(windows: Sequence[Window], number: int) -> tuple[Window, ...]:
    """Return the worst windows, over data sets in turn.

    Args:
        windows: At most one per image.
        number: Largest number of windows, from 0.
    """
    groups: dict[str, list[Window]] = {}
    for window in sorted(windows, key=lambda w: -w.errors):
        groups.setdefault(window.record.dataset, []).append(window)
    turns = zip_longest(*groups.values())
    return tuple([window for turn in turns for window in turn if window is not None][:number])


def draw_window(window: Window, *, tissue: bool = True) -> Picture:
    """Draw image, truth and prediction; missed and invented nuclei stand out.

    Args:
        window: What to draw.
        tissue: Show the image; without it, outlines lie on a dark ground.

    Returns:
        ``uint8 (h, w, 3)`` RGB.
    """
    ground = window.image if tissue else np.full_like(window.image, _DARK)
    panels = draw_comparison(ground, window.target, window.pred, with_image=tissue)
    where = f"{window.record.name}, {window.image.shape[1]}x{window.image.shape[0]} px at x={window.left}, "
    text = f"{where}y={window.top}: {window.missed} missed and {window.invented} invented at {window.true} true nuclei"
    return stack_rows([draw_legend([(None, text)], panels.shape[1], size=_TEXT), panels])


def draw_reliability(curves: Mapping[str, Reliability]) -> Picture:
    """Draw accuracy over confidence, and below it how many nuclei there are at each confidence.

    Args:
        curves: One to three; their names go into the legend.

    Returns:
        ``uint8 (h, w, 3)`` RGB.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(520, 520)
    below = axes.inset_axes((0, -0.27, 1, 0.22), sharex=axes)
    axes.plot([0, 1], [0, 1], color="#787878")
    for k, (name, curve) in enumerate(curves.items()):
        color, count = COLORS[k % len(COLORS)], np.asarray(curve.count)
        share = count / max(1, count.max())
        known = count > 0
        confidence, accuracy = np.asarray(curve.confidence)[known], np.asarray(curve.accuracy)[known]
        axes.plot(confidence, accuracy, color=color, label=f"{name} (ECE {curve.ece:.3f})")
        axes.scatter(confidence, accuracy, 20 + 160 * share[known], color=color, edgecolor="white", zorder=3)
        width = 1 / len(count)
        part = 0.9 * width / len(curves)
        below.bar(np.arange(len(count)) * width + 0.05 * width + (k + 0.5) * part, count, part, color=color)
    for each in (axes, below):
        each.grid(color="#cdcdcd")
        each.set_axisbelow(True)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right types")
    axes.tick_params(labelbottom=False)
    axes.set_title("Confidence and accuracy of types", loc="left", pad=14)
    below.set(ylabel="nuclei", xlabel="confidence")
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    below.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0, -0.5), frameon=False)
    return to_picture(figure)


def _starts(length: int, side: int) -> NDArray[np.int64]:
    """Return where windows begin: in steps, and one that reaches the end."""
    last = max(length - side, 0)
    return np.unique(np.append(np.arange(0, last + 1, _STEP), last))


def _counts(
    points: NDArray[np.float64], lefts: NDArray[np.int64], tops: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the number of points in every window, ``(tops, lefts)``."""
    inside = [
        ((p[None] >= starts[:, None]) & (p[None] < starts[:, None] + length)).astype(np.int64)
        for p, starts, length in zip(points.T, (lefts, tops), size, strict=True)
    ]
    return np.asarray(inside[1] @ inside[0].T)


def _judged(
    target: Nuclei, pred: Nuclei, pairs: NDArray[np.int64], unmatched_pred: NDArray[np.int64]
) -> tuple[Nuclei, Nuclei]:
    """Return both tables with what became of every nucleus as its type; see :class:`Window`."""
    states, found = np.full(len(target), 2, np.int32), np.ones(len(pred), np.int32)
    states[pairs[:, 1]] = 1
    found[unmatched_pred] = 2
    true_types, pred_types = target.type[pairs[:, 1]], pred.type[pairs[:, 0]]
    found[pairs[:, 0]] = np.where((true_types > 0) & (true_types != pred_types), 3, 1)
    classes = _TYPED if (target.type > 0).any() else _FOUND
    return replace(target, type=states, classes=_TRUTH), replace(pred, type=found, classes=classes)


def _cut(nuclei: Nuclei, box: tuple[int, int, int, int]) -> Nuclei:
    """Return the nuclei whose centroid lies in a box ``(left, top, width, height)``, in its pixels."""
    left, top, width, height = box
    inside = ((nuclei.centroid >= (left, top)) & (nuclei.centroid < (left + width, top + height))).all(axis=1)
    return nuclei.select(np.asarray(inside)).transform(shift=(-left, -top))
