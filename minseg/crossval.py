"""# Local cross-validation

**Idea.** Hold out some images, train on the others, score the held-out ones; trust that number, not
a public ranking. It is worth as much as the split is honest: two pieces of one kidney look alike,
so whoever trains on one and scores on the other measures memory. The unit that is held out is the
*group* (the patient), never the image.

    fold(image) = f(group(image)),      positive pixels in each fold about equal

Groups go to folds one by one, the one with most positive pixels first, each to the fold that has
fewest so far (then fewest images): the greedy rule for number partitioning, at most 4/3 of the best
possible largest fold.

![Images of nine patients in three folds](../docs/figures/folds.png)

*Above all images; below, drawn larger, the three folds. A letter is a patient.*

**The threshold** turns probabilities into a mask. The one that suits some images best flatters them
if they are then scored with it; choose it on images that the score does not use.

    t* = argmax_t Dice(p >= t, target),     Dice (`minseg.dice`) of the images it is chosen on

So every image is predicted once, by the network that did not see its group, and each fold is cut at
the threshold that is best on all *other* folds' images; then

    pooled = Dice over the pixels of all images      group = Dice over those of one group
    mean and standard deviation: over the groups, the unit that new patients are drawn from

**Shapes.** Of each image are kept only two counts for each of 256 levels of probability: its pixels
and its positive pixels, (2, 256). Every threshold's Dice follows from them.

**Source.** Graham, *Bounds on Multiprocessing Timing Anomalies*, SIAM J. Appl. Math. 1969 (the
4/3); Varma and Simon, *Bias in error estimation when using cross-validation for model selection*,
BMC Bioinformatics 2006 (the flattery).

>>> import torch
>>> from minseg import best_threshold, group_folds
>>> group_folds(["a", "a", "b", "c"], [5, 1, 4, 3], k=2)  # a: 6 positives; b and c: 7
[0, 0, 1, 1]
>>> # all above 0.2 up to 0.4 are right; the nearest to 1/2 is 101.5 / 255, half a level below 0.4
>>> best_threshold(torch.tensor([0.1, 0.4, 0.6, 0.2]), torch.tensor([0, 1, 1, 0]))
(0.398, 1.0)
"""

import random
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor


def group_folds(groups: Sequence, positives: Sequence[float], k: int, seed: int = 0) -> list[int]:
    """The fold, 0 to k - 1, of each item; items of one group share a fold, no fold is empty.
    `positives` holds each item's number of positive pixels; folds get nearly equal sums. `seed`
    settles ties. ValueError where there are fewer groups than folds."""
    if len(groups) != len(positives):
        raise ValueError(f"{len(groups)} groups but {len(positives)} counts of positives")
    members: dict = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    if not 2 <= k <= len(members):
        raise ValueError(f"{k} folds of {len(members)} groups: need 2 folds or more, "
                         "and a group for each")
    order = list(members)
    random.Random(seed).shuffle(order)  # sorting keeps this order among equals
    order.sort(key=lambda group: -sum(positives[i] for i in members[group]))
    folds = [0] * len(groups)
    load = [(0.0, 0)] * k  # positives, items: the least is filled next
    for group in order:
        fold = load.index(min(load))
        for i in members[group]:
            folds[i] = fold
        total, items = load[fold]
        load[fold] = (total + sum(positives[i] for i in members[group]),
                      items + len(members[group]))
    return folds


def best_threshold(probabilities: Tensor | Sequence[Tensor],
                   targets: Tensor | Sequence[Tensor]) -> tuple[float, float]:
    """The threshold t with the best pooled Dice of `probabilities >= t`, and that Dice. One tensor
    of any shape or a list of them (images of different sizes), floats in [0, 1] or uint8 in steps
    of 1/255, against {0, 1}. Thresholds lie halfway between two such steps; of equally good ones
    the nearest to 1/2 is taken. ValueError where shapes differ or floats leave [0, 1]."""
    if isinstance(probabilities, Tensor):
        probabilities, targets = [probabilities], [targets]
    pairs = zip(probabilities, targets, strict=True)
    return threshold_of(sum(count_levels(probability, target) for probability, target in pairs))


