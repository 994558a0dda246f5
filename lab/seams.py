"""# Where seams come from

**Idea.** At a tile's border a network sees only half of a pixel's surroundings, so it makes more
errors there. That is the reason for overlap, and for windows that fall off towards the border
(`minseg.tiling`). The same pixels, predicted with overlap, say what that brings.

    error(d) = wrong pixels at distance d / all pixels at distance d

A pixel is wrong where its probability is on the other side of 1/2 than its label. d is the
distance, in pixels of the training scale, to the nearest seam: a border inside the image of the
tiles that lie side by side, without overlap. It is the same for each way to predict, so that all
ways are compared at the same pixels. The image's own border is no seam. Pixels farther out than
half a tile lie at the image's border, where a slide is bare glass and nothing can be wrong:
counting them would make large distances look good, so they are left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minseg.files.masks import VOID, Item
from minseg.run.scores import read_saved
from minseg.tiling import tile_starts


def distance_to_seam(length: int, full: int, scale: float, tile: int) -> Tensor:
    """For each of `full` pixels along an axis, `length` at the training scale, the distance to the
    nearest seam, in pixels of that scale; -1 beyond half a tile, and infinite on an axis without a
    seam.

    >>> distance_to_seam(7, 7, 1, tile=4)  # tiles [0, 4) and [3, 7): seams at 3 and 4
    tensor([-1.0000,  1.5000,  0.5000,  0.5000,  0.5000,  1.5000, -1.0000])
    """
    starts = tile_starts(length, tile, tile)
    borders = [at for start in starts for at in (start, start + tile) if 0 < at < length]
    if not borders:
        return torch.full((full,), float("inf"))
    centres = (torch.arange(full) + 0.5) / scale
    distance = (centres[:, None] - torch.tensor(borders)).abs().amin(1)
    return torch.where(distance > tile / 2, -1.0, distance)


def errors(folder: Path, items: Sequence[Item], args: argparse.Namespace) -> dict[str, list[int]]:
    """The wrong pixels and all pixels at the distances [0, 1), [1, 2) ... from a seam, up to half a
    tile, over all images, whose probabilities are in `folder`/probabilities. `args` are a run's
    options."""
    wrong, pixels = np.zeros((2, -(-args.tile // 2)), int)
    for item in items:
        slide = item.open(args.scale, args.microns)
        down, right = (
            distance_to_seam(length, full, scale, args.tile).numpy() for length, full, scale in
            zip((slide.height, slide.width), (slide.full_height, slide.full_width),
                slide.scaling.factors))
        y = 0
        for levels, label in read_saved(folder, item):
            distance = np.minimum(down[y : y + len(levels), None], right)
            counted = (distance >= 0) & np.isfinite(distance) & (label != VOID)
            at = distance[counted].astype(int)
            error = ((levels > 127) != (label == 1))[counted]
            pixels += np.bincount(at, minlength=len(pixels))
            wrong += np.bincount(at[error], minlength=len(pixels))
            y += len(levels)
    return {"wrong": wrong.tolist(), "pixels": pixels.tolist()}
