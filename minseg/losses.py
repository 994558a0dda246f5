"""# Sums of losses, and two stages

**Idea.** Each loss sees something the others miss. Cross-entropy gives every pixel a clean gradient
but counts background; Dice looks at regions, but says little about outlines; the Lovász hinge goes
straight for the Jaccard index, but is hard to train from nothing. The usual remedy is a sum:

    loss = w1 loss1 + w2 loss2 + ...          make_loss("bce+dice"), make_loss("0.5*bce+lovasz")
    bce  = -mean(t log p + (1 - t) log(1 - p))               p = sigmoid(logits), t = target

**Two stages** are the other remedy: train with a tame loss until the network finds the objects,
then switch to the one that is wanted. In each stage the learning rate (see `train.py`) warms up
over a tenth of its steps (500 at most) and falls to 0 along half a cosine: what the optimiser
remembers of the other loss fades during the warm-up.

    loss in step s of S  =  first  if s < round(switch S),  else then       (s counts from 0)

`switch` is the first stage's share. Each stage has one step at least.

![The learning rate of two stages](../docs/figures/losses.png)

*The learning rate of 300 steps, Dice and then Lovász from step 180 (switch = 0.6).*

**Void pixels.** Where nobody labelled, the target is 255. Such a pixel becomes background that the
network already gets right: target 0, logit -10,000. Its loss is then exactly 0 in every term, and
so is its gradient. (In BCE it still counts in the mean's denominator: with half of an image void,
the other half weighs half.)

**Shapes.** As its parts: `logits` and `target` (N, C, H, W) -> a scalar, in float32 or wider.
`target` is in {0, 1, 255}.

**Source.** *Tricks of Semantic Segmentation*, blog post, 30 May 2021: Lovász with Dice or
cross-entropy, or Dice first and Lovász later; nnU-Net (arXiv 1809.10486, section 2.3) trains with
cross-entropy + Dice.

>>> import torch
>>> from minseg.losses import first_stage, make_loss
>>> loss = make_loss("0.5*bce+dice")
>>> logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1., 0.], [0., 0.]]]])
>>> round(loss(logits, target).item(), 4)  # 0.5 log 2 + 1 - (2 * 0.5 + 1) / (2 + 1 + 1), smooth = 1
0.8466
>>> half_void = torch.tensor([[[[1., 0.], [255., 255.]]]])
>>> round(loss(logits, half_void).item(), 4)  # 0.5 log 2 * 2 / 4 + 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
0.5066
>>> first_stage(10, 0.6), first_stage(2, 0.9)  # steps 0 to 5, step 0
(6, 1)
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .dice import dice_loss
from .lovasz import lovasz_hinge


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of logits (N, C, H, W), the mean over all; in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


LOSSES = {"bce": bce_loss, "dice": dice_loss, "lovasz": lovasz_hinge}


def make_loss(spec: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that `spec` spells: names joined by +, each with an optional weight before a *.
    Names are bce, dice and lovasz. Void pixels, 255 in the target, cost nothing. ValueError for
    anything else, and for weights that are not positive numbers."""
    terms = []
    for term in spec.split("+"):
        weight, name = term.split("*", 1) if "*" in term else ("1", term)
        name = name.strip()
        if name not in LOSSES:
            raise ValueError(f"unknown loss {name!r} in {spec!r}: there are {', '.join(LOSSES)}")
        try:
            factor = float(weight)
        except ValueError:
            factor = 0.0
        if not 0 < factor < float("inf"):
            raise ValueError(f"the weight {weight.strip()!r} in {spec!r} is not a positive number")
        terms.append((factor, LOSSES[name]))

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        void = target > 1
        logits, target = logits.masked_fill(void, -1e4), target.masked_fill(void, 0)
        return sum(factor * term(logits, target) for factor, term in terms)

    return loss


def first_stage(steps: int, switch: float) -> int:
    """How many of `steps` belong to the first stage: the share `switch`, to the nearest step. Each
    stage has one step at least. ValueError where there is only one step, and for shares outside
    (0, 1)."""
    if steps < 2 or not 0 < switch < 1:
        raise ValueError(f"two stages of {steps} steps, switched at {switch}: "
                         "need 2 steps or more, and a share between 0 and 1")
    return min(max(round(switch * steps), 1), steps - 1)
