"""# Objects in a mask: outlines and counts from a mask that streams by

An object is a 4-connected component of positive pixels: they touch along their sides. The mask of a
slide is never whole in memory: it comes in bands of rows, top to bottom, and an object is complete
when a row no longer holds any of it.

- A row is a list of runs, pixels [start, stop). `Labeller` gives each run the number of its object,
  and says when two objects turn out to be one.
- `Outlines` keeps the corners of open objects and ties those of a complete one into rings.
- `count_objects` labels prediction and target side by side and adds up what their runs share.

A pixel (y, x) covers [x, x + 1] x [y, y + 1], and outlines run along the sides of pixels:

>>> mask = np.array([[1, 1, 1, 0],
...                  [1, 0, 1, 0],
...                  [1, 1, 1, 1]])
>>> outlines = Outlines(height=3, width=4)
>>> outlines.add(mask, mask * 0.8)  # it still has pixels in the last row
[]
>>> [ring] = outlines.finish()
>>> ring.area, round(ring.probability, 6)
(9, 0.8)
>>> ring.rings[0].tolist()  # the shell: x, y
[[0, 0], [3, 0], [3, 2], [4, 2], [4, 3], [0, 3], [0, 0]]
>>> ring.rings[1].tolist()  # a hole
[[1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
>>> count_objects([(mask, mask[:, ::-1])])  # they share 8 of 10 pixels
{'found': 1, 'missed': 0, 'invented': 0}
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Runs(NamedTuple):
    """The runs of a band in reading order, integer arrays (runs,): `row` within the band, pixels
    [`start`, `stop`), `id` of the object. `merged` (pairs, 2), sorted: the old and the new id of
    each object that turned out to be part of another."""

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    id: np.ndarray
    merged: np.ndarray


class Labeller:
    """Labels a mask that comes in bands. Ids count up from 0 in the order in which objects begin,
    `issued` so far. Where two objects meet further down, the larger id is given up for the smaller
    one. `last` (3, runs) is the last row so far: start, stop, id."""

    def __init__(self, width: int):
        self.width, self.issued, self.last = width, 0, np.zeros((3, 0), np.int64)

    def add(self, band: np.ndarray) -> Runs:
        """The runs of the next rows, (rows, width). ValueError where the width differs."""
        band = np.asarray(band)
        if band.shape[1:] != (self.width,):
            raise ValueError(f"a band of shape {band.shape} for a mask of width {self.width}")
        rows, step = len(band), self.width + 1  # a gap after each row keeps its runs apart
        padded = np.zeros(rows * step + 1, bool)
        padded[1:].reshape(rows, step)[:, :-1] = band
        change = np.flatnonzero(padded[1:] != padded[:-1])
        above, before = self.last[2], self.last.shape[1]
        start = np.concatenate([self.last[0], change[::2] + step])  # row 0 is the one before
        stop = np.concatenate([self.last[1], change[1::2] + step])
        # Each run starts alone, except runs of the row above that are already one object.
        root = np.arange(len(start))
        _, first, same = np.unique(above, return_index=True, return_inverse=True)
        root[:before] = first[same]
        root = _connect(root, *overlapping(start - step, stop - step, start, stop))
        id = np.full(len(start), self.issued, np.int64)
        np.minimum.at(id, root[:before], above)
        new = np.flatnonzero((root == np.arange(len(start))) & (id == self.issued))
        id[new] += np.arange(len(new))
        id, self.issued = id[root], self.issued + len(new)
        merged = np.stack([above, id[:before]], 1)[above != id[:before]]
        if rows:
            last = slice(np.searchsorted(start, rows * step), None)
            self.last = np.stack([start[last] % step, stop[last] % step, id[last]])
        start, stop = start[before:], stop[before:]
        return Runs(start // step - 1, start % step, stop % step, id[before:],
                    np.unique(merged, axis=0))


def overlapping(start: np.ndarray, stop: np.ndarray, other_start: np.ndarray,
                other_stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of runs that share pixels, one index into each of two lists. Each list is sorted,
    and its runs do not overlap."""
    first = np.searchsorted(other_stop, start, "right")
    count = np.searchsorted(other_start, stop) - first
    run = np.repeat(np.arange(len(start)), count)
    return run, np.arange(len(run)) + np.repeat(first - count.cumsum() + count, count)


