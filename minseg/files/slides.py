"""# Windows of images of any size

`open_slide` reads windows of an image without loading the image. A file whose meaning is clear
becomes uint8 RGB; any other is refused with a message of one line that names the file, what is
wrong and what to do. At a coarser `scale`, each pixel is the mean of a block of `scale` x `scale`
pixels, and blocks at the right and lower border average only the pixels that exist. With `microns`
instead, each pixel is a square of so many micrometres (`minseg.files.resample`).

**What is accepted**

| in the file | how it is read |
|---|---|
| several images (pages, series) | the largest is read; smaller copies of it are its pyramid |
| two images of the largest size; a stack | refused |
| channels in several files; Ventana's and Trestle's overlapping tiles | refused |
| one channel | grey, repeated three times |
| three channels, as samples, planes or pages | red, green and blue |
| three channels in a file marked as grey | red, green and blue, with a note |
| three channels that OME or ImageJ names after stains, such as DAPI | refused |
| alpha (ExtraSamples 1 or 2; any PNG's alpha) | ignored |
| colours multiplied by alpha (ExtraSamples 1) | undone; not where a colour exceeds its alpha |
| a fourth channel beside red, green and blue that is not declared as alpha | ignored, with a note |
| any other number of channels; a second grey channel that is not declared as alpha | refused |
| RGB; grey where 0 is black; YCbCr in JPEG | converted to RGB |
| palettes and CMYK | converted to RGB from PNG and JPEG, refused in TIFF |
| grey where white is 0; CIELab; YCbCr in JPEG 2000 (Aperio's 33003) | refused |
| JPEG 2000 (33004) in RGB that names no software: libvips 8.14 means YCbCr | refused |
| 1 to 16 bits | scaled to 0..255 by SignificantBits (OME), BitsPerSample, SMaxSampleValue |
| 16 bits that stay in the lowest quarter, white not stated | unscaled; a note asks for `white` |
| colour PNGs of 16 bits, of which only the upper 8 can be read | refused where these are below 32 |
| 32 bits, signed or floating-point numbers | refused |
| fill order, predictor, byte order, BigTIFF | decoded |
| missing tiles (sparse files) | GDAL's NODATA, in Philips' files 255, else 0 |
| missing tiles with a NODATA that no pixel can have; all tiles or strips missing | refused |
| orientation (EXIF, TIFF) | applied, with a note |
| profiles, gamma and text of any length | ignored |
| several frames in a PNG or GIF | refused |

**The size of a pixel** is what the first row says that applies. OpenSlide 4.0 (O), tiffslide 3.0
(T) and slideio 2.10 (S) give the same answer for the same file, as tests/interop checks.

| in the file | how it is read | as |
|---|---|---|
| OME's PhysicalSizeX and Y of this image | in their units; without one, µm | S |
| Aperio's MPP | µm, for x and y | O, T, S |
| Philips' DICOM_PIXEL_SPACING in the XML | mm, y before x, of the finest level | O, T |
| ImageJ's unit, where ResolutionUnit is "none" | that of 1 / XResolution and 1 / YResolution | |
| XResolution and YResolution | per inch or centimetre | O, T, S |
| an unknown unit, a missing or damaged number | unknown | |
| over 42.3 µm (600 dots per inch), under 1 nm | unknown; a note if of OME, Aperio, Philips | |
| a text (OME, Aperio, Philips, tifffile) of a larger or smaller copy | unknown, with a note | |
| only x known | y is taken to be equal | |
| x and y that differ by 1 % or more | both; without `microns` a note: objects look stretched | |

Programs write 25.4 dots per inch (libvips 8.18, SimpleITK 2.5), 28.34 per centimetre (libvips 8.14)
or 72 to 600 per inch (editors, printers) where they know no size: hence the limit.

**How windows are read**

| the file | how |
|---|---|
| TIFF, uncompressed and contiguous | memory-mapped while a window is read |
| TIFF in tiles or strips | only those touched, decoded in parallel; the latest are kept |
| TIFF with compressed strips too large to keep | decompressed once to a scratch file, then mapped |
| TIFF pyramid | from the coarsest level whose factor divides `scale`; block means do the rest |
| the same, with `microns` | from the coarsest level that is still finer, if no whole `scale` fits |
| pyramid of unequal steps (1, 4, 16, 32) | tifffile drops levels from the first other step on |
| PNG, JPEG | decoded once as a whole; a large one is kept in a scratch file |

Threads and forked workers may share a slide, and it can be pickled.
"""

