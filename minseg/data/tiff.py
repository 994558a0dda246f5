"""# TIFF: which image is meant, and windows of it

A TIFF can hold many pages. This file settles which of them is the slide and what its numbers mean,
and reads windows of it. The rules are in the table in `minseg.data.slides`.

No file is held open and no lock is taken, so what is opened here may be read from threads and from
forked workers. Scratch files have no name and vanish with the process.
"""

import logging
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of, it also raises
HELD = 2**26  # bytes: what is decoded in one piece and kept, and what is read in one go
ALPHA = (1, 2)  # ExtraSamples: alpha, multiplied into the colours or not; 0 says nothing
MICROMETRES = {"nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0}
# Channel names that mean a colour, and those that mean nothing.
COLOURS = (r"\b(r|red)\b", r"\b(g|green)\b", r"\b(b|blue)\b")
NO_NAME = r".*\brgb\b.*|.*bright.?field.*|(channel|ch|c)?[\s:_-]*[0-3]|c:\d/\d.*"
TURNED = "is turned as its orientation tag, {}, says"


class UnsupportedImage(ValueError):
    """A sound file that holds something else than this project reads."""


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


class Turned:
    """Pixels shown as the orientation tag says, 2 to 8: which side of what is stored is the top."""

    def __init__(self, pixels, orientation: int):
        self.pixels, self.dtype = pixels, pixels.dtype
        self.upright = orientation < 5  # else rows become columns
        self.down, self.right = orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)
        height, width, channels = pixels.shape
        self.shape = (height, width, channels) if self.upright else (width, height, channels)

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """(h, w, C)."""
        if not self.upright:
            y, x, h, w = x, y, w, h
        height, width = self.pixels.shape[:2]
        y = height - y - h if self.down else y
        x = width - x - w if self.right else x
        array = self.pixels.window(y, x, h, w)
        array = array[:: -1 if self.down else 1, :: -1 if self.right else 1]
        return array if self.upright else array.swapaxes(0, 1)


class Segments:
    """Pixels of a TIFF page, or of one page per plane, in tiles or strips: `shape` is (H, W, C).
    `fill` is the value of those that the file leaves out."""

    def __init__(self, path: Path, pages: list, shape: tuple, planes: bool, fill: int):
        page = pages[0]
        self.path, self.shape, self.planes, self.dtype = path, shape, planes, page.dtype
        self.fill, self._whole_bytes = fill, page.bitspersample in (8, 16) and page.fillorder == 1
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
            top = index // self.across % self.down * self.high
            rows = min(self.high, self.shape[0] - top)
            return np.full((rows, self.wide, self.samples), self.fill, self.dtype)
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
            streams = (self.compression in (1, 8, 32946) and self.predictor in (1, 2)
                       and self.counts[index] and self._whole_bytes)
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
    """An opened image file: pixels as they are stored, and what they mean. `pixels` has .shape
    (H, W, C), .dtype and .window(y, x, h, w); its channels are one grey or three colours, then an
    alpha channel where `alpha` is set, then one of unknown meaning where `extra` is."""

    pixels: Decoded | Mapped | Segments | Turned
    height: int  # of the whole image, of which `pixels` may be a smaller copy
    width: int
    factor: int = 1  # how many times smaller
    microns: float | None = None  # from one pixel of the whole image to the next
    white: int = 255  # the value that is white
    says_white: bool = True  # by the file; else it may be less, of 16 bits
    nodata: int | None = None  # the value that stands for nothing, by GDAL's tag
    alpha: bool = False
    extra: bool = False
    palette: np.ndarray | None = None  # uint8 (256, 3): then `pixels` are its indices
    notes: list[str] = field(default_factory=list)  # what the user should know


