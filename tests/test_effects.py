from itertools import product
from math import erfc, sqrt

import numpy as np
import pytest

from lab import effects
from lab.effects import (
    bootstrap,
    dice_of_groups,
    effect,
    holm,
    luck_alone,
    sign_flip,
    spread,
    student,
    trained_effect,
)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_sign_flip_counts_all_choices_of_signs(n):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    means = [abs(np.mean(values * signs)) for signs in product((1, -1), repeat=n)]
    assert sign_flip(values) == pytest.approx(np.mean([m >= abs(values.mean()) - 1e-12
                                                       for m in means]))


def test_sign_flip_has_its_bounds():
    assert sign_flip([1] * 10) == 2 / 2**10  # the least there is
    assert sign_flip([0.0] * 5) == 1 and sign_flip([1, -1]) == 1
    assert sign_flip([0.1, 0.2, 0.3]) == sign_flip([-0.1, -0.2, -0.3])


def test_with_many_groups_signs_are_drawn_and_p_is_nearly_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(0, 1, 40)
    values += 2 / np.sqrt(40) * np.sqrt(np.mean(values**2)) - values.mean()
    z = values.sum() / np.sqrt((values**2).sum())
    assert sign_flip([1.0] * 30) > 0
    assert sign_flip(values) == pytest.approx(erfc(z / sqrt(2)), abs=0.005)


def test_a_useless_trick_is_significant_in_one_of_twenty_studies():
    rng = np.random.default_rng(1)
    ps = [sign_flip(rng.normal(0, 1, 8)) for _ in range(2000)]
    assert 0.03 < np.mean(np.array(ps) <= 0.05) < 0.06


def test_holm_is_the_step_down_rule():
    ps = [0.04, 0.001, 0.03, 0.012]
    wanted = {0.001: 0.004, 0.012: 0.036, 0.03: 0.06, 0.04: 0.06}
    assert holm(ps) == pytest.approx([wanted[p] for p in ps])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_interval_is_that_of_the_means_of_resamples():
    rng = np.random.default_rng(2)
    values = rng.normal(0.5, 2, 60)
    low, high = bootstrap(values)
    error = values.std() / np.sqrt(60)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert bootstrap(values) == (low, high) and bootstrap([3, 3]) == (3, 3)


def test_each_fold_is_cut_where_the_others_would_have_it():
    first = {"a": [[0, 10], [8, 10], [2, 10]], "b": [[0, 0], [0, 0], [0, 0]]}  # best at the second
    second = {"c": [[9, 10], [4, 10], [0, 10]]}  # best at the first
    assert dice_of_groups([first, second]) == {"a": 0.0, "b": 1.0, "c": 0.4}


def test_of_equally_good_thresholds_the_middle_one_is_taken():
    flat, steep = {"a": [[5, 10]] * 5}, {"b": [[1, 10], [2, 10], [3, 10], [4, 10], [5, 10]]}
    assert dice_of_groups([flat, steep])["b"] == 0.3


def test_an_effect_is_the_mean_over_groups_of_the_mean_over_seeds():
    baseline = [{"a": 0.5, "b": 0.6}, {"a": 0.7, "b": 0.6}]
    found = effect([{"a": 0.7, "b": 0.5}, {"a": 0.8, "b": 0.7}], baseline)
    assert found["groups"] == pytest.approx({"a": 0.15, "b": 0.0})
    assert found["difference"] == pytest.approx(0.075)
    assert found["dice"] == pytest.approx(0.675) and found["p"] == 1.0
    assert (found["low"], found["high"]) == pytest.approx((0.0, 0.15))
    same = effect(baseline, baseline)
    assert same["difference"] == same["low"] == same["high"] == 0 and same["p"] == 1


FOLD_OF = {group: i % 3 for i, group in enumerate("abcdefghij")}


def study_of(rng, seeds, truth=0.0, luck=0.01, groups=0.02):
    """Dice of ten groups in three folds: a network's luck moves all groups of its fold. The arm has
    two seeds, and its effect differs from group to group."""
    base = rng.uniform(0.7, 0.9, 10)

    def seed(shift):
        moved = rng.normal(0, luck, 3)
        return {group: base[i] + shift[i] + moved[FOLD_OF[group]] + rng.normal(0, luck / 2)
                for i, group in enumerate(FOLD_OF)}

    shift = truth + rng.normal(0, groups, 10)
    return [seed(shift) for _ in range(2)], [seed(np.zeros(10)) for _ in range(seeds)]


def test_the_spread_is_that_of_means_over_groups_fold_by_fold():
    rng, folds = np.random.default_rng(0), np.array([0, 0, 0, 1])
    runs = rng.normal(size=(40_000, 2))[:, folds]  # a network's luck, the same in its whole fold
    assert spread(runs, folds) == pytest.approx(sqrt(0.75**2 + 0.25**2), rel=0.02)


@pytest.mark.parametrize("df, t", [(3, 3.182), (6, 2.447), (12, 2.179), (30, 2.042)])
def test_students_t_is_that_of_the_tables(df, t):
    assert student(df) == pytest.approx(t, rel=0.008 if df == 3 else 7e-4)


def test_an_arm_that_changes_nothing_leaves_the_band_of_luck_once_in_twenty_times():
    rng, folds, outside = np.random.default_rng(0), np.array([*FOLD_OF.values()]), []
    for _ in range(1500):
        arm, baseline = ([[*seed.values()] for seed in runs] for runs in
                         study_of(rng, seeds=5, groups=0.0))
        difference = np.mean(arm) - np.mean(baseline)
        outside.append(abs(difference) > luck_alone(np.array(baseline), folds, 2))
    assert 0.03 < np.mean(outside) < 0.07


def test_the_interval_covers_the_truth_for_new_groups_and_seeds(monkeypatch):
    monkeypatch.setattr(effects, "RESAMPLES", 400)
    rng, covered, certain = np.random.default_rng(1), [], []
    for _ in range(400):
        row = trained_effect(*study_of(rng, seeds=5, truth=0.03), FOLD_OF)
        covered.append(row["low"] <= 0.03 <= row["high"])
        certain.append(row["p"] <= 0.05)
    assert 0.88 < np.mean(covered) < 0.99
    assert np.mean(certain) > 0.6
    useless = [trained_effect(*study_of(rng, seeds=5), FOLD_OF)["p"] <= 0.05 for _ in range(400)]
    assert np.mean(useless) < 0.12


def test_a_trained_effect_is_the_difference_of_means_and_knows_its_seeds():
    arm = [{"a": 0.8, "b": 0.6}]
    baseline = [{"a": 0.7, "b": 0.6}, {"a": 0.5, "b": 0.6}]
    row = trained_effect(arm, baseline, {"a": 0, "b": 1})
    assert row["groups"] == pytest.approx({"a": 0.2, "b": 0.0})
    assert row["difference"] == pytest.approx(0.1) and row["dice"] == pytest.approx(0.7)
    assert row["seeds"] == 1 and row["low"] < 0.1 < row["high"]
    # Only fold 0 has luck: its group is half of the mean, and differs by 0.2 between two seeds.
    assert row["luck"] == pytest.approx(student(2) * 0.1 * sqrt(0.5) * sqrt(1 / 1 + 1 / 2))
    same = trained_effect(baseline, baseline, {"a": 0, "b": 1})
    assert same["difference"] == 0 and same["p"] == 1
