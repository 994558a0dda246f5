"""# Hypercolumns

**Idea.** The decoder's last map is fine but has forgotten much of what the deeper ones knew. So
describe each pixel by *all* maps at once, from the finest to the coarsest: the column of numbers
that lie above it.

    z = BN and ReLU of  W [d0, up(d1), up(d2), up(d3), up(d4)]         [ , ]: channels side by side

up is bilinear, to the size of d0; W is a 1 x 1 convolution. Taken literally this is costly: 496
channels at full size for a U-Net of 256, 128, 64, 32 and 16. But a 1 x 1 convolution is a matrix
applied in every pixel, up is a mean of neighbouring pixels, and the two can change places; and a
matrix times a stack is a sum:

    W [d0, up(d1), ...] = W0 d0 + up(W1 d1) + ... + up(W4 d4)

So each map is projected first, where it is small, then enlarged and added. The result is the same
to rounding, and nothing at full size is wider than d0 or the sum.

**Shapes.** `maps`, finest first: (N, C0, H, W), (N, C1, H/2, W/2) ... -> (N, out_channels, H, W).

![Two ways to the same picture](../docs/figures/hypercolumn.png)

*Both ways on the maps of a trained network: the stack of 496 maps and its projection, and five
projections, enlarged and added. The pictures are the same; the projections, before they are
enlarged, hold 23 times fewer numbers than the stack.*

**What it saves**, forward and backward in float32 on 2 images of 640 x 640: 0.21 GiB of memory
beyond the maps where the concatenation takes 3.84 GiB, and on two cores of a CPU 0.8 s where that
takes 8.1 s (`python -m lab.bench hypercolumn`).

| what | paper | HuBMAP's winner | here |
|---|---|---|---|
| which maps | three layers of a classifier | the decoder's five | the decoder's five |
| enlarged | bilinear | bilinear, corners aligned | bilinear, corners not aligned |
| then | classifiers on a grid, interpolated | 3 x 3 to 64, ELU, 1 x 1 | 1 x 1, BN, ReLU, head |
| built as | a sum of projected maps | the concatenation of 320 | a sum of projected maps |

segmentation_models.pytorch's U-Net has none. (A 3 x 3 convolution, the winner's, would not change
places with up: the trick needs the 1 x 1.)

**Source.** Hariharan, Arbeláez, Girshick and Malik, *Hypercolumns for Object Segmentation and
Fine-grained Localization*, CVPR 2015, arXiv 1411.5752; the change of places is theirs too
("Efficient classification using convolutions and upsampling"). The winner's:
tikutikutiku/kaggle-hubmap, `src/models.py`.

>>> import torch
>>> from torch.nn import functional as F
>>> from minseg import Hypercolumn
>>> column, d0, d1 = Hypercolumn([16, 32], 8), torch.randn(1, 16, 8, 8), torch.randn(1, 32, 4, 4)
>>> stack = torch.cat([d0, F.interpolate(d1, scale_factor=2, mode="bilinear")], 1)
>>> W = torch.cat([part.weight for part in column.project], 1)
>>> stack.shape, W.shape
(torch.Size([1, 48, 8, 8]), torch.Size([8, 48, 1, 1]))
>>> torch.allclose(column([d0, d1]), F.relu(column.norm(F.conv2d(stack, W))), atol=1e-5)
True
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class Hypercolumn(nn.Module):
    """Maps of all sizes as one (arXiv 1411.5752): a 1 x 1 fusion that never builds their stack.
    `in_channels`: one number a map, finest first."""

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, out_channels, 1, bias=False) for c in in_channels)
        self.norm = nn.BatchNorm2d(out_channels)
        for part in self.project:  # as if it were the one convolution that it is a part of
            nn.init.normal_(part.weight, 0, (2 / sum(in_channels)) ** 0.5)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, C0, H, W), (N, C1, H/2, W/2) ... -> (N, out_channels, H, W). ValueError where there
        are not as many maps as there were `in_channels`."""
        if len(maps) != len(self.project):
            raise ValueError(f"{len(maps)} maps for a hypercolumn of {len(self.project)}")
        total = self.project[0](maps[0])  # (N, out_channels, H, W)
        for part, x in zip(self.project[1:], maps[1:]):
            total += F.interpolate(part(x), total.shape[2:], mode="bilinear")
        return F.relu(self.norm(total))
