"""# CBAM: first which channels, then which pixels

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` becomes
`UNet("efficientnet-lite0", attention="cbam")`.

**Idea.** As in `minseg.scse`, a map computes weights for its own channels and pixels; but one after
the other, and each from the maximum as well as from the mean, because averaging hides a rare strong
response.

    MLP(v) = W2 ReLU(W1 v + b1) + b2                           two 1 x 1 convolutions
    c      = sigmoid(MLP(max of x over pixels) + MLP(mean of x over pixels))     (N, C, 1, 1)
    x'     = c x
    s      = sigmoid(BN(f([max of x' over channels, mean of x' over channels]))) (N, 1, H, W)
    output = s x'

f is a k x k convolution of two maps to one, without bias. The paper calls W1 and W2 W0 and W1. In
the code `reduce` is W1 with b1, `expand` is W2 with b2, `spatial` is f, and `norm` is BN.

**Shapes.** (N, C, H, W) -> the same. W1 has `max(1, C // reduction)` rows, k is `kernel_size`.

![A map on its way through CBAM](../docs/figures/cbam.png)

*A trained block on one map of a decoder (dark: low, yellow: high). c is below 1/2 for about half
of the 32 channels. s is 0.92 on average in glomeruli and 0.44 elsewhere: it weakens all but the
object, although nothing in the loss tells it to.*

| what | paper | authors' code | timm | HuBMAP's winner | here |
|---|---|---|---|---|---|
| the two maps | mean, max | max, mean | mean, max | max, mean | max, mean |
| k | 7 | 7 | 7 | 3 | `kernel_size`, 7 |
| norm after f | not said | BN, momentum 0.01 | BN | none | `spatial_norm`: BN, momentum 0.1 |
| MLP's biases | left out | yes | none | none | yes |

`CBAM(channels, kernel_size=3, spatial_norm=False)` is the winner's except for the biases and the
initialisation (the winner's weights are Kaiming normal). The winner applies it to the second
convolution's output, which no norm or ReLU follows, and then adds a 1 x 1 shortcut around the whole
decoder block; `minseg.unet` applies it after the ReLU. segmentation_models.pytorch has no CBAM.

b1 starts at 1 because otherwise a single hidden channel (all that `reduction` leaves of 16) may
output 0 for every image from the start and never learn (see `minseg.scse`). c and s start near 1/2,
as in the other implementations. Starting with open gates did not help (below).

**Measured.** +0.021 on nuclei, -0.003 on synthetic slides: not told from chance. With c and s near
1 at the start: +0.014 and +0.006 ([how](../docs/study.md)).

**Source.** Woo, Park, Lee and Kweon, *CBAM: Convolutional Block Attention Module*, ECCV 2018, arXiv
1807.06521, equations 1 to 3; code: Jongchan/attention-module; the winner's:
tikutikutiku/kaggle-hubmap, `src/models.py`.

>>> import torch
>>> from torch import nn
>>> from minseg import CBAM
>>> flat, peak = torch.ones(4, 4), torch.zeros(4, 4)
>>> peak[0, 0] = 16  # both have mean 1
>>> block, x = CBAM(1, spatial_norm=False), torch.stack([flat, peak])[:, None]
>>> for layer, weight in ((block.reduce, 1), (block.expand, 1), (block.spatial, 0)):
...     _ = nn.init.constant_(layer.weight, weight)
>>> _ = nn.init.constant_(block.reduce.bias, -4), nn.init.constant_(block.expand.bias, -1)
>>> block(x).mean((1, 2, 3)).detach()  # s is 1/2; c is sigmoid(-2) and sigmoid(12 - 2)
tensor([0.0596, 0.5000])

**Exercises.**
1. *By hand.* All parameters are 0, k is 3, and there is no norm. What does the block make of a map
   of eights? And what does `minseg.scse` make of it, with all its parameters at 0?
2. *Break it.* In a copy of this file, my_cbam.py, replace
   `[x.amax(1, keepdim=True), x.mean(1, keepdim=True)]` by
   `[x.mean(1, keepdim=True), x.amax(1, keepdim=True)]`. Predict, then run: which tests fail? Would
   training mind?
3. *Write it.* `CBAM(channels, reduction=16, kernel_size=7, spatial_norm=True)`, with the layers
   `reduce`, `expand`, `spatial` and `norm`. `python -m pytest tests/test_cbam.py --mine my_cbam.py`
   grades it, and the copy, too.

Next: `minseg.hypercolumn`, where the decoder's last map gets to see all the others.

**Answers.**
1. Twos, while SCSE leaves the eights: 1/2 times 1/2 one after the other, but 1/2 plus 1/2 side by
   side.
2. `test_it_is_its_equations` and
   `test_the_two_maps_are_the_maximum_and_then_the_mean_of_the_weighed_channels`. Training would not
   mind, because f learns either order, but weights trained with the other one would not fit.

>>> from minseg import SCSE
>>> for block in (CBAM(4, kernel_size=3, spatial_norm=False), SCSE(4)):
...     _ = [nn.init.zeros_(p) for p in block.parameters()]
...     print(block(torch.full((1, 4, 3, 3), 8.)).unique().tolist())
[2.0]
[8.0]
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CBAM(nn.Module):
    """Convolutional block attention module (arXiv 1807.06521, equations 1 to 3). `kernel_size`
    must be odd (else ValueError); `spatial_norm` puts a batch norm before the second sigmoid."""

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7,
                 spatial_norm: bool = True):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is odd, not {kernel_size}")
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1)  # W1, b1
        self.expand = nn.Conv2d(hidden, channels, 1)  # W2, b2
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1) if spatial_norm else nn.Identity()
        nn.init.ones_(self.reduce.get_parameter("bias"))  # the ReLU starts active, see above

    def mlp(self, v: Tensor) -> Tensor:
        """(N, C, 1, 1) -> (N, C, 1, 1), through a few hidden channels."""
        return self.expand(F.relu(self.reduce(v)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        largest, mean = x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        x = x * (self.mlp(largest) + self.mlp(mean)).sigmoid()  # the equation's x'
        maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)  # (N, 2, H, W)
        return x * self.norm(self.spatial(maps)).sigmoid()
