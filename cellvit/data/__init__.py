"""Training and evaluation data: folders of images and instance maps, PanNuke, targets, augmentation."""

from cellvit.data.augmentation.transforms import PUBLISHED, build_augmentation, seed_augmentation
from cellvit.data.datamodule import FolderDataModule
from cellvit.data.folder import FolderDataset, ImageDataset
from cellvit.data.pannuke.datamodule import PanNukeDataModule, PanNukeDataset
from cellvit.data.sampler import Draw, EvaluationShard, Repeat, ShuffledDraws, WeightedDraws, balanced_weights
from cellvit.data.targets import hv_map_from_instances, relabel, type_map_from_instances

__all__ = [
    "PUBLISHED",
    "Draw",
    "EvaluationShard",
    "FolderDataModule",
    "FolderDataset",
    "ImageDataset",
    "PanNukeDataModule",
    "PanNukeDataset",
    "Repeat",
    "ShuffledDraws",
    "WeightedDraws",
    "balanced_weights",
    "build_augmentation",
    "hv_map_from_instances",
    "relabel",
    "seed_augmentation",
    "type_map_from_instances",
]
