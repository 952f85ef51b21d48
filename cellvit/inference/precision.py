"""The precision a network runs in: what a device can do, and what ``"auto"`` stands for.

``"auto"`` is bfloat16 where the device is faster with it and the model does not forbid it, else float32. Processors say
what they have, which is not always so under virtualisation; so both are timed once, on a small tile, and the result
is kept in the user's cache folder.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellvit.errors import CellViTError, OutputError
from cellvit.inference.acceleration import accelerated_inference
from cellvit.inference.protocol import autocast_context, check_precision, has_bfloat16
from cellvit.inference.resume import ResumeFolder, read_summary
from cellvit.inference.settings import AUTO, PRECISIONS, SlideSettings
from cellvit.io.atomic import atomic_text
from cellvit.io.paths import cache_folder
from cellvit.types import EMBEDDING_MAP

FLOAT32, BFLOAT16 = "32-true", "bf16-mixed"
VARIABLE = "CELLVIT_PRECISION"
"""Environment variable that says what ``"auto"`` stands for on a machine."""

FASTER = 0.9
"""Share of float32's time that bfloat16 may take to be chosen."""
DISTANCE = 0.05
"""Mean difference of a map above which bfloat16 is taken not to work."""
SECONDS = 2.0
"""That timing may take."""

_SIDES = (256, 128, 64)
_ROUNDS = 3
_KEPT = 100


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision that is used.

    Attributes:
        name: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        reason: Why, as half a sentence.
        notes: What the user should know of it; each is a sentence.
    """

    name: str
    reason: str
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, str]:
        """Return name and reason as plain data."""
        return {"name": self.name, "reason": self.reason}


def choose_precision(precision: str, model: Any, *, begun: str | None = None) -> PrecisionChoice:
    """Return the precision that a model is run in.

    Args:
        precision: One of :data:`cellvit.inference.settings.PRECISIONS`.
        model: The model, on its device.
        begun: What an unfinished run was begun in, with which ``"auto"`` goes on; None for one that begins.

    Raises:
        ConfigError: If the device cannot compute in it.
    """
    check_precision(precision, model.device)
    if precision != AUTO:
        return PrecisionChoice(precision, "as asked for")
    stated = os.environ.get(VARIABLE, AUTO) or AUTO
    check_precision(stated, model.device)
    chosen = PrecisionChoice(stated, f"as ${VARIABLE} says") if stated != AUTO else _decided(model)
    if begun in (None, chosen.name):
        return chosen
    check_precision(begun, model.device)
    note = f"it was begun in {begun} and goes on in it; here 'auto' would be {chosen.name}"
    return PrecisionChoice(begun, "as the run was begun", (note,))


def slide_precision(settings: SlideSettings, model: Any, out: Path | None) -> PrecisionChoice:
    """Return the precision in which a slide is done: where that is ``"auto"``, that in which it was begun or finished.

    Args:
        settings: Settings of this run.
        model: The model, on its device.
        out: The result folder; None if there is none.

    Raises:
        ConfigError: If the device cannot compute in it.
    """
    begun: Mapping[str, Any] | None = None
    finished: Mapping[str, Any] | None = None
    if settings.precision == AUTO and out is not None and not settings.overwrite:
        with suppress(OutputError):  # what is damaged is told by whoever needs it
            finished = read_summary(out)
            begun = ResumeFolder(out, settings.work).journal()
    if begun is None and (name := _precision_of(finished)) is not None:
        return PrecisionChoice(name, "as the results were made")
    return choose_precision(settings.precision, model, begun=_precision_of(begun))


def _precision_of(record: Mapping[str, Any] | None) -> str | None:
    """Return the precision that a record of a run states among what its nuclei depend on, or None."""
    with suppress(TypeError, KeyError):
        name = (record or {})["fingerprints"]["settings"]["precision"]
        return name if name in PRECISIONS and name != AUTO else None
    return None


def _decided(model: Any) -> PrecisionChoice:
    """Return what ``"auto"`` stands for, from what the model states, the device says and, if need be, a small tile."""
    device, about = model.device, getattr(model, "about", {})
    stated = about.get("bfloat16") if isinstance(about, Mapping) else None
    if stated is False:
        return PrecisionChoice(FLOAT32, "as the model states that bfloat16 changes its scores")
    if not isinstance(model, nn.Module):
        return PrecisionChoice(FLOAT32, "as nothing is known of this kind of model")
    units = bfloat16_units(device)
    if not units:
        return PrecisionChoice(FLOAT32, f"as the {_called(device)} has no units for bfloat16")
    why, problem = (f"as the {units}", "") if device.type == "cuda" else _measured(model, units)
    if problem:
        return PrecisionChoice(FLOAT32, problem, (f"float32 is used, {problem}",) if "not work" in problem else ())
    note = (
        "bfloat16 is used, which changes values in their third digit; this model does not state that its scores were "
        "measured in it: compare with precision 32-true"
    )
    return PrecisionChoice(BFLOAT16, why, () if stated is True else (note,))


def bfloat16_units(device: torch.device) -> str:
    """Return what a device states that it has for bfloat16, or an empty text.

    Args:
        device: A CPU, a CUDA device from compute capability 8.0 or an Apple GPU under macOS 14 or later may have it.
    """
    if device.type != "cpu":
        return f"{_called(device)} has units for bfloat16" if has_bfloat16(device) else ""
    flags = processor_flags()
    if limit := os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper():  # what the library may not use is not there
        flags &= {"amx_bf16", "avx512_bf16"} if "AMX" in limit else {"avx512_bf16"} if "BF16" in limit else set()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "BF16"}
    return next((f"processor has {text}" for flag, text in names.items() if flag in flags), "")


@cache
def processor_name() -> str:
    """Return the name of the processor, as far as the system says."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@cache
