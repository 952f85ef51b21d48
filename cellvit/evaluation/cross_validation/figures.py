"""Pictures of a report: one test image per tissue with its true and its predicted nuclei, and bars of scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cellvit.classes import NO_TYPE, standard_colors, type_color
from cellvit.errors import CellViTError, DataError
from cellvit.plotting.charts import COLORS, new_axes, to_picture
from cellvit.plotting.legend import Picture, draw_legend, font_of, stack_rows
from cellvit.plotting.overlay import draw_overlay
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import IntMap, NucleiClasses, NucleiPrediction, Rgb

MAX_SAMPLES = 19

_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_TEXT = 18  # height in pixels
_GAP = 6
_HEAD = 24  # text height of titles
_PAD = 17  # as wide as the margin that a panel of this text height has
_MARKS = ("#c8003c", "#8232aa")


@dataclass(frozen=True)
class Sample:
    """One test image with its true and its predicted nuclei.

    Attributes:
        name: Name of the image.
        tissue: Its tissue, or an empty text.
        image: ``uint8 (H, W, 3)`` RGB.
        target: True nuclei.
        pred: Predicted nuclei.
    """

    name: str
    tissue: str
    image: Picture
    target: NucleiPrediction
    pred: NucleiPrediction


class Bars(NamedTuple):
    """Scores of one name over all rows of a chart.

    Attributes:
        label: What they are.
        means: One per row; nan draws no bar.
        stds: One per row; nan draws no spread.
        marks: Values to compare with, ``{what they are: one per row, nan for none}``.
    """

    label: str
    means: Sequence[float]
    stds: Sequence[float]
    marks: Mapping[str, Sequence[float]]


def read_samples(folder: str | Path, class_names: Sequence[str]) -> tuple[Sample, ...]:
    """Read the images that a run has stored for pictures, ``samples/<NN>_<tissue>.npz``.

    Args:
        folder: Folder of one run, ``run-<k>``.
        class_names: Names by type id, background first; empty without types.

    Returns:
        The first of each tissue, at most 19, in the order of the file names; none if there is no such folder.

    Raises:
        DataError: If files are damaged; one error names all of them.
    """
    names = tuple(class_names)
    classes = NucleiClasses(names, standard_colors(names)) if names else None
    samples: dict[str, Sample] = {}
    problems = []
    for path in sorted(Path(folder, "samples").glob("*.npz")):
        try:
            sample = _read_sample(path, classes)
        except (CellViTError, OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            problems.append(f"{path.name}: {error}")
            continue
        samples.setdefault(sample.tissue or path.name, sample)
    if problems:
        listed = "; ".join(problems)
        raise DataError(f"samples in {str(folder)!r} cannot be drawn: {listed}; write them again or remove them")
    return tuple(samples.values())[:MAX_SAMPLES]


def _read_sample(path: Path, classes: NucleiClasses | None) -> Sample:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
        image = data["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"image is {image.dtype} {image.shape}, not uint8 (H, W, 3)")
        sides = [
            _nuclei(data[f"{side}_instances"], data[f"{side}_types"], image.shape[:2], classes)
            for side in ("true", "pred")
        ]
        return Sample(str(data["name"]), str(data["tissue"]), image, *sides)


def _nuclei(
    instances: IntMap, types: NDArray[Any], shape: tuple[int, ...], classes: NucleiClasses | None
) -> NucleiPrediction:
    """Return the table of a map whose label ``i + 1`` has the type at ``i``."""
    if instances.shape != shape or int(instances.max(initial=0)) > len(types):
        raise DataError(f"map {instances.shape} with {len(types)} types does not fit an image {shape}")
    lookup = np.concatenate([[0], types]).astype(np.int32)
    # without classes no type has a colour or a name, and all nuclei are drawn alike
    return nuclei_from_instances(instances, type_map=None if classes is None else lookup[instances], classes=classes)


def draw_samples(samples: Sequence[Sample], *, title: str, columns: int | None = None) -> Picture:
    """Draw image, truth and prediction of every sample in a grid, with a legend of the types above.

    Args:
        samples: At least one.
        title: The first line.
        columns: Samples side by side; None takes one for up to three, else two.

    Returns:
        ``uint8 (h, w, 3)`` RGB.

    Raises:
        DataError: If there is no sample.
    """
    if not samples:
        raise DataError("no samples to draw; store at least one test image")
    columns = columns or (1 if len(samples) <= 3 else 2)
    largest = max(max(sample.image.shape[:2]) for sample in samples)
    side = 384 if len(samples) > 3 else min(max(512, largest), 768)
    cells = [_draw_sample(sample, side) for sample in samples]
    rows = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        row += [np.full_like(row[0], 255)] * (min(columns, len(cells)) - len(row))
        padded = [np.pad(c, ((0, 2 * _GAP), (_PAD, _PAD), (0, 0)), constant_values=255) for c in row]
        rows.append(np.concatenate(padded, axis=1))
    width = rows[0].shape[1]
    entries = _type_entries(samples)
    head = [draw_legend([(None, title)], width, size=_HEAD)]
    head += [draw_legend(entries, width, size=_HEAD)] if entries else []
    return stack_rows([*head, *rows])


def _type_entries(samples: Sequence[Sample]) -> list[tuple[Rgb | None, str]]:
    """Return colour and name of every type, and of nuclei without type where there are any."""
    classes = samples[0].target.nuclei.classes
    if classes is None:
        return []
    entries: list[tuple[Rgb | None, str]] = list(zip(classes.colors[1:], classes.names[1:], strict=True))
    if any((side.nuclei.type <= 0).any() for sample in samples for side in (sample.target, sample.pred)):
        entries.append((type_color(classes, 0), NO_TYPE))
    return entries


def _draw_sample(sample: Sample, side: int) -> Picture:
    """Return three square panels of a side in pixels, with a line of text above."""
    true, found = len(sample.target.nuclei), len(sample.pred.nuclei)
    scale = side / max(sample.image.shape[:2])
    height, width = (max(1, round(scale * length)) for length in sample.image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = np.asarray(cv2.resize(sample.image, (width, height), interpolation=how), np.uint8)
    panels = []
    for nuclei in (None, sample.target.nuclei, sample.pred.nuclei):
        panel = image
        if nuclei is not None:
            # integer coordinates are pixel centres, which lie half a pixel inside
            moved = nuclei.transform(scale=(scale, scale), shift=((scale - 1) / 2, (scale - 1) / 2))
            panel = draw_overlay(image, moved, legend=False, thickness=2 if scale > 1 else 1)
        panels.append(np.pad(panel, ((0, side - height), (0, side - width), (0, 0)), constant_values=255))
    gap = np.full((side, _GAP, 3), 255, np.uint8)
    body = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    canvas = Image.new("RGB", (body.shape[1], 58), _PAPER)
    draw = ImageDraw.Draw(canvas)
    tissue = sample.tissue or "Tissue unknown"
    draw.text((0, _TEXT), _fitted(tissue, side, _TEXT + 3), fill=_INK, font=font_of(_TEXT + 3), anchor="lm")
    used = font_of(_TEXT + 3).getlength(_fitted(tissue, side, _TEXT + 3)) + 2 * _TEXT
    name = _fitted(sample.name, body.shape[1] - used, _TEXT - 2)
    draw.text((body.shape[1], _TEXT), name, fill=(110, 110, 110), font=font_of(_TEXT - 2), anchor="rm")
    captions = ("Image", f"Truth: {_counted(true)}", f"Prediction: {_counted(found)}")
    for i, caption in enumerate(captions):
        draw.text((i * (side + _GAP), 2.4 * _TEXT), caption, fill=_INK, font=font_of(_TEXT - 2), anchor="lm")
    return stack_rows([np.asarray(canvas), body])


def draw_bars(rows: Sequence[str], groups: Sequence[Bars], *, title: str) -> Picture:
    """Draw horizontal bars from 0 to 1 with their spread, and marks of values to compare with.

    Args:
        rows: Labels of the rows.
        groups: Up to three; each gives one bar in every row.
        title: The first line.

    Returns:
        ``uint8 (h, w, 3)`` RGB, 1,200 pixels wide or more.
    """
    figure, axes = new_axes(1100, (22 * len(groups) + 16) * len(rows))
    height = 0.8 / max(1, len(groups))
    names = list(dict.fromkeys(name for group in groups for name in group.marks))
    for j, group in enumerate(groups):
        places = np.arange(len(rows)) - 0.4 + (j + 0.5) * height
        means, stds = np.asarray(group.means, float), np.asarray(group.stds, float)
        axes.barh(places, np.nan_to_num(means), 0.85 * height, color=COLORS[j % len(COLORS)], label=group.label)
        axes.errorbar(means, places, xerr=np.nan_to_num(stds), fmt="none", ecolor="#1e1e1e", capsize=4)
        marks = np.array([group.marks[name] for name in group.marks], float).reshape(-1, len(rows))
        for name, values in zip(group.marks, marks, strict=True):
            color = _MARKS[names.index(name) % len(_MARKS)]
            axes.vlines(values, places - height / 2, places + height / 2, color=color, linewidth=3)
        ends = np.nan_to_num(np.vstack([means, means + np.nan_to_num(stds), marks])).max(axis=0)
        for place, mean, end in zip(places, means, ends, strict=True):
            text, x = ("none", 0) if np.isnan(mean) else (f"{mean:.4f}", min(end, 1))
            axes.annotate(text, (x, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    for k, name in enumerate(names):
        axes.plot([], [], color=_MARKS[k % len(_MARKS)], linewidth=3, label=f"{name} (line)")
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.set_xlabel("score")
    axes.grid(axis="x", color="#cdcdcd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", pad=34, parse_math=False)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i].endswith(" (line)"))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.4, ncols=4, frameon=False)
    return to_picture(figure)


def _counted(number: int) -> str:
    return f"{number:,} nucle{'us' if number == 1 else 'i'}"


def _fitted(text: str, width: float, size: int) -> str:
    """Return a text shortened in its middle to a width in pixels."""
    font, shown, keep = font_of(size), text, len(text)
    while font.getlength(shown) > width and keep > 2:
        keep -= 1
        shown = f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"
    return shown
