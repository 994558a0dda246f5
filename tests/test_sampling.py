import math
from collections import Counter

import numpy as np
import pytest
import torch

from minseg import epoch_indices

# 12 positives of 60 tiles; in quarters of 0.8: 6, 3, 0 and 3
AREAS = [0.01, 0.05, 0.1, 0.15, 0.18, 0.19, 0.25, 0.3, 0.35, 0.7, 0.75, 0.8]
BINS = [AREAS[:6], AREAS[6:9], AREAS[9:]]


def tiles(seed=0):
    """Areas of 60 tiles, positives scattered among them."""
    area = torch.zeros(60)
    area[torch.randperm(60, generator=seeded(seed))[:12]] = torch.tensor(AREAS)
    return area


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def split(indices, area):
    """The positives and negatives of an epoch, as lists."""
    indices = indices.tolist()
    return [i for i in indices if area[i] > 0], [i for i in indices if area[i] == 0]


@pytest.mark.parametrize("negatives", [0, 0.5, 1, 2, math.inf])
def test_every_positive_comes_exactly_once_and_no_negative_twice(negatives):
    area, generator = tiles(), seeded(1)
    for _ in range(5):
        positive, negative = split(epoch_indices(area, negatives=negatives, generator=generator),
                                   area)
        assert sorted(positive) == area.nonzero()[:, 0].tolist()
        assert len(set(negative)) == len(negative)


@pytest.mark.parametrize("negatives, wanted", [
    (0, 0), (0.5, 6), (0.3, 4), (0.04, 0), (1, 12), (2, 24), (4, 48), (5, 48), (math.inf, 48)])
def test_negatives_are_so_many_for_each_positive_rounded_and_no_more_than_there_are(
        negatives, wanted):
    for seed in range(3):
        indices = epoch_indices(tiles(), negatives=negatives, generator=seeded(seed))
        assert indices.dtype == torch.int64 and indices.shape == (12 + wanted,)
    assert len(split(epoch_indices(tiles()), tiles())[1]) == 12  # one each, if not told otherwise


def test_infinitely_many_negatives_are_all_tiles_once():
    indices = epoch_indices(tiles(), negatives=math.inf)
    assert sorted(indices.tolist()) == list(range(60))


