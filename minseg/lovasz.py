"""# The Lovász hinge

**Idea.** We are judged by Dice, or by the Jaccard index |A and B| / |A or B|, which rises and falls
with it; but both are defined on *sets* of pixels and have no gradient. The Lovász extension turns a
set function into a function of real numbers that agrees with it on the sets and is convex, because
the Jaccard loss is submodular (an error adds less, the more pixels are wrong already). Give it the
pixels' hinges, and the result is a convex surrogate of 1 - Jaccard.

    Delta(M) = |M| / |{t = 1} union M|            1 - Jaccard, if just the pixels in M are wrong
    e_i = 1 - z_i (2 t_i - 1)                     the error: what logit z_i lacks to be right by 1
    m_i = max(0, e_i)                             its hinge: 0 once it is right by 1 or more
    loss = sum_k m_(k) (Delta({1..k}) - Delta({1..k-1}))       pixels sorted: m_(1) >= m_(2) >= ...

Read it as: let the pixels go wrong one by one, the worst first. Each pays its hinge, weighted by
how much the Jaccard loss grew when it joined. An error never costs more for joining later, and
errors cost more where positives are few. The weights depend only on the targets and the order, so
where no two hinges tie they are also the gradient with respect to m.

**Shapes.** `logits` and `target` (N, C, H, W), `target` in {0, 1} -> a scalar, the mean over all
images and channels; with `per_image=False` a channel's pixels are sorted over the whole batch.

![Three losses of two pixels](../docs/figures/lovasz.png)

*All logits of two pixels, one positive, one not; dark is right, a shade is a twelfth of the range.
1 - Jaccard has steps: 0, 1/2 (the negative pixel is wrong), 1 (the positive one is), and no slope.
The Lovász hinge is made of planes and has no valley but the right one. Dice (smooth = 0) is smooth,
but flat again where it is most wrong.*

**An image without positives** has Delta(M) = 1 for every M but the empty one: only the worst pixel
pays, and only it has a gradient. An image of P positives and nothing else has Delta(M) = |M| / P:
the mean hinge.

| what | paper | authors' code and segmentation_models.pytorch | Kaggle | here |
|---|---|---|---|---|
| hinge | max(0, e) | max(0, e) | elu(e) + 1: right pixels keep a pull | `margin`: relu |
| both classes | foreground | foreground | the mean of both | `symmetric`: off |
| images | each | the batch; or each, in a loop | each, in a loop | each, no loop; or the batch |

A hinge of 0 costs nothing wherever it stands, so only hinges above 0 need sorting. Late in training
those are a few pixels in a hundred, which saves a CPU nearly the whole sort. A GPU has sorted all
of them before it could say how many are above 0.

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
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def jaccard_weights(hinges: Tensor, target: Tensor, positives: Tensor) -> Tensor:
    """Delta({1..k}) - Delta({1..k-1}) for each pixel, k its place when its row's hinges are sorted.
    `hinges` (R, P), none negative; `target` (R, P) in {0, 1}; `positives` (R, 1), |{t = 1}|.
    Returns (R, P) in the pixels' own order; each row is sorted by itself."""
    # Non-negative floats sort like the integers with the same bits, and those sort faster; ~ puts
    # the largest first.
    integer = torch.int64 if hinges.dtype == torch.float64 else torch.int32
    order = (~hinges.view(integer)).sort(1).indices
    target = target.gather(1, order)
    k = torch.arange(1, hinges.shape[1] + 1, dtype=hinges.dtype, device=hinges.device)
    missed = positives - target.cumsum(1)  # positives that are not among the k worst
    union = missed + k  # |{t = 1} or M|
    # Subtracting one Delta from the next loses most of its digits, the step itself does not:
    # k/U - (k-1)/U for a positive pixel, k/U - (k-1)/(U-1) for a negative one, U being the union.
    steps = torch.where(target > 0, 1 / union, missed / (union * (union - 1)))
    steps[:, 0] = 1 / union[:, 0]  # Delta of no pixel at all is 0
    return torch.empty_like(steps).scatter_(1, order, steps)


def lovasz_hinge(logits: Tensor, target: Tensor, *, per_image: bool = True, margin: str = "relu",
                 symmetric: bool = False) -> Tensor:
    """The Lovász hinge of `logits` and `target`, both (N, C, H, W): a scalar, not negative.
    `margin`, "relu" or "elu", chooses the hinge; `symmetric` gives the mean of loss(logits, target)
    and loss(-logits, 1 - target). Computed in float32 or wider, under autocast too. ValueError
    where the shapes differ. Source: arXiv 1512.07797; arXiv 1705.08790, algorithm 1."""
    if logits.shape != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} differ")
    if margin not in ("relu", "elu"):
        raise ValueError(f'margin is "relu" or "elu", not {margin!r}')
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = target.to(logits.dtype)
    if symmetric:
        options = dict(per_image=per_image, margin=margin)
        return (lovasz_hinge(logits, target, **options)
                + lovasz_hinge(-logits, 1 - target, **options)) / 2

    if per_image:  # a row is one channel of one image, else one channel of the batch
        logits, target = logits.flatten(2).flatten(0, 1), target.flatten(2).flatten(0, 1)
    else:
        logits, target = logits.transpose(0, 1).flatten(1), target.transpose(0, 1).flatten(1)
    errors = 1 - logits * (2 * target - 1)  # (rows, pixels)
    hinges = F.relu(errors) if margin == "relu" else F.elu(errors) + 1

    with torch.no_grad():  # the weights change only where two hinges change places
        positives = target.sum(1, keepdim=True)
        on_gpu = logits.device.type != "cpu"
        if on_gpu or margin == "elu" or 2 * hinges.count_nonzero() > hinges.numel():
            weights = jaccard_weights(hinges, target, positives)
        else:  # move each row's hinges above 0 to its left end, and sort no more than those
            rows, pixels = hinges.shape
            index = hinges.flatten().nonzero()[:, 0]
            row = index // pixels
            count = torch.bincount(row, minlength=rows)
            place = torch.arange(len(index)) - (count.cumsum(0) - count)[row]
            packed = hinges.new_zeros(2, rows, max(1, int(count.max())))
            packed[0, row, place] = hinges.flatten()[index]
            packed[1, row, place] = target.flatten()[index]
            weights = torch.zeros(rows, pixels, dtype=hinges.dtype)
            weights.view(-1)[index] = jaccard_weights(*packed, positives)[row, place]
    return (hinges * weights).sum() / len(hinges)
