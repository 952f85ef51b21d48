"""How the benchmarks time one function."""

import time


def timed(function, repeats):
    """Return wall and processor seconds of every repeat, and the last result."""
    wall, cpu, result = [], [], None
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        result = function()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return wall, cpu, result
