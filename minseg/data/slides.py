"""# Windows of images of any size

`open_slide` reads windows of an image without loading it. A file becomes uint8 RGB where that has
one clear meaning: grey is repeated three times, alpha is dropped, 16 bits are scaled from 0..65535
to 0..255. Anything else is refused by name. At a coarser `scale` a pixel is the mean of a block of
`scale` x `scale` pixels (blocks that the border cuts average what is left).

| the file | how a window is read |
|---|---|
| TIFF, uncompressed, in one piece | memory-mapped for the moment of reading |
| TIFF in tiles or strips | the few that are touched, decoded side by side, the last ones kept |
| TIFF with compressed strips too big to hold | inflated once into a scratch file, then mapped |
| TIFF pyramid | from the coarsest level that divides `scale`; blocks make up the rest |
| PNG, JPEG | has no windows: decoded whole, once; a large one then goes to a scratch file |

Channels may lie side by side (H, W, 3) or in planes (3, H, W), in one page or in three. No file is
held open and no lock is taken, so a slide may be read from threads and from forked workers, and it
can be pickled. Scratch files have no name and vanish with the process.
"""

import errno
import logging
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Image.MAX_IMAGE_PIXELS = None  # slides are large, and they are the user's own
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of, it also raises
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # scanners call their TIFFs .svs, .ndpi, ...
HELD = 2**26  # bytes: what is decoded in one piece and kept, and what is read in one go
Window = Callable[[int, int, int, int], np.ndarray]  # (y, x, h, w) -> (h, w, channels)


class UnsupportedImage(ValueError):
    """A sound file that holds something else than this project reads."""


def shrink(array: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, ...) -> (ceil(H / scale), ceil(W / scale), ...): rounded means of square blocks."""
    if scale == 1:
        return array
    height, width = array.shape[:2]
    largest = scale * scale * (2 ** (8 * array.itemsize) - 1)  # a sum may be
    wide = next(kind for kind in (np.uint16, np.uint32, np.uint64) if largest <= np.iinfo(kind).max)
    whole = height // scale * scale
    blocks = array[:whole].reshape(height // scale, scale, *array.shape[1:])
    rows = np.add.reduce(blocks, 1, dtype=wide)
    if whole < height:
        rows = np.concatenate([rows, np.add.reduce(array[whole:], 0, dtype=wide, keepdims=True)])
    total = np.zeros((len(rows), -(-width // scale), *array.shape[2:]), wide)
    for j in range(min(scale, width)):  # few large additions, not many small ones
        part = rows[:, j::scale]
        total[:, : part.shape[1]] += part
    whole = scale * scale
    if height % scale == 0 and width % scale == 0:
        return ((total + whole // 2) // whole).astype(array.dtype)
    count = np.outer(*(np.minimum(scale, n - np.arange(0, n, scale)) for n in (height, width)))
    count = count.reshape(*count.shape, *[1] * (array.ndim - 2)).astype(wide)
    return ((total + count // 2) // count).astype(array.dtype)


def read_blocks(window: Window, height: int, width: int, scale: int,
                y: int, x: int, h: int, w: int) -> np.ndarray:
    """`shrink` of a window: (y, x, h, w) in scaled pixels of an image of `height` x `width` whole
    ones, out of which `window` reads a few rows of blocks at a time. (h, w, channels)."""
    left, right = x * scale, min((x + w) * scale, width)
    rows = max(1, HELD // (3 * scale * max(1, right - left)) // scale)  # of blocks
    parts = []
    for top in range(y, y + max(h, 1), rows):
        bottom = min(top + rows, y + h)
        above, below = top * scale, min(bottom * scale, height)
        parts.append(shrink(window(above, left, below - above, right - left), scale))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever a decoder raises becomes a ValueError of one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    except UnsupportedImage as error:
        raise ValueError(f"{path}: {error}")
    except MemoryError:
        raise
    except Exception as error:  # each decoder has errors of its own
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(error.errno, f"no space for a scratch file in {tempfile.gettempdir()}")
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read, replace it or take it out: {reason}")


class Decoded:
    """An image in memory, (H, W, C)."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C)."""
        return self.array[y : y + h, x : x + w]


