"""minseg: the tricks of binary segmentation on huge images, each in one readable file.

In reading order:

| file | trick |
|---|---|
| `minseg.unet` | the network, and where each trick goes |
| `minseg.efficientnet` | its encoder |
| `minseg.pretrained` | its published weights: which name goes where, and how they were trained |
| `minseg.attention_gate` | skips that pass only what the deeper map asks for |
| `minseg.scse` | a map that weights its own channels and pixels, both at once |
| `minseg.cbam` | the same, one after the other, from maximum and mean |
| `minseg.hypercolumn` | every pixel described by the maps of all sizes |
| `minseg.dice` | a loss that compares regions, not pixels |
| `minseg.lovasz` | a convex loss derived from the Jaccard index itself |
| `minseg.losses` | sums of losses, and one loss after another |
| `minseg.deep_supervision` | a loss at every size but the coarsest |
| `minseg.sampling` | all tiles with objects, some of those without |
| `minseg.augment` | each tile turned, shifted, stretched and stained anew, with its mask |
| `minseg.training` | a step with fewer bits, less memory and less noise, and the same mathematics |
| `minseg.tiling` | slides of any size, by overlapping tiles that count less at their border |
| `minseg.tta` | test-time augmentation: eight views of each tile, averaged |
| `minseg.predictor` | trained networks, made faster and averaged |
| `minseg.crossval` | a score to trust: folds of whole groups, thresholds chosen on other folds |
| `minseg.synthetic` | kidney slides drawn from a seed, with exact masks |
| `minseg.processes` | no trick: torchrun's processes compute one run together |
| `minseg.weights` | no trick: opens the files of weights for `minseg.pretrained` |
| `minseg.files` | slides, masks, polygons: what other programs wrote, and what we write |
| `minseg.run` | what surrounds the loops: options, tiles, checkpoints, scores, progress |
| `lab` | programs that measure and draw |

Each trick ends with three exercises, their answers, and which file is next; after the last one it
is `train.py`. What you write yourself, its tests grade:
`python -m pytest tests/test_scse.py --mine my_scse.py`. If there is no my_scse.py yet, this writes
one to be filled in, with the signature and the docstring of what is asked for; with `-x` added, it
stops at the first fault. To "Break it", predict first what goes wrong, then which of the tests
notice; `--collect-only -q` lists them.

In a hurry: `unet`, `dice`, `lovasz`, `losses`, `tiling` and `crossval`, then `train.py`. The rest
can be read alone, in any order.

Words: *glomeruli* are the kidney's round filters; a *slide* is the scan of a thin section of
tissue, and *glass* the empty area around the tissue. *HuBMAP* is Kaggle's competition of 2021 to
find glomeruli in slides ("HuBMAP: Hacking the Kidney"). *Dice* measures the overlap of two masks,
from 0 to 1. *nnU-Net*, *MONAI*, *timm*, *torchvision* and *segmentation_models.pytorch* are widely
used libraries. Under **Measured**, a difference in Dice above 0 favours the trick, and brackets
are a 95 % interval for new groups and seeds.
"""

from .attention_gate import AttentionGate
from .cbam import CBAM
from .crossval import best_threshold, group_folds
from .deep_supervision import deep_supervision_loss
from .dice import dice_loss, dice_score
from .efficientnet import EfficientNet
from .files.rle import rle_decode, rle_encode
from .files.slides import open_slide
from .hypercolumn import Hypercolumn
from .losses import make_loss
from .lovasz import lovasz_hinge
from .pretrained import load_weights
from .sampling import epoch_indices
from .scse import SCSE
from .tiling import blend_window, predict_bands, predict_image, tile_starts
from .tta import flips_and_turns
from .unet import UNet
