"""# Masks: where the objects are, in whatever form this was stored

In a mask, 1 is object, 0 is background and 255 is "void": nobody labelled that pixel. Masks are
stored as images, as run-length code or as polygons. They are read in windows, so that a whole mask
is never in memory. The tables in `minseg.files.datasets` say what is accepted and how it is read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from . import tiff
from .atomic import identity
from .kept import once
from .polygons import (
    MASKS_PAGE,
    Polygon,
    Polygons,
    covers,
    is_object,
    read_polygons,
)
from .rle import Runs
from .slides import Slide, Window, naming, open_slide, open_source
from .tiff import Source

VOID = 255
MOST = 9  # pixels with different values to look at in a mask
POLYGON_SUFFIXES = (".geojson", ".json")


@dataclass(frozen=True)
class Item:
    """One image of a data set, the file with its mask, and its group, which must never be split
    between folds. `runs` is the mask's run-length code if that file is a table; `polygons` is then
    the file of polygons beside it, if there is one. `labels` and `ignore` are the classes of
    polygons that are objects and void; "255" in `ignore` makes this value void in masks. `white`
    and `pixel_size`, which slides.csv states in micrometres, are those of `open_slide`."""

    id: str
    image: Path
    mask: Path
    group: str
    runs: str | None = field(default=None, repr=False)
    polygons: Path | None = None
    labels: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    white: int | None = None
    pixel_size: float | None = None

    def open(self, scale: int = 1, microns: float | None = None) -> Slide:
        """The image, `scale` times smaller or, with `microns`, in pixels of that size."""
        return open_slide(self.image, scale, self.white, microns=microns,
                          pixel_size=self.pixel_size)


class Mask:
    """A mask from which windows are read, at the size of its image, `height` x `width`. `has_void`
    says whether windows may contain 255. `kind` is the value or colour of objects in a mask that is
    stored as an image: "1", "255", "114", "#fa3253"; it is "void" if objects are 1 and 255 is void,
    and "" if the mask has no objects, is of single bits, or not an image. `colour` is the colour in
    which a palette shows them, "" without one.
    ValueError if the size differs from the image's, or if the values are not those of a mask."""

    _window: Window

    def __init__(self, item: Item, height: int, width: int):
        self.item, self.kind, self.colour = item, "", ""
        self.has_void = False
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
            self.has_void = True

    def _open(self, height: int, width: int) -> None:
        source = open_source(self.item.mask)
        if (source.height, source.width) != (height, width):
            raise ValueError(f"{self.item.mask}: is {source.height} x {source.width} "
                             f"pixels, but its image is {height} x {width}: make them equal")
        means = meaning(self.item.mask, str(VOID) in self.item.ignore)
        self.kind, self.colour = means.kind, means.colour
        self.has_void = VOID in means.values.values()
        self._window = labels(self.item.mask, source, means)

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w) of 1 (object), 0
        (background) and 255 (void)."""
        window = self._window(y, x, h, w)
        if self._void is not None:
            window[self._void(y, x, h, w) > 0] = VOID
        return window


def labels(path: Path, source: Source, means: "Meaning") -> Window:
    """A reader of windows of a mask that is stored as an image; `means` is its `meaning`."""
    def window(y: int, x: int, h: int, w: int) -> np.ndarray:
        with naming(path):
            array = source.pixels.window(y, x, h, w)[:, :, means.channel]
        label = np.zeros(array.shape, np.uint8)
        for stored, value in means.values.items():
            if value:
                label[array == stored] = value
        return label

    return window


def draw(item: Item, path: Path, height: int, width: int, ignored: bool = False) -> Window:
    """A reader of windows of the polygons at `path` that are objects: those of the classes in
    `labels`, or if there are none, of all classes that are not to be ignored. With `ignored`, of
    those that are to be ignored instead. ValueError if an object is not an area, or if a polygon
    lies mostly outside the image."""
    key = "drawn", *identity(path), height, width, item.labels, item.ignore, ignored
    return once(key, lambda: _select(item, path, height, width, ignored)).window


def _select(item: Item, path: Path, height: int, width: int, ignored: bool) -> Polygons:
    polygons = [each for each in polygons_of(path) if (
        each.name in item.ignore and each.rings if ignored else
        each.name in item.labels if item.labels else
        is_object(each.name) and each.name not in item.ignore)]
    for each in polygons:
        if each.rings is None:
            raise ValueError(f"{path}: feature {each.number} ({each.name}) is a {each.kind}, not "
                             "an area: delete it, or choose classes of areas with --label")
    if not item.labels and not ignored and covers(polygons, height, width):
        raise ValueError(f"{path}: its polygons cover the whole image, as if made of a mask "
                         "together with its background: delete those of the background, or give "
                         'them the property "value": 0')
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


class Meaning(NamedTuple):
    """What the numbers in one `channel` of a mask's file mean: `values` maps them to 0, 1 or 255;
    any other number is 0. `kind` and `colour` are those of `Mask`."""

    values: dict[float, int]
    kind: str
    channel: int = 0
    colour: str = ""


def meaning(path: Path, ignore_255: bool) -> Meaning:
    """How a mask's file is to be read. ValueError if that is unclear."""
    return _meaning(path, ignore_255, *identity(path))