def open_tiff(path: Path, scale: int) -> Source:
    """The image in a TIFF that is meant, of a pyramid the level that `scale` needs.
    UnsupportedImage says what is not read; decoders raise errors of their own."""
    with tifffile.TiffFile(path) as tiff:
        series, notes = largest(tiff)
        levels = series.levels
        page = levels[0].keyframe
        height, width = layout(levels[0])[0][:2]
        orientation = page.tags.valueof("Orientation", default=1)
        turned = orientation if orientation in range(2, 9) else 0
        chosen, factor = levels[0], 1
        for level in levels[1:] if not turned else ():  # from fine to coarse
            h, w = layout(level)[0][:2]
            times = round(width / w)
            if scale % times == 0 and abs(height / times - h) < 1 and abs(width / times - w) < 1:
                chosen, factor = level, times
        pixels = open_level(path, tiff, chosen, turned)
        size = pixels.shape[:2] if factor == 1 else (height, width)
        source = Source(pixels, *size, factor, notes=notes)
        described = ome_pixels(tiff, height, width)
        name_channels(source, chosen, described)
        settle_white(source, page, described)
        source.microns = microns(tiff, page, described)
        source.nodata, _ = nodata(page)
        if turned:
            source.notes.append(TURNED.format(turned))
        return source


def largest(tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPageSeries, list[str]]:
    """The largest image of a file: others are labels, overviews, smaller copies, masks of alpha.
    Also a note where another is nearly as large."""
    if tiff.is_bif:
        raise UnsupportedImage("Ventana's tiles overlap: export it from QuPath as OME-TIFF")
    series = [each for each in tiff.series if not each.keyframe.is_mask]
    series = [each for each in series if not each.keyframe.is_reduced] or series
    if not series:
        raise UnsupportedImage("holds no image: save it anew")

    def size(each: tifffile.TiffPageSeries) -> tuple[int, int]:
        sizes = dict(zip(each.get_axes(squeeze=False), each.get_shape(squeeze=False)))
        return sizes.get("Y", 1), sizes.get("X", 1)

    first, *others = sorted(series, key=lambda each: -math.prod(size(each)))
    if same := [each for each in others if math.prod(size(each)) == math.prod(size(first))]:
        raise UnsupportedImage("holds {} images of {} x {} pixels: save the one that is meant"
                               .format(1 + len(same), *size(first)))
    close = [size(each) for each in others if 2 * math.prod(size(each)) > math.prod(size(first))]
    return first, ["also holds an image of {} x {} pixels: the larger one is read".format(*each)
                   for each in close[:1]]


def layout(level: tifffile.TiffPageSeries) -> tuple[tuple[int, int, int], bool, bool]:
    """Its shape as (H, W, C); whether channels are stored as planes; whether a page is H x W."""
    sizes = list(zip(level.get_shape(squeeze=False), level.get_axes(squeeze=False)))
    sizes = [(n, axis) for n, axis in sizes if n > 1 or axis in "YX"]
    shape, axes = [n for n, _ in sizes], "".join(axis for _, axis in sizes)
    if len(shape) == 2:
        return (*shape, 1), False, True
    if len(shape) == 3 and axes.endswith("YX") and shape[0] > 1:
        # Samples of a page; or pages, which are channels by name (C), or by an unnamed third axis.
        if (axes[0] == "S" and shape[0] in (2, 3, 4)) or (axes[0] in "CQ" and shape[0] == 3):
            return (*shape[1:], shape[0]), True, True
        if not (axes[0] == "Q" and shape[2] == 3):
            what = "channels" if axes[0] in "SC" else "images"
            raise UnsupportedImage("holds {} {} of {} x {} pixels: save the one that is meant, or "
                                   "red, green and blue alone".format(shape[0], what, *shape[1:]))
    if len(shape) == 3 and (shape[2] == 3 or (axes == "YXS" and shape[2] in (2, 4))):
        return tuple(shape), False, axes.startswith("YX")
    raise UnsupportedImage(f"has the shape {tuple(shape)}: expected grey, RGB or RGBA")


