"""The tables of ``cellvit plan``."""

from collections.abc import Iterator
from pathlib import Path

from cellvit.cli.console import Output
from cellvit.cli.info import info_rows, print_facts
from cellvit.inference.plan import SlidePlan
from cellvit.inference.plan.estimate import Range
from cellvit.io.format import readable_size, rough_duration

STAGES = {"read": "reading", "network": "network", "postprocess": "post-processing", "write": "writing"}
SOURCES = {"slide": "stated by the slide", "mpp": "given by --mpp", "magnification": "given by --magnification"}


def print_plan(output: Output, plan: SlidePlan, picture: Path | None) -> None:
    """Print the plan of a slide as a table of labels and sentences.

    Args:
        output: Where to.
        plan: The plan.
        picture: Where its picture was written, or None.
    """
    after = [] if picture is None else [("picture", str(picture))]
    print_facts(output, str(plan.path), _facts(plan), plan.warnings, after=after)


def _facts(plan: SlidePlan) -> Iterator[tuple[str, str]]:
    for label, text in info_rows(plan.info):
        yield label, _resolution(plan) if label == "resolution" else text
    yield "precision", f"{plan.precision.name} on {plan.device}, {plan.precision.reason}"
    yield "searched", _searched(plan)
    yield "tiles", _tiles(plan)
    if plan.started is not None:
        yield "started", _started(plan)
    yield from _needs(plan)


def _resolution(plan: SlidePlan) -> str:
    x, y = plan.resolution.mpp
    mpp = f"{x:.4g}" if x == y else f"{x:.4g} x {y:.4g}"
    text = f"{mpp} µm/px, {SOURCES[plan.resolution.source]}"
    if plan.level == 0 and plan.factor == 1:
        return f"{text}; used as it is for {plan.model} ({plan.model_mpp:g})"
    return f"{text}; level {plan.level} is resampled by {plan.factor:.3g} to {plan.model_mpp:g} for {plan.model}"


def _searched(plan: SlidePlan) -> str:
    how = {"found": "tissue", "found within the region": "tissue within the region", "region": "the region"}
    name = how.get(plan.tissue_source, plan.tissue_source)
    text = f"{name}, {plan.tissue_mm2:,.2f} mm², {plan.tissue_share:.0%} of the scanned part"
    return text if plan.region_mm2 is None else f"{text}; the region of interest has {plan.region_mm2:,.2f} mm²"


def _tiles(plan: SlidePlan) -> str:
    done = f"; {plan.tiles - plan.tiles_left:,} done, {plan.tiles_left:,} left" if plan.tiles_left < plan.tiles else ""
    empty = "; there is nothing to do" if not plan.tiles else ""
    share = plan.whole_tiles / plan.tiles if plan.tiles else 1.0
    cut = f", cut down to {share:.0%} of their pixels" if round(share, 2) < 1 else ""
    return f"{plan.tiles:,} of {plan.tiles_total:,} are searched{cut}{done}{empty}"


def _started(plan: SlidePlan) -> str:
    started = plan.started
    assert started is not None
    folder = str(started.folder)
    if started.differs:
        return f"{folder!r} holds another run, which segment refuses to mix: {'; '.join(started.differs)}"
    if not started.finished:
        return f"{folder!r} was begun; segment goes on there"
    if started.missing:
        return f"{folder!r} is finished; segment adds {', '.join(started.missing)}"
    return f"{folder!r} is finished; segment has nothing to do"


def _needs(plan: SlidePlan) -> Iterator[tuple[str, str]]:
    sample, found = plan.sample, plan.estimate
    if sample is None or found is None:
        if plan.tiles_left:
            yield "needs", "not measured; --sample 2 does"
        return
    stages = ", ".join(f"{STAGES[name]} {sum(span) / 2:.2g} s" for name, span in found.stages.items())
    slowest = {"cores": "the processor, which all share,"}.get(found.slowest, STAGES.get(found.slowest, ""))
    number = len(sample.tiles)
    yield "measured", f"on {number} tile{'s' if number > 1 else ''}, per tile: {stages}; {slowest} decides"
    yield "time", f"{readable_range(found.seconds)} on {plan.device}, post-processing in {_processes(plan.workers)}"
    off = f"; {sample.off_tissue:,} more on these tiles lie off the tissue, left out" if sample.off_tissue else ""
    yield "nuclei", f"{_rounded(found.nuclei.low)} to {_rounded(found.nuclei.high)}{off}"
    free = "" if plan.free_memory is None else f"; {readable_size(plan.free_memory)} free"
    card = "" if found.device_memory is None else f", and {readable_size(found.device_memory)} on {plan.device}"
    yield "memory", f"{readable_size(found.memory)}, {readable_size(found.worker_memory)} of it per worker{card}{free}"
    files = ", ".join(f"{name} {readable_size(round(size.high))}" for name, size in found.files.items())
    low, high, more = (readable_size(round(v)) for v in (*found.disk, found.working_disk.high))
    yield "disk", f"{low} to {high} ({files}), and {more} while it runs; {readable_size(plan.free_disk)} free"


def _processes(workers: int) -> str:
    return "the same process" if not workers else f"{workers} process{'es' if workers > 1 else ''}"


def readable_range(seconds: Range) -> str:
    """Return a range of times as words.

    Example:
        >>> readable_range(Range(70, 4000)), readable_range(Range(3, 3.4))
        ('1 min 10 s to 1 h 7 min', 'about 3 s')
    """
    low, high = (rough_duration(value) for value in seconds)
    return f"about {low}" if low == high else f"{low} to {high}"


def _rounded(count: float) -> str:
    """Return a count with the two digits that mean something."""
    digits = max(0, len(str(int(count))) - 2)
    return f"{round(count, -digits):,.0f}"
