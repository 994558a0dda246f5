"""# Objects in a mask: outlines and counts, in one pass over the rows

An object is a 4-connected component of positive pixels: pixels that touch along their sides. The
mask of a slide is never in memory as a whole. It arrives in bands of rows, top to bottom, and an
object is complete as soon as a row contains no pixel of it; until then it is open.

- Each row is a list of runs, pixels [start, stop). `Labeller` gives each run the number of its
  object, and reports when two objects turn out to be one.
- `Outlines` collects the corners of open objects and joins those of a complete one into rings.
- `Areas` adds up the pixels of each object.
- `count_objects` labels prediction and target side by side, and counts the pixels that the objects
  of one share with those of the other.

Pixel (y, x) covers [x, x + 1] x [y, y + 1], and outlines follow the sides of pixels:

>>> mask = np.array([[1, 1, 1, 0],
...                  [1, 0, 1, 0],
...                  [1, 1, 1, 1]])
>>> outlines = Outlines(height=3, width=4)
>>> outlines.add(mask, mask * 0.8)  # nothing yet: the object still has pixels in the last row
[]
>>> [ring] = outlines.finish()
>>> ring.area, round(ring.probability, 6)
(9, 0.8)
>>> ring.rings[0].tolist()  # the shell: x, y
[[0, 0], [3, 0], [3, 2], [4, 2], [4, 3], [0, 3], [0, 0]]
>>> ring.rings[1].tolist()  # a hole
[[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
>>> count_objects([(mask, mask[:, ::-1])])  # they share 8 of 10 pixels
{'found': 1, 'missed': 0, 'invented': 0, 'split': 0}
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Runs(NamedTuple):
    """The runs of a band in reading order, as integer arrays (runs,): the `row` within the band,
    the pixels [`start`, `stop`), the `id` of the object. `merged`, (pairs, 2), sorted, has the old
    and the new id of each object that turned out to be part of another one."""

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    id: np.ndarray
    merged: np.ndarray


class Labeller:
    """Numbers the objects of a mask that arrives in bands. Ids count up from 0 in the order in
    which objects begin. Where two objects meet further down, the smaller id replaces the larger."""

    def __init__(self, width: int):
        self.width = width
        self.issued = 0  # ids so far
        self.last = np.zeros((3, 0), np.int64)  # start, stop and id of the runs in the last row

    def add(self, band: np.ndarray) -> Runs:
        """Takes the next rows, (rows, width), and returns their runs. ValueError if the width
        differs."""
        band = np.asarray(band)
        if band.shape[1:] != (self.width,):
            raise ValueError(f"a band of shape {band.shape} for a mask of width {self.width}")
        rows, step = len(band), self.width + 1  # a gap after each row keeps runs from joining
        padded = np.zeros(rows * step + 1, bool)
        padded[1:].reshape(rows, step)[:, :-1] = band
        change = np.flatnonzero(padded[1:] != padded[:-1])
        ids_above, above = self.last[2], self.last.shape[1]  # `above` runs precede the band's own
        start = np.concatenate([self.last[0], change[::2] + step])  # row 0 is the one above
        stop = np.concatenate([self.last[1], change[1::2] + step])
        # At first each run is its own component, except runs above that are one object already.
        root = np.arange(len(start))
        _, first_of_object, object_of_run = np.unique(ids_above, return_index=True,
                                                      return_inverse=True)
        root[:above] = first_of_object[object_of_run]
        root = _connect(root, *overlapping(start - step, stop - step, start, stop))
        id = np.full(len(start), self.issued, np.int64)
        np.minimum.at(id, root[:above], ids_above)
        new = np.flatnonzero((root == np.arange(len(start))) & (id == self.issued))
        id[new] += np.arange(len(new))
        id, self.issued = id[root], self.issued + len(new)
        merged = np.stack([ids_above, id[:above]], 1)[ids_above != id[:above]]
        if rows:
            last_row = slice(np.searchsorted(start, rows * step), None)
            self.last = np.stack([start[last_row] % step, stop[last_row] % step, id[last_row]])
        start, stop = start[above:], stop[above:]
        return Runs(start // step - 1, start % step, stop % step, id[above:],
                    np.unique(merged, axis=0))


def overlapping(start: np.ndarray, stop: np.ndarray, other_start: np.ndarray,
                other_stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of runs that share pixels, as indices into the first and the second list of runs.
    Each list is sorted, and the runs within a list do not overlap."""
    first_other = np.searchsorted(other_stop, start, "right")
    count = np.searchsorted(other_start, stop) - first_other
    run = np.repeat(np.arange(len(start)), count)
    return run, np.arange(len(run)) + np.repeat(first_other - count.cumsum() + count, count)