def open_level(path: Path, tiff: tifffile.TiffFile, level: tifffile.TiffPageSeries,
               turned: int) -> Mapped | Segments | Turned:
    """The stored pixels of an image, or of one level of it, turned by its orientation tag."""
    shape, planes, plain = layout(level)
    page, pages = level.keyframe, list(level.pages)
    if page.photometric.name not in ("MINISBLACK", "RGB") and not (
            page.photometric.name == "YCBCR" and page.compression.name == "JPEG"):
        remedy = ("grey where 0 is black" if page.photometric.name == "MINISWHITE" else "grey")
        raise UnsupportedImage(f"its colours are {page.photometric.name}: save it as RGB or "
                               + remedy)
    if page.compression == 33003:
        raise UnsupportedImage("its colours are YCbCr in JPEG 2000: save it as RGB")
    if any(p is None or p.parent is not tiff for p in pages):
        raise UnsupportedImage("its channels lie in several files: save it as one")
    if level.dataoffset is not None:
        dtype = page.dtype.newbyteorder(tiff.byteorder)
        stored = (shape[2], *shape[:2]) if planes else shape
        if level.dataoffset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise ValueError("it ends too early")
        pixels = Mapped(path, level.dataoffset, dtype, stored, planes)
    elif not plain:
        raise UnsupportedImage(f"has the axes {level.axes}: save it with the channels last")
    else:
        pixels = Segments(path, pages, shape, planes, 0)
        ends = [offset + count for offset, count in zip(pixels.offsets, pixels.counts)]
        if max(ends) > path.stat().st_size:
            raise ValueError("it ends too early")
        if 0 in pixels.counts:
            pixels.fill = 255 if tiff.is_philips else fill(page)
        try:
            large = pixels.size > 2 * HELD or turned > 4  # rows become columns: all strips are read
            pixels = pixels.unpacked() if large and not page.is_tiled else pixels
            pixels.window(0, 0, 1, 1)
        except (ValueError, NotImplementedError, ImportError) as error:
            if "imagecodecs" in str(error) or isinstance(error, ImportError):
                raise UnsupportedImage(f"{page.compression.name} compression of "
                                       f"{page.bitspersample} bits needs the codecs extra: "
                                       "python -m pip install 'minseg[codecs]'")
            raise
    return Turned(pixels, turned) if turned else pixels


def number(value: object) -> float:
    """A number that a tag or an attribute holds; 0 where it holds none, or several that differ."""
    values = set(value) if isinstance(value, tuple) else {value}
    try:
        found = float(str(values.pop())) if len(values) == 1 else 0.0
    except ValueError:
        return 0.0
    return found if math.isfinite(found) else 0.0


def nodata(page: tifffile.TiffPage) -> tuple[int | None, str]:
    """GDAL's NODATA, None where it is missing or no value that a pixel can have, and its text."""
    text = str(page.tags.valueof("GDAL_NODATA", default="")).strip("\0 ")
    whole = re.fullmatch(r"\+?(\d+)([.,]0*)?", text)
    value = int(whole[1]) if whole else 2**64
    return (value if value < 2**page.bitspersample else None), text


def fill(page: tifffile.TiffPage) -> int:
    """What a tile that is left out holds: GDAL's NODATA, else 0."""
    value, text = nodata(page)
    if value is None and text:
        raise UnsupportedImage(f"leaves out tiles whose value should be {text}, which pixels of "
                               f"{page.bitspersample} bits cannot hold: save it with all tiles")
    return value or 0


