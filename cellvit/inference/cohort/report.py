"""``report.html``: what was found in the slides of a cohort, on one page that needs no other file."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from cellvit.inference.cohort.job import SlideOutcome
from cellvit.inference.cohort.summary import SlideNumbers, numbers_of, relative, type_colors
from cellvit.io.atomic import atomic_text
from cellvit.types import Rgb

PICTURES = ("overlay.png", "tissue.png")
"""Pictures of a slide; the first that is there is shown."""


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
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return None


def number_cell(label: str, value: float | None, text: str, *, kind: str = "number") -> str:
    """Return a cell of the table with a number that can be sorted by.

    Args:
        label: Heading of the column, for narrow screens.
        value: What is sorted by; None if it is not known.
        text: What is shown.
        kind: Class of the cell.
    """
    known = "" if value is None else f' data-value="{value}"'
    return f'<td class="{kind}" data-label="{label}"{known}>{text}</td>'


def shown(value: float | None, form: str) -> str:
    """Return a number as text; nothing if it is not known."""
    return "" if value is None else format(value, form)


def type_bar(by_type: Mapping[str, int], colors: Mapping[str, Rgb]) -> str:
    """Return a bar of the shares of the types; a drawing, because backgrounds are not printed."""
    total = sum(by_type.values()) or 1
    pieces, left = [], 0.0
    for name, color in colors.items():
        width = 100 * by_type.get(name, 0) / total
        title = f"<title>{escape(name)}: {by_type.get(name, 0):,}</title>"
        if width:
            place = f'x="{left:.3f}" width="{width:.3f}" height="10"'
            pieces.append(f'<rect {place} fill="{_css(color)}">{title}</rect>')
        left += width
    return (
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(pieces)}</svg>'
    )


def swatch(color: Rgb) -> str:
    """Return a small square of a colour."""
    return f'<svg viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" fill="{_css(color)}"/></svg>'


def _css(color: Rgb) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in color)


def percent(part: int, whole: int) -> str:
    """Return a share as text."""
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def duration(seconds: float) -> str:
    """Return a time to read.

    Example:
        >>> duration(5.2), duration(75), duration(4000)
        ('5 s', '1 min 15 s', '1 h 06 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


PICTURE_SIDE = 320
MANY = 60
SIDE_OF_MANY = 200
"""Longest side in pixels of a picture, and where there are more than that many slides."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

COLUMNS = (
    ("#", "order", "number index"),
    ("", "", "picture"),
    ("slide", "text", "name"),
    ("nuclei", "number", "number"),
    ("types", "", "types"),
    ("per mm²", "number", "number"),
    ("tissue mm²", "number", "number"),
    ("µm/px", "number", "number"),
    ("time", "number", "number"),
)
"""Heading, kind of order (none where it cannot be sorted) and class of each column."""


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
    folder = Path(path).parent
    colors = type_colors(outcomes)
    style, script = (
        files("cellvit.inference.cohort").joinpath(f"report.{s}").read_text(encoding="utf-8") for s in ("css", "js")
    )
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    done = [outcome for outcome in outcomes if outcome.error is None]
    with atomic_text(path) as stream:
        stream.write(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f"<style>\n{style}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1>{_origin(done)}</header>\n"
        )
        stream.write(_failures(failed) + _totals(done, failed, colors))
        stream.writelines(_table(outcomes, colors, folder))
        stream.write(f"<script>\n{script}</script>\n</body>\n</html>\n")


def _origin(done: Sequence[SlideOutcome]) -> str:
    """Return a line on what the numbers are from."""
    models = dict.fromkeys(_model(outcome.summary or {}) for outcome in done)
    named = ", ".join(escape(model) for model in models if model)
    parts = [f"Model {named}" if named else "", f"cellvit {escape(version('cellvit-lightning'))}"]
    parts.append(f"written {datetime.now().astimezone():%Y-%m-%d %H:%M}")
    return f'<p class="soft">{" · ".join(part for part in parts if part)}</p>'


def _model(summary: Mapping[str, Any]) -> str:
    model = summary.get("model") or {}
    licence = model.get("licence")
    return str(model.get("name") or "") + (f" ({licence})" if licence else "")


def _failures(failed: Sequence[SlideOutcome]) -> str:
    if not failed:
        return ""
    items = "".join(
        f"<li><b>{escape(outcome.path.name)}</b> <span class=soft>{escape(str(outcome.path.parent))}</span><br>"
        f"{escape(outcome.error or '')}{_trace(outcome)}</li>\n"
        for outcome in failed
    )
    return (
        f'<section class="failed">\n<h2>{len(failed):,} {"slide" if len(failed) == 1 else "slides"} failed</h2>\n'
        "<p>Mend what the errors say, then run the same command again: slides that are done are kept, and a slide that "
        f"was begun goes on where it stopped.</p>\n<ul>\n{items}</ul>\n</section>\n"
    )


def _trace(outcome: SlideOutcome) -> str:
    if outcome.trace is None:
        return ""
    return (
        "<details><summary>This error was not foreseen; what to report</summary>"
        f"<pre>{escape(outcome.trace)}</pre></details>"
    )


def _totals(done: Sequence[SlideOutcome], failed: Sequence[SlideOutcome], colors: Mapping[str, Rgb]) -> str:
    numbers = [numbers_of(outcome) for outcome in done]
    nuclei, by_type, tissue = _sums(numbers)
    facts = [("slides done", f"{len(done):,}", ""), ("nuclei", f"{nuclei:,}", "")]
    if failed:
        facts.insert(1, ("failed", f"{len(failed):,}", ' class="bad"'))
    if tissue:
        facts += [("tissue", f"{tissue:,.1f} mm²", ""), ("nuclei per mm²", f"{nuclei / tissue:,.0f}", "")]
    facts.append(("computing time", duration(sum(n.seconds for n in numbers)), ""))
    listed = "".join(f"<div><dt>{name}</dt><dd{kind}>{value}</dd></div>" for name, value, kind in facts)
    legend = "".join(
        f"<li>{swatch(color)}{escape(name)} <b>{by_type[name]:,}</b> "
        f'<span class="soft">{percent(by_type[name], nuclei)}</span></li>'
        for name, color in colors.items()
    )
    types = (
        f"<section>\n<h2>Types of nuclei</h2>\n{type_bar(by_type, colors)}\n"
        f'<ul class="legend">{legend}</ul>\n</section>\n'
    )
    return f'<section>\n<dl class="facts">{listed}</dl>\n</section>\n' + (types if colors else "")


def _sums(numbers: Iterable[SlideNumbers]) -> tuple[int, Counter[str], float]:
    """Return the nuclei of all slides, those by type, and the area of the tissue."""
    nuclei, by_type, tissue = 0, Counter[str](), 0.0
    for item in numbers:
        nuclei += item.nuclei or 0
        by_type.update(item.by_type)
        tissue += item.tissue_mm2 or 0.0
    return nuclei, by_type, tissue


def _table(outcomes: Sequence[SlideOutcome], colors: Mapping[str, Rgb], folder: Path) -> Iterable[str]:
    if not outcomes:
        yield '<section><p class="soft">There are no slides.</p></section>\n'
        return
    heads = "".join(
        f'<th scope="col" class="{kind}"{f" data-kind={order}" if order else ""}>{name}</th>'
        for name, order, kind in COLUMNS
    )
    yield (
        '<section>\n<div class="tools"><input type="search" placeholder="Find a slide" aria-label="Find a slide">'
        "</div>\n"
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n"
    )
    side = PICTURE_SIDE if len(outcomes) <= MANY else SIDE_OF_MANY
    for index, outcome in enumerate(outcomes, start=1):
        yield _row(index, outcome, colors, folder, side)
    nuclei, by_type, tissue = _sums(map(numbers_of, outcomes))
    density = nuclei / tissue if tissue else None
    cells = [
        *("<td></td>" * 2, '<td class="name">All slides</td>', number_cell("nuclei", nuclei, f"{nuclei:,}")),
        f'<td class="types">{_types(by_type, colors)}</td>',
        number_cell("per mm²", density, "" if density is None else f"{density:,.0f}"),
        *(number_cell("tissue mm²", tissue, f"{tissue:,.2f}"), "<td></td>" * 2),
    ]
    yield f"</tbody>\n<tfoot><tr>{''.join(cells)}</tr></tfoot>\n</table>\n</section>\n"


def _row(index: int, outcome: SlideOutcome, colors: Mapping[str, Rgb], folder: Path, side: int) -> str:
    numbers = numbers_of(outcome)
    failed = outcome.error is not None
    uri = None if failed else picture_uri(outcome.out, side=side)
    image = f'<img src="{uri}" alt="{escape(outcome.path.name)}" decoding="async">' if uri else ""
    found = next((name for name in PICTURES if uri and (outcome.out / name).exists()), None)
    picture = f'<a href="{_link(outcome.out / found, folder)}">{image}</a>' if found else image
    types = '<span class="bad">failed</span>' if failed else _types(numbers.by_type, colors)
    cells = [
        number_cell("#", index, str(index), kind="number index"),
        f'<td class="picture">{picture}</td>',
        f'<td class="name" data-value="{escape(outcome.path.name)}">{_name(outcome, folder)}</td>',
        number_cell("nuclei", numbers.nuclei, shown(numbers.nuclei, ",")),
        f'<td class="types">{types}</td>',
        number_cell("per mm²", numbers.density, shown(numbers.density, ",.0f")),
        number_cell("tissue mm²", numbers.tissue_mm2, shown(numbers.tissue_mm2, ",.2f")),
        number_cell("µm/px", numbers.mpp, shown(numbers.mpp, ".4g")),
        number_cell("time", numbers.seconds, duration(numbers.seconds)),
    ]
    return f"<tr>{''.join(cells)}</tr>\n"


def _name(outcome: SlideOutcome, folder: Path) -> str:
    """Return the name of a slide with links to its files, what the list says of it, and warnings."""
    summary = outcome.summary or {}
    listed = {**(summary.get("files") or {}), **({"summary": "summary.json"} if summary else {})}
    links = "".join(
        f'<a href="{_link(outcome.out / file, folder)}">{escape(kind)}</a> ' for kind, file in listed.items()
    )
    extra = "".join(f"<span>{escape(k)}: {escape(v)}</span> " for k, v in outcome.extra.items() if v)
    warnings = "".join(f'<div class="warning">{escape(str(text))}</div>' for text in summary.get("warnings") or ())
    name = escape(outcome.path.name)
    named = f'<a href="{_link(outcome.out, folder)}/">{name}</a>' if summary else f"<b>{name}</b>"
    parts = [(extra, "extra"), (links, "files")]
    return named + "".join(f'<div class="{kind}">{text}</div>' for text, kind in parts if text) + warnings


def _link(target: Path, folder: Path) -> str:
    return escape(quote(relative(target, folder)))


def _types(by_type: Mapping[str, int], colors: Mapping[str, Rgb]) -> str:
    total = sum(by_type.values())
    if not total:
        return ""
    shares = [f"<span>{escape(name)} {percent(by_type[name], total)}</span>" for name in colors if by_type.get(name)]
    return f"{type_bar(by_type, colors)}<p>{' · '.join(shares)}</p>"
