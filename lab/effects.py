"""# How sure is a difference?

**Idea.** Two networks never score the same. Does a trick change the score more than chance does?
The unit is the group (the patient, the slide), because a result is wanted for new patients.
Everything is paired: the same group, folds, steps and seeds, with the trick and without.

    d(group) = mean over seeds of (Dice of the arm on the group - Dice of the baseline on it)
    effect   = mean over groups of d(group)

- **Interval**: the bootstrap. Draw as many groups as there are, with replacement, many times; 95 %
  of the means lie in the interval. With ten groups it covers the truth in 88 % of cases, not 95 %.
- **p**: the sign-flip test, exact up to 22 groups. If the trick did nothing, each d could as well
  have the other sign; p is the share of all 2^n choices of signs that give a mean at least as far
  from 0 as the one seen. With n groups it cannot be below 2 / 2^n.
- **Holm's correction**: of twenty useless tricks one has p < 0.05. Sort the m values of p; multiply
  the smallest by m, the next by m - 1, and so on; none may be less than the one before it.

**What this cannot know** is in docs/study.md: one network scores all groups of a fold, so p and the
intervals of *training* arms are too optimistic.

Each fold is cut at the threshold that is best on the other folds (`minseg.crossval`), separately
for each arm.

**Source.** Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, section 13.3; Fisher,
*The Design of Experiments*, 1935, section 21; Holm, *A Simple Sequentially Rejective Multiple Test
Procedure*, Scandinavian Journal of Statistics 1979.

>>> sign_flip([0.1, 0.2, 0.3, 0.4])  # all four have the same sign: 2 of 16
0.125
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

import statistics
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
EXACT = 22  # groups; with more of them, signs are drawn at random


def bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean."""
    values = np.asarray(differences, float)
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return float(low), float(high)


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p of the mean under all choices of signs; from 23 values on, under about a
    million random ones."""
    total = sum(differences)
    if len(differences) > EXACT:
        rng = np.random.default_rng(0)
        sums = sum(value * rng.choice((-1, 1), 2**20 - 1) for value in differences)
        sums = np.append(sums, total)  # the signs that were seen are one of the choices
    else:
        sums = np.zeros(1)
        for value in differences:
            sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(total) * (1 - 1e-9)))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted values, in the order given: what is at most 0.05 survives the correction."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = adjusted[i] = min(1.0, max(least, round((len(ps) - rank) * ps[i], 12)))
    return adjusted


def dice_of_groups(folds: Sequence[dict[str, list]]) -> dict[str, float]:
    """The Dice of each group, with each fold at the threshold that is best on the others. `folds`
    holds for each group of a fold 2 |A and B| and |A| + |B| at each of some increasing thresholds;
    of equally good ones, the one nearest to the middle is taken."""
    result = {}
    for fold in folds:
        others = [pairs for other in folds if other is not fold for pairs in other.values()]
        shared, total = np.sum(others, 0).T
        dice = shared / np.maximum(total, 1)
        best = min(np.flatnonzero(dice == dice.max()), key=lambda k: abs(k - len(dice) // 2))
        for group, pairs in fold.items():
            shared, total = pairs[best]
            result[group] = shared / total if total else 1.0
    return result


def effect(arm: Sequence[dict[str, float]], baseline: Sequence[dict[str, float]]) -> dict:
    """How an arm differs from the baseline. Both hold one dictionary for each seed: the Dice of
    each group. Returns the arm's mean dice; difference, low, high and p; and groups, the difference
    of each."""
    groups = {group: statistics.mean(a[group] - b[group] for a, b in zip(arm, baseline))
              for group in sorted(arm[0])}
    each = list(groups.values())
    low, high = bootstrap(each)
    return {"dice": statistics.mean(dice for seed in arm for dice in seed.values()),
            "difference": statistics.mean(each), "low": low, "high": high,
            "p": sign_flip(each), "groups": groups}
