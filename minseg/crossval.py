"""# Local cross-validation

**In `tutorial.py`**, `dice = [dice_score(p[0] > 0.5, masks[8]) for p in (before, after)]` scores
one slide, at a threshold of 0.5. Here every slide gets its turn, and the threshold is chosen.

**Idea.** Hold out some images, train on the others, and score the held-out ones; trust that number,
not a public ranking. It is only as good as the split is honest: two pieces of one kidney look
alike, so training on one and scoring on the other measures memory. The unit that is held out is
therefore the *group* (the patient), never the image.

    fold(image) = f(group(image)),      positive pixels and images spread evenly over the folds

Both matter: a fold without healthy patients is scored on other slides than the rest, and the
network that holds all of them out has never seen one. Groups are assigned to folds one by one, the
one with the most positive pixels first. With p and n, the group's shares of all positive pixels and
of all images, and P and N, those that one of k folds has so far:

    p > 1/(10k)     to the fold of the smallest P (then N), the greedy rule for partitions
    p <= 1/(10k)    to the fold of the smallest P p + N n, among those where P + p stays
                    within the bound, 4/3 max(1/k, the largest p of all groups)

So no fold has more than 4/3 of the positive pixels that the largest fold of the best split has. The
best can still be uneven: a patient with most of the positive pixels makes one fold larger than all
others together. Groups without any positive pixel go where the fewest images are.

![Images of nine patients in three folds](../docs/figures/folds.png)

*Top: all images; below, enlarged: the three folds. Each letter is a patient.*

**The threshold** turns probabilities into a mask. A threshold tuned and scored on the same images
overstates the score, so choose it on images that the score does not use.

    t* = argmax_t Dice(p >= t, target),     Dice (`minseg.dice`) of the images it is chosen on

So every image is predicted once, by the network that did not see its group, and each fold is
thresholded at the value that is best on the images of all *other* folds. (This is not nested
cross-validation: the networks that predicted the other folds were trained on this one, so its
labels do influence its threshold. But only one number can leak, shared by millions of pixels.) Then

    pooled = Dice over the pixels of all images      group = Dice over those of one group
    mean and standard deviation: over the groups, because new patients are new groups

The standard deviation tells how much patients differ, not how uncertain the mean is. For that,
divide it by the square root of the number of groups, and even this is too small: the groups of one
fold share a network, so their scores are not independent.

**Shapes.** For each image only two histograms over 256 levels of probability are kept: of all its
pixels and of its positive pixels, (2, 256). The Dice at every threshold follows from them.

**Measured.** Seed noise moves this score, too: 19 of 20 repeats of the baseline with other seeds
differ by less than 0.013 on nuclei and 0.025 on synthetic slides ([how](../docs/study.md)).

**Source.** Graham, *Bounds on Multiprocessing Timing Anomalies*, SIAM J. Appl. Math. 1969 (the
4/3); Varma and Simon, *Bias in error estimation when using cross-validation for model selection*,
BMC Bioinformatics 2006 (the overstated score). P p + N n: whoever adds a vector where its product
with the load is smallest increases the sum of squares of all loads least.

>>> import torch
>>> from minseg import best_threshold, group_folds
>>> group_folds(["a", "a", "b", "c"], [5, 1, 4, 3], k=2)  # a: 6 positives; b and c: 7
[0, 0, 1, 1]
>>> # any t in (0.2, 0.4] is right; the nearest to 1/2 is 101.5 / 255, half a level below 0.4
>>> best_threshold(torch.tensor([0.1, 0.4, 0.6, 0.2]), torch.tensor([0, 1, 1, 0]))
(0.398, 1.0)

**Exercises.**
1. *By hand.* In one patient 100 pixels are positive, 100 were predicted, and 90 are both. In
   another one pixel is positive and a different one was predicted. What is the pooled Dice, and
   what is the mean over the patients?
2. *Break it.* In a copy of this file, my_crossval.py, replace `if f != fold]` by `if f == fold]`.
   Predict, then run: which tests fail, and does the score get better or worse?
3. *Write it.* `group_folds(groups, positives, k, seed=0)`.
   `python -m pytest tests/test_crossval.py --mine my_crossval.py` grades it, and the copy, too.

Next: `minseg.synthetic`, slides with exact masks, on which all of it can be tried.

**Answers.**
1. 180/202, and the mean of 0.9 and 0: the larger patient hides the smaller.
2. `test_each_fold_is_cut_at_the_threshold_that_the_others_chose`,
   `test_the_threshold_that_a_fold_likes_best_is_not_its_own_score` and
   `test_a_single_fold_is_cut_at_a_half_and_not_at_what_suits_it`. Better, and that is the fault:
   each fold is cut where it suits its own labels, and for new slides there are none.

>>> from minseg.crossval import dice_of
>>> patients = [torch.tensor([2 * 90, 100 + 100]), torch.tensor([0, 1 + 1])]
>>> round(dice_of(sum(patients)), 3), sum(dice_of(parts) for parts in patients) / 2
(0.891, 0.45)
"""

