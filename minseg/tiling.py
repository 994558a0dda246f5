"""# Weighted tiling

**Idea.** A slide does not fit through the network, so it is cut into tiles that overlap. Near a
tile's border the network sees only half of what surrounds a pixel and is less to be trusted: where
tiles overlap, average them with a weight that falls towards the border of each.

    p(x) = sum_i w(x - o_i) p_i(x - o_i) / sum_i w(x - o_i)     o_i: tile i's corner, w: the window

                 ________tile 2_________
     ____tile 1__|_________             |    the pixel * lies deep inside tile 1 and close to
    |            |*        |            |    the border of tile 2: tile 1 has the greater say
    |____________|_________|            |
                 |______________________|

![Two tiles and their weights along one row](../docs/figures/overlap.png)

*Two tiles, the blog post's "patches", with linear weights: the ringed pixel lies deeper in patch 1,
which has the greater say.*

**The windows**, along one axis of T pixels at positions u = 1/2, 3/2 ... T - 1/2; the weight of a
pixel is the product over both axes, scaled to a maximum of 1:

| window | weight | |
|---|---|---|
| uniform | 1 | the plain average |
| linear | min(u, T - u) | the distance to the nearest side: the post's idea at its simplest |
| hann | sin^2(pi u / T) | as linear, but without a kink in the middle and flat at the border |
| gaussian | exp(-(u - T/2)^2 / (2 (T/8)^2)) | nnU-Net's; the product is at least 1e-3, as MONAI's |

![Four windows and their sums](../docs/figures/windows.png)

*The four windows, and what they sum to in tiles that overlap by half.*

**Shapes.** A slide, uint8 (height, width, 3) -> float32 (C, height, width). Tiles, uint8 (N, 3, T,
T), go to the network, probabilities (N, C, T, T) come back. Rows of tiles are blended in a band (C,
T, width), and rows that no later tile touches are handed out at once: memory grows with the tile
and the slide's width, never with its height.

    (left: the slide's top; right: its bottom)
    tile row at y = 0     |####|                 rows [0, stride) are done: yield them
    tile row at stride       |####|              rows [stride, 2 stride) are done ...
    the last one                |####|           is moved in so that it ends with the slide

![A seam with and without overlap](../docs/figures/seam.png)

*The worst seam of one synthetic slide, probabilities of a trained network (wrong: at 1/2). Tiles
that meet do not know of each other: one finds its part of a glomerulus, the other misses the rest.
Overlap mends the seam, not the false spots.*

**Source.** *Tricks of Semantic Segmentation*, blog post ("the post"), 30 May 2021, its last figure.
Overlapping tiles go back to the U-Net paper (arXiv 1505.04597, figure 2); weighing their
middle higher also to nnU-Net (arXiv 1809.10486, section 2.4), whose code has the Gaussian.

>>> from minseg import blend_window, tile_starts
>>> # the last is moved in where it would stick out; one is enough where the tile is larger
>>> tile_starts(10, tile=4, stride=3), tile_starts(11, tile=4, stride=3), tile_starts(3, 4, 3)
([0, 3, 6], [0, 3, 6, 7], [0])
>>> blend_window(4, "linear")[:, 1]  # 1/2, 3/2, 3/2, 1/2, over the largest
tensor([0.3333, 1.0000, 1.0000, 0.3333])
"""

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along an axis of `length` pixels, so that every pixel is covered. They lie
    `stride` apart, but the last is moved in to end with the axis. [0] where length <= tile.
    ValueError unless 0 < stride <= tile (a longer stride leaves gaps)."""
    if length < 1 or not 0 < stride <= tile:
        raise ValueError(f"length {length}, tile {tile}, stride {stride}: "
                         "need 1 <= length and 1 <= stride <= tile")
    last = max(length - tile, 0)
    return [*range(0, last, stride), last]


def blend_window(tile: int, kind: str = "linear") -> Tensor:
    """The weight of each pixel of a tile, float32 (tile, tile), max 1, min > 0. `kind` is "linear",
    "gaussian", "hann" or "uniform". ValueError for any other."""
    x = torch.arange(tile, dtype=torch.float64) + 0.5
    if kind == "uniform":
        axis = torch.ones_like(x)
    elif kind == "linear":
        axis = torch.minimum(x, tile - x)
    elif kind == "hann":
        axis = (math.pi * x / tile).sin() ** 2
    elif kind == "gaussian":
        axis = (-((x - tile / 2) ** 2) / (2 * (tile / 8) ** 2)).exp()
    else:
        raise ValueError(f"unknown window {kind!r}: use linear, gaussian, hann or uniform")
    window = torch.outer(axis, axis)
    window /= window.max()
    return (window.clamp(min=1e-3) if kind == "gaussian" else window).float()


def _trim() -> None:
    """Gives freed memory back to the system. The GNU C library keeps it in a heap for each thread:
    without this, what a slide needs grows with its height, though no more is in use."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def read_strips(read: Callable[[int, int, int, int], np.ndarray], width: int,
                spans: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """For each (top, bottom) of `spans`, which rise, the rows from top to bottom, whole width.
    Calls `read(y, 0, h, width)` from top to bottom, once for each row, and ahead, in a thread: the
    next rows are read and decoded while these are used."""
    new = [(max(top, before), bottom)
           for (top, bottom), (_, before) in zip(spans, [(0, 0), *spans])]
    with ThreadPoolExecutor(1) as reader:
        jobs = (reader.submit(read, top, 0, bottom - top, width) if bottom > top else None
                for top, bottom in new)
        strip, at, ahead = None, 0, next(jobs)
        for top, _ in spans:
            job, ahead = ahead, next(jobs, None)
            rows = [] if strip is None else [strip[top - at :]]
            rows += [] if job is None else [job.result()]
            strip, at = np.concatenate(rows), top
            del rows
            yield strip
            _trim()


