from itertools import product
from math import erfc, sqrt

import numpy as np
import pytest

from lab.effects import bootstrap, dice_of_groups, effect, holm, sign_flip


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
