"""# Resampling: slides of any magnification at one size of pixel

A pixel of one slide measures 0.25 µm, one of another 0.5 µm. With `--microns 0.8`, a *scaled*
pixel is 0.8 µm wide on both, so the network sees their objects at one size. f = 3.2 of the first
slide's own pixels make one scaled pixel. Scaled pixel i covers own pixels from i f to (i + 1) f:

    f >= 1    the mean of what it covers; own pixels at its border count as far as they are covered
    f < 1     between the two nearest own pixels, linearly: at (i + 1/2) f - 1/2

Rows and columns are weighted one after the other, so x and y may have an f of their own. A whole
f, the same for both, gives means of blocks, as `--scale` does, and is read in the same way. For any
other f, of a pyramid the level just finer is read: for f = 7.9 the one that is 4 times smaller, if
there is one, and 7.9 / 4 of its pixels make a scaled pixel.

**A window equals the same part of the whole, to the bit.** The weights of a scaled pixel depend on
its place in the slide, not in the window; and they are whole numbers whose sum is `ONE`, so that no
order of adding them up rounds in another way.

>>> import numpy as np
>>> rows = Axis(5, 2.5)  # five own pixels become two
>>> rows.size, rows.taps(0, 2)  # doctest: +NORMALIZE_WHITESPACE
(2, (array([0, 2]), array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])))
>>> image = np.array([10, 20, 30, 40, 50], np.uint8).reshape(5, 1, 1)
>>> Scaling(5, 1, (2.5, 1), 1).read(lambda y, x, h, w: image[y : y + h], 0, 0, 2, 1)[:, 0, 0]
array([18, 42], dtype=uint8)
"""

import math
from collections.abc import Callable

import numpy as np

BITS = 11
ONE = 2**BITS  # the sum of a pixel's weights along one axis: 255 ONE ONE fits into 32 bits
SLIVER = 1e-3  # less than this share of a scaled pixel, at the end of a slide, is not one
WHOLE = 0.01  # an f this close to a whole number is that number: files round their sizes
MOST = 2**24  # numbers to weight at a time


def linear(start: int, stop: int, factor: float, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """For those from `start` up to `stop` of pixels that are `factor` of others apart: the first of
    the two between whose centres each lies, int (n,), and the weights of both, float (n, 2)."""
    centre = np.clip((np.arange(start, stop) + 0.5) * factor - 0.5, 0, pixels - 1)
    first = centre.astype(np.int64)
    return first, np.stack([1 - (centre - first), centre - first], 1)


class Axis:
    """Rows or columns: `length` pixels, the last of which may be a part of one, and `factor` of
    which make one scaled pixel; `size` scaled pixels in all."""

    def __init__(self, length: float, factor: float):
        self.length, self.factor, self.pixels = length, factor, math.ceil(length)
        self.size = max(1, math.ceil(length / factor - SLIVER * (factor != 1)))

    def taps(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """For the scaled pixels from `start` up to `stop`: the first pixel that each is made of,
        int (n,), and the weights of this and those after it, float (n, T), whose sum is 1."""
        if self.factor < 1:
            return linear(start, stop, self.factor, self.pixels)
        edges = np.minimum(np.arange(start, stop + 1) * self.factor, self.length)
        if stop == self.size:
            edges[-1] = self.length  # a sliver belongs to the last one
        first, last = edges[:-1].astype(np.int64), np.ceil(edges[1:]).astype(np.int64)
        borders = first[:, None] + np.arange((last - first).max(initial=0) + 1)
        low, high = edges[:-1, None], edges[1:, None]
        return first, np.diff(np.clip((borders - low) / (high - low), 0, 1), axis=1)


def whole_weights(weights: np.ndarray) -> np.ndarray:
    """Weights (n, T) whose sum is 1 as whole numbers whose sum is `ONE`, uint32."""
    return np.diff(np.rint(np.cumsum(weights, 1) * ONE), prepend=0).astype(np.uint32)


def weigh(array: np.ndarray, first: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Sums of T weighted slices of `array` along an axis, as uint32; `first` (n,) and `weights`
    (n, T) say of which."""
    shape = [1] * array.ndim
    shape[axis] = -1
    total = np.zeros((*array.shape[:axis], len(first), *array.shape[axis + 1 :]), np.uint32)
    for t, weight in enumerate(weights.T):
        index = np.minimum(first + t, array.shape[axis] - 1)  # beyond the end weights are 0
        total += np.multiply(array.take(index, axis), weight.reshape(shape), dtype=np.uint32)
    return total


class Scaling:
    """How an image of `full_height` x `full_width` pixels becomes one of `height` x `width` scaled
    pixels: `factors` (rows, columns) of its pixels make one. The first part of the way goes in
    blocks, `block` pixels wide, as a level of a pyramid holds them, or a whole factor makes
    them."""

    def __init__(self, full_height: int, full_width: int, factors: tuple[float, float], block: int):
        self.factors, self.block = factors, block
        self._rows, self._columns = (Axis(pixels / block, factor / block)
                                     for pixels, factor in zip((full_height, full_width), factors))
        self.height, self.width = self._rows.size, self._columns.size

    def read(self, blocks: Callable[[int, int, int, int], np.ndarray],
             y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window of scaled pixels with its upper left corner at (y, x), (h, w, channels).
        `blocks` reads windows of blocks, uint8 (h, w, channels)."""
        if self.factors == (self.block, self.block):
            return blocks(y, x, h, w)
        columns, weights = self._columns.taps(x, x + w)
        weights = whole_weights(weights)
        left = int(columns.min(initial=0))
        right = min(int(columns.max(initial=0)) + weights.shape[1], self._columns.pixels)
        step = max(1, int(MOST / max(1, right - left) / max(1, self._rows.factor)))
        bands = []
        for top in range(y, y + max(h, 1), step):
            rows, rows_weights = self._rows.taps(top, min(top + step, y + h))
            first = int(rows.min(initial=0))
            last = min(int(rows.max(initial=0)) + rows_weights.shape[1], self._rows.pixels)
            source = blocks(first, left, last - first, right - left)
            total = weigh(source, rows - first, whole_weights(rows_weights), 0)
            total = weigh(total, columns - left, weights, 1)
            bands.append(((total + ONE * ONE // 2) >> (2 * BITS)).astype(np.uint8))
        return bands[0] if len(bands) == 1 else np.concatenate(bands)


def factors_for(size: tuple[float, float], microns: float) -> tuple[float, float]:
    """How many rows and columns of pixels of `size`, x and y in micrometres, make one of `microns`;
    whole numbers where they are as good as whole."""
    factors = (microns / size[1], microns / size[0])
    rows, columns = (round(f) if abs(f - max(1, round(f))) < WHOLE else f for f in factors)
    return rows, columns


def block_for(factors: tuple[float, float], levels: list[int]) -> int:
    """The blocks to begin with: a whole factor, equal in both directions; otherwise the coarsest of
    a pyramid's `levels` that is still finer than the scaled pixels."""
    finest = min(factors)
    if factors == (finest, finest) and finest == int(finest):
        return int(finest)
    return max((level for level in levels if level <= finest), default=1)
