"""# Where seams come from

**Idea.** At a tile's border a network sees half of what surrounds a pixel, or none of it: it errs
more there. Measured, that is the reason for overlap and for windows that fall towards the border
(`minseg.tiling`); measured again on the blended result, it says what each window makes of it.

    error(d) = wrong pixels at distance d / all pixels at distance d

A pixel is wrong where its probability is on the other side of 1/2 than its label. d is the
distance, in pixels of the training scale, to the nearest border of a tile inside the image: a
border that is the image's own is no seam. Between two seams d goes up to half a stride. Pixels
farther out than that lie at the image's border, where a slide is bare glass and nothing can be
wrong; they are left out, lest they praise large distances.
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
    """For each of `full` pixels of an axis, `length` of the training scale, the distance to the
    nearest border of a tile within the axis, in pixels of that scale; -1 beyond half a stride, and
    infinite on an axis without a seam.

    >>> distance_to_seam(7, 7, 1, tile=4, stride=4)  # tiles [0, 4) and [3, 7): seams at 3 and 4
    tensor([-1.0000,  1.5000,  0.5000,  0.5000,  0.5000,  1.5000, -1.0000])
    """
    starts = tile_starts(length, tile, stride)
    lines = [line for start in starts for line in (start, start + tile) if 0 < line < length]
    if not lines:
        return torch.full((full,), float("inf"))
    at = (torch.arange(full) + 0.5) / scale
    distance = (at[:, None] - torch.tensor(lines)).abs().amin(1)
    return torch.where(distance > stride / 2, -1.0, distance)


def seams(net: nn.Module, items: Sequence[Item], args: argparse.Namespace) -> dict:
    """For each of `WAYS` the wrong pixels and all pixels at the distances [0, 1), [1, 2) ... from a
    seam, up to half a stride, over all images. `args` are a run's options."""
    forward, found = predictor([net], device=args.device, amp=args.amp), {}
    for way, (share, window) in WAYS.items():
        stride = max(1, round(args.tile * (1 - share)))
        bins = -(-stride // 2)
        counts = torch.zeros(2, bins, dtype=torch.int64)
        for item in items:
            slide = open_slide(item.image, args.scale, item.white)
            mask = Mask(item, slide.full_height, slide.full_width)
            below, beside = (
                distance_to_seam(length, full, args.scale, args.tile, stride) for length, full in
                ((slide.height, slide.full_height), (slide.width, slide.full_width)))
            bands = predict_bands(forward, slide.read, slide.height, slide.width, tile=args.tile,
                                  stride=stride, window=window, batch=args.batch,
                                  device=args.device)
            for y, band in slide.enlarge(bands):
                rows, target = band.shape[1], torch.from_numpy(mask.read(y, 0, *band.shape[1:]))
                wrong = (band[0] >= 0.5) != (target == 1)
                distance = torch.minimum(below[y : y + rows, None], beside)
                known = (distance >= 0) & distance.isfinite() & (target != VOID)
                for count, part in zip(counts, (known & wrong, known)):
                    at = distance[part].long().clamp(max=bins - 1)
                    count += torch.bincount(at, minlength=bins)
        found[way] = {"wrong": counts[0].tolist(), "pixels": counts[1].tolist()}
    return found
