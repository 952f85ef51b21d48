"""A folder that QuPath's InstanSeg extension runs: a network with its post-processing in TorchScript, described."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from cellvit.errors import ConfigError
from cellvit.export.torchscript import to_torchscript
from cellvit.io.atomic import atomic_folder
from cellvit.io.provenance import sha256
from cellvit.model.network import CellViTNetwork
from cellvit.weights.licences import SPDX, model_licence

SCRIPT_NAME = "instanseg.pt"
DESCRIPTION_NAME = "rdf.yaml"
FORMAT_VERSION = "0.5.4"
CLASSES = "detection_classes"
"""QuPath gives every object the class that a matrix of this name states."""

UNSTATED = "not stated; ask who made the model before you use it"
PAPER = {
    "text": "Hörst et al., CellViT: Vision Transformers for precise cell segmentation and classification, Medical "
    "Image Analysis 94, 2024",
    "doi": "10.1016/j.media.2024.103143",
}

README = """# {name}

Finds, outlines and types cell nuclei in images stained with H&E. Made by cellvit {version} with torch {torch}.

1. Install QuPath 0.6 or newer with the extension InstanSeg 0.1.6 or newer.
2. Move this folder into the folder of models that you have chosen in the extension's window.
3. Open an image whose pixel size is set, annotate a region, choose the model `{folder}` and run it.

| | |
|---|---|
| input | RGB, H&E, {mpp:g} µm per pixel; QuPath resamples |
| result | one detection per nucleus with one of the classes {classes} |
| types learnt on | {learnt_on}; on other tissue they are a guess |
| licence of the weights | {licence} |
| licence of the code in the script | Apache-2.0 |

QuPath stretches the colours of the region before the model sees them. The script brings them back by a guess, so that
results differ a little from those of `cellvit segment`.

