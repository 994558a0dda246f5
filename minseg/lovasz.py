"""# The Lovász hinge

**In `tutorial.py`**, `loss = make_loss("bce+batch_dice")` becomes `make_loss("lovasz")`.

**Idea.** Masks are scored by Dice, or by the Jaccard index |A and B| / |A or B| of the predicted
region A and the true region B. It is also called intersection over union (IoU), and rises and falls
with Dice. Both count pixels that are right or wrong, so they have no gradient. The Lovász hinge
makes a loss of them: measure how wrong each pixel is, sort the pixels, and let them go wrong one by
one, the worst first. Each contributes its error (its "hinge"), weighted by how much the Jaccard
loss, 1 - Jaccard, grows when it joins.

    Delta(M) = |M| / |{t = 1} union M|            1 - Jaccard if exactly the pixels in M are wrong
    e_i = 1 - z_i (2 t_i - 1)                     the error: what logit z_i lacks to be right by 1
    m_i = max(0, e_i)                             its hinge: 0 once it is right by 1 or more
    M_k = the k pixels with the largest hinges, which are m_(1) >= m_(2) >= ... >= m_(k)
    loss = sum_k m_(k) (Delta(M_k) - Delta(M_(k-1)))                   Delta of the empty set is 0

For example, of two positive and two negative pixels the worst is positive, the next negative, the
third positive: Delta goes 0, 1/2, 2/3, 1, and the weights are 1/2, 1/6 and 1/3. So they need not
fall with the rank: a missed positive adds more than a false positive. Errors cost more if the image
has few positives.

![Four pixels: hinges, weights, and the loss](../docs/figures/sorting.png)

*Those four pixels, with the hinges 3, 2, 1 and 0. The last is right by 1: it comes last, and adds
nothing.*

**A slow start.** A network begins by saying nearly the same everywhere. Let z be this one logit, in
an image with few positives. Below 0, the positives are the worst pixels and push z up; above 0, the
negatives are, and push it down. So z is drawn to 0, where the loss is 1. (Images without positives
draw it further down, to -1.) The network leaves this valley only once it tells some pixels from
others, and few of them teach it how: those at the top of the order have most of the weight. The
loss is convex in the logits, but not in the network's weights.

**Why sorting is right.** Delta is defined on *sets* of pixels. Its *Lovász extension*, the sum
above, is a function of one real number m_i per pixel that equals Delta whenever every m_i is 0
(pixel i is not in the set) or 1 (it is). It is convex because the Jaccard loss is *submodular*: the
same pixel adds less if it joins later, when more pixels are wrong already. So the loss is a convex
stand-in (a *surrogate*) for 1 - Jaccard.

**The gradient.** The weights depend only on the targets and on the order. If no two positive hinges
are equal, they are the gradient of the loss with respect to those hinges; the logit of such a pixel
gets its weight times -1 for a positive pixel, +1 for a negative one, and a logit that is right by
more than 1 gets 0. (The mean divides all of this by the number of images and channels.)

**Shapes.** `logits` and `target` (N, C, H, W), `target` in {0, 1} -> a scalar, the mean over all
images and channels; with `per_image=False` a channel's pixels are sorted over the whole batch.

![Three losses of two pixels](../docs/figures/lovasz.png)

*Three losses over the logits of two pixels, one positive and one negative; dark is low, and a shade
is a twelfth of the range. 1 - Jaccard is a staircase without slope: 0, 1/2 (the negative pixel is
wrong), 1 (the positive one is). The Lovász hinge consists of planes; it is 0 where both pixels are
right by 1 or more, and has no other minimum. Dice (smooth = 0) is smooth, but flat again where both
pixels are very wrong.*

**An image without positives** has Delta(M) = 1 for every M that is not empty: only the worst pixel
contributes, and only it has a gradient. In an image of P positives and no negatives, Delta(M) is
|M| / P, and the loss is the mean hinge.

**Measured.** Alone instead of BCE + Dice: +0.011 on nuclei, -0.041 on synthetic slides, -0.088 on
those of forty patients: a slow start (there -0.673 after 75 steps, -0.189 after 300). In runs of
1,200 steps on synthetic slides -0.172, because 1 of 6 networks found nothing
([how](../docs/study.md)).

| what | paper | authors' code and segmentation_models.pytorch | Kaggle | here |
|---|---|---|---|---|
| hinge | max(0, e) | max(0, e) | elu(e) + 1, gradient never 0 | `margin="relu"`, or "elu" |
| both classes | foreground | foreground | the mean of both | `symmetric`: off |
| images | each | the batch; or each, in a loop | each, in a loop | each, no loop; or the batch |

elu(e) is e above 0 and exp(e) - 1 below. With it, pixels that are right by 1 or more are still
pushed further, whereas a max(0, e) of 0 teaches nothing. That holds for pixels whose weight is not
0: not for negatives that come after the last positive in the order, nor, in an image without
positives, for any but the worst.

The symmetric form also optimises the Jaccard index of the background: in an image without positives
its second term is the mean hinge, so that every wrong pixel has a gradient.

**Source.** Yu and Blaschko, *The Lovász Hinge*, arXiv 1512.07797; Berman, Triki and Blaschko, *The
Lovász-Softmax Loss*, CVPR 2018, arXiv 1705.08790, definition 2 and algorithm 1. The ELU and the
symmetric form come from Kaggle's TGS Salt Identification, 2018.

>>> import torch
>>> from minseg import lovasz_hinge
>>> target = torch.tensor([1., 1., 0., 0.]).view(1, 1, 1, 4)
>>> for z in ([2., 2., -2., -2.], [2., 0., -2., -2.], [2., -2., 1., -2.]):  # hinges: 0; 1; 3 and 2
...     logits = torch.tensor(z).view(1, 1, 1, 4)
...     a, b = logits > 0, target > 0
...     cost = 1 - ((a & b).sum() / (a | b).sum()).item()  # the Jaccard loss
...     print(round(cost, 3), round(lovasz_hinge(logits, target).item(), 3))
0.0 0.0
0.5 0.5
0.667 1.833

**Exercises.**
1. *By hand.* Two positive pixels have the logits -2 and 0, two negative ones 1 and -3. What is the
   loss, and what is its gradient with respect to each logit?
2. *Break it.* In a copy of this file, my_lovasz.py, replace
   `torch.where(target > 0, 1 / union, missed / (union * (union - 1)))` by
   `(k / union).diff(dim=1, prepend=hinges.new_zeros(len(hinges), 1))`, which is Delta(M_k) -
   Delta(M_(k-1)) as the equation has it. Predict, then run: which test fails?
3. *Write it.* `lovasz_hinge(logits, target, *, per_image=True, margin="relu", symmetric=False)`.
   `python -m pytest tests/test_lovasz.py --mine my_lovasz.py` grades it, and the copy, too.

Next: `minseg.losses`, because alone this loss is hard to begin with.

**Answers.**
1. The hinges 3, 2, 1 and 0 belong to -2, 1, 0 and -3; Delta goes 0, 1/2, 2/3, 1. The weights 1/2,
   1/6 and 1/3 make the loss 3/2 + 2/6 + 1/3, and the last pixel is right by more than 1.
2. `test_float32_weights_keep_their_digits_where_differences_would_lose_them`: among many pixels two
   neighbouring Deltas have nearly all digits in common.

>>> logits = torch.tensor([-2., 0., 1., -3.]).view(1, 1, 1, 4).requires_grad_()
>>> loss = lovasz_hinge(logits, torch.tensor([1., 1., 0., 0.]).view(1, 1, 1, 4))
>>> loss.backward()
>>> round(loss.item(), 3), [round(slope, 3) for slope in logits.grad.flatten().tolist()]
(2.167, [-0.5, -0.333, 0.167, 0.0])
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def jaccard_weights(hinges: Tensor, target: Tensor, positives: Tensor) -> Tensor:
    """Delta(M_k) - Delta(M_(k-1)) of each pixel, k being its rank among its row's hinges.
    `hinges` (R, P), none negative; `target` (R, P) in {0, 1}; `positives` (R, 1), |{t = 1}|.
    Returns (R, P) in the order of the pixels; each row is sorted by itself."""
    order = descending(hinges)
    target = target.gather(1, order)
    k = torch.arange(1, hinges.shape[1] + 1, dtype=hinges.dtype, device=hinges.device)
    missed = positives - target.cumsum(1)  # positives that are not among the k worst
    union = missed + k  # |{t = 1} or M|
    # Subtracting one Delta from the next would lose most of the digits; a little algebra avoids it.
    # A positive pixel leaves the union U as it was: k/U - (k-1)/U = 1/U. A negative one has
    # enlarged it by 1: k/U - (k-1)/(U-1) = (U-k)/(U(U-1)), and U-k is `missed`.
    steps = torch.where(target > 0, 1 / union, missed / (union * (union - 1)))
    steps[:, 0] = 1 / union[:, 0]  # the same, but without positives the formula above is 0/0
    return torch.empty_like(steps).scatter_(1, order, steps)


def descending(hinges: Tensor) -> Tensor:
    """`hinges.argsort(1, descending=True)` of values that are not negative, only faster."""
    # The bits of a non-negative float, read as an integer, are in the same order as the floats, and
    # PyTorch sorts integers faster: with floats the whole loss takes 1.35 times as long on a CPU.
    # The bitwise not reverses the order, so that the largest hinge comes first.
    integer = torch.int64 if hinges.dtype == torch.float64 else torch.int32
    return (~hinges.view(integer)).sort(1).indices


def weights_of_positive_hinges(hinges: Tensor, target: Tensor, positives: Tensor) -> Tensor:
    """`jaccard_weights` for pixels whose hinge is above 0, and 0 for the others, whose weight does
    not matter. Packs each row's positive hinges at the left of a narrower array and sorts only
    that; the zeros that fill up shorter rows come last and change no other weight. CPU only."""
    # Late in training only a few per cent of the hinges are above 0, and this saves nearly the
    # whole sort. On a GPU, counting them first would force a wait that is longer than the sort.
    rows, pixels = hinges.shape
    index = hinges.flatten().nonzero()[:, 0]  # of the positive hinges, row by row
    row = index // pixels
    count = torch.bincount(row, minlength=rows)
    row_start = count.cumsum(0) - count  # where each row begins in `index`
    column = torch.arange(len(index)) - row_start[row]  # 0, 1, 2 ... in each row
    width = max(1, int(count.max()))
    packed_hinges, packed_target = hinges.new_zeros(2, rows, width)
    packed_hinges[row, column] = hinges.flatten()[index]
    packed_target[row, column] = target.flatten()[index]
    packed_weights = jaccard_weights(packed_hinges, packed_target, positives)
    weights = torch.zeros_like(hinges).flatten()
    weights[index] = packed_weights[row, column]
    return weights.view(rows, pixels)


def lovasz_hinge(logits: Tensor, target: Tensor, *, per_image: bool = True, margin: str = "relu",
                 symmetric: bool = False) -> Tensor:
    """The Lovász hinge of `logits` and `target`, both (N, C, H, W): a scalar, not negative.
    `margin`, "relu" or "elu", chooses the hinge; `symmetric` gives the mean of loss(logits, target)
    and loss(-logits, 1 - target). Computed in float32 or wider, also under autocast. ValueError if
    the shapes differ. Source: arXiv 1512.07797; arXiv 1705.08790, algorithm 1."""
    if logits.shape != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} differ")
    if margin not in ("relu", "elu"):
        raise ValueError(f'margin is "relu" or "elu", not {margin!r}')
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = target.to(logits.dtype)
    if symmetric:
        return (lovasz_hinge(logits, target, per_image=per_image, margin=margin)
                + lovasz_hinge(-logits, 1 - target, per_image=per_image, margin=margin)) / 2

    if per_image:  # one row for each channel of each image
        logits, target = logits.flatten(2).flatten(0, 1), target.flatten(2).flatten(0, 1)
    else:  # one row for each channel of the batch
        logits, target = logits.transpose(0, 1).flatten(1), target.transpose(0, 1).flatten(1)
    errors = 1 - logits * (2 * target - 1)  # (rows, pixels)
    hinges = F.relu(errors) if margin == "relu" else F.elu(errors) + 1

    with torch.no_grad():  # the weights are constant as long as the order of the hinges is
        positives = target.sum(1, keepdim=True)
        sort_all = logits.device.type != "cpu" or margin == "elu"  # ELU: hardly any 0
        if sort_all or 2 * hinges.count_nonzero() > hinges.numel():
            weights = jaccard_weights(hinges, target, positives)
        else:
            weights = weights_of_positive_hinges(hinges, target, positives)
    return (hinges * weights).sum() / len(hinges)
