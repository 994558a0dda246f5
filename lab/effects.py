"""# How sure is a difference?

**Idea.** Two networks never score the same. Does a trick change the score more than chance does?
The unit is the group (the patient, the slide), because a result is wanted for new patients.

    d(group) = the arm's Dice on the group, mean over its seeds, minus the baseline's
    effect   = mean over the G groups of d(group)

Chance comes in twice, and both variances add up.

- **Which groups.** Other patients would have given another mean. Its variance is that of d over
  groups, divided by G.
- **Luck in training.** One network scores all groups of a fold, so its luck moves them together. It
  shows only between seeds: s^2 is the variance over seeds of a fold's part of the mean, added up
  over the folds, since each has its own networks. With n seeds of the arm and m of the baseline the
  effect gets s^2 / n + s^2 / m. The baseline has more seeds, so s^2 is its own; for the arm its own
  s^2 is taken where that is larger.

What follows from that (`trained_effect`):

- **Luck alone**: other seeds by themselves stay this close to 0, 19 times in 20, on the same
  groups: t s sqrt(1/n + 1/m).
- **Interval** and **p**, for new groups and new seeds: effect ± t sqrt(sum of the variances), and
  the probability of a t as large as the one seen. Student's t has as many degrees of freedom as
  Satterthwaite's formula gives the sum: those of the part that matters most.

Another way to predict is compared on the same networks (`way_effect`). Their luck cancels, but
another network may gain more or less, so the variance over seeds of the difference counts.

**Why not a bootstrap?** The hierarchical bootstrap (draw groups, and luck seed by seed) has too
short tails with ten groups and five seeds. Holm's correction asks p = 0.003 of the best of 16 arms,
which useless arms should reach in 0.3 % of cases: in simulations they did in 0.5 to 1.9 %, and with
t in 0.1 to 0.5 %.

**Holm's correction**: of twenty useless tricks, one has p < 0.05 on average. Sort the m values of
p; multiply the smallest by m, the next by m - 1, and so on; none may be less than the one before
it.

**What this cannot know**: whether the groups of a data set are like those of yours, and what a
longer training, another encoder or another learning rate would have done to arm and baseline. Arm
and baseline have some seeds in common (the order of tiles, the augmentation), which is not used.

Each fold is cut at the threshold that is best on the other folds (`minseg.crossval`), separately
for each arm.

**Source.** Satterthwaite, *An Approximate Distribution of Estimates of Variance Components*,
Biometrics Bulletin 1946; Holm, *A Simple Sequentially Rejective Multiple Test Procedure*,
Scandinavian Journal of Statistics 1979; Efron and Tibshirani, *An Introduction to the Bootstrap*,
1993, section 13.3; Fisher, *The Design of Experiments*, 1935, section 21.

>>> sign_flip([0.1, 0.2, 0.3, 0.4])  # all four have the same sign: 2 of 16
0.125
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
>>> [round(student(df), 2) for df in (1, 2, 12)]
[12.71, 4.3, 2.18]
"""

import math
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


