"""# How sure is a difference?

**Idea.** Two networks never score the same: the question is whether a trick moves the score more
than chance does. The unit is the group (the patient, the slide): new patients are what a result is
wanted for, and two tiles of one of them are not two answers. Everything is paired: the same
group, folds, steps and seeds, with the trick and without.

    d_u = mean over seeds of (Dice of the arm on group u - Dice of the baseline on group u)
    effect = mean over groups of d_u

- **Interval**: the bootstrap. Draw as many groups as there are, with replacement, again and again;
  95 % of the means lie in it. With ten groups it covers the truth 88 times in a hundred, not 95.
- **p**: the sign-flip test, exact up to 22 groups. If the trick did nothing, each d_u could as well
  have had the other sign; p is the share of all 2^n choices of signs that give a mean as far from 0
  as the one seen. With n groups it is never below 2 / 2^n.
- **Holm**: of twenty useless tricks one has p < 0.05. Sort the m values of p; the smallest counts m
  times, the next m - 1 times, and so on; none counts less than the one before it.

**What they do not know.** Groups of one fold are scored by the same networks, so what is luck in
one network's training moves them together, and intervals and p of *training* arms are too good: in
simulations where half the noise is the network's, p <= 0.05 came in 20 % of useless tricks, not in
5 %. (Ways to predict are compared on the same networks: there p is right.) So look at the row that
compares the baseline with itself at another seed, and believe what is much larger.

Each fold is cut at the threshold that is best on the other folds (`minseg.crossval`), arm by arm.
Where networks are not trained for long, that threshold may not suit the fold; `at_own_cut` tells
how much of a difference is left when each fold is cut at its own best one, arm and baseline alike.

**Source.** Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, section 13.3; Fisher,
*The Design of Experiments*, 1935, section 21; Holm, *A Simple Sequentially Rejective Multiple Test
Procedure*, Scandinavian Journal of Statistics 1979.

>>> sign_flip([0.1, 0.2, 0.3, 0.4])  # all four of one sign: 2 of 16
0.125
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

import statistics
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
EXACT = 22  # groups; with more of them signs are drawn


def bootstrap(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean."""
    values = np.asarray(differences, float)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p of the mean under all choices of signs; from 23 values on, under a million
    drawn ones."""
    values = np.asarray(differences, float)
    if len(values) > EXACT:
        rng, sums = np.random.default_rng(0), np.zeros(2**20 - 1)
        for value in values:
            sums += value * (rng.integers(0, 2, len(sums)) * 2 - 1)
        sums = np.append(sums, values.sum())  # the one that was seen is one of them
    else:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= abs(values.sum()) * (1 - 1e-9)))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted values, in the order given: what lies at or below 0.05 survives."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = adjusted[i] = min(1.0, max(least, round((len(ps) - rank) * ps[i], 12)))
    return adjusted


def dice_of_groups(folds: Sequence[dict[str, list]], own_cut: bool = False) -> dict[str, float]:
    """The Dice of each group, each fold at the threshold that is best on the others, or, with
    `own_cut`, on itself. One entry a fold: for each group 2 |A and B| and |A| + |B| at each of some
    thresholds, which rise; of equally good ones the one nearest the middle of all is taken."""
    halves = [{group: np.array(pairs) for group, pairs in fold.items()} for fold in folds]
    found = {}
    for i, fold in enumerate(halves):
        shared, total = sum(pairs for j, other in enumerate(halves) if (j == i) == own_cut
                            for pairs in other.values()).T
        dice = shared / np.maximum(total, 1)
        best = min(np.flatnonzero(dice == dice.max()), key=lambda k: abs(k - len(dice) // 2))
        for group, pairs in fold.items():
            shared, total = pairs[best].tolist()
            found[group] = shared / total if total else 1.0
    return found


def effect(arm: Sequence[dict[str, float]], baseline: Sequence[dict[str, float]]) -> dict:
    """How the arm differs from the baseline. One entry a seed in each: the Dice of each group.
    Returns dice (of the arm: mean over groups and seeds), difference, low, high, p, and groups, the
    difference of each."""
    groups = {group: statistics.mean(a[group] - b[group] for a, b in zip(arm, baseline))
              for group in sorted(arm[0])}
    each = list(groups.values())
    low, high = bootstrap(each)
    return {"dice": statistics.mean(dice for seed in arm for dice in seed.values()),
            "difference": statistics.mean(each), "low": low, "high": high,
            "p": sign_flip(each), "groups": groups}
