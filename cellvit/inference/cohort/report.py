"""``report.html``: what was found in the slides of a cohort, on one page that needs no other file."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from cellvit.classes import hex_color
from cellvit.inference.cohort.job import SlideOutcome
from cellvit.inference.cohort.summary import SlideNumbers, numbers_of, relative, type_colors
from cellvit.io.format import readable_duration
from cellvit.io.tables import data_uri, render, write_text
from cellvit.types import Rgb

PICTURES = ("overlay.png", "tissue.png")
"""Pictures of a slide; the first that is there is shown."""

PICTURE_SIDE = 320
MANY = 60
SIDE_OF_MANY = 200
"""Longest side in pixels of a picture, and where there are more than that many slides."""


def write_report(outcomes: Sequence[SlideOutcome], path: str | Path, *, title: str) -> None:
    """Write a page about the slides of a cohort.

    Style, script and small pictures are inside the file; nothing is loaded from elsewhere. Links to the files of the
    slides are relative, so a folder of results can be moved as a whole.

    Args:
        outcomes: What came of each slide, in the order of the table.
        path: The page; replaced if it exists.
        title: Heading of the page.

    Raises:
        OutputError: If it cannot be written.
    """
    colors, folder = type_colors(outcomes), Path(path).parent
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    done = [outcome for outcome in outcomes if outcome.error is None]
    sums, every = (_sums(map(numbers_of, chosen)) for chosen in (done, outcomes))
    facts = [("slides done", f"{len(done):,}"), ("nuclei", f"{sums.nuclei:,}")]
    if failed:
        facts.insert(1, ("failed", f"{len(failed):,}"))
    if sums.tissue_mm2:
        facts += [("tissue", f"{sums.tissue_mm2:,.1f} mm²"), ("nuclei per mm²", f"{sums.density:,.0f}")]
    facts.append(("computing time", readable_duration(sums.seconds)))
    side = PICTURE_SIDE if len(outcomes) <= MANY else SIDE_OF_MANY
    page = render(
        "inference/cohort/report.html.jinja",
        title=title,
        origin=_origin(done),
        failed=failed,
        facts=facts,
        types=_types(sums.by_type, colors),
        slides=[_slide(outcome, colors, folder, side) for outcome in outcomes],
        sums=every,
        all_types=_types(every.by_type, colors),
    )
    write_text(path, page)


def picture_uri(folder: Path, *, side: int) -> str | None:
    """Return a small picture of a slide as a ``data:`` address, or None if there is none.

    Args:
        folder: Results of the slide.
        side: Longest side in pixels; a smaller picture is not enlarged.
    """
    for name in PICTURES:
        try:
            with Image.open(folder / name) as opened:
                small = opened.convert("RGB")
            small.thumbnail((side, side))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # not there, or damaged: the page is worth more than a picture
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=80, optimize=True)
        return data_uri(buffer.getvalue(), "image/jpeg")
    return None


def _origin(done: Sequence[SlideOutcome]) -> list[str]:
    """Return what the numbers are from: models, version and time."""
    models = dict.fromkeys(_model((outcome.summary or {}).get("model") or {}) for outcome in done)
    named = ", ".join(model for model in models if model)
    parts = [f"Model {named}"] if named else []
    written = f"written {datetime.now().astimezone():%Y-%m-%d %H:%M}"
    return [*parts, f"cellvit {version('cellvit-lightning')}", written]


def _model(facts: Mapping[str, Any]) -> str:
    if not facts.get("name"):
        return ""
    learnt_on = facts.get("types_learnt_on")
    said = "; ".join(str(text) for text in (learnt_on and f"types learnt on {learnt_on}", facts.get("licence")) if text)
    return str(facts["name"]) + (f" ({said})" if said else "")


def _sums(numbers: Iterable[SlideNumbers]) -> SlideNumbers:
    """Return the numbers of all slides together."""
    nuclei, by_type, tissue, seconds = 0, Counter[str](), 0.0, 0.0
    for item in numbers:
        nuclei += item.nuclei or 0
        by_type.update(item.by_type)
        tissue += item.tissue_mm2 or 0.0
        seconds += item.seconds
    return SlideNumbers(nuclei, by_type, tissue, nuclei / tissue if tissue else None, None, None, None, seconds)


def _types(by_type: Mapping[str, int], colors: Mapping[str, Rgb]) -> list[dict[str, Any]]:
    """Return name, colour, count and share of every type, and what part of the bar lies left of it in percent."""
    total, left = sum(by_type.values()) or 1, 0.0
    types: list[dict[str, Any]] = []
    for name, color in colors.items():
        count = by_type.get(name, 0)
        types.append({"name": name, "color": hex_color(color), "count": count, "share": count / total, "left": left})
        left += 100 * count / total
    return types


def _slide(outcome: SlideOutcome, colors: Mapping[str, Rgb], folder: Path, side: int) -> dict[str, Any]:
    """Return what the page shows of a slide."""
    numbers, summary = numbers_of(outcome), outcome.summary or {}
    failed = outcome.error is not None
    picture = None if failed else picture_uri(outcome.out, side=side)
    found = next((name for name in PICTURES if picture and (outcome.out / name).exists()), "")
    files = {**(summary.get("files") or {}), **({"summary": "summary.json"} if summary else {})}
    return {
        "name": outcome.path.name,
        "failed": failed,
        "numbers": numbers,
        "time": readable_duration(numbers.seconds),
        "types": _types(numbers.by_type, colors),
        "picture": picture,
        "picture_link": _link(outcome.out / found, folder),
        "link": f"{_link(outcome.out, folder)}/" if summary else None,
        "extra": {key: value for key, value in outcome.extra.items() if value},
        "files": {kind: _link(outcome.out / file, folder) for kind, file in files.items()},
        "warnings": summary.get("warnings") or (),
        "statistics": _with_numbers(summary.get("statistics")),
    }


def _with_numbers(statistics: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the statistics of a slide, or None where it had too few nuclei for any."""
    return statistics if statistics and statistics["density_per_mm2"] else None


def _link(target: Path, folder: Path) -> str:
    return quote(relative(target, folder))