def _connect(root: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest member of each one's component, where `root` is that before the edges (a, b)
    are added. Every second round at least halves the number of components still to be joined."""
    while True:
        a, b = root[a], root[b]
        apart = a != b
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        root = _settle(root)


def _settle(parent: np.ndarray) -> np.ndarray:
    """Follows each one's parents to the end."""
    while not np.array_equal(above := parent[parent], parent):
        parent = above
    return parent


@dataclass(frozen=True)
class Object:
    """`area` in pixels, the mean `probability` of these, and `rings`, int arrays (points, 2) of
    x, y whose last point is the first one again: the shell, then the holes. The shell's shoelace
    area is positive, that of holes negative, and no ring passes a point twice."""

    area: int
    probability: float
    rings: list[np.ndarray]


class Outlines:
    """The objects of a mask (height, width) that comes in bands; those of fewer than `min_area`
    pixels are left out. Memory grows with the outlines of the objects that are still open.

    **Corners.** The vertical sides of an outline are where runs start and stop. Where one meets no
    other in the next row, the outline turns: that vertex is a corner. Where it meets a stop while
    it is a start, or the reverse, two pixels touch diagonally: two corners. A horizontal and a
    vertical side leave each corner. Sorted along rows, corners stand in pairs, the two ends of a
    horizontal side; sorted along columns, the two ends of a vertical one. Alternating between the
    two kinds of pairs walks along a ring."""

    def __init__(self, height: int, width: int, min_area: int = 0):
        self.height, self.width, self.min_area, self.y = height, width, min_area, 0
        self._labeller = Labeller(width)
        self._id, self._area, self._total = np.zeros((3, 0), np.int64)  # of each open object
        self._owner, self._corner = np.zeros((2, 0), np.int64)  # of each of their corners

    def add(self, mask: np.ndarray, probability: np.ndarray) -> list[Object]:
        """Takes the next rows, both (rows, width); non-zero is positive. Returns the objects that
        have no pixel in the last of them. ValueError where sizes do not fit."""
        if np.shape(mask) != np.shape(probability):
            raise ValueError(f"a mask of shape {np.shape(mask)} with probabilities of shape "
                             f"{np.shape(probability)}")
        if self.y + len(mask) > self.height:
            raise ValueError(f"{self.y + len(mask)} rows for a mask of height {self.height}")
        return self._add(mask, probability) if len(mask) else []

    def finish(self) -> list[Object]:
        """The objects that reach the last row. ValueError where rows are missing."""
        if self.y != self.height:
            raise ValueError(f"{self.y} rows of a mask of height {self.height}")
        nothing = np.zeros((1, self.width), bool)
        return self._add(nothing, nothing)

    def _add(self, mask: np.ndarray, probability: np.ndarray) -> list[Object]:
        start, stop, above = self._labeller.last
        runs = self._labeller.add(mask)
        corners = _corners((start, stop, _rename(above, runs.merged)), runs, self.y, len(mask),
                           self.width + 1)
        owner = np.concatenate([_rename(self._owner, runs.merged), corners[0]])
        corner = np.concatenate([self._corner, corners[1]])
        id, index = np.unique(np.concatenate([_rename(self._id, runs.merged), runs.id]),
                              return_inverse=True)
        area = np.bincount(index, np.concatenate([self._area, runs.stop - runs.start]))
        total = np.bincount(index, np.concatenate([self._total, _sums(runs, probability)]))
        self.y += len(mask)
        goes_on, place = np.isin(id, self._labeller.last[2]), np.searchsorted(id, owner)
        self._id, self._area, self._total = id[goes_on], area[goes_on], total[goes_on]
        self._owner, self._corner = owner[goes_on[place]], corner[goes_on[place]]
        done = ~goes_on & (area >= self.min_area)
        rings = _rings(owner[done[place]], corner[done[place]], self.width + 1)
        facts = zip(area[done].tolist(), total[done].tolist(), rings)
        return [Object(int(area), total / area, rings) for area, total, rings in facts]


def _rename(id: np.ndarray, merged: np.ndarray) -> np.ndarray:
    """`id` with old ids replaced by new ones."""
    if not len(merged):
        return id
    place = np.searchsorted(merged[:, 0], id).clip(max=len(merged) - 1)
    return np.where(merged[place, 0] == id, merged[place, 1], id)


def _sums(runs: Runs, probability: np.ndarray) -> np.ndarray:
    """The sum of the probabilities in each run."""
    flat, start = np.ravel(probability), runs.row * np.shape(probability)[1]
    ends = np.stack([start + runs.start, start + runs.stop], 1).ravel()
    if len(ends) and ends[-1] == len(flat):
        ends = ends[:-1]  # the last sum goes on to the end anyway
    return np.add.reduceat(flat, ends, dtype=np.float64)[::2] if len(ends) else np.zeros(0)


def _corners(above: tuple, runs: Runs, y: int, rows: int, step: int) -> np.ndarray:
    """The corners at the tops of a band's rows, of which the first is row `y` and lies under a row
    with the runs `above`. (2, corners): the object of each, and the corner as one number,
    4 (its y step + its x) + 2 (a side leaves it to the right) + (one leaves it downwards)."""
    row = np.append(np.zeros(len(above[0]), np.int64), runs.row + 1) * step
    sides = row + np.append(above[0], runs.start), row + np.append(above[1], runs.stop)
    side = np.stack(sides, 1).ravel()  # sorted: even ones are starts, odd ones stops
    owner, found = np.append(above[2], runs.id).repeat(2), []
    for down, part in (1, side >= step), (0, side < rows * step):
        index = np.flatnonzero(part)  # the sides that leave a vertex of this band that way
        across = side[index] + (-step if down else step)  # the same x in the row across the vertex
        place = np.searchsorted(side, across)
        met = side.take(place, mode="clip") == across
        diagonal = met & ((place ^ index) & 1 > 0)  # one row starts where the other stops
        # If an even number of sides precedes x in the row across, that row is background there: the
        # outline leaves a start to the right, a stop to the left. At a diagonal both rows are.
        right = (index ^ 1 ^ np.where(met, 0, place)) & 1
        corner = 4 * (side[index] + (y - down) * step) + 2 * right + down
        found.append(np.stack([owner[index], corner])[:, ~met | diagonal])
    return np.concatenate(found, 1)


def _rings(owner: np.ndarray, corner: np.ndarray, step: int) -> list[list[np.ndarray]]:
    """The rings of each object, in the order of their ids, from its corners."""
    order = np.lexsort((corner, owner))
    owner, corner = owner[order], corner[order]
    y, x = np.divmod(corner >> 2, step)
    down = corner & 1
    head = np.diff(owner, prepend=-1) > 0  # the first corner of each object, on its shell
    # Where both corners of a vertex are of one object, it touches itself diagonally. To swap their
    # vertical sides joins it there, and cuts a ring that would pass the vertex twice into two.
    twice = np.flatnonzero((np.diff(corner >> 2) == 0) & ~head[1:])
    down[twice] ^= 1
    down[twice + 1] ^= 1
    # Partners along a row are neighbours in this order, (0, 1), (2, 3), ...: index ^ 1.
    column = np.lexsort((2 * y + down, x, owner))
    partner = np.empty_like(column)
    partner[column[::2]], partner[column[1::2]] = column[1::2], column[::2]
    partner, points, left = partner.tolist(), np.stack([x, y], 1), bytearray(b"\1") * len(x)
    objects, first = [], left.find(1)
    while first >= 0:
        path, at = [], first  # a topmost, leftmost corner: to the right, then round
        while left[at]:
            left[at] = left[at ^ 1] = 0
            path += at, at ^ 1
            at = partner[at ^ 1]
        path.append(first)
        if head[first]:
            objects.append([points[path]])
        else:
            objects[-1].append(points[path[::-1]])  # a hole, the other way round
        first = left.find(1, first)
    return objects


def count_objects(bands: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    """How many objects of the target were found and missed, and how many of the prediction were
    invented. `bands` are the rows of both, top to bottom: bool (rows, width), (rows, width).
    ValueError where their sizes differ.

    An object is found where a predicted one shares half of their union or more. This pairs them one
    to one: predicted objects do not overlap, so no two can share more than half with the same one.
    Two could each share exactly half only by filling it together, but then they would touch and be
    one object."""
    labellers, tallies, merged, shared = [], ([], []), ([], []), []
    for pair in bands:
        shapes = [np.shape(mask) for mask in pair]
        if shapes[0] != shapes[1]:
            raise ValueError("a prediction of shape {} with a target of shape {}".format(*shapes))
        step = shapes[0][1] + 1
        labellers = labellers or [Labeller(step - 1) for _ in pair]
        both = [labeller.add(mask) for labeller, mask in zip(labellers, pair)]
        for side, runs in enumerate(both):
            tallies[side].append(_tally(runs.id, runs.stop - runs.start))
            merged[side].append(runs.merged)
        start, stop = ([runs.row * step + runs[k] for runs in both] for k in (1, 2))
        i, j = overlapping(start[0], stop[0], start[1], stop[1])
        pixels = np.minimum(stop[0][i], stop[1][j]) - np.maximum(start[0][i], start[1][j])
        shared.append(_tally(both[0].id[i] << 32 | both[1].id[j], pixels))
    if not labellers:
        return {"found": 0, "missed": 0, "invented": 0}
    parents, areas = [], []
    for labeller, tally, pairs in zip(labellers, tallies, map(np.concatenate, merged)):
        parent = np.arange(labeller.issued)
        parent[pairs[:, 0]] = pairs[:, 1]
        parents.append(_settle(parent))
        id, area = np.concatenate(tally, 1)
        areas.append(np.bincount(parents[-1][id], area, labeller.issued))
    key, pixels = np.concatenate(shared, 1)
    key, pixels = _tally(parents[0][key >> 32] << 32 | parents[1][key & 2**32 - 1], pixels)
    found = int(np.count_nonzero(3 * pixels >= areas[0][key >> 32] + areas[1][key & 2**32 - 1]))
    invented, missed = (int(np.count_nonzero(area)) - found for area in areas)
    return {"found": found, "missed": missed, "invented": invented}


def _tally(key: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The pixels of each key added up: (2, keys)."""
    key, index = np.unique(key, return_inverse=True)
    return np.stack([key, np.bincount(index, pixels).astype(np.int64)])


def object_f1(counts: dict[str, int]) -> float:
    """2 found / (2 found + missed + invented), and 1 where there is nothing to be found and nothing
    was invented."""
    wrong = counts["missed"] + counts["invented"]
    return 2 * counts["found"] / (2 * counts["found"] + wrong) if counts["found"] + wrong else 1.0
