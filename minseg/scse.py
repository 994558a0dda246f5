"""# SCSE: squeeze and excite, channels and pixels

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` becomes
`UNet("efficientnet-lite0", attention="scse")`.

**Idea.** Let a map compute its own weights, in two ways at once. *Squeeze* the map into a few
numbers, and let these *excite* or suppress parts of it: each channel is weighted by the means of
all channels (what is in this image?), and each pixel by all channels of that pixel (does it matter
here?).

    c      = sigmoid(W2 ReLU(W1 mean(x) + b1) + b2)      (N, C, 1, 1)    mean over all pixels
    s      = sigmoid(v . x + b)                          (N, 1, H, W)    a sum over channels
    output = c x + s x          or, with merge="max",  max(c x, s x)

In the code `reduce` is W1 with b1, `expand` is W2 with b2, and `spatial` is v with b. On average c
and s start at 1/2, so with the sum the block starts near the identity. b1 starts at 1 (see below).

**Shapes.** (N, C, H, W) -> the same. W1 squeezes C channels to `max(1, C // reduction)`.

![A map, its two weights, and the sum](../docs/figures/scse.png)

*A trained block on one map of a decoder. c weights its 32 channels. s weights its pixels: it is
highest in glomeruli (0.99 on average, elsewhere 0.96), but near 1 nearly everywhere. Here the
channel weights do the selecting.*

| what | paper | authors' code | segmentation_models.pytorch | here |
|---|---|---|---|---|
| merge | sum (journal: max, too) | max(c x, s x) | sum | `merge` |
| reduction | 2 | 2 | 16 | `reduction`, 16 |
| where | after each block | the user's choice | both ends of a decoder block | its end |
| where C < reduction | - | - | no hidden channel: fails | one hidden channel |
| b1 at the start | - | random, about 0 | random, about 0 | 1 |

b1 starts at 1 because there are few hidden channels: for 16 channels, `reduction` leaves one. With
b1 about 0, in about half of all runs its ReLU outputs 0 for every image and can then never learn.

**Measured.** +0.015 on nuclei, +0.004 on synthetic slides, -0.001 [-0.005, +0.003] on those of
forty patients: not told from chance ([how](../docs/study.md)).

**Source.** Roy, Navab and Wachinger, *Concurrent Spatial and Channel Squeeze & Excitation in Fully
Convolutional Networks*, MICCAI 2018, arXiv 1803.02579, section 2; the maximum: their journal paper,
arXiv 1808.08127. The winner of HuBMAP used `minseg.cbam` instead.

>>> import torch
>>> from torch import nn
>>> from minseg import SCSE
>>> block, x = SCSE(2), torch.tensor([[[[1., 1.]], [[0., 1.]]]])  # two channels, two pixels
>>> for layer in (block.expand, block.spatial):  # sigmoid(0) is 1/2: nothing changes
...     _ = nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
>>> torch.equal(block(x), x)
True
>>> _ = nn.init.constant_(block.spatial.weight, 2), nn.init.constant_(block.spatial.bias, -3)
>>> block(x)[0, :, 0].detach()  # (1/2 + s) x; s: sigmoid(-1) left, sigmoid(1) right
tensor([[0.7689, 1.2311],
        [0.0000, 1.2311]])

**Exercises.**
1. *By hand.* `expand` is all zeros, and `spatial`, too, except for its bias, which is 100. What
   does the block make of the pixels 2 and -2 of a single channel, with "add" and with "max"?
2. *Break it.* In a copy of this file, my_scse.py, replace
   `nn.init.ones_(self.reduce.get_parameter("bias"))` by `pass`. Predict, then run: which test
   fails?
3. *Write it.* `SCSE(channels, reduction=16, merge="add")`, with three 1 x 1 convolutions, `reduce`,
   `expand` and `spatial`; a ValueError names any other `merge`.
   `python -m pytest tests/test_scse.py --mine my_scse.py` grades it, and the copy, too.

Next: `minseg.cbam`, the same two weights, one after the other.

**Answers.**
1. c is 1/2 and s is 1. Of a negative number, the maximum keeps what the *smaller* weight leaves.
2. `test_a_single_hidden_channel_lives_from_the_start`: it tries 50 seeds, and with some of them the
   only hidden channel is 0 for every image, so no gradient reaches it.

>>> for merge in ("add", "max"):
...     block = SCSE(1, merge=merge)
...     for layer, bias in ((block.expand, 0), (block.spatial, 100)):
...         _ = nn.init.zeros_(layer.weight), nn.init.constant_(layer.bias, bias)
...     print(block(torch.tensor([[[[2., -2.]]]])).flatten().tolist())
[3.0, -3.0]
[2.0, -1.0]
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze & excitation (arXiv 1803.02579, section 2). `merge` is
    "add" or "max"; ValueError for any other."""

    def __init__(self, channels: int, reduction: int = 16, merge: str = "add"):
        super().__init__()
        if merge not in ("add", "max"):
            raise ValueError(f'merge is "add" or "max", not {merge!r}')
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1)  # W1, b1
        self.expand = nn.Conv2d(hidden, channels, 1)  # W2, b2
        self.spatial = nn.Conv2d(channels, 1, 1)  # v, b
        self.merge = merge
        nn.init.ones_(self.reduce.get_parameter("bias"))  # the ReLU starts active, see above

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        c = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()  # (N, C, 1, 1)
        s = self.spatial(x).sigmoid()  # (N, 1, H, W)
        # The sum needs less memory: its backward pass keeps only x, that of the maximum also keeps
        # both weighted maps.
        return c * x + s * x if self.merge == "add" else torch.maximum(c * x, s * x)