import errno
import math
import os
import shlex
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from . import tiff
from .formats import OTHER_SLIDES, conversion, format_of, index_of
from .resample import Scaling, block_for, factors_for
from .tiff import TURNED, Decoded, Mapped, Source, UnsupportedImage, open_tiff, scratch_file

# Pillow's limits protect against malicious files; slides are the user's own, and large.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**31  # profiles, scanners' notes
TIFF_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".scn", ".qptiff", ".btf", ".tf8", ".bif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", *TIFF_SUFFIXES)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # scanners call their TIFFs .svs, .ndpi, ...
SIZES_TABLE = "slides.csv"  # id,microns: sizes of pixels, where files state none or wrong ones
NO_SIZE = ("{}: states no usable size of its pixels, without which it cannot be brought to {:g} "
           "µm: add a line for it to {}, under the headings id,microns")
COARSER = ("its pixels measure {:.3g} µm, more than the {:g} they are brought to: it is enlarged, "
           "which adds no detail")
MUCH_COARSER = ("{}: its pixels measure {:.3g} µm, over four times the {:g} asked for: leave it "
                "out, or if that is wrong, correct it in {}, under the headings id,microns")
OBLONG = ("its pixels are {:.4g} x {:.4g} µm (x, y): areas in µm² are right, but objects look "
          "stretched beside those of slides whose pixels are square")
Window = Callable[[int, int, int, int], np.ndarray]  # (y, x, h, w) -> (h, w, channels)