def count_levels(probability: Tensor, target: Tensor) -> Tensor:
    """The pixels at each of 256 levels of probability, and how many are positive: int64 (2, 256).
    Arguments and errors are those of `best_threshold`, for one image."""
    if probability.shape != target.shape:
        raise ValueError(f"probabilities {tuple(probability.shape)} and "
                         f"target {tuple(target.shape)} differ")
    if probability.dtype != torch.uint8:
        if not ((probability >= 0) & (probability <= 1)).all():
            raise ValueError("probabilities lie in [0, 1]: apply a sigmoid to logits first")
        probability = (probability * 255).round().to(torch.uint8)
    level, target = probability.flatten().cpu(), target.flatten().cpu()
    return torch.stack([torch.bincount(part, minlength=256) for part in (level, level[target > 0])])


def threshold_of(counts: Tensor) -> tuple[float, float]:
    """`best_threshold` of the pixels that `count_levels` counted."""
    pixels, positive = counts
    predicted = pixels.flip(0).cumsum(0).flip(0)[1:]  # pixels at or above level 1 ... 255
    true = positive.flip(0).cumsum(0).flip(0)[1:]
    total = predicted + positive.sum()
    dice = torch.where(total > 0, 2 * true / total.clamp(min=1), 1.0)
    levels = torch.arange(1, 256)
    best = min(levels[dice == dice.max()].tolist(), key=lambda level: abs(level - 128))
    return round((best - 0.5) / 255, 4), dice.max().item()  # halfway below that level


def dice_parts(counts: Tensor, threshold: float) -> Tensor:
    """Dice's numerator and denominator at `threshold`, int64 (2,): 2 |A and B| and |A| + |B|. Added
    up over images they give the pooled Dice, which a mean of Dices does not."""
    pixels, positive = counts
    above = torch.arange(256) >= threshold * 255
    return torch.stack([2 * positive[above].sum(), pixels[above].sum() + positive.sum()])


def dice_of(halves: Tensor) -> float:
    """2 |A and B| / (|A| + |B|), 1.0 where both are empty."""
    shared, total = halves.tolist()
    return shared / total if total else 1.0


def cross_validate(counts: Sequence[Tensor], folds: Sequence[int], groups: Sequence) -> dict:
    """The cross-validated score, each fold cut at the threshold that is best on all the others (at
    0.5 where there are none). One entry an image: `counts` as `count_levels` gives them, out of
    fold; its fold; its group. Returns thresholds and folds (pooled Dice), one a fold; images (the
    Dice of each, in order); groups (name: pooled Dice); pooled_dice; and over the groups mean_dice,
    sd_dice (of a sample; 0.0 for a single one), worst_group."""
    names = sorted(set(folds))
    others = {fold: [c for c, f in zip(counts, folds) if f != fold] for fold in names}
    thresholds = {f: threshold_of(sum(c))[0] if c else 0.5 for f, c in others.items()}
    halves = [dice_parts(c, thresholds[fold]) for c, fold in zip(counts, folds)]
    sums = dict.fromkeys(sorted(set(groups)), 0)
    for group, half in zip(groups, halves):
        sums[group] = sums[group] + half
    by_group = {group: dice_of(total) for group, total in sums.items()}
    each = list(by_group.values())
    return {
        "pooled_dice": dice_of(sum(halves)),
        "mean_dice": statistics.mean(each),
        "sd_dice": statistics.stdev(each) if len(each) > 1 else 0.0,
        "worst_group": min(by_group, key=by_group.get),
        "groups": by_group,
        "folds": [dice_of(sum(h for h, f in zip(halves, folds) if f == fold)) for fold in names],
        "thresholds": [thresholds[fold] for fold in names],
        "images": [dice_of(h) for h in halves],
    }
