"""# Masks: where the objects are, in whatever form this was stored

In a mask, 1 is object, 0 is background and 255 is "void": nobody labelled that pixel. Masks are
stored as images, as run-length code or as polygons. They are read in windows, so that a whole mask
is never in memory. The tables in `minseg.data.datasets` say what is accepted and how it is read.
"""

import dataclasses
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import tiff
from .files import identity
from .kept import once
from .polygons import Polygon, Polygons, read_polygons
from .rle import Runs
from .slides import Window, naming, open_source
from .tiff import Source

if TYPE_CHECKING:
    from .datasets import Item

VOID = 255
POLYGON_SUFFIXES = (".geojson", ".json")


class Mask:
    """A mask from which windows are read, at the size of its image, `height` x `width`. `has_void`
    says whether windows may contain 255. `kind` is the value of objects in a mask that is stored as
    an image, "1" or "255"; it is "void" if 255 is void there, and "" if there is no such value.
    ValueError if the size differs from the image's, or if the values are not those of a mask."""

    _window: Window

    def __init__(self, item: "Item", height: int, width: int):
        self.item, self.kind = item, ""
        self._void: Window | None = None
        drawn = item.mask if item.mask.suffix.lower() in POLYGON_SUFFIXES else item.polygons
        if item.runs is not None:
            try:
                self._window = Runs(item.runs, height, width).window
            except ValueError as error:
                raise ValueError(f"{item.mask}: {item.id}: {error}")
        elif drawn:
            self._window = draw(item, drawn, height, width)
        else:
            self._open(height, width)
        if drawn and item.ignore:
            self._void = draw(item, drawn, height, width, ignored=True)
        self.has_void = self._void is not None or self.kind == "void"

    def _open(self, height: int, width: int) -> None:
        source = open_source(self.item.mask)
        if (source.height, source.width) != (height, width):
            raise ValueError(f"{self.item.mask}: is {source.height} x {source.width} "
                             f"pixels, but its image is {height} x {width}: make them equal")
        means = meaning(self.item.mask, str(VOID) in self.item.ignore)
        objects = [stored for stored, value in means.items() if value == 1]
        self.kind = ("void" if VOID in means.values() else
                     "" if not objects or source.pixels.dtype == bool else
                     "1" if objects == [1] else "255")
        self._window = labels(self.item.mask, source, means)

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w) of 1 (object), 0
        (background) and 255 (void)."""
        window = self._window(y, x, h, w)
        if self._void is not None:
            window[self._void(y, x, h, w) > 0] = VOID
        return window


def labels(path: Path, source: Source, means: dict[float, int]) -> Window:
    """A reader of windows of a mask that is stored as an image; `means` is its `meaning`."""
    def window(y: int, x: int, h: int, w: int) -> np.ndarray:
        with naming(path):
            array = source.pixels.window(y, x, h, w)[:, :, 0]
        label = np.zeros(array.shape, np.uint8)
        for stored, value in means.items():
            if value:
                label[array == stored] = value
        return label

    return window


def draw(item: "Item", path: Path, height: int, width: int, ignored: bool = False) -> Window:
    """A reader of windows of the polygons at `path` that are objects: those of the classes in
    `labels`, or if there are none, of all classes that are not to be ignored. With `ignored`, of
    those that are to be ignored instead. ValueError if an object is not an area, or if a polygon
    lies outside the image."""
    key = "drawn", *identity(path), height, width, item.labels, item.ignore, ignored
    return once(key, lambda: _select(item, path, height, width, ignored)).window


def _select(item: "Item", path: Path, height: int, width: int, ignored: bool) -> Polygons:
    polygons = [each for each in polygons_of(path) if (
        each.name in item.ignore and each.rings if ignored else
        each.name in item.labels if item.labels else each.name not in item.ignore)]
    for each in polygons:
        if each.rings is None:
            raise ValueError(f"{path}: feature {each.number} ({each.name}) is a {each.kind}, not "
                             "an area: export only areas, or choose classes of areas with --label")
    try:
        return Polygons(polygons, height, width)
    except ValueError as error:
        raise ValueError(f"{path}: {error}")


def polygons_of(path: Path) -> list[Polygon]:
    """`read_polygons`, which is called once until the file changes."""
    return once(("polygons", *identity(path)), lambda: read_polygons(path))


def classes_of(path: Path) -> Counter:
    """How many polygons of each class a file contains. It is parsed once until it changes."""
    return _classes_of(path, *identity(path))


@lru_cache(None)
def _classes_of(path: Path, *identity: object) -> Counter:
    return Counter(polygon.name for polygon in polygons_of(path))


def meaning(path: Path, ignore_255: bool = False) -> dict[float, int]:
    """What each value stored in a mask's file means: 0, 1 or 255. ValueError if that is unclear."""
    return _meaning(path, ignore_255, *identity(path))


