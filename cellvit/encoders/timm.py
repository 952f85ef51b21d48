"""Any Vision Transformer of timm by its name."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import timm
from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.taps import choose_taps
from cellvit.errors import ConfigError, UnknownPluginError, WeightsError
from cellvit.types import EncoderOutput, FeatureInfo

STRIDE = 16


@ENCODERS.register("timm")
class TimmEncoder(Encoder):
    """A timm ViT with its own patch size, prefix tokens and position embedding.

    Patches that are not 16 px wide (14 in DINOv2 and many pathology models) keep the scale the network was
    trained at: the image is padded at the right and the bottom to whole patches, and the token maps are
    resampled bilinearly to one token per 16 px, aligned at the top left corner.

    Args:
        model: Architecture name as timm lists it, such as ``"vit_small_patch14_dinov2"``.
        taps: Four blocks to tap, counted from 1; None spaces them evenly.
        pretrained: Fetch timm's pre-trained weights.
        drop_path_rate: Stochastic depth of the last block.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.

    Raises:
        UnknownPluginError: If timm has no such architecture.
        ConfigError: If the architecture is no ViT whose blocks can be tapped.
        WeightsError: If pre-trained weights cannot be had.
    """

    def __init__(
        self,
        *,
        model: str,
        taps: Sequence[int] | None = None,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.net = _create(model, pretrained=pretrained, drop_path_rate=drop_path_rate)
        self.net.set_grad_checkpointing(gradient_checkpointing)
        self.patch_size = _patch_size(self.net, model)
        self.taps = choose_taps(len(self.net.blocks), taps=taps)
        self.features = [FeatureInfo(int(self.net.embed_dim), STRIDE)] * len(self.taps)
        self.pooled_channels = int(self.net.num_features)

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size), mode="replicate")
        indices = [tap - 1 for tap in self.taps]
        tokens, maps = self.net.forward_intermediates(padded, indices=indices, norm=False, output_fmt="NCHW")
        pooled = self.net.forward_head(tokens, pre_logits=True)
        return EncoderOutput([self._to_stride(m, height, width) for m in maps], pooled)

    def pooled_parameters(self) -> list[nn.Parameter]:
        """Return the final norm and whatever pools the tokens: the maps are tapped before them."""
        last = [getattr(self.net, name, None) for name in ("norm", "attn_pool", "fc_norm")]
        return [p for module in last if isinstance(module, nn.Module) for p in module.parameters()]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return everything before the blocks, then each block, then the rest."""
        blocks = [list(block.parameters()) for block in self.net.blocks]
        inside = {id(p) for block in blocks for p in block}
        after = {id(p) for p in self.net.norm.parameters()}
        stem = [p for p in self.net.parameters() if id(p) not in inside | after]
        return [stem, *blocks, list(self.net.norm.parameters())]

    def _to_stride(self, tokens: Tensor, height: int, width: int) -> Tensor:
        if self.patch_size == STRIDE:
            return tokens
        scaled = F.interpolate(
            tokens, scale_factor=self.patch_size / STRIDE, mode="bilinear", recompute_scale_factor=False
        )
        rows, cols = height // STRIDE, width // STRIDE
        short = (0, max(0, cols - scaled.shape[-1]), 0, max(0, rows - scaled.shape[-2]))
        return F.pad(scaled, short, mode="replicate")[..., :rows, :cols]


def _create(model: str, *, pretrained: bool, drop_path_rate: float) -> Any:
    if not timm.is_model(model.split(".")[0]):
        close = ", ".join(get_close_matches(model, timm.list_models(), n=5)) or "none"
        raise UnknownPluginError(f"timm has no architecture {model!r}; similar ones: {close}; see timm.list_models()")
    options: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path_rate}
    try:
        return timm.create_model(model, pretrained=pretrained, dynamic_img_size=True, **options)
    except TypeError as error:
        raise ConfigError(
            f"timm model {model!r} is no plain ViT ({error}); choose a ViT such as vit_small_patch16_224"
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        message = f"weights of timm model {model!r} cannot be had ({error}); check the network or set pretrained: false"
        raise WeightsError(message) from error


def _patch_size(net: Any, model: str) -> int:
    size = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if size is None or not hasattr(net, "blocks") or not hasattr(net, "forward_intermediates"):
        raise ConfigError(f"timm model {model!r} is no plain ViT; choose one such as vit_small_patch16_224")
    rows, cols = (size, size) if isinstance(size, int) else size
    if rows != cols or rows > STRIDE:
        raise ConfigError(
            f"timm model {model!r} has patches of {rows}x{cols} px; square patches up to {STRIDE} px work"
        )
    return int(rows)
