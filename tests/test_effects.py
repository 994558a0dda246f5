import math
from itertools import product
from math import erfc, sqrt

import numpy as np
import pytest

from lab.effects import (
    added,
    bootstrap,
    dice_of_groups,
    effect,
    holm,
    luck_alone,
    luck_variance,
    sign_flip,
    student,
    student_p,
    trained_effect,
    way_effect,
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


def test_luck_is_the_spread_of_means_over_groups_fold_by_fold():
    rng, folds = np.random.default_rng(0), np.array([0, 0, 0, 1])
    runs = rng.normal(size=(40_000, 2))[:, folds]  # a network's luck, the same in its whole fold
    variance, df = luck_variance(runs, folds)
    assert variance == pytest.approx(0.75**2 + 0.25**2, rel=0.03)
    assert 40_000 < df < 2 * 40_000  # the first fold does most of it


@pytest.mark.parametrize("df, t, far", [(1, 12.706, 63.657), (3, 3.182, 5.841), (9, 2.262, 3.25),
                                        (12, 2.179, 3.055)])
def test_students_t_is_that_of_the_tables(df, t, far):
    assert student(df) == pytest.approx(t, rel=5e-4)
    assert student_p(-far, df) == pytest.approx(0.01, rel=2e-3)
    assert student_p(0, df) == 1


def test_degrees_of_freedom_are_those_of_the_part_that_matters():
    assert added((2.0, 5)) == (2.0, 5)
    assert added((1.0, 4), (1.0, 4)) == (2.0, 8)
    assert added((1.0, 4), (1e-9, 100))[1] == pytest.approx(4)
    assert added((0.0, 4), (0.0, 3)) == (0, math.inf)


def test_an_arm_that_changes_nothing_leaves_the_band_of_luck_once_in_twenty_times():
    rng, outside = np.random.default_rng(0), []
    for _ in range(1500):
        arm, baseline = study_of(rng, seeds=5, groups=0.0)
        difference = np.mean([[*seed.values()] for seed in arm]) - np.mean(
            [[*seed.values()] for seed in baseline])
        outside.append(abs(difference) > luck_alone(baseline, 2, FOLD_OF))
    assert 0.03 < np.mean(outside) < 0.07


@pytest.mark.parametrize("network", [  # next to groups that differ by 0.02
    pytest.param(0.002, marks=pytest.mark.slow), 0.01])
def test_intervals_cover_and_p_is_as_rare_as_it_says_for_new_groups_and_seeds(network):
    rng = np.random.default_rng(1)
    rows = [trained_effect(*study_of(rng, seeds=5, truth=0.03, luck=network), FOLD_OF)
            for _ in range(800)]
    assert 0.93 < np.mean([row["low"] <= 0.03 <= row["high"] for row in rows]) < 0.985
    assert np.mean([row["p"] <= 0.05 for row in rows]) > 0.7
    useless = [trained_effect(*study_of(rng, seeds=5, luck=network), FOLD_OF)["p"]
               for _ in range(1600)]
    assert 0.02 < np.mean(np.array(useless) <= 0.05) < 0.07
    assert np.mean(np.array(useless) <= 0.05 / 16) < 0.008  # what Holm asks of the best of 16


def test_a_luckier_arm_has_a_wider_interval():
    baseline = [{"a": 0.70, "b": 0.60}, {"a": 0.71, "b": 0.61}]
    calm, wild = ([{"a": 0.70 + x, "b": 0.60 + x}, {"a": 0.70 - x, "b": 0.60 - x}]
                  for x in (0.001, 0.1))
    widths = [row["high"] - row["low"] for row in
              (trained_effect(arm, baseline, {"a": 0, "b": 1}) for arm in (calm, wild))]
    assert widths[1] > 5 * widths[0]


def test_a_trained_effect_is_the_difference_of_means_and_knows_its_seeds():
    arm = [{"a": 0.8, "b": 0.6}]
    baseline = [{"a": 0.7, "b": 0.6}, {"a": 0.5, "b": 0.6}]
    row = trained_effect(arm, baseline, {"a": 0, "b": 1})
    assert row["difference"] == pytest.approx(0.1) and row["dice"] == pytest.approx(0.7)
    assert row["seeds"] == 1 and row["low"] < 0.1 < row["high"]
    # Only fold 0 has luck: its group is half of the mean, and differs by 0.2 between two seeds.
    s2 = (0.1**2 / 2)
    assert row["luck"] == pytest.approx(student(1) * sqrt(s2 * (1 / 1 + 1 / 2)))
    variance, df = added((0.1**2, 1), (s2 / 2, 1), (s2, 1))  # groups differ by 0.2, too
    assert row["high"] == pytest.approx(0.1 + student(df) * sqrt(variance))
    same = trained_effect(baseline, baseline, {"a": 0, "b": 1})
    assert same["difference"] == 0 and same["p"] == 1
    assert trained_effect(arm, arm * 2, {"a": 0, "b": 1})["p"] == 1  # nothing varies at all


def test_a_way_is_compared_on_the_same_networks():
    usual = [{"a": 0.5, "b": 0.7}, {"a": 0.9, "b": 0.3}]  # their luck cancels
    way = [{group: dice + 0.01 + 0.001 * (group == "b") for group, dice in seed.items()}
           for seed in usual]
    row = way_effect(way, usual, {"a": 0, "b": 1})
    assert row["difference"] == pytest.approx(0.0105) and row["seeds"] == 2 and "luck" not in row
    half = student(1) * 0.0005
    assert (row["low"], row["high"]) == pytest.approx((0.0105 - half, 0.0105 + half))
    moody = [{"a": 0.6, "b": 0.711}, {"a": 0.82, "b": 0.311}]  # one network gains, one loses
    assert way_effect(moody, usual, {"a": 0, "b": 1})["low"] < -0.05