@lru_cache(1024)
def _meaning(path: Path, ignore_255: bool, *identity: object) -> dict[float, int]:
    source = open_source(path)
    stored = stored_values(path, source)
    if source.palette is not None:
        shown = palette_values(path, source.palette, stored)
    else:  # white becomes 255 whatever the number of bits; a single bit is 0 and 1 already
        shown = {value: VOID if value == source.white > 1 else value for value in stored}
    values = set(shown.values())
    with_void = (ignore_255 and values <= {0, 1, VOID}) or values == {0, 1, VOID}
    nodata = shown.get(source.nodata) if source.nodata else None
    if nodata and not (nodata == VOID and (ignore_255 or with_void)):
        raise ValueError(f"{path}: marks objects with {source.nodata:g}, which its NODATA tag "
                         "declares empty: use --ignore 255 if that is void, else save it without "
                         "the tag")
    ambiguous = source.palette is None and len(values) < len(stored)  # 255 and white itself
    if with_void and not ambiguous:
        return {value: int(each) for value, each in shown.items()}
    if (values <= {0, 1} or values <= {0, VOID}) and not ambiguous:
        return {value: int(each > 0) for value, each in shown.items()}
    listed = [f"{value:g}" for value in sorted(stored)]
    text = ", ".join(listed if len(listed) <= 6 else [*listed[:6], "..."])
    raise ValueError(f"{path}: contains the values {text}: a mask has 0 and 1, or 0 and 255, or "
                     "all three (then 255 is void; --ignore 255 makes it void in all masks)")


def stored_values(path: Path, source: Source) -> list[float]:
    """The values in a mask's file, eight at most. ValueError if it is in colour, or if its alpha
    shows a different mask."""
    if source.extra:
        raise ValueError(f"{path}: has a channel that is neither colour nor alpha: save it with a "
                         "single channel")
    height, width, channels = source.pixels.shape
    rows = max(1, tiff.HELD // (width * channels * source.pixels.dtype.itemsize))
    pairs: set[tuple] = set()  # (value, alpha)
    for y in range(0, height, rows):
        with naming(path):
            array = source.pixels.window(y, 0, min(rows, height - y), width)
        colours = array[:, :, : channels - source.alpha]
        if colours.shape[2] > 1 and (colours != colours[:, :, :1]).any():
            raise ValueError(f"{path}: is in colour, but a mask has one value per pixel: save it "
                             "as a grey image")
        value, alpha = colours[:, :, 0].ravel(), array[:, :, -1].ravel() if source.alpha else None
        while len(value) and len(pairs) < 8:  # note the first pair, then drop its pixels
            pairs.add((value[0].item(), 0 if alpha is None else alpha[0].item()))
            others = value != value[0]
            if alpha is not None:
                others |= alpha != alpha[0]
                alpha = alpha[others]
            value = value[others]
    values = [value for value, _ in pairs]
    background = [alpha for value, alpha in pairs if not value]
    objects = [alpha for value, alpha in pairs if value]
    alpha_disagrees = objects and background and max(background) > min(objects)
    if len(set(values)) < len(values) or alpha_disagrees:
        raise ValueError(f"{path}: its alpha and its colours show two different masks: flatten "
                         "it, and save it without alpha")
    return values


def palette_values(path: Path, palette: np.ndarray, indices: list[float]) -> dict[float, float]:
    """The value that each index of a palette stands for. In a palette of colours the index is a
    class, as in Pascal VOC; in a grey palette the grey level counts. ValueError if the palette does
    not show index 0 as the background."""
    colours = {index: palette[int(index)].tolist() for index in indices}
    black = [index for index, colour in colours.items() if not any(colour)]
    white = [index for index, colour in colours.items() if min(colour) == 255]
    grey = all(len(set(colour)) == 1 for colour in colours.values())
    if black not in ([], [0]) or (0 in colours and not black and (grey or white != [0])):
        raise ValueError(f"{path}: its palette does not show value 0 as the background: save it "
                         "without a palette")
    if grey and not set(indices) <= {0, 1}:
        return {index: colour[0] for index, colour in colours.items()}
    return {index: index for index in indices}


def drawn_instead(item: "Item") -> "Item":
    """The same item, but with the polygons that lie beside its run-length code as its mask."""
    assert item.polygons is not None
    return dataclasses.replace(item, runs=None, mask=item.polygons, polygons=None)
