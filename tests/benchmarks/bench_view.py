"""How long the viewer's server takes, and its memory, on a drawn slide of 40,000 x 40,000 px with a million nuclei.

    python tests/benchmarks/bench_view.py [--folder FOLDER] [--side 40000] [--nuclei 1000000]

The server is a process of its own. ``cpu_ms`` is its processor time for a request, which another load on the machine
changes little; ``ms`` is what the client waits. ``memory_mb`` is its resident memory, ``peak_mb`` the most there was.
"""

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from timing import processor
from view_slide import write_results

TOKEN = "bench"
SERVE = """
import sys, uvicorn
from cellvit.viewer.app import create_app
uvicorn.run(create_app([sys.argv[1]], token=sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), log_level="error")
"""
REPEATS = 5


@contextmanager
def served(results):
    """Yield the process of a server for some results, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(results), TOKEN, str(port)])
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield psutil.Process(server.pid), port
    finally:
        server.terminate()
        server.wait()


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", f"/t/{TOKEN}/{path}")
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def cpu(process):
    times = process.cpu_times()
    return times.user + times.system


def timed(process, port, path, *, repeats=1):
    """Return the mean times of a request in milliseconds."""
    waited, worked = time.perf_counter(), cpu(process)
    for number in range(repeats):
        status, content = get(port, path if repeats == 1 else f"{path}{'&' if '?' in path else '?'}v={number}")
    factor = 1000 / repeats
    return {
        "status": status,
        "bytes": len(content),
        "ms": round((time.perf_counter() - waited) * factor, 1),
        "cpu_ms": round((cpu(process) - worked) * factor, 1),
    }


def requests_of(port):
    """Return what is asked for, by name, and how often."""
    slide = json.loads(get(port, "api/slides")[1])["slides"][0]["id"]
    facts = json.loads(get(port, f"api/slides/{slide}")[1])
    one = f"api/slides/{slide}"
    top, zoom = facts["image"]["max_level"], facts["nuclei"]["max_zoom"]
    return one, {
        "density of the slide": f"{one}/density/0/0_0",
        "density with a filter": f"{one}/density/0/0_0?area_um2.min=30&classes=1,2",
        "50,000 points of the slide": f"{one}/points/0/0_0?limit=50000",
        "points with a column": f"{one}/points/{zoom - 4}/3_3?column=area_um2",
        "5,000 outlines": f"{one}/outlines/{zoom - 4}/3_3?limit=5000",
        "5,000 outlines with a column": f"{one}/outlines/{zoom - 4}/4_3?limit=5000&column=area_um2",
        "small tile of outlines": f"{one}/outlines/{zoom - 2}/20_20",
        "counts in view": f"{one}/counts?box=9000,9000,14000,14000",
        "a nucleus": f"{one}/nuclei/500000",
        "nucleus at a place": f"{one}/at?x=20000&y=20000",
        "thumbnail": f"{one}/thumbnail.jpg",
        "image, full resolution": f"{one}/image/{top}/20_20.jpg",
        "image, between levels": f"{one}/image/{top - 1}/10_11.jpg",
    }


def pan(port, one, facts):
    """Ask for the tiles of a screen again and again, as somebody does who moves over the slide."""
    top, zoom = facts["image"]["max_level"], facts["nuclei"]["max_zoom"]
    side = facts["width"] // 512
    paths = [
        path
        for step in range(0, max(1, side - 4), 2)
        for place in ((step, step), (step + 1, step), (step, step + 1), (step + 1, step + 1))
        for path in (
            f"{one}/image/{top}/{place[0]}_{place[1]}.jpg",
            f"{one}/image/{top - 1}/{place[0] // 2}_{place[1] // 2}.jpg",
            f"{one}/outlines/{zoom - 1}/{place[0]}_{place[1]}",
        )
    ]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda path: get(port, path)[0], paths))
    return {"requests": len(paths), "not_200": sum(status != 200 for status in statuses)}


def memory(process):
    peak = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    return {"memory_mb": round(process.memory_info().rss / 1e6), "peak_mb": round(int(peak.split()[1]) * 1.024e-3)}


def measure(results):
    for old in results.glob("*.outlines.npy"):
        old.unlink()
    report = {}
    with served(results) as (process, port):
        report["started"] = memory(process)
        slide = json.loads(get(port, "api/slides")[1])["slides"][0]["id"]
        report["first facts"] = timed(process, port, f"api/slides/{slide}")
        report["first density"] = timed(process, port, f"api/slides/{slide}/density/0/0_0")
        report["memory before outlines"] = memory(process)
        waited, worked = time.perf_counter(), cpu(process)
        while get(port, f"api/slides/{slide}/outlines/8/100_100")[0] == 503:
            time.sleep(0.2)
        report["outlines prepared, once"] = {
            "s": round(time.perf_counter() - waited, 1),
            "cpu_s": round(cpu(process) - worked, 1),
            **memory(process),
        }
    with served(results) as (process, port):
        slide = json.loads(get(port, "api/slides")[1])["slides"][0]["id"]
        report["opened again, facts"] = timed(process, port, f"api/slides/{slide}")
        one, wanted = requests_of(port)
        facts = json.loads(get(port, one)[1])
        report["requests"] = {
            name: {"cold": timed(process, port, path), "warm": timed(process, port, path, repeats=REPEATS)}
            for name, path in wanted.items()
        }
        report["after requests"] = memory(process)
        report["panned"] = {**pan(port, one, facts), **memory(process)}
        with ThreadPoolExecutor(100) as pool:
            path = f"{one}/points/3/2_2?limit=5000"
            found = list(pool.map(lambda number: get(port, f"{path}&v={number}")[0], range(100)))
        report["a hundred at once"] = {"not_200": sum(status != 200 for status in found), **memory(process)}
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps the drawn slide, and takes the one that is there")
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        results = folder / "results"
        if not results.exists():
            write_results(folder, side=options.side, nuclei=options.nuclei)
        print(json.dumps({"processor": processor(), **measure(results)}, indent=2))


if __name__ == "__main__":
    main()
