"""Folders with ``instanseg.pt`` and ``rdf.yaml``, which QuPath's InstanSeg extension runs, as models of ours.

The file is TorchScript: a program. It runs only if the user says so, see :data:`TRUST`.
"""

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cellvit.classes import default_classes
from cellvit.errors import WeightsError
from cellvit.io.provenance import sha256
from cellvit.plugins.trust import TRUST_VARIABLE, trusted_packages
from cellvit.postprocess.measure import nuclei_from_instances
from cellvit.types import INSTANCE_MAP, NUCLEI_TYPE_MAP, NucleiClasses, NucleiPrediction
from cellvit.weights.licences import announce_model

SCRIPT, DESCRIPTION = "instanseg.pt", "rdf.yaml"
TRUST = "torchscript"
"""What the user trusts to let a file of TorchScript run."""

CLASSES, LOGITS = "detection_classes", "detection_logits"
PERCENTILES = (0.1, 99.9)
CLIPPED = (-0.5, 1.5)
SIDE = 1024
"""Longest side in pixels of the picture whose percentiles scale the colours."""

USUAL_MPP = 1.0
_MAX_DESCRIPTION = 2**20


def is_instanseg(path: str | Path) -> bool:
    """Return whether a path is such a folder, or the script in one."""
    folder = _folder(path)
    return (folder / SCRIPT).is_file() and not (folder / "config.json").exists()


