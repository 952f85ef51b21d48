"""Checkpoints of the published implementation of CellViT, translated into our settings and names."""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

import torch

from cellvit.errors import WeightsError
from cellvit.types import HV_MAP, NUCLEI_BINARY_MAP, NUCLEI_TYPE_MAP, TISSUE_TYPES

DEFAULT_MAGNIFICATION = 40
DEFAULT_CHANNEL = 0.5
_X20 = re.compile(r"(?:^|[^a-z0-9])(?:x20|20x)(?:[^a-z0-9]|$)", re.IGNORECASE)


def value_of(config: Mapping[str, Any], name: str) -> Any:
    """Return a setting, None where it is not stated.

    Args:
        config: The settings.
        name: Its name, joined by dots.

    Example:
        >>> value_of({"data.magnification": 20}, "data.magnification")
        20
        >>> value_of({"data": {"magnification": 20}}, "data.magnification")
        20
    """
    if name in config:
        return config[name]
    first, _, rest = name.partition(".")
    inner = config.get(first)
    return value_of(inner, rest) if rest and isinstance(inner, Mapping) else None


def whole_number(config: Mapping[str, Any], name: str, *, least: int) -> int:
    """Return a setting that counts something.

    Args:
        config: The settings.
        name: Path of the setting, its keys joined by dots.
        least: The smallest value that can be used.

    Raises:
        WeightsError: If it is missing, no whole number, or too small.
    """
    value = value_of(config, name)
    if not _is_whole(value) or value < least:
        raise WeightsError(f"has setting {name} {value!r}; it must be a whole number of {least} or more")
    return int(value)


def channel_values(config: Mapping[str, Any], name: str) -> list[float]:
    """Return a value per R, G and B; 0.5 each where the setting is missing, as published.

    Args:
        config: The settings.
        name: Path of the setting, its keys joined by dots; one number stands for three.

    Raises:
        WeightsError: If it is neither one number nor three.
    """
    value = value_of(config, name)
    if value is None:
        value = DEFAULT_CHANNEL
    values = [value] * 3 if _is_number(value) else value
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise WeightsError(f"has setting {name} {value!r}; it must be three numbers, for R, G and B")
    return [float(number) for number in values]


def magnification_of(config: Mapping[str, Any]) -> tuple[int, str]:
    """Return the objective power a network was trained at, 40 or 20, and how that is known.

    Args:
        config: ``data.magnification`` counts, else ``x20`` in ``data.dataset_path``, else 40 is assumed.

    Raises:
        WeightsError: If another one is stated.
    """
    stated = value_of(config, "data.magnification")
    if stated is None:
        path = value_of(config, "data.dataset_path")
        if _X20.search(str(path)):
            return 20, f"as data.dataset_path {str(path)!r} says"
        return DEFAULT_MAGNIFICATION, "assumed, as the file states none"
    digits = re.fullmatch(r"\s*x?\s*(40|20)(?:\.0)?\s*x?\s*", str(stated), re.IGNORECASE)
    if not digits:
        raise WeightsError(f"has setting data.magnification {stated!r}; post-processing is known for 40 and 20")
    return int(digits[1]), "as data.magnification says"


def class_names(config: Mapping[str, Any], count: int) -> list[str] | None:
    """Return the names of the nucleus types, None where the settings have none.

    Args:
        config: The settings; ``dataset_config.nuclei_types`` numbers the names.
        count: Number of names there must be.

    Raises:
        WeightsError: If they are not numbered from 0 to ``count - 1``.
    """
    section = "dataset_config.nuclei_types"
    numbered = _section(config, section)
    names = _in_order(numbered, count)
    if numbered and names is None:
        raise WeightsError(
            f"has setting {section} {numbered!r}, but data.num_nuclei_classes {count}; "
            f"the types must be numbered from 0 to {count - 1}"
        )
    return names