def angles(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles from 0 to 90 degrees, and the probability that |t| is at most sqrt(df) tan(angle): the
    density of the angle is proportional to cos(angle)^(df - 1)."""
    angle = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (df - 1)
    mass = np.cumsum(density) - density / 2 - density[0] / 2
    return angle, mass / mass[-1]


def student(df: float) -> float:
    """Student's t for 19 times in 20, two-sided."""
    angle, mass = angles(df)
    return float(df**0.5 * np.tan(np.interp(0.95, mass, angle)))


def student_p(t: float, df: float) -> float:
    """The two-sided p of Student's t."""
    angle, mass = angles(df)
    return float(1 - np.interp(np.arctan(abs(t) / df**0.5), angle, mass))


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
    """For `lab.race`, whose contestants are compared seed by seed: how an arm differs from the
    baseline. Both hold one dictionary for each seed: the Dice of each group. Returns the arm's mean
    dice; difference, low, high and p; and groups, the difference of each.

    The interval is a bootstrap over groups. For p: if nothing differed, each difference could as
    well have the other sign; p is the share of all choices of signs that give a mean at least as
    far from 0 as the one seen. Neither knows of luck that moves all groups of a fold."""
    groups = {group: statistics.mean(a[group] - b[group] for a, b in zip(arm, baseline))
              for group in sorted(arm[0])}
    each = list(groups.values())
    low, high = bootstrap(each)
    return {"dice": statistics.mean(dice for seed in arm for dice in seed.values()),
            "difference": statistics.mean(each), "low": low, "high": high,
            "p": sign_flip(each), "groups": groups}


def added(*variances: tuple[float, float]) -> tuple[float, float]:
    """The sum of variances, and its degrees of freedom by Satterthwaite's formula; each variance
    comes with its own."""
    some = [(variance, df) for variance, df in variances if variance > 0]
    total = sum(variance for variance, _ in some)
    return total, total**2 / sum(variance**2 / df for variance, df in some) if some else math.inf


def luck_variance(runs: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """s^2, the variance over seeds of the mean over groups, with its degrees of freedom. `runs`
    (seeds, groups): Dice, two seeds or more; `folds` (groups,): the fold of each group."""
    seeds, groups = runs.shape
    return added(*(((runs[:, folds == fold].sum(1) / groups).var(ddof=1), seeds - 1)
                   for fold in np.unique(folds)))


def judged(each: np.ndarray, *variances: tuple[float, float]) -> dict:
    """The effect, its interval and p, from the difference of each group and the variances of luck
    that are added to that of the groups."""
    difference = float(each.mean())
    variance, df = added((each.var(ddof=1) / len(each), len(each) - 1), *variances)
    if not variance:
        return {"difference": difference, "low": difference, "high": difference,
                "p": float(difference == 0)}
    half = student(df) * variance**0.5
    return {"difference": difference, "low": difference - half, "high": difference + half,
            "p": student_p(difference / variance**0.5, df)}


def as_arrays(fold_of: Mapping[str, int], *arms: Sequence[dict[str, float]]) -> list[np.ndarray]:
    """The fold of each group, (groups,), and the Dice of each arm, (seeds, groups)."""
    groups = sorted(fold_of)
    return [np.array([fold_of[group] for group in groups]),
            *(np.array([[seed[group] for group in groups] for seed in arm]) for arm in arms)]


def luck_alone(baseline: Sequence[dict[str, float]], seeds: int,
               fold_of: Mapping[str, int]) -> float:
    """How far from the baseline an arm of `seeds` seeds that changes nothing is at most, 19 times
    in 20."""
    folds, runs = as_arrays(fold_of, baseline)
    variance, df = luck_variance(runs, folds)
    return student(df) * (variance * (1 / seeds + 1 / len(runs))) ** 0.5 if variance else 0.0


def trained_effect(arm: Sequence[dict[str, float]], baseline: Sequence[dict[str, float]],
                   fold_of: Mapping[str, int]) -> dict:
    """How an arm that was trained anew differs from the baseline. Both hold one dictionary for each
    seed: the Dice of each group; the baseline has two seeds or more. `fold_of`: the fold of each
    group. Returns the arm's mean dice and the number of its seeds; difference, low, high and p; and
    luck, which is `luck_alone`."""
    folds, ours, theirs = as_arrays(fold_of, arm, baseline)
    usual = luck_variance(theirs, folds)
    own = max(usual, luck_variance(ours, folds)) if len(ours) > 1 else usual
    return {"dice": float(ours.mean()), "seeds": len(ours),
            **judged(ours.mean(0) - theirs.mean(0), (usual[0] / len(theirs), usual[1]),
                     (own[0] / len(ours), own[1])),
            "luck": luck_alone(baseline, len(ours), fold_of)}


def way_effect(way: Sequence[dict[str, float]], usual: Sequence[dict[str, float]],
               fold_of: Mapping[str, int]) -> dict:
    """How another way to predict differs from the usual one, on the same networks, seed by seed;
    like `trained_effect`, without luck alone."""
    folds, ours, theirs = as_arrays(fold_of, way, usual)
    gains = ours - theirs
    variances = []
    if len(gains) > 1:
        variance, df = luck_variance(gains, folds)
        variances = [(variance / len(gains), df)]
    return {"dice": float(ours.mean()), "seeds": len(ours), **judged(gains.mean(0), *variances)}
