"""# Windows of images of any size

`open_slide` reads windows of an image without loading it. A file that has one clear meaning becomes
uint8 RGB; any other is refused, in one line that names the file and the remedy. At a coarser
`scale` a pixel is the mean of a block of `scale` x `scale` pixels (blocks that the border cuts
average what is left).

**What a file means**

| in the file | what is made of it |
|---|---|
| several images (pages, series) | the largest is read; smaller copies of it are its pyramid |
| two of the largest size; a stack | refused |
| channels in several files; Ventana's overlapping tiles | refused |
| one channel | grey, repeated three times |
| three: samples, planes, or pages that an axis C or tifffile's shape counts | red, green, blue |
| three in a file that is marked as grey | the same, with a note |
| three that OME names after stains, such as DAPI | refused |
| alpha (ExtraSamples 1 or 2; a PNG's own) | left out |
| a fourth beside red, green and blue, not said to be alpha | left out, with a note |
| other channels, also a second grey not said to be alpha | refused |
| colours: RGB, grey where black is 0, YCbCr in JPEG | read |
| palettes and CMYK | read in PNG and JPEG, refused in TIFF |
| grey where white is 0; CIELab; JPEG 2000 in YCbCr (Aperio's 33003) | refused |
| 1 to 16 bits | scaled to 0..255: SignificantBits (OME), BitsPerSample, SMaxSampleValue |
| 16 bits, only the lowest quarter used, no white stated | not rescaled, with a note: give `white` |
| 16-bit colour PNG: its upper 8 bits are what can be read | refused where they are below 32 |
| 32 bits, signed numbers, floating point | refused |
| fill order, predictor, byte order, BigTIFF | undone |
| tiles that are left out (sparse files) | GDAL's NODATA; 255 in Philips' files; else 0 |
| the same where NODATA is no value that a pixel can have | refused |
| orientation (EXIF, TIFF) | applied, with a note |
| size of a pixel | OME's PhysicalSizeX, Aperio's MPP, ImageJ's unit, resolution tags |
| whole 72 to 600 dots per inch, which any editor writes | no size |
| profiles, gamma, text, however long | not used |
| several frames in a PNG or GIF | refused |

**How a window is read**

| the file | how |
|---|---|
| TIFF, uncompressed, in one piece | memory-mapped for the moment of reading |
| TIFF in tiles or strips | the few that are touched, decoded side by side, the last ones kept |
| TIFF with compressed strips too big to hold | inflated once into a scratch file, then mapped |
| TIFF pyramid | from the coarsest level that divides `scale`; blocks make up the rest |
| PNG, JPEG | has no windows: decoded whole, once; a large one then goes to a scratch file |

A slide may be read from threads and from forked workers, and it can be pickled.
"""

import errno
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor
from torch.nn import functional as F

from . import tiff
from .tiff import TURNED, Decoded, Mapped, Source, UnsupportedImage, open_tiff

Image.MAX_IMAGE_PIXELS = None  # slides are large, and they are the user's own
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**31  # profiles, a scanner's text
TIFF_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".scn", ".qptiff", ".btf", ".tf8", ".bif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", *TIFF_SUFFIXES)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # scanners call their TIFFs .svs, .ndpi, ...
Window = Callable[[int, int, int, int], np.ndarray]  # (y, x, h, w) -> (h, w, channels)


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
    rows = max(1, tiff.HELD // (3 * scale * max(1, right - left)) // scale)  # of blocks
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


def open_source(path: str | Path, scale: int = 1) -> Source:
    """The stored pixels of an image file and what they mean, of a pyramid those of the level that
    `scale` needs. ValueError names a file that cannot be read."""
    path = Path(path)
    with naming(path):
        with open(path, "rb") as file:
            start = file.read(4)
        if start in TIFF_STARTS or path.suffix.lower() in TIFF_SUFFIXES:
            return open_tiff(path, scale)
        return open_picture(path)


def open_picture(path: Path) -> Source:
    """A PNG, a JPEG, or what else Pillow reads, decoded whole."""
    with open(path, "rb") as file:
        header = file.read(26)  # of a PNG: bits and colour type are the last two bytes
    deep = header.startswith(b"\x89PNG") and header[24] == 16 and header[25] in (2, 4, 6)
    palette, alpha = None, False
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # of broken EXIF, which then says nothing
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # a camera's, with previews
            raise UnsupportedImage("is an animation: save the picture that is meant")
        if image.mode == "P":
            colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(colours)] = colours
        elif image.mode in ("PA", "CMYK", "YCbCr", "LAB", "HSV"):
            image = image.convert("RGB")
        alpha, turned = image.mode in ("LA", "RGBA"), image.getexif().get(274, 1)
        array = np.asarray(ImageOps.exif_transpose(image))
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 65536:
        array = array.astype(np.uint16)  # how Pillow gives 16-bit PNGs
    array = array.reshape(*array.shape[:2], -1)
    if deep and array[..., : array.shape[2] - alpha].max() < 32:  # Pillow keeps the upper 8 bits
        raise UnsupportedImage("its 16-bit colours use less than an eighth of their range, and of "
                               "a PNG only the upper 8 bits can be read: save it as TIFF")
    pixels = Decoded(array)
    if array.nbytes > 2 * tiff.HELD:
        scratch = tempfile.TemporaryFile(prefix="minseg-")
        scratch.write(np.ascontiguousarray(array))
        scratch.flush()
        pixels = Mapped(scratch, 0, array.dtype, array.shape, False)
    wide = array.dtype == np.uint16
    return Source(pixels, *array.shape[:2], white=65535 if wide else 255, says_white=not wide,
                  alpha=alpha, palette=palette,
                  notes=[TURNED.format(turned)] if turned in range(2, 9) else [])


