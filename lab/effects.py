"""# How sure is a difference?

**Idea.** Two networks never score the same. Does a trick change the score more than chance does?
The unit is the group (the patient, the slide), because a result is wanted for new patients.

    d(group) = the arm's Dice on the group, mean over its seeds, minus the baseline's
    effect   = mean over the G groups of d(group)

Chance comes in twice.

- **Which groups.** Other patients would have given another mean. Its variance is that of d over
  groups, divided by G. It has G - 1 degrees of freedom.
- **Luck in training.** One network scores all groups of a fold, so its luck moves them together.
  That shows only between seeds: tau^2 is the variance over seeds of the fold's mean, less what
  single groups bring into it, averaged over the folds, and at least 0. Its degrees of freedom are
  K (n - 1), with K folds and n seeds. Arm and baseline have a tau^2 each.

The variance of d over groups already holds the noise of single groups, and that part of a fold's
luck which sets the folds apart. So only what is missing is added, and nothing counts twice:

    V = var(d) / G + c (tau_arm^2 / n + tau_baseline^2 / m)
    c = sum of w_k^2 - (1 - sum of w_k^2) / (G - 1), where fold k has the share w_k of the groups

(c is 0 where each fold has one group.) V has as many degrees of freedom as Satterthwaite's formula
gives the sum. From that follow the interval, effect ± t sqrt(V), and p, the probability of a t as
large as the one seen. All pages use this one function, `effect`, and three cases differ in tau^2:

- **Pairs**, for ways to predict with the same networks and for the race, seed by seed: tau^2 / n,
  of the differences of each pair.
- **An arm with one seed** borrows the baseline's tau^2.
- **One seed on both sides**: luck cannot be told from groups, so the fold is the unit. With d_k,
  the mean of each fold, and S, the sum of w_k^2, V is S times the sum of w_k^2 (d_k - effect)^2,
  divided by the sum of w_k^2 (1 - 2 w_k + S); for equal folds, var(d_k) / K. It has K - 1 degrees
  of freedom: with three folds, t is 4.3.

Where images count, not groups, the mean has weights v instead of 1 / G. The first term of V becomes
var(d) times Q, the sum of v^2; w_k is the fold's share of the images; and with its share u_k of the
groups, c = sum of w_k^2 - Q (1 - sum of u_k^2) G / (G - 1), and at least 0.

**Luck alone**: other seeds by themselves stay this close to 0, 19 times in 20, on the same groups:
t s sqrt(1/n + 1/m), where s^2 is the variance over seeds of the mean over groups, added up over the
folds. An arrow on a page needs more than that, and more than the same with the arm's own s^2.

**How often is the interval right?** In simulations with normal effects of groups and normal luck,
in five worlds that differ by how large luck, the noise of single groups and the groups' own effects
are:

| intervals | cover |
|---|---|
| study: 2 seeds against 5; 10 groups in 3 folds | 93.6 to 95.7 % |
| the same, an arm with 3 or 20 times the variance of luck | 93.6 to 95.7 % |
| the same, an arm with 1 seed | 94.0 to 94.5 % |
| ways to predict: pairs, 2 seeds | 92.1 to 95.2 % |
| race: pairs, 3 seeds; 10 groups | 93.9 to 94.6 % |
| race, groups not tuned on: 5 groups | 94.6 to 95.6 % |
| log: pairs, 3 seeds; 15 groups | 94.0 to 94.8 % |
| 1 seed on both sides; 5, 10 or 18 groups in 3 folds | 94.3 to 96.5 % |
| image by image: 42, 21, 15, 12, 6, 4, 3, 2, 1 and 1 | 93.6 to 97.0 % |

With the variances of luck, noise and groups that each row of the study and of the race shows, it is
93 to 98 % (image by image up to 98.5 %). `tests/test_effects.py` has the simulations. Three things
break them.

- **Skewed effects**, exponential and large next to luck: 91 %, with five groups 89 %.
- **A group unlike the others.** No formula knows how often new data have one. With the groups of
  nuclei drawn anew from themselves, rows that hang on one group have 64 to 91 %.
- **A borrowed tau^2.** An arm of one seed with 20 times the baseline's: 64 to 92 %. No page has it.

**Why not a bootstrap?** Its percentiles are too close together: with five groups they cover 83 %,
with ten 90 %, and the luck of networks is not in them.

**Holm's correction**: of twenty useless tricks, one has p < 0.05 on average. Sort the m values of
p; multiply the smallest by m, the next by m - 1, and so on; none may be less than the one before
it.

**What this cannot know**: whether the groups of a data set are like those of yours, and what a
longer training, another encoder or another learning rate would have done to arm and baseline. In
the study, arm and baseline have some seeds in common (the order of tiles, the augmentation), which
is not used.

Each fold is cut at the threshold that is best on the other folds (`minseg.crossval`), separately
for each arm.

**Source.** Satterthwaite, *An Approximate Distribution of Estimates of Variance Components*,
Biometrics Bulletin 1946; Welch, *The Generalization of Student's Problem when Several Different
Population Variances are Involved*, Biometrika 1947; Holm, *A Simple Sequentially Rejective Multiple
Test Procedure*, Scandinavian Journal of Statistics 1979.

>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
>>> [round(student(df), 2) for df in (1, 2, 12)]
[12.71, 4.3, 2.18]
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def angles(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles from 0 to 90 degrees, and the probability that |t| is at most sqrt(df) tan(angle): the
    density of the angle is proportional to cos(angle)^(df - 1)."""
    angle = np.linspace(0, np.pi / 2, 4001)
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


