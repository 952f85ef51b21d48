"""Writes checkpoints with the names and shapes of the released ones, and what else these carry."""

import argparse
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from support.functional_cellvit import SIZES, Size

BRANCHES = {"nuclei_binary_map_decoder": 2, "hv_map_decoder": 2, "nuclei_type_maps_decoder": 6}
NUCLEI = ("Background", "Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
TISSUES = (
    "Adrenal_gland", "Bile-duct", "Bladder", "Breast", "Cervix", "Colon", "Esophagus", "HeadNeck", "Kidney", "Liver",
    "Lung", "Ovarian", "Pancreatic", "Prostate", "Skin", "Stomach", "Testis", "Thyroid", "Uterus",
)  # fmt: skip
SMALL = Size(24, 4, 3, (1, 2, 3, 4))
"""A plain ViT of arch ``CellViT``; the decoder has its published size all the same."""

ENTRIES = {"vit-256": 439, "sam-b": 466, "sam-l": 634, "sam-h": 746}
PARAMETERS = {"vit-256": 46_750_349, "sam-b": 146_094_557, "sam-l": 367_847_645, "sam-h": 699_741_149}

Shapes = dict[str, tuple[int, ...]]


# Names and shapes, written out from the tables of the released network.


def shapes_of(size: Size, *, types: int = 6, tissues: int = 19, regression: bool = False) -> Shapes:
    """Return the shape of every tensor by its name in a released file."""
    encoder = sam_shapes(size, tissues) if size.is_sam else vit_shapes(size, tissues)
    return {**encoder, **decoder_shapes(size.width, {**BRANCHES, "nuclei_type_maps_decoder": types}, regression)}


def vit_shapes(size: Size, tissues: int) -> Shapes:
    width = size.width
    shapes: Shapes = {"encoder.cls_token": (1, 1, width), "encoder.pos_embed": (1, 197, width)}
    shapes |= layer("encoder.patch_embed.proj", (width, 3, 16, 16))
    for i in range(size.depth):
        block = f"encoder.blocks.{i}"
        shapes |= {**vector(f"{block}.norm1", width), **layer(f"{block}.attn.qkv", (3 * width, width))}
        shapes |= {**layer(f"{block}.attn.proj", (width, width)), **vector(f"{block}.norm2", width)}
        shapes |= {**layer(f"{block}.mlp.fc1", (4 * width, width)), **layer(f"{block}.mlp.fc2", (width, 4 * width))}
    return {**shapes, **vector("encoder.norm", width), **layer("encoder.head", (tissues, width))}


def sam_shapes(size: Size, tissues: int) -> Shapes:
    width, head = size.width, size.width // size.heads
    shapes: Shapes = {"encoder.pos_embed": (1, 64, 64, width)}
    shapes |= layer("encoder.patch_embed.proj", (width, 3, 16, 16))
    for i in range(size.depth):
        block, rows = f"encoder.blocks.{i}", 127 if i in size.global_blocks else 27
        shapes |= {**vector(f"{block}.norm1", width), **layer(f"{block}.attn.qkv", (3 * width, width))}
        shapes |= {f"{block}.attn.rel_pos_h": (rows, head), f"{block}.attn.rel_pos_w": (rows, head)}
        shapes |= {**layer(f"{block}.attn.proj", (width, width)), **vector(f"{block}.norm2", width)}
        shapes |= {**layer(f"{block}.mlp.lin1", (4 * width, width)), **layer(f"{block}.mlp.lin2", (width, 4 * width))}
    shapes |= {"encoder.neck.0.weight": (256, width, 1, 1), **vector("encoder.neck.1", 256)}
    shapes |= {"encoder.neck.2.weight": (256, 256, 3, 3), **vector("encoder.neck.3", 256)}
    return {**shapes, **layer("classifier_head", (tissues, 256))}


def decoder_shapes(width: int, branches: dict[str, int], regression: bool) -> Shapes:
    first, second, bottom = (256, 128, 312) if width < 512 else (512, 256, 512)
    shapes = {**conv("decoder0.0", 3, 32), **conv("decoder0.1", 32, 64)}
    shapes |= {**deconv("decoder1.0", width, first), **deconv("decoder1.1", first, second)}
    shapes |= {**deconv("decoder1.2", second, 128), **deconv("decoder2.0", width, first)}
    shapes |= {**deconv("decoder2.1", first, 256), **deconv("decoder3.0", width, bottom)}
    for branch, outputs in branches.items():
        outputs += 2 if regression and branch == "nuclei_binary_map_decoder" else 0
        shapes |= transposed(f"{branch}.bottleneck_upsampler", width, bottom)
        steps = {"decoder3_upsampler": (bottom, 3, 256), "decoder2_upsampler": (256, 2, 128)}
        steps |= {"decoder1_upsampler": (128, 2, 64), "decoder0_header": (64, 2, None)}
        for step, (channels, convs, above) in steps.items():
            for i in range(convs):
                shapes |= conv(f"{branch}.{step}.{i}", channels if i else 2 * channels, channels)
            if above:
                shapes |= transposed(f"{branch}.{step}.{convs}", channels, above)
        shapes |= layer(f"{branch}.decoder0_header.2", (outputs, 64, 1, 1))
    return shapes


def layer(name: str, shape: tuple[int, ...]) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def vector(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def transposed(name: str, channels: int, out_channels: int) -> Shapes:
    return {f"{name}.weight": (channels, out_channels, 2, 2), f"{name}.bias": (out_channels,)}


def statistics(name: str, channels: int) -> Shapes:
    running: Shapes = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return {**vector(name, channels), **running, f"{name}.num_batches_tracked": ()}


def conv(name: str, channels: int, out_channels: int) -> Shapes:
    return {
        **layer(f"{name}.block.0", (out_channels, channels, 3, 3)),
        **statistics(f"{name}.block.1", out_channels),
    }


def deconv(name: str, channels: int, out_channels: int) -> Shapes:
    return {
        **transposed(f"{name}.block.0", channels, out_channels),
        **layer(f"{name}.block.1", (out_channels, out_channels, 3, 3)),
        **statistics(f"{name}.block.2", out_channels),
    }


def number_of_parameters(shapes: Shapes) -> int:
    """Return the number of values that training changes; those of batch norm's statistics are not among them."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(buffers))


# Values.


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors that all matter and through which activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict((name, random_tensor(name, shape, generator)) for name, shape in shapes.items())


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.randint(1, 10_000, shape, generator=generator)
    if name.endswith("running_var"):
        return torch.empty(shape).uniform_(0.5, 1.5, generator=generator)
    value = torch.empty(shape).normal_(generator=generator)
    if name.endswith("running_mean") or name.endswith("bias") or "rel_pos" in name:
        return value.mul_(0.2)
    if len(shape) == 1:
        return value.mul_(0.2).add_(1)  # the weight of a norm
    if name.endswith(("pos_embed", "cls_token")):
        return value.mul_(0.5)
    is_transposed = shape[2:] == (2, 2)
    fan_in = shape[0] if is_transposed else math.prod(shape[1:])
    gain = 2.0 if shape[2:] == (3, 3) else 1.0  # a ReLU follows
    return value.mul_(math.sqrt(gain / fan_in))


def hollow_state(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Return tensors of these shapes that take no space: every value is the same one in memory."""
    one = torch.full((), 0.5)
    counts = torch.zeros((), dtype=torch.int64)
    return {name: counts.clone() if name.endswith("tracked") else one.expand(shape) for name, shape in shapes.items()}


# Files.


def config_of(name: str) -> dict[str, object]:
    """Return the flat settings of a run on PanNuke, with what the programs around it leave in there."""
    backbone = {"vit-256": "ViT256", "small": "default"}.get(name, name.upper())
    config = {
        "logging.mode": "online",
        "logging.log_dir": Path("/somewhere/logs"),
        "gpu": 0,
        "random_seed": 19,
        "data.dataset": "PanNuke",
        "data.dataset_path": "/somewhere/pannuke",
        "data.train_folds": [0, 1],
        "data.num_nuclei_classes": 6,
        "data.num_tissue_classes": 19,
        "model.backbone": backbone,
        "model.shared_skip_connections": True,
        "training.optimizer_hyperparameter.betas": [0.85, 0.95],
        "training.mixed_precision": True,
        "training.weight_list": None,
        "transformations.normalize.mean": [0.5, 0.5, 0.5],
        "transformations.normalize.std": [0.5, 0.5, 0.5],
        "run_sweep": False,
        "_wandb": {"desc": None, "value": {"cli_version": "0.15.4", "t": {1: [1, 5]}}},
        **{f"dataset_config.nuclei_types.{key}": i for i, key in enumerate(NUCLEI)},
        **{f"dataset_config.tissue_types.{key}": i for i, key in enumerate(TISSUES)},
    }
    if name == "small":
        sizes = {"embed_dim": SMALL.width, "depth": SMALL.depth, "num_heads": SMALL.heads}
        config |= {f"model.{key}": value for key, value in sizes.items()}
        config["model.extract_layers"] = list(SMALL.taps)
    return config


def content_of(name: str, state: dict[str, torch.Tensor], **changes: object) -> dict[str, object]:
    """Return what a released file holds.

    Args:
        name: An encoder, or ``small`` for a plain ViT.
        state: Its tensors.
        **changes: Settings to change, ``__`` for a dot; None leaves one out.
    """
    arch = {"vit-256": "CellViT256", "small": "CellViT"}.get(name, "CellViTSAM")
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    config = {key: value for key, value in {**config_of(name), **changed}.items() if value is not None}
    return {
        "arch": arch,
        "epoch": 130,
        "model_state_dict": state,
        "optimizer_state_dict": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}},
            "param_groups": [{"lr": np.float64(3e-4), "betas": (0.85, 0.95), "params": [0]}],
        },
        "scheduler_state_dict": {"gamma": 0.95, "last_epoch": 130, "_last_lr": [np.float32(4e-7)], "verbose": False},
        "best_metric": np.float64(0.68),
        "best_epoch": np.int64(126),
        "config": config,
        "wandb_id": "1ab2c3d4",
        "logdir": Path("/somewhere/logs/run"),
        "run_name": "2023-09-07T172159_CellViT",
        "scaler_state_dict": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "arguments": argparse.Namespace(config="train.yaml", gpu=0, sweep=False),
    }


def write(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


SIZES_BY_NAME = {**SIZES, "small": SMALL}


def released(name: str, *, hollow: bool = False, **changes: object) -> dict[str, object]:
    """Return what a released file of published shapes holds."""
    shapes = shapes_of(SIZES_BY_NAME[name])
    return content_of(name, hollow_state(shapes) if hollow else random_state(shapes), **changes)
