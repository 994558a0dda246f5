"""# TIFF: choosing the right image, and reading windows of it

A TIFF can contain many pages. This file decides which of them is the slide and what its numbers
mean, and reads windows of it. The rules are in the table in `minseg.files.slides`.

No file stays open and no lock is taken, so threads and forked workers may share what is opened
here. Scratch files have no name and vanish with the process.
"""

import copy
import logging
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import IO, Protocol
from weakref import proxy
from xml.etree import ElementTree

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from .pixel_size import described, pixel_size, to_number

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # whatever matters is raised, too
HELD = 2**26  # bytes to decode in one piece, to keep in a cache, and to read at a time
ALPHA = (1, 2)  # ExtraSamples that mean alpha: premultiplied or not; 0 means "unspecified"
# Names of channels that mean a colour, and those that carry no meaning.
COLOURS = (r"\b(r|red)\b", r"\b(g|green)\b", r"\b(b|blue)\b")
NO_NAME = r".*\brgb\b.*|.*bright.?field.*|(channel|ch|c)?[\s:_-]*[0-3]|c:\d/\d.*"
RESIZED = ("its text describes an image of {} x {} pixels, and it has {} x {}: it was made smaller "
           "or larger since, or cut, and states no size of its own pixels")
TURNED = "is rotated or mirrored as its orientation tag ({}) says"


class UnsupportedImage(ValueError):
    """An intact file whose content is not supported. The message says what to do."""


class Pixels(Protocol):
    """Stored pixels, from which windows are read."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # (H, W, C)

    @property
    def dtype(self) -> np.dtype: ...

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray: ...  # (h, w, C) from (y, x) on


class Decoded:
    """An image in memory, (H, W, C)."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C)."""
        return self.array[y : y + h, x : x + w]


