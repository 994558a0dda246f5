"""# Results that are written while they come

`predict_bands` hands out a slide's result in bands of rows, top to bottom. What is made of them
never holds the whole slide: a TIFF in tiles, compressed in a thread of its own while the network
goes on, and a picture reduced on the way.
"""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from ..data.files import atomic
from ..data.slides import shrink

TILE = 256  # pixels


@contextmanager
def write_tiff(path: str | Path, height: int, width: int,
               description: str | None = None) -> Iterator[Callable[[np.ndarray], None]]:
    """`with write_tiff(path, height, width) as write: write(band) ...` makes a grey TIFF in
    compressed tiles out of bands uint8 (rows, width) that add up to `height`. It appears at `path`
    when all is written; nothing stays where the block fails. OSError where it cannot be written."""
    bands: queue.Queue = queue.Queue(maxsize=2)

    def tiles() -> Iterator[np.ndarray]:
        rest = np.empty((0, width), np.uint8)
        for top in range(0, height, TILE):
            wanted, parts, found = min(TILE, height - top), [rest], len(rest)
            while found < wanted:
                if (band := bands.get()) is None:
                    raise ValueError(f"{path}: {height - top - found} rows are missing")
                parts.append(band)
                found += len(band)
            rows = np.concatenate(parts)
            rows, rest = rows[:wanted], rows[wanted:]
            for left in range(0, width, TILE):
                yield rows[:, left : left + TILE]

    with atomic(path) as temporary, ThreadPoolExecutor(1) as pool:
        job = pool.submit(
            tifffile.imwrite, temporary, tiles(), shape=(height, width), dtype=np.uint8,
            tile=(TILE, TILE), compression="zlib", compressionargs={"level": 3}, maxworkers=1,
            photometric="minisblack", metadata=None, description=description,
            bigtiff=height * width > 2**31)  # else tifffile refuses from 4 GiB on

        def put(band: np.ndarray | None) -> None:
            while not job.done():
                try:
                    return bands.put(band, timeout=0.1)
                except queue.Full:  # it still writes, or it has failed
                    continue
            job.result()

        try:
            yield put
        finally:
            put(None)  # no more are to come
        job.result()


class Thumbnail:
    """An image that comes in bands of rows, top to bottom, `step` times smaller: block means."""

    def __init__(self, step: int):
        self.step, self._done, self._rest = step, [], None

    def add(self, band: np.ndarray) -> None:
        """The next rows, uint8 (rows, width) or (rows, width, channels)."""
        rest = band if self._rest is None else np.concatenate([self._rest, band])
        whole = len(rest) // self.step * self.step
        self._done.append(shrink(rest[:whole], self.step))
        self._rest = rest[whole:].copy()

    def image(self) -> np.ndarray:
        """What has come so far: (rows, width, ...), sizes rounded up."""
        return np.concatenate([*self._done, shrink(self._rest, self.step)])