@lru_cache(None)
def _meaning(path: Path, ignore_255: bool, *identity: object) -> Meaning:
    source = open_source(path)
    colours = stored_colours(path, source)
    if any(len(set(colour)) > 1 for colour in colours):
        return _in_colour(path, source, colours)
    stored = [colour[0] for colour in colours]
    if source.palette is not None:
        shown = palette_values(path, source.palette, stored)
    else:  # white becomes 255 whatever the number of bits; a single bit is 0 and 1 already
        shown = {value: VOID if value == source.white > 1 else value for value in stored}
    values = set(shown.values())
    with_void = values == {0, 1, VOID} or (ignore_255 and (
        values <= {0, 1, VOID} or _are_black_and_one_other(values - {VOID})))
    nodata = shown.get(source.nodata) if source.nodata else None
    if nodata and not (nodata == VOID and (ignore_255 or with_void)):
        void = "use --ignore 255 if that is void, else " if nodata == VOID else ""
        raise ValueError(f"{path}: marks objects with {source.nodata:g}, which its NODATA tag "
                         f"declares empty: {void}save it as PNG, which has no such tag")
    ambiguous = source.palette is None and len(values) < len(stored)  # 255 and white itself
    if ambiguous or not (with_void or values <= {0, 1} or values == {VOID}
                         or _are_black_and_one_other(values)):
        raise ValueError(f"{path}: {_unclear(source, _all_values(path, source))}")
    means = {value: VOID if with_void and each == VOID else int(each > 0)
             for value, each in shown.items()}
    objects = [value for value, each in means.items() if each == 1]
    if not objects or source.pixels.dtype == bool:
        return Meaning(means, "")
    kind, colour = f"{int(shown[objects[0]])}", ""
    if source.palette is not None and len(set(source.palette[int(objects[0])].tolist())) > 1:
        colour = _name(source.palette[int(objects[0])])
    if kind == "1" and VOID in means.values():
        kind = "void"
    elif colour and kind not in ("1", "255"):
        kind = colour
    return Meaning(means, kind, colour=colour)


def _are_black_and_one_other(values: set[float]) -> bool:
    return 0 in values and len(values) == 2 and max(values) > 0 and max(values) % 1 == 0


def _in_colour(path: Path, source: Source, colours: Sequence[tuple]) -> Meaning:
    """The meaning of a mask whose objects have a colour: there must be only one, and black."""
    objects = [colour for colour in colours if any(colour)]
    if len(objects) == 1 and len(colours) == 2 and all(number >= 0 for number in objects[0]):
        channel = int(np.argmax(objects[0]))  # this channel alone tells objects from black
        return Meaning({objects[0][channel]: 1}, _name(objects[0], source.pixels.dtype),
                       channel)
    names = [_name(colour, source.pixels.dtype) for colour in sorted(colours)]
    if len(names) == 1:
        raise ValueError(f"{path}: is {names[0]} everywhere: make it white if all of it is object, "
                         "black if nothing is")
    raise ValueError(f"{path}: contains the colours {_some(names)}: make the one to be found white "
                     f"and all others black ({MASKS_PAGE})")


def _name(colour: Sequence, dtype: DTypeLike = np.uint8) -> str:
    """A colour as in HTML: "#fa3253"; with more than 8 bits, each number has more digits."""
    if np.dtype(dtype).kind not in "bu":
        return f"({', '.join(f'{number:g}' for number in colour)})"
    digits = 2 * np.dtype(dtype).itemsize
    return "#" + "".join(f"{int(number):0{digits}x}" for number in colour)


