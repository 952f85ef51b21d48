"""Vision Transformers in the naming of the library ``transformers``, under the names of timm."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cellvit.errors import WeightsError

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
