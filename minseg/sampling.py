"""# Sampling the negatives

**Idea.** Glomeruli, the filters that are to be found, cover a few per cent of a kidney: most tiles
hold none, look alike, and are soon learned. Train on every tile that holds something and on a
random share of the others, *another* share each epoch: each tile gets its chance, and an epoch
takes a fraction of the time.

    epoch = all positives + R negatives for each of them, drawn anew        R: `negatives`

With R = 1 at least half of an epoch's tiles hold something to find.

    tiles of the data   + + + - - - - - - - - - - - -        + : some pixel is positive
    epoch 1, R = 1      + + +     -       -     -
    epoch 2, R = 1      + + +   -   -   -

**Balanced bins** go one step further, among the positives: a tile with a sliver of a glomerulus
teaches other things than one with three whole ones. Cut the range of mask areas, up to the largest,
into equal bins, and draw as many tiles from each that is not empty, together about as many as there
are positives. Some tiles of a full bin have to wait for another epoch; those of a thin one come
again and again (a single outlier: as often as each other bin gets draws).

![Which tiles an epoch sees](../docs/figures/sampling.png)

*Sixty tiles, 18 of them with something to find, over six epochs. With R = 1 an epoch has 36 tiles
instead of 60, the negatives drawn anew. Four bins, 4 draws each and as many negatives: 32; the
largest area comes four times, one of the next three twice, some small ones have to wait.*

**Shapes.** `mask_area` (T,), how much of each tile is positive, in any unit -> indices, int64, in
random order, ready to be cut into batches.

| what | blog post | HuBMAP's winner | here |
|---|---|---|---|
| negatives | a random share | one a positive, with replacement | `negatives` a positive, without |
| a positive tile | - | more than 2.5 % of it | more than 0 |
| bins | - | 2.5, 7.5, 12.5, 17.5 % and up | `bins` equal parts of the largest area |
| draws in a bin | - | with replacement | whole rounds first, then a random rest |

What it costs: the network meets more glomeruli than a slide holds, and learns to expect them. The
threshold of the mask, chosen on whole held-out slides, is there to take that back
(`minseg.crossval`).

**Source.** *Tricks of Semantic Segmentation*, blog post, 30 May 2021; the bins: code of the winner
of Kaggle's "HuBMAP: Hacking the Kidney", tikutikutiku/kaggle-hubmap, `src/02_train`.

>>> import torch
>>> from minseg import epoch_indices
>>> area = torch.tensor([0, 0, 0, 0, 0, 0, .1, .5])  # 6 and 7 are positive: in every epoch
>>> [epoch_indices(area, generator=torch.Generator().manual_seed(s)).tolist() for s in (1, 2)]
[[7, 5, 6, 1], [3, 7, 6, 0]]
"""

import math

import torch
from torch import Tensor


def shuffled(indices: Tensor, generator: torch.Generator | None) -> Tensor:
    """The same indices in random order."""
    return indices[torch.randperm(len(indices), generator=generator)]


def epoch_indices(mask_area: Tensor, *, negatives: float = 1.0, bins: int | None = None,
                  generator: torch.Generator | None = None) -> Tensor:
    """The tiles of one epoch, int64 (K,), in random order; K is the same in every epoch.
    `mask_area` (T,) is 0 for negatives. `negatives` is how many of them there are for each positive
    (math.inf: all); `bins` balances the positives over that many equal ranges of area. ValueError
    where no tile is positive, and for `negatives` below 0 and `bins` below 1."""
    area = torch.as_tensor(mask_area)
    positive, negative = (area > 0).nonzero()[:, 0], (area <= 0).nonzero()[:, 0]
    if not len(positive):
        raise ValueError(f"none of {len(area)} tiles is positive: there is nothing to sample for")
    if not negatives >= 0 or (bins is not None and bins < 1):
        raise ValueError(f"negatives {negatives}, bins {bins}: need 0 or more, 1 or more")
    if bins:
        share = area[positive] / area.max()  # in (0, 1]
        of_bin = (share * bins).ceil().long()
        members = [positive[of_bin == b] for b in of_bin.unique()]
        each = len(positive) // len(members)  # of every bin that is not empty: 1 or more
        positive = torch.cat([
            torch.cat([shuffled(m, generator) for _ in range(math.ceil(each / len(m)))])[:each]
            for m in members])
    wanted = min(len(negative), negatives * len(positive))
    negative = shuffled(negative, generator)[: round(wanted)]
    return shuffled(torch.cat([positive, negative]), generator)
