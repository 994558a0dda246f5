import itertools
import random

import numpy as np
import pytest
import torch

from minseg import best_threshold, dice_score, group_folds
from minseg.crossval import count_levels, cross_validate, dice_parts


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


@pytest.mark.parametrize("few", [0, 10])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_healthy_patients_are_in_all_folds(few, k):
    """A fold of healthy patients only would be scored on other slides than the rest."""
    groups = [f"ill{i}" for i in range(5)] + [f"healthy{i}" for i in range(20)]
    positives = [500_000, 450_000, 430_000, 410_000, 400_000] + [few] * 20
    for seed in range(5):
        folds = group_folds(groups, positives, k, seed)
        images = [folds.count(fold) for fold in range(k)]
        healthy = [folds[5:].count(fold) for fold in range(k)]
        assert max(images) - min(images) <= 1
        assert max(healthy) - min(healthy) <= 2


def test_positives_and_images_are_spread_at_least_as_evenly_as_by_chance():
    """Whoever adds a vector where its product with the load is smallest gets a sum of squares that
    is not larger than the mean of all assignments: (1 - 1/k) times the sum of the groups' squares
    above that of equal folds. Here for groups that are all small."""
    rng = random.Random(0)
    for seed in range(20):
        groups = [rng.randrange(300) for _ in range(900)]
        positives = [rng.choice([0, 0, 5, 40, 90]) for _ in groups]
        folds = group_folds(groups, positives, 3, seed)
        total, chance, found = sum(positives), 0.0, 0.0
        for group in set(groups):
            items = [i for i, each in enumerate(groups) if each == group]
            p, n = sum(positives[i] for i in items) / total, len(items) / len(groups)
            assert p <= 1 / 30
            chance += 2 / 3 * (p**2 + n**2)
        for fold in range(3):
            items = [i for i, each in enumerate(folds) if each == fold]
            found += (sum(positives[i] for i in items) / total - 1 / 3) ** 2
            found += (len(items) / len(groups) - 1 / 3) ** 2
        assert found <= chance


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


def slides_of_three_folds():
    """Probabilities, masks, folds and groups of seven images; each fold is calibrated otherwise."""
    generator = np.random.default_rng(0)
    folds, groups = [0, 0, 1, 1, 2, 2, 2], ["a", "a", "b", "c", "d", "d", "e"]
    probabilities, masks = [], []
    for fold in folds:
        mask = generator.random((20, 30)) < 0.3
        noise = generator.normal(0, 0.2, mask.shape)
        level = np.clip(0.2 + 0.2 * fold + 0.3 * mask + noise, 0, 1) * 255
        probabilities.append(level.round().astype(np.uint8))
        masks.append(mask.astype(np.uint8))
    return probabilities, masks, folds, groups


def dice(pairs):
    """Dice over the pixels of several (mask, mask)."""
    shared = sum((a & b).sum() for a, b in pairs)
    return 2 * shared / sum(a.sum() + b.sum() for a, b in pairs)


def test_each_fold_is_cut_at_the_threshold_that_the_others_chose():
    probabilities, masks, folds, groups = slides_of_three_folds()
    tensors = [[torch.from_numpy(x) for x in side] for side in (probabilities, masks)]
    counts = [count_levels(*pair) for pair in zip(*tensors)]
    summary = cross_validate(counts, folds, groups)

    cut = []
    for fold in (0, 1, 2):
        others = [i for i in range(7) if folds[i] != fold]
        at = {t: dice([(probabilities[i] / 255 >= t, masks[i] > 0) for i in others])
              for t in (np.arange(1, 256) - 0.5) / 255}
        best = max(at, key=at.get)
        assert summary["thresholds"][fold] == pytest.approx(best, abs=1e-4)
        cut += [probabilities[i] / 255 >= best for i in range(7) if folds[i] == fold]
    pairs = [(a, b > 0) for a, b in zip(cut, masks)]
    assert len(set(summary["thresholds"])) == 3  # so it matters who chooses
    assert summary["images"] == pytest.approx([dice([pair]) for pair in pairs])
    assert summary["pooled_dice"] == pytest.approx(dice(pairs))
    assert summary["folds"] == pytest.approx([dice(pairs[:2]), dice(pairs[2:4]), dice(pairs[4:])])
    naive = {g: dice([p for p, of in zip(pairs, groups) if of == g]) for g in "abcde"}
    assert summary["groups"] == pytest.approx(naive)
    assert summary["mean_dice"] == pytest.approx(np.mean(list(naive.values())))
    assert summary["sd_dice"] == pytest.approx(np.std(list(naive.values()), ddof=1))
    assert summary["worst_group"] == min(naive, key=naive.get)


