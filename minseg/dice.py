"""# Dice, the score and the loss

**In `tutorial.py`**, `loss = make_loss("bce+batch_dice")` has two terms. The second is explained
here, and so is the score, `dice_score`. (BCE is binary cross-entropy, pixel by pixel.)

**Idea.** Cross-entropy counts pixels, and nearly all of them are background. Dice compares two
*regions*, the predicted A and the true B: twice what they share, divided by the sum of their sizes.
1 is perfect, 0 is disjoint. Pixels that are background in both are not counted at all.

    score = 2 |A and B| / (|A| + |B|)
    loss  = 1 - (2 sum p t + smooth) / (sum p + sum t + smooth),     p = sigmoid(logits), t = target

The loss is the score with probabilities p for the set A (a "soft" Dice), so that it has a gradient.
`smooth`, 1 by default, is added above and below: where nothing is there and nothing is predicted,
the loss is 0 instead of 0/0. p is not squared in the denominator. V-Net squares it there; nnU-Net,
segmentation_models.pytorch and MONAI (by default) do not.

**Shapes.** `logits` and `target` (N, C, H, W), `target` in {0, 1} -> a scalar. The sums run over
one image and channel, (H, W), or with `per_image=False` over one channel of the whole batch, (N, H,
W); the loss is the mean over these.

**Measured.** Over the batch, added to BCE: -0.002 on nuclei, -0.006 on synthetic slides, -0.004
[-0.008, +0.001] on those of forty patients: not told from chance. Alone, instead of with BCE:
+0.005, -0.011 and -0.013 [-0.017, -0.008]: on the forty patients clearly worse
([how](../docs/study.md)).

**The empty image** is where implementations differ. Most tiles of a kidney slide contain no
glomerulus, so t = 0 everywhere, and the loss is S / (S + smooth) with S = sum p. Its slope, smooth
/ (S + smooth)^2, says how strongly false positives are pushed down; that of a logit is p (1 - p)
times as large. For one empty 8 x 8 image with every logit 0 (S = 32) or -7 (S = 0.058):

| | sums over | smooth | loss at 0 | gradient of one logit | loss at -7 | gradient of one logit |
|---|---|---|---|---|---|---|
| here | each image | 1 | 0.970 | 2.3e-4 | 0.055 | 8.1e-4 |
| segmentation_models.pytorch | the batch | 0 | 0 | none | 0 | none |
| MONAI `DiceLoss(sigmoid=True)` | each image | 1e-5 | 1.000 | 2.4e-9 | 1.000 | 2.7e-6 |

segmentation_models.pytorch multiplies the loss by "has any positive", so an all-empty batch teaches
nothing; in a mixed batch its empty images do count, through the batch's sums. In MONAI an empty
image has a loss of 1 until it is nearly perfect, and almost no slope. With `smooth=1` the loss
falls to 0, and its slope grows as S gets small (at S = 1000 it is 1e-6); false probabilities that
add up to one pixel, S = 1, give a loss of 1/2.

Where many images are empty, their slopes win over those of the few objects: on slides with very few
glomeruli, 150 steps with BCE + Dice of each image end in a Dice of 0.574, and with Dice over the
batch in 0.849 ([log](../docs/log.md)). So the loss that `train.py` uses is BCE + Dice over the
batch (`batch_dice` in `minseg.losses`).

![The loss of an empty image](../docs/figures/dice.png)

*The loss of an empty image over S, on a log axis. With smooth = 1 it falls from 1 to 0, mostly
between S = 10 and 0.1; with 1e-5 it stays near 1 down to S = 0.001. Black: a batch of empty images
in segmentation_models.pytorch, always 0.*

**Source.** Dice, *Measures of the Amount of Ecologic Association Between Species*, Ecology 1945;
as a loss: Milletari, Navab and Ahmadi, *V-Net*, 3DV 2016, arXiv 1606.04797, section 3.

>>> import torch
>>> from minseg import dice_loss, dice_score
>>> target = torch.tensor([[[[0., 1., 1., 0.]]]])
>>> for z in ([-9., 9., 9., -9.], [-9., 9., -9., -9.], [9., -9., -9., 9.]):  # right, half, wrong
...     logits = torch.tensor([[[z]]])
...     print(round(dice_score(logits > 0, target), 3), round(dice_loss(logits, target).item(), 3))
1.0 0.0
0.667 0.25
0.0 0.8

The score, then the loss. With smooth = 0, the loss is 1 - score: 0, 0.333, 1.

**Exercises.**
1. *By hand.* An empty image has four pixels, each with p = 1/4. What is its loss with smooth = 1,
   and with smooth = 0? And if each has p = 1/100?
2. *Break it.* V-Net squares p in the denominator. In a copy of this file, my_dice.py, replace
   `total = probability.sum(dims)` by `total = probability.square().sum(dims)`. Predict, then run:
   which tests fail?
3. *Write it.* `dice_loss(logits, target, *, smooth=1.0, per_image=True)`.
   `python -m pytest tests/test_dice.py --mine my_dice.py` grades it, and the copy, too.

Next: `minseg.lovasz`, which does the same for the Jaccard index, and is convex.

**Answers.**
1. S is 1, then 0.04, and the loss is S / (S + smooth). With smooth = 0 it is 1 whatever S is, so
   fewer false positives are worth nothing.
2. `test_the_loss_is_its_equation` and `test_an_empty_image_costs_and_teaches_what_the_table_says`.
   Where p is 0 or 1, the square is p.

>>> for p in (1 / 4, 1 / 100):
...     logits = torch.full((1, 1, 2, 2), p).logit()
...     print([round(dice_loss(logits, 0 * logits, smooth=s).item(), 3) for s in (1, 0)])
[0.5, 1.0]
[0.038, 1.0]
"""

import torch
from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0,
              per_image: bool = True) -> Tensor:
    """1 - soft Dice of `logits` and `target`, both (N, C, H, W): a scalar from 0 to 1. Computed in
    float32 or wider, also under autocast. ValueError if the shapes differ. Source: V-Net, arXiv
    1606.04797, section 3, with unsquared probabilities."""
    if logits.shape != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} differ")
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    target = target.to(probability.dtype)
    dims = (2, 3) if per_image else (0, 2, 3)
    shared = (probability * target).sum(dims)  # (N, C) or (C,)
    total = probability.sum(dims) + target.sum(dims)
    return 1 - ((2 * shared + smooth) / (total + smooth)).mean()


def dice_score(prediction: Tensor, target: Tensor) -> float:
    """Dice of two masks of the same shape (any), over all their pixels; 1.0 if both are empty.
    Masks are bool, or integers with 0 for background, or floats 0 and 1. ValueError if the shapes
    differ, and for other floats: probabilities need a threshold first."""
    masks = []
    for mask in (prediction, target):
        mask = mask if isinstance(mask, Tensor) else torch.tensor(mask)
        if mask.is_floating_point() and not ((mask == 0) | (mask == 1)).all():
            raise ValueError("dice_score compares masks: apply a threshold to probabilities first")
        masks.append(mask != 0)
    a, b = masks
    if a.shape != b.shape:
        raise ValueError(f"prediction {tuple(a.shape)} and target {tuple(b.shape)} differ")
    total = a.sum().item() + b.sum().item()
    return 2 * (a & b).sum().item() / total if total else 1.0
