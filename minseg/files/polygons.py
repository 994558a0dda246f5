"""# Polygons: GeoJSON in, windows of masks, GeoJSON out

Outlines drawn in QuPath are read as a mask, and predicted outlines are written so that QuPath can
open them. Coordinates are pixels of the full image, x before y, with (0, 0) at the upper left
corner of the first pixel, so pixel (y, x) covers [x, x + 1] x [y, y + 1]. A pixel is inside a
polygon if its centre is. A centre exactly on an edge belongs to the area to the right of the edge
or below it, so adjacent areas share no pixel.

>>> shell = np.array([[0, 0], [5, 0], [5, 4], [0, 4], [0, 0]])
>>> hole = np.array([[1, 1], [1, 3], [4.2, 3], [2.8, 1], [1, 1]])
>>> Polygons([Polygon("glomerulus", [shell, hole])], height=4, width=6).window(0, 0, 4, 6)
array([[1, 1, 1, 1, 1, 0],
       [1, 0, 0, 1, 1, 0],
       [1, 0, 0, 0, 1, 0],
       [1, 1, 1, 1, 1, 0]], dtype=uint8)

Predicted objects are written as GeoJSON with one feature per line; to open the file in QuPath, drop
it on the image. `feature` makes a feature of an object from `minseg.files.objects.Outlines`.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from .atomic import atomic
from .objects import Object, Outlines
from .tables import clean

MASKS_PAGE = "docs/masks.md"  # how to convert what is refused
BACKGROUND = "background (value 0)"  # the class of what is not an object
PLACES = "places to look"  # that of QuPath's cores of tissue microarrays, tiles and whole images
NO_OBJECTS = (BACKGROUND, PLACES, "background", "bg")  # in any case, unless --label names them
PLACE = re.compile(r"tmaCore|root|PathRootObject|TMACoreObject")  # by objectType, formerly by id
# Properties, in any case, that hold a class where QuPath's does not
NAMES = ("class", "label", "category")
# ... or its number: of gdal_polygonize, of rasterio's examples and of ArcGIS
VALUES = ("dn", "value", "val", "raster_val", "gridcode", "pixel_value")
VALUE = "value "  # how the class begins that such a number stands for
NUMBER = re.compile(r"(-?\d+)(?:\.0*)?|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")  # a group if it is whole
CRS84 = re.compile(r"urn:ogc:def:crs:OGC:1.3:CRS84|OGC:CRS84")  # GeoJSON's default: degrees
COLOUR = [200, 0, 0]  # red, green, blue


@dataclass(frozen=True)
class Polygon:
    """An area of the class `name`. `rings` are closed float arrays (points, 2) of x, y; a point
    that lies in an even number of them is in a hole or outside. `rings` is None for a geometry that
    is not an area, such as a line. `number` (from 1) and `kind` are the number of its feature in
    the file and the type of its geometry."""

    name: str
    rings: list[np.ndarray] | None
    number: int = 1
    kind: str = "Polygon"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of an area."""
        assert self.rings is not None
        points = np.concatenate(self.rings)
        return *points.min(0).tolist(), *points.max(0).tolist()


def is_object(name: str) -> bool:
    """Whether polygons of this class are objects if nothing else is said. QuPath counts nothing of
    a class whose name ends with *, such as Ignore* and Region*."""
    return name.casefold() not in NO_OBJECTS and not name.endswith("*")


