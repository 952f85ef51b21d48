"""Networks of timm: building them, learning what they need and yield, and reading their weight files."""

import importlib
import inspect
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn
from torch.func import functional_call

from cellvit.errors import ConfigError, UnknownPluginError, WeightsError

MARK = "embeddings.patch_embeddings.projection.weight"
PREFIXES = ("vit.", "dinov2.")
LEFT_OUT = ("pooler.", "classifier.", "embeddings.mask_token")
RULES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
PROJECTION = re.compile(r"^(.*)\.attention\.attention\.(query|key|value)\.(weight|bias)$")
PARTS = ("query", "key", "value")


def from_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a ``ViTModel`` or a ``Dinov2Model`` under timm's names; others as they are.

    Query, key and value are stacked into one projection. The pooler, the classifier and the mask token are left out:
    timm's networks have none.

    Args:
        content: Tensors by their names in the file.

    Raises:
        WeightsError: If a query, a key or a value lacks its partners.
    """
    plain = {_without_prefix(name): value for name, value in content.items()}
    if MARK not in plain:
        return dict(content)
    renamed: dict[str, Any] = {}
    stacks: dict[str, dict[str, Any]] = {}
    for name, value in plain.items():
        part = PROJECTION.match(name)
        if part:
            stacks.setdefault(f"{part[1]}.attn.qkv.{part[3]}", {})[part[2]] = value
        elif not name.startswith(LEFT_OUT):
            renamed[_timm_name(name)] = value
    for name, parts in stacks.items():
        tensors = [parts.get(key) for key in PARTS]
        if not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise WeightsError(f"attention {name!r} has only {', '.join(sorted(parts))} of {', '.join(PARTS)}")
        renamed[_timm_name(name)] = torch.cat(tensors)  # type: ignore[arg-type]  # checked above
    return renamed


def _without_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _timm_name(name: str) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


# A network takes images of any size by the first of these that its class knows.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True, "strict_img_size": False},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
    {},
)
WRAPPERS = ("state_dict", "model")
MAX_FACTOR = 8
ODD_SIDES = (11, 13)
"""Sides of the trial image, in units: coprime to any window, so that what fits them fits every multiple of the unit."""


class Level(NamedTuple):
    """One feature map of a network: channels, pixels per feature pixel, and the module it comes from."""

    channels: int
    stride: int
    module: str


class Survey(NamedTuple):
    """What a trial run shows.

    Attributes:
        multiple: Sides of an image must be multiples of it.
        pooled_channels: Length of the pooled vector.
        pooled_only: Names of the parameters that no feature map depends on.
    """

    multiple: int
    pooled_channels: int
    pooled_only: frozenset[str]


def create_net(model: str, *, arguments: Mapping[str, Any], drop_path_rate: float) -> Any:
    """Return a network without classifier that takes images of many sizes, with random weights.

    Args:
        model: Architecture, with or without the tag of weights.
        arguments: Arguments of the architecture; ``mlp_layer`` and the like by the name of a layer of timm.
        drop_path_rate: Stochastic depth of the last block.

    Raises:
        UnknownPluginError: If timm has no such architecture or tag.
        ConfigError: If the arguments do not fit.
    """
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        close = ", ".join(get_close_matches(architecture, timm.list_models(), n=5)) or "none"
        raise UnknownPluginError(f"timm has no architecture {model!r}; similar ones: {close}; see timm.list_models()")
    taken = sorted(set(arguments) & set(inspect.signature(timm.create_model).parameters))
    if taken:
        raise ConfigError(f"arguments {taken} are not of the architecture; leave them out")
    plain = {name: _layer(name, value) for name, value in arguments.items() if name != "num_classes"}
    if not plain.get("global_pool", True):  # "" hands on all tokens
        del plain["global_pool"]
    dropping: list[dict[str, Any]] = [{"drop_path_rate": drop_path_rate}, *([] if drop_path_rate else [{}])]
    for options in [{**size, **drop} for size in ANY_SIZE for drop in dropping]:
        try:
            return timm.create_model(model, num_classes=0, **{**plain, **options})
        except TypeError as error:  # the class does not know one of the arguments
            reason = error
        except RuntimeError as error:
            if "pretrained tag" not in str(error):
                raise
            known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
            raise UnknownPluginError(f"timm knows no weights {model!r}; known: {known}") from error
        except (ValueError, AssertionError) as error:
            message = f"timm model {model!r} cannot be built with arguments {dict(arguments)} ({error})"
            raise ConfigError(message) from error
    given = {**arguments, "drop_path_rate": drop_path_rate}
    raise ConfigError(f"timm model {model!r} does not take all of {given} ({reason}); leave out what it does not take")


def levels_of(net: Any, model: str) -> list[Level]:
    """Return the feature maps that a network can hand out, finest first.

    Raises:
        ConfigError: If it hands out none.
    """
    info = getattr(net, "feature_info", None)
    if not info or not hasattr(net, "forward_intermediates") or not hasattr(net, "forward_head"):
        raise ConfigError(f"timm model {model!r} gives no feature maps; choose another such as convnext_tiny")
    return [Level(entry["num_chs"], entry["reduction"], entry["module"]) for entry in getattr(info, "info", info)]


def run_net(net: Any, image: Tensor, *, indices: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return a network's raw feature maps ``(B, C_i, h_i, w_i)`` and its pooled vector ``(B, P)``."""
    last, maps = net.forward_intermediates(image, indices=list(indices), norm=False, output_fmt="NCHW")
    return maps, net.forward_head(last, pre_logits=True)


