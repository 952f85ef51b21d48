"""The memory of a process and its children over time, and its picture."""

import math
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from PIL import Image, ImageDraw

from cellvit.plotting.legend import font_of

_COLORS = {"rss": (226, 140, 50), "pss": (64, 116, 180)}
_PAPER, _INK, _GREY = (255, 255, 255), (30, 30, 30), (205, 205, 205)


@dataclass
class MemorySampler:
    """Samples, while it is open, the memory of this process and all its children.

    The resident set (RSS) counts pages that processes share once for each; the proportional set (PSS, Linux only)
    counts them once, so its sum is what the machine has to have.

    Attributes:
        interval: Seconds between samples.
        seconds: When the samples were taken, from the opening.
        rss: Sum over the processes, bytes.
        pss: Sum over the processes, bytes; 0 where the system does not tell.
        processes: How many there were.
    """

    interval: float = 0.5
    seconds: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    pss: list[int] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)

    def __enter__(self):
        self._started, self._closed = time.perf_counter(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *stop):
        self._closed.set()
        self._thread.join()
        self._sample()

    def now(self):
        """Return the seconds since the opening."""
        return time.perf_counter() - self._started

    def peak(self, name, first=0.0, last=float("inf")):
        """Return the largest ``"rss"`` or ``"pss"`` between two moments, in MB (10^6 bytes); None without samples."""
        values = [v for t, v in zip(self.seconds, getattr(self, name), strict=True) if first <= t <= last]
        return round(max(values) / 1e6, 1) if any(values) else None

    def _run(self):
        while True:
            self._sample()
            if self._closed.wait(self.interval):
                return

    def _sample(self):
        me = psutil.Process()
        sizes = [size for process in (me, *me.children(recursive=True)) if (size := _size(process)) is not None]
        self.seconds.append(self.now())
        self.rss.append(sum(size[0] for size in sizes))
        self.pss.append(sum(size[1] for size in sizes))
        self.processes.append(len(sizes))


def _size(process):
    """Return RSS and PSS of a process in bytes, or None if it has ended."""
    try:
        rss = process.memory_info().rss
        if not Path("/proc/self/smaps_rollup").exists():
            return rss, 0
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return rss, sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (psutil.Error, OSError):
        return None


def draw_memory(sampler, marks, path, *, title, size=(1400, 700)):
    """Draw memory over time as a PNG.

    Args:
        sampler: Closed.
        marks: Names of the stages and the second each began at.
        path: The file.
        title: Of the picture.
        size: Of the picture in pixels.
    """
    image = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(image), font_of(20)
    left, top, right, bottom = 110, 100, size[0] - 30, size[1] - 70
    end = max(sampler.seconds[-1], 1e-9)
    unit = _round_step(max(sampler.rss) / 1e6)
    highest = unit * math.ceil(max(sampler.rss) / 1e6 / unit)

    def at(second, megabytes):
        return left + (right - left) * second / end, bottom - (bottom - top) * megabytes / highest

    draw.text((left, 15), title, fill=_INK, font=font_of(26))
    for step in range(round(highest / unit) + 1):
        y = at(0, step * unit)[1]
        draw.line((left, y, right, y), fill=_GREY)
        draw.text((left - 10, y), f"{step * unit:,.0f} MB", fill=_INK, font=font, anchor="rm")
    tick = _round_step(end)
    for step in range(int(end / tick) + 1):
        x = at(step * tick, 0)[0]
        draw.text((x, bottom + 10), f"{step * tick:g} s", fill=_INK, font=font, anchor="mt")
    for place, (name, second) in enumerate(marks.items()):
        x = at(second, 0)[0]
        draw.line((x, top, x, bottom), fill=(150, 150, 150), width=2)
        draw.text((min(x + 6, right - font.getlength(name)), top + 4 + 24 * place), name, fill=_INK, font=font)
    for place, (name, color) in enumerate(_COLORS.items()):
        values = getattr(sampler, name)
        if any(values):
            points = [at(t, v / 1e6) for t, v in zip(sampler.seconds, values, strict=True)]
            draw.line(points, fill=color, width=3)
            text = f"{name.upper()} of all processes, peak {max(values) / 1e6:,.0f} MB"
            draw.text((left + place * 480, 58), text, fill=color, font=font)
    temporary = Path(path).with_suffix(f".{os.getpid()}.png")
    image.save(temporary)
    temporary.replace(path)


def _round_step(span):
    """Return a step of 1, 2 or 5 times a power of ten that divides a span into three to eight."""
    power = 10.0 ** math.floor(math.log10(span / 6))
    return next(step * power for step in (1, 2, 5, 10) if span / (step * power) <= 8)
