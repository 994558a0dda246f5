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
    flat = np.asarray(mask).T.ravel() != 0  # column-major
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))  # starts and ends, in turn
    edges[1::2] -= edges[::2]
    edges[::2] += 1
    return " ".join(map(str, edges.tolist()))


def rle_decode(rle: str, height: int, width: int) -> np.ndarray:
    """The mask, uint8 (height, width) in {0, 1}, of a run-length string. ValueError for what are
    not whole numbers in pairs, and for runs that leave the image."""
    words = rle.split()
    try:
        numbers = [int(word) for word in words]
    except ValueError:
        raise ValueError(f"run-length code holds something else than whole numbers: {rle[:40]!r}")
    if len(numbers) % 2:
        raise ValueError(f"run-length code has {len(numbers)} numbers: they come in pairs")
    flat = np.zeros(height * width, np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2]):
        if start < 1 or length < 1 or start - 1 + length > flat.size:
            raise ValueError(f"run {start} {length} leaves the image of {height} x {width} pixels")
        flat[start - 1 : start - 1 + length] = 1
    return np.ascontiguousarray(flat.reshape(width, height).T)
