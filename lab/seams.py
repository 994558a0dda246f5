"""# Where seams come from

**Idea.** At a tile's border a network sees only half of a pixel's surroundings, so it makes more
errors there. That is the reason for overlap, and for windows that fall off towards the border
(`minseg.tiling`). The same error measured on the blended result says how well each window works.

    error(d) = wrong pixels at distance d / all pixels at distance d

A pixel is wrong where its probability is on the other side of 1/2 than its label. d is the
distance, in pixels of the training scale, to the nearest border of a tile inside the image; the
image's own border is no seam. Between two seams d is at most half a stride. Pixels farther out lie
at the image's border, where a slide is bare glass and nothing can be wrong: counting them would
make large distances look good, so they are left out.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minseg.data.datasets import Item
from minseg.data.masks import VOID, Mask
from minseg.data.slides import open_slide
from minseg.run.predictor import predictor
from minseg.tiling import predict_bands, tile_starts

WAYS = {"no overlap": (0, "uniform"),
        **{f"overlap 0.5, {window}": (0.5, window)
           for window in ("uniform", "linear", "gaussian", "hann")}}


def distance_to_seam(length: int, full: int, scale: int, tile: int, stride: int) -> Tensor:
    """For each of `full` pixels along an axis, `length` at the training scale, the distance to the
    nearest border of a tile within the axis, in pixels of that scale; -1 beyond half a stride, and
    infinite on an axis without a seam.

    >>> distance_to_seam(7, 7, 1, tile=4, stride=4)  # tiles [0, 4) and [3, 7): seams at 3 and 4
    tensor([-1.0000,  1.5000,  0.5000,  0.5000,  0.5000,  1.5000, -1.0000])
    """
    starts = tile_starts(length, tile, stride)
    borders = [at for start in starts for at in (start, start + tile) if 0 < at < length]
    if not borders:
        return torch.full((full,), float("inf"))
    centres = (torch.arange(full) + 0.5) / scale
    distance = (centres[:, None] - torch.tensor(borders)).abs().amin(1)
    return torch.where(distance > stride / 2, -1.0, distance)


def seams(net: nn.Module, items: Sequence[Item], args: argparse.Namespace) -> dict:
    """For each of `WAYS` the wrong pixels and all pixels at the distances [0, 1), [1, 2) ... from a
    seam, up to half a stride, over all images. `args` are a run's options."""
    forward, result = predictor([net], device=args.device, amp=args.amp), {}
    for way, (share, window) in WAYS.items():
        stride = max(1, round(args.tile * (1 - share)))
        wrong, pixels = torch.zeros(2, -(-stride // 2), dtype=torch.int64)
        for item in items:
            slide = open_slide(item.image, args.scale, item.white)
            mask = Mask(item, slide.full_height, slide.full_width)
            down = distance_to_seam(slide.height, slide.full_height, args.scale, args.tile, stride)
            right = distance_to_seam(slide.width, slide.full_width, args.scale, args.tile, stride)
            bands = predict_bands(forward, slide.read, slide.height, slide.width, tile=args.tile,
                                  stride=stride, window=window, batch=args.batch,
                                  device=args.device)
            for y, (band,) in slide.enlarge(bands):
                target = torch.from_numpy(mask.read(y, 0, *band.shape))
                distance = torch.minimum(down[y : y + len(band), None], right)
                counted = (distance >= 0) & distance.isfinite() & (target != VOID)
                at = distance[counted].long().clamp(max=len(pixels) - 1)
                error = ((band >= 0.5) != (target == 1))[counted].long()
                pixels += torch.bincount(at, minlength=len(pixels))
                wrong.index_add_(0, at, error)
        result[way] = {"wrong": wrong.tolist(), "pixels": pixels.tolist()}
    return result
