"""# Test-time augmentation

**Idea.** A slide has no upper side: turned or mirrored it is as good a slide, and the answer should
turn with it. The network's does not quite. Ask it for all eight views that flips and quarter turns
make of a tile, turn the answers back, and average: eight opinions whose errors partly cancel, for
eight times the work.

    p(x) = 1/8 sum_g  g^-1 f(g x)     f: the network; g: 4 quarter turns, each with and without a
                                      flip; g^-1: its undoing

![Eight views of a tile](../docs/figures/tta.png)

*What the network is given for one tile. Its answers are turned back and averaged.*

The mean turns with the tile: p(h x) = h p(x) for each of the eight, for the sum over all g h is the
sum over all g in another order. (A threshold chosen without views may not be the best with them:
averages lie nearer to the middle.)

**Shapes.** As what it wraps: uint8 (N, 3, T, T) -> probabilities (N, C, T, T); tiles are square.

| what | nnU-Net | here |
|---|---|---|
| views | flips along each axis: 4 (8 in 3D) | 4 quarter turns, each with and without a flip: 8 |
| mean of | logits (its first version: probabilities) | probabilities |

**Source.** Krizhevsky, Sutskever and Hinton, *ImageNet Classification with Deep Convolutional
Neural Networks*, NIPS 2012, section 4.1 (crops and reflections, averaged); the eight as a group:
Cohen and Welling, *Group Equivariant Convolutional Networks*, ICML 2016, arXiv 1602.07576.

>>> import torch
>>> from minseg import flips_and_turns
>>> tile = 1 + torch.arange(4.).view(1, 1, 2, 2)
>>> upper_left = lambda tiles: tiles * torch.tensor([[1., 0.], [0., 0.]])  # sees one corner only
>>> flips_and_turns(upper_left)(tile)[0, 0]  # a quarter of each: seen in two of eight views
tensor([[0.2500, 0.5000],
        [0.7500, 1.0000]])
"""

from collections.abc import Callable

import torch
from torch import Tensor


def flips_and_turns(predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`predict`, averaged over the eight views of a square tile. Takes and returns what `predict`
    does, (N, 3, T, T) -> (N, C, T, T), and calls it once, with all views: (8N, 3, T, T)."""

    def mean_of_views(tiles: Tensor) -> Tensor:
        turned = [tiles.rot90(turn, (2, 3)) for turn in range(4)]
        views = torch.cat([*turned, *(view.flip(3) for view in turned)])  # (8N, 3, T, T)
        answers = predict(views).chunk(8)
        turned = [*answers[:4], *(answer.flip(3) for answer in answers[4:])]  # without the flip
        return sum(answer.rot90(-(i % 4), (2, 3)) for i, answer in enumerate(turned)) / 8

    return mean_of_views
