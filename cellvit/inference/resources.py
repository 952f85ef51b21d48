"""What the machine has to give: memory and processor time, as a container or a cluster limits them."""

import os
import sys
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory() -> int | None:
    """Return the bytes of memory that this process may still take, or None where the system does not say."""
    bounds = [_meminfo("MemAvailable"), _free_in_container()]
    if bounds == [None, None] and sys.platform == "win32":
        return _free_on_windows()
    return min((bound for bound in bounds if bound is not None), default=None)


def total_memory() -> int | None:
    """Return the bytes of memory of the machine, or of the container if it is limited; None if unknown."""
    bounds = [_limit("memory.max"), _limit("memory/memory.limit_in_bytes")]
    with suppress(ValueError, OSError, AttributeError):  # not on Windows
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min((bound for bound in bounds if bound is not None), default=None)


def peak_memory() -> int:
    """Return the most bytes of memory this process has held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_quota() -> float | None:
    """Return the number of cores whose time a container may use, or None if it is not limited.

    A limit of time is no limit of cores: the process sees all cores of the machine and is stopped when it has used
    up its time.
    """
    with suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text(encoding="ascii")
        period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text(encoding="ascii")
        return None if int(quota) < 0 else int(quota) / int(period)
    return None


def _free_in_container() -> int | None:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, taken = _limit(limit), _limit(used)
        if most is not None and taken is not None:
            return max(0, most - taken)
    return None


def _limit(name: str) -> int | None:
    """Return a number of bytes of the control group, or None where it is absent, unlimited or beyond any machine."""
    with suppress(OSError, ValueError):
        value = int((_CGROUP / name).read_text(encoding="ascii"))
        return value if value < 2**60 else None
    return None


def _meminfo(name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _free_on_windows() -> int | None:
    import ctypes

    class _Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", *"abcde")),
        ]

    status = _Status()
    status.length = ctypes.sizeof(status)
    library = getattr(ctypes, "windll", None)
    if library is None or not library.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.free)
