"""# Sampling the negatives

**In `tutorial.py`**, `y, x = torch.randint(256 - CROP + 1, (2,)).tolist()` draws tiles anywhere.
Here tiles with an object are preferred.

**Idea.** Glomeruli, the kidney filters that a network has to find, cover a few per cent of a
kidney, so most tiles contain none. Train on every tile with an object (positive) and on a random
share of the empty ones (negative), with a *new* random share in each epoch: over the epochs the
network sees many different negatives, and an epoch has only a fraction of the tiles.

    epoch = all P positives + R P negatives, drawn anew (all of them if there are fewer)

R is `negatives`. With R = 1, an epoch has at most one empty tile for each tile with an object. The
draws of different epochs are independent: if an epoch draws 4 % of the negatives, 44 % of them are
still unseen after 20 epochs (0.96^20).

    all tiles           + + + - - - - - - - - - - - -        + : some pixel is positive
    epoch 1, R = 1      + + +     -       -     -
    epoch 2, R = 1      + + +   -   -   -

**Balanced bins** go one step further and also balance the positives: a tile with a sliver of a
glomerulus teaches something else than a tile with three whole ones. Divide the range of mask areas,
up to the largest, into `bins` equal parts, and draw the same number of tiles, P / B rounded down,
from each of the B parts that are not empty. These draws are the epoch's positives, and R negatives
for each of them are added. Some tiles of a full bin have to wait for a later epoch, while tiles of
a sparse bin are drawn repeatedly (a bin of one tile draws that tile every time).

**Choosing R.** The winner (see below) took R = 1, and so does `train.py` by default. If the network
then finds objects in tissue where there are none, it has seen too few negatives: raise R; math.inf
takes all of them. Blank tiles of glass do not count, because `minseg.run.tiles` leaves them out
beforehand.

![Which tiles an epoch sees](../docs/figures/sampling.png)

*Sixty tiles, 18 of them positive, over six epochs. With R = 1 an epoch has 36 tiles instead of 60,
with new negatives each time. With four bins, 4 draws from each and as many negatives, it has 32:
the largest area is drawn four times, one of the next three twice, and some small ones have to
wait.*

**Shapes.** `mask_area` (T,), how much of each tile is positive, in any unit -> indices, int64, in
random order, ready to be split into batches.

| what | blog post | HuBMAP's winner | here |
|---|---|---|---|
| negatives per positive | a random share | one, with replacement | `negatives`, without |
| a positive tile | - | more than 2.5 % positive; all others are negatives | more than 0 |
| positives | - | a bootstrap sample, then the bins | all, then the bins |
| bins | - | 2.5, 7.5, 12.5, 17.5 % and up | `bins` equal parts of the largest area |
| draws from a bin | - | with replacement | every tile equally often, up to one draw |

The drawback: the network sees a larger share of glomeruli than real slides have, and learns to
expect it. The mask's threshold, chosen on whole held-out slides (`minseg.crossval`), compensates
for this only in part: it moves the cut, but does not change which pixels rank above others.

**Measured.** R = 1 instead of all tiles: +0.006 on synthetic slides where two tiles in three are
empty: not told from chance ([how](../docs/study.md)). In another experiment, where 28 % of the
tiles have something to find, 150 steps with R = 1 gave a Dice of 0.849, with all tiles 0.772 (one
seed, which may be chance: [log](../docs/log.md)).

**Source.** Yuanhao Wu, *Tricks of Semantic Segmentation*, blog post, 30 May 2021 (a copy:
https://yuanhao666.medium.com/tricks-of-semantic-segmentation-38dd15d742d2); the bins: code of the
winner of Kaggle's "HuBMAP: Hacking the Kidney", tikutikutiku/kaggle-hubmap,
`src/05_train_with_pseudo_labels/run.py`.

>>> import torch
>>> from minseg import epoch_indices
>>> area = torch.tensor([0, 0, 0, 0, 0, 0, .1, .5])  # 6 and 7 are positive: in every epoch
>>> [epoch_indices(area, generator=torch.Generator().manual_seed(s)).tolist() for s in (1, 2)]
[[7, 5, 6, 1], [3, 7, 6, 0]]

**Exercises.**
1. *By hand.* Four tiles have an area of 0.1, one has 1, ten have 0. With two bins and R = 1, how
   many tiles has an epoch, and how often is the largest among them?
2. *Break it.* In a copy of this file, my_sampling.py, replace
   `negative = shuffled(negative, generator)[: round(wanted)]` by
   `negative = negative[: round(wanted)]`. Predict, then run: which tests fail, and what would the
   network never see?
3. *Write it.* `epoch_indices(mask_area, *, negatives=1.0, bins=None, generator=None)`.
   `python -m pytest tests/test_sampling.py --mine my_sampling.py` grades it, and the copy, too.

Next: `minseg.augment`, because a tile that is drawn again should look different.

**Answers.**
1. Five positives in two bins are two draws each, and four negatives are added: 8 tiles, twice the
   largest and two of the four others.
2. `test_every_epoch_draws_anew_and_shuffles_anew` and
   `test_every_negative_comes_about_equally_often`: all negatives but the first few of the list.

>>> drawn = epoch_indices(torch.tensor([.1] * 4 + [1.] + [0.] * 10), bins=2)
>>> len(drawn), (drawn == 4).sum().item(), (drawn < 4).sum().item()
(8, 2, 2)
"""

import math

import torch
from torch import Tensor


def shuffled(indices: Tensor, generator: torch.Generator | None) -> Tensor:
    """The same indices in random order."""
    return indices[torch.randperm(len(indices), generator=generator)]


def draw(tiles: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
    """`draws` of the `tiles`: shuffled rounds of all of them, the last one cut short."""
    rounds = [shuffled(tiles, generator) for _ in range(math.ceil(draws / len(tiles)))]
    return torch.cat(rounds)[:draws]


def epoch_indices(mask_area: Tensor, *, negatives: float = 1.0, bins: int | None = None,
                  generator: torch.Generator | None = None) -> Tensor:
    """The tiles of one epoch, int64 (K,), in random order; K is the same in every epoch.
    `mask_area` (T,) is 0 for negatives. `negatives` is their number for each positive (math.inf:
    all); `bins` balances the positives over that many equal ranges of area. ValueError if no tile
    is positive, if an area is NaN, for `negatives` below 0 and for `bins` below 1."""
    area = torch.as_tensor(mask_area)
    if area.isnan().any():
        raise ValueError(f"the mask area of tile {int(area.isnan().nonzero()[0])} is NaN")
    positive, negative = (area > 0).nonzero()[:, 0], (area <= 0).nonzero()[:, 0]
    if not len(positive):
        raise ValueError(f"none of {len(area)} tiles is positive: there is nothing to sample for")
    if not negatives >= 0 or (bins is not None and bins < 1):
        raise ValueError(f"negatives {negatives}, bins {bins}: need 0 or more, 1 or more")
    if bins:
        share = area[positive] / area.max()  # in (0, 1]
        bin_of_tile = (share * bins).ceil().long()  # 1 ... bins
        tiles_of_bins = [positive[bin_of_tile == b] for b in bin_of_tile.unique()]
        draws = len(positive) // len(tiles_of_bins)  # from each bin that is not empty; 1 or more
        positive = torch.cat([draw(tiles, draws, generator) for tiles in tiles_of_bins])
    wanted = min(len(negative), negatives * len(positive))
    negative = shuffled(negative, generator)[: round(wanted)]
    return shuffled(torch.cat([positive, negative]), generator)