@contextmanager
def one_thread() -> Iterator[None]:
    """Small steps beside a busy reader: several threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def predict_bands(
    predict: Callable[[Tensor], Tensor], read: Callable[[int, int, int, int], np.ndarray],
    height: int, width: int, *, tile: int, stride: int, window: str = "linear", batch: int = 8,
    device: str | torch.device = "cpu") -> Iterator[tuple[int, Tensor]]:
    """Predict an image of any size tile by tile and yield the blended result band by band.
    `predict` takes uint8 (N, 3, tile, tile), N <= `batch`, on `device`, and returns probabilities
    (N, C, tile, tile). `read(y, x, h, w)` returns uint8 (h, w, 3) from inside the image; it is
    called in a thread of its own, for no row twice. Yields (y, float32 (C, rows, width)) on the
    CPU, from top to bottom, each row once. An image smaller than the tile is continued by its
    border pixels, and cut again. Memory is O(tile * width)."""
    weight = blend_window(tile, window).to(device)
    tops, lefts = tile_starts(height, tile, stride), tile_starts(width, tile, stride)
    padded = max(width, tile)
    weights = torch.zeros(tile, padded, device=device)  # what all tiles of one row weigh together
    for left in lefts:
        weights[:, left : left + tile] += weight

    @lru_cache(2)  # the same from one band to the next, but for the first and the last ones
    def weight_sums(shifts: tuple[int, ...], rows: int) -> Tensor:
        """What all tiles weigh on `rows` rows, which lie `shifts` below the tops of tile rows."""
        sums = torch.zeros(rows, padded, device=device)
        for shift in shifts:
            part = weights[shift : shift + rows]
            sums[: len(part)] += part
        return sums[:, :width]

    total = None  # of the rows [top, top + tile)
    spans = [(top, min(top + tile, height)) for top in tops]
    with closing(read_strips(read, width, spans)) as strips:
        for top, following, strip in zip(tops, [*tops[1:], height], strips):
            if strip.shape[:2] != (tile, padded):
                edges = (0, tile - len(strip)), (0, padded - width), (0, 0)
                strip = np.pad(strip, edges, mode="edge")
            strip = torch.from_numpy(strip)  # (tile, padded, 3)
            if weight.is_cuda:  # from page-locked memory the copy does not hold up this program
                strip = strip.pin_memory().to(device, non_blocking=True)
            for i in range(0, len(lefts), batch):
                some = lefts[i : i + batch]
                with one_thread():
                    tiles = torch.stack([strip[:, left : left + tile] for left in some])
                tiles = tiles.permute(0, 3, 1, 2)  # (N, 3, tile, tile), channels last in memory
                probabilities = predict(tiles).detach()  # (N, C, tile, tile)
                if probabilities.shape[2:] != tiles.shape[2:]:
                    raise ValueError(f"predict gave {tuple(probabilities.shape)} for tiles of "
                                     f"{tile} pixels")
                probabilities = probabilities.to(device, torch.float32)
                if total is None:
                    total = torch.zeros(probabilities.shape[1], tile, padded, device=device)
                with one_thread():
                    for left, probability in zip(some, probabilities):
                        total[:, :, left : left + tile].addcmul_(probability, weight)

            done = following - top  # no later tile reaches above `following`
            shifts = tuple(top - other for other in tops if 0 <= top - other < tile)
            with one_thread():
                band = (total[:, :done, :width] / weight_sums(shifts, done)).cpu()
                total[:, : tile - done] = total[:, done:].clone()  # move the rest up
                total[:, tile - done :] = 0
            yield top, band


def predict_image(predict: Callable[[Tensor], Tensor], image: np.ndarray, **options) -> Tensor:
    """`predict_bands` over a whole image, uint8 (height, width, 3) -> (C, height, width)."""
    bands = predict_bands(predict, lambda y, x, h, w: image[y : y + h, x : x + w],
                          *image.shape[:2], **options)
    return torch.cat([band for _, band in bands], 1)
