"""What another program must know of an exported network, as plain data."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from cellvit.export.graph import INPUT, MAX_BATCH, MAX_SIDE, MIN_SIDE, Graph
from cellvit.model.network import STRIDE
from cellvit.types import (
    EMBEDDING_MAP,
    HV_MAP,
    NUCLEI_BINARY_MAP,
    NUCLEI_TYPE_MAP,
    OBJECT_PROBABILITY,
    RADIAL_DISTANCES,
    TISSUE_TYPES,
)

FORMAT = "cellvit-export"
SCHEMA = 1
UNSTATED = "not stated"

MEANING: Mapping[str, str] = {
    NUCLEI_BINARY_MAP: "probabilities of background and nucleus",
    HV_MAP: "horizontal and vertical distance to the centre of mass of the nucleus, -1 to 1",
    NUCLEI_TYPE_MAP: "probabilities of the classes",
    TISSUE_TYPES: "probabilities of the tissues",
    OBJECT_PROBABILITY: "probability of being well inside of a nucleus",
    RADIAL_DISTANCES: "pixels to the border of the nucleus along each ray",
    EMBEDDING_MAP: "feature map of the padded image, averaged per nucleus",
}


def facts_of(graph: Graph) -> dict[str, Any]:
    """Return what a file of a graph states of itself; the same stands in the JSON beside it.

    Args:
        graph: What is exported.
    """
    net = graph.module.net
    about = {name: fact for name, fact in net.about.items() if fact is not None}
    maps = graph.trial[1]
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "cellvit_version": version("cellvit-lightning"),
        "name": about.get("name", ""),
        "licence": about.get("licence", UNSTATED),
        "about": about,
        "classes": [
            {"id": number, "name": name, "color": list(color)}
            for number, (name, color) in enumerate(zip(net.classes.names, net.classes.colors, strict=True))
        ],
        "tissues": list(net.tissue_names),
        "mpp": net.mpp,
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "layout": "NCHW",
            "channels": "RGB",
            "range": [0, 255],
            "normalisation": "inside of the graph; give the bytes as they are",
            **_sizes(graph),
        },
        "patch_multiple": STRIDE,
        "padding": f"inside of the graph: to multiples of {STRIDE} px, and maps are cropped again",
        "outputs": {
            name: {"shape": _shape(name, maps[name]), "channels": maps[name].shape[1], "meaning": MEANING.get(name, "")}
            for name in graph.outputs
        },
        "postprocessor": net.settings["postprocessor"],
    }


def _sizes(graph: Graph) -> dict[str, Any]:
    if graph.size is not None:
        return {"batch": 1, "height": graph.size[0], "width": graph.size[1]}
    return {"batch": [1, MAX_BATCH], "height": [MIN_SIDE, MAX_SIDE], "width": [MIN_SIDE, MAX_SIDE]}


def _shape(name: str, values: Any) -> str:
    if values.ndim != 4:
        return "(B, C)"
    return "(B, C, h, w)" if name == EMBEDDING_MAP else "(B, C, H, W)"