def test_without_negatives_in_the_data_there_are_none_in_the_epoch():
    for negatives in (1, math.inf):
        indices = epoch_indices(torch.tensor([0.1, 0.4, 0.2]), negatives=negatives)
        assert sorted(indices.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("bins", [None, 4])
def test_the_same_seed_gives_the_same_epochs_and_a_kept_state_their_continuation(bins):
    area, one, two = tiles(), seeded(3), seeded(3)
    epochs = [epoch_indices(area, bins=bins, generator=one).tolist() for _ in range(3)]
    first = epoch_indices(area, bins=bins, generator=two).tolist()
    state = two.get_state()
    torch.rand(100)  # the global generator does not matter
    rest = torch.Generator()
    rest.set_state(state)
    again = [epoch_indices(area, bins=bins, generator=rest).tolist() for _ in range(2)]
    assert [first, *again] == epochs


@pytest.mark.parametrize("bins", [None, 4])
def test_every_epoch_draws_anew_and_shuffles_anew(bins):
    area, generator = tiles(), seeded(0)
    a, b = (epoch_indices(area, bins=bins, generator=generator) for _ in range(2))
    assert set(split(a, area)[1]) != set(split(b, area)[1])
    if not bins:
        assert split(a, area)[0] != split(b, area)[0]  # the same positives, in another order


def test_every_negative_comes_about_equally_often():
    area, generator, epochs = tiles(), seeded(0), 800
    counts = Counter()
    for _ in range(epochs):
        counts.update(split(epoch_indices(area, generator=generator), area)[1])
    share = [counts[i] / epochs for i in range(60) if area[i] == 0]
    assert len(share) == 48  # of which 12 come each time; the deviation is 0.015
    assert min(share) > 0.25 - 0.07 and max(share) < 0.25 + 0.07


@pytest.mark.parametrize("bins", [None, 4])
def test_the_order_is_random_positives_among_negatives(bins):
    area, generator, epochs = tiles(), seeded(0), 400
    place = torch.zeros(24)
    for _ in range(epochs):
        place += area[epoch_indices(area, bins=bins, generator=generator)] > 0
    # each place holds a positive in half of all epochs; the deviation is 0.025
    assert place.min() / epochs > 0.38 and place.max() / epochs < 0.62


def test_large_and_small_positives_are_mixed_though_they_come_from_bins():
    area, generator, epochs = tiles(), seeded(0), 400
    place = torch.zeros(12)
    for _ in range(epochs):
        place += area[epoch_indices(area, negatives=0, bins=4, generator=generator)] > 0.6
    assert place.min() / epochs > 0.23 and place.max() / epochs < 0.43  # of three bins one


def test_bins_that_are_not_empty_get_equal_shares():
    area, generator = tiles(), seeded(0)
    for _ in range(10):
        positive, negative = split(epoch_indices(area, bins=4, generator=generator), area)
        areas = area[positive]
        assert [((areas > a) & (areas <= b)).sum() for a, b in
                [(0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8)]] == [4, 4, 0, 4]
        assert len(negative) == 12 and len(set(negative)) == 12


@pytest.mark.parametrize("positives", [[0.1, 0.15, 0.2, 0.8, 0.7], [0.1, 0.9, 0.95], [0.5],
                                       [0.1, 0.12, 0.13, 0.14, 0.4, 0.6, 0.9, 0.95, 0.97, 1.0]])
@pytest.mark.parametrize("bins", [1, 2, 4, 7])
def test_there_are_as_many_positives_as_divide_evenly_and_as_many_negatives(positives, bins):
    area = torch.tensor(positives + [0.0] * 20)
    of_bin = [math.ceil(a / max(positives) * bins) for a in positives]
    each = len(positives) // len(set(of_bin))
    for seed in range(3):
        drawn = split(epoch_indices(area, bins=bins, generator=seeded(seed)), area)
        counts = Counter(of_bin[i] for i in drawn[0])
        assert counts == dict.fromkeys(set(of_bin), each) and len(drawn[1]) == len(drawn[0])


def test_within_a_bin_no_tile_comes_twice_more_than_another():
    area, generator = tiles(), seeded(0)
    for _ in range(10):
        counts = Counter(split(epoch_indices(area, bins=4, generator=generator), area)[0])
        for members in BINS:
            times = [counts[area.tolist().index(torch.tensor(a).item())] for a in members]
            assert sum(times) == 4 and max(times) - min(times) <= 1


def test_tiles_of_full_bins_are_left_out_by_turns():
    area, generator, counts = tiles(), seeded(0), Counter()
    for _ in range(300):
        counts.update(split(epoch_indices(area, bins=4, generator=generator), area)[0])
    for members in BINS:  # of each bin four are drawn; the deviation is below 0.03
        for a in members:
            i = area.tolist().index(torch.tensor(a).item())
            assert counts[i] / 300 == pytest.approx(4 / len(members), abs=0.12)


def test_one_bin_is_every_positive_once():
    area = tiles()
    positive, _ = split(epoch_indices(area, bins=1), area)
    assert sorted(positive) == area.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("bins", [None, 4])
def test_the_unit_and_the_kind_of_mask_area_do_not_matter(bins):
    area = tiles()
    pixels = (area * 10_000).round().int()
    same = [area, area * 1000, area / 7, area.double(), area.numpy(), area.tolist(), pixels,
            pixels.numpy().astype(np.uint16).tolist()]
    drawn = [epoch_indices(a, bins=bins, generator=seeded(5)).tolist() for a in same]
    assert all(indices == drawn[0] for indices in drawn)


def test_what_cannot_be_sampled_is_refused():
    for empty in (torch.zeros(7), [0] * 7):
        with pytest.raises(ValueError, match="none of 7 tiles"):
            epoch_indices(empty)
    with pytest.raises(ValueError, match="none of 0 tiles"):
        epoch_indices([])
    for options in ({"negatives": -1}, {"negatives": math.nan}, {"bins": 0}, {"bins": -2}):
        [(name, value)] = options.items()
        with pytest.raises(ValueError, match=f"{name} {value}"):
            epoch_indices(tiles(), **options)


def test_an_area_that_is_not_a_number_is_refused_instead_of_lost():
    for areas in ([0.1, 0.0, math.nan, 0.2], torch.tensor([0.1, 0.0, math.nan, math.nan]),
                  np.array([0.1, 0.0, math.nan])):
        with pytest.raises(ValueError, match="tile 2 is NaN"):
            epoch_indices(areas)