class Mapped:
    """Uncompressed pixels in one piece of a file, from `offset` on: (H, W, C), or (C, H, W) if
    they are stored in planes."""

    def __init__(self, file: Path | IO[bytes], offset: int, dtype: np.dtype,
                 shape: tuple[int, ...], planes: bool):
        self._memmap = partial(np.memmap, file, dtype, "r", offset, shape)
        self.planes, self.dtype = planes, np.dtype(dtype).newbyteorder("=")
        self.shape = (*shape[1:], shape[0]) if planes else tuple(shape)

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C). The file is mapped anew each time, so that this process does not keep the
        memory pages that it read before."""
        array: np.ndarray = self._memmap()
        if self.planes:
            array = np.moveaxis(array, 0, 2)
        return np.array(array[y : y + h, x : x + w], self.dtype, order="C")


class Turned:
    """Pixels rotated or mirrored as the orientation tag, 2 to 8, says."""

    def __init__(self, pixels: "Mapped | Segments", orientation: int):
        self.pixels, self.dtype = pixels, pixels.dtype
        self.upright = orientation < 5  # otherwise rows become columns
        # Whether stored rows run from bottom to top, and stored columns from right to left.
        self.flip_rows, self.flip_columns = orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)
        height, width, channels = pixels.shape
        self.shape = (height, width, channels) if self.upright else (width, height, channels)

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C)."""
        if not self.upright:
            y, x, h, w = x, y, w, h
        height, width = self.pixels.shape[:2]
        y = height - y - h if self.flip_rows else y
        x = width - x - w if self.flip_columns else x
        array = self.pixels.window(y, x, h, w)
        array = array[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return array if self.upright else array.swapaxes(0, 1)


class Segments:
    """Pixels of a TIFF page, or of one page per plane, in segments, which are tiles or strips:
    `shape` is (H, W, C). `fill` is the value of segments that the file leaves out."""

    def __init__(self, path: Path, pages: list, shape: tuple[int, int, int], planes: bool,
                 fill: int):
        page = pages[0]
        self.path, self.shape, self.planes, self.fill = path, shape, planes, fill
        self.dtype: np.dtype = page.dtype
        self._whole_bytes = page.bitspersample in (8, 16) and page.fillorder == 1
        self._stored_dtype = page.dtype.newbyteorder(page.parent.byteorder)
        height, width, channels = shape
        if page.is_tiled:
            self.segment_height, self.segment_width = page.tilelength, page.tilewidth
        else:
            self.segment_height, self.segment_width = min(page.rowsperstrip, height), width
        self.rows = -(-height // self.segment_height)  # of segments
        self.columns = -(-width // self.segment_width)
        self.samples = 1 if planes else channels
        self.offsets = [offset for p in pages for offset in p.dataoffsets]
        self.counts = [count for p in pages for count in p.databytecounts]
        if min(len(self.offsets), len(self.counts)) < len(self):
            raise ValueError("some of its tiles or strips are missing")
        self.compression, self.predictor = page.compression, page.predictor
        if planes and page.compression == COMPRESSION.JPEG and page.samplesperpixel > 1:
            page = copy.copy(page)  # each plane is a grey JPEG; tifffile expects RGB in each
            page.__dict__.pop("decode", None)  # which is a cached property
            page.photometric, page.samplesperpixel = PHOTOMETRIC.MINISBLACK, 1
        self._decode = page.decode
        self._several_pages = len(pages) > 1  # then segments are numbered within their page
        self._tables = ({"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
                        if page.compression in (6, 7, 34892, 33007) else {})
        values = self.segment_height * self.segment_width * self.samples
        self.size = values * page.dtype.itemsize  # bytes of a decoded segment
        # Keep a row of segments and a quarter: the next window may begin in the middle of the row.
        row = self.size * len(self) // self.rows
        # The cache must not hold `self`, which holds the cache: neither would be freed with the
        # last reference, only whenever Python searches for such cycles.
        weak = proxy(self)
        self.segment = lru_cache(max(HELD, row + row // 4) // self.size + 1)(
            lambda index: weak._segment(index))

    def __len__(self) -> int:
        return self.rows * self.columns * (self.shape[2] if self.planes else 1)

    def _segment(self, index: int) -> np.ndarray:
        """A tile or strip, decoded: (rows, columns, samples)."""
        with open(self.path, "rb") as file:
            file.seek(self.offsets[index])
            data = file.read(self.counts[index])
        if not data:  # sparse files leave empty tiles out
            top = index // self.columns % self.rows * self.segment_height
            rows = min(self.segment_height, self.shape[0] - top)
            return np.full((rows, self.segment_width, self.samples), self.fill, self.dtype)
        index = index % (self.rows * self.columns) if self._several_pages else index
        array, _, shape = self._decode(data, index, **self._tables)
        return array[0, : shape[1], : shape[2]]

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C), from the segments that it touches."""
        out = np.empty((h, w, self.shape[2]), self.dtype)

        def copy(position: tuple[int, int, int]) -> None:
            row, plane, column = position
            segment = self.segment((plane * self.rows + row) * self.columns + column)
            top, left = row * self.segment_height, column * self.segment_width
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + h, top + self.segment_height), min(x + w, left + self.segment_width)
            channels = slice(plane, plane + 1) if self.planes else slice(None)
            out[y0 - y : y1 - y, x0 - x : x1 - x, channels] = \
                segment[y0 - top : y1 - top, x0 - left : x1 - left]

        # The last row of segments comes last, in all planes: it is kept for the next window.
        touched = list(product(range(y // self.segment_height, -(-(y + h) // self.segment_height)),
                               range(self.shape[2] if self.planes else 1),
                               range(x // self.segment_width, -(-(x + w) // self.segment_width))))
        if len(touched) <= 2:
            for position in touched:
                copy(position)
        else:  # in parallel, because decoders release Python's global lock
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                list(pool.map(copy, touched))
        return out

    def unpacked(self) -> Mapped:
        """Decodes all segments into a scratch file, and maps it. Uncompressed and Deflate strips
        pass through in small pieces; other compressions have no streaming decoder, so that a whole
        strip of them must fit in memory."""
        scratch = scratch_file()
        for index in range(len(self)):
            streams = (self.compression in (1, 8, 32946) and self.predictor in (1, 2)
                       and self.counts[index] and self._whole_bytes)
            for rows in self._stream_rows(index) if streams else [self._segment(index)]:
                scratch.write(np.ascontiguousarray(rows, self.dtype).data)
        scratch.flush()
        shape = (self.shape[2], *self.shape[:2]) if self.planes else self.shape
        return Mapped(scratch, 0, self.dtype, shape, self.planes)

    def _stream_rows(self, index: int) -> Iterator[np.ndarray]:
        """The rows of a strip, a few at a time: (rows, width, samples)."""
        row_bytes = self.shape[1] * self.samples * self.dtype.itemsize
        top = index % self.rows * self.segment_height
        missing = row_bytes * min(self.segment_height, self.shape[0] - top)
        buffer = b""
        for data in self._stream_bytes(index):
            buffer += data
            whole_rows = min(len(buffer) // row_bytes * row_bytes, missing)
            rows = np.frombuffer(buffer[:whole_rows], self._stored_dtype)
            rows = rows.reshape(-1, self.shape[1], self.samples)
            if self.predictor == 2:  # each value was stored as the difference to its left neighbour
                rows = np.cumsum(rows, 1, dtype=self.dtype)
            yield rows
            buffer, missing = buffer[whole_rows:], missing - whole_rows
        if missing:
            raise ValueError("a strip is cut off")

    def _stream_bytes(self, index: int) -> Iterator[bytes]:
        """The bytes of a strip, at most 16 MiB at a time: blank glass inflates a thousandfold."""
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


def scratch_file(buffering: int = -1) -> IO[bytes]:
    """A file without a name, which vanishes once nothing uses it, or with the process."""
    return tempfile.TemporaryFile(prefix="minseg-", buffering=buffering)


@dataclass
class Source:
    """An opened image file: pixels as they are stored, and what they mean. `pixels` has .shape
    (H, W, C), .dtype and .window(y, x, h, w). Its channels are one grey or three colours, then an
    alpha channel if `alpha` is set, or one of unknown meaning if `extra` is set."""

    pixels: Pixels
    height: int  # of the whole image, of which `pixels` may be a smaller copy
    width: int
    factor: int = 1  # how many times smaller `pixels` is
    levels: list[int] = field(default_factory=list)  # a pyramid's: how many times smaller each is
    pixel_size: tuple[float, float] | None = None  # µm, x and y, of the whole image's pixels
    white: int = 255  # the value that is white
    says_white: bool = True  # whether the file says so; if not, 16-bit values may stop far below
    nodata: int | None = None  # the value that means "no data", from GDAL's tag
    alpha: bool = False
    premultiplied: bool = False  # whether the file says that its colours are multiplied by alpha
    extra: bool = False
    palette: np.ndarray | None = None  # uint8 (256, 3); `pixels` are then indices into it
    notes: list[str] = field(default_factory=list)  # what the user should know, a line each


def open_tiff(path: Path, scale: int) -> Source:
    """Opens the largest image in a TIFF; of a pyramid, the coarsest level whose factor divides
    `scale`. UnsupportedImage if it cannot be read; decoders raise errors of their own."""
    with sorted_pages(path) as tiff:
        series, notes = find_largest(tiff)
        levels = series.levels
        page = levels[0].keyframe
        height, width = read_layout(levels[0])[0][:2]
        orientation = page.tags.valueof("Orientation", default=1)
        turned = orientation if orientation in range(2, 9) else 0
        chosen, factor, smaller = levels[0], 1, []
        for level in levels[1:] if not turned else ():  # from fine to coarse
            h, w = read_layout(level)[0][:2]
            times = round(width / w)
            if abs(height / times - h) < 1 and abs(width / times - w) < 1:
                smaller.append(times)
                if scale % times == 0:
                    chosen, factor = level, times
        pixels = open_level(path, tiff, chosen, turned)
        ome, resized = described(tiff, width, height)
        size = None if resized else pixel_size(tiff, page, ome, notes)
        if resized:
            notes.append(RESIZED.format(*resized, width, height))
        if factor == 1:  # rows may have become columns
            height, width = pixels.shape[:2]
        source = Source(pixels, height, width, factor, smaller, notes=notes)
        name_channels(source, chosen, ome)
        find_white(source, page, ome)
        if size:
            source.pixel_size = size if turned < 5 else size[::-1]
        source.nodata, _ = read_nodata(page)
        if turned:
            source.notes.append(TURNED.format(turned))
        return source


@contextmanager
def sorted_pages(path: Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF whose pages tifffile has sorted. Programs copy descriptions, of ImageJ's stacks and
    tifffile's arrays, into files that these do not fit; there they are left unread."""
    with tifffile.TiffFile(path) as tiff:
        try:
            fits = bool(tiff.series)
        except Exception:  # of many kinds, KeyError among them
            fits = False
        if fits:
            yield tiff
            return
    with tifffile.TiffFile(path, is_imagej=False, is_shaped=False) as tiff:
        yield tiff


def find_largest(tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPageSeries, list[str]]:
    """The largest image in a file: the others are labels, overviews, smaller copies or masks of
    transparency. Also a note if another one is nearly as large."""
    # tifffile stitches neither, and its older versions do not know Trestle's files.
    maker = "Trestle" if str(tiff.pages.first.software).startswith("MedScan") else "Ventana"
    if tiff.is_bif or maker == "Trestle":
        raise UnsupportedImage(f"{maker}'s tiles overlap: export it from QuPath as OME-TIFF")
    series = [each for each in tiff.series if not each.keyframe.is_mask]
    series = [each for each in series if not each.keyframe.is_reduced] or series
    if not series:
        raise UnsupportedImage("contains no image: export it again")

    def size(each: tifffile.TiffPageSeries) -> tuple[int, int]:
        sizes = dict(zip(each.axes, each.shape))
        return sizes.get("Y", 1), sizes.get("X", 1)

    first, *others = sorted(series, key=lambda each: -math.prod(size(each)))
    if same := [each for each in others if math.prod(size(each)) == math.prod(size(first))]:
        raise UnsupportedImage("contains {} images of {} x {} pixels: save only the one you need"
                               .format(1 + len(same), *size(first)))
    close = [size(each) for each in others if 2 * math.prod(size(each)) > math.prod(size(first))]
    return first, ["also contains an image of {} x {} pixels: the larger one is read".format(*each)
                   for each in close[:1]]


def read_layout(level: tifffile.TiffPageSeries) -> tuple[tuple[int, int, int], bool, bool]:
    """The shape as (H, W, C); whether channels are stored as planes; whether a page is H x W."""
    sizes = list(zip(level.shape, level.axes))
    sizes = [(n, axis) for n, axis in sizes if n > 1 or axis in "YX"]
    shape, axes = tuple(n for n, _ in sizes), "".join(axis for _, axis in sizes)
    if len(shape) == 2:
        return (*shape, 1), False, True
    if len(shape) == 3:
        a, b, c = shape
        if axes.endswith("YX") and a > 1:
            # Samples of one page (S), or pages, which are channels by name (C) or unnamed (Q).
            if (axes[0] == "S" and a in (2, 3, 4)) or (axes[0] in "CQ" and a == 3):
                return (b, c, a), True, True
            if not (axes[0] == "Q" and c == 3):
                kind = "channels" if axes[0] in "SC" else "images"
                raise UnsupportedImage(f"contains {a} {kind} of {b} x {c} pixels: save only the "
                                       "one you need, or only red, green and blue")
        if c == 3 or (axes == "YXS" and c in (2, 4)):
            return (a, b, c), False, axes.startswith("YX")
    raise UnsupportedImage(f"has the shape {shape}: save it as grey, RGB or RGBA")


def open_level(path: Path, tiff: tifffile.TiffFile, level: tifffile.TiffPageSeries,
               turned: int) -> Pixels:
    """The stored pixels of an image or of one level of it, rotated or mirrored as the orientation
    tag `turned` says (0: not at all)."""
    shape, planes, page_is_plane = read_layout(level)
    page = level.keyframe
    check_colours(page)
    if any(each is None or each.parent is not tiff for each in level):
        raise UnsupportedImage("its channels lie in several files: save them in one file")
    if page.dtype is None:
        raise ValueError("its numbers have an unknown format")
    pixels: Mapped | Segments
    if level.dataoffset is not None:
        dtype = page.dtype.newbyteorder(tiff.byteorder)
        stored_shape = (shape[2], *shape[:2]) if planes else shape
        if level.dataoffset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError("it is cut off")
        pixels = Mapped(path, level.dataoffset, dtype, stored_shape, planes)
    elif page_is_plane:
        pixels = open_segments(path, tiff, level, turned)
    else:
        raise UnsupportedImage(f"has the axes {level.axes}: save it with the channels last")
    return Turned(pixels, turned) if turned else pixels


def check_colours(page: tifffile.TiffPage) -> None:
    """UnsupportedImage if a page has colours other than grey where 0 is black, RGB, and YCbCr in
    JPEG."""
    if page.photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB) and not (
            page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG):
        if page.photometric == PHOTOMETRIC.MINISWHITE:  # of bool, tifffile makes this
            raise UnsupportedImage(
                "its colours are MINISWHITE, where 0 is white: save a slide as RGB, a mask with "
                "tifffile.imwrite(path, (tifffile.imread(path) > 0).astype('uint8') * 255), or "
                "with == 0 for > 0 if its objects are white in a viewer")
        raise UnsupportedImage(f"its colours are {PHOTOMETRIC(page.photometric).name}: save it as "
                               "RGB or grey")
    if page.compression == 33003:
        raise UnsupportedImage("its colours are YCbCr in JPEG 2000: save it as RGB")
    # libvips 8.14 writes YCbCr, calls it RGB, and leaves no trace but this: it names no software.
    if page.compression == 33004 and page.samplesperpixel >= 3 and not page.software:
        raise UnsupportedImage(
            "its JPEG 2000 says RGB, but holds YCbCr if libvips 8.14 wrote it, and nothing tells "
            "which: if it was libvips, give the same program vips tiffsave IN.tif OUT.tif --tile "
            "--compression deflate, which reads it rightly, else save it in another compression")


def open_segments(path: Path, tiff: tifffile.TiffFile, level: tifffile.TiffPageSeries,
                  turned: int) -> Mapped | Segments:
    """An image in tiles or strips. Strips that are too large to keep are unpacked. ValueError if
    the file is cut off; UnsupportedImage if a decoder is missing."""
    page, (shape, planes, _) = level.keyframe, read_layout(level)
    segments = Segments(path, list(level), shape, planes, 0)
    ends = [offset + count for offset, count in zip(segments.offsets, segments.counts)]
    if max(ends) > path.stat().st_size:
        raise ValueError("it is cut off")
    if not any(segments.counts):
        raise UnsupportedImage("holds no pixels, only a header: writing it failed, or it is a "
                               "sparse file without any tile: save it again, with all tiles")
    if 0 in segments.counts:
        segments.fill = 255 if tiff.is_philips else read_fill(page)
    try:
        # Where rows become columns, reading a few of them touches every strip.
        if not page.is_tiled and (segments.size > 2 * HELD or turned > 4):
            return segments.unpacked()
        segments.window(0, 0, 1, 1)  # fails here, not later, if its decoder is missing
    # Without imagecodecs, tifffile's own decoders raise any of these for what they cannot decode.
    except (ValueError, NotImplementedError, ImportError) as error:
        if "imagecodecs" in str(error) or isinstance(error, ImportError):
            raise UnsupportedImage(f"{COMPRESSION(page.compression).name} compression of "
                                   f"{page.bitspersample} bits needs the codecs extra: "
                                   "python -m pip install 'minseg[codecs]'")
        raise
    return segments


def read_nodata(page: tifffile.TiffPage) -> tuple[int | None, str]:
    """The value of GDAL's NODATA tag, or None if it is missing or not a value that a pixel can
    have; and the text of the tag."""
    text = str(page.tags.valueof("GDAL_NODATA", default="")).strip("\0 ")
    whole = re.fullmatch(r"\+?(\d+)([.,]0*)?", text)
    value = int(whole[1]) if whole else 2**64
    return (value if value < 2**page.bitspersample else None), text


def read_fill(page: tifffile.TiffPage) -> int:
    """The value of tiles that the file leaves out: GDAL's NODATA, else 0."""
    value, text = read_nodata(page)
    if value is None and text:
        raise UnsupportedImage(f"leaves out tiles whose value should be {text}, which pixels of "
                               f"{page.bitspersample} bits cannot have: save it with all tiles")
    return value or 0


def name_channels(source: Source, level: tifffile.TiffPageSeries,
                  ome: ElementTree.Element | None) -> None:
    """Decides which channels are colours, which is alpha (only if the file says so) and which is
    neither. UnsupportedImage if the colours are not one grey or red, green and blue."""
    page, channels = level.keyframe, source.pixels.shape[2]
    alphas = sum(int(kind) in ALPHA for kind in page.extrasamples) if channels > 1 else 0
    colours = channels - alphas
    source.alpha = alphas == 1
    source.premultiplied = source.alpha and int(page.extrasamples[0]) == ALPHA[0]
    if page.photometric == PHOTOMETRIC.RGB and colours == 4:
        source.extra = True
        source.notes.append("its fourth channel is ignored: it is not declared as alpha")
    elif alphas > 1 or colours not in (1, 3):
        raise UnsupportedImage(f"contains {channels} channels, of which its ExtraSamples tag "
                               f"declares {alphas or 'none'} as alpha: save it as grey, RGB or "
                               "RGBA")
    names = [(each.get("Name") or each.get("Fluor") or "").strip()
             for each in ([] if ome is None else ome) if each.tag.endswith("}Channel")]
    if page.is_imagej:
        names = (page.parent.imagej_metadata or {}).get("Labels") or []
    named = len(names) == 3 and all(names)
    if named and not all(re.fullmatch(NO_NAME, name, re.I) for name in names):
        if not all(re.search(colour, name, re.I) for colour, name in zip(COLOURS, names)):
            raise UnsupportedImage(f"its channels are {', '.join(names)}: save it as red, green "
                                   "and blue")
    elif colours == 3 and page.photometric == PHOTOMETRIC.MINISBLACK:
        source.notes.append("does not say what its three channels are: they are read as red, green "
                            "and blue")


def find_white(source: Source, page: tifffile.TiffPage, ome: ElementTree.Element | None) -> None:
    """Sets the value that is white, and whether the file says so by OME's SignificantBits,
    BitsPerSample or SMaxSampleValue: a plain 16-bit file does not."""
    bits = page.bitspersample
    if ome is not None and (significant := to_number(ome.get("SignificantBits"))) > 0:
        bits = min(bits, int(significant))
    source.white, source.says_white = 2**bits - 1, bits != 16
    stated = int(to_number(page.tags.valueof("SMaxSampleValue")))
    all_ones = not stated + 1 & stated  # in binary: 1, 3, 7, 15, ...
    # Any other value is only the maximum of this image in 8-bit files. In 16-bit files it may be
    # either, so a note says that it was used.
    if 0 < stated < source.white and (all_ones or bits > 8):
        source.white, source.says_white = stated, True
        if not all_ones or bits <= 8:
            source.notes.append(f"its SMaxSampleValue, {stated}, is taken as white")


