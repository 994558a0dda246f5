"""# Hypercolumns

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` becomes
`UNet("efficientnet-lite0", hypercolumn=True)`.

**Idea.** The decoder's last map has the full resolution but may have lost some of what the deeper
maps knew. So describe each pixel by *all* maps at once, from the finest to the coarsest: the column
of values above that pixel.

    z = ReLU(BN(W [d0, up(d1), up(d2), up(d3), up(d4)]))               [ , ]: channels side by side

up is bilinear upsampling to the size of d0; W is a 1 x 1 convolution. Taken literally this is
expensive: in `minseg.unet`, whose maps have 16, 32, 64, 128 and 256 channels, W reduces a stack of
496 channels at full size to 16. But a 1 x 1 convolution is a matrix applied to every pixel, and up
is a weighted mean of neighbouring pixels, so the two commute; and a matrix times a stack is a sum:

    W [d0, up(d1), ...] = W0 d0 + up(W1 d1) + ... + up(W4 d4)

So each map is projected first, while it is small, then upsampled and added. The result is the same
up to rounding, and no map at full size has more channels than d0 or the sum. (W0 ... W4 are
`project`; BN is `norm`.)

**Shapes.** `maps`, finest first: (N, C0, H, W), (N, C1, H/2, W/2) ... -> (N, out_channels, H, W).

![Two ways to the same picture](../docs/figures/hypercolumn.png)

*Both ways on the maps of a trained network: the stack of 496 channels and its projection, and five
projections, upsampled and added. The results are the same; the projections, before they are
upsampled, hold 23 times fewer numbers than the stack.*

**What it saves** depends on the output: with 16 channels, the projections hold 23 times fewer
numbers than the stack, with 64 only 6 times fewer. With 16, forward and backward in float32 on 2
images of 640 x 640, this module needs 0.21 GiB of memory beyond the maps, the concatenation 3.84
GiB; on two CPU cores it takes 0.8 s, the concatenation 8.1 s (`python -m lab.bench hypercolumn`).
Of a whole training step this is a small part ([study](../docs/study.md#the-tricks)).

**Measured.** +0.017 on nuclei, -0.009 on synthetic slides, +0.002 [-0.003, +0.008] on those of
forty patients: not told from chance ([how](../docs/study.md)).

| what | paper | HuBMAP's winner | here |
|---|---|---|---|
| which maps | three layers of a classifier | the decoder's five | the decoder's five |
| upsampling | bilinear | bilinear, corners aligned | bilinear, corners not aligned |
| channels | - | 5 x 64 = 320, to 64 | 496, to 16 |
| then | classifiers on a grid, interpolated | 3 x 3, ELU, 1 x 1 | 1 x 1, BN, ReLU, head |
| built as | a sum of projected maps | a concatenation | a sum of projected maps |

segmentation_models.pytorch's U-Net has none. (The winner's 3 x 3 convolution does not commute with
upsampling: this shortcut needs a 1 x 1.)

**Source.** Hariharan, Arbeláez, Girshick and Malik, *Hypercolumns for Object Segmentation and
Fine-grained Localization*, CVPR 2015, arXiv 1411.5752, which also projects before upsampling
("Efficient classification using convolutions and upsampling"). The winner's code:
tikutikutiku/kaggle-hubmap, `src/models.py`.

>>> import torch
>>> from torch.nn import functional as F
>>> from minseg import Hypercolumn
>>> column, d0, d1 = Hypercolumn([16, 32], 8), torch.randn(1, 16, 8, 8), torch.randn(1, 32, 4, 4)
>>> stack = torch.cat([d0, F.interpolate(d1, scale_factor=2, mode="bilinear")], 1)
>>> W = torch.cat([layer.weight for layer in column.project], 1)
>>> stack.shape, W.shape
(torch.Size([1, 48, 8, 8]), torch.Size([8, 48, 1, 1]))
>>> torch.allclose(column([d0, d1]), F.relu(column.norm(F.conv2d(stack, W))), atol=1e-5)
True

**Exercises.**
1. *By hand.* One row of a map is 0, 4. Upsample it to four pixels and double them; then double it
   first. Now square instead of doubling. Where does the order matter, and what does this say about
   the place of the ReLU?
2. *Break it.* In a copy of this file, my_hypercolumn.py, replace `(2 / sum(in_channels)) ** 0.5` by
   `(2 / layer.in_channels) ** 0.5`. Predict, then run: which test fails?
3. *Write it.* `Hypercolumn(in_channels, out_channels)`, with the layers `project`, a ModuleList,
   and `norm`. `python -m pytest tests/test_hypercolumn.py --mine my_hypercolumn.py` grades it, and
   the copy, too.

Next: `minseg.dice`, because the network is now complete and needs a loss.

**Answers.**
1. With squares only. A 1 x 1 convolution is linear, as doubling is, and may come first; the ReLU is
   not, so it waits for the sum.
2. `test_weights_start_as_those_of_one_convolution`: each map would then weigh the same in the sum,
   be it of 16 channels or of 256, instead of each channel.

>>> row, up = torch.tensor([[[[0., 4.]]]]), lambda x: F.interpolate(x, (1, 4), mode="bilinear")
>>> for f in (lambda x: 2 * x, lambda x: x**2):
...     print(f(up(row)).flatten().tolist(), up(f(row)).flatten().tolist())
[0.0, 2.0, 6.0, 8.0] [0.0, 2.0, 6.0, 8.0]
[0.0, 1.0, 9.0, 16.0] [0.0, 4.0, 12.0, 16.0]
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Hypercolumn(nn.Module):
    """Fuses maps of all sizes by a 1 x 1 convolution of their stack, without building the stack
    (arXiv 1411.5752). `in_channels`: the channels of each map, finest first."""

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        layers = [nn.Conv2d(c, out_channels, 1, bias=False) for c in in_channels]
        self.project = nn.ModuleList(layers)
        self.norm = nn.BatchNorm2d(out_channels)
        for layer in layers:  # initialised like the one convolution that they are slices of
            nn.init.normal_(layer.weight, 0, (2 / sum(in_channels)) ** 0.5)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, C0, H, W), (N, C1, H/2, W/2) ... -> (N, out_channels, H, W). ValueError if the
        number of maps is not that of `in_channels`."""
        if len(maps) != len(self.project):
            raise ValueError(f"{len(maps)} maps for a hypercolumn of {len(self.project)}")
        total = self.project[0](maps[0])  # (N, out_channels, H, W)
        for layer, x in zip(self.project[1:], maps[1:]):
            total += F.interpolate(layer(x), total.shape[2:], mode="bilinear")
        return F.relu(self.norm(total))
