import itertools
import random

import pytest
import torch

from minseg import best_threshold, dice_score, group_folds


def random_groups(seed):
    rng = random.Random(seed)
    groups = [f"patient{rng.randrange(7)}" for _ in range(30)]
    return groups, [rng.choice([0, 0, 5, 40, 900]) for _ in groups]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_no_group_is_ever_in_two_folds_and_no_fold_is_empty(k):
    for seed in range(20):
        groups, positives = random_groups(seed)
        folds = group_folds(groups, positives, k, seed)
        assert set(folds) == set(range(k))
        assert len(set(zip(groups, folds))) == len(set(groups))


def test_positives_are_balanced_within_four_thirds_of_the_best_split():
    for seed in range(20):
        groups, positives = random_groups(seed)
        names = sorted(set(groups))
        weight = {g: sum(p for h, p in zip(groups, positives) if h == g) for g in names}
        best = min(
            max(sum(weight[g] for g, f in zip(names, split) if f == fold) for fold in range(3))
            for split in itertools.product(range(3), repeat=len(names)))
        folds = group_folds(groups, positives, 3, seed)
        largest = max(sum(p for p, f in zip(positives, folds) if f == fold) for fold in range(3))
        assert largest <= 4 / 3 * best


def test_groups_without_positives_are_spread_by_the_number_of_images():
    folds = group_folds(list(range(10)), [0] * 10, 5)
    assert sorted(folds) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_seed_settles_the_folds():
    groups, positives = list(range(30)), [7] * 30
    assert group_folds(groups, positives, 3, 1) == group_folds(groups, positives, 3, 1)
    assert group_folds(groups, positives, 3, 1) != group_folds(groups, positives, 3, 2)


def test_more_folds_than_groups_and_other_nonsense_are_refused():
    with pytest.raises(ValueError, match="3 folds of 2 groups"):
        group_folds(["a", "b", "b"], [1, 2, 3], 3)
    with pytest.raises(ValueError, match="1 folds"):
        group_folds(["a", "b"], [1, 2], 1)
    with pytest.raises(ValueError, match="counts of positives"):
        group_folds(["a", "b"], [1], 2)


def test_the_best_threshold_beats_every_other():
    torch.manual_seed(0)
    targets = [(torch.rand(n, 20) < 0.2) for n in (10, 30)]
    probabilities = [(0.3 * t + 0.5 * torch.rand(t.shape)) for t in targets]
    threshold, dice = best_threshold(probabilities, targets)

    def pooled(t):
        return dice_score(torch.cat(probabilities) >= t, torch.cat(targets))

    assert pooled(threshold) == pytest.approx(dice, abs=1e-6)
    assert dice >= max(pooled((k - 0.5) / 255) for k in range(1, 256)) - 1e-6
    assert 0.2 < threshold <= 0.5


def test_of_equal_thresholds_the_nearest_to_a_half_is_taken():
    threshold, dice = best_threshold(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    assert threshold == 0.5 and dice == 1


def test_uint8_probabilities_are_steps_of_1_255():
    torch.manual_seed(0)
    target = torch.rand(500) < 0.3
    probability = (torch.rand(500) + 0.2 * target).clamp(max=1)
    stored = (probability * 255).round().byte()
    assert best_threshold(stored, target) == best_threshold(probability, target)


def test_without_any_positive_the_empty_prediction_is_right():
    threshold, dice = best_threshold(torch.tensor([0.1, 0.6]), torch.tensor([0, 0]))
    assert dice == 1 and threshold > 0.6


@pytest.mark.parametrize("value", [-3.0, 1.2, float("nan")])
def test_what_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match="sigmoid"):
        best_threshold(torch.tensor([0.5, value]), torch.tensor([0, 1]))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ"):
        best_threshold([torch.zeros(2, 3)], [torch.zeros(3, 2)])