class InstanSegModel:
    """A folder of the InstanSeg extension as a :class:`cellvit.inference.protocol.NucleiModel`.

    Colours are scaled by percentiles of the whole image as QuPath does it; those of a tile where nobody told which
    image it is of.

    Args:
        path: The folder.
        trust: Must name :data:`TRUST`, as the script is a program that runs with the rights of the user.

    Attributes:
        classes: Types that the description names; ``Nucleus`` alone where it names none.
        mpp: Resolution that the description states.
        about: Name, version and licence in the description.
        settings: Digests of both files, by which results know their model.

    Raises:
        WeightsError: If a file is missing or damaged, or the script is not trusted.
        ConfigError: If ``trust`` is no list of names.
    """

    training = False

    def __init__(self, path: str | Path, *, trust: Sequence[str] = ()) -> None:
        folder = _folder(path)
        script = folder / SCRIPT
        if TRUST not in trusted_packages(trust):
            raise WeightsError(
                f"{str(script)!r} is TorchScript, a program that would run with your rights; if you trust who made "
                f"it, pass trust=[{TRUST!r}] or set the environment variable {TRUST_VARIABLE}={TRUST}"
            )
        stated = _read_description(folder / DESCRIPTION)
        self.mpp = _mpp(stated, folder / DESCRIPTION)
        self._matrix, names = _types(stated, folder / DESCRIPTION)
        self.classes: NucleiClasses = default_classes(len(names) + 1, names=["Background", *names])
        facts = {"name": stated.get("name"), "version": stated.get("version"), "licence": stated.get("license")}
        self.about = {name: str(fact) for name, fact in facts.items() if fact}
        self.settings = {"script": sha256(script), "description": sha256(folder / DESCRIPTION)}
        try:
            with warnings.catch_warnings():
                # torch means those who write TorchScript; the format is QuPath's, and we only read it
                warnings.filterwarnings("ignore", ".*torch.jit.load.* is deprecated")
                self._script = torch.jit.load(str(script), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except Exception as error:  # a damaged archive fails in any way
            raise WeightsError(f"{str(script)!r} is no TorchScript or is damaged ({_line(error)})") from error
        self.device = torch.device("cpu")
        self._name = str(script)
        self._range: tuple[Tensor, Tensor] | None = None
        announce_model(self.about, folder.name)

    def to(self, device: torch.device) -> Self:
        """Move the script."""
        self._script.to(device)
        self.device = torch.device(device)
        return self

    def train(self, mode: bool = True) -> Self:
        """Return itself: a script has no training mode that is of use here."""
        return self

    def fitted_to(self, picture: NDArray[np.uint8]) -> Self:
        """Return the model with the colours of an image.

        Args:
            picture: ``(h, w, 3)`` RGB, all of the image or slide, at any resolution.
        """
        fitted = copy(self)
        fitted._range = _percentiles(small(picture))
        return fitted

    @torch.inference_mode()
    def predict_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Return the labels of images, and the type of every pixel that has one.

        Args:
            image: ``(B, 3, H, W)`` float in [0, 1].

        Returns:
            ``instance_map`` and ``nuclei_type_map``, ``(B, 1, H, W)`` int32.

        Raises:
            WeightsError: If the script fails, or what it returns breaks the contract.
        """
        found = [self._run(tile) for tile in image]
        return {
            INSTANCE_MAP: torch.stack([labels for labels, _ in found]),
            NUCLEI_TYPE_MAP: torch.stack([types for _, types in found]),
        }

    def postprocess(self, maps: Mapping[str, NDArray[Any]]) -> NucleiPrediction:
        """Return the nuclei of one image: the largest piece of each label, holes filled, as QuPath traces them."""
        labels, types = (np.asarray(maps[name])[0].astype(np.int32) for name in (INSTANCE_MAP, NUCLEI_TYPE_MAP))
        return nuclei_from_instances(labels, type_map=types, classes=self.classes)

    def _run(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (one.to(tile.device)[:, None, None] for one in self._range or _of_tile(tile))
        scaled = ((tile - low) / (high - low + 1e-6 / 255)).clamp(*CLIPPED)
        try:
            with torch.autocast(tile.device.type, enabled=False):
                outputs = self._script(scaled[None].float())
        except Exception as error:  # a program of others fails in any way
            shape = "x".join(map(str, tile.shape[1:]))
            raise WeightsError(f"{self._name!r} fails on a tile of {shape} px ({_line(error)})") from error
        results = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
        labels = self._labels(results, tuple(tile.shape[1:]))
        types = self._lookup(results, int(labels.max()) if labels.numel() else 0)
        return labels[None], types.to(labels.device)[labels.long()][None]

    def _labels(self, results: Sequence[Any], shape: tuple[int, ...]) -> Tensor:
        first = results[0] if results else None
        values = first.reshape(-1, *first.shape[-2:]) if isinstance(first, Tensor) and first.ndim in (3, 4) else None
        if values is None or tuple(values.shape[1:]) != shape or len(values) not in (1, 2):
            what = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise WeightsError(f"{self._name!r} returns labels {what} for a tile {shape}; it breaks the contract")
        nuclei = values[0].float()  # of two channels the second are cells
        if not bool(((nuclei >= 0) & (nuclei == nuclei.round()) & (nuclei <= nuclei.numel())).all()):
            raise WeightsError(
                f"{self._name!r} returns labels that are no whole numbers from 0; it breaks the contract"
            )
        return nuclei.to(torch.int32)

    def _lookup(self, results: Sequence[Any], highest: int) -> Tensor:
        """Return the type of every label, ``(N + 1,)``."""
        types = torch.zeros(highest + 1, dtype=torch.int32)
        types[1:] = 1
        if self._matrix is None or not highest:
            return types
        place, kind = self._matrix
        matrix = results[place] if place < len(results) else None
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or len(matrix) < highest or not matrix.shape[1]:
            what = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise WeightsError(f"{self._name!r} returns {kind} {what} for {highest} labels; it breaks the contract")
        rows = matrix[:highest].float().cpu()
        chosen = rows[:, 0] if kind == CLASSES else rows.argmax(1).float()
        if not bool(((chosen >= 0) & (chosen < len(self.classes) - 1) & (chosen == chosen.round())).all()):
            raise WeightsError(
                f"{self._name!r} returns the class {chosen.max():g}, but {DESCRIPTION} names {len(self.classes) - 1}"
            )
        types[1:] = chosen.to(torch.int32) + 1
        return types


def fitted(model: Any, picture: ArrayLike) -> Any:
    """Return a model for one image: one that scales colours by all of it learns them now, others stay as they are.

    Args:
        model: Any model.
        picture: ``(h, w, 3)`` uint8 RGB, the whole image or slide.
    """
    return model.fitted_to(np.asarray(picture)) if isinstance(model, InstanSegModel) else model


def small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture whose longer side has at most :data:`SIDE` pixels."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _folder(path: str | Path) -> Path:
    return Path(path).parent if Path(path).name == SCRIPT else Path(path)


def _percentiles(picture: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    low, high = np.percentile(picture.reshape(-1, 3), PERCENTILES, axis=0) / 255
    return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)


def _of_tile(tile: Tensor) -> tuple[Tensor, Tensor]:
    pixels = (tile * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return _percentiles(small(pixels))


def _read_description(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_DESCRIPTION:
            raise WeightsError(f"{str(path)!r} has more than {_MAX_DESCRIPTION:,} bytes; it is no model description")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise WeightsError(
            f"{str(path)!r} cannot be read ({_line(error)}); a folder of InstanSeg has {SCRIPT} and {DESCRIPTION}"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{str(path)!r} holds a {type(content).__name__}, no model description of bioimage.io")
    return content


def _mpp(stated: Mapping[str, Any], path: Path) -> float:
    """Return µm per pixel; the mean of both axes, which differ in no model that is known."""
    steps = _steps_of_qupath(stated) or _scales_of_axes(stated)
    if len(steps) != 2:
        raise WeightsError(
            f"{str(path)!r} states no pixel size, for which QuPath would take {USUAL_MPP:g} µm; state it: 'step' in "
            "config.qupath.axes (format 0.4), or 'scale' of the axes x and y of the output (0.5)"
        )
    mpp = sum(steps) / 2
    if not 0.01 <= mpp <= 100 or max(steps) > 1.05 * min(steps):
        raise WeightsError(f"{str(path)!r} states pixels of {steps[0]:g} x {steps[1]:g} µm, which cannot be used")
    return mpp


def _steps_of_qupath(stated: Mapping[str, Any]) -> list[float]:
    axes = _inside(stated, "config", "qupath", "axes")
    found = [_number(axis.get("step")) for axis in axes if isinstance(axis, dict)] if isinstance(axes, list) else []
    return [step for step in found[:2] if step is not None]


def _scales_of_axes(stated: Mapping[str, Any]) -> list[float]:
    axes = [axis for output in _outputs(stated) for axis in _list(output.get("axes")) if isinstance(axis, dict)]
    by_id = {str(axis.get("id")): _number(axis.get("scale")) for axis in reversed(axes) if axis.get("id") in ("x", "y")}
    return [scale for scale in (by_id.get("x"), by_id.get("y")) if scale is not None]


def _types(stated: Mapping[str, Any], path: Path) -> tuple[tuple[int, str] | None, list[str]]:
    """Return place and kind of the matrix that states types, and their names; untyped nuclei have one name."""
    for kind in (CLASSES, LOGITS):
        for place, output in enumerate(_outputs(stated)):
            if not str(output.get("id") or output.get("name")).startswith(kind):
                continue
            data = output.get("data") or output.get("data_description")
            names = [str(name) for name in _list(data.get("values"))] if isinstance(data, dict) else []
            if not names or len(names) > 1000 or len(set(names)) < len(names):
                raise WeightsError(
                    f"{str(path)!r} names the classes of {kind} {names[:5]}; 'values' of its data description must be "
                    "their names, each once"
                )
            return (place, kind), names
    return None, ["Nucleus"]


def _outputs(stated: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [output for output in _list(stated.get("outputs")) if isinstance(output, dict)]


def _inside(content: Any, *names: str) -> Any:
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1][:200]}"
