"""How the benchmarks time one function, and where."""

import os
import time

from cellvit.inference.precision import processor_flags, processor_name


def timed(function, repeats):
    """Return wall and processor seconds of every repeat, and the last result."""
    wall, cpu, result = [], [], None
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        result = function()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return wall, cpu, result


def processor():
    """Return name and cores of the processor, and which instructions for matrices and halves it says it has."""
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in processor_flags()]
    return {"name": processor_name(), "cores": os.cpu_count(), "has": has}
