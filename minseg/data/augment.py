"""# Augmentation on the training device

**Idea.** A glomerulus is one in whichever direction it lies and however strongly the lab stained
it. Show the network each tile turned, flipped, stretched and stained anew every time.

**Geometry** is a single affine map from the pixels wanted to the pixels there are, so an image is
resampled once, whatever happens to it, and its mask by the same map (nearest neighbour: 0 and 1
stay 0 and 1):

    source = scale * R(quarter turn + small angle) * flip * wanted + offset

Tiles come with a margin on every side, out of which offsets and corners are filled with real
pixels.

**Stain.** A dye of concentration c lets through I = 255 exp(-c a), a being its absorbance in red,
green and blue (Beer and Lambert). In optical density, D = -log(I / 255), stains just add up: split
D into haematoxylin, eosin and DAB (on other stains: what takes their place), scale each, go back.

    D' = D M^-1 diag(1 + alpha) M,        the rows of M: each stain's absorbance

(computed from (I + 1) / 256, so that black has a density). Angles reach 10 degrees, sizes and
contrast and brightness 10 %, stains 15 % either way.

**Shapes.** uint8 (N, 3, tile + 2 margin, tile + 2 margin) and masks (N, 1, same) -> float
(N, 3, tile, tile) in [0, 1] and float masks (N, 1, tile, tile). Random numbers are drawn on the CPU
from the generator given, so that every device sees the same augmentation.

**Source.** The stain matrix: Ruifrok and Johnston, *Quantification of histochemical staining by
color deconvolution*, Anal. Quant. Cytol. Histol. 2001. Stain augmentation: Tellez et al., *Whole-
Slide Mitosis Detection*, IEEE TMI 2018, arXiv 1808.05896 (without their shift).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ANGLE, SCALE = 10.0, 0.1  # degrees and log: up to 10 degrees and 10 % either way
STAIN, CONTRAST, BRIGHTNESS = 0.15, 0.1, 0.1
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # haematoxylin, eosin, DAB


def augment(images: Tensor, masks: Tensor, tile: int,
            generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`move`, then `recolour`: uint8 tiles with margin -> float tiles in [0, 1] and their masks."""
    images, masks = move(images, masks, tile, generator)
    return recolour(images, generator), masks


def copy_to(values: Tensor, device: torch.device) -> Tensor:
    """A copy that is not waited for: from page-locked memory, which CUDA reads by itself."""
    values = values.pin_memory() if device.type == "cuda" else values
    return values.to(device, non_blocking=True)


def move(images: Tensor, masks: Tensor, tile: int,
         generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips, quarter turns, small rotation, scale and offset: image and mask alike. uint8 (N, 3, S,
    S) and (N, 1, S, S) -> float (N, 3, tile, tile) in [0, 1], (N, 1, tile, tile)."""
    n, _, size, _ = images.shape
    quarter = torch.randint(4, (n,), generator=generator) * (math.pi / 2)
    flip = torch.randint(2, (n,), generator=generator) * 2 - 1
    angle, stretch, right, down = torch.rand(4, n, generator=generator) * 2 - 1
    angle = quarter + angle * math.radians(ANGLE)
    stretch = (stretch * SCALE).exp() * (tile / size)
    reach = (size - tile) / 2 / size  # half the margin; grid_sample's unit is half of S
    sin, cos = angle.sin() * stretch, angle.cos() * stretch
    x_row = torch.stack([cos * flip, -sin, right * reach], 1)
    y_row = torch.stack([sin * flip, cos, down * reach], 1)
    affine = copy_to(torch.stack([x_row, y_row], 1), images.device)  # (N, 2, 3)
    grid = F.affine_grid(affine, [n, 1, tile, tile], align_corners=False)
    options = dict(padding_mode="reflection", align_corners=False)
    images = F.grid_sample(images.float() / 255, grid, "bilinear", **options)
    masks = F.grid_sample(masks.float(), grid, "nearest", **options)
    return images, masks


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Other stain, contrast and brightness for each image, float (N, 3, H, W) in [0, 1]."""
    n = len(images)
    stain, contrast, brightness = ((torch.rand(n, k, generator=generator) * 2 - 1) * strength for
                                   k, strength in ((3, STAIN), (1, CONTRAST), (1, BRIGHTNESS)))
    stains = torch.tensor(STAINS)
    change = stains.inverse() @ torch.diag_embed(1 + stain) @ stains  # (N, 3, 3), of row vectors
    density = -((images * 255 + 1) / 256).log()
    density = torch.einsum("nchw,ncd->ndhw", density, copy_to(change, images.device))
    images = (-density).exp() * (256 / 255) - 1 / 255
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (copy_to(v.view(n, 1, 1, 1), images.device)
                            for v in (contrast, brightness))
    return ((images - mean) * (1 + contrast) + mean * (1 + brightness)).clamp(0, 1)
