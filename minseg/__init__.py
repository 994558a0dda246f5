"""minseg: the tricks of binary segmentation of huge images, each in a file to read.

In reading order:

| file | trick |
|---|---|
| `minseg.unet` | the network: what goes where |
| `minseg.efficientnet` | its encoder |
| `minseg.pretrained` | its published weights: which name goes where, and how they were trained |
| `minseg.attention_gate` | skips that let through what the deeper map asks for |
| `minseg.scse` | a map weighs its channels and its places, at once |
| `minseg.cbam` | the same one after the other, by maximum and mean |
| `minseg.hypercolumn` | every pixel described by the maps of all sizes |
| `minseg.dice` | a loss that compares regions, not pixels |
| `minseg.lovasz` | a convex loss made from the Jaccard index itself |
| `minseg.losses` | sums of losses, and one after the other |
| `minseg.deep_supervision` | a loss at every size |
| `minseg.sampling` | all tiles with something, some of those without |
| `minseg.tiling` | slides of any size, by tiles weighted towards their centre |
| `minseg.tta` | eight views of each tile, averaged |
| `minseg.crossval` | a score to trust: folds of whole groups, thresholds chosen elsewhere |
| `minseg.data` | slides, masks, tiles |
| `minseg.run` | steps, scores, files, progress |
| `lab` | programs that measure, and draw |

Words: *glomeruli* are the kidney's round filters, *glass* is what lies empty around the tissue of a
*slide*; *HuBMAP* is Kaggle's competition of 2021 to find glomeruli in slides ("HuBMAP: Hacking the
Kidney"); *Dice* is the overlap of two masks, from 0 to 1; *nnU-Net*, *MONAI*, *timm*, *torchvision*
and *segmentation_models.pytorch* are libraries that many use.
"""

from .attention_gate import AttentionGate
from .cbam import CBAM
from .crossval import best_threshold, group_folds
from .deep_supervision import deep_supervision_loss
from .dice import dice_loss, dice_score
from .efficientnet import EfficientNet
from .hypercolumn import Hypercolumn
from .losses import make_loss
from .lovasz import lovasz_hinge
from .pretrained import load_weights
from .sampling import epoch_indices
from .scse import SCSE
from .tiling import blend_window, predict_bands, predict_image, tile_starts
from .tta import flips_and_turns
from .unet import UNet

_DATA = {"open_slide": "slides", "rle_encode": "rle", "rle_decode": "rle"}

def __getattr__(name: str):
    # Only who opens slides needs tifffile: the data names are imported when they are asked for.
    if name in _DATA:
        from importlib import import_module

        return getattr(import_module(f".data.{_DATA[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
