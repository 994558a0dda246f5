"""# Reading slides, masks and data sets

A data set is a folder:

    DIR/images/ID.{png,jpg,jpeg,tif,tiff}   DIR/masks/ID.{png,tif,tiff}   [DIR/groups.csv: id,group]

**Images** become uint8 RGB where that has one clear meaning: grey is repeated three times, alpha is
dropped, 16 bits are scaled from 0..65535 to 0..255. Anything else is refused by name.
**Masks** hold {0, 1} or {0, 255}, one value a pixel, in the size of their image.
**Groups** say which images belong together (a patient); without the file each stands alone.

`open_slide` gives windows of an image at a coarser scale: a pixel there is the mean of a block of
`scale` x `scale` pixels (blocks that the border cuts average what is left). It decodes the file
once and keeps it in memory.
"""

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Image.MAX_IMAGE_PIXELS = None  # slides are large, and they are the user's own
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MASK_SUFFIXES = (".png", ".tif", ".tiff")


class UnsupportedImage(ValueError):
    """A sound file that holds something else than this project reads."""


@dataclass(frozen=True)
class Item:
    """One image of a data set, its mask, and the group that it must not be parted from."""

    id: str
    image: Path
    mask: Path
    group: str


def find_slides(folder: str | Path) -> list[Item]:
    """The images of a data set with their masks and groups, sorted by name. ValueError names what
    is missing or there twice, and what to do. Masks without an image are not used."""
    folder = Path(folder)
    for needed in (folder, folder / "images", folder / "masks"):
        if not needed.is_dir():
            raise ValueError(f"{needed}: no such folder: --data needs images/ and masks/ in it")
    images = _by_name(folder / "images", IMAGE_SUFFIXES)
    masks = _by_name(folder / "masks", MASK_SUFFIXES)
    if not images:
        raise ValueError(f"{folder / 'images'}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    for id, image in images.items():
        if id not in masks:
            raise ValueError(f"{image}: has no mask: add {folder / 'masks' / id}.png")
    groups, table = {id: id for id in images}, folder / "groups.csv"
    if os.path.lexists(table):  # a broken link is an error, not an absence
        groups = read_groups(table)
        for id in images:
            if not groups.get(id):
                raise ValueError(f"{table}: has no group for {id}: add a line")
    return [Item(id, images[id], masks[id], groups[id]) for id in sorted(images)]


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(f"{path}: {found[path.stem].name} has the same name: keep one")
            found[path.stem] = path
    return found


def read_groups(path: Path) -> dict[str, str]:
    """The columns id and group of a CSV file as a dictionary. ValueError where they are missing."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"id", "group"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{path}: the first line must be: id,group")
            groups: dict[str, str] = {}
            for row in rows:
                if groups.setdefault(row["id"], row["group"]) != row["group"]:
                    raise ValueError(f"{path}: has two groups for {row['id']}: keep one line")
            return groups
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text: save it as CSV UTF-8")


def read_array(path: str | Path) -> np.ndarray:
    """The file's pixels as they are stored, (height, width) or (height, width, channels).
    ValueError names a file that cannot be read."""
    path = Path(path)
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _read_tiff(path)
        with Image.open(path) as image:
            if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert("RGB")
            return np.asarray(image)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    except UnsupportedImage as error:
        raise ValueError(f"{path}: {error}")
    except MemoryError:
        raise
    except Exception as error:  # each decoder has errors of its own
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read, replace it or take it out: {reason}")


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        jpeg = page.photometric.name == "YCBCR" and page.compression.name == "JPEG"
        if page.photometric.name not in ("MINISBLACK", "RGB") and not jpeg:
            colours = page.photometric.name
            raise UnsupportedImage(f"its colours are {colours}: save it as RGB or grey")
        try:
            array, axes = tiff.series[0].asarray(), tiff.series[0].axes  # axes: YXS, SYX, QQQYX ...
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise UnsupportedImage(f"{page.compression.name} compression needs imagecodecs: "
                                       "python -m pip install imagecodecs")
            raise
    array = array.reshape([n for n, axis in zip(array.shape, axes) if n > 1 or axis in "YX"])
    if array.ndim == 3 and array.shape[0] in (3, 4) and axes.endswith("YX"):
        array = np.moveaxis(array, 0, 2)  # planes to pixels
    return array


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 RGB (height, width, 3). ValueError names a file that is none."""
    array = read_array(path)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"{path}: has the shape {array.shape}: expected grey, RGB or RGBA")
    array = array[:, :, : 1 if array.shape[2] <= 2 else 3]  # without alpha
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype in (np.uint16, np.int32) and 0 <= array.min() and array.max() < 65536:
        if 0 < array.max() < 256:
            raise ValueError(f"{path}: holds 16 bits but no value above 255: save it as 8 bits")
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"{path}: holds {array.dtype} values: save it as 8 or 16 bits")
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as uint8 (height, width) in {0, 1}. ValueError names a file that is none."""
    array = read_array(path)
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array = array[:, :, :-1]
    if array.ndim == 3 and (array == array[:, :, :1]).all():
        array = array[:, :, 0]
    if array.ndim != 2:
        raise ValueError(f"{path}: is a mask in colour: expected one value a pixel")
    values = np.unique(array)
    if not (set(values.tolist()) <= {0, 1} or set(values.tolist()) <= {0, 255}):
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        raise ValueError(f"{path}: holds the values {shown}: a mask holds 0 and 1, or 0 and 255")
    return (array > 0).astype(np.uint8)


def shrink(array: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, ...) -> (ceil(H / scale), ceil(W / scale), ...): rounded means of square blocks."""
    if scale == 1:
        return array
    height, width = array.shape[:2]
    rows, columns = np.arange(0, height, scale), np.arange(0, width, scale)
    total = np.add.reduceat(array.astype(np.uint32), rows, 0)
    total = np.add.reduceat(total, columns, 1)
    count = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    count = count.reshape(*count.shape, *[1] * (array.ndim - 2))
    return ((total + count // 2) // count).astype(array.dtype)


class Slide:
    """An image of which windows are read. `height` and `width` are in scaled pixels."""

    def __init__(self, pixels: np.ndarray, scale: int = 1):
        self.full_height, self.full_width = pixels.shape[:2]
        self.scale = scale
        self._pixels = shrink(pixels, scale)
        self.height, self.width = self._pixels.shape[:2]

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w, 3)."""
        if not (0 <= y <= y + h <= self.height and 0 <= x <= x + w <= self.width):
            raise ValueError(f"window {y}, {x}, {h}, {w} leaves {self.height} x {self.width}")
        return self._pixels[y : y + h, x : x + w]

    def enlarge(self, bands: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """Bands (C, rows, width) in scaled pixels -> bands in the file's own pixels, bilinear. As
        `predict_bands` yields them, (y, band) from top to bottom; what comes out is what the whole
        map enlarged at once would be. One band is held back for its lower neighbour."""
        if self.scale == 1:
            return (yield from bands)
        above = held = None
        for y, band in chain(bands, [(self.height, None)]):
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
    return Slide(read_image(path), int(scale))
