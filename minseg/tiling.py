"""# Weighted tiling

**In `tutorial.py`**, `after = predict_image(predict, images[8], tile=CROP, stride=CROP // 2)` cuts
the slide into tiles that overlap by half. How their answers become one is explained here.

**Idea.** A slide does not fit through the network, so it is cut into tiles. Near a tile's border
the network sees only half of what surrounds a pixel, so its answer is less reliable there, and
where two tiles meet (at the *seam*), the two answers do not fit together. So let tiles overlap, and
average them with a weight that falls towards the border of each.

    p(x) = sum_i w(x - o_i) p_i(x - o_i) / sum_i w(x - o_i)     o_i: tile i's corner, w: the window

                 ________tile 2_________
     ____tile 1__|_________             |    the pixel * lies deep inside tile 1 and close to
    |            |*        |            |    the border of tile 2: tile 1 counts for more
    |____________|_________|            |
                 |______________________|

![Two tiles and their weights along one row](../docs/figures/overlap.png)

*Two tiles, linear weights: the ringed pixel lies deeper in tile 1.*

**The windows**, along one axis of T pixels at positions u = 1/2, 3/2 ... T - 1/2; the weight of a
pixel is the product over both axes, scaled to a maximum of 1:

| window | weight | |
|---|---|---|
| uniform | 1 | the plain average |
| linear | min(u, T - u) | the distance to the nearer end: the blog post's idea at its simplest |
| hann | sin^2(pi u / T) | like linear, but smooth in the middle and flat at the border |
| gaussian | exp(-(u - T/2)^2 / (2 (T/8)^2)) | nnU-Net's; the product is at least 1e-3 (MONAI) |

![Four windows and their sums](../docs/figures/windows.png)

*The four windows, and their sums over tiles that overlap by half.*

**Shapes.** A slide, uint8 (height, width, 3) -> float32 (C, height, width). The network takes
tiles, uint8 (N, 3, T, T), and returns probabilities, (N, C, T, T). Two buffers hold the sums of
w p, (C, T, width), and of w, (T, width), for one row of tiles. Rows that no later tile reaches are
finished: their quotient is yielded as a *band* as wide as the slide, and the rest of both buffers
moves up. Memory grows with the tile and with the slide's width, not with its height.

    (left: the slide's top; right: its bottom)
    tile row at y = 0     |####|                 rows [0, stride) are finished: yield them
    tile row at stride       |####|              rows [stride, 2 stride) are finished ...
    the last one               |####|            is moved in so that it ends with the slide

**Turned tiles** (`turn=True`, as `train.py` predicts). Tissue has no upright position, but what a
network says still depends a little on how a tile lies. Test-time augmentation averages over turns,
at the price of predicting each tile several times (`minseg.tta`). Tiles that overlap by half show
each pixel four times anyway; so show it in all four turns, for nothing: the tile in row r and
column k is turned by 2 (r mod 2) + (k mod 2) quarter turns, and the answer is turned back.

    0 1 0 1 ...     each pixel inside lies in four neighbouring tiles,
    2 3 2 3         one of each turn
    0 1 0 1 ...

On five small data sets the same networks gained +0.006 [-0.002, +0.014] by it, which may be chance
([race](../docs/race.md)); on synthetic slides of forty patients, too, and there it is clear.

![A seam with and without overlap](../docs/figures/seam.png)

*A synthetic slide that a trained network has not seen, in tiles of 64 pixels, and of all places
where four of them meet the one where overlap repairs most pixels. The tiles at the right see little
more than the ragged edge of the tissue, and without overlap they take pieces of it for glomeruli:
5.1 % of the pixels are wrong, with overlap 1.7 %. On the whole slide, Dice is 0.926 without overlap
and 0.963 with it.*

**What overlap cannot fully mend.** Each convolution sees zeros beyond the tile's border, and they
spread inwards from layer to layer, up to 520 pixels in Lite0. Overlap hides most of that, since a
pixel's answer comes mostly from a tile in which it lies far inside. Two causes act at any distance
from the border: layers that take means over the whole tile (squeeze-and-excitation in B0 to B7,
`minseg.scse`, `minseg.cbam`), and tiles that are not a multiple of 32 pixels apart, as the last
one, which is moved in. Without these two, and more than 520 pixels inside, a pixel's answer is the
same to the bit in every tile ([measured](../docs/shifts.md)).

**Measured.** Overlap 0.5 and the linear window instead of no overlap: -0.002 on nuclei, +0.077 on
synthetic slides, +0.073 on those of forty patients, in tiles of 64 pixels, where most pixels are
near a border: clear. The window alone: -0.001, +0.048 and +0.017, clear on the slides. The Gaussian
instead of the linear window, on the forty patients: -0.004 [-0.006, -0.002]
([how](../docs/study.md)).

**Source.** *Tricks of Semantic Segmentation*, blog post ("the post"), 30 May 2021, last figure.
Overlapping tiles go back to the U-Net paper (arXiv 1505.04597, figure 2); nnU-Net (arXiv
1809.10486, section 2.4) also gives more weight to their centre, with a Gaussian in its code.

>>> from minseg import blend_window, tile_starts
>>> # the last tile is moved in if it would stick out; one is enough if it covers the whole axis
>>> tile_starts(10, tile=4, stride=3), tile_starts(11, tile=4, stride=3), tile_starts(3, 4, 3)
([0, 3, 6], [0, 3, 6, 7], [0])
>>> blend_window(4, "linear")[:, 1]  # 1/2, 3/2, 3/2, 1/2, divided by the largest
tensor([0.3333, 1.0000, 1.0000, 0.3333])

**Exercises.**
1. *By hand.* A slide six pixels wide is covered by two tiles of 4 with stride 2. The first says 1
   everywhere, the second 0. What are the six values of a row, with the linear window?
2. *Break it.* In a copy of this file, my_tiling.py, replace `sums[..., rest.shape[-2] :, :] = 0` by
   `pass`. Predict, then run: which tests fail? Why not
   `test_normalised_weights_sum_to_one_everywhere`?
3. *Write it.* `tile_starts(length, tile, stride)`, then `blend_window(tile, kind="linear")`.
   `python -m pytest tests/test_tiling.py --mine my_tiling.py` grades them, and the copy, too.

Next: `minseg.tta`, because each tile can also be predicted in eight ways.

**Answers.**
1. The middle pixels have the weights 3/2 and 1/2, then 1/2 and 3/2.
2. `test_a_predictor_that_ignores_position_gives_its_own_map_back`,
   `test_bands_equal_the_weighted_mean_of_the_whole_image`,
   `test_half_precision_is_blended_in_float32_and_views_of_any_order_are_read` and
   `test_with_turned_tiles_that_overlap_by_half_each_pixel_is_seen_in_all_four_positions`: the last
   rows of the tiles stay where they were and are added again, further down the slide. So are their
   weights, and a mean of ones is still 1.

>>> import numpy as np
>>> import torch
>>> from minseg import predict_image
>>> first = lambda tiles: torch.tensor([1., 0.]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
>>> predict_image(first, np.zeros((4, 6, 3), np.uint8), tile=4, stride=2)[0, 0]
tensor([1.0000, 1.0000, 0.7500, 0.2500, 0.0000, 0.0000])
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along an axis of `length` pixels, so that every pixel is covered. They lie
    `stride` apart, but the last one is moved in so that it ends with the axis; [0] if length <=
    tile. ValueError unless 0 < stride <= tile (a longer stride would leave gaps)."""
    if length < 1 or not 0 < stride <= tile:
        raise ValueError(f"length {length}, tile {tile}, stride {stride}: "
                         "need 1 <= length and 1 <= stride <= tile")
    last = max(length - tile, 0)
    return [*range(0, last, stride), last]


