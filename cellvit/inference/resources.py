"""CPU and memory limits of the machine or container."""

import ctypes
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import psutil

from cellvit.errors import ConfigError

# psutil knows the machine; what a container may use of it stands in its control group, of version 2 or 1
_CGROUP = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of glibc's mallopt: bytes that may stay free at the end of the heap, and how many blocks may lie outside it."""
_USUAL = ((_TRIM_THRESHOLD, 2**26), (_MMAP_MAX, 2**16))
_KEPT = ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_MAX, 0))
_uses, _lock = [0], threading.Lock()

_MEMORY = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def free_memory() -> int | None:
    """Return the bytes of memory that this process may still take, or None where the system does not say."""
    limits = ((_bytes(limit), _bytes(used)) for limit, used in _MEMORY)
    free = [max(0, most - taken) for most, taken in limits if most is not None and taken is not None]
    return min([*free, *_machine("available")], default=None)


def total_memory() -> int | None:
    """Return the bytes of memory of the machine, or of the container if it is limited; None if unknown."""
    limits = (_bytes(limit) for limit, _ in _MEMORY)
    return min([*(limit for limit in limits if limit is not None), *_machine("total")], default=None)


def peak_memory() -> int:
    """Return the most bytes of memory this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows, the only system where psutil knows the peak
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let large blocks of memory that are freed stay with this process, for the next of their size; not afterwards.

    The maps of a tile have hundreds of megabytes. glibc gives such blocks back to the system and takes them anew, and
    the system clears them page by page: a sixth of a network's time in float32. The most that is held at a time hardly
    changes. Uses may overlap; on a system without glibc nothing happens.
    """
    _set_uses(1)
    try:
        yield
    finally:
        _set_uses(-1)


def release_memory() -> None:
    """Give memory that is free inside of this process back to the system; without glibc nothing happens."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def _set_uses(change: int) -> None:
    with _lock:
        before, _uses[0] = _uses[0], _uses[0] + change
        if not sys.platform.startswith("linux") or min(before, _uses[0]) > 0:
            return
        library = ctypes.CDLL(None)
        if not hasattr(library, "mallopt"):
            return
        for name, value in _KEPT if change > 0 else _USUAL:
            library.mallopt(name, value)
        if change < 0:
            release_memory()


@contextmanager
def memory_advice(*, tile_size: int, batch_size: int) -> Iterator[None]:
    """Give the ways in which libraries say that there is no memory left the words of what would need less of it.

    Args:
        tile_size: Side of the tiles that are computed, in pixels.
        batch_size: Tiles at a time.

    Raises:
        ConfigError: In place of such an error; others pass.
    """
    try:
        yield
    except (MemoryError, RuntimeError, cv2.error) as error:
        # of torch on the CPU, of torch on a card, of OpenCV
        signs = ("DefaultCPUAllocator", "out of memory", "Insufficient memory")
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in signs):
            raise
        raise ConfigError(
            f"there is not enough memory for tile_size={tile_size} and batch_size={batch_size}; make one of them "
            "smaller, pass fewer workers, or free memory"
        ) from error


def cpu_quota() -> float | None:
    """Return the number of cores whose time a container may use, or None if it is not limited.

    A limit of time is no limit of cores: the process sees all cores of the machine and is stopped when it has used
    up its time.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = " ".join((_CGROUP / name).read_text(encoding="ascii") for name in names).split()
            return None if quota in ("max", "-1") else int(quota) / int(period)
    return None


def _machine(field: str) -> list[int]:
    with suppress(OSError, KeyError, RuntimeError), warnings.catch_warnings():  # where /proc is hidden
        warnings.simplefilter("ignore")  # sandboxes lack lines of /proc/meminfo that are not asked for here
        return [int(getattr(psutil.virtual_memory(), field))]
    return []


def _bytes(name: str) -> int | None:
    """Return a number of bytes of the control group, or None where it is absent, unlimited or beyond any machine."""
    with suppress(OSError, ValueError):
        value = int((_CGROUP / name).read_text(encoding="ascii"))
        return value if value < 2**60 else None
    return None
