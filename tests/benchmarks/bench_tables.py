"""Time Parquet with embeddings beside GeoPandas' `to_parquet` for the same rows, and GeoJSON; print one JSON object.

Ours checks every outline and writes outlines and polygons; GeoPandas gets frames that are made before, with valid
polygons, and embeddings as lists or as one column each. Processor seconds, turn by turn.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import geopandas
import numpy as np
import pandas
import pyarrow

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.drawn_nuclei import draw_ellipses

from cellvit.io import write_geojson, write_parquet
from cellvit.postprocess import nuclei_from_instances
from cellvit.types import Nuclei


def drawn(tiles, width):
    """Return nuclei of some tiles of 1024 px, 800 each, with embeddings of noise."""
    one = nuclei_from_instances(draw_ellipses(800, (1024, 1024), seed=0)).nuclei
    nuclei = Nuclei.concatenate([one] * tiles)
    noise = np.random.default_rng(0).normal(size=(len(nuclei), width)).astype(np.float32)
    return replace(nuclei, embedding=noise)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    nuclei = drawn(options.tiles, 256)
    frame = nuclei.to_geopandas()
    lists = frame.assign(embedding=list(nuclei.embedding))
    wide = pandas.concat([frame, pandas.DataFrame(nuclei.embedding).add_prefix("e")], axis=1)
    wide = geopandas.GeoDataFrame(wide, geometry="geometry")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nuclei.parquet"
        runs = {
            "ours": lambda: write_parquet(nuclei, path),
            "geopandas, lists": lambda: lists.to_parquet(path, compression="zstd"),
            "geopandas, columns": lambda: wide.to_parquet(path, compression="zstd"),
            "geojson": lambda: write_geojson(nuclei, Path(folder) / "nuclei.geojson"),
        }
        seconds = {name: [] for name in runs}
        for repeat in range(options.repeats + 1):
            for name, run in runs.items():
                start = time.process_time()
                run()
                if repeat:  # the first round warms up
                    seconds[name].append(time.process_time() - start)
    report = {"benchmark": "tables", "nuclei": len(nuclei), "pyarrow": pyarrow.__version__}
    report["geopandas"] = geopandas.__version__
    report["cpu_seconds"] = {name: round(median(values), 3) for name, values in seconds.items()}
    report["ours over geopandas"] = {
        name: round(median(a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)), 2)
        for name in runs
        if name.startswith("geopandas")
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