import random
import statistics
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def group_folds(groups: Sequence, positives: Sequence[float], k: int, seed: int = 0) -> list[int]:
    """The fold, 0 to k - 1, of each item; items of one group share a fold, and no fold is empty.
    `positives` holds each item's number of positive pixels. They and the items are spread evenly;
    the largest sum of positives in a fold is at most 4/3 of the best possible. `seed` breaks ties.
    ValueError if there are fewer groups than folds."""
    if len(groups) != len(positives):
        raise ValueError(f"{len(groups)} groups but {len(positives)} counts of positives")
    members: dict = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    if not 2 <= k <= len(members):
        raise ValueError(f"{k} folds of {len(members)} groups: need 2 folds or more, "
                         "and a group for each")
    total = sum(positives) or 1
    share = {group: (sum(positives[i] for i in items) / total, len(items) / len(groups))
             for group, items in members.items()}
    order = list(members)
    random.Random(seed).shuffle(order)  # the sort is stable: this decides among equals
    order.sort(key=lambda group: share[group], reverse=True)
    bound = 4 / 3 * max(1 / k, share[order[0]][0])
    folds, load = [0] * len(groups), [(0.0, 0.0)] * k  # shares of the positives and of the items
    for group in order:
        p, n = share[group]
        if p > 1 / (10 * k):
            fold = load.index(min(load))
        else:
            fold = min((fold for fold in range(k) if load[fold][0] + p <= bound),
                       key=lambda fold: (load[fold][0] * p + load[fold][1] * n))
        for i in members[group]:
            folds[i] = fold
        load[fold] = load[fold][0] + p, load[fold][1] + n
    return folds


def best_threshold(probabilities: Tensor | Sequence[Tensor],
                   targets: Tensor | Sequence[Tensor]) -> tuple[float, float]:
    """The threshold t with the best pooled Dice of `probabilities >= t`, and that Dice. Takes one
    tensor of any shape or a list of them (images of different sizes): floats in [0, 1] or uint8 in
    steps of 1/255, against {0, 1}. Thresholds lie halfway between two such steps; of equally good
    ones the nearest to 1/2 is chosen. ValueError if shapes differ or floats are outside [0, 1]."""
    if isinstance(probabilities, Tensor) and isinstance(targets, Tensor):
        return threshold_of(count_levels(probabilities, targets))
    pairs = zip(probabilities, targets, strict=True)
    return threshold_of(total(count_levels(*pair) for pair in pairs))


def total(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    first, *others = tensors
    return sum(others, start=first)


def count_levels(probability: Tensor, target: Tensor) -> Tensor:
    """How many pixels have each of 256 levels of probability, and how many of those are positive:
    int64 (2, 256). Arguments and errors are those of `best_threshold`, for one image."""
    if probability.shape != target.shape:
        raise ValueError(f"probabilities {tuple(probability.shape)} and "
                         f"target {tuple(target.shape)} differ")
    if probability.dtype != torch.uint8:
        if not ((probability >= 0) & (probability <= 1)).all():
            raise ValueError("probabilities lie in [0, 1]: apply a sigmoid to logits first")
        probability = (probability * 255).round().to(torch.uint8)
    level, target = probability.flatten().cpu(), target.flatten().cpu()
    return torch.stack([torch.bincount(level, minlength=256),
                        torch.bincount(level[target > 0], minlength=256)])


def threshold_of(counts: Tensor) -> tuple[float, float]:
    """`best_threshold` from the counts of `count_levels`."""
    pixels, positive = counts
    predicted = pixels.flip(0).cumsum(0).flip(0)[1:]  # pixels at or above level 1 ... 255
    true = positive.flip(0).cumsum(0).flip(0)[1:]
    sizes = predicted + positive.sum()
    dice = torch.where(sizes > 0, 2 * true / sizes.clamp(min=1), 1.0)
    levels = torch.arange(1, 256)
    best = min(levels[dice == dice.max()].tolist(), key=lambda level: abs(level - 128))
    return round((best - 0.5) / 255, 4), dice.max().item()  # halfway below that level


def dice_parts(counts: Tensor, threshold: float) -> Tensor:
    """Dice's numerator and denominator at `threshold`, int64 (2,): 2 |A and B| and |A| + |B|. Their
    sums over images give the pooled Dice, unlike the mean of the images' Dice."""
    pixels, positive = counts
    above = torch.arange(256) >= threshold * 255
    return torch.stack([2 * positive[above].sum(), pixels[above].sum() + positive.sum()])


def dice_of(parts: Tensor) -> float:
    """2 |A and B| / (|A| + |B|) from the result of `dice_parts`; 1.0 if both masks are empty."""
    numerator, denominator = parts.tolist()
    return numerator / denominator if denominator else 1.0


def cross_validate(counts: Sequence[Tensor], folds: Sequence[int], groups: Sequence) -> dict:
    """The cross-validated score, each fold thresholded at the value that is best on all others (at
    0.5 if there are no others). The arguments have one entry for each image: the result of
    `count_levels` for its out-of-fold prediction, its fold, and its group. Returns thresholds and
    folds (pooled Dice), one for each fold; images (the Dice of each, in order); groups (name:
    pooled Dice); pooled_dice; and over the groups mean_dice, sd_dice (of a sample; 0.0 for a single
    group) and worst_group."""
    names = sorted(set(folds))
    others = {fold: [c for c, f in zip(counts, folds) if f != fold] for fold in names}
    thresholds = {f: threshold_of(total(c))[0] if c else 0.5 for f, c in others.items()}
    parts = [dice_parts(c, thresholds[fold]) for c, fold in zip(counts, folds)]
    by_group = {name: dice_of(total(p for p, group in zip(parts, groups) if group == name))
                for name in sorted(set(groups))}
    each = list(by_group.values())
    return {
        "pooled_dice": dice_of(total(parts)),
        "mean_dice": statistics.mean(each),
        "sd_dice": statistics.stdev(each) if len(each) > 1 else 0.0,
        "worst_group": min(by_group, key=lambda name: by_group[name]),
        "groups": by_group,
        "folds": [dice_of(total(p for p, f in zip(parts, folds) if f == fold)) for fold in names],
        "thresholds": [thresholds[fold] for fold in names],
        "images": [dice_of(p) for p in parts],
    }
