"""Seconds and memory of giving a million nuclei other types; run by hand, prints JSON."""

import argparse
import json
import resource
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from cellvit.classes import PANNUKE
from cellvit.classification import TypeClassifier
from cellvit.classification.table import TypedTable, score_table, write_former, write_types
from cellvit.io.parquet import write_parquet_stream
from cellvit.measurement.measure import measured_names
from cellvit.measurement.neighbors import neighbor_columns
from cellvit.types import Nuclei

CORNERS, TILE, PER_TILE = 24, 960, 580


def drawn(count, width, names):
    """Yield nuclei tile by tile, as dense as in tissue, with noise for embeddings and measurements."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = 12 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    columns = int(np.ceil(np.sqrt(count / PER_TILE)))
    for tile, start in enumerate(range(0, count, PER_TILE)):
        number = min(PER_TILE, count - start)
        centroid = (rng.random((number, 2)) + divmod(tile, columns)[::-1]) * TILE
        yield Nuclei(
            centroid=centroid,
            bbox=np.concatenate([centroid - 12, centroid + 12], axis=1),
            type=rng.integers(1, 6, number).astype(np.int32),
            type_prob=rng.random(number).astype(np.float32),
            contour_offsets=np.arange(0, number * CORNERS + 1, CORNERS),
            contour_points=(centroid[:, None] + circle).round(2).reshape(-1, 2),
            label=np.arange(start + 1, start + number + 1, dtype=np.int32),
            embedding=rng.standard_normal((number, width)).astype(np.float32),
            classes=PANNUKE,
            measurements={name: rng.random(number).astype(np.float32) for name in names},
        )


def make(path, count, width, names):
    chunks, facts = drawn(count, width, names), {"base_mpp": 0.25}
    write_parquet_stream(chunks, path, classes=PANNUKE, embedding_dim=width, measurements=names, metadata=facts)


def timed(work):
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    spent = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}
    return found, {name: round(value, 2) for name, value in spent.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--no-measurements", action="store_true")
    parser.add_argument("--features", nargs="+", default=["embedding"])
    options = parser.parse_args()
    names = () if options.no_measurements else (*measured_names(), *neighbor_columns(PANNUKE))
    rng = np.random.default_rng(1)
    parts = sum({"embedding": options.width, "neighborhood": options.width}.get(name, 1) for name in options.features)
    model = TypeClassifier(features=options.features, unsure_below=0.3)
    model.fit(rng.standard_normal((400, parts)).astype(np.float32), np.repeat(["a", "b", "c", "d", "e"], 80))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "nuclei.parquet")
        maker = get_context("spawn").Process(target=make, args=(path, options.nuclei, options.width, names))
        maker.start()  # in a process of its own: its memory does not count
        maker.join()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"nuclei": options.nuclei, "columns": len(names), "bytes": path.stat().st_size}
        table = TypedTable(path)
        scores, found["score"] = timed(lambda: score_table(table, model))
        write = {"about": {"name": "bench"}, "mpp": (0.25, 0.25)}
        _, found["write"] = timed(lambda: write_types(table, scores, model, **write))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["memory_mb"] = {"before": round(before / 1e3), "peak": round(peak / 1e3)}
        _, found["undo"] = timed(lambda: write_former(TypedTable(path)))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