class Mapped:
    """Pixels as they lie in a file, from `offset` on: (H, W, C), or in planes (C, H, W)."""

    def __init__(self, file, offset: int, dtype: np.dtype, shape: tuple, planes: bool):
        self._at = dict(filename=file, dtype=dtype, mode="r", offset=offset, shape=shape)
        self.planes, self.dtype = planes, np.dtype(dtype).newbyteorder("=")
        self.shape = (*shape[1:], shape[0]) if planes else tuple(shape)

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C). Mapped anew each time: pages read earlier do not stay in this process."""
        array = np.memmap(**self._at)
        if self.planes:
            array = np.moveaxis(array, 0, 2)
        return np.array(array[y : y + h, x : x + w], self.dtype, order="C")


class Segments:
    """Pixels of a TIFF page, or of one page a plane, in tiles or strips: `shape` is (H, W, C)."""

    def __init__(self, path: Path, pages: list, shape: tuple, planes: bool):
        page = pages[0]
        self.path, self.shape, self.planes, self.dtype = path, shape, planes, page.dtype
        self._stored = page.dtype.newbyteorder(page.parent.byteorder)
        height, width, channels = shape
        self.high, self.wide = ((page.tilelength, page.tilewidth) if page.is_tiled
                                else (min(page.rowsperstrip, height), width))
        self.down, self.across = -(-height // self.high), -(-width // self.wide)
        self.samples = 1 if planes else channels
        self.offsets = [offset for p in pages for offset in p.dataoffsets]
        self.counts = [count for p in pages for count in p.databytecounts]
        if min(len(self.offsets), len(self.counts)) < len(self):
            raise ValueError("some of its tiles or strips are missing")
        self.compression, self.predictor = page.compression, page.predictor
        self._decode = page.decode
        self._paged = len(pages) > 1  # then segments are numbered within their page
        self._tables = ({"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
                        if page.compression in (6, 7, 34892, 33007) else {})
        self.size = self.high * self.wide * self.samples * page.dtype.itemsize  # bytes of one
        row = self.size * len(self) // self.down  # the next window may begin in the middle of it
        self.segment = lru_cache(max(HELD, row + row // 4) // self.size + 1)(self._segment)

    def __len__(self) -> int:
        return self.down * self.across * (self.shape[2] if self.planes else 1)

    def _segment(self, index: int) -> np.ndarray:
        """A tile or strip, decoded: (rows, columns, samples)."""
        with open(self.path, "rb") as file:
            file.seek(self.offsets[index])
            data = file.read(self.counts[index])
        if not data:  # sparse files leave empty tiles out
            return np.zeros((self.high, self.wide, self.samples), self.dtype)
        index = index % (self.down * self.across) if self._paged else index
        array, _, shape = self._decode(data, index, **self._tables)
        return array[0, : shape[1], : shape[2]]

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C), from the segments that it touches."""
        out = np.empty((h, w, self.shape[2]), self.dtype)

        def place(at: tuple[int, int, int]) -> None:
            plane, row, column = at
            segment = self.segment((plane * self.down + row) * self.across + column)
            top, left = row * self.high, column * self.wide
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + h, top + self.high), min(x + w, left + self.wide)
            channels = slice(plane, plane + 1) if self.planes else slice(None)
            out[y0 - y : y1 - y, x0 - x : x1 - x, channels] = \
                segment[y0 - top : y1 - top, x0 - left : x1 - left]

        touched = list(product(range(self.shape[2] if self.planes else 1),
                               range(y // self.high, -(-(y + h) // self.high)),
                               range(x // self.wide, -(-(x + w) // self.wide))))
        if len(touched) <= 2:
            for at in touched:
                place(at)
        else:  # side by side: decoders let other threads run
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                list(pool.map(place, touched))
        return out

    def unpacked(self) -> Mapped:
        """The same pixels from a scratch file, into which all segments are decoded here and now.
        Memory stays small for Deflate; other compressions have no decoder that streams."""
        scratch = tempfile.TemporaryFile(prefix="minseg-")
        for index in range(len(self)):
            streams = (self.compression in (1, 8, 32946) and self.counts[index]
                       and self.dtype != bool)  # eight of those share a byte
            for rows in self._rows(index) if streams else [self._segment(index)]:
                scratch.write(np.ascontiguousarray(rows, self.dtype))
        scratch.flush()
        shape = (self.shape[2], *self.shape[:2]) if self.planes else self.shape
        return Mapped(scratch, 0, self.dtype, shape, self.planes)

    def _rows(self, index: int) -> Iterator[np.ndarray]:
        """The rows of a strip, some at a time, (n, width, samples)."""
        row = self.shape[1] * self.samples * self.dtype.itemsize
        top = index % self.down * self.high
        left, rest = row * min(self.high, self.shape[0] - top), b""  # bytes still to come
        for data in self._inflated(index):
            rest += data
            whole = min(len(rest) // row * row, left)
            rows = np.frombuffer(rest[:whole], self._stored)
            rows = rows.reshape(-1, self.shape[1], self.samples)
            if self.predictor == 2:  # each value was stored as the difference to its left one
                rows = np.cumsum(rows, 1, dtype=self.dtype)
            yield rows
            rest, left = rest[whole:], left - whole
        if left:
            raise ValueError("a strip ends too early")

    def _inflated(self, index: int) -> Iterator[bytes]:
        """The bytes of a strip, never more than 16 MiB at a time: glass inflates a thousandfold."""
        inflate = zlib.decompressobj()
        with open(self.path, "rb") as file:
            file.seek(self.offsets[index])
            end = self.offsets[index] + self.counts[index]
            while data := file.read(min(2**18, end - file.tell())):
                while data and self.compression != 1:
                    yield inflate.decompress(data, 2**24)
                    data = inflate.unconsumed_tail
                yield data
        yield inflate.flush()


@dataclass
class Source:
    """What `open_source` finds: `pixels` has .shape (H, W, C), .dtype and .window(y, x, h, w)."""

    pixels: Decoded | Mapped | Segments
    height: int  # of the whole image, of which `pixels` may be a smaller copy
    width: int
    factor: int  # how many times smaller
    microns: float | None  # from one pixel of the whole image to the next, by the file's tags


def open_source(path: str | Path, scale: int = 1) -> Source:
    """The stored pixels of an image file, of a pyramid those of the level that `scale` needs.
    ValueError names a file that cannot be read."""
    path = Path(path)
    with naming(path):
        with open(path, "rb") as file:
            start = file.read(4)
        if start in TIFF_STARTS or path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as tiff:
                return _open_tiff(path, tiff, scale)
        with Image.open(path) as image:
            if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert("RGB")
            array = np.asarray(image)
        if array.dtype == np.int32 and 0 <= array.min() and array.max() < 65536:
            array = array.astype(np.uint16)  # how Pillow gives 16-bit PNGs
        array = array.reshape(*array.shape[:2], -1)
        pixels = Decoded(array)
        if array.nbytes > 2 * HELD:
            scratch = tempfile.TemporaryFile(prefix="minseg-")
            scratch.write(array)
            scratch.flush()
            pixels = Mapped(scratch, 0, array.dtype, array.shape, False)
        return Source(pixels, *array.shape[:2], 1, None)


def _open_tiff(path: Path, tiff: tifffile.TiffFile, scale: int) -> Source:
    whole = [series for series in tiff.series if not series.keyframe.is_reduced]
    levels = (whole or tiff.series)[0].levels  # a first page may be a thumbnail
    height, width = _layout(levels[0])[0][:2]
    chosen, factor = levels[0], 1
    for level in levels[1:]:  # from fine to coarse
        h, w = _layout(level)[0][:2]
        times = round(width / w)
        if scale % times == 0 and abs(height / times - h) < 1 and abs(width / times - w) < 1:
            chosen, factor = level, times
    shape, planes, plain = _layout(chosen)
    page = chosen.keyframe
    if page.photometric.name not in ("MINISBLACK", "RGB") and not (
            page.photometric.name == "YCBCR" and page.compression.name == "JPEG"):
        raise UnsupportedImage(f"its colours are {page.photometric.name}: save it as RGB or grey")
    pages = list(chosen.pages)
    if any(p is None or p.parent is not tiff for p in pages):
        raise UnsupportedImage("its channels lie in several files: save it as one")
    if chosen.dataoffset is not None:
        dtype = page.dtype.newbyteorder(tiff.byteorder)
        stored = (shape[2], *shape[:2]) if planes else shape
        if chosen.dataoffset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError("it ends too early")
        pixels = Mapped(path, chosen.dataoffset, dtype, stored, planes)
    elif not plain:
        raise UnsupportedImage(f"has the axes {chosen.axes}: save it with the channels last")
    else:
        pixels = Segments(path, pages, shape, planes)
        ends = (offset + count for offset, count in zip(pixels.offsets, pixels.counts))
        if max(ends) > path.stat().st_size:
            raise ValueError("it ends too early")
        try:
            pixels = pixels.unpacked() if pixels.size > 2 * HELD and not page.is_tiled else pixels
            pixels.window(0, 0, 1, 1)
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise UnsupportedImage(f"{page.compression.name} compression needs the codecs "
                                       "extra: python -m pip install 'minseg[codecs]'")
            raise
    return Source(pixels, height, width, factor, _microns(levels[0].keyframe))


def _layout(level: tifffile.TiffPageSeries) -> tuple[tuple[int, int, int], bool, bool]:
    """Its shape as (H, W, C); whether channels are stored as planes; whether a page is H x W."""
    sizes = list(zip(level.get_shape(squeeze=False), level.get_axes(squeeze=False)))
    sizes = [(n, axis) for n, axis in sizes if n > 1 or axis in "YX"]
    shape, axes = [n for n, _ in sizes], "".join(axis for _, axis in sizes)
    if len(shape) == 2:
        return (*shape, 1), False, True
    if len(shape) == 3 and axes.endswith("YX") and axes[0] not in "ZT" and shape[0] in (3, 4):
        return (*shape[1:], shape[0]), True, True
    if len(shape) == 3 and shape[2] in (2, 3, 4):
        return tuple(shape), False, axes.startswith("YX")
    raise UnsupportedImage(f"has the shape {tuple(shape)}: expected grey, RGB or RGBA")


def _microns(page: tifffile.TiffPage) -> float | None:
    """Micrometres from one pixel to the next, by the resolution tags: pixels an inch or a cm."""
    value = page.tags.valueof("XResolution", default=0)
    pixels, units = (*(value if isinstance(value, tuple) else (value,)), 1)[:2]
    unit = {2: 25400, 3: 10000}.get(page.tags.valueof("ResolutionUnit", default=2))
    return unit * units / pixels if unit and pixels and units else None


class Slide:
    """An image of which windows are read. `height` and `width` are in scaled pixels, `full_height`
    and `full_width` in the file's own; `microns` is the size of one of those, where known."""

    def __init__(self, path: str | Path, scale: int = 1):
        self.path, self.scale = Path(path), scale
        self._source = source = open_source(path, scale)
        channels, dtype = source.pixels.shape[2], source.pixels.dtype
        if channels > 4:
            raise ValueError(f"{path}: has {channels} channels: expected grey, RGB or RGBA")
        if dtype not in (bool, np.uint8, np.uint16):
            raise ValueError(f"{path}: holds {dtype} values: save it as 8 or 16 bits")
        self.full_height, self.full_width = source.height, source.width
        self.height, self.width = -(-source.height // scale), -(-source.width // scale)
        self.microns = source.microns

    def __reduce__(self):
        return open_slide, (self.path, self.scale)  # a copy in another process opens the file anew

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w, 3)."""
        if not (0 <= y <= y + h <= self.height and 0 <= x <= x + w <= self.width):
            raise ValueError(f"window {y}, {x}, {h}, {w} leaves {self.height} x {self.width}")
        height, width = self._source.pixels.shape[:2]
        scale = self.scale // self._source.factor
        # A pyramid may round sizes down: then its last pixels are repeated.
        y, x = min(y, -(-height // scale) - 1), min(x, -(-width // scale) - 1)
        rows, columns = min(h, -(-height // scale) - y), min(w, -(-width // scale) - x)
        with naming(self.path):
            blocks = read_blocks(self._rgb, height, width, scale, y, x, rows, columns)
        if (rows, columns) != (h, w):
            blocks = np.pad(blocks, [(0, h - rows), (0, w - columns), (0, 0)], mode="edge")
        return blocks

    def read_all(self) -> np.ndarray:
        """The whole image, uint8 (height, width, 3): for coarse scales."""
        return self.read(0, 0, self.height, self.width)

    def _rgb(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        array = self._source.pixels.window(y, x, h, w)
        array = array[:, :, : 1 if array.shape[2] <= 2 else 3]  # without alpha
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        elif array.dtype != np.uint8:
            array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return array if array.shape[2] == 3 else np.repeat(array, 3, 2)

    def enlarge(self, bands: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """Bands (C, rows, width) in scaled pixels -> bands in the file's own pixels, bilinear. As
        `predict_bands` yields them, (y, band) from top to bottom; what comes out is what the whole
        map enlarged at once would be. A few rows are held back for their lower neighbours."""
        if self.scale == 1:
            return (yield from bands)
        few = max(1, 256 // self.scale)  # rows at a time: they are about to grow
        pieces = ((y + i * few, piece) for y, band in bands
                  for i, piece in enumerate(band.split(few, 1)))
        above = held = None
        for y, band in chain(pieces, [(self.height, None)]):
            if held is not None:
                top, part = held
                below = part[:, -1:] if band is None else band[:, :1]
                rows = min(part.shape[1] * self.scale, self.full_height - top * self.scale)
                large = torch.cat([part[:, :1] if above is None else above, part, below], 1)
                large = F.interpolate(large[None], scale_factor=self.scale, mode="bilinear")[0]
                yield top * self.scale, large[:, self.scale :][:, :rows, : self.full_width]
                above = part[:, -1:]
            held = (y, band)


def open_slide(path: str | Path, scale: int = 1) -> Slide:
    """Opens an image file for reading windows, `scale` times smaller (a whole number from 1 up).
    ValueError names a file that cannot be read."""
    if scale != int(scale) or scale < 1:
        raise ValueError(f"scale is a whole number from 1 up, not {scale}")
    return Slide(path, int(scale))