def test_the_threshold_that_a_fold_likes_best_is_not_its_own_score():
    probabilities, masks, folds, groups = slides_of_three_folds()
    tensors = [[torch.from_numpy(x) for x in side] for side in (probabilities, masks)]
    own = [best_threshold([tensors[0][i] for i in range(7) if folds[i] == fold],
                          [tensors[1][i] for i in range(7) if folds[i] == fold])
           for fold in (0, 1, 2)]
    counts = [count_levels(*pair) for pair in zip(*tensors)]
    summary = cross_validate(counts, folds, groups)
    assert all(abs(a - b) > 0.05 for a, (b, _) in zip(summary["thresholds"], own))
    assert summary["pooled_dice"] < min(best for _, best in own)


def test_images_without_a_positive_pixel_count_as_right_when_nothing_is_found():
    empty = count_levels(torch.zeros(4, 4), torch.zeros(4, 4))
    full = count_levels(torch.ones(4, 4), torch.ones(4, 4))
    summary = cross_validate([empty, full, full], [0, 0, 1], ["a", "b", "c"])
    assert summary["images"] == [1.0, 1.0, 1.0] and summary["sd_dice"] == 0


def test_a_single_fold_is_cut_at_a_half_and_not_at_what_suits_it():
    counts = count_levels(torch.tensor([0.1, 0.2, 0.4, 0.6]), torch.tensor([0, 1, 1, 1]))
    summary = cross_validate([counts], [0], ["a"])
    assert summary["thresholds"] == [0.5] and summary["pooled_dice"] == 0.5


def test_a_patient_with_most_of_the_positives_does_not_keep_healthy_ones_out():
    groups = [*"abcde", *(f"healthy{i}" for i in range(15))]
    for seed in range(5):
        folds = group_folds(groups, [900_000, 9000, 8000, 7000, 6000] + [10] * 15, 3, seed)
        healthy = [folds[5:].count(fold) for fold in range(3)]
        assert max(healthy) - min(healthy) <= 3


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.6, 1.0])  # 51, 102, 153 and 255 steps
def test_a_probability_that_equals_the_threshold_is_positive(threshold):
    level = round(255 * threshold)
    probability = torch.tensor([level - 1, level, level], dtype=torch.uint8)
    counts = count_levels(probability, torch.tensor([1, 1, 0]))
    assert dice_parts(counts, threshold).tolist() == [2, 4]  # of two found ones, one is right


@pytest.mark.parametrize("few, fold", [(6, "b"), (5, "a")])
def test_more_than_a_tenth_of_a_folds_share_goes_to_the_fewest_positives(few, fold):
    """p > 1/(10k) = 0.05: to the smaller P. Else to the smaller P p + N n: a has fewer images."""
    groups, positives = ["a", *["b"] * 10, "c"], [50, *[0] * 9, 50 - few, few]
    folds = dict(zip(groups, group_folds(groups, positives, k=2)))
    assert folds["c"] == folds[fold] and folds["a"] != folds["b"]


def test_few_positives_go_elsewhere_where_they_would_exceed_four_thirds():
    groups, positives = ["a"], [100]  # fold 0 has few images, so it is offered all that is small
    for i in range(13):
        groups += [f"g{i}"] * (100 if i < 9 else 20)
        positives += [95 if i < 9 else 9] + [0] * (99 if i < 9 else 19)
    folds = group_folds(groups, positives, k=10)
    sums = [sum(p for p, f in zip(positives, folds) if f == fold) for fold in range(10)]
    assert max(sums) == 100 + 3 * 9  # a fourth would make it 136, and 4/3 of 100 are 133


def test_few_positives_go_to_the_fewest_positives_where_the_images_are_nearly_as_many():
    """P p + N n: a has fewer images than b, but many more positives."""
    groups = ["a"] * 9 + ["b"] * 10 + ["c"]
    folds = dict(zip(groups, group_folds(groups, [70, *[0] * 8, 26, *[0] * 9, 4], k=2)))
    assert folds["c"] == folds["b"] != folds["a"]


def test_a_threshold_needs_a_target_for_each_image():
    probabilities, targets = torch.rand(2, 8), torch.arange(16).view(2, 8) % 2
    assert best_threshold(probabilities, list(targets)) == best_threshold(probabilities, targets)
    with pytest.raises(ValueError):
        best_threshold(list(probabilities), list(targets)[:1])


@pytest.mark.parametrize("groups, deviation", [("aa", 0), ("ab", 0.5 ** 0.5)])
def test_the_deviation_is_that_of_a_sample_of_groups(groups, deviation):
    counts = [count_levels(torch.tensor([level], dtype=torch.uint8), torch.tensor([1]))
              for level in (255, 0)]
    assert cross_validate(counts, [0, 0], groups)["sd_dice"] == pytest.approx(deviation)