def survey(net: nn.Module, model: str, *, levels: Sequence[Level], indices: Sequence[int]) -> Survey:
    """Return what a network needs and yields, from trial runs that allocate and compute nothing.

    Args:
        net: The network.
        model: Its name, for errors.
        levels: All its feature maps.
        indices: Which of them are wanted.

    Raises:
        ConfigError: If the network takes images of one size only, or its maps are not what it says.
    """
    unit = math.lcm(*(level.stride for level in levels))
    was_training = net.training
    try:
        with torch.inference_mode(False), torch.enable_grad():
            trial = _Trial(net.eval(), indices)
            for factor in range(1, MAX_FACTOR + 1):
                multiple = factor * unit
                sides = [odd * multiple for odd in ODD_SIDES]
                try:
                    maps, pooled = trial.run(sides)
                    break
                except Exception as error:  # each architecture has its own way of refusing a size
                    reason = error
            else:
                message = (
                    f"timm model {model!r} takes images of one size only ({reason}); "
                    "choose one that takes any, such as vit_small_patch16_224 or convnext_tiny"
                )
                raise ConfigError(message)
            expected = [
                (1, levels[index].channels, *(side // levels[index].stride for side in sides)) for index in indices
            ]
            if [tuple(x.shape) for x in maps] != expected or pooled.ndim != 2:
                raise ConfigError(f"timm model {model!r} gives other feature maps than it says; choose another")
            return Survey(multiple, pooled.shape[1], trial.not_behind(maps))
    finally:
        net.train(was_training)


class _Trial(nn.Module):
    """A network on the meta device, whose own tensors stay what they are."""

    def __init__(self, net: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.indices = indices
        self.weights = {name: _on_meta(p).requires_grad_() for name, p in self.named_parameters()}
        self.tensors = {**{name: _on_meta(b) for name, b in self.named_buffers()}, **self.weights}

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        return run_net(self.net, image, indices=self.indices)

    def run(self, sides: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        result: tuple[list[Tensor], Tensor]
        result = functional_call(self, self.tensors, (torch.empty(1, 3, *sides, device="meta"),))
        return result

    def not_behind(self, maps: Sequence[Tensor]) -> frozenset[str]:
        reached = torch.autograd.grad([x.sum() for x in maps], list(self.weights.values()), allow_unused=True)
        names = zip(self.weights, reached, strict=True)
        return frozenset(name.removeprefix("net.") for name, gradient in names if gradient is None)


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def groups_of(net: nn.Module, levels: Sequence[Level]) -> list[list[nn.Parameter]]:
    """Return the parameters before the first block or stage, of each of them, and after the last."""
    names = [name for name, _ in net.named_parameters()]
    cuts = {0, len(names)}
    for level in levels:
        own = [place for place, name in enumerate(names) if name.startswith(f"{level.module}.")]
        cuts |= {own[0], own[-1] + 1} if own else set()
    ordered, parameters = sorted(cuts), list(net.parameters())
    return [parameters[a:b] for a, b in itertools.pairwise(ordered)]


def own_names(net: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a file under a network's own names, without its classifier.

    Files of timm, those that timm itself translates and Vision Transformers of ``transformers`` are read. Timm would
    resize some tensors; here they keep their shape, for the caller to refuse.

    Args:
        net: The network.
        content: What the file holds, by name.

    Raises:
        WeightsError: If attention in the naming of ``transformers`` is incomplete.
    """
    plain = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    plain = from_transformers({str(name): value for name, value in plain.items()})
    architecture = net.pretrained_cfg["architecture"]
    module = importlib.import_module(model_entrypoint(architecture).__module__)
    translate = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    try:
        named = dict(_call(translate, dict(plain), net)) if translate else dict(plain)
    except Exception:  # written for files that fit; what does not is named with its own names
        named = dict(plain)
    untouched = {id(value) for value in plain.values()}
    for name in named.keys() & plain.keys():
        if id(named[name]) not in untouched and named[name].numel() != plain[name].numel():
            named[name] = plain[name]
    classifier = net.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    known = net.state_dict().keys()
    return {k: v for k, v in named.items() if k in known or not k.startswith(tuple(f"{head}." for head in heads))}


def _call(translate: Any, content: dict[str, Any], net: Any) -> Mapping[str, Any]:
    takes_net = len(inspect.signature(translate).parameters) > 1
    result: Mapping[str, Any] = translate(content, net) if takes_net else translate(content)
    return result


def _layer(name: str, value: Any) -> Any:
    """Return the layer that an argument names; activations and norms are looked up by timm itself."""
    if name != "mlp_layer" or not isinstance(value, str):
        return value
    layer = getattr(timm.layers, value, None)
    cls = layer.func if isinstance(layer, partial) else layer
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"{name} {value!r} is no layer of timm.layers; give one such as 'SwiGLUPacked'")
    return layer
