"""# Run-length coding of masks, as HuBMAP writes it

A mask is a list of runs, "start length start length ...". Pixels are counted from 1, down each
column, then on to the next column: pixel (y, x) of an image of height H is number x H + y + 1.

>>> mask = np.array([[0, 1, 1],
...                  [1, 1, 0]])
>>> rle_encode(mask)  # column by column: 0 1, 1 1, 1 0
'2 4'
>>> rle_decode("2 4", 2, 3).tolist() == mask.tolist()
True
"""

import numpy as np


def rle_encode(mask: np.ndarray) -> str:
    """The runs of a mask (height, width); non-zero is positive. An empty mask gives ""."""
    mask = np.asarray(mask)
    coder = Encoder(*mask.shape)
    coder.add(mask)
    return coder.encode()


class Encoder:
    """`rle_encode` of a mask that comes in bands of rows, top to bottom. Memory grows with the
    number of runs, not with the mask.

    >>> coder = Encoder(height=2, width=3)
    >>> coder.add(np.array([[0, 1, 1]]))
    >>> coder.add(np.array([[1, 1, 0]]))
    >>> coder.encode()
    '2 4'
    """

    def __init__(self, height: int, width: int):
        self.height, self.width, self.y, self.positive = height, width, 0, 0
        self._above = np.zeros((1, width), bool)  # the row before the next band
        self._edges: list[np.ndarray] = []

    def add(self, band: np.ndarray) -> None:
        """The next rows, (rows, width). ValueError where they are more than `height`."""
        if self.y + len(band) > self.height:
            raise ValueError(f"{self.y + len(band)} rows for a mask of height {self.height}")
        band = np.asarray(band) != 0
        self.positive += int(np.count_nonzero(band))  # pixels so far
        change = np.concatenate([self._above, band[:-1]]) != band
        row, column = np.divmod(np.flatnonzero(change), self.width)
        self._edges.append(column * self.height + row + self.y)
        self._above, self.y = band[-1:].copy() if len(band) else self._above, self.y + len(band)

    def encode(self) -> str:
        """The runs of all bands. ValueError where rows are missing."""
        if self.y != self.height:
            raise ValueError(f"{self.y} rows of a mask of height {self.height}")
        # A column that ends inside a run ends that run; where the next begins with one, at the same
        # pixel, two equal edges stand side by side and cancel out.
        ends = (np.flatnonzero(self._above) + 1) * self.height
        edges = np.sort(np.concatenate([*self._edges, ends]))
        twice = np.flatnonzero(edges[1:] == edges[:-1])
        edges = np.delete(edges, np.concatenate([twice, twice + 1]))
        edges[1::2] -= edges[::2]
        edges[::2] += 1
        return " ".join(map(str, edges.tolist()))


def rle_decode(rle: str, height: int, width: int) -> np.ndarray:
    """The mask, uint8 (height, width) in {0, 1}, of a run-length string. ValueError for what are
    not whole numbers in pairs, and for runs that leave the image."""
    return Runs(rle, height, width).window(0, 0, height, width)


class Runs:
    """A mask as runs, out of which windows are decoded; errors as `rle_decode`."""

    def __init__(self, rle: str, height: int, width: int):
        try:
            numbers = np.array(rle.split(), dtype=object).astype(np.int64)
        except (ValueError, OverflowError):
            raise ValueError("run-length code holds something else than whole numbers: "
                             f"{rle[:40]!r}")
        if len(numbers) % 2:
            raise ValueError(f"run-length code has {len(numbers)} numbers: they come in pairs")
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        wrong = (starts < 0) | (lengths < 1) | (lengths > height * width - starts)
        if wrong.any():
            first = wrong.argmax()
            raise ValueError(f"run {numbers[2 * first]} {lengths[first]} leaves the image of "
                             f"{height} x {width} pixels")
        # Cut at the ends of columns: each piece then is [top, bottom) of one column.
        first, last = starts // height, (starts + lengths - 1) // height
        pieces = last - first + 1
        run = np.repeat(np.arange(len(starts)), pieces)
        column = first[run] + np.arange(len(run)) - np.repeat(pieces.cumsum() - pieces, pieces)
        top = np.maximum(starts[run] - column * height, 0)
        bottom = np.minimum((starts + lengths)[run] - column * height, height)
        order = np.argsort(column, kind="stable")
        self._column, self._top, self._bottom = column[order], top[order], bottom[order]

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w) in {0, 1}."""
        some = slice(*np.searchsorted(self._column, [x, x + w]))
        top, bottom = (edge[some].clip(y, y + h) - y for edge in (self._top, self._bottom))
        inside = bottom > top
        columns, column = np.unique(self._column[some][inside] - x, return_inverse=True)
        change = np.zeros((h + 1, len(columns)), np.int32)  # +1 where a piece begins, -1 at its end
        np.add.at(change, (top[inside], column), 1)
        np.add.at(change, (bottom[inside], column), -1)
        mask = np.zeros((h, w), np.uint8)
        mask[:, columns] = change[:-1].cumsum(0) > 0
        return mask
