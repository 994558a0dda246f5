"""# Where seams come from

**Idea.** At a tile's border a network sees half of what surrounds a pixel, or none of it: it errs
more there. Measured, that is the reason for overlap and for windows that fall towards the border
(`tiling`); measured again on the blended result, it says what each window makes of it.

    error(d) = wrong pixels at distance d / all pixels at distance d

A pixel is wrong where its probability is on the other side of 1/2 than its label. d is the distance,
in pixels of the training scale, to the nearest border of a tile inside the image: a border that is
the image's own is no seam. With the last tile moved in, a few seams lie closer together.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data.datasets import Item, Mask
from ..data.slides import open_slide
from ..run.predictor import predictor
from ..tiling import predict_bands, tile_starts

WAYS = {"no overlap": (0, "uniform"),
        **{f"overlap 0.5, {window}": (0.5, window)
           for window in ("uniform", "linear", "gaussian", "hann")}}


def distance_to_seam(length: int, full: int, scale: int, tile: int, stride: int) -> Tensor:
    """For each of `full` pixels of an axis, `length` of the training scale, the distance to the
    nearest border of a tile within the axis, in pixels of that scale; infinite where there is none.

    >>> distance_to_seam(6, 6, 1, tile=4, stride=4)  # tiles [0, 4) and [2, 6): seams at 2 and 4
    tensor([1.5000, 0.5000, 0.5000, 0.5000, 0.5000, 1.5000])
    """
    starts = tile_starts(length, tile, stride)
    lines = [line for start in starts for line in (start, start + tile) if 0 < line < length]
    at = (torch.arange(full) + 0.5) / scale
    return (at[:, None] - torch.tensor([*lines, float("inf")])).abs().amin(1)


def seams(net: nn.Module, items: Sequence[Item], args: argparse.Namespace) -> dict:
    """For each of `WAYS` the wrong pixels and all pixels at the distances [0, 1), [1, 2) ... tile /
    2 from a seam, over all images. `args` are a run's options."""
    forward = predictor([net], device=args.device, amp=args.amp)
    bins = args.tile // 2
    found = {}
    for way, (share, window) in WAYS.items():
        stride, counts = max(1, round(args.tile * (1 - share))), torch.zeros(2, bins + 1).long()
        for item in items:
            slide = open_slide(item.image, args.scale)
            mask = Mask(item, slide.full_height, slide.full_width)
            below, beside = (
                distance_to_seam(length, full, args.scale, args.tile, stride) for length, full in
                ((slide.height, slide.full_height), (slide.width, slide.full_width)))
            bands = predict_bands(forward, slide.read, slide.height, slide.width, tile=args.tile,
                                  stride=stride, window=window, batch=args.batch,
                                  device=args.device)
            for y, band in slide.enlarge(bands):
                rows, target = band.shape[1], torch.from_numpy(mask.read(y, 0, *band.shape[1:]))
                wrong = (band[0] >= 0.5) != (target > 0)
                distance = torch.minimum(below[y : y + rows, None], beside)
                distance = distance.clamp(max=bins).long().flatten()  # the last bin is left out
                counts[0] += torch.bincount(distance[wrong.flatten()], minlength=bins + 1)
                counts[1] += torch.bincount(distance, minlength=bins + 1)
        found[way] = {"wrong": counts[0, :-1].tolist(), "pixels": counts[1, :-1].tolist()}
    return found
