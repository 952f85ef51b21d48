from .cellvit import CellViT as CellViT
