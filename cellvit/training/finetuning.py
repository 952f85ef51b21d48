"""Starting a model from another one's weights, and taking adapters out of it again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from cellvit.classes import default_classes, default_tissues
from cellvit.encoders.base import Encoder
from cellvit.encoders.lora import LoRAEncoder
from cellvit.errors import ConfigError, WeightsError
from cellvit.io.paths import expand_path, unset_variables
from cellvit.model.cellvit import CellViT
from cellvit.model.checkpoint import read_model
from cellvit.plugins.components import normalise_spec
from cellvit.training.freezing import as_cellvit
from cellvit.types import NUCLEI_TYPE_MAP, TISSUE_TYPES
from cellvit.weights.state_dict import misfits

PARTS = ("encoder", "decoder", "heads")
ORIGINS = ("pretrained", "weights", "revision", "sha256")
NAMES_OF = {NUCLEI_TYPE_MAP: "class_names", TISSUE_TYPES: "tissue_names"}
"""The setting that gives the channels of a branch their meaning."""


@dataclass(frozen=True)
class Initialisation:
    """What became of a model that was initialised from another one.

    Attributes:
        source: Where the weights are from.
        loaded: Parts and heads that have them.
        reinitialised: Heads, branches of the decoder, and parts of which only some tensors fit, that kept their own
            weights for the rest, with the reason.
        differences: Settings that differ although the weights fit, such as the mean of the pixels.
    """

    source: str
    loaded: tuple[str, ...]
    reinitialised: dict[str, str]
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        anew = [f"{part} starts anew: {reason}" for part, reason in self.reinitialised.items() if part not in PARTS]
        anew += [f"of the {part}, {reason}" for part, reason in self.reinitialised.items() if part in PARTS]
        other = [f"note that {', '.join(self.differences)}"] if self.differences else []
        return "; ".join([f"initialised {', '.join(self.loaded)} from {self.source!r}", *anew, *other])


def init_from(
    model: CellViT, source: str | Path, *, parts: Sequence[str] = PARTS, strict: bool = True
) -> Initialisation:
    """Fill a model with the weights of another one whose classes may differ.

    Encoder and decoder must fit in every tensor, but for branches that only one of the two models has. A head fits if
    its tensors do and its channels mean the same: a head of other nucleus or tissue types keeps its own weights, and
    so does one that the source does not have.

    A network that differs in some layers only may take what fits, by name and shape, with ``strict`` False. That the
    layers do the same is then up to you.

    Args:
        model: Changed in place.
        source: A bundled model, a model folder, a training checkpoint, or a released checkpoint.
        parts: Which parts to fill, any of ``encoder``, ``decoder`` and ``heads``.
        strict: Whether every tensor of encoder and decoder must fit; if not, each of them must fit in one.

    Returns:
        Which parts have the weights, and which heads start anew.

    Raises:
        ConfigError: If a part is unknown.
        UnknownPluginError: If there is no such source.
        WeightsError: If it cannot be read, or encoder or decoder do not fit; the model is then unchanged.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts or isinstance(parts, str):
        raise ConfigError(f"parts {parts!r} must be a list of some of {', '.join(PARTS)}")
    settings, state = read_model(source)
    theirs = {name.split(".")[1] for name in state if name.startswith("heads.")}
    loaded = [part for part in PARTS[:2] if part in parts]
    filled: dict[str, Tensor] = {}
    anew = _own_branches(model, theirs) if "decoder" in parts else {}
    for part in loaded:
        tensors = _under(state, part)
        tensors = _translated(model.encoder, tensors) if part == "encoder" else _shared_branches(model, theirs, tensors)
        fitting, rest = _fitting(model, part, tensors, source, strict=strict)
        filled |= fitting
        anew |= {part: rest} if rest else {}
    for branch in model.heads if "heads" in parts else ():
        head = f"heads.{branch}"
        tensors = _under(state, head)
        reason = _why_not(model, branch, settings, tensors)
        if reason:
            anew[head] = reason
        else:
            filled |= {f"{head}.{name}": tensor for name, tensor in tensors.items()}
            loaded.append(head)
    model.load_state_dict(filled, strict=False)
    return Initialisation(str(source), tuple(loaded), anew, tuple(_differences(model, settings, parts)))


