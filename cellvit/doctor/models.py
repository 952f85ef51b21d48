"""Checks of models: which weights are here, and whether the model of the package finds nuclei."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from cellvit.doctor.finding import Finding
from cellvit.io.format import readable_size
from cellvit.weights.catalogue import BUNDLED, MODEL, Entry, entries
from cellvit.weights.locate import WEIGHTS_VARIABLE, find_weights, hub_cache, weights_folder

SECTION = "models"
_REINSTALL = "from a checkout: pip install --force-reinstall --no-deps ."


def check_weights() -> Iterator[Finding]:
    """Yield the weights that are here, and where weights are looked for."""
    known = entries()
    if not any(entry.folder is not None and entry.folder.parent == BUNDLED for entry in known):
        yield Finding(SECTION, "package", "problem", f"no model lies in {BUNDLED}", _REINSTALL)
    absent = []
    for entry in known:
        found = _weights(entry)
        if found is None:
            absent.append(entry)
        else:
            yield found
    for kind in dict.fromkeys(entry.kind for entry in absent):
        names = [entry.name for entry in absent if entry.kind == kind]
        text = f"{', '.join(names)}; 'cellvit models NAME' says how to get one"
        label = "models not here" if kind == MODEL else "encoders not here"
        yield Finding(SECTION, label, "ok", text, facts={"names": names})
    yield from _places()


def check_network() -> Iterator[Finding]:
    """Yield whether the smallest model loads and finds the nuclei of a drawn tile."""
    import numpy as np

    from cellvit.inference.image import segment_image
    from cellvit.weights.licences import LicenceNotice

    tile = np.full((256, 256, 3), (236, 214, 228), np.uint8)
    row, column = np.mgrid[:256, :256]
    for y, x in ((60, 60), (60, 190), (190, 125)):
        tile[(row - y) ** 2 + (column - x) ** 2 < 13**2] = (98, 62, 140)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LicenceNotice)
        found = segment_image(tile, model="nano", device="cpu", precision="32-true")
    seconds = time.perf_counter() - started
    facts = {"nuclei": len(found), "seconds": round(seconds, 3)}
    if len(found) != 3:
        text = f"nano finds {len(found)} of 3 drawn nuclei"
        advice = f"weights or torch are damaged; {_REINSTALL}, and reinstall torch"
        yield Finding(SECTION, "network", "problem", text, advice, facts)
        return
    yield Finding(SECTION, "network", "ok", "nano finds the 3 nuclei of a drawn tile on the CPU", facts=facts)


def check_precision() -> Iterator[Finding]:
    """Yield what precision ``"auto"`` stands for here with the smallest model."""
    from cellvit.inference.precision import choose_precision
    from cellvit.inference.protocol import load_model
    from cellvit.weights.licences import LicenceNotice

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LicenceNotice)
        model = load_model("nano")
    chosen = choose_precision("auto", model)
    text = f"auto is {chosen.name} for nano on {model.device}, {chosen.reason}"
    advice = f"update torch, or pass --precision {chosen.name}" if chosen.notes else ""
    yield Finding(SECTION, "precision", "note" if advice else "ok", text, advice, chosen.facts())


def _weights(entry: Entry) -> Finding | None:
    file = find_weights(entry)
    if file is None:
        if entry.folder is None:
            return None
        return Finding(SECTION, entry.name, "problem", f"its weights are not in {entry.folder}", _REINSTALL)
    facts = {"path": str(file.path), "place": file.place, "bytes": file.size}
    text = f"{entry.kind}, {readable_size(file.size)} in {file.path.parent}"
    if file.size == 0:
        return Finding(SECTION, entry.name, "problem", f"{file.path} is an empty file", "fetch it again", facts)
    return Finding(SECTION, entry.name, "ok", text, facts=facts)


def _places() -> Iterator[Finding]:
    folder, cache = weights_folder(), hub_cache()
    if folder is None:
        yield Finding(SECTION, WEIGHTS_VARIABLE, "ok", "not set; it can name a folder of weight files")
    elif not _is_folder(folder):
        advice = f"make the folder, or set {WEIGHTS_VARIABLE} to the one that holds the weight files"
        yield Finding(SECTION, WEIGHTS_VARIABLE, "problem", f"{folder} is no folder that can be read", advice)
    else:
        yield Finding(SECTION, WEIGHTS_VARIABLE, "ok", str(folder), facts={"folder": str(folder)})
    there = "" if _is_folder(cache) else " (not there yet)"
    yield Finding(SECTION, "cache of the hub", "ok", f"{cache}{there}", facts={"folder": str(cache)})


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
