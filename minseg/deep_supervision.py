"""# Deep supervision

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` becomes
`UNet("efficientnet-lite0", deep_supervision=True)`, and `value = loss(logits, targets[crop])`
becomes `deep_supervision_loss(loss, logits, targets[crop])`.

**Idea.** The loss is computed at the end of the decoder, and its gradient reaches the deep blocks
only through all the others. Give each block a logit map of its own and, except for the deepest, a
loss of its own at its own size: the gradient takes a short path, and deep maps already
resemble the answer. The coarser logits are only used in training.

    loss = sum_k w_k loss(logits_k, target resized to logits_k)          k = 0: the finest
    w_k  proportional to 1, 1/2, 1/4 ..., except 0 for the coarsest; their sum is 1

![Five answers and five targets](../docs/figures/deep_supervision.png)

*The five logit maps of a trained network, as probabilities, and below each the target at its size.
Already the map of 32 x 32 finds every glomerulus. The last has weight 0, so it was never trained.*

**Shapes.** `logits`, finest first: (N, C, H, W), (N, C, H/2, W/2) ... (from `minseg.unet`, with
`deep_supervision=True`); `target` (N, C, H, W). H and W must be multiples of the coarsest factor
that has a weight, which is 8 for five maps. Otherwise targets are shifted against their logits by
up to one block (a pixel of the coarser map); `train.py` asks for a multiple of 8.

The target is resized to the value of the nearest pixel, so that it stays 0 or 1. If the factor is
even, four pixels are equally near: nnU-Net takes the lower right one (`nearest-exact` in PyTorch;
plain `nearest` would take the block's upper left corner, up to half a block from its centre).

| what | deeply-supervised nets | nnU-Net | HuBMAP's winner | here |
|---|---|---|---|---|
| compared at | - (one label per image) | each map's size | full size, maps upsampled | as nnU-Net |
| weights | decrease over the epochs | 1, 1/2, 1/4 ..., 0; sum 1 | 1, then 0.1 each | nnU-Net's |
| which images | all | all | finest: all, others: with positives | all |
| logits from | one classifier per layer | 1 x 1 | 1 x 1 | 1 x 1, the finest 3 x 3 |

segmentation_models.pytorch has no deep supervision. The weight 0 is nnU-Net's, and suits small
objects: at 1/16 of the size, an object 100 pixels wide is only six pixels wide, and its outline
cannot be right. The coarsest map's
1 x 1 convolution therefore does not learn unless other `weights` are given.

**Measured.** +0.003 on nuclei, -0.009 on synthetic slides, -0.002 [-0.006, +0.002] on those of
forty patients: not told from chance ([how](../docs/study.md)).

**Source.** Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185; the weights:
MIC-DKFZ/nnUNet, `nnUNetTrainer._build_loss`; the targets: MIC-DKFZ/batchgeneratorsv2,
`DownsampleSegForDSTransform`. The winner's code: tikutikutiku/kaggle-hubmap, `src/models.py` and
`src/losses.py`.

>>> import torch
>>> from minseg.deep_supervision import deep_supervision_loss, deep_supervision_weights
>>> [round(weight, 3) for weight in deep_supervision_weights(5)]
[0.533, 0.267, 0.133, 0.067, 0.0]
>>> logits = [torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)]
>>> squared = lambda logits, target: ((logits - target) ** 2).mean()
>>> target = torch.tensor([[0., 0.], [0., 1.]]).tile(1, 1, 2, 2)  # resized to 2 x 2: all 1
>>> # 1/4 of the finest map is wrong, by 1, and its weight is 2/3; the coarsest has weight 0
>>> round(deep_supervision_loss(squared, logits, target).item(), 4)
0.1667

**Exercises.**
1. *By hand.* A target of 4 x 4 has one positive pixel, in row 0 and column 0. Which share of it is
   positive at 2 x 2? And if the pixel is in row 1 and column 1? What does that do to small objects?
2. *Break it.* In a copy of this file, my_deep_supervision.py, replace `"nearest-exact"` by
   `"nearest"`. Predict, then run: which tests fail?
3. *Write it.* `deep_supervision_loss(loss, logits, target, weights=None)`.
   `python -m pytest tests/test_deep_supervision.py --mine my_deep_supervision.py` grades it, and
   the copy, too.

Next: `minseg.sampling`, which chooses the tiles that the loss gets to see.

**Answers.**
1. 0, then 1/4, though it was 1/16: at a coarse size a small object disappears or is too large.
2. `test_it_is_the_weighted_sum_over_scales`, `test_targets_are_the_pixels_nearest_to_each_middle`
   and, where scikit-image is installed, `test_targets_are_those_of_skimage_as_nnunet_calls_it`:
   targets move up and to the left.

>>> for pixel in (0, 1):
...     target = torch.zeros(1, 1, 4, 4)
...     target[..., pixel, pixel] = 1
...     share = lambda logits, target: target.mean()
...     print(deep_supervision_loss(share, logits[:2], target, weights=[0, 1]).item())
0.0
0.25
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def deep_supervision_weights(scales: int) -> list[float]:
    """1, 1/2, 1/4 ... and 0 for the coarsest, divided by their sum; [1.0] for a single scale."""
    weights = [0.5**k for k in range(scales)]
    if scales > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def deep_supervision_loss(loss: Callable[[Tensor, Tensor], Tensor],
                          logits: Tensor | Sequence[Tensor], target: Tensor,
                          weights: Sequence[float] | None = None) -> Tensor:
    """The weighted sum of `loss` over scales (arXiv 1409.5185; weights and targets nnU-Net's).
    `logits`, finest first, are (N, C, h, w) each; a single tensor is a single scale, and the result
    is `loss` itself. `target` is (N, C, H, W). `weights`, one for each scale, are used as given; a
    scale of weight 0 is not computed at all. ValueError if there are not as many as scales."""
    logits = [logits] if isinstance(logits, Tensor) else logits
    weights = deep_supervision_weights(len(logits)) if weights is None else weights
    if len(weights) != len(logits):
        raise ValueError(f"{len(weights)} weights for {len(logits)} scales")
    total = torch.zeros((), device=target.device)
    for weight, scale_logits in zip(weights, logits):
        if weight:
            resized = target.to(scale_logits.dtype)
            if scale_logits.shape[2:] != target.shape[2:]:
                resized = F.interpolate(resized, scale_logits.shape[2:], mode="nearest-exact")
            total = total + weight * loss(scale_logits, resized)
    return total
