"""# Masks: what is to be found, however it was marked

In a mask 1 is object, 0 is background, and 255 is "void": nobody labelled that pixel. It comes as a
picture, as run-length code or as polygons, and is read in windows, so it is never whole in memory.
The table in `minseg.data.datasets` says what is read how, and what is refused.
"""

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import tiff
from .files import identity
from .polygons import Polygon, Polygons, read_polygons
from .rle import Runs
from .slides import Window, naming, open_source
from .tiff import Source

if TYPE_CHECKING:
    from .datasets import Item

VOID = 255
POLYGON_SUFFIXES = (".geojson", ".json")


class Mask:
    """A mask of which windows are read, at the size of its image, `height` x `width`. `has_void`:
    whether it may hold 255; `kind`: what marks objects in a picture, "1", "255" or, where 255 is
    void, "void" (else ""). ValueError if its size differs from its image's, or if its values are
    not those of a mask."""

    def __init__(self, item: "Item", height: int, width: int):
        self.item, self.kind, self._void = item, "", None
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
        self._source = open_source(self.item.mask)
        if (self._source.height, self._source.width) != (height, width):
            raise ValueError(f"{self.item.mask}: is {self._source.height} x {self._source.width} "
                             f"pixels, its image {height} x {width}: make them equal")
        self._meaning = meaning(self.item.mask, str(VOID) in self.item.ignore)
        objects = [stored for stored, value in self._meaning.items() if value == 1]
        self.kind = ("void" if VOID in self._meaning.values() else
                     "" if not objects or self._source.pixels.dtype == bool else
                     "1" if objects == [1] else "255")
        self._window = self._from_file

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w), 1 object, 0 background,
        255 void."""
        window = self._window(y, x, h, w)
        if self._void is not None:
            window[self._void(y, x, h, w) > 0] = VOID
        return window

    def _from_file(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        with naming(self.item.mask):
            array = self._source.pixels.window(y, x, h, w)[:, :, 0]
        window = np.zeros(array.shape, np.uint8)
        for stored, value in self._meaning.items():
            if value:
                window[array == stored] = value
        return window


def draw(item: "Item", path: Path, height: int, width: int, ignored: bool = False) -> Window:
    """Windows of the polygons of an image that are to be found (with no `labels`: all classes but
    those to ignore), or of those to ignore. ValueError names one that is no area, and one that lies
    outside the image."""
    polygons = [each for each in polygons_of(path) if (
        each.name in item.ignore and each.rings if ignored else
        each.name in item.labels if item.labels else each.name not in item.ignore)]
    for each in polygons:
        if each.rings is None:
            raise ValueError(f"{path}: feature {each.number} ({each.name}) is a {each.kind}, no "
                             "area: export only areas, or choose the area classes with --label")
    try:
        return Polygons(polygons, height, width).window
    except ValueError as error:
        raise ValueError(f"{path}: {error}")


def polygons_of(path: Path) -> list[Polygon]:
    """`read_polygons`, cached until the file changes."""
    return _read_polygons(path, *identity(path))


_read_polygons = lru_cache(4)(lambda path, *identity: read_polygons(path))


def meaning(path: Path, ignore_255: bool = False) -> dict[float, int]:
    """What each value in a mask's file means: 0, 1 or 255. ValueError where that is not clear."""
    return _meaning(path, ignore_255, *identity(path))


@lru_cache(1024)
def _meaning(path: Path, ignore_255: bool, *identity: object) -> dict[float, int]:
    source = open_source(path)
    stored = stored_values(path, source)
    if source.palette is not None:
        shown = palette_values(path, source.palette, stored)
    else:  # white is 255 whatever the number of bits; a single bit is 0 and 1 already
        shown = {value: VOID if value == source.white > 1 else value for value in stored}
    values = set(shown.values())
    nothing = shown.get(source.nodata) if source.nodata else None
    if nothing and not (nothing == VOID and (ignore_255 or values == {0, 1, VOID})):
        raise ValueError(f"{path}: marks objects with {source.nodata:g}, which is NODATA by its "
                         "tag: say --ignore 255 if that is void, else save it without the tag")
    if source.palette is None and len(values) < len(stored):
        values = set()  # two that are white
    elif (ignore_255 and values <= {0, 1, VOID}) or values == {0, 1, VOID}:
        return shown
    if values and (values <= {0, 1} or values <= {0, VOID}):
        return {value: int(each > 0) for value, each in shown.items()}
    text = ", ".join(f"{value:g}" for value in sorted(stored)[:6]) + ", ..." * (len(stored) > 6)
    raise ValueError(f"{path}: holds the values {text}: a mask holds 0 and 1, or 0 and 255, or all "
                     "three (255: not labelled; --ignore 255 says so of all masks)")


def stored_values(path: Path, source: Source) -> list[float]:
    """The values in a mask's file, eight at most. ValueError where it is in colour, and where its
    alpha shows another mask."""
    if source.extra:
        raise ValueError(f"{path}: has a channel that is neither colour nor alpha: save the mask "
                         "alone")
    height, width, channels = source.pixels.shape
    rows = max(1, tiff.HELD // (width * channels * source.pixels.dtype.itemsize))
    pairs: set[tuple] = set()  # (value, alpha)
    for y in range(0, height, rows):
        with naming(path):
            array = source.pixels.window(y, 0, min(rows, height - y), width)
        colours = array[:, :, : channels - source.alpha]
        if colours.shape[2] > 1 and (colours != colours[:, :, :1]).any():
            raise ValueError(f"{path}: is a mask in colour: expected one value per pixel")
        value, alpha = colours[:, :, 0].ravel(), array[:, :, -1].ravel() if source.alpha else None
        while len(value) and len(pairs) < 8:
            first = value[0], 0 if alpha is None else alpha[0]
            pairs.add(tuple(each.item() if hasattr(each, "item") else each for each in first))
            others = value != first[0] if alpha is None else (
                (value != first[0]) | (alpha != first[1]))
            value, alpha = value[others], None if alpha is None else alpha[others]
    values = [value for value, _ in pairs]
    background = [alpha for value, alpha in pairs if not value]
    objects = [alpha for value, alpha in pairs if value]
    if len(set(values)) < len(values) or (objects and background and max(background) > min(objects)):
        raise ValueError(f"{path}: its alpha and its colours show two different masks: flatten "
                         "it, and save it without alpha")
    return values


def palette_values(path: Path, palette: np.ndarray, indices: list[float]) -> dict[float, int]:
    """What the indices of a palette stand for: in colours an index is a class, as in Pascal VOC; in
    grey the grey counts. ValueError where the colours show another background than 0."""
    colours = {index: palette[index].tolist() for index in indices}
    black = [index for index, colour in colours.items() if not any(colour)]
    white = [index for index, colour in colours.items() if min(colour) == 255]
    grey = all(len(set(colour)) == 1 for colour in colours.values())
    if black not in ([], [0]) or (0 in colours and not black and (grey or white != [0])):
        raise ValueError(f"{path}: its palette shows another background than value 0: save it "
                         "without a palette")
    if grey and not set(indices) <= {0, 1}:
        return {index: colour[0] for index, colour in colours.items()}
    return {index: index for index in indices}


def drawn_instead(item: "Item") -> "Item":
    """The same image with the polygons beside its run-length code as its mask."""
    return dataclasses.replace(item, runs=None, mask=item.polygons, polygons=None)
