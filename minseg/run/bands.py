"""# Writing results while they are computed

`predict_bands` yields a slide's result in bands of rows, from top to bottom. Nothing here ever
holds the whole slide: the TIFF is written in tiles, compressed in a thread of its own while the
network goes on, and the preview is reduced band by band.
"""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from ..files.atomic import atomic
from ..files.slides import shrink

TILE = 256  # pixels


@contextmanager
def write_tiff(path: str | Path, height: int, width: int, description: str | None = None,
               pixel_size: tuple[float, float] | None = None,
               ) -> Iterator[Callable[[np.ndarray], None]]:
    """`with write_tiff(path, height, width) as write: write(band) ...` makes a grey TIFF in
    compressed tiles out of bands, uint8 (rows, width), whose rows add up to `height`. `pixel_size`,
    x and y in micrometres, becomes its resolution in pixels per centimetre. The file appears at
    `path` once it is complete; nothing stays if the block fails. OSError where it cannot be
    written."""
    bands: queue.Queue = queue.Queue(maxsize=2)
    resolution = (1e4 / pixel_size[0], 1e4 / pixel_size[1]) if pixel_size else None

    def tiles() -> Iterator[np.ndarray]:
        rest = np.empty((0, width), np.uint8)
        for top in range(0, height, TILE):
            wanted, waiting, count = min(TILE, height - top), [rest], len(rest)
            while count < wanted:
                if (band := bands.get()) is None:
                    raise ValueError(f"{path}: {height - top - count} rows are missing")
                waiting.append(band)
                count += len(band)
            rows = np.concatenate(waiting)
            rows, rest = rows[:wanted], rows[wanted:]
            for left in range(0, width, TILE):
                yield rows[:, left : left + TILE]

    with atomic(path) as temporary, ThreadPoolExecutor(1) as pool:
        job = pool.submit(
            tifffile.imwrite, temporary, tiles(), shape=(height, width), dtype=np.uint8,
            tile=(TILE, TILE), compression="zlib", compressionargs={"level": 3}, maxworkers=1,
            photometric="minisblack", metadata=None, description=description,
            resolution=resolution, resolutionunit="CENTIMETER" if resolution else None,
            bigtiff=height * width > 2**31)  # a plain TIFF ends at 4 GiB

        def put(band: np.ndarray | None) -> None:
            while not job.done():
                try:
                    bands.put(band, timeout=0.1)
                    return
                except queue.Full:  # the thread is still writing, or it has failed
                    continue
            job.result()

        try:
            yield put
        finally:
            put(None)  # there are no more
        job.result()


class Thumbnail:
    """An image that comes in bands of rows, from top to bottom, `step` times smaller: the means of
    square blocks."""

    def __init__(self, step: int):
        self.step = step
        self._small: list[np.ndarray] = []
        self._rest: np.ndarray | None = None  # rows that do not fill a block yet

    def add(self, band: np.ndarray) -> None:
        """The next rows, uint8 (rows, width) or (rows, width, channels)."""
        rest = band if self._rest is None else np.concatenate([self._rest, band])
        whole = len(rest) // self.step * self.step
        self._small.append(shrink(rest[:whole], self.step))
        self._rest = rest[whole:].copy()

    def image(self) -> np.ndarray:
        """What has come so far: (rows, width, ...), sizes rounded up."""
        assert self._rest is not None, "no rows have come"
        return np.concatenate([*self._small, shrink(self._rest, self.step)])
