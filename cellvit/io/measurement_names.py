"""What QuPath calls the measurements that both know, and what people read in place of names of columns."""

import re
from collections.abc import Iterator

_SHAPE = {"solidity": "Nucleus: Solidity", "circularity": "Nucleus: Circularity"}
_LENGTHS = {
    "perimeter": "Nucleus: Length",
    "feret_max": "Nucleus: Max diameter",
    "feret_min": "Nucleus: Min diameter",
}
_UNITS = {"um": "µm", "px": "px"}
_PLACES = {"": "Nucleus", "ring_": "Cytoplasm"}
_BEFORE = "_before"
_SPOKEN = {
    "classification": ("Type", ""),
    "type_prob": ("Probability of the type", ""),
    "nearest_um": ("Nearest nucleus", "µm"),
    "nearest_px": ("Nearest nucleus", "px"),
}
_WORDS = {"glcm": "GLCM", "sd": "SD", "p10": "10th percentile", "p90": "90th percentile"}
_READABLE_UNITS = {
    "um": "µm",
    "um2": "µm²",
    "px": "px",
    "px2": "px²",
    "rad": "rad",
    "per_um": "1/µm",
    "per_px": "1/px",
}
_UNIT = re.compile(rf"(\w+?)_({'|'.join(_READABLE_UNITS)})")
_WITHIN = re.compile(r"(\w+)_([\d.]+)(um|px)")
_STATISTICS = {"mean": "Mean", "sd": "Std.Dev.", "median": "Median"}


def _pairs() -> Iterator[tuple[str, str]]:
    yield from _SHAPE.items()
    for unit, shown in _UNITS.items():
        yield f"area_{unit}2", f"Nucleus: Area {shown}^2"
        yield from ((f"{ours}_{unit}", f"{theirs} {shown}") for ours, theirs in _LENGTHS.items())
    for stain in ("hematoxylin", "eosin"):
        for place, region in _PLACES.items():
            for ours, theirs in _STATISTICS.items():
                yield f"{stain}_{place}{ours}", f"{stain.title()}: {region}: {theirs}"
    yield "delaunay_neighbors", "Delaunay: Num neighbors"


_QUPATH = dict(_pairs())
_OURS = {theirs: ours for ours, theirs in _QUPATH.items()}


def qupath_name(name: str) -> str:
    """Return what QuPath calls a measurement of ours; the same where it has no name of its own.

    Example:
        >>> qupath_name("area_um2"), qupath_name("eosin_ring_mean"), qupath_name("glcm_contrast")
        ('Nucleus: Area µm^2', 'Eosin: Cytoplasm: Mean', 'glcm_contrast')
    """
    return _QUPATH.get(name, name)


def name_from_qupath(name: str) -> str:
    """Return our name of a measurement of QuPath; the same where we have none.

    Example:
        >>> name_from_qupath("Nucleus: Length µm"), name_from_qupath("Cell: Area µm^2")
        ('perimeter_um', 'Cell: Area µm^2')
    """
    return _OURS.get(name, name)


def readable_name(name: str) -> tuple[str, str]:
    """Return what people read in place of the name of a column, and the unit of its numbers; empty without one.

    Example:
        >>> readable_name("area_um2"), readable_name("neighbors_25um"), readable_name("glcm_energy")
        (('Area', 'µm²'), ('Neighbors within 25 µm', ''), ('GLCM energy', ''))
    """
    if name in _SPOKEN:
        return _SPOKEN[name]
    if name.endswith(_BEFORE):  # of the model, where a classifier gave other types
        label, unit = readable_name(name.removesuffix(_BEFORE))
        return f"{label} (before)", unit
    if within := _WITHIN.fullmatch(name):
        return f"{_sentence(within[1])} within {within[2]} {_UNITS[within[3]]}", ""
    found = _UNIT.fullmatch(name)
    return (_sentence(found[1]), _READABLE_UNITS[found[2]]) if found else (_sentence(name), "")


def _sentence(name: str) -> str:
    text = " ".join(_WORDS.get(word, word) for word in name.split("_") if word)
    return text[:1].upper() + text[1:]
