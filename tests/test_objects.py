"""Objects of masks in bands: labels, outlines and counts against the naive ways to get them."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from minseg.files.objects import (
    Labeller,
    Object,
    Outlines,
    count_objects,
    object_f1,
    overlapping,
)
from minseg.files.polygons import Polygon, Polygons


def naive_labels(mask):
    """0 where there is no object, else 1, 2, ... in reading order: a flood from each pixel."""
    labels = np.zeros(np.shape(mask), int)
    for y, x in zip(*np.nonzero(mask)):
        if labels[y, x]:
            continue
        number, todo = labels.max() + 1, [(y, x)]
        while todo:
            y, x = todo.pop()
            if 0 <= y < len(mask) and 0 <= x < len(mask[0]) and mask[y][x] and not labels[y, x]:
                labels[y, x] = number
                todo += (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)
    return labels


def drawn(text):
    return np.array([[character == "#" for character in line] for line in text.split()])


def spiral(size):
    """One pixel wide, turned inwards."""
    mask, y, x, dy, dx = np.zeros((size, size), bool), 0, -1, 0, 1
    for length in [size, *np.repeat(np.arange(size - 1, 0, -2), 2)]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


MASKS = {
    "empty": np.zeros((4, 6), bool),
    "full": np.ones((4, 6), bool),
    "a pixel": np.ones((1, 1), bool),
    "one column": np.array([[1], [0], [1], [1]], bool),
    "one row": np.array([[1, 0, 1, 1, 0]], bool),
    "U": drawn("#..# #..# ####"),
    "W": drawn("#.#.#.# #.#.#.# #.###.# #.....# #######"),
    "arch": drawn(".##. #..# #..#"),
    "ring": drawn("### #.# ###"),
    "object in a hole": drawn("####### #.....# #.###.# #.#.#.# #.###.# #.....# #######"),
    "diagonal": drawn("#. .#"),
    "other diagonal": drawn(".# #."),
    "ring that closes diagonally": drawn(".### #..# #..# ####"),
    "ring that closes diagonally below": drawn("#### #..# #..# ###."),
    "holes that touch diagonally": drawn("##### #.### ##.## ###.# #####"),
    "holes and outside touch": drawn(".#### #.### ##.## ###.# ####."),
    "checkers": np.indices((7, 8)).sum(0) % 2 > 0,
    "comb": drawn("#.#.#.#.# #.#.#.#.# #########"),
    "spiral": spiral(13),
    "spirals": np.hstack([spiral(9), spiral(9)[::-1]]),
}


def noise(seed, most=30):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, most, 2)) < rng.choice([0.1, 0.4, 0.55, 0.62, 0.7, 0.9])
    return mask.repeat(rng.integers(1, 3), 0).repeat(rng.integers(1, 3), 1)


def cut(seed, *arrays):
    """The same bands of each array: some are empty, some a single row."""
    rng = np.random.default_rng(seed)
    height = len(arrays[0])
    edges = [0, *sorted(rng.integers(0, height + 1, rng.integers(0, height + 2))), height]
    for top, bottom in pairwise(edges):
        yield tuple(array[top:bottom] for array in arrays)


ALL = [*MASKS.values(), *map(noise, range(50))]


# Labels


def streamed_labels(mask, seed):
    labeller, names, y = Labeller(mask.shape[1]), np.full(mask.shape, -1), 0
    for band, in cut(seed, mask):
        runs = labeller.add(band)
        for old, new in runs.merged:
            assert new < old
            names[names == old] = new
        for row, start, stop, id in zip(runs.row, runs.start, runs.stop, runs.id):
            names[y + row, start:stop] = id
        y += len(band)
        if y:
            assert set(labeller.last[2]) == set(names[y - 1][names[y - 1] >= 0])
    return names


@pytest.mark.parametrize("mask", ALL)
def test_bands_of_any_height_get_the_labels_of_a_flood_fill_of_the_whole_mask(mask):
    wanted = naive_labels(mask)
    for seed in range(2):
        names = streamed_labels(mask, seed)
        assert np.array_equal(names >= 0, mask)
        pairs = set(zip(wanted[mask].tolist(), names[mask].tolist()))
        assert len(pairs) == wanted.max(initial=0) == len(np.unique(names[mask]))


def test_ids_count_up_in_the_order_in_which_objects_begin():
    labeller = Labeller(7)
    assert labeller.add(drawn("#.#.#.#")).id.tolist() == [0, 1, 2, 3]
    runs = labeller.add(drawn("###.... ......# .#.....").reshape(3, 7))
    assert (runs.id.tolist(), runs.merged.tolist()) == ([0, 4, 5], [[1, 0]])
    assert (runs.row.tolist(), runs.start.tolist(), runs.stop.tolist()) == (
        [0, 1, 2], [0, 6, 1], [3, 7, 2])
    assert labeller.issued == 6


def test_overlapping_runs_are_those_that_share_pixels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        (a, b), (c, d) = (np.sort(rng.choice(40, 2 * rng.integers(0, 9), False)).reshape(-1, 2).T
                          for _ in range(2))
        wanted = [(i, j) for i in range(len(a)) for j in range(len(c))
                  if a[i] < d[j] and c[j] < b[i]]
        assert [*zip(*overlapping(a, b, c, d))] == wanted


def test_a_band_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"a band of shape \(2, 3\) for a mask of width 4"):
        Labeller(4).add(np.ones((2, 3)))


# Outlines


def outlined(mask, seed=0, probability=None, min_area=0):
    outlines, found = Outlines(*mask.shape, min_area), []
    probability = mask * 0.5 if probability is None else probability
    for band in cut(seed, mask, probability):
        found += outlines.add(*band)
    return found + outlines.finish()


def shoelace(ring):
    x, y = ring.T
    return (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2


@pytest.mark.parametrize("mask", ALL)
def test_drawing_the_outlines_gives_back_the_mask(mask):
    for seed in range(2):
        objects = outlined(mask, seed)
        polygons = [Polygon("", each.rings) for each in objects]
        assert np.array_equal(Polygons(polygons, *mask.shape).window(0, 0, *mask.shape), mask)
        assert len(objects) == naive_labels(mask).max(initial=0)
        assert sum(each.area for each in objects) == mask.sum()


@pytest.mark.parametrize("mask", ALL)
def test_each_object_is_a_shell_and_holes_none_of_which_passes_a_point_twice(mask):
    labels = naive_labels(mask)
    for found in outlined(mask, 1):
        drawing = Polygons([Polygon("", found.rings)], *mask.shape).window(0, 0, *mask.shape) > 0
        assert len(np.unique(labels[drawing])) == 1 and drawing.sum() == found.area
        shell, *holes = map(shoelace, found.rings)
        assert shell > 0 and all(hole < 0 for hole in holes)
        assert shell + sum(holes) == found.area
        for ring in found.rings:
            assert (ring[0] == ring[-1]).all()
            assert len(np.unique(ring[1:], axis=0)) == len(ring) - 1
            steps = np.diff(ring, axis=0)  # along a row and along a column in turn: corners only
            assert ((steps != 0).sum(1) == 1).all() and ((steps[1:] != 0) ^ (steps[:-1] != 0)).all()


def test_holes_that_touch_are_rings_of_their_own():
    [found] = outlined(MASKS["holes that touch diagonally"])
    assert [shoelace(ring) for ring in found.rings] == [25, -1, -1, -1]


def test_a_ring_that_closes_diagonally_has_its_hole_cut_off():
    [found] = outlined(MASKS["ring that closes diagonally"])
    assert [shoelace(ring) for ring in found.rings] == [15, -4]


@pytest.mark.parametrize("seed", range(20))
def test_the_probability_of_an_object_is_the_mean_of_its_pixels(seed):
    mask = noise(seed)
    probability = np.random.default_rng(seed).random(mask.shape, np.float32)
    labels, probability = naive_labels(mask), np.asfortranarray(probability)
    wanted = sorted((np.count_nonzero(labels == k), probability[labels == k].mean(dtype=np.float64))
                    for k in range(1, labels.max() + 1))
    found = sorted((each.area, each.probability) for each in outlined(mask, seed, probability))
    assert np.allclose(found, wanted, rtol=1e-12)


def test_small_objects_are_left_out():
    mask = np.random.default_rng(0).random((30, 40)) < 0.4
    every = outlined(mask)
    assert {each.area for each in every} >= {1, 2, 3}
    for least in (0, 1, 2, 3, 1000):
        kept = outlined(mask, 3, min_area=least)
        assert sorted(each.area for each in kept) == sorted(
            each.area for each in every if each.area >= least)


def test_an_object_is_returned_as_soon_as_a_row_no_longer_holds_it():
    outlines = Outlines(5, 3)
    rows = drawn("### #.. ... .#. .#.")[:, None]
    assert [len(outlines.add(row, row)) for row in rows] == [0, 0, 1, 0, 0]
    assert [each.area for each in outlines.finish()] == [2]


def test_sizes_that_do_not_fit_are_refused():
    outlines, band = Outlines(3, 4), np.ones((2, 4))
    with pytest.raises(ValueError, match="shape .2, 4. with probabilities of shape .2, 3."):
        outlines.add(band, band[:, :3])
    outlines.add(band, band)
    with pytest.raises(ValueError, match="4 rows for a mask of height 3"):
        outlines.add(band, band)
    with pytest.raises(ValueError, match="2 rows of a mask of height 3"):
        outlines.finish()
    outlines.add(band[:1], band[:1])
    assert [each.area for each in outlines.finish()] == [12]


def test_memory_does_not_grow_with_the_number_of_complete_objects():
    band = np.zeros((8, 200), bool)
    band[2:6, 1::4] = True
    outlines = Outlines(1600, 200)
    tracemalloc.start()
    try:
        for _ in range(200):
            assert len(outlines.add(band, band)) == 50
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()


# Counts


def naive_count(prediction, target):
    a, b = naive_labels(prediction), naive_labels(target)
    pairs = [(i, j) for i in range(1, a.max() + 1) for j in range(1, b.max() + 1)
             if 2 * ((a == i) & (b == j)).sum() >= ((a == i) | (b == j)).sum()]
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)  # one to one
    inside = [[j for i in range(1, a.max() + 1)
               if ((a == i) & (b == j)).sum() > (a == i).sum() / 2
               and ((a == i) & (b == j)).sum() >= (b == j).sum() / 10]
              for j in range(1, b.max() + 1)]
    return {"found": len(pairs), "missed": int(b.max()) - len(pairs),
            "invented": int(a.max()) - len(pairs), "split": sum(len(each) > 1 for each in inside)}


@pytest.mark.parametrize("seed", range(60))
def test_counts_equal_those_of_comparing_every_pair_of_objects(seed):
    rng = np.random.default_rng(seed)
    target = noise(seed, 16)
    prediction = target ^ (rng.random(target.shape) < rng.choice([0, 0.02, 0.1, 0.4]))
    wanted = naive_count(prediction, target)
    for k in range(2):
        assert count_objects(cut(k, prediction, target)) == wanted


@pytest.mark.parametrize("prediction, target, counts", [
    ("##..", "####", (1, 0, 0)),  # exactly 1/2
    ("##...", "#####", (0, 1, 1)),
    ("##.##", "#####", (0, 1, 2)),  # neither half is enough
    ("#####", "##.##", (0, 2, 1)),
    ("....", "#.##", (0, 2, 0)),
    ("#.##", "....", (0, 0, 2)),
    ("....", "....", (0, 0, 0)),
])
def test_an_object_is_found_where_half_of_the_union_is_shared(prediction, target, counts):
    found = count_objects([(drawn(prediction), drawn(target))])
    assert list(found.values())[:3] == list(counts)


@pytest.mark.parametrize("prediction, split", [
    ("#####.####..", 1),
    ("###.##.#.#..", 1),  # into four: still one object
    ("##########..", 0),
    ("########.##.", 0),  # half of the second part lies inside, which is not mostly
    ("....#..#....", 1),  # a tenth each
    ("............", 0),
])
def test_an_object_is_split_where_two_parts_lie_mostly_inside(prediction, split):
    target = drawn("##########..")
    assert count_objects([(drawn(prediction), target)])["split"] == split
    # Parts that cover less than a tenth do not count.
    assert count_objects([(np.array([[1, 0, 1] + [0] * 10]), np.array([[1] * 11 + [0] * 2]))])[
        "split"] == 0


def test_without_bands_there_are_no_objects():
    assert count_objects([]) == {"found": 0, "missed": 0, "invented": 0, "split": 0}


def test_bands_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="shape .2, 3. with a target of shape .2, 4."):
        count_objects([(np.ones((2, 3)), np.ones((2, 4)))])


def test_f1_weighs_missed_and_invented_objects_alike():
    assert object_f1({"found": 3, "missed": 1, "invented": 2}) == pytest.approx(6 / 9)
    assert object_f1({"found": 0, "missed": 1, "invented": 0}) == 0
    assert object_f1({"found": 0, "missed": 0, "invented": 0}) == 1


def test_an_object_that_was_handed_out_cannot_be_changed():
    with pytest.raises(AttributeError):
        Object(1, 0.5, []).area = 2


def test_objects_are_told_apart_however_many_there_are():
    mask = np.zeros((40, 40), bool)
    mask[::2, ::2] = True
    assert count_objects([(mask, mask)]) == {"found": 400, "missed": 0, "invented": 0, "split": 0}
