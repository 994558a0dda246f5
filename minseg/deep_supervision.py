"""# Deep supervision

**Idea.** The loss sits at the end of the decoder and reaches its deep blocks only through all the
others. Give each of them a logit map of its own and, but for the deepest, a loss of its own, at its
own size: a short way for the gradient, and deep maps that already look like the answer. Only
training uses these maps.

    loss = sum_k w_k loss(logits_k, target resized to logits_k)          k = 0: the finest
    w_k  proportional to 1, 1/2, 1/4 ..., but the coarsest 0; their sum is 1

![Five answers and five targets](../docs/figures/deep_supervision.png)

*The five logit maps of a trained network, as probabilities, and below each the target at its size.
The last has the weight 0, and so nothing to say.*

**Shapes.** `logits`, finest first: (N, C, H, W), (N, C, H/2, W/2) ... (from `minseg.unet`, with
`deep_supervision=True`); `target` (N, C, H, W). H and W are multiples of the coarsest factor, or
targets lie up to almost a whole block beside their logits.

The target is resized by its nearest pixel, so that it stays 0 or 1. Where the factor is even, four
pixels lie equally near: nnU-Net takes the lower right one (`nearest-exact` in PyTorch; plain
`nearest` would take the upper left corner of the whole block, half a block beside its middle).

| what | deeply-supervised nets | nnU-Net | HuBMAP's winner | here |
|---|---|---|---|---|
| compared at | - (a label an image) | each map's size | full size, maps enlarged | as nnU-Net |
| weights | fall with the epochs | 1, 1/2, 1/4 ..., 0; sum 1 | 1, then 0.1 each | nnU-Net's |
| which images | all | all | finest: all, others: with positives | all |
| logits from | a classifier a layer | 1 x 1 | 1 x 1 | 1 x 1, the finest 3 x 3 |

segmentation_models.pytorch has no deep supervision. The weight 0 is nnU-Net's, and suits small
objects: at 1/16 of the size, an object 100 pixels wide is a dot of six. So the coarsest map's 1 x 1
convolution does not learn, unless one gives other `weights`.

**Source.** Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv 1409.5185; the weights:
MIC-DKFZ/nnUNet, `nnUNetTrainer._build_loss`; the targets: `DownsampleSegForDSTransform`. The
winner's: tikutikutiku/kaggle-hubmap, `src/models.py` and `src/losses.py`.

>>> import torch
>>> from minseg.deep_supervision import deep_supervision_loss, deep_supervision_weights
>>> [round(weight, 3) for weight in deep_supervision_weights(5)]
[0.533, 0.267, 0.133, 0.067, 0.0]
>>> logits = [torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)]
>>> squared = lambda logits, target: ((logits - target) ** 2).mean()
>>> target = torch.tensor([[0., 0.], [0., 1.]]).tile(1, 1, 2, 2)  # resized to 2 x 2: all 1
>>> # 1/4 of the finest map is wrong, by 1, and its weight is 2/3; the coarsest has the weight 0
>>> round(deep_supervision_loss(squared, logits, target).item(), 4)
0.1667
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
    `logits`, finest first, are (N, C, h, w) each; a single tensor is a single scale, so this is
    `loss` itself. `target` is (N, C, H, W). `weights`, one a scale, are taken as they are; where
    one is 0 its scale costs nothing, not even time. ValueError where their number differs."""
    logits = [logits] if isinstance(logits, Tensor) else logits
    weights = deep_supervision_weights(len(logits)) if weights is None else weights
    if len(weights) != len(logits):
        raise ValueError(f"{len(weights)} weights for {len(logits)} scales")
    total = torch.zeros((), device=target.device)
    for weight, part in zip(weights, logits):
        if weight:
            small = target.to(part.dtype)
            if part.shape[2:] != target.shape[2:]:
                small = F.interpolate(small, part.shape[2:], mode="nearest-exact")
            total = total + weight * loss(part, small)
    return total
