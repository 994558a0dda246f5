"""# How sure is a difference?

**Idea.** Two networks never score the same. Does a trick change the score more than chance does?
The unit is the group (the patient, the slide), because a result is wanted for new patients.

    d(group) = the arm's Dice on the group, mean over its seeds, minus the baseline's
    effect   = mean over groups of d(group)

Chance comes in twice.

- **Which groups.** Other patients would have given another mean. The bootstrap draws as many groups
  as there are, with replacement, many times, and looks how far the means spread.
- **Luck in training.** One network scores all groups of a fold, so its luck moves them together,
  and no drawing of groups shows that. The baseline is therefore trained with five seeds. Its Dice
  minus its mean over the seeds, fold by fold, is a sample of luck.

What follows from that for an arm that was trained anew (`trained_effect`):

- **Luck alone**: how far from 0 an arm that changes nothing would be, 19 times in 20. With s the
  standard deviation over seeds of the mean Dice, n seeds of the arm and m of the baseline, it is
  t s sqrt(1/n + 1/m), where t is Student's for the seeds and folds that s was estimated from.
- **Interval**: a hierarchical bootstrap. Each draw takes groups with replacement, and adds to arm
  and baseline luck drawn from the sample, seed by seed and fold by fold. If the arm's own seeds
  differ more than the baseline's, its luck is made larger by that factor. 95 % of the draws lie in
  the interval. For new patients *and* new seeds.
- **p**: the share of draws that lie as far from the effect as the effect lies from 0. It is
  approximate: below 1 % it may be wrong by a factor of two or more.

Another way to predict is compared on the same networks, so there is no luck (`effect`):

- **Interval**: the bootstrap over groups. With ten it covers the truth in 88 % of cases, not 95 %.
- **p**: the sign-flip test, exact up to 22 groups. If the trick did nothing, each d could as well
  have the other sign; p is the share of all 2^n choices of signs that give a mean at least as far
  from 0 as the one seen. With n groups it cannot be below 2 / 2^n.

**Holm's correction**: of twenty useless tricks one has p < 0.05. Sort the m values of p; multiply
the smallest by m, the next by m - 1, and so on; none may be less than the one before it.

**What this cannot know**: whether the groups of a data set are like those of yours, and what a
longer training, another encoder or another learning rate would have done to arm and baseline.

Each fold is cut at the threshold that is best on the other folds (`minseg.crossval`), separately
for each arm.

**Source.** Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, sections 8.3 and 13.3;
Fisher, *The Design of Experiments*, 1935, section 21; Holm, *A Simple Sequentially Rejective
Multiple Test Procedure*, Scandinavian Journal of Statistics 1979; Student's t from the normal
quantile: Abramowitz and Stegun, *Handbook of Mathematical Functions*, 26.7.5.

>>> sign_flip([0.1, 0.2, 0.3, 0.4])  # all four have the same sign: 2 of 16
0.125
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
>>> [round(student(df), 2) for df in (3, 12, 1000)]
[3.16, 2.18, 1.96]
"""

import statistics
from collections.abc import Mapping, Sequence

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


def student(df: int) -> float:
    """Student's t for 19 times in 20, two-sided, from the normal law's 1.96. With 3 degrees of
    freedom it is 0.7 % too small, from 6 on less than 0.1 %."""
    z = statistics.NormalDist().inv_cdf(0.975)
    return (z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3))


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


def spread(runs: np.ndarray, folds: np.ndarray) -> float:
    """The standard deviation over seeds of the mean over groups, from `runs` (seeds, groups). The
    folds are networks of their own, so their variances add up."""
    number = runs.shape[1]
    return sum((runs[:, folds == fold].sum(1) / number).var(ddof=1)
               for fold in np.unique(folds)) ** 0.5


def luck_alone(baseline: np.ndarray, folds: np.ndarray, seeds: int) -> float:
    """How far from the baseline, (seeds, groups), an arm of `seeds` seeds that changes nothing is
    at most, 19 times in 20. `folds` (groups,): the fold of each group."""
    df = (len(baseline) - 1) * len(np.unique(folds))
    return student(df) * spread(baseline, folds) * (1 / seeds + 1 / len(baseline)) ** 0.5


def drawn_luck(runs: np.ndarray, folds: np.ndarray, seeds: int,
               rng: np.random.Generator) -> np.ndarray:
    """Luck of `seeds` networks for each fold, the mean of them, as `runs` (seeds, groups) sample
    it: (RESAMPLES, groups)."""
    luck = (runs - runs.mean(0)) * (len(runs) / (len(runs) - 1)) ** 0.5
    result = np.empty((RESAMPLES, runs.shape[1]))
    for fold in np.unique(folds):
        which = rng.integers(len(runs), size=(RESAMPLES, seeds))
        result[:, folds == fold] = luck[which][..., folds == fold].mean(1)
    return result


def trained_effect(arm: Sequence[dict[str, float]], baseline: Sequence[dict[str, float]],
                   fold_of: Mapping[str, int]) -> dict:
    """How an arm that was trained anew differs from the baseline. Both hold one dictionary for each
    seed: the Dice of each group; the baseline has two seeds or more. `fold_of`: the fold of each
    group. Returns the arm's mean dice and its seeds; difference, low, high and p; luck, which is
    `luck_alone`; and groups, the difference of each."""
    groups = sorted(fold_of)
    ours, theirs = (np.array([[seed[group] for group in groups] for seed in runs])
                    for runs in (arm, baseline))
    folds, rng = np.array([fold_of[group] for group in groups]), np.random.default_rng(0)
    each = ours.mean(0) - theirs.mean(0)
    usual = spread(theirs, folds)
    factor = max(1.0, spread(ours, folds) / usual) if len(ours) > 1 and usual else 1.0
    luck = (factor * drawn_luck(theirs, folds, len(ours), rng)
            - drawn_luck(theirs, folds, len(theirs), rng))
    which = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
    draws = (each + luck)[np.arange(RESAMPLES)[:, None], which].mean(1)
    difference = float(each.mean())
    low, high = np.percentile(draws, (2.5, 97.5)).tolist()
    as_far = (np.abs(draws - difference) >= abs(difference) * (1 - 1e-9)).sum()
    return {"dice": float(ours.mean()), "seeds": len(ours), "difference": difference, "low": low,
            "high": high, "p": float((1 + as_far) / (1 + RESAMPLES)),
            "luck": luck_alone(theirs, folds, len(ours)),
            "groups": dict(zip(groups, each.tolist()))}
