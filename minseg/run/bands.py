"""# Slides in bands: predicted, enlarged and written

The result of a slide comes in bands of rows, from top to bottom (`predict_slide`). Nothing here
ever holds the whole slide: the TIFF is written in tiles, compressed in a thread of its own while
the network goes on, and the preview is reduced band by band.
"""

import math
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

from ..files.atomic import atomic
from ..files.resample import linear
from ..files.slides import Slide
from ..tiling import predict_bands
from .errors import check_probabilities
from .memory import trim_memory

TILE = 256  # pixels


def predict_slide(predict: Callable[[Tensor], Tensor], slide: Slide, *, tile: int, overlap: float,
                  amp: bool, read: Callable[[int, int, int, int], np.ndarray] | None = None,
                  **options) -> Iterator[tuple[int, Tensor]]:
    """Predicts a slide and yields (y, probabilities (C, rows, width)) from top to bottom, at the
    size of its file. `tile` is in scaled pixels, and tiles share `overlap` of their side. `read`
    replaces `slide.read`; `options` are those of `predict_bands`. ValueError if probabilities are
    not numbers; `amp` says whether they were computed in 16 bits."""
    bands = predict_bands(predict, read or slide.read, slide.height, slide.width, tile=tile,
                          stride=max(1, round(tile * (1 - overlap))), **options)
    for y, band in enlarge(slide, bands):
        check_probabilities(band, y, slide.path, amp)
        yield y, band
        trim_memory(seconds=2)  # or freed memory, not returned to the system, would add up


def enlarge(slide: Slide, bands: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Bands (C, rows, width) in scaled pixels -> bands in the file's own pixels, bilinear. Both
    are (y, band) from top to bottom, as `predict_bands` yields them. The result equals the
    whole map enlarged at once: a band waits until the rows below it are known."""
    if slide.scaling.factors == (1, 1):
        yield from bands
        return
    down, right = slide.scaling.factors  # own pixels for each row and column
    first, weights = linear(0, slide.full_height, 1 / down, slide.height)
    weight = torch.from_numpy(weights).float()[..., None]  # (full_height, 2, 1)
    below = np.minimum(first + 1, slide.height - 1)  # the second row that each is made of
    step = max(1, 256 // math.ceil(down))  # rows to enlarge at a time, to bound the memory
    held, done = torch.empty(0), 0  # the last rows that came; how many of the file's are done
    for y, piece in ((y + i * step, piece) for y, band in bands
                     for i, piece in enumerate(band.split(step, 1))):
        held = torch.cat([held, piece], 1) if held.numel() else piece
        bottom = y + piece.shape[1]
        known = int(np.searchsorted(below, bottom)) if bottom < slide.height else slide.full_height
        if known == done:
            continue
        top, rows = bottom - held.shape[1], slice(done, known)
        large = (held[:, first[rows] - top] * weight[rows, 0]
                 + held[:, below[rows] - top] * weight[rows, 1])
        # As F.interpolate does it, but to a width that need not be a multiple of the old one.
        yield done, torch.ops.aten.upsample_linear1d(large, [slide.full_width], False, right)
        done = known
        held = held[:, int(first[min(done, len(first) - 1)]) - top :]


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
