"""Any network of timm that hands out feature maps, by its name."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from cellvit.encoders.base import ENCODERS, Encoder
from cellvit.encoders.pretrained import load_encoder_weights
from cellvit.encoders.taps import NUM_TAPS, choose_taps
from cellvit.encoders.timm_network import Level, create_net, groups_of, levels_of, own_names, run_net, survey
from cellvit.errors import ConfigError, WeightsError
from cellvit.types import EncoderOutput, FeatureInfo
from cellvit.weights.catalogue import HUB_FILES
from cellvit.weights.hub import checked_digest, fetch, fetch_config, hub_name, local_file

DEEPEST = 16


@ENCODERS.register("timm")
class TimmEncoder(Encoder):
    """A network of timm: a ViT whose blocks are tapped, or a pyramid whose stages are.

    Strides that are no power of two, such as those of 14 px patches, and those above 16 keep the scale the network was
    trained at: the image is padded at the right and the bottom to what the network needs, and its maps are resampled
    bilinearly to the nearest stride that decoders take, aligned at the top left corner. The pooled vector is what the
    network's own classifier would read.

    What is fetched is pinned: :attr:`init_args` then holds the commit and the SHA-256 of the file, and for a model of
    the hub its architecture with arguments, so that a saved model is built again without the hub.

    Args:
        model: Architecture as timm lists it, with or without the tag of its weights, such as ``"convnext_tiny"`` or
            ``"vit_small_patch14_dinov2.lvd142m"``; or ``"hf-hub:OWNER/NAME"``.
        taps: Four blocks of a ViT or stages of a pyramid, counted from 1; None spaces blocks evenly and takes the last
            four stages.
        pretrained: Fetch the weights from the hub or its cache.
        weights: Local weight file instead; environment variables in it are replaced.
        revision: Commit, tag or branch of the hub's repository.
        sha256: What the weight file must have.
        architecture: Architecture of a ``hf-hub:`` model; None reads it from the hub.
        arguments: Arguments of the architecture, such as ``{"depth": 4}``; they go before those that the hub states.
        statistics: Mean and standard deviation of R, G and B that the network expects; None takes those that timm or
            the hub states.
        drop_path_rate: Stochastic depth of the last block.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory, where the network can.

    Raises:
        UnknownPluginError: If timm has no such architecture.
        ConfigError: If the network gives no four feature maps, takes images of one size only, or arguments do not fit.
        WeightsError: If weights cannot be had, are not the expected ones or do not fit.
    """

    weight_sources: ClassVar[Mapping[str, Any]] = MappingProxyType({"pretrained": False, "weights": None})

    def __init__(
        self,
        *,
        model: str,
        taps: Sequence[int] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        revision: str | None = None,
        sha256: str | None = None,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        statistics: Sequence[Sequence[float]] | None = None,
        drop_path_rate: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise ConfigError(f"pretrained: true and weights {weights!r} exclude each other; give one of them")
        hub = hub_name(model, revision=revision)
        stated: Mapping[str, Any] = {}
        if hub and architecture is None:
            config = fetch_config(hub[0], revision=hub[1])
            hub = (hub[0], config.revision)
            architecture, stated = config.architecture, config.pretrained_cfg
            arguments = {**config.arguments, **(arguments or {})}
            self.init_args.update(
                model=model.partition("@")[0], revision=config.revision, architecture=architecture, arguments=arguments
            )
        self.net = create_net(architecture or model, arguments=arguments or {}, drop_path_rate=drop_path_rate)
        levels = levels_of(self.net, model)
        self.taps = _choose(levels, model, taps=taps)
        chosen = [levels[tap - 1] for tap in self.taps]
        self._levels, self._strides = levels, [level.stride for level in chosen]
        found = survey(self.net, model, levels=levels, indices=self._indices())
        self.multiple, self.pooled_channels, self._pooled_only = found
        strides = decoder_strides(self._strides)
        self.features = [FeatureInfo(level.channels, stride) for level, stride in zip(chosen, strides, strict=True)]
        known = {**self.net.pretrained_cfg, **stated}
        self.pixel_mean, self.pixel_std = statistics or (
            tuple(known.get("mean") or self.pixel_mean),
            tuple(known.get("std") or self.pixel_std),
        )
        if hub:
            self.init_args["statistics"] = [list(self.pixel_mean), list(self.pixel_std)]
        if gradient_checkpointing:
            _save_memory(self.net, model)
        if pretrained:
            self._fill(self._fetch(model, hub, revision), sha256)
        elif weights is not None:
            self._fill(local_file(weights), sha256)

    def forward(self, image: Tensor) -> EncoderOutput:
        """Encode a batch; see :class:`Encoder`."""
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        maps, pooled = run_net(self.net, padded, indices=self._indices())
        sized = zip(maps, self._strides, self.features, strict=True)
        return EncoderOutput(
            [
                to_stride(x, stride, info.stride)[..., : height // info.stride, : width // info.stride]
                for x, stride, info in sized
            ],
            pooled,
        )

    def pooled_parameters(self) -> list[nn.Parameter]:
        """Return what no feature map depends on: the norm and the pooling behind the last tap, and blocks after it."""
        return [p for name, p in self.net.named_parameters() if name in self._pooled_only]

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return everything before the blocks or stages, then each of them, then the rest."""
        return groups_of(self.net, self._levels)

    def weights_from(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Read a file of timm, or of another library that timm or :func:`from_transformers` knows."""
        return {f"net.{name}": value for name, value in own_names(self.net, content).items()}

    def _indices(self) -> list[int]:
        return [tap - 1 for tap in self.taps]

    def _fetch(self, model: str, hub: tuple[str, str | None] | None, revision: str | None) -> Path:
        stated = self.net.pretrained_cfg
        repo, at = hub or (stated.get("hf_hub_id"), revision)
        if not repo:
            raise WeightsError(f"timm names no weights of model {model!r} on the hub; give a file as weights: PATH")
        own = None if hub else stated.get("hf_hub_filename")
        file = fetch(repo, [own] if own else HUB_FILES, revision=at)
        self.init_args["revision"] = file.revision
        if "@" in model:
            self.init_args["model"] = model.partition("@")[0]  # or it would state a second revision
        if not hub and "." not in model and stated.get("tag"):
            self.init_args["model"] = f"{model}.{stated['tag']}"
        return file.path

    def _fill(self, path: Path, sha256: str | None) -> None:
        digest = checked_digest(path, expected=sha256)
        load_encoder_weights(self, path)
        self.init_args["sha256"] = digest


def decoder_strides(strides: Sequence[int]) -> list[int]:
    """Return the nearest strides that decoders take: powers of two, no finer than their level, the deepest 16.

    Args:
        strides: Strides of the network's maps, which do not decrease.

    Example:
        >>> decoder_strides([4, 8, 16, 32]), decoder_strides([14] * 4), decoder_strides([8] * 4)
        ([4, 8, 16, 16], [16, 16, 16, 16], [8, 8, 8, 16])
    """
    powers = [2 ** round(math.log2(stride)) for stride in strides]
    fitting = [min(max(power, 2**level), DEEPEST) for level, power in enumerate(powers, start=1)]
    return [*fitting[:-1], DEEPEST]


def to_stride(feature: Tensor, stride: int, target: int) -> Tensor:
    """Return a map at another stride, resampled bilinearly; places in the image stay where they are.

    Args:
        feature: ``(B, C, h, w)``, pixel ``i`` centred at ``stride * (i + 0.5)`` px of the image.
        stride: Pixels of the image per pixel of the map.
        target: The same of the result.

    Returns:
        ``(B, C, floor(h * stride / target), floor(w * stride / target))``.
    """
    if stride == target:
        return feature
    # Given the factor, and not the size, the sampling is exact also where the size is rounded down.
    return F.interpolate(feature, scale_factor=stride / target, mode="bilinear", recompute_scale_factor=False)


def _choose(levels: Sequence[Level], model: str, *, taps: Sequence[int] | None) -> tuple[int, ...]:
    if len(levels) < NUM_TAPS:
        raise ConfigError(f"timm model {model!r} gives {len(levels)} feature maps; four are needed, choose another")
    is_pyramid = len({level.stride for level in levels}) > 1
    if taps is None and is_pyramid:
        return tuple(range(len(levels) - NUM_TAPS + 1, len(levels) + 1))
    return choose_taps(len(levels), taps=taps)


def _save_memory(net: Any, model: str) -> None:
    try:
        net.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        message = f"timm model {model!r} cannot do gradient_checkpointing ({error}); set gradient_checkpointing: false"
        raise ConfigError(message) from error
