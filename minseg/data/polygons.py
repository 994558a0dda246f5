"""# Polygons: GeoJSON in, windows of masks, GeoJSON out

What was drawn in QuPath is read as a mask, and what was found goes back there. Coordinates are
pixels of the full image, x before y, with (0, 0) at the upper left corner of the first pixel; so
pixel (y, x) covers [x, x + 1] x [y, y + 1]. It is inside where its centre is. A centre right on an
edge counts to the area to the right of the edge or below, so areas side by side share no pixel.

>>> shell = np.array([[0, 0], [5, 0], [5, 4], [0, 4], [0, 0]])
>>> hole = np.array([[1, 1], [1, 3], [4.2, 3], [2.8, 1], [1, 1]])
>>> Polygons([Polygon("glomerulus", [shell, hole])], height=4, width=6).window(0, 0, 4, 6)
array([[1, 1, 1, 1, 1, 0],
       [1, 0, 0, 1, 1, 0],
       [1, 0, 0, 0, 1, 0],
       [1, 1, 1, 1, 1, 0]], dtype=uint8)

What was found is written one feature a line, as QuPath takes it when the file is dropped on the
image; `feature` makes one out of an object of `minseg.data.objects.Outlines`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from .files import atomic
from .objects import Object, Outlines
from .tables import clean

REMEDY = "open it in QuPath and export it: File > Export objects as GeoJSON"
COLOUR = [200, 0, 0]  # red, green, blue


@dataclass(frozen=True)
class Polygon:
    """An area of the class `name`. `rings` are float arrays (points, 2) of x, y, closed; what lies
    in an even number of them is a hole or outside. `number` (from 1) and `kind` say which feature
    of its file this was, and of what type. What is no area, such as a point, has None as `rings`.
    """

    name: str
    rings: list[np.ndarray] | None
    number: int = 1
    kind: str = "Polygon"

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        points = np.concatenate(self.rings)
        return *points.min(0).tolist(), *points.max(0).tolist()


def read_polygons(path: str | Path) -> list[Polygon]:
    """The polygons of a GeoJSON file, a FeatureCollection, a list of features or one feature; each
    member of a MultiPolygon is one. ValueError, which begins with the path, for what is no GeoJSON,
    for map coordinates and for coordinates that are no numbers."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text in UTF-8: {REMEDY}")
    try:
        return [polygon for number, each in enumerate(_features(json.loads(text)), 1)
                for polygon in _polygons(each, number)]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON, or cut off, at line {error.lineno}: {REMEDY}")
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply for GeoJSON: {REMEDY}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}")


def _features(content: object) -> list:
    kind = "other JSON"
    if isinstance(content, dict):
        if content.get("crs"):
            raise ValueError('has coordinates of a map ("crs"): pixels of the full image are '
                             "needed, as QuPath exports them")
        if content.get("type") == "Feature":
            return [content]
        kind = ("JSON of labelme" if "shapes" in content else
                "JSON of COCO" if "images" in content and "annotations" in content else kind)
        content = content.get("features") if content.get("type") == "FeatureCollection" else None
    if not isinstance(content, list):
        raise ValueError(f"is {kind}, no GeoJSON with features: {REMEDY}")
    return content


def _polygons(feature: object, number: int) -> list[Polygon]:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise ValueError(f"its entry {number} is no feature of GeoJSON: {REMEDY}")
    geometry, name = feature.get("geometry"), _class(feature.get("properties"))
    if not isinstance(geometry, dict):
        raise ValueError(f"feature {number} ({name}) has no geometry: delete it")
    kind, parts = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        return [polygon for each in geometry["geometries"]
                for polygon in _polygons({**feature, "geometry": each}, number)]
    if kind not in ("Polygon", "MultiPolygon"):
        return [Polygon(name, None, number, str(kind))]
    try:
        return [Polygon(name, [_ring(ring) for ring in part], number, kind)
                for part in ([parts] if kind == "Polygon" else parts) if part != []]
    except (TypeError, ValueError, LookupError, OverflowError):
        raise ValueError(f"feature {number} ({name}) has coordinates that are no rings of points "
                         f"x, y: {REMEDY}")


def _class(properties: object) -> str:
    found = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(found, dict):  # a class within another has several names
        names = found.get("names")
        found = ": ".join(map(str, names)) if isinstance(names, list) else found.get("name")
    return (isinstance(found, str) and clean(found)) or "unclassified"


def _ring(ring: list) -> np.ndarray:
    points = [position[:2] for position in ring]  # a third number is the height
    if any(type(number) not in (int, float) for point in points for number in point):
        raise TypeError  # numpy would take "1" and true for numbers too
    points = np.array(points, np.float64)
    if points.shape[1:] != (2,) or not (abs(points) < 1e9).all():  # NaN is not
        raise ValueError
    return np.concatenate([points, points[:1]]) if (points[0] != points[-1]).any() else points


