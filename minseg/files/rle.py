"""# Run-length coding of masks, as HuBMAP writes it

A mask is a list of runs, "start length start length ...". Pixels are counted from 1, down each
column, then on to the next column: pixel (y, x) of an image of height H has the number x H + y + 1.

>>> mask = np.array([[0, 1, 1],
...                  [1, 1, 0]])
>>> rle_encode(mask)  # column by column: 0 1, 1 1, 1 0
'2 4'
>>> rle_decode("2 4", 2, 3).tolist() == mask.tolist()
True
"""

import warnings
from itertools import pairwise

import numpy as np

from .polygons import MASKS_PAGE

EMPTY = ("", "-1", "1 0", "nan", "none")  # how submissions to Kaggle write an empty mask
CELL = 32_767  # characters in a cell of a spreadsheet; the rest is lost


def rle_encode(mask: np.ndarray) -> str:
    """The run-length code of a mask (height, width) whose non-zero pixels are positive. An empty
    mask gives ""."""
    mask = np.asarray(mask)
    encoder = Encoder(*mask.shape)
    encoder.add(mask)
    return encoder.encode()


class Encoder:
    """`rle_encode` for a mask that arrives in bands of rows, top to bottom. Memory grows with the
    number of runs, not with the size of the mask.

    >>> encoder = Encoder(height=2, width=3)
    >>> encoder.add(np.array([[0, 1, 1]]))
    >>> encoder.add(np.array([[1, 1, 0]]))
    >>> encoder.encode()
    '2 4'
    """

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.y = 0  # rows so far
        self.positive = 0  # positive pixels so far
        self._row_above = np.zeros((1, width), bool)  # the last row so far
        self._edges: list[np.ndarray] = []  # pixels, from 0, that differ from the one above

    def add(self, band: np.ndarray) -> None:
        """Takes the next rows, (rows, width). ValueError if they are more than `height`."""
        if self.y + len(band) > self.height:
            raise ValueError(f"{self.y + len(band)} rows for a mask of height {self.height}")
        band = np.asarray(band) != 0
        self.positive += int(np.count_nonzero(band))
        changed = np.concatenate([self._row_above, band[:-1]]) != band
        row, column = np.divmod(np.flatnonzero(changed), self.width)
        self._edges.append(column * self.height + row + self.y)
        if len(band):
            self._row_above = band[-1:].copy()
        self.y += len(band)

    def encode(self) -> str:
        """The run-length code of all bands. ValueError if rows are missing."""
        if self.y != self.height:
            raise ValueError(f"{self.y} rows of a mask of height {self.height}")
        # The end of a column ends its last run. If the next column begins with a run, both edges
        # have the same number: they cancel out, and the two runs become one.
        ends = (np.flatnonzero(self._row_above) + 1) * self.height
        edges = np.sort(np.concatenate([*self._edges, ends]))
        equal = np.flatnonzero(edges[1:] == edges[:-1])
        edges = np.delete(edges, np.concatenate([equal, equal + 1]))
        edges[1::2] -= edges[::2]  # ends become lengths
        edges[::2] += 1  # starts are counted from 1
        return " ".join(map(str, edges.tolist()))


def rle_decode(rle: str, height: int, width: int) -> np.ndarray:
    """The mask of a run-length string, uint8 (height, width) in {0, 1}; "", "-1", "1 0", "nan" and
    "none" are an empty mask. ValueError if the string is not pairs of whole numbers, if a
    spreadsheet has cut it off, if a run leaves the image, or if two runs overlap."""
    return Runs(rle, height, width).window(0, 0, height, width)


def _pairs(rle: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The starts, from 0, and the lengths of the runs. ValueError as from `rle_decode`."""
    rle = rle.strip()
    if len(rle) < 10 and " ".join(rle.split()).lower() in EMPTY:
        rle = ""
    if CELL - 1 <= len(rle) <= CELL:  # a space at the end is gone
        raise ValueError(f"run-length code ends after {CELL:,} characters, where spreadsheets cut "
                         "a cell off: take the original table, and save it from no spreadsheet")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of other text, older versions of numpy only warn
            numbers = np.fromstring(rle, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        raise ValueError(f"run-length code must be whole numbers, not {rle[:40]!r}: write start "
                         "length start length ..., with spaces between")
    if len(numbers) % 2:
        raise ValueError(f"run-length code has {len(numbers)} numbers, but must be pairs of "
                         "start and length: take the original table if it was cut off; if they "
                         f"are lengths alone, as COCO's counts, convert them ({MASKS_PAGE})")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    wrong = (starts < 0) | (lengths < 1) | (lengths > height * width - starts)
    if wrong.any():
        k = wrong.argmax()
        run = "run " + " ".join(rle.split()[2 * k : 2 * k + 2])[:80]  # as numbers they may overflow
        if numbers[2 * k] == 0:
            raise ValueError(f"{run} begins at pixel 0, but the first pixel is 1: add 1 to every "
                             "start")
        if lengths[k] == 0:
            raise ValueError(f"{run} has no pixel: delete it")
        raise ValueError(f"{run} leaves the image of {height} x {width} pixels: check that the "
                         "code belongs to this image")
    return starts, lengths


class Runs:
    """A mask stored as runs, from which windows are decoded. ValueError as from `rle_decode`."""

    def __init__(self, rle: str, height: int, width: int):
        starts, lengths = _pairs(rle, height, width)
        # Sort runs, for joined codes of several objects are not sorted, and join those that touch.
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], (starts + lengths)[order]
        if (overlap := starts[1:] < ends[:-1]).any():
            k = overlap.argmax()
            first, second = (f"{starts[i] + 1} {ends[i] - starts[i]}" for i in (k, k + 1))
            raise ValueError(f"runs {first} and {second} overlap: if the numbers are lengths "
                             f"alone, as COCO's counts, convert them ({MASKS_PAGE}); if objects "
                             "overlap, encode all of them as one mask")
        apart = starts[1:] > ends[:-1]
        starts = np.concatenate([starts[:1], starts[1:][apart]])
        ends = np.concatenate([ends[:-1][apart], ends[-1:]])
        # Cut runs at the ends of columns, so that each piece is [top, bottom) of one column.
        first_column, last_column = starts // height, (ends - 1) // height
        pieces = last_column - first_column + 1
        run = np.repeat(np.arange(len(starts)), pieces)  # the run of each piece
        piece = np.arange(len(run)) - np.repeat(pieces.cumsum() - pieces, pieces)  # within its run
        self._column = first_column[run] + piece
        self._top = np.maximum(starts[run] - self._column * height, 0)
        self._bottom = np.minimum(ends[run] - self._column * height, height)

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w) in {0, 1}."""
        touched = slice(*np.searchsorted(self._column, [x, x + w]))
        top, bottom = (edge[touched].clip(y, y + h) - y for edge in (self._top, self._bottom))
        inside = bottom > top
        top, bottom, column = top[inside], bottom[inside], self._column[touched][inside] - x
        mask = np.zeros((h, w), np.uint8)
        mask[top, column] = 1
        ends = bottom < h
        mask[bottom[ends], column[ends]] = 255  # which is -1
        for above, row in pairwise(mask):  # np.cumsum would take ten times as long
            row += above
        return mask