def tissue_names(config: Mapping[str, Any], count: int) -> list[str] | None:
    """Return the names of the tissues: none where they do not fit, None where the settings have none.

    No output of the network depends on them, so a list of another data set's tissues keeps nobody from using it.

    Args:
        config: The settings; ``dataset_config.tissue_types`` numbers the names.
        count: Number of names there should be.
    """
    numbered = _section(config, "dataset_config.tissue_types")
    return (_in_order(numbered, count) or []) if numbered else None


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what stands below a name, by what follows it."""
    inner = value_of(config, name)
    if isinstance(inner, Mapping):
        return {str(key): value for key, value in inner.items()}
    prefix = f"{name}."
    return {str(key).removeprefix(prefix): value for key, value in config.items() if str(key).startswith(prefix)}


def _in_order(numbered: Mapping[str, Any], count: int) -> list[str] | None:
    by_id = {int(value): name for name, value in numbered.items() if _is_whole(value)}
    fits = len(numbered) == count and sorted(by_id) == [*range(count)]
    return [by_id[i] for i in range(count)] if fits else None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


KEYS = {"arch", "config", "model_state_dict"}
SAM_ARCH = "CellViTSAM"
VIT_ARCH = "CellViT256"
PLAIN_ARCH = "CellViT"
WIDTHS = {"vit-256": 384, "sam-b": 768, "sam-l": 1024, "sam-h": 1280}
"""Channels of a token by encoder."""

BRANCHES = {
    NUCLEI_BINARY_MAP: "nuclei_binary_map_decoder",
    HV_MAP: "hv_map_decoder",
    NUCLEI_TYPE_MAP: "nuclei_type_maps_decoder",
}
BINARY_OUTPUT = f"{BRANCHES[NUCLEI_BINARY_MAP]}.decoder0_header.2"
TYPE_OUTPUT = f"{BRANCHES[NUCLEI_TYPE_MAP]}.decoder0_header.2"
POSITION = "encoder.pos_embed"
BLOCKS = "encoder.blocks."


class Released(NamedTuple):
    """A network of the published implementation, in our words.

    Attributes:
        settings: Arguments of :class:`cellvit.model.cellvit.CellViT`.
        state: The tensors under our names; one that has no counterpart keeps its own.
        name_of: Says what the file calls a tensor of ours.
    """

    settings: dict[str, Any]
    state: dict[str, Any]
    name_of: Callable[[str], str]


class Spelling:
    """What the two implementations call the same tensor; a name that has no counterpart stays as it is.

    Args:
        encoder: Name of the network inside our encoder.
        tissue_layer: What a released file calls the layer that tells tissues.

    Example:
        >>> spelling = Spelling(encoder="net", tissue_layer="classifier_head")
        >>> spelling.theirs("decoder.paths.hv_map.levels.3.0.1.bias")
        'hv_map_decoder.decoder3_upsampler.0.block.1.bias'
        >>> spelling.ours("encoder.neck.0.weight")
        'encoder.net.neck.0.weight'
    """

    def __init__(self, *, encoder: str, tissue_layer: str) -> None:
        self.rules = [
            (f"heads.{TISSUE_TYPES}.output.<kind>", f"{tissue_layer}.<kind>"),  # first: it may lie in their encoder
            (f"encoder.{encoder}.<rest>", "encoder.<rest>"),
            ("decoder.skips.<level>.<step>.<layer>.<kind>", "decoder<level>.<step>.block.<layer>.<kind>"),
        ]
        for branch, theirs in BRANCHES.items():
            path = f"decoder.paths.{branch}"
            self.rules += [
                (f"{path}.bottleneck.<kind>", f"{theirs}.bottleneck_upsampler.<kind>"),
                (f"{path}.levels.0.<step>.<layer>.<kind>", f"{theirs}.decoder0_header.<step>.block.<layer>.<kind>"),
                (
                    f"{path}.levels.<level>.<step>.<layer>.<kind>",
                    f"{theirs}.decoder<level>_upsampler.<step>.block.<layer>.<kind>",
                ),
                (f"{path}.levels.<level>.<step>.<kind>", f"{theirs}.decoder<level>_upsampler.<step>.<kind>"),
                (f"heads.{branch}.output.<kind>", f"{theirs}.decoder0_header.2.<kind>"),
            ]

    def ours(self, name: str) -> str:
        """Return what we call a tensor of a released file."""
        return next(filter(None, (_follow(name, theirs, ours) for ours, theirs in self.rules)), name)

    def theirs(self, name: str) -> str:
        """Return what a released file calls a tensor of ours."""
        return next(filter(None, (_follow(name, ours, theirs) for ours, theirs in self.rules)), name)


def _follow(name: str, pattern: str, replacement: str) -> str | None:
    """Return a name in another form, None if it does not have the form of the pattern."""
    found = _compiled(pattern).fullmatch(name)
    return found and re.sub(r"<(\w+)>", lambda field: found[field[1]], replacement)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    fields = {"rest": ".+", "kind": r"\w+"}
    return re.compile(re.sub(r"<(\w+)>", lambda f: f"(?P<{f[1]}>{fields.get(f[1], '[0-9]')})", re.escape(pattern)))


def is_released(content: Any) -> bool:
    """Return whether the content of a file has the form of a released checkpoint."""
    return isinstance(content, Mapping) and set(content) >= KEYS


def read_released(content: Mapping[str, Any], *, source: Mapping[str, str]) -> Released:
    """Return the settings and the tensors of a released checkpoint.

    Where the binary branch has two more channels, for a regression map, they are left out, and ``about`` says so: no
    published step reads that map, and its loss was never added in training.

    Args:
        content: What the file holds; see :func:`is_released`.
        source: Facts about the file that ``about`` shall keep, such as its name.

    Raises:
        WeightsError: If the architecture is not known, or if a setting is missing, cannot be used or contradicts a
            tensor. Other tensors are for the caller to compare with the model, and the file is for it to name.
    """
    arch, config, state = content["arch"], content["config"], content["model_state_dict"]
    config = vars(config) if isinstance(config, argparse.Namespace) else config
    for key, value in (("config", config), ("model_state_dict", state)):
        if not isinstance(value, Mapping):
            raise WeightsError(f"holds a {type(value).__name__} as {key!r}, not names and values; fetch it again")
    state = {str(name): value for name, value in state.items()}
    encoder = _encoder(arch, config, state)
    tissue_layer = "classifier_head" if arch == SAM_ARCH else "encoder.head"
    types = whole_number(config, "data.num_nuclei_classes", least=2)
    tissues = whole_number(config, "data.num_tissue_classes", least=0)
    regression = bool(value_of(config, "model.regression_loss"))
    _check_outputs(state, f"{TYPE_OUTPUT}.weight", types, f"data.num_nuclei_classes {types}")
    _check_outputs(state, f"{BINARY_OUTPUT}.weight", 4 if regression else 2, f"model.regression_loss {regression}")
    if tissues:
        _check_outputs(state, f"{tissue_layer}.weight", tissues, f"data.num_tissue_classes {tissues}")
    magnification, origin = magnification_of(config)
    about: dict[str, Any] = {
        "licence": "CC BY-NC-SA 4.0: that of PanNuke, on which the released weights were trained; "
        "the published code is under Apache-2.0 with Commons Clause",
        "origin": "converted from a checkpoint of the published implementation of CellViT",
        "data": "released files: 90 % of every fold of PanNuke, so scores on PanNuke do not test them",
        "cite": "Hörst et al., CellViT, Medical Image Analysis 94, 2024, DOI 10.1016/j.media.2024.103143",
        "resolution": f"x{magnification}, {origin}",
        "source": {**source, "arch": arch},
    }
    if regression:
        outputs = {f"{BINARY_OUTPUT}.{kind}" for kind in ("weight", "bias")} & set(state)
        state |= {name: state[name][:2] for name in outputs}
        about["left_out"] = f"the regression map, channels 2 and 3 of {BINARY_OUTPUT}"
    settings = {
        "encoder": encoder,
        "num_nuclei_classes": types,
        "num_tissue_classes": tissues,
        "postprocessor": {"class_path": "hv-watershed", "init_args": {"magnification": magnification}},
        "class_names": class_names(config, types),
        "tissue_names": tissue_names(config, tissues),
        "mpp": 10 / magnification,
        "mean": channel_values(config, "transformations.normalize.mean"),
        "std": channel_values(config, "transformations.normalize.std"),
        "about": about,
    }
    spelling = Spelling(encoder="net" if arch == SAM_ARCH else "vit", tissue_layer=tissue_layer)
    ours = {spelling.ours(name): value for name, value in state.items()}
    if len(ours) < len(state):
        raise WeightsError("has two tensors that are the same one of a network; fetch it again")
    return Released(settings, ours, spelling.theirs)


def _encoder(arch: Any, config: Mapping[str, Any], state: Mapping[str, Any]) -> str | dict[str, Any]:
    """Return the spec of the encoder, after a look at its width."""
    if arch == PLAIN_ARCH:
        return _plain_encoder(config, state)
    if arch == VIT_ARCH:
        name, said = "vit-256", f"architecture {arch!r}"
    elif arch == SAM_ARCH:
        backbone = value_of(config, "model.backbone")
        name, said = str(backbone).lower(), f"setting model.backbone {backbone!r}"
        if name not in WIDTHS or not name.startswith("sam-"):
            raise WeightsError(f"has {said}; architecture {arch!r} knows SAM-B, SAM-L and SAM-H")
    else:
        raise WeightsError(f"has the unknown architecture {arch!r}; {_about_architecture(str(arch))}")
    _check_width(state, WIDTHS[name], said)
    return name


def _plain_encoder(config: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a plain ViT whose sizes the settings state."""
    width, depth, heads = (
        whole_number(config, f"model.{name}", least=1) for name in ("embed_dim", "depth", "num_heads")
    )
    taps = value_of(config, "model.extract_layers")
    if not isinstance(taps, list | tuple) or len(taps) != 4:
        raise WeightsError(f"has setting model.extract_layers {taps!r}; it must name four blocks")
    _check_width(state, width, f"setting model.embed_dim {width}")
    blocks = {str(name).removeprefix(BLOCKS).partition(".")[0] for name in state if str(name).startswith(BLOCKS)}
    if len(blocks) != depth:
        raise WeightsError(
            f"has setting model.depth {depth}, but tensors of {len(blocks)} blocks {BLOCKS}*; fetch it again"
        )
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "taps": list(taps)}
    return {"class_path": "vit-256", "init_args": sizes}