For research use. This is no medical device and must not guide the care of a patient.
"""


def export_qupath(model: CellViTNetwork, out: str | Path, *, class_names: Sequence[str] | None = None) -> list[str]:
    """Write a folder that QuPath's InstanSeg extension runs without Python.

    It holds ``instanseg.pt``, ``rdf.yaml`` (a model description of bioimage.io, format 0.5), ``NAME_README.md``,
    ``LICENCE.txt`` and, where the model finds nuclei in a drawn image, that as an example for tests. The script takes
    tiles of any size.

    Args:
        model: What is exported; it stays as it is. Heads ``binary``, ``hv`` and ``nuclei-type``, post-processor
            ``hv-watershed`` or ``hv-torch``, an encoder that takes images of any size while it is traced.
        out: The folder, which must not exist.
        class_names: Names of the types in QuPath, without background; None takes the model's.

    Returns:
        Remarks that the user should read.

    Raises:
        ConfigError: If this model cannot be exported, or the names do not fit it.
        OutputError: If the folder exists or cannot be written.
    """
    classes = _checked_names(model.classes.names[1:], class_names)
    licence = str(model.about.get("licence") or UNSTATED)
    with atomic_folder(out) as folder:
        script = to_torchscript(model)
        (folder / SCRIPT_NAME).write_bytes(script.save_to_buffer())  # torch itself ends the process on a full disk
        examples = _examples(script)
        for tensor, values in examples.items():
            np.save(folder / _tensor_file(tensor), values)
        name = _model_name(model, Path(out))
        text = README.format(
            name=name,
            folder=Path(out).name,
            version=version("cellvit-lightning"),
            torch=torch.__version__,
            mpp=model.mpp,
            classes=", ".join(classes),
            learnt_on=model.classes.learnt_on or "not stated",
            licence=licence,
        )
        (folder / _readme_file(name)).write_text(text, encoding="utf-8")
        (folder / "LICENCE.txt").write_text(_licences(model.about, licence), encoding="utf-8")
        description = _description(model, name=name, classes=classes, script=folder / SCRIPT_NAME)
        for tensor in description["inputs"] + description["outputs"] if examples else []:
            tensor["test_tensor"] = {"source": _tensor_file(tensor["id"])}
        stated = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        (folder / DESCRIPTION_NAME).write_text(stated, encoding="utf-8")
    return _remarks(model)


def _checked_names(own: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """Return the names of the types without background.

    Raises:
        ConfigError: If they are not as many as the model has, or one is empty or there twice.
    """
    names = [str(name).strip() for name in (own if given is None else given)]
    if len(names) != len(own):
        raise ConfigError(
            f"class_names {names} are {len(names)}, but the model has {len(own)} types without background: "
            f"{', '.join(own)}; give one name for each, in this order"
        )
    if not names or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"class_names {names} must be there, different and not empty; give every type a name")
    return names


def _remarks(model: CellViTNetwork) -> list[str]:
    remarks = [
        "QuPath stretches colours before a model sees them; the script undoes it by a guess, so that results differ a "
        "little from those of 'cellvit segment'"
    ]
    if getattr(model.postprocessor, "normalisation", "") == "tile":
        remarks.append(
            "normalisation 'tile' makes nuclei depend on the rest of their tile, and QuPath's tiles are small: "
            "'fixed' does not"
        )
    return remarks


def _examples(script: torch.jit.ScriptModule) -> dict[str, NDArray[Any]]:
    """Return an image and what a script finds in it, by the names of tensors; nothing if that would prove nothing.

    The format takes no outputs that are all 0: no nuclei, or all of the first type.
    """
    image = _drawn_image()
    with torch.inference_mode():
        labels, types = script(torch.from_numpy(image))
    if not (labels.any() and types.any()):
        return {}
    return {"image": image, "labels": labels.numpy(), CLASSES: types.byte().numpy()}


def _drawn_image() -> NDArray[np.float32]:
    """Return a few nuclei as QuPath gives them to a model, ``(1, 3, H, W)``."""
    image = np.full((128, 192, 3), (232, 205, 224), np.uint8)
    image[:, 176:] = 244  # glass
    for number in range(24):
        centre = 16 + number % 6 * 28, 16 + number // 6 * 31
        cv2.ellipse(image, centre, (6 + number % 4, 5), 37 * number, 0, 360, (96, 60, 128), -1, cv2.LINE_AA)
    blurred = np.asarray(cv2.GaussianBlur(image, (5, 5), 0), np.float32)
    low, high = np.percentile(blurred.reshape(-1, 3), (0.1, 99.9), axis=0)
    scaled = np.clip((blurred - low) / (high - low + 1e-6), -0.5, 1.5)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def _model_name(model: CellViTNetwork, out: Path) -> str:
    """Return the name of the model in letters that the format and file systems allow."""
    name = re.sub(r"[^\w-]+", "-", str(model.about.get("name") or out.name)).strip("-")
    return f"{name or 'cellvit'}-nuclei"


def _licences(about: Mapping[str, Any], licence: str) -> str:
    facts = "".join(f"{key}: {fact}\n" for key, fact in about.items() if fact is not None)
    return (
        f"Weights: {licence}\n\nWhat the model states of itself:\n\n{facts}\nCode inside of {SCRIPT_NAME}: Apache-2.0\n"
    )


def _readme_file(name: str) -> str:
    """Return what the extension calls the page that it shows about a model."""
    return f"{name}_README.md"


def _tensor_file(name: str) -> str:
    return f"example_{name}.npy"


def _description(model: CellViTNetwork, *, name: str, classes: Sequence[str], script: Path) -> dict[str, Any]:
    """Return the content of ``rdf.yaml``."""
    licence = model_licence(model.about)
    spdx = licence.id if licence is not None and licence.id in SPDX else None
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": name,
        "description": f"Nuclei in H&E: outlines and the types {', '.join(classes)}",
        "version": version("cellvit-lightning"),
        "authors": [{"name": "cellvit"}],
        "cite": [PAPER],
        **({"license": spdx} if spdx else {}),
        "documentation": {"source": _readme_file(name)},
        "attachments": [{"source": "LICENCE.txt"}],
        "tags": ["histology", "nuclei", "instance-segmentation", "pytorch"],
        "inputs": [
            {
                "id": "image",
                "description": "RGB, each channel stretched from its percentiles 0.1 and 99.9 to 0 and 1",
                "axes": [
                    {"type": "batch", "size": 1},
                    # without names, which a channel axis would need; it is what QuPath reads the number of channels of
                    {"type": "index", "id": "index", "size": 3},
                    *(_space(axis, {"min": 64, "step": 1}, model.mpp) for axis in "yx"),
                ],
                "data": {"type": "float32", "range": [-0.5, 1.5]},
            }
        ],
        "outputs": [
            {
                "id": "labels",
                "description": "Nuclei 1 to N; 0 is background",
                "axes": [
                    {"type": "batch", "size": 1},
                    {"type": "channel", "channel_names": ["nuclei"]},
                    *(_space(axis, {"tensor_id": "image", "axis_id": axis}, model.mpp) for axis in "yx"),
                ],
                "data": {"type": "float32", "range": [0, None]},
            },
            {
                "id": CLASSES,
                "description": "Row k is the class of the nucleus k + 1, by its place in the names; float32",
                "axes": [
                    {"type": "index", "id": "index", "size": {"min": 1}},
                    {"type": "channel", "channel_names": ["class"]},
                ],
                "data": {"type": "uint8", "values": list(classes)},  # the format has no floats for names
            },
        ],
        "weights": {
            "torchscript": {
                "source": script.name,
                "sha256": sha256(script),
                "pytorch_version": torch.__version__.partition("+")[0],
            }
        },
    }


def _space(axis: str, size: Mapping[str, Any], mpp: float) -> dict[str, Any]:
    return {"type": "space", "id": axis, "unit": "micrometer", "scale": float(mpp), "size": dict(size)}