def stored_colours(path: Path, source: Source) -> list[tuple]:
    """The colours in a mask's file, one number for each channel but alpha: `MOST` at most, for a
    mask has fewer. ValueError if its alpha shows a different mask."""
    if source.extra:
        raise ValueError(f"{path}: has a channel that is neither colour nor alpha: save it with a "
                         "single channel")
    found: set[tuple] = set()  # with alpha
    for pixels in _bands(path, source):
        while len(pixels) and len(found) < MOST:  # note the first pixel, then drop its equals
            first = pixels[0]
            found.add(tuple(first.tolist()))
            others = pixels[:, 0] != first[0]
            for channel in range(1, len(first)):
                others |= pixels[:, channel] != first[channel]
            pixels = pixels[others]
        if len(found) == MOST:
            break
    if not source.alpha:
        return list(found)
    background = [pixel[-1] for pixel in found if not any(pixel[:-1])]
    objects = [pixel[-1] for pixel in found if any(pixel[:-1])]
    colours = {pixel[:-1] for pixel in found}
    if len(colours) < len(found) or (objects and background and max(background) > min(objects)):
        raise ValueError(f"{path}: its alpha and its colours show two different masks: save only "
                         "the right one of them, as a grey image")
    return list(colours)


def _bands(path: Path, source: Source) -> Iterator[np.ndarray]:
    """All pixels of a file, (pixels, channels), as many at a time as memory should hold."""
    height, width, channels = source.pixels.shape
    rows = max(1, tiff.HELD // (width * channels * source.pixels.dtype.itemsize))
    for y in range(0, height, rows):
        with naming(path):
            window = source.pixels.window(y, 0, min(rows, height - y), width)
        yield window.reshape(-1, channels)


def _all_values(path: Path, source: Source) -> list[float]:
    """The values in a mask's file without colours, sorted; for the message that refuses it."""
    values: set[float] = set()
    for pixels in _bands(path, source):
        values.update(np.unique(pixels[:, 0]).tolist())
    if source.palette is not None:
        values = set(palette_values(path, source.palette, [*values]).values())
    return sorted(values)


def _unclear(source: Source, values: list[float]) -> str:
    """Why a file with these values, sorted, is not a mask, and what would make it one."""
    white = VOID if source.palette is not None else source.white
    text = f"contains the values {_some(f'{value:g}' for value in values)}: "
    if any(value < 0 or value % 1 for value in values):  # true for NaN, too
        return text + "make its objects 255 and everything else 0, in whole numbers"
    if len(values) == 1:
        return f"is {values[0]:g} everywhere: make it 255 if all of it is object, 0 if nothing is"
    if values == [1, VOID]:
        return text + ("use --ignore 255 if 255 is void, else make the background 0 and the "
                       "objects 255")
    if values[0] > 0:
        return text + "make the background 0 and the objects 255"
    near = [value for value in values if value <= white / 8 or value >= white * 7 / 8]
    if len(near) == len(values) and white * 7 / 8 <= values[-2] and values[-1] <= white:
        return text + (f"JPEG has changed them: make those below {white // 2 + 1} into 0 and the "
                       f"others into 255, and save it as PNG ({MASKS_PAGE})")
    shades = ("; if they are shades, make the lighter half 255 and the darker half 0"
              if values[-1] == white else "")
    if len(values) == 3 and values[-1] == white:  # first, as the other remedies lose it
        text += f"if {white:g} marks what nobody labelled, say --ignore 255; "
    return text + ("if they number the objects, make every value above 0 into 255; if they are "
                   f"classes, make only the wanted one 255 and the others 0{shades} "
                   f"({MASKS_PAGE})")


def _some(names: Iterable[str]) -> str:
    """Six names at most."""
    names = list(names)
    return ", ".join(names if len(names) <= 6 else [*names[:6], "..."])


def palette_values(path: Path, palette: np.ndarray, indices: list[float]) -> dict[float, float]:
    """The value that each index of a palette stands for. In a palette of colours the index is a
    class, as in Pascal VOC; in a grey palette the grey level counts. ValueError if the palette does
    not show index 0 as the background."""
    colours = {index: palette[int(index)].tolist() for index in indices}
    black = [index for index, colour in colours.items() if not any(colour)]
    white = [index for index, colour in colours.items() if min(colour) == 255]
    grey = all(len(set(colour)) == 1 for colour in colours.values())
    if black not in ([], [0]) or (0 in colours and not black and (grey or white != [0])):
        raise ValueError(f"{path}: its palette does not show value 0 as the background: save it as "
                         "a grey image with 0 for the background and 255 for objects")
    if grey and not set(indices) <= {0, 1}:
        return {index: colour[0] for index, colour in colours.items()}
    return {index: index for index in indices}


def drawn_instead(item: Item) -> "Item":
    """The same item, but with the polygons that lie beside its run-length code as its mask."""
    assert item.polygons is not None
    return replace(item, runs=None, mask=item.polygons, polygons=None)
