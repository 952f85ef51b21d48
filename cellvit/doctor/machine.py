"""Checks of the machine: cores, threads, memory, folders, graphics cards."""

import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cellvit.doctor.finding import Finding, Status, first_line, noted
from cellvit.io.format import readable_size

SECTION = "machine"
LOW_MEMORY = 4 * 10**9
"""Bytes: a process with the network takes one to two gigabytes and each worker more than half of one."""
LOW_DISK = 5 * 10**9
"""Bytes: a slide with a million nuclei takes about two gigabytes, and as much again while it runs."""
LOW_CARD = 2 * 10**9
"""Bytes: the network and a batch of tiles take about as much of a graphics card."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "SLURM_CPUS_PER_TASK")
_DRIVER = Path("/proc/driver/nvidia/version")


def check_machine() -> Iterator[Finding]:
    """Yield cores, threads, vector instructions and memory."""
    import torch

    from cellvit.inference.resources import cpu_quota
    from cellvit.inference.settings import available_cores, default_workers

    cores, there, quota = available_cores(), os.cpu_count() or 1, cpu_quota()
    workers = default_workers("cuda" if torch.cuda.is_available() else "cpu")
    facts = {"usable": cores, "machine": there, "quota": quota, "default_workers": workers}
    text = f"{cores} usable of {there}; {workers} post-processing worker{'s' if workers > 1 else ''} by default"
    advice = ""
    if quota is not None and quota < 0.9 * cores:
        text += f", but a container limits them to {quota:g}"
        advice = f"pass --workers {max(1, round(quota) - 1)} and set OMP_NUM_THREADS={max(1, round(quota))}"
    yield noted(SECTION, "cores", text, advice, facts)
    yield _threads(torch.get_num_threads(), cores)
    yield _vectors(torch.backends.cpu.get_cpu_capability())
    yield _memory()


def check_folders() -> Iterator[Finding]:
    """Yield whether the temporary folder and the current one can be written, and their free space."""
    for name, folder, needed in (
        ("temporary folder", Path(tempfile.gettempdir()), True),
        ("current folder", Path.cwd(), False),
    ):
        free = shutil.disk_usage(folder).free
        text, facts = f"{folder}: {readable_size(free)} free", {"folder": str(folder), "free": free}
        reason = _why_not_writable(folder)
        if reason:
            advice = "set TMPDIR to a folder you may write to" if needed else "results need another --out"
            status: Status = "problem" if needed else "note"
            yield Finding(SECTION, name, status, f"{text}, not writable ({reason})", advice, facts)
        else:
            advice = "free some space, or see what a slide takes with: cellvit plan SLIDE" if free < LOW_DISK else ""
            yield noted(SECTION, name, f"{text}, writable", advice, facts)


def check_devices() -> Iterator[Finding]:
    """Yield one finding for each graphics card, after a small computation on it, or why there is none."""
    import torch

    count = torch.cuda.device_count()
    build = f"torch {torch.__version__}"
    for number in range(count):
        yield _cuda(number)
    if count == 0:
        yield _without_cuda(build, torch.version.cuda)
    if torch.backends.mps.is_available():
        yield _computes(
            "mps", _wrong_result("mps"), "Apple GPU, computes", "pass --device cpu, and update torch and macOS"
        )
    yield _computes("cpu", _wrong_result("cpu"), "computes", "reinstall torch for this processor")


def _computes(name: str, reason: str, text: str, advice: str) -> Finding:
    """Return that a device computes, or the reason why it does not with what to do."""
    return Finding("devices", name, "problem", reason, advice) if reason else Finding("devices", name, "ok", text)


def _threads(threads: int, cores: int) -> Finding:
    given = {name: os.environ[name] for name in _THREADS if name in os.environ}
    told = ", ".join(f"{name}={value}" for name, value in given.items())
    text, advice = f"the network uses {threads} on the CPU" + (f" ({told})" if told else ""), ""
    if threads > cores:
        text, advice = f"{text}, more than the {cores} cores", f"set OMP_NUM_THREADS={cores}"
    elif cores > 1 and threads < cores // 2:
        text, advice = f"{text}, {cores} cores are usable", "unset OMP_NUM_THREADS for one slide"
    return noted(SECTION, "threads", text, advice, {"torch": threads, "environment": given})


def _vectors(level: str) -> Finding:
    text, advice = f"{level} on {platform.machine()}", ""
    if level == "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        text += ": no AVX2"
        advice = "on a CPU the network is many times slower than with AVX2; use another machine or a GPU"
    return noted(SECTION, "vector instructions", text, advice, {"level": level, "processor": platform.machine()})


def _memory() -> Finding:
    from cellvit.inference.resources import free_memory, total_memory

    free, total = free_memory(), total_memory()
    text = "the system does not say what is free" if free is None else f"{readable_size(free)} free"
    text += f" of {readable_size(total)}" if total else ""
    is_low = free is not None and free < LOW_MEMORY
    advice = "close other programs, or pass --workers 1 --batch-size 1 --tile-size 512" if is_low else ""
    return noted(SECTION, "memory", text, advice, {"free": free, "total": total})


def _why_not_writable(folder: Path) -> str:
    probe = folder / f".cellvit-{secrets.token_hex(8)}"
    try:
        probe.write_bytes(bytes(65536))
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _cuda(number: int) -> Finding:
    import torch

    name = f"cuda:{number}"
    try:
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
    except Exception as error:  # a broken driver raises whatever it likes
        return Finding("devices", name, "problem", first_line(error), "see nvidia-smi; pass --device cpu meanwhile")
    facts: dict[str, Any] = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "free": free,
        "total": total,
    }
    text = f"{properties.name}, {readable_size(free)} free of {readable_size(total)}"
    reason = _wrong_result(name)
    if reason:
        built = ", ".join(torch.cuda.get_arch_list())
        advice = (
            f"it has capability {facts['capability']}, torch is built for {built}; if that is not among them install "
            "another build of torch, else restart the driver; pass --device cpu meanwhile"
        )
        return Finding("devices", name, "problem", f"{text}: {reason}", advice, facts)
    advice = "another program uses it (nvidia-smi shows which); pass another --device, or --tile-size 512"
    return noted("devices", name, f"{text}, computes", advice if free < LOW_CARD else "", facts)


def _without_cuda(build: str, cuda: str | None) -> Finding:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = _DRIVER.exists() or shutil.which("nvidia-smi") is not None
    facts = {"torch_cuda": cuda, "driver": present, "CUDA_VISIBLE_DEVICES": hidden}
    if not present:
        return Finding("devices", "cuda", "ok", f"no NVIDIA driver here; the CPU is used ({build})", facts=facts)
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}"
        return Finding("devices", "cuda", "note", text, "unset CUDA_VISIBLE_DEVICES to use the GPU", facts)
    lack, advice = "finds no GPU", f"run nvidia-smi; the driver must be new enough for CUDA {cuda}, and a container"
    advice += " needs the GPU passed in"
    if cuda is None:
        lack, advice = "has no CUDA", "install a CUDA build of torch: https://pytorch.org/get-started/locally"
    return Finding("devices", "cuda", "problem", f"an NVIDIA driver is here, but {build} {lack}", advice, facts)


def _wrong_result(device: str) -> str:
    """Return what is wrong with a convolution and a product on a device, or an empty text."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image, kernel = (torch.randn(shape, generator=generator) for shape in ((1, 3, 32, 32), (8, 3, 3, 3)))

    def compute(where: str) -> torch.Tensor:
        maps = torch.nn.functional.conv2d(image.to(where), kernel.to(where), padding=1).flatten(2)[0]
        return (maps @ maps.T).cpu()

    try:
        found = compute(device)
    except Exception as error:  # CUDA errors are RuntimeErrors, AcceleratorErrors and others
        return f"does not compute: {first_line(error)}"
    # in float64 on the CPU, so that the CPU too is held against something; GPUs may round factors to ten bits
    exact = torch.nn.functional.conv2d(image.double(), kernel.double(), padding=1).flatten(2)[0]
    wanted = exact @ exact.T
    if not torch.allclose(found.double(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max())):
        return "computes wrong numbers"
    return ""
