"""Square nuclei on a grid, in the folder of a slide's results."""

import json

import numpy as np

from cellvit.io.parquet import write_parquet
from cellvit.types import Nuclei

STEP, SIDE, ACROSS = 30, 10, 5
SIZE = 160
CENTRES = np.array([(20 + STEP * column, 20 + STEP * row) for row in range(ACROSS) for column in range(ACROSS)], float)


def squares(centres=CENTRES, *, mpp=0.5, side=SIDE):
    """Nuclei of one size."""
    centres = np.asarray(centres, np.float64).reshape(-1, 2)
    half, count = side / 2, len(centres)
    ring = np.array([(-half, -half), (-half, half), (half, half), (half, -half)])
    return Nuclei(
        centroid=centres,
        bbox=np.concatenate([centres - half, centres + half], axis=1),
        type=np.ones(count, np.int32),
        type_prob=np.full(count, 0.5, np.float32),
        contour_offsets=np.arange(count + 1) * 4,
        contour_points=(centres[:, None] + ring).reshape(-1, 2),
        label=np.arange(1, count + 1, dtype=np.int32),
        mpp=mpp,
    )


def write_result(folder, nuclei=None, **facts):
    """Write the table of a slide of 160 px and return its folder."""
    folder.mkdir(exist_ok=True)
    facts = {"image": "slide.svs", "width": SIZE, "height": SIZE, **facts}
    write_parquet(squares() if nuclei is None else nuclei, folder / "nuclei.parquet", metadata=facts)
    return folder


def feature(geometry, name, kind="annotation", **more):
    """A feature of QuPath."""
    classification = {} if name is None else {"classification": {"name": name}}
    return {
        "type": "Feature",
        "properties": {"objectType": kind, **classification},
        "geometry": geometry,
        **more,
    }


def point(x, y):
    return {"type": "Point", "coordinates": [x, y]}


def box(left, top, right, bottom):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {"type": "Polygon", "coordinates": [ring]}


def write_geojson(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}), encoding="utf-8")
    return path
