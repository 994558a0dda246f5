"""minseg: the tricks of binary segmentation of huge images, each in a file to read.

In reading order:

| file | trick |
|---|---|
| `unet` | the network: what goes where |
| `efficientnet` | its encoder |
| `dice` | a loss that compares regions, not pixels |
| `lovasz` | a convex loss made from the Jaccard index itself |
| `losses` | sums of losses |
| `tiling` | slides of any size, by tiles weighted towards their centre |
| `crossval` | a score to trust: folds of whole groups, thresholds chosen elsewhere |
| `data` | slides, masks, tiles, augmentation, synthetic kidneys |
| `run` | files that are complete or absent, progress, pictures |
| `lab` | programs that measure |
"""

from .crossval import best_threshold, group_folds
from .dice import dice_loss, dice_score
from .efficientnet import EfficientNet
from .losses import make_loss
from .lovasz import lovasz_hinge
from .tiling import blend_window, predict_bands, predict_image, tile_starts
from .unet import UNet

_DATA = {"open_slide": "slides", "rle_encode": "rle", "rle_decode": "rle"}

__all__ = [
    "EfficientNet", "UNet", "best_threshold", "blend_window", "dice_loss", "dice_score",
    "group_folds", "lovasz_hinge", "make_loss", "predict_bands", "predict_image", "tile_starts",
    *_DATA,
]


def __getattr__(name: str):
    # Only who opens slides needs tifffile: the data names are imported when they are asked for.
    if name in _DATA:
        from importlib import import_module

        return getattr(import_module(f".data.{_DATA[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