def blend_window(tile: int, kind: str = "linear") -> Tensor:
    """The weight of each pixel of a tile, float32 (tile, tile), max 1, min > 0. `kind` is "linear",
    "gaussian", "hann" or "uniform". ValueError for any other kind."""
    u = torch.arange(tile, dtype=torch.float64) + 0.5
    if kind == "uniform":
        axis = torch.ones_like(u)
    elif kind == "linear":
        axis = torch.minimum(u, tile - u)
    elif kind == "hann":
        axis = (math.pi * u / tile).sin() ** 2
    elif kind == "gaussian":
        axis = (-((u - tile / 2) ** 2) / (2 * (tile / 8) ** 2)).exp()
    else:
        raise ValueError(f"unknown window {kind!r}: use linear, gaussian, hann or uniform")
    window = torch.outer(axis, axis)
    window /= window.max()
    return (window.clamp(min=1e-3) if kind == "gaussian" else window).float()


def predict_bands(
    predict: Callable[[Tensor], Tensor], read: Callable[[int, int, int, int], np.ndarray],
    height: int, width: int, *, tile: int, stride: int, window: str = "linear", batch: int = 8,
    device: str | torch.device = "cpu", turn: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Predicts an image of any size tile by tile and yields the blended result band by band.
    `predict` takes uint8 (N, 3, tile, tile), N <= `batch`, on `device`, and returns probabilities
    (N, C, tile, tile). `read(y, x, h, w)` returns uint8 (h, w, 3) from inside the image; it is
    called in a background thread, once for each row. Yields (y, float32 (C, rows, width)) on the
    CPU, each row once, from the top, with values in [0, 1] as the probabilities are. An image
    smaller than the tile is padded with its border pixels, and the result cropped. With `turn`,
    neighbouring tiles are shown in other quarter turns. Memory is O(tile * width)."""
    weight = blend_window(tile, window).to(device)
    tops, lefts = tile_starts(height, tile, stride), tile_starts(width, tile, stride)
    padded_width = max(width, tile)
    # Sums over rows [top, top + tile). Both add their tiles in the same order and so are rounded
    # alike: the mean of ones is 1 exactly, and no mean of probabilities exceeds 1 by an error.
    total, total_weight = None, torch.zeros(1, tile, padded_width, device=device)
    ones = torch.ones(1, device=device).expand(len(lefts), 1, 1, 1)
    spans = [(top, min(top + tile, height)) for top in tops]
    with closing(read_strips(read, width, spans)) as strips:
        for row, (top, next_top, strip) in enumerate(zip(tops, [*tops[1:], height], strips)):
            pixels = pad_strip(strip, tile, padded_width, device)  # (tile, padded_width, 3)
            for i in range(0, len(lefts), batch):
                batch_lefts = lefts[i : i + batch]
                turns = [turn * (2 * (row % 2) + k % 2) for k in range(i, i + len(batch_lefts))]
                tiles = cut_tiles(pixels, batch_lefts, tile, turns)  # (N, 3, tile, tile)
                probabilities = predict(tiles).detach()  # (N, C, tile, tile)
                if probabilities.shape[2:] != tiles.shape[2:]:
                    raise ValueError(f"predict gave {tuple(probabilities.shape)} for tiles of "
                                     f"{tile} pixels")
                probabilities = probabilities.to(device, torch.float32)
                if total is None:
                    total = torch.zeros(probabilities.shape[1], tile, padded_width, device=device)
                add_tiles(total, probabilities, batch_lefts, weight, turns)

            assert total is not None  # every row has a tile
            add_tiles(total_weight, ones, lefts, weight, [0] * len(lefts))
            yield top, take_rows(total, total_weight, next_top - top, width).cpu()


def predict_image(predict: Callable[[Tensor], Tensor], image: np.ndarray, **options) -> Tensor:
    """`predict_bands` over a whole image, uint8 (height, width, 3) -> (C, height, width)."""
    bands = predict_bands(predict, lambda y, x, h, w: image[y : y + h, x : x + w],
                          *image.shape[:2], **options)
    return torch.cat([band for _, band in bands], 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """For small steps while another thread decodes: more threads would mostly wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def cut_tiles(pixels: Tensor, lefts: Sequence[int], tile: int, turns: Sequence[int]) -> Tensor:
    """The tiles at `lefts` of a strip (tile, W, 3), each after so many quarter `turns`:
    (N, 3, tile, tile), channels last in memory."""
    tiles = (pixels[:, left : left + tile] for left in lefts)
    return torch.stack([each.rot90(turn) if turn else each
                        for each, turn in zip(tiles, turns)]).permute(0, 3, 1, 2)


@one_thread()
def add_tiles(total: Tensor, probabilities: Tensor, lefts: Sequence[int], weight: Tensor,
              turns: Sequence[int]) -> None:
    """Adds w p of the tiles that begin at `lefts`, (N, C, tile, tile), turned back, to `total`
    (C, tile, W)."""
    for left, probability, turn in zip(lefts, probabilities, turns):
        probability = probability.rot90(-turn, (1, 2)) if turn else probability
        total[:, :, left : left + weight.shape[1]].addcmul_(probability, weight)


@one_thread()
def take_rows(total: Tensor, total_weight: Tensor, rows: int, width: int) -> Tensor:
    """The weighted mean of the first `rows` rows, which no later tile reaches: (C, rows, width).
    The rest of both sums then moves up, and zeros follow."""
    mean = total[:, :rows, :width] / total_weight[:, :rows, :width]
    for sums in (total, total_weight):
        rest = sums[..., rows:, :].clone()
        sums[..., : rest.shape[-2], :] = rest
        sums[..., rest.shape[-2] :, :] = 0
    return mean


def pad_strip(strip: np.ndarray, rows: int, columns: int, device: str | torch.device) -> Tensor:
    """(h, w, 3) -> (rows, columns, 3) on `device`: border pixels repeated down and to the right."""
    down, right = rows - strip.shape[0], columns - strip.shape[1]
    if down or right:
        strip = np.pad(strip, [(0, down), (0, right), (0, 0)], mode="edge")
    pixels = torch.from_numpy(strip)
    if torch.device(device).type == "cuda":  # from pinned memory the copy runs in the background
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


def read_strips(read: Callable[[int, int, int, int], np.ndarray], width: int,
                spans: Sequence[tuple[int, int]]) -> Generator[np.ndarray, None, None]:
    """Yields rows top to bottom, in full width, for each (top, bottom) of `spans`, which are in
    increasing order. Calls `read(y, 0, h, width)` in a background thread, once for each row: while
    the caller works on one strip, the new rows of the next are read."""
    bottoms = [0, *(bottom for _, bottom in spans)]

    def read_new_rows(i: int) -> list[np.ndarray]:
        """Those of strip i that strip i - 1 does not have; an empty list if there are none."""
        top, bottom = max(spans[i][0], bottoms[i]), bottoms[i + 1]
        return [read(top, 0, bottom - top, width)] if bottom > top else []

    with ThreadPoolExecutor(1) as reader:
        overlap: list[np.ndarray] = []  # the rows that a strip shares with the one above it
        jobs = [reader.submit(read_new_rows, 0)]
        for i, (top, _) in enumerate(spans):
            # Popped, since an error that held a job which holds the error would never be freed.
            strip = np.concatenate([*overlap, *jobs.pop().result()])
            if i + 1 < len(spans):
                jobs.append(reader.submit(read_new_rows, i + 1))
                overlap = [strip[spans[i + 1][0] - top :]]
            yield strip