def name_channels(source: Source, level: tifffile.TiffPageSeries,
                  described: ElementTree.Element | None) -> None:
    """Decides which channels are colour, which is alpha (only where the file says so) and which is
    neither. UnsupportedImage where that leaves no grey and no red, green, blue."""
    page, channels = level.keyframe, source.pixels.shape[2]
    alphas = sum(int(kind) in ALPHA for kind in page.extrasamples) if channels > 1 else 0
    colours = channels - alphas
    source.alpha = alphas == 1
    if page.photometric.name == "RGB" and colours == 4:
        source.extra = True
        source.notes.append("its fourth channel is left out: it is not said to be alpha")
    elif alphas > 1 or colours not in (1, 3):
        raise UnsupportedImage(f"holds {channels} channels, {alphas or 'none'} of them alpha by "
                               "its ExtraSamples tag: save it as grey, RGB or RGBA")
    parts = [each for each in ([] if described is None else described)
             if each.tag.endswith("}Channel")]
    names = [(each.get("Name") or each.get("Fluor") or "").strip() for each in parts]
    if page.is_imagej:
        names = (page.parent.imagej_metadata or {}).get("Labels") or []
    named = len(names) == 3 and all(names)
    if named and not all(re.fullmatch(NO_NAME, name, re.I) for name in names):
        if not all(re.search(*pair, re.I) for pair in zip(COLOURS, names)):
            raise UnsupportedImage(f"its channels are {', '.join(names)}: save them as red, green "
                                   "and blue")
    elif colours == 3 and page.photometric.name == "MINISBLACK":
        source.notes.append("does not say what its three channels are: they are read as red, green "
                            "and blue")


def ome_pixels(tiff: tifffile.TiffFile, height: int, width: int) -> ElementTree.Element | None:
    """What OME's XML says of the image of this size; None where there is none."""
    if not tiff.is_ome:
        return None
    try:
        elements = ElementTree.fromstring(tiff.ome_metadata).iter()
    except ElementTree.ParseError:  # says nothing
        return None
    for each in elements:
        size = each.get("SizeY"), each.get("SizeX")
        if each.tag.endswith("}Pixels") and size == (str(height), str(width)):
            return each
    return None


def settle_white(source: Source, page: tifffile.TiffPage,
                 described: ElementTree.Element | None) -> None:
    """The value that is white, and whether the file says so (OME's SignificantBits, BitsPerSample,
    SMaxSampleValue): a plain 16-bit file does not."""
    bits = page.bitspersample
    if described is not None and (significant := number(described.get("SignificantBits"))) > 0:
        bits = min(bits, int(significant))
    source.white, source.says_white = 2**bits - 1, bits != 16
    stated = int(number(page.tags.valueof("SMaxSampleValue")))
    round_number = not stated + 1 & stated  # 1, 3, 7, 15 ...
    # In 8-bit files another value is just that image's maximum. In 16-bit files it may be, so that
    # a note says that it was used.
    if 0 < stated < source.white and (round_number or bits > 8):
        source.white, source.says_white = stated, True
        if not round_number or bits <= 8:
            source.notes.append(f"its SMaxSampleValue, {stated}, is taken for white")


def microns(tiff: tifffile.TiffFile, page: tifffile.TiffPage,
            described: ElementTree.Element | None) -> float | None:
    """Micrometres from one pixel to the next: by OME, Aperio, ImageJ, else by the resolution tags.
    Whole 72 to 600 dots an inch are what any editor writes, and say nothing."""
    if described is not None and described.get("PhysicalSizeX"):
        unit = (described.get("PhysicalSizeXUnit") or "µm").replace("\u03bc", "µ")
        size = number(described.get("PhysicalSizeX")) * MICROMETRES.get(unit, 0)
        return size if size > 0 else None
    if tiff.is_svs and (found := re.search(r"\bMPP\s*=\s*([\d.]+)", tiff.pages[0].description)):
        return number(found[1]) or None
    value = page.tags.valueof("XResolution", default=0)
    dots, units = (*(value if isinstance(value, tuple) else (value,)), 1)[:2]
    unit = {2: 25400, 3: 10000}.get(page.tags.valueof("ResolutionUnit", default=2))
    if tiff.is_imagej and (tiff.imagej_metadata or {}).get("unit") in ("micron", "um", "µm"):
        unit = 1
    if not (unit and dots and units):
        return None
    size = unit * units / dots
    per_inch = 25400 / size
    if 71.9 < per_inch < 600.1 and abs(per_inch - round(per_inch)) < 0.01:
        return None
    return size
