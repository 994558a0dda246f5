"""# Augmentation, on the training device

**In `tutorial.py`**, `logits = net.train()(inputs[crop])` shows the network every crop as it is on
the slide. Here `augment(images, masks, ...)` comes before that.

**Idea.** A glomerulus is still a glomerulus however the slide lay and however strongly the lab
stained it. So show the network every tile turned, flipped, shifted, stretched and stained anew each
time it comes: it hardly ever sees the same picture twice.

**Geometry** is a single affine map from the pixels of the output to those of the input. An image is
therefore resampled only once, whatever happens to it, and its mask by the same map (with the
nearest pixel, so that 0 and 1 stay 0 and 1):

    source = scale * R(quarter turn + small angle) * flip * output + offset

Tiles come with a margin of a quarter of their size on every side, and are shifted by up to that
much. As tiles begin half their size apart, an object can then lie anywhere in a tile. The few
pixels that a turned tile shows of what is beyond the margin are mirrored.

**Stain.** A dye of concentration c transmits I = 255 exp(-c a) of the light, where a is its
absorbance in red, green and blue (the Beer-Lambert law). In optical density, D = -log(I / 255),
stains simply add up. So split D into haematoxylin, eosin and DAB, three common dyes (or, with other
stains, whatever takes their place), scale each by its own random factor 1 + alpha, and go back:

    D' = D M^-1 diag(1 + alpha) M         D: a pixel's three densities, a row; rows of M: stains

(The code uses (I + 1) / 256, because black would have an infinite density.) Small angles reach 10
degrees either way; scale, contrast and brightness change by up to 10 %, and each stain by up to
15 %. `strength` multiplies all of these (`train.py --augment`). At 0 only flips, quarter turns and
shifts by whole pixels are left, so no pixel is resampled: enough for images that differ little, and
quicker to learn from.

![A tile with its margin, and eight tiles made of it](../docs/figures/augment.png)

*A tile with its margin, and eight of the tiles that it becomes. The mask (blue) moves with the
image and keeps its own sharp border; only the image is stained anew.*

**Shapes.** uint8 (N, 3, tile + 2 margin, tile + 2 margin) and masks (N, 1, same) -> float
(N, 3, tile, tile) in [0, 1] and float masks (N, 1, tile, tile). Random numbers are drawn on the
CPU from the given generator, so that every device sees the same augmentation.

| what | HuBMAP's winner | nnU-Net | here |
|---|---|---|---|
| quarter turns, flips | both | flips | both |
| other angles | up to 30 degrees, half of the tiles | one tile in five | up to 10 degrees |
| scale | up to 20 %, half of the tiles | 0.7 to 1.4, one tile in five | up to 10 % |
| colours | brightness, contrast, hue, saturation | brightness, contrast, gamma | see above |
| what else | noise, blur, black rectangles | noise, blur, low resolution | - |
| beyond the border | black | black | mirrored |
| where | the CPU, tile by tile | the CPU, in other processes | the device, a batch at once |

**Measured.** How much Dice the run gains if the augmentation is weaker than the default ([log](
../docs/log.md); no run without any was tried):

| data | half the strength | flips, quarter turns and shifts only |
|---|---|---|
| very few glomeruli | -0.050 [-0.132, +0.032] | +0.012 [-0.004, +0.028] |
| few glomeruli | | +0.030 [+0.007, +0.053] |
| nuclei | -0.019 [-0.046, +0.008] | -0.011 [-0.047, +0.026] |

Only the +0.030 is clear: these synthetic slides differ little, and the runs were short.

**Source.** The stain matrix: Ruifrok and Johnston, *Quantification of histochemical staining by
color deconvolution*, Anal. Quant. Cytol. Histol. 2001 (its numbers: `rgb_from_hed` in
scikit-image). Stain augmentation: Tellez et al., *Whole-Slide Mitosis Detection*, IEEE TMI 2018,
arXiv 1808.05896 (they also add a random shift to each stain; here stains are only scaled). The
winner: tikutikutiku/kaggle-hubmap, `src/02_train/transforms.py`; nnU-Net: `nnUNetTrainer.py`.

>>> import torch
>>> from minseg.augment import move
>>> tile = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(2, 3, 2, 2)  # no margin
>>> mask = (tile[:, :1] == 4).byte()  # the 4 is positive
>>> images, masks = move(tile, mask, 2, torch.Generator().manual_seed(5), strength=0)
>>> (images[:, 0] * 255).round().int()  # a quarter turn; half a turn
tensor([[[3, 1],
         [4, 2]],
<BLANKLINE>
        [[4, 3],
         [2, 1]]], dtype=torch.int32)
>>> masks[:, 0].int()  # still where the 4 is
tensor([[[0, 0],
         [1, 0]],
<BLANKLINE>
        [[1, 0],
         [0, 0]]], dtype=torch.int32)

**Exercises.**
1. *By hand.* Through haematoxylin alone, a pixel lets 0.52 of the red light pass, 0.50 of the
   green and 0.75 of the blue. What is left of each with alpha = (1, 0, 0), twice as much of it? And
   with alpha = (-1, 0, 0)?
2. *Break it.* In a copy of this file, my_augment.py, replace `"nearest", "reflection"` by
   `"nearest", "zeros"`. Predict, then run: which test fails, and what would the network
   learn from such tiles?
3. *Write it.* `restain(images, alpha)`.
   `python -m pytest tests/test_augment.py --mine my_augment.py` grades it, and the copy, too.

Next: `minseg.training`, what a network learns from these tiles, step by step.

**Answers.**
1. Twice the density is the square of the light: 0.27, 0.25 and 0.56 (but for the 1 that is added
   to I). Without its only stain the pixel is white.
2. `test_beyond_the_margin_image_and_mask_are_mirrored_not_black`. Beyond the margin the image shows
   mirrored glomeruli, and the mask would call them background.

>>> from minseg.augment import STAINS, restain
>>> pixel = (-torch.tensor(STAINS[0])).exp().view(1, 3, 1, 1)
>>> for alpha in (0., 1., -1.):
...     restain(pixel, torch.tensor([[alpha, 0., 0.]])).flatten()
tensor([0.5220, 0.4966, 0.7483])
tensor([0.2717, 0.2456, 0.5598])
tensor([0.9999, 1.0000, 0.9997])
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ANGLE, SCALE = 10.0, 0.1  # the largest angle in degrees; the largest logarithm of the scale
STAIN, CONTRAST, BRIGHTNESS = 0.15, 0.1, 0.1
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # haematoxylin, eosin, DAB


def augment(images: Tensor, masks: Tensor, tile: int, generator: torch.Generator,
            strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """`move`, then `recolour`: uint8 tiles with margin -> float tiles in [0, 1] and their masks."""
    images, masks = move(images, masks, tile, generator, strength)
    return recolour(images, generator, strength), masks


def copy_to(values: Tensor, device: torch.device) -> Tensor:
    """Starts a copy to the device without waiting for it to end. This needs page-locked (pinned)
    memory, from which CUDA can copy on its own."""
    values = values.pin_memory() if device.type == "cuda" else values
    return values.to(device, non_blocking=True)


def move(images: Tensor, masks: Tensor, tile: int, generator: torch.Generator,
         strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Flips, rotates, scales and shifts image and mask alike: uint8 (N, 3, S, S) and (N, 1, S, S)
    -> float (N, 3, tile, tile) in [0, 1] and (N, 1, tile, tile)."""
    n, _, size, _ = images.shape
    quarter_turn = torch.randint(4, (n,), generator=generator) * (math.pi / 2)
    flip = torch.randint(2, (n,), generator=generator) * 2 - 1
    small_angle, stretch, right, down = torch.rand(4, n, generator=generator) * 2 - 1
    angle = quarter_turn + small_angle * math.radians(strength * ANGLE)
    stretch = (stretch * (strength * SCALE)).exp() * (tile / size)
    margin, pixel = (size - tile) / 2, 2 / size  # a pixel in grid_sample's unit, half the image
    right, down = right * margin, down * margin
    if strength == 0:  # no pixel is resampled
        right, down = right.round(), down.round()
    right, down = right * pixel, down * pixel
    sin, cos = angle.sin() * stretch, angle.cos() * stretch
    x_row = torch.stack([cos * flip, -sin, right], 1)
    y_row = torch.stack([sin * flip, cos, down], 1)
    affine = copy_to(torch.stack([x_row, y_row], 1), images.device)  # (N, 2, 3)
    grid = F.affine_grid(affine, [n, 1, tile, tile], align_corners=False)
    images, masks = images.float() / 255, masks.float()
    images = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    masks = F.grid_sample(masks, grid, "nearest", "reflection", align_corners=False)
    return images, masks


def recolour(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Changes stain, contrast and brightness of each image at random: float (N, 3, H, W) in
    [0, 1]."""
    n = len(images)
    stain, contrast, brightness = (
        (torch.rand(n, k, generator=generator) * 2 - 1) * (strength * largest)
        for k, largest in ((3, STAIN), (1, CONTRAST), (1, BRIGHTNESS)))
    images = restain(images, stain)
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (copy_to(v.view(n, 1, 1, 1), images.device)
                            for v in (contrast, brightness))
    return ((images - mean) * (1 + contrast) + mean * (1 + brightness)).clamp(0, 1)


def restain(images: Tensor, alpha: Tensor) -> Tensor:
    """Gives each stain 1 + alpha times its concentration: float (N, 3, H, W) in [0, 1] and (N, 3)
    -> float (N, 3, H, W), which may leave [0, 1]."""
    stains = torch.tensor(STAINS)
    change = stains.inverse() @ torch.diag_embed(1 + alpha) @ stains  # (N, 3, 3), for row vectors
    density = -((images * 255 + 1) / 256).log()
    density = torch.einsum("nchw,ncd->ndhw", density, copy_to(change, images.device))
    return (-density).exp() * (256 / 255) - 1 / 255