class Slide:
    """An image of which windows are read. `height` and `width` are in scaled pixels, `full_height`
    and `full_width` in the file's own; `microns` is the size of one of those, where known. `notes`
    are what the user should know of the file, a line each."""

    def __init__(self, path: str | Path, scale: int = 1, white: int | None = None):
        self.path, self.scale = Path(path), scale
        self._white_given, self._source = white, (source := open_source(path, scale))
        dtype = source.pixels.dtype
        if dtype not in (bool, np.uint8, np.uint16):
            raise ValueError(f"{path}: holds {dtype} values: save it as 8 or 16 bits")
        self.full_height, self.full_width = source.height, source.width
        self.height, self.width = -(-source.height // scale), -(-source.width // scale)
        self.microns, self.notes = source.microns, list(source.notes)
        self._white = source.white if source.says_white else white or source.white
        if dtype != bool and source.palette is None and (
                not source.says_white or self._white < np.iinfo(dtype).max):
            self._compare_with_white()

    def __reduce__(self):  # a copy in another process opens the file anew
        return open_slide, (self.path, self.scale, self._white_given)

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
        if self._source.palette is not None:
            return self._source.palette[array[:, :, 0]]
        array = array[:, :, : 1 if array.shape[2] <= 2 else 3]  # without alpha
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        elif self._white != 255 or array.dtype != np.uint8:
            wide = np.minimum(array, self._white).astype(np.uint32)
            array = ((wide * 255 + self._white // 2) // self._white).astype(np.uint8)
        return array if array.shape[2] == 3 else np.repeat(array, 3, 2)

    def _compare_with_white(self) -> None:
        """Notes where values are all far below white, or go beyond it: by 64 small windows that are
        spread over the image."""
        height, width = self._source.pixels.shape[:2]
        colours = slice(0, -1 if self._source.alpha or self._source.extra else None)
        with naming(self.path):
            highest = max(int(self._source.pixels.window(
                y * max(0, height - 16) // 7, x * max(0, width - 16) // 7, min(16, height),
                min(16, width))[..., colours].max()) for y in range(8) for x in range(8))
        likely = 2 ** max(8, highest.bit_length()) - 1
        if highest > self._white:
            self.notes.append(f"holds values beyond {self._white}, which is taken for white: they "
                              "are cut off" + ("" if self._source.says_white else
                                               f" (--white {likely} would keep them)"))
        elif not self._source.says_white and not self._white_given and highest < 2**14:
            self.notes.append("its 16-bit values use less than a quarter of their range, so it "
                              f"looks dark: if its white is {likely}, pass --white {likely}")

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


def open_slide(path: str | Path, scale: int = 1, white: int | None = None) -> Slide:
    """Opens an image file for reading windows, `scale` times smaller (a whole number from 1 up).
    `white` is the value that is white in files of 16 bits that do not say it themselves (default
    65535). ValueError names a file that cannot be read."""
    if scale != int(scale) or scale < 1:
        raise ValueError(f"scale is a whole number from 1 up, not {scale}")
    if white is not None and not 0 < white < 65536:
        raise ValueError(f"white is a value of 16 bits, 1 to 65535, not {white}")
    return Slide(path, int(scale), white)
