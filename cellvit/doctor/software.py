"""Checks of packages: versions, whether they load, what the optional ones bring, and plug-ins of others."""

import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from cellvit.doctor.finding import Finding, first_line, noted

OURS = "cellvit-lightning"
SECTION = "software"

LOADED = {
    "numpy": "numpy",
    "scipy": "scipy.ndimage",
    "torch": "torch",
    "torchvision": "torchvision",
    "opencv-python-headless": "cv2",
    "scikit-image": "skimage.segmentation",
    "shapely": "shapely",
    "pyarrow": "pyarrow.parquet",
    "pillow": "PIL.Image",
    "safetensors": "safetensors.torch",
    "tifffile": "tifffile",
    "imagecodecs": "imagecodecs",
    "openslide-python": "openslide",
    "lightning": "lightning",
    "timm": "timm",
    "torchmetrics": "torchmetrics",
}
"""Packages that find nuclei, and a module of each whose import shows that its compiled parts load."""

EXTRAS = {
    "lora": "fine-tune large encoders with adapters",
    "cluster": "spread slides over a Dask cluster: cellvit segment --cluster",
    "spatial": "write h5ad and SpatialData: cellvit segment --formats h5ad,spatialdata",
    "classify": "train types of your own: cellvit classify",
    "view": "look at slides and nuclei in a browser: cellvit view",
    "remote": "read slides at addresses: s3://, gs://, https://",
    "export": "write models as ONNX: cellvit export --to onnx",
    "formats": "read DICOM, OME-Zarr and CZI, write ImageJ, COCO, DICOM and others, make frames, read .mat of MATLAB",
}
"""What the optional packages of the project are for, by the name of the extra."""

DEVELOPERS = ("dev", "docs")
"""Extras that nobody needs to find nuclei."""

_OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


class Needed(NamedTuple):
    """A requirement of the project: the extra it belongs to, or an empty text."""

    extra: str
    requirement: Requirement


def requirements() -> list[Needed]:
    """Return what the installed project asks for."""
    found = []
    for line in requires(OURS) or ():
        requirement = Requirement(line)
        marker = str(requirement.marker) if requirement.marker else ""
        extra = marker.rpartition("extra ==")[2].strip("\"' ") if "extra ==" in marker else ""
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found.append(Needed(extra, requirement))
    return found


def check_versions() -> Iterator[Finding]:
    """Yield one finding for each package the project needs, and one for each extra."""
    where = str(Path(__file__).parents[1])
    ours = version(OURS)
    yield Finding(SECTION, "cellvit", "ok", f"{ours} in {where}", facts={"version": ours, "folder": where})
    system = f"{platform.python_version()} on {platform.platform()}"
    facts = {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()}
    yield Finding(SECTION, "python", "ok", system, facts=facts)
    needed = requirements()
    for extra, requirement in needed:
        if not extra:
            yield _package(requirement)
    for extra in dict.fromkeys(item.extra for item in needed if item.extra and item.extra not in DEVELOPERS):
        yield _extra(extra, [item.requirement for item in needed if item.extra == extra])
    yield from _rivals()


def check_loading() -> Iterator[Finding]:
    """Yield a problem for each package that is installed and cannot be imported."""
    for name, module in LOADED.items():
        if _version(name) is None:
            continue  # reported as missing
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # compiled parts raise OSError, SystemError and others
            yield Finding(SECTION, name, "problem", f"does not load: {first_line(error)}", _reloading(name, error))


def check_plugins() -> Iterator[Finding]:
    """Yield what other packages bring, and a problem for each plug-in that cannot be used."""
    from cellvit.plugins.listing import REGISTRIES, plugin_rows

    rows = plugin_rows(list(REGISTRIES))
    others = [row for row in rows if row["distribution"] != OURS]
    for row in (row for row in rows if row["error"]):
        text = f"{row['kind']} of {row['distribution']} {row['version']} cannot be used: {row['error']}"
        facts = {key: row[key] for key in ("kind", "class", "distribution", "version", "error")}
        yield Finding("plug-ins", row["name"], "problem", text, f"repair or uninstall {row['distribution']}", facts)
    names = ", ".join(f"{row['name']} ({row['distribution']})" for row in others if not row["error"])
    text = f"{len(rows) - len(others)} of cellvit; of other packages: {names or 'none'}"
    yield Finding("plug-ins", "parts of models", "ok", text)


def _package(requirement: Requirement) -> Finding:
    found = _version(requirement.name)
    wanted = f"'{requirement.name}{requirement.specifier}'"
    facts = {"version": found, "needs": str(requirement.specifier)}
    if found is not None and requirement.specifier.contains(found, prereleases=True):
        return Finding(SECTION, requirement.name, "ok", found, facts=facts)
    text = "is missing" if found is None else f"{found}, but {requirement.specifier} is needed"
    return Finding(SECTION, requirement.name, "problem", text, f"pip install {wanted}", facts)


def _extra(extra: str, wanted: list[Requirement]) -> Finding:
    found = {item.name: _version(item.name) for item in wanted}
    lacking = [
        f"{item.name}{item.specifier}"
        for item in wanted
        if not (text := found[item.name]) or not item.specifier.contains(text, prereleases=True)
    ]
    text, advice = ", ".join(f"{name} {there}" for name, there in found.items()), ""
    if lacking:
        text, advice = f"not here: {', '.join(lacking)}", f"from a checkout, pip install '.[{extra}]'"
        advice = f"to {EXTRAS[extra]}: {advice}" if extra in EXTRAS else advice
    return noted(SECTION, f"extra {extra}", text, advice, {"versions": found})


def _rivals() -> Iterator[Finding]:
    """Yield a note if several packages bring OpenCV, which overwrite each other's files."""
    others = [name for name in _OPENCV if _version(name) is not None]
    if others and _version("opencv-python-headless") is not None:
        text = f"{', '.join(others)} and opencv-python-headless are the same files twice; the last installed counts"
        advice = f"if cv2 fails: pip uninstall -y {' '.join(others)}, then reinstall opencv-python-headless"
        yield Finding(SECTION, "OpenCV", "note", text, advice)


def _reloading(name: str, error: BaseException) -> str:
    if "libGL" in str(error) or "libgthread" in str(error):
        return "pip uninstall -y opencv-python opencv-contrib-python opencv-python-headless, then pip install " + name
    if "numpy" in str(error) and name != "numpy":
        return f"it was built for another numpy: pip install --upgrade --force-reinstall {name}"
    return f"pip install --upgrade --force-reinstall {name}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