def shrink(array: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, ...) -> (ceil(H / scale), ceil(W / scale), ...): rounded means of square blocks."""
    if scale == 1:
        return array
    height, width = array.shape[:2]
    scale = min(scale, max(height, width, 1))  # a larger block has no more pixels
    pixels = min(scale, height) * min(scale, width)  # of a whole block
    largest_sum = pixels * (2 ** (8 * array.itemsize) - 1) + pixels // 2  # the half for rounding
    sum_type = next(dtype for dtype in (np.uint16, np.uint32, np.uint64)
                    if largest_sum <= np.iinfo(dtype).max)
    bottom = height // scale * scale  # of the last whole blocks
    blocks = array[:bottom].reshape(height // scale, scale, *array.shape[1:])
    rows = np.add.reduce(blocks, 1, dtype=sum_type)
    if bottom < height:
        last = np.add.reduce(array[bottom:], 0, dtype=sum_type, keepdims=True)
        rows = np.concatenate([rows, last])
    total = np.zeros((len(rows), -(-width // scale), *array.shape[2:]), sum_type)
    for j in range(min(scale, width)):  # a few large additions instead of many small ones
        columns = rows[:, j::scale]
        total[:, : columns.shape[1]] += columns
    if height % scale == 0 and width % scale == 0:
        return ((total + pixels // 2) // pixels).astype(array.dtype)
    count = np.outer(*(np.minimum(scale, n - np.arange(0, n, scale)) for n in (height, width)))
    count = count.reshape(*count.shape, *[1] * (array.ndim - 2)).astype(sum_type)
    return ((total + count // 2) // count).astype(array.dtype)


def undo_alpha(colours: np.ndarray, alpha: np.ndarray, opaque: int) -> np.ndarray:
    """Colours (h, w, C) that were multiplied by `alpha` (h, w, 1) / `opaque`, as they were before,
    rounded. Where alpha is 0 they are lost, and stay as they are."""
    if (alpha == opaque).all():
        return colours
    wide = alpha.astype(np.uint32)
    before = (colours * np.uint32(opaque) + wide // 2) // np.maximum(wide, 1)
    return np.where(alpha > 0, np.minimum(before, opaque), colours).astype(colours.dtype)


def read_blocks(window: Window, height: int, width: int, scale: int,
                y: int, x: int, h: int, w: int) -> np.ndarray:
    """`shrink` of a window, (h, w, channels), whose place and size are in scaled pixels. `window`
    reads the full image of `height` x `width` pixels, a few rows of blocks at a time."""
    left, right = x * scale, min((x + w) * scale, width)
    rows = max(1, tiff.HELD // (3 * scale * max(1, right - left)) // scale)  # of blocks
    bands = []
    for y0 in range(y, y + max(h, 1), rows):
        top, bottom = y0 * scale, min(min(y0 + rows, y + h) * scale, height)
        bands.append(shrink(window(top, left, bottom - top, right - left), scale))
    return bands[0] if len(bands) == 1 else np.concatenate(bands)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into a ValueError of one line that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    except UnsupportedImage as error:
        raise ValueError(f"{path}: {error}")
    except MemoryError:
        raise
    except Exception as error:  # every decoder has its own kinds of errors
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(error.errno, f"no space for a scratch file in {tempfile.gettempdir()}")
        suffix, unknown = path.suffix.lower(), isinstance(error, UnidentifiedImageError)
        if (unknown and suffix not in IMAGE_SUFFIXES) or format_of(path):
            raise ValueError(f"{path}: {conversion(path)}")
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read ({reason}): replace it or remove it")


def open_source(path: str | Path, scale: int = 1) -> Source:
    """The stored pixels of an image file, and what they mean. From a pyramid it takes the level
    that `scale` needs. ValueError names a file that cannot be read."""
    path = Path(path)
    with naming(path):
        other = format_of(path)
        if path.is_dir():
            raise UnsupportedImage(conversion(path) if other else
                                   f"is a folder: {_instead_of(path)}")
        with open(path, "rb") as file:
            is_tiff = file.read(4) in TIFF_STARTS
        # A .vsi is a TIFF and a .mrxs is a JPEG, but only of the overview.
        if other and (not is_tiff or path.suffix.lower() == ".vsi"):
            raise UnsupportedImage(conversion(path))
        if is_tiff or path.suffix.lower() in TIFF_SUFFIXES:
            return open_tiff(path, scale)
        return open_picture(path)


def _instead_of(folder: Path) -> str:
    """What to give in place of a folder: patterns for the images in it, as deep as they lie."""
    if index := index_of(folder):
        return f"it belongs to {index}, and {conversion(index)}"
    found = sorted(path.relative_to(folder) for path in folder.rglob("*")
                   if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    patterns = {"/".join(["*"] * (len(path.parts) - 1) + [f"*{path.suffix}"])
                for path in found if path.suffix.lower() in IMAGE_SUFFIXES}
    if patterns:
        return "name its files, as in " + " ".join(
            f"{shlex.quote(str(folder))}/{pattern}" for pattern in sorted(patterns))
    other = next((path for path in found if path.suffix.lower() in OTHER_SLIDES
                  or format_of(folder / path)), None)
    if other:
        return f"it holds {other}, and {conversion(folder / other)}"
    return "it holds no image: name image files, such as TIFF or PNG"


def open_picture(path: Path) -> Source:
    """A PNG, a JPEG or any other format that Pillow reads, decoded as a whole."""
    with open(path, "rb") as file:
        header = file.read(26)  # in a PNG, its last two bytes are the bits and the colour type
    palette = None
    image: Image.Image
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")  # about broken EXIF, which is then ignored
        # MPO is a camera's JPEG whose other frames are previews.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise UnsupportedImage("is an animation: save only the frame you need")
        if image.mode == "P":
            colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(colours)] = colours
        elif image.mode in ("PA", "CMYK", "YCbCr", "LAB", "HSV"):
            image = image.convert("RGB")
        alpha, turned = image.mode in ("LA", "RGBA"), image.getexif().get(274, 1)
        kind = str(image.format)
        colour_of_16_bits = (header[24] == 16 and header[25] in (2, 4, 6) if kind == "PNG" else
                             kind in ("JPEG2000", "PPM") and image.mode in ("RGB", "RGBA"))
        array = np.asarray(ImageOps.exif_transpose(image))
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 65536:
        array = array.astype(np.uint16)  # Pillow returns grey PNGs of 16 bits as int32
    height, width = array.shape[:2]
    array = array.reshape(height, width, -1)
    # Of colours of 16 bits, Pillow reads the upper 8.
    if colour_of_16_bits and array[..., : array.shape[2] - alpha].max() < 32:
        raise UnsupportedImage("its 16-bit colours use less than an eighth of their range, and "
                               f"only the upper 8 bits can be read from a {kind}: save it as TIFF")
    pixels: tiff.Pixels = Decoded(array)
    if array.nbytes > 2 * tiff.HELD:
        scratch = scratch_file()
        scratch.write(np.ascontiguousarray(array).data)
        scratch.flush()
        pixels = Mapped(scratch, 0, array.dtype, array.shape, False)
    is_16_bit = array.dtype == np.uint16
    return Source(pixels, height, width, white=65535 if is_16_bit else 255,
                  says_white=not is_16_bit, alpha=alpha, palette=palette,
                  notes=[TURNED.format(turned)] if turned in range(2, 9) else [])


class Slide:
    """An image from which windows are read. `height` and `width` are in scaled pixels,
    `full_height` and `full_width` in the file's own pixels; `pixel_size` is the width and height of
    one of the file's own pixels in micrometres, `microns` the side of a square of the same area;
    both are None if it is unknown. `scaling` tells how many own pixels make a scaled one; `scale`
    is that number if it is a whole one, else None. `notes` are what the user should know about the
    file, a line each."""

    def __init__(self, path: str | Path, scale: int = 1, white: int | None = None,
                 microns: float | None = None, pixel_size: float | None = None):
        self.path = Path(path)
        self._options = scale, white, microns, pixel_size
        source = open_source(path, scale)
        dtype = source.pixels.dtype
        if dtype not in (bool, np.uint8, np.uint16):
            raise ValueError(f"{path}: contains {dtype} values: save it with 8 or 16 bits")
        self.full_height, self.full_width = source.height, source.width
        self.notes = list(source.notes)
        self.pixel_size = self._size(source.pixel_size, pixel_size)
        x, y = self.pixel_size or (0.0, 0.0)
        self.microns = (x if x == y else math.sqrt(x * y)) or None  # no rounding where they agree
        if max(x, y) >= 1.01 * min(x, y) > 0 and not microns:  # which makes them square
            self.notes.append(OBLONG.format(x, y))
        factors, block = (float(scale), float(scale)), scale
        if microns:
            if self.pixel_size is None:
                raise ValueError(NO_SIZE.format(path, microns, sizes_for(self.path)))
            factors = factors_for(self.pixel_size, microns)
            block = block_for(factors, source.levels)
            if any(block % level == 0 for level in source.levels):
                source = open_source(path, block)
            if min(factors) < 1 / 4:
                raise ValueError(MUCH_COARSER.format(path, self.microns, microns,
                                                     sizes_for(self.path)))
            if max(factors) < 1 / 1.5:
                self.notes.append(COARSER.format(self.microns, microns))
        self._source, self.scale = source, block if factors == (block, block) else None
        self.scaling = Scaling(self.full_height, self.full_width, factors, block)
        self.height, self.width = self.scaling.height, self.scaling.width
        self._white = source.white if source.says_white else white or source.white
        self._white_given = white
        if dtype.kind != "b" and source.palette is None and (
                not source.says_white or self._white < np.iinfo(dtype).max):
            self._compare_with_white()
        self._premultiplied = source.premultiplied and self._is_premultiplied()

    def __reduce__(self) -> tuple:  # a copy in another process opens the file itself
        return Slide, (self.path, *self._options)

    def _size(self, in_file: tuple[float, float] | None,
              stated: float | None) -> tuple[float, float] | None:
        """The width and height of a pixel: what is `stated` beside the file goes before what is in
        it, with a note if that is another size."""
        if stated is None:
            return in_file
        if in_file and not (0.9 < stated / in_file[0] < 1.1 and 0.9 < stated / in_file[1] < 1.1):
            x, y = in_file
            self.notes.append(f"states a pixel of {x:.4g} x {y:.4g} µm, {SIZES_TABLE} one of "
                              f"{stated:.4g}: this counts")
        return stated, stated

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w, 3)."""
        pixels = self._read(y, x, h, w)
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, 2)

    def read_grey(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The first channel of `read`, uint8 (h, w). A grey image has the same in all three."""
        return self._read(y, x, h, w)[..., 0]

    def _read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """`read`, but (h, w, 1) if the image is grey."""
        if not (0 <= y <= y + h <= self.height and 0 <= x <= x + w <= self.width):
            raise ValueError(f"the window (y, x, h, w) = {y, x, h, w} leaves the slide of "
                             f"{self.height} x {self.width} pixels")
        return self.scaling.read(self._blocks, y, x, h, w)

    def read_all(self) -> np.ndarray:
        """The whole image, uint8 (height, width, 3). Meant for coarse scales."""
        return self.read(0, 0, self.height, self.width)

    def _blocks(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window in blocks of `scaling.block` pixels, uint8 (h, w, 3), or (h, w, 1) if it is
        grey."""
        height, width = self._source.pixels.shape[:2]
        scale = self.scaling.block // self._source.factor
        # A level of a pyramid may be rounded down in size: then its last pixels are repeated.
        y, x = min(y, -(-height // scale) - 1), min(x, -(-width // scale) - 1)
        rows, columns = min(h, -(-height // scale) - y), min(w, -(-width // scale) - x)
        with naming(self.path):
            blocks = read_blocks(self._window, height, width, scale, y, x, rows, columns)
        if (rows, columns) != (h, w):
            blocks = np.pad(blocks, [(0, h - rows), (0, w - columns), (0, 0)], mode="edge")
        return blocks

    def _window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window in the stored pixels, uint8 (h, w, 3), or (h, w, 1) if it is grey."""
        array = self._source.pixels.window(y, x, h, w)
        if self._source.palette is not None:
            return self._source.palette[array[:, :, 0]]
        colours = array[:, :, : 1 if array.shape[2] <= 2 else 3]  # without alpha
        array = undo_alpha(colours, array[:, :, -1:], self._source.white) \
            if self._premultiplied else colours
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        elif self._white != 255 or array.dtype != np.uint8:
            clipped = np.minimum(array, self._white).astype(np.uint32)
            array = ((clipped * 255 + self._white // 2) // self._white).astype(np.uint8)
        return array

    def _spread(self) -> Iterator[np.ndarray]:
        """64 small windows spread over the stored pixels."""
        height, width = self._source.pixels.shape[:2]
        with naming(self.path):
            for y, x in product(range(8), range(8)):
                yield self._source.pixels.window(
                    y * max(0, height - 16) // 7, x * max(0, width - 16) // 7, min(16, height),
                    min(16, width))

    def _is_premultiplied(self) -> bool:
        """Whether colours are multiplied by alpha as the file says: no colour is then larger than
        its alpha, save for what a lossy compression changes. SimpleITK says so of any alpha, and
        multiplies nothing."""
        white, transparent, larger = self._source.white, 0, 0
        for window in self._spread():
            alpha = window[..., -1].astype(np.int64)
            seen = (alpha > white // 16) & (alpha < white)
            transparent += np.count_nonzero(alpha < white)
            larger += np.count_nonzero(seen & (window.max(2) > alpha + white // 16))
        if 20 * larger > transparent:
            return False
        if transparent:
            self.notes.append("its colours are multiplied by alpha: this is undone")
        return True

    def _compare_with_white(self) -> None:
        """Adds a note if values are all far below white, or exceed it, judged by 64 small windows
        spread over the image."""
        colours = slice(0, -1 if self._source.alpha or self._source.extra else None)
        highest = max(int(window[..., colours].max()) for window in self._spread())
        likely_white = 2 ** max(8, highest.bit_length()) - 1
        if highest > self._white:
            remedy = "" if self._source.says_white else f" (--white {likely_white} would keep them)"
            self.notes.append(f"contains values above {self._white}, which is taken as white: they "
                              f"are clipped{remedy}")
        elif not self._source.says_white and not self._white_given and highest < 2**14:
            self.notes.append("its 16-bit values use less than a quarter of their range, so it "
                              f"looks dark: if {likely_white} is white in it, pass --white "
                              f"{likely_white}")


def open_slide(path: str | Path, scale: int = 1, white: int | None = None, *,
               microns: float | None = None, pixel_size: float | None = None) -> Slide:
    """Opens an image file to read windows of it, `scale` times smaller (a whole number, at least
    1), or, with `microns`, in pixels of that many micrometres. `white` is the value that is white
    in files of 16 bits that do not say so themselves (default 65535). `pixel_size`, in micrometres,
    is what somebody stated for a file without a size, or with a wrong one. ValueError names a file
    that cannot be read, or that needs a size of its pixels and has none."""
    if scale != int(scale) or scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, not {scale}")
    if white is not None and not 0 < white < 65536:
        raise ValueError(f"white must be a 16-bit value from 1 to 65535, not {white}")
    for name, size in (("microns", microns), ("pixel_size", pixel_size)):
        if size is not None and not 0 < size < math.inf:
            raise ValueError(f"{name} must be a length in micrometres above 0, not {size}")
    if microns is not None and scale != 1:
        raise ValueError("scale and microns cannot be given together")
    return Slide(path, int(scale), white, microns, pixel_size)


def sizes_for(path: Path) -> Path:
    """Where the size of an image's pixels may be stated: a table in the image's folder, or in that
    of the data set which the image belongs to. A link is where it lies, not what it leads to."""
    folder = Path(os.path.abspath(path)).parent
    return (folder.parent if folder.name in ("images", "train") else folder) / SIZES_TABLE
