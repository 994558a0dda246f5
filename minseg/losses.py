"""# Sums of losses, and two stages

**In `tutorial.py`**, `loss = make_loss("bce+batch_dice")` is explained here. Try
`make_loss("bce+lovasz")`.

**Idea.** Each loss sees something the others miss. Cross-entropy gives each pixel a clear gradient,
but is dominated by the background; Dice looks at regions, but says little about outlines; the
Lovász hinge optimises the Jaccard index itself, but is hard to train from scratch. The usual remedy
is a sum:

    loss = w1 loss1 + w2 loss2 + ...          make_loss("bce+dice"), make_loss("0.5*bce+lovasz")
    bce  = -mean(t log p + (1 - t) log(1 - p))               p = sigmoid(logits), t = target
    dice, lovasz: a mean over the images, see minseg.dice and minseg.lovasz
    batch_dice: Dice of all images of the batch together; `train.py` uses bce+batch_dice by default

**Two stages** are the other remedy: train with an easy loss until the network finds the objects,
then switch to the loss that matters. In each stage the learning rate (see `train.py`) warms up over
a tenth of its steps (500 at most) and falls along half a cosine, nearly to 0 if the stage has more
than a few steps. During the warm-up Adam's first moment (beta1 = 0.9) forgets the gradients of the
first loss: after 30 steps 4 % of it comes from them. Its second moment (beta2 = 0.999) mostly does
not: after a long first stage, 97 % at 30 steps and 61 % at 500; after one of 360 steps, 91 % at 30
and 53 % at 240. So the step sizes adapt to the second loss only slowly.

    loss in step s of S  =  first  if s < round(switch S),  else then       (s counts from 0)

`switch` is the first stage's share of the steps. Each stage has at least one step.

![The learning rate of two stages](../docs/figures/losses.png)

*The learning rate over 300 steps: Dice, and from step 180 on Lovász (switch = 0.6).*

**Void pixels** are those that nobody labelled; their target is 255. The loss treats such a pixel as
background that the network already gets right: target 0, logit -10,000. Its loss is then exactly 0
in every term, and so is its gradient. (In BCE it still counts in the denominator of the mean: if
half of an image is void, the other half counts half as much.)

**Shapes.** Like those of its terms: `logits` and `target` (N, C, H, W) -> a scalar, in float32 or
wider. `target` is in {0, 1, 255}.

**Measured.** Instead of BCE + Dice: BCE + Lovász -0.001 on nuclei, -0.039 on synthetic slides (in
runs of 1,200 steps -0.014): a slow start. Dice, then Lovász: -0.006 and -0.435, because 2 of 6
networks found nothing on the slides. BCE + Dice, then Lovász at a lower rate: +0.006 and -0.006,
not told from chance ([how](../docs/study.md)).

**Source.** Yuanhao Wu, *Tricks of Semantic Segmentation*, blog post, 30 May 2021: Lovász with Dice
or cross-entropy, or Dice first and Lovász later; nnU-Net (arXiv 1809.10486, section 2.3) trains
with cross-entropy + Dice.

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

**Exercises.**
1. *By hand.* A batch has two images of two pixels: one is all object and predicted so; the other is
   empty, and one of its pixels is predicted as object. All logits are far from 0. What is dice, and
   what is batch_dice?
2. *Break it.* In a copy of this file, my_losses.py, replace `-1e4` by `-10.0`. Predict, then run:
   which tests fail, and why are the gradients of void pixels still 0?
3. *Write it.* `make_loss(spec)`; the losses of single terms may be imported from minseg.
   `python -m pytest tests/test_losses.py --mine my_losses.py` grades it, and the copy, too.

Next: `minseg.deep_supervision`, where the decoder's smaller maps get the same loss.

**Answers.**
1. The mean of 0 and 1 - 1/(1 + 1); 1 - (2 * 2 + 1)/(3 + 2 + 1). In the batch, one wrong pixel
   weighs less beside an object.
2. `test_void_pixels_are_not_there`, `test_of_void_pixels_bce_counts_the_number_and_nothing_else`,
   `test_an_image_that_is_void_costs_exactly_nothing` and
   `test_void_pixels_are_left_out_at_every_size_of_deep_supervision`: sigmoid(-10) is not 0, so void
   pixels cost a little. But what `masked_fill` puts in place of a logit does not depend on it.

>>> logits = torch.tensor([[99., 99.], [99., -99.]]).view(2, 1, 1, 2)
>>> target = torch.tensor([[1., 1.], [0., 0.]]).view(2, 1, 1, 2)
>>> [round(make_loss(name)(logits, target).item(), 4) for name in ("dice", "batch_dice")]
[0.25, 0.1667]
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .dice import dice_loss
from .lovasz import lovasz_hinge


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of logits (N, C, H, W), the mean over all pixels, images and channels;
    in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce_loss, "dice": dice_loss, "batch_dice": partial(dice_loss, per_image=False),
    "lovasz": lovasz_hinge}


def make_loss(spec: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that `spec` describes: names joined by +, each with an optional weight before a *.
    The names are bce, dice (of each image), batch_dice (of all images together) and lovasz. Void
    pixels (255 in the target) contribute nothing. ValueError for any other name, and for weights
    that are not positive numbers."""
    terms: list[tuple[float, Callable[[Tensor, Tensor], Tensor]]] = []
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
        values = [factor * term(logits, target) for factor, term in terms]
        return sum(values[1:], start=values[0])

    # Whether it is more than the mean of the losses of single images.
    loss.over_batch = any(term is LOSSES["batch_dice"] for _, term in terms)  # type: ignore
    return loss


def first_stage(steps: int, switch: float) -> int:
    """How many of `steps` belong to the first stage: the share `switch`, rounded to the nearest
    step, but at least one step for each stage. ValueError if there are fewer than two steps, and
    for shares outside (0, 1)."""
    if steps < 2 or not 0 < switch < 1:
        raise ValueError(f"two stages of {steps} steps, switched at {switch}: "
                         "need 2 steps or more, and a share between 0 and 1")
    return min(max(round(switch * steps), 1), steps - 1)
