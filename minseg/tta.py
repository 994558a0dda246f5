"""# Test-time augmentation

**In `tutorial.py`**, `after = predict_image(predict, images[8], tile=CROP, stride=CROP // 2)`
becomes `predict_image(flips_and_turns(predict), ...)`.

**Idea.** A slide has no top or bottom: rotated or mirrored it is just as valid, and the answer
should rotate with it. The network's answer does so only approximately. Flips and quarter turns give
eight views of a tile: predict each, transform the answers back, and average them. The errors of the
eight predictions partly cancel, for eight times the work.

    p(x) = 1/8 sum_g  g^-1 f(g x)     f: the network; g: 4 quarter turns, each with and without a
                                      flip; g^-1: its inverse

![Eight views of a tile](../docs/figures/tta.png)

*The eight inputs of the network for one tile. Its answers are transformed back and averaged.*

The mean rotates with the tile, up to rounding: p(h x) = h p(x) for each of the eight transforms h,
because the views of h x are those of x in another order. (A threshold chosen without test-time
augmentation may not be the best with it: averages are less extreme than single predictions.)

Where tiles overlap by half, each pixel is predicted four times anyway. `minseg.tiling` shows it in
another quarter turn each time (`turn=True`), so four of the eight views are there for nothing.

**Shapes.** Those of the function it wraps: uint8 (N, 3, T, T) -> probabilities (N, C, T, T); tiles
are square.

**Measured.** +0.001 on nuclei, +0.024 on synthetic slides: not told from chance after 600 steps. In
runs of 150 and of 1,200 steps on the slides, +0.029 and +0.023: clear. On those of forty patients,
where tiles were turned anyway, another +0.006 [+0.001, +0.011]: clear ([how](../docs/study.md)).

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
>>> upper_left = lambda tiles: tiles * torch.tensor([[1., 0.], [0., 0.]])  # only sees one corner
>>> flips_and_turns(upper_left)(tile)[0, 0]  # a quarter: each pixel is seen in two of eight views
tensor([[0.2500, 0.5000],
        [0.7500, 1.0000]])

**Exercises.**
1. *By hand.* A network answers 1 in the left half of every tile and 0 in the right half, whatever
   it sees. What does it answer with test-time augmentation?
2. *Break it.* In a copy of this file, my_tta.py, replace `answer.rot90(-(i % 4), (2, 3))` by
   `answer.rot90(i % 4, (2, 3))`. Predict, then run: which tests fail, and how many of the eight
   answers are wrong?
3. *Write it.* `flips_and_turns(predict)`. `python -m pytest tests/test_tta.py --mine my_tta.py`
   grades it, and the copy, too.

Next: `minseg.predictor`, because eight views of each tile had better be predicted fast.

**Answers.**
1. 1/2 everywhere: what depends only on the place in the tile averages out.
2. `test_it_is_the_mean_over_eight_views_each_turned_back`,
   `test_the_mean_turns_and_flips_with_the_tile` and
   `test_a_predictor_that_turns_with_the_tile_by_itself_is_unchanged`. Four: a quarter turn the
   wrong way is half a turn off, but no turn and half a turn are their own inverse.

>>> left = lambda tiles: torch.tensor([[1., 0.], [1., 0.]]).expand(len(tiles), 1, 2, 2)
>>> flips_and_turns(left)(tile).unique().item()
0.5
"""

from collections.abc import Callable

import torch
from torch import Tensor


def flips_and_turns(predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`predict`, averaged over the eight views of square tiles: (N, 3, T, T) -> (N, C, T, T), like
    `predict` itself, which is called once with all views, (8N, 3, T, T)."""

    def mean_of_views(tiles: Tensor) -> Tensor:
        turned = [tiles.rot90(turn, (2, 3)) for turn in range(4)]
        views = torch.cat([*turned, *(view.flip(3) for view in turned)])  # (8N, 3, T, T)
        answers = predict(views).chunk(8)
        unflipped = [*answers[:4], *(answer.flip(3) for answer in answers[4:])]
        back = [answer.rot90(-(i % 4), (2, 3)) for i, answer in enumerate(unflipped)]
        return sum(back[1:], start=back[0]) / 8

    return mean_of_views