class Polygons:
    """The mask of some polygons in an image of `height` x `width` pixels, out of which windows are
    drawn: the pixels whose centre is inside of one or more of them. ValueError names a polygon that
    lies outside the image."""

    def __init__(self, polygons: Sequence[Polygon], height: int, width: int):
        for each in polygons:
            left, top, right, bottom = each.bounds
            if right <= 0 or bottom <= 0 or left >= width or top >= height:
                raise ValueError(f"polygon {each.number} ({each.name}) lies outside the image of "
                                 f"{height} x {width} pixels: its coordinates must be pixels of "
                                 "the full image")
        whole = all((ring == ring.round()).all() for each in polygons for ring in each.rings)
        if not whole and max(max(each.bounds) for each in polygons) <= 1:
            raise ValueError("all of its coordinates lie in 0 to 1: they must be pixels of the "
                             "full image")
        edges = [np.zeros((0, 5))] + [
            np.column_stack([ring[:-1], ring[1:], np.full(len(ring) - 1, index)])
            for index, each in enumerate(polygons) for ring in each.rings]
        edges = np.concatenate(edges)  # x, y, x, y, polygon
        # The rows whose centre lies beside an edge, its upper end included, its lower one not.
        ends = np.ceil(np.sort(edges[:, 1:4:2], 1) - 0.5).astype(np.int64)
        order = np.argsort(ends[:, 0], kind="stable")
        order = order[ends[order, 0] < ends[order, 1]]
        self._edges, (self._top, self._bottom) = edges[order], ends[order].T
        self._reach = np.maximum.accumulate(self._bottom)  # no edge up to here goes further down

    def window(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w) in {0, 1}."""
        mask = np.zeros((h, w), np.uint8)
        rows = max(1, 2**20 // max(1, w))  # at a time, to bound the memory
        for top in range(0, h, rows):
            self._draw(mask[top : top + rows], y + top, x)
        return mask

    def _draw(self, mask: np.ndarray, y: int, x: int) -> None:
        h, w = mask.shape
        some = slice(np.searchsorted(self._reach, y, "right"), np.searchsorted(self._top, y + h))
        top, bottom = (edge[some].clip(y, y + h) for edge in (self._top, self._bottom))
        count = bottom - top
        edge = np.repeat(np.arange(some.start, some.start + len(count)), count)
        row = np.arange(len(edge)) + np.repeat(top - count.cumsum() + count, count)
        x0, y0, x1, y1, polygon = self._edges[edge].T
        crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        column = np.ceil(crossing - 0.5).clip(x, x + w).astype(np.int64) - x
        # Within a row, a polygon lies between its first and second crossing, third and fourth, ...
        key = np.sort((polygon.astype(np.int64) * h + row - y) * (w + 1) + column)
        used, row = np.unique(key // (w + 1) % h, return_inverse=True)
        change = np.zeros((len(used), w + 1), np.int32)  # +1 where a span begins, -1 at its end
        place = row * (w + 1) + key % (w + 1)
        np.add.at(change.ravel(), place[::2], 1)
        np.add.at(change.ravel(), place[1::2], -1)
        mask[used] = np.cumsum(change, 1, out=change)[:, :-1] > 0


def feature(found: Object, name: str, microns: float | None = None) -> dict:
    """An object as an annotation of QuPath, of the class `name`; `microns` is the size of a pixel,
    where it is known."""
    unit, pixel = ("px", 1) if microns is None else ("µm", microns**2)
    return {"type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in found.rings]},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": COLOUR},  # QuPath insists on a colour
                "measurements": {f"Area {unit}^2": found.area * pixel,
                                 "Mean probability": round(found.probability, 6)}}}


@contextmanager
def write_features(path: str | Path, note: str) -> Iterator[Callable[[dict], None]]:
    """`with write_features(path, note) as write: write(feature(...))` puts a FeatureCollection at
    `path`, complete or not at all. Its first line carries the note, and each feature is a line."""
    with atomic(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        file.write(f'{{"type":"FeatureCollection","minseg":{json.dumps(note)},"features":[')
        between = "\n"

        def write(feature: dict) -> None:
            nonlocal between
            # QuPath takes UUIDs only. No two objects share a corner that is the first of both.
            corner = feature["geometry"]["coordinates"][0][0]
            id = str(uuid5(NAMESPACE_URL, f"{note} {corner}"))
            file.write(between + json.dumps({"type": "Feature", "id": id, **feature},
                                            separators=(",", ":")))
            between = ",\n"

        yield write
        file.write("\n]}\n")


@contextmanager
def write_objects(path: str | Path, height: int, width: int, *, note: str = "",
                  name: str = "object", microns: float | None = None,
                  min_area: int = 0) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:
    """`with write_objects(path, height, width) as add: add(mask, probabilities) ...`, band by band,
    writes the objects of a mask as `Outlines` finds them, each as soon as it is complete."""
    outlines = Outlines(height, width, min_area)
    with write_features(path, note) as write:
        def add(mask: np.ndarray, probabilities: np.ndarray) -> None:
            for found in outlines.add(mask, probabilities):
                write(feature(found, name, microns))

        yield add
        for found in outlines.finish():
            write(feature(found, name, microns))


def read_note(path: str | Path) -> str | None:
    """The note in a file of `write_features`, None for anything else."""
    try:
        with open(path, encoding="ascii") as file:
            content = json.loads(file.readline(2**20) + "]}")
    except (OSError, ValueError):
        return None
    note = content.get("minseg") if isinstance(content, dict) else None
    return note if isinstance(note, str) else None