def read_polygons(path: str | Path) -> list[Polygon]:
    """The polygons of a GeoJSON file: a FeatureCollection, a list of features, a single feature or
    a bare geometry; or a list of polygons that are lists of points. Each member of a MultiPolygon
    becomes a polygon of its own. ValueError if the file is missing, is not GeoJSON, has map
    coordinates, or has coordinates that are not numbers."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text: save it as UTF-8")
    try:
        content = json.loads(text)
        polygons = [polygon for number, each in enumerate(_features(content), 1)
                    for polygon in _polygons(each, number)]
        if isinstance(content, dict) and content.get("crs"):
            _refuse_map(content["crs"], polygons)
        return polygons
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON, or is cut off, at line {error.lineno}: export it "
                         "again, complete and as GeoJSON")
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply for GeoJSON: export it again, as GeoJSON")
    except ValueError as error:
        raise ValueError(f"{path}: {error}")


def _refuse_map(crs: object, polygons: Sequence[Polygon]) -> None:
    """ValueError if the coordinates may be those of a map. geopandas declares GeoJSON's default,
    degrees, whatever the coordinates are: it means nothing, except where no polygon is as large as
    a pixel."""
    bounds = np.array([each.bounds for each in polygons if each.rings]).reshape(-1, 4)
    if not (bounds[:, 2:] - bounds[:, :2] >= 1).any() or not CRS84.search(json.dumps(crs)):
        raise ValueError('has map coordinates ("crs"): if they are pixels of the full image, '
                         f'delete "crs" from the file, else convert them ({MASKS_PAGE})')


def _features(content: object) -> list:
    kind = ""
    if isinstance(content, dict):
        if content.get("type") == "Feature":
            return [content]
        if content.get("type") in ("Polygon", "MultiPolygon", "GeometryCollection"):
            return [{"type": "Feature", "geometry": content}]
        kind = ("labelme JSON" if "shapes" in content else
                "COCO JSON" if "images" in content and "annotations" in content else kind)
        content = content.get("features") if content.get("type") == "FeatureCollection" else None
    elif isinstance(content, list) and content and all(map(_is_ring, content)):  # HuBMAP's of 2022
        return [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
                for ring in content]
    if not isinstance(content, list):
        raise ValueError(f"is {kind}, not GeoJSON: convert it ({MASKS_PAGE})" if kind else
                         "is JSON, but not GeoJSON: save its polygons as GeoJSON")
    return content


def _is_ring(part: object) -> bool:
    return isinstance(part, list) and part != [] and all(isinstance(each, list) for each in part)


def _polygons(feature: object, number: int) -> list[Polygon]:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise ValueError(f"its entry {number} is not a GeoJSON feature: delete it, or convert the "
                         f"file ({MASKS_PAGE})")
    geometry, name = feature.get("geometry"), _class(feature)
    if not isinstance(geometry, dict):
        raise ValueError(f"feature {number} ({name}) has no geometry: delete it")
    kind = geometry.get("type")
    coordinates: Any = geometry.get("coordinates")
    if kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        return [polygon for each in geometry["geometries"]
                for polygon in _polygons({**feature, "geometry": each}, number)]
    if kind not in ("Polygon", "MultiPolygon"):
        return [Polygon(name, None, number, str(kind))]
    try:
        return [Polygon(name, [_ring(ring) for ring in rings], number, kind)
                for rings in ([coordinates] if kind == "Polygon" else coordinates) if rings != []]
    except (TypeError, ValueError, LookupError, OverflowError):
        raise ValueError(f"feature {number} ({name}) has coordinates that are not rings of x, y "
                         "points: correct or delete it")


def _class(feature: dict) -> str:
    """QuPath's class, else a name, else a number other than 0, else 0: the background of a mask
    that was turned into polygons."""
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    # Programs change cases, cut names off after ten letters, and write objects as text.
    properties = {key.lower(): value for key, value in properties.items()}
    kind = str(properties.get("objecttype", feature.get("id")))
    if PLACE.fullmatch(kind):
        return PLACES
    name = properties.get("classification", properties.get("classifica"))
    if isinstance(name, str) and name.startswith("{"):
        with suppress(ValueError):
            name = json.loads(name)
    if isinstance(name, dict):  # a class derived from another one has a list of names
        names = name.get("names")
        name = ": ".join(map(str, names)) if isinstance(names, list) else name.get("name")
    if isinstance(name, str) and clean(name):
        return BACKGROUND if _value(name) == BACKGROUND else clean(name)
    if _value(name):
        return _value(name)
    if kind in ("tile", "PathTileObject"):  # without a class
        return PLACES
    texts = [clean(text) for key in NAMES
             if isinstance(text := properties.get(key), str) and not _value(text)]
    values = [_value(properties.get(key)) for key in (*NAMES, *VALUES)]
    others = [value for value in values if value != BACKGROUND]
    return next(filter(None, [*texts, *others, *values]), "unclassified")


def _value(number: object) -> str:
    """The class that a number stands for, also one that is stored as text; "" for anything else."""
    match = NUMBER.fullmatch(str(number).strip()) if type(number) in (int, float, str) else None
    if match and match[1]:
        return f"{VALUE}{int(match[1])}" if int(match[1]) else BACKGROUND
    return f"{VALUE}{match[0]}" if match else ""


def _ring(ring: list) -> np.ndarray:
    positions = [position[:2] for position in ring]  # a third number is a height
    if any(type(number) not in (int, float) for position in positions for number in position):
        raise TypeError  # numpy would accept "1" and true as numbers
    points = np.array(positions, np.float64)
    if points.shape[1:] != (2,) or not (abs(points) < 1e9).all():  # false for NaN, too
        raise ValueError
    return np.concatenate([points, points[:1]]) if (points[0] != points[-1]).any() else points


class Polygons:
    """The union of polygons as a mask of an image of `height` x `width` pixels, from which windows
    are drawn. ValueError if a polygon lies mostly outside the image, or if all coordinates are
    fractions of the image's size."""

    def __init__(self, polygons: Sequence[Polygon], height: int, width: int):
        _refuse_outside(polygons, height, width)
        rings = [(ring, k) for k, each in enumerate(polygons) for ring in each.rings or ()]
        all_integers = all((ring == ring.round()).all() for ring, _ in rings)
        if not all_integers and max(max(each.bounds) for each in polygons) <= 1:
            raise ValueError("all its coordinates lie between 0 and 1: they must be pixels of the "
                             f"full image: multiply them by its size ({MASKS_PAGE})")
        edges = np.concatenate([np.zeros((0, 5)), *(
            np.column_stack([ring[:-1], ring[1:], np.full(len(ring) - 1, k)])
            for ring, k in rings)])  # x, y, x, y, polygon
        # From the upper end to the lower: two neighbours that share an edge draw it in opposite
        # directions, and rounding must give both the same crossings.
        upward = edges[:, 1] > edges[:, 3]
        edges[upward] = edges[upward][:, [2, 3, 0, 1, 4]]
        # The rows whose centre an edge crosses; a centre on its upper end counts, on its lower not.
        ends = np.ceil(edges[:, 1:4:2] - 0.5).astype(np.int64)
        order = np.argsort(ends[:, 0], kind="stable")
        order = order[ends[order, 0] < ends[order, 1]]
        self._edges, (self._top, self._bottom) = edges[order], ends[order].T
        self._lowest = np.maximum.accumulate(self._bottom)  # of each edge and all before it

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w) in {0, 1}."""
        mask = np.zeros((h, w), np.uint8)
        rows = max(1, 2**20 // max(1, w))  # draw so many at a time, to bound the memory
        for top in range(0, h, rows):
            self._draw(mask[top : top + rows], y + top, x)
        return mask

    def _draw(self, mask: np.ndarray, y: int, x: int) -> None:
        h, w = mask.shape
        first = np.searchsorted(self._lowest, y, "right")
        touched = slice(first, np.searchsorted(self._top, y + h))
        top, bottom = (end[touched].clip(y, y + h) for end in (self._top, self._bottom))
        count = bottom - top  # of crossings of each edge, one in each row
        edge = np.repeat(np.arange(first, first + len(count)), count)
        row = np.arange(len(edge)) + np.repeat(top - count.cumsum() + count, count)
        x0, y0, x1, y1, polygon = self._edges[edge].T
        crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        column = np.ceil(crossing - 0.5).clip(x, x + w).astype(np.int64) - x
        # In each row a polygon lies between its first and second crossing, third and fourth, ...
        key = np.sort((polygon.astype(np.int64) * h + row - y) * (w + 1) + column)
        crossed, row = np.unique(key // (w + 1) % h, return_inverse=True)
        change = np.zeros((len(crossed), w + 1), np.int32)  # +1 where a span begins, -1 at its end
        place = row * (w + 1) + key % (w + 1)
        np.add.at(change.ravel(), place[::2], 1)
        np.add.at(change.ravel(), place[1::2], -1)
        mask[crossed] = np.cumsum(change, 1, out=change)[:, :-1] > 0


def covers(polygons: Sequence[Polygon], height: int, width: int) -> bool:
    """Whether several polygons fill an image, each place once, as those of a mask do if one is its
    background: this one reaches all four sides. Simplified outlines may be 2 % off."""
    rings = [ring for each in polygons for ring in each.rings or ()]
    if len(polygons) < 2 or not any(
            left <= 1 and top <= 1 and right >= width - 1 and bottom >= height - 1
            for left, top, right, bottom in (each.bounds for each in polygons if each.rings)):
        return False
    first = np.cumsum([0, *map(len, rings[:-1])])  # the first point of each ring
    x, y = np.concatenate(rings).T
    doubled = x * np.roll(y, -1) - np.roll(x, -1) * y  # the shoelace formula
    doubled[np.append(first[1:], len(x)) - 1] = 0  # from one ring to the next
    areas = abs(np.add.reduceat(doubled, first)) / 2
    of_polygon = np.cumsum([0, *(len(each.rings) for each in polygons if each.rings)])[:-1]
    # Shells without their holes, which are the smaller rings.
    total = 2 * np.maximum.reduceat(areas, of_polygon).sum() - areas.sum()
    return bool(abs(total / (height * width) - 1) < 0.02)


def _refuse_outside(polygons: Sequence[Polygon], height: int, width: int) -> None:
    """ValueError if polygons lie mostly outside the image, less than half of their bounds inside:
    some of them, or so many that all coordinates must be wrong."""
    outside = []
    for each in polygons:
        left, top, right, bottom = each.bounds
        inside = (max(0, min(right, width) - max(left, 0)) *
                  max(0, min(bottom, height) - max(top, 0)))
        if (left >= width or top >= height or right <= 0 or bottom <= 0
                or 2 * inside < (right - left) * (bottom - top)):
            outside.append(each)
    if not outside:
        return
    text = (f"{len(outside)} of {len(polygons)} polygons mostly outside the image of {height} x "
            f"{width} pixels")
    if len(outside) > len(polygons) / 2:
        raise ValueError(f"has {text}: its coordinates must be pixels of the full image, from its "
                         f"upper left corner: convert them ({MASKS_PAGE}), or take the file that "
                         "belongs to this image")
    names = [f"{each.number} ({each.name})" for each in outside]
    raise ValueError(f"has {text}: delete {', '.join(names[:6])}"
                     + (f" and {len(names) - 6} more" if len(names) > 6 else "")
                     + ", or cut off what lies outside")


def feature(outlined: Object, name: str, microns: float | None = None) -> dict:
    """An object as a QuPath annotation of the class `name`. `microns` is the size of a pixel if it
    is known; the area is then in square micrometres, else in pixels."""
    unit, pixel_area = ("px", 1) if microns is None else ("µm", microns**2)
    return {"type": "Feature",
            "geometry": {"type": "Polygon",
                         "coordinates": [ring.tolist() for ring in outlined.rings]},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": COLOUR},  # QuPath requires a colour
                "measurements": {f"Area {unit}^2": outlined.area * pixel_area,
                                 "Mean probability": round(outlined.probability, 6)}}}


@contextmanager
def write_features(path: str | Path, note: str) -> Iterator[Callable[[dict], None]]:
    """`with write_features(path, note) as write: write(feature(...))` writes a FeatureCollection
    to `path`, complete or not at all. Its first line holds the note, and each feature has a line of
    its own."""
    with atomic(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        file.write(f'{{"type":"FeatureCollection","minseg":{json.dumps(note)},"features":[')
        separator = "\n"

        def write(feature: dict) -> None:
            nonlocal separator
            # QuPath accepts only UUIDs as ids. The first corner of an object is that of no other.
            corner = feature["geometry"]["coordinates"][0][0]
            id = str(uuid5(NAMESPACE_URL, f"{note} {corner}"))
            file.write(separator + json.dumps({"type": "Feature", "id": id, **feature},
                                              separators=(",", ":")))
            separator = ",\n"

        yield write
        file.write("\n]}\n")


@contextmanager
def write_objects(path: str | Path, height: int, width: int, *, note: str = "",
                  name: str = "object", microns: float | None = None,
                  min_area: int = 0) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
    """`with write_objects(path, height, width) as add: add(mask, probabilities) ...` takes a mask
    band by band, and writes each of its objects as a feature as soon as `Outlines` completes it."""
    outlines = Outlines(height, width, min_area)
    with write_features(path, note) as write:
        def add(mask: np.ndarray, probabilities: np.ndarray) -> None:
            for outlined in outlines.add(mask, probabilities):
                write(feature(outlined, name, microns))

        yield add
        for outlined in outlines.finish():
            write(feature(outlined, name, microns))


def read_note(path: str | Path) -> str | None:
    """The note in a file that `write_features` wrote; None for any other file, or for none."""
    try:
        with open(path, encoding="ascii") as file:
            content = json.loads(file.readline(2**20) + "]}")
    except (OSError, ValueError):
        return None
    note = content.get("minseg") if isinstance(content, dict) else None
    return note if isinstance(note, str) else None