class InitFrom(L.Callback):
    """Fills a model with the weights of another one before training, unless a checkpoint is resumed.

    What was filled, and which heads start anew, is written to the log.

    Args:
        source: Name or path of a model, or a checkpoint; environment variables in a path are replaced.
        parts: Any of ``encoder``, ``decoder`` and ``heads``.
        strict: Whether every tensor of encoder and decoder must fit; if not, what fits by name and shape is taken.
    """

    def __init__(self, source: str, parts: Sequence[str] = PARTS, strict: bool = True) -> None:
        self.source = source
        self.parts = parts
        self.strict = strict

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the weights; in :meth:`setup` the Trainer would not yet know of a checkpoint.

        Raises:
            CellViTError: If the source cannot be read or does not fit, as :func:`init_from` says.
        """
        model = as_cellvit(pl_module, self)
        if trainer.ckpt_path or trainer.global_step:
            return
        unset = unset_variables(self.source)
        if unset:
            raise ConfigError(
                f"source {self.source!r} names {', '.join(unset)}, which is not set; set it or write a path"
            )
        rank_zero_info(str(init_from(model, expand_path(self.source), parts=self.parts, strict=self.strict)))


def merge_adapters(model: CellViT) -> CellViT:
    """Return a model without adapters that computes the same.

    Args:
        model: A model whose encoder is ``lora``; it is left unchanged.

    Raises:
        ConfigError: If its encoder has no adapters.
    """
    if not isinstance(model.encoder, LoRAEncoder):
        raise ConfigError(f"encoder {type(model.encoder).__name__} has no adapters to merge; export it as it is")
    inside = normalise_spec(model.settings["encoder"], what="encoder")["init_args"]["encoder"]
    encoder = model.encoder.merged()
    plain = type(model)(**{**model.settings, "encoder": encoder})
    plain.settings["encoder"] = normalise_spec(inside, what="encoder")
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    plain.load_state_dict({**rest, **{f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}})
    return plain.train(model.training)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}


def _translated(encoder: Encoder, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the tensors of a source under the names of an encoder that may be wrapped in adapters."""
    return encoder.wrapped_names(tensors) if isinstance(encoder, LoRAEncoder) else tensors


def _shared_branches(model: CellViT, theirs: set[str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a decoder's tensors without branches the model lacks, and with its own where the source lacks one."""
    ours = set(model.heads)
    kept = {name: tensor for name, tensor in tensors.items() if not (theirs - ours) & set(name.split("."))}
    own = {name: t for name, t in model.decoder.state_dict().items() if (ours - theirs) & set(name.split("."))}
    return kept | own


def _fitting(
    model: CellViT, part: str, tensors: Mapping[str, Any], source: str | Path, *, strict: bool
) -> tuple[dict[str, Tensor], str]:
    """Return the tensors that fit a part, under the model's names, and what of the part keeps its own, or nothing."""
    own = model.get_submodule(part).state_dict()
    problems = "; ".join(misfits(own, tensors))
    alike = {name for name, value in own.items() if getattr(tensors.get(name), "shape", None) == value.shape}
    if problems and (strict or not alike):
        others = ", ".join(other for other in PARTS if other != part)
        raise WeightsError(
            f"the {part} of {str(source)!r} does not fit the model's; {problems}; give the model the settings of the "
            f"source's {part}, or take other parts alone ({others})"
        )
    missing = f"{len(own) - len(alike)} of {len(own)} tensors do not fit ({problems})"
    return {f"{part}.{name}": tensors[name] for name in alike}, missing if len(alike) < len(own) else ""


def _own_branches(model: CellViT, theirs: set[str]) -> dict[str, str]:
    """Return the paths of the decoder's branches of which the source has nothing."""
    own = [name.split(".") for name in model.decoder.state_dict()]
    paths = {
        ".".join(["decoder", *parts[: parts.index(branch) + 1]])
        for parts in own
        for branch in set(model.heads) - theirs
        if branch in parts
    }
    return dict.fromkeys(sorted(paths), "the source has no such branch")


def _differences(model: CellViT, settings: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """Return what is set differently and shows in no tensor."""
    ours = {name: model.settings[name] for name in ("mpp", "mean", "std")}
    theirs = {name: settings.get(name, value) for name, value in ours.items()}
    if "encoder" in parts:
        ours |= _arguments(model.settings["encoder"])
        theirs |= _arguments(settings.get("encoder"))
    return [
        f"{name} is {ours.get(name)} here and {theirs.get(name)} there"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]


def _arguments(spec: Any) -> dict[str, Any]:
    """Return the arguments of an encoder, those of one inside another too, without where its weights came from."""
    if not isinstance(spec, Mapping):
        return {}
    plain = spec.get("init_args") or {}
    inside = _arguments(plain.get("encoder"))
    return inside | {f"encoder.{k}": v for k, v in plain.items() if k not in (*ORIGINS, "encoder")}


def _names(settings: Mapping[str, Any], setting: str) -> list[str]:
    """Return names of classes or tissues; where none are stated, those that a model takes by default."""
    stated = settings.get(setting)
    if stated is not None:
        return list(stated)
    if setting == "class_names":
        return list(default_classes(settings["num_nuclei_classes"], names=None, colors=None).names)
    return list(default_tissues(settings.get("num_tissue_classes", 0), names=None))


def _why_not(model: CellViT, branch: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return why a head cannot take the tensors, or nothing."""
    if not tensors:
        return "the source has no such head"
    setting = NAMES_OF.get(branch)
    if setting is not None:
        ours, theirs = list(model.settings[setting]), _names(settings, setting)
        if ours != theirs:
            return f"{setting} are {ours} here and {theirs} there"
    return "; ".join(misfits(model.get_submodule(f"heads.{branch}").state_dict(), tensors))