def _connect(root: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest member of the component of each node, after adding the edges (a, b) to a graph
    whose smallest members are `root`. Every second round at least halves the number of components
    that are still to be joined."""
    while True:
        a, b = root[a], root[b]
        apart = a != b
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        root = _settle(root)


def _settle(parent: np.ndarray) -> np.ndarray:
    """The root of each node: its parent's parent's ... parent."""
    while not np.array_equal(grandparent := parent[parent], parent):
        parent = grandparent
    return parent


@dataclass(frozen=True)
class Object:
    """An object's `area` in pixels, their mean `probability`, and its outline: `rings` has the
    shell, then the holes, as int arrays (points, 2) of x, y whose last point repeats the first. The
    shell's shoelace area is positive, a hole's is negative, and no ring passes a point twice."""

    area: int
    probability: float
    rings: list[np.ndarray]


class Outlines:
    """The objects of a mask (height, width) that arrives in bands, without those of fewer than
    `min_area` pixels. Memory grows with the outlines of the objects that are still open.

    **Corners.** The vertical sides of outlines lie where runs start and stop. If no run starts or
    stops at the same x in the next row, the outline turns there: that vertex is a corner. If one
    run starts where the other stops, two pixels touch diagonally, and there are two corners. Each
    corner is the end of one horizontal and of one vertical side. So when corners are sorted along
    rows, neighbours pair up as the ends of horizontal sides; when sorted along columns, as the ends
    of vertical sides. Following both kinds of pairs in turn walks along a ring."""

    def __init__(self, height: int, width: int, min_area: int = 0):
        self.height, self.width, self.min_area = height, width, min_area
        self.y = 0  # rows so far
        self._labeller = Labeller(width)
        # Of each open object: its id, its area, the sum of its probabilities.
        self._id = self._area = self._total = np.array([], np.int64)
        # Of each corner of an open object: the object's id, and the corner as in `_corners`.
        self._owner = self._corner = np.array([], np.int64)

    def add(self, mask: np.ndarray, probability: np.ndarray) -> list[Object]:
        """Takes the next rows of both, (rows, width); non-zero pixels are positive. Returns the
        objects that are now complete. ValueError if sizes do not fit."""
        if np.shape(mask) != np.shape(probability):
            raise ValueError(f"a mask of shape {np.shape(mask)} with probabilities of shape "
                             f"{np.shape(probability)}")
        if self.y + len(mask) > self.height:
            raise ValueError(f"{self.y + len(mask)} rows for a mask of height {self.height}")
        return self._add(mask, probability) if len(mask) else []

    def finish(self) -> list[Object]:
        """The objects that reach the last row. ValueError if rows are missing."""
        if self.y != self.height:
            raise ValueError(f"{self.y} rows of a mask of height {self.height}")
        empty_row = np.zeros((1, self.width), bool)
        return self._add(empty_row, empty_row)

    def _add(self, mask: np.ndarray, probability: np.ndarray) -> list[Object]:
        start, stop, id = self._labeller.last
        runs = self._labeller.add(mask)
        corners = _corners((start, stop, _rename(id, runs.merged)), runs, self.y, len(mask),
                           self.width + 1)
        owner = np.concatenate([_rename(self._owner, runs.merged), corners[0]])
        corner = np.concatenate([self._corner, corners[1]])
        id, index = np.unique(np.concatenate([_rename(self._id, runs.merged), runs.id]),
                              return_inverse=True)
        area = np.bincount(index, np.concatenate([self._area, runs.stop - runs.start]))
        total = np.bincount(index, np.concatenate([self._total, _sums(runs, probability)]))
        self.y += len(mask)
        is_open, place = np.isin(id, self._labeller.last[2]), np.searchsorted(id, owner)
        self._id, self._area, self._total = id[is_open], area[is_open], total[is_open]
        self._owner, self._corner = owner[is_open[place]], corner[is_open[place]]
        complete = ~is_open & (area >= self.min_area)
        rings = _rings(owner[complete[place]], corner[complete[place]], self.width + 1)
        objects = zip(area[complete].tolist(), total[complete].tolist(), rings)
        return [Object(int(area), total / area, rings) for area, total, rings in objects]


def _rename(id: np.ndarray, merged: np.ndarray) -> np.ndarray:
    """`id` with the old ids of merged objects replaced by their new ones."""
    if not len(merged):
        return id
    place = np.searchsorted(merged[:, 0], id).clip(max=len(merged) - 1)
    return np.where(merged[place, 0] == id, merged[place, 1], id)


def _sums(runs: Runs, probability: np.ndarray) -> np.ndarray:
    """The sum of the probabilities in each run."""
    flat, start = np.ravel(probability), runs.row * np.shape(probability)[1]
    ends = np.stack([start + runs.start, start + runs.stop], 1).ravel()
    if len(ends) and ends[-1] == len(flat):
        ends = ends[:-1]  # reduceat sums to the end anyway, and takes no index beyond it
    return np.add.reduceat(flat, ends, dtype=np.float64)[::2] if len(ends) else np.zeros(0)


def _corners(above: tuple, runs: Runs, y: int, rows: int, step: int) -> np.ndarray:
    """The corners on the upper edges of a band's rows. The first of these rows is row `y`, and
    `above` has start, stop and id of the runs in the row over it. Returns (2, corners): the object
    of each corner, and the corner as a single number, 4 (y step + x) + 2 (1 if a side leaves it to
    the right) + (1 if a side leaves it downwards)."""
    row = np.append(np.zeros(len(above[0]), np.int64), runs.row + 1) * step
    sides = row + np.append(above[0], runs.start), row + np.append(above[1], runs.stop)
    side = np.stack(sides, 1).ravel()  # sorted; starts have even indices, stops odd ones
    owner, corners = np.append(above[2], runs.id).repeat(2), []
    for down, leaves in (1, side >= step), (0, side < rows * step):
        index = np.flatnonzero(leaves)  # sides that leave a vertex of this band downwards, upwards
        across = side[index] + (-step if down else step)  # the same x in the row across the vertex
        place = np.searchsorted(side, across)
        meets = side.take(place, mode="clip") == across
        diagonal = meets & ((place ^ index) & 1 > 0)  # one row starts where the other stops
        # If an even number of sides precedes x in the row across, that row is background there: the
        # outline leaves a start to the right, a stop to the left. The same goes for a diagonal.
        right = (index ^ 1 ^ np.where(meets, 0, place)) & 1
        corner = 4 * (side[index] + (y - down) * step) + 2 * right + down
        corners.append(np.stack([owner[index], corner])[:, ~meets | diagonal])
    return np.concatenate(corners, 1)


def _rings(owner: np.ndarray, corner: np.ndarray, step: int) -> list[list[np.ndarray]]:
    """Joins corners into the rings of each object, in the order of the objects' ids."""
    order = np.lexsort((corner, owner))
    owner, corner = owner[order], corner[order]
    y, x = np.divmod(corner >> 2, step)
    down = corner & 1
    on_shell = np.diff(owner, prepend=-1) > 0  # the first corner of an object lies on its shell
    # Two corners of one object at one vertex: the object touches itself diagonally. Swapping their
    # vertical sides splits a ring that would pass the vertex twice into two.
    touching = np.flatnonzero((np.diff(corner >> 2) == 0) & ~on_shell[1:])
    down[touching] ^= 1
    down[touching + 1] ^= 1
    # Along a row, the other end of a side is the neighbour in this order, (0, 1), (2, 3), ...:
    # index ^ 1. Along a column, look it up.
    by_column = np.lexsort((2 * y + down, x, owner))
    other_end = np.empty_like(by_column)
    other_end[by_column[::2]], other_end[by_column[1::2]] = by_column[1::2], by_column[::2]
    vertical, points = other_end.tolist(), np.stack([x, y], 1)
    unused = bytearray(b"\1") * len(x)
    objects: list[list[np.ndarray]] = []
    start = unused.find(1)  # of its object's unused corners the topmost, then leftmost
    while start >= 0:
        path: list[int] = []
        at = start
        while unused[at]:  # along the row to the right, then round
            unused[at] = unused[at ^ 1] = 0
            path += at, at ^ 1
            at = vertical[at ^ 1]
        path.append(start)
        if on_shell[start]:
            objects.append([points[path]])
        else:
            objects[-1].append(points[path[::-1]])  # a hole is walked in the opposite direction
        start = unused.find(1, start)
    return objects


class Areas:
    """The areas of the objects of a mask that arrives in bands of rows, of any height each."""

    def __init__(self, width: int):
        self._labeller = Labeller(width)
        self._tallies: list[np.ndarray] = []  # the pixels of each id, band by band
        self._merged: list[np.ndarray] = []

    def add(self, band: np.ndarray) -> Runs:
        """Takes the next rows, (rows, width), and returns their runs."""
        runs = self._labeller.add(band)
        self._tallies.append(_tally(runs.id, runs.stop - runs.start))
        self._merged.append(runs.merged)
        return runs

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """For each id that was issued: the id of its object in the end, and the pixels of the
        object with that id (0 where it became part of another one)."""
        parent = np.arange(self._labeller.issued)
        if self._merged:
            old, new = np.concatenate(self._merged).T
            parent[old] = new
        root = _settle(parent)
        id, area = np.concatenate([np.zeros((2, 0), np.int64), *self._tallies], 1)
        return root, np.bincount(root[id], area, len(root))


def count_objects(bands: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """How many objects of the target were found, missed and split, and how many objects of the
    prediction were invented. `bands` are rows of prediction and target, top to bottom, bool (rows,
    width) both. ValueError if their sizes differ.

    An object is found if its intersection over union (IoU) with a predicted object is 1/2 or more.
    This matches objects one to one: predicted objects do not overlap, so two of them cannot both
    share more than half with the same object. Both could share exactly half only by filling it
    together, but then they would touch and be one object.

    It is split if two or more predicted objects lie mostly inside it and cover a tenth of it or
    more, each. Whether it also counts as found depends on the largest of them."""
    sides: list[Areas] = []  # prediction and target
    shared: list[np.ndarray] = []  # the pixels of each key: predicted id << 32 | target's id
    for pair in bands:
        shape, other = (np.shape(mask) for mask in pair)
        if shape != other:
            raise ValueError(f"a prediction of shape {shape} with a target of shape {other}")
        step = shape[1] + 1
        sides = sides or [Areas(step - 1) for _ in pair]
        both = [areas.add(mask) for areas, mask in zip(sides, pair)]
        start, stop = ([runs.row * step + runs[k] for runs in both] for k in (1, 2))
        i, j = overlapping(start[0], stop[0], start[1], stop[1])
        pixels = np.minimum(stop[0][i], stop[1][j]) - np.maximum(start[0][i], start[1][j])
        shared.append(_tally(both[0].id[i] << 32 | both[1].id[j], pixels))
    if not sides:
        return {"found": 0, "missed": 0, "invented": 0, "split": 0}
    roots, areas = zip(*(side.finish() for side in sides))
    key, pixels = np.concatenate(shared, 1)
    key, pixels = _tally(roots[0][key >> 32] << 32 | roots[1][key & 2**32 - 1], pixels)
    target = key & 2**32 - 1
    predicted_area, area = areas[0][key >> 32], areas[1][target]
    found = int(np.count_nonzero(3 * pixels >= predicted_area + area))  # IoU >= 1/2
    invented, missed = (int(np.count_nonzero(side)) - found for side in areas)
    parts = np.bincount(target[(2 * pixels > predicted_area) & (10 * pixels >= area)])
    return {"found": found, "missed": missed, "invented": invented,
            "split": int(np.count_nonzero(parts > 1))}


def _tally(key: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Adds up the pixels of each key: (2, keys), the sorted keys and their sums."""
    key, index = np.unique(key, return_inverse=True)
    return np.stack([key, np.bincount(index, pixels).astype(np.int64)])


def object_f1(counts: dict[str, int]) -> float:
    """2 found / (2 found + missed + invented). It is 1 if there are no objects at all."""
    wrong = counts["missed"] + counts["invented"]
    return 2 * counts["found"] / (2 * counts["found"] + wrong) if counts["found"] + wrong else 1.0