def processor_flags() -> frozenset[str]:
    """Return the instructions that the processor states it has; none where the system does not say."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(field: str) -> str:
    with suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def _called(device: torch.device) -> str:
    return {"cpu": "processor", "cuda": "graphics card", "mps": "Apple GPU"}.get(device.type, device.type)


def _measured(model: nn.Module, units: str) -> tuple[str, str]:
    """Return why bfloat16 is used, or why not: both precisions are timed, once per machine and shape of the network."""
    key, kept = _key(model), _kept_timings()
    times = kept.get(key)
    if not isinstance(times, dict) or not all(isinstance(times.get(n), float) for n in ("share", "distance")):
        try:
            times = time_both(model)
        except (CellViTError, RuntimeError) as error:  # nothing is kept: memory may have been short
            reason = str(error).partition("\n")[0]
            return "", f"as bfloat16 does not work here, though the {units} ({type(error).__name__}: {reason})"
        _keep({**kept, key: times})
    if not times["distance"] <= DISTANCE:
        return "", f"as bfloat16 does not work here, though the {units}: maps differ by {times['distance']:.2g}"
    if times["share"] > FASTER:
        return "", f"as bfloat16 takes {times['share']:.2f} of float32's time here, though the {units}"
    return f"as the {units}, and takes {times['share']:.2f} of float32's time", ""


def time_both(model: Any) -> dict[str, float]:
    """Return the time of bfloat16 over that of float32, ``share``, and the mean difference of maps, ``distance``.

    Args:
        model: The network, on its device; a small tile goes through it for about :data:`SECONDS`.
    """
    with accelerated_inference(model):
        for name in (FLOAT32, BFLOAT16):  # the first call makes the weights ready
            _run(model, name, _SIDES[-1])
        needed = 2 * _ROUNDS * _run(model, FLOAT32, _SIDES[-1])[0]
        side = next((s for s in _SIDES if needed * (s / _SIDES[-1]) ** 2 < SECONDS), _SIDES[-1])
        rounds = range(_ROUNDS if needed < SECONDS else 1)
        runs = [(_run(model, FLOAT32, side), _run(model, BFLOAT16, side)) for _ in rounds]
    exact, rounded = runs[0][0][1], runs[0][1][1]
    distances = [
        float((rounded[name].float() - values).abs().mean()) for name, values in exact.items() if name != EMBEDDING_MAP
    ]
    share = min(pair[1][0] for pair in runs) / min(pair[0][0] for pair in runs)
    return {"share": share, "distance": max(distances, key=lambda value: (value != value, value), default=0.0)}


def _run(model: Any, precision: str, side: int) -> tuple[float, dict[str, Tensor]]:
    """Return the seconds and the maps of one small tile."""
    device = model.device
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    # processor time, as others may use the machine; a GPU's passes elsewhere
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    with autocast_context(precision, device):
        maps = {name: value.float().cpu() for name, value in model.predict_maps(image).items()}
    return max(clock() - started, 1e-9), maps


def _key(model: nn.Module) -> str:
    """Return what the times depend on: the processor, what computes, and the shape of the network."""
    shapes = [f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]
    parts = [type(model).__name__, *shapes, str(next(iter(model.parameters())).device.type), torch.__version__]
    parts += [processor_name(), " ".join(sorted(processor_flags())), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_timings: dict[str, Any] = {}
"""Those of this process, for where the cache folder cannot be written."""


def cache_path() -> Path:
    """Return the file in which timings are kept."""
    return cache_folder() / "precision.json"


def _kept_timings() -> dict[str, Any]:
    with suppress(OSError, ValueError, RuntimeError):
        found = json.loads(cache_path().read_text(encoding="utf-8"))
        return {**found, **_timings} if isinstance(found, dict) else dict(_timings)
    return dict(_timings)


def _keep(timings: Mapping[str, Any]) -> None:
    last = dict(list(timings.items())[-_KEPT:])
    _timings.update(last)
    with suppress(OSError, RuntimeError, CellViTError):  # then they are taken again the next time
        cache_path().parent.mkdir(parents=True, exist_ok=True)
        with atomic_text(cache_path()) as file:
            json.dump(last, file)