def _about_architecture(arch: str) -> str:
    if arch.endswith("Shared"):
        return (
            "networks with a shared decoder were not released and the names of their tensors are not known; train "
            "one with the decoder {class_path: unetr, init_args: {shared_levels: 4}}"
        )
    return f"this version converts {VIT_ARCH}, {SAM_ARCH} and {PLAIN_ARCH}"


def _check_width(state: Mapping[str, Any], width: int, said: str) -> None:
    shape = _shape(state, POSITION)
    if shape[-1:] != (width,):
        raise WeightsError(
            f"has {said}, which makes tokens of {width} channels, but tensor {POSITION} has shape {shape}; "
            "the settings belong to other weights"
        )


def _check_outputs(state: Mapping[str, Any], name: str, count: int, setting: str) -> None:
    shape = _shape(state, name)
    if shape[:1] != (count,):
        raise WeightsError(
            f"has setting {setting}, which needs {count} outputs, but tensor {name} has shape {shape}; "
            "the settings belong to other weights"
        )


def _shape(state: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = state.get(name)
    if not isinstance(value, torch.Tensor):
        found = "is missing" if value is None else f"is a {type(value).__name__}"
        raise WeightsError(f"is incomplete: tensor {name} {found}; fetch it again")
    return tuple(value.shape)


def describe_other(content: Any) -> str:
    """Return what a file holds that is no whole network, and what takes it.

    Args:
        content: What the file holds.
    """
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}"
    names = [str(name) for name in content]
    inner = content.get("model_state_dict")
    if isinstance(inner, Mapping) and "fc1.weight" in inner:
        return "holds a classifier of nuclei by their embeddings, not the network that makes them"
    if isinstance(inner, Mapping):
        return f"has the tensors of a network but not {sorted(KEYS - set(names))}, which say how to build it"
    if any(name.startswith(tuple(BRANCHES.values())) for name in names):
        return f"has the tensors of a network without {sorted(KEYS - {'model_state_dict'})}, which say how to build it"
    stems = ("image_encoder.", "module.", "backbone.", "blocks.", "patch_embed.", "pos_embed", "cls_token")
    if "teacher" in content or any(name.startswith(stems) for name in names):
        return (
            "holds the weights of an encoder alone; the callback cellvit.callbacks.PretrainedEncoder takes it "
            "as its 'path' to start a training with"
        )
    if any("optimizer" in name or name == "param_groups" for name in names):
        return "holds the state of an optimiser without a network; nothing but the program that wrote it can use it"
    return f"holds {names[:5]}"