def added(*variances: tuple[float, float]) -> tuple[float, float]:
    """The sum of variances, and its degrees of freedom by Satterthwaite's formula; each variance
    comes with its own."""
    some = [(variance, df) for variance, df in variances if variance > 0]
    total = sum(variance for variance, _ in some)
    return total, total**2 / sum(variance**2 / df for variance, df in some) if some else math.inf


def as_arrays(fold_of: Mapping[str, int], *arms: Sequence[dict[str, float]]) -> list[np.ndarray]:
    """The fold of each group, (groups,), and the Dice of each arm, (seeds, groups)."""
    groups = sorted(fold_of)
    return [np.array([fold_of[group] for group in groups]),
            *(np.array([[seed[group] for group in groups] for seed in arm]) for arm in arms)]


def luck_variance(runs: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """s^2, the variance over seeds of the mean over groups, with its degrees of freedom. `runs`
    (seeds, groups): Dice, two seeds or more; `folds` (groups,): the fold of each group."""
    seeds, groups = runs.shape
    return added(*(((runs[:, folds == fold].sum(1) / groups).var(ddof=1), seeds - 1)
                   for fold in np.unique(folds)))


def luck_alone(baseline: Sequence[dict[str, float]], seeds: int,
               fold_of: Mapping[str, int]) -> float:
    """How far from the baseline an arm of `seeds` seeds that changes nothing is at most, 19 times
    in 20."""
    folds, runs = as_arrays(fold_of, baseline)
    variance, df = luck_variance(runs, folds)
    return student(df) * (variance * (1 / seeds + 1 / len(runs))) ** 0.5 if variance else 0.0


def luck_of_both(arm: Sequence[dict[str, float]], baseline: Sequence[dict[str, float]],
                 fold_of: Mapping[str, int]) -> float:
    """`luck_alone`, or more where the arm's own luck is larger than the baseline's."""
    least = luck_alone(baseline, len(arm), fold_of)
    if len(arm) == 1:
        return least
    folds, *both = as_arrays(fold_of, arm, baseline)
    found = [(len(runs), *luck_variance(runs, folds)) for runs in both]
    variance, df = added(*((variance / seeds, df) for seeds, variance, df in found))
    return max(least, student(df) * variance**0.5) if variance else 0.0


def shared_luck(runs: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> tuple[float, float]:
    """tau^2, the variance over seeds of what the groups of a fold have in common, with its degrees
    of freedom: that of the fold's mean, less what single groups bring into it. `runs` has two seeds
    or more."""
    seeds, spread, share, rest, df = len(runs), [], [], 0.0, 0
    for fold in np.unique(folds):
        part, weight = runs[:, folds == fold], weights[folds == fold]
        spread.append((part @ weight / weight.sum()).var(ddof=1))
        share.append((weight**2).sum() / weight.sum() ** 2)
        alone = part - part.mean(1, keepdims=True)
        rest += ((alone - alone.mean(0)) ** 2).sum()
        df += (seeds - 1) * (len(weight) - 1)
    single = rest / df if df else 0.0
    return max(0.0, float(np.mean(spread) - single * np.mean(share))), len(spread) * (seeds - 1)


def variance_of(ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray, folds: np.ndarray,
                paired: bool) -> tuple[float, float]:
    """V, the variance of the effect, with its degrees of freedom."""
    each, n, m, groups = ours.mean(0) - theirs.mean(0), len(ours), len(theirs), len(weights)
    mask = folds == np.unique(folds)[:, None]  # (folds, groups)
    in_fold = mask @ weights
    square, fold_square = weights @ weights, in_fold @ in_fold
    if n == m == 1:
        parts = mask @ (weights * (each - each @ weights))
        scale = fold_square / (in_fold**2 @ (1 - 2 * in_fold + fold_square))
        return float(scale * parts @ parts), len(mask) - 1
    among = square * each.var(ddof=1)
    held = square * (1 - np.square(mask.mean(1)).sum()) * groups / (groups - 1)
    missing = max(0.0, fold_square - held)

    def luck(runs: np.ndarray, share: float) -> tuple[float, float]:
        variance, df = shared_luck(runs, weights, folds)
        return missing * variance * share, df

    if paired:
        lucks = [luck(ours - theirs, 1 / n)]
    elif n == 1:
        lucks = [luck(theirs, 1 + 1 / m)]
    else:
        lucks = [luck(ours, 1 / n), luck(theirs, 1 / m)]
    return added((among, groups - 1), *lucks)


def effect(arm: Sequence[dict[str, float]], baseline: Sequence[dict[str, float]],
           fold_of: Mapping[str, int], paired: bool = False,
           weights: Mapping[str, float] | None = None) -> dict:
    """How an arm differs from the baseline. Both hold one dictionary for each seed: the Dice of
    each group. `fold_of`: the fold of each group; others are left out. `paired`: the arm's seeds
    belong to the baseline's, one by one. `weights`: of the groups, for instance their images
    (default: all alike). Returns the arm's mean dice and the number of its seeds; difference, low,
    high, p, and df, the degrees of freedom."""
    folds, ours, theirs = as_arrays(fold_of, arm, baseline)
    weight = np.array([weights[group] if weights else 1.0 for group in sorted(fold_of)])
    weight = weight / weight.sum()
    difference = float((ours.mean(0) - theirs.mean(0)) @ weight)
    variance, df = variance_of(ours, theirs, weight, folds, paired)
    half = student(df) * variance**0.5 if variance else 0.0
    p = student_p(difference / variance**0.5, df) if variance else float(difference == 0)
    return {"dice": float((ours @ weight).mean()), "seeds": len(ours), "difference": difference,
            "low": difference - half, "high": difference + half, "p": p,
            "df": round(df, 2) if variance else None}
