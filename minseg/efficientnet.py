"""# EfficientNet, the encoder

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` names its encoder, which is explained here.
`UNet("efficientnet-b0")` takes a larger one.

**Idea.** Find one small network that uses its multiply-adds well, then make it deeper, wider and
its input larger *together*, by one rule. Its block, MBConv, expands x to many channels, filters
each channel separately, weights the channels, and projects to few channels again:

    expand    x -> 1x1 convolution, t times the channels        -> norm -> SiLU   (not if t = 1)
    depthwise      k x k, one filter per channel, stride 1 or 2 -> norm -> SiLU
    squeeze        channel mean -> 1x1, a quarter of x's channels -> SiLU -> 1x1 -> sigmoid, times
                   the map
    project        1x1 convolution to c channels                -> norm        (no activation)
    add            + x, if the stride is 1 and x has c channels

![Channels of a block, and sizes of B0 to B7](../docs/figures/efficientnet.png)

*Top: the channels of one block of B0. There are many only inside the block, where each is filtered
separately; between blocks there are few. Bottom: the parameters of B0 to B7.*

**Compound scaling.** For a coefficient phi, depth = 1.2^phi, width = 1.1^phi and resolution =
1.15^phi, so the multiply-adds grow like (1.2 * 1.1^2 * 1.15^2)^phi, about 2^phi. The authors' pairs
(width, depth) in `SCALES` follow it loosely; channels are rounded to multiples of 8, repeats up.

**Shapes.** (N, 3, H, W) -> `features`, five maps for a decoder: the stem's, the last of strides 4,
8 and 16, and the last of all. B0: 32, 24, 40, 112 and 320 channels at strides 2, 4, 8, 16 and 32.

**Stochastic depth** reduces overfitting: in training, a block that adds x outputs only x with
probability p, else x + branch / (1 - p), decided for each image. p grows linearly with depth.

| what | paper | TensorFlow code | torchvision | timm | here |
|---|---|---|---|---|---|
| padding at stride 2 | not said | SAME | symmetric | `tf_*` SAME, else symmetric | `padding` |
| batch norm's epsilon | not said | 1e-3 | 1e-5, B5 up 1e-3 | `tf_*` 1e-3, else 1e-5 | `bn_eps` |
| batch norm's momentum | 0.99 | 0.99 | 0.1, from B5 up 0.01 | 0.1 | 0.1 |
| p of block i of n | 0.2, linear | 0.2 i / n | 0.2 i / n | an argument | `stochastic_depth` i / n |

(TensorFlow's momentum 0.99 is PyTorch's 0.01: after 100 steps the initial statistics would still
have a weight of 37 %; with 0.1 it is nearly 0.)

**Lite** (TensorFlow's `efficientnet/lite`, no paper) is meant for phones: no squeeze, ReLU6 instead
of SiLU, stem and head of B0's width, and B0's number of repeats in the first and last stage.

**Measured.** With the same weights, logits and maps equal those of torchvision (B0 to B7) and timm
(also Lite0 to Lite4), gradients to 1e-13 ([audit](../docs/results/audit.json)).

**Source.** Tan and Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*,
ICML 2019, arXiv 1905.11946: section 3.3 and table 1. MBConv: Sandler et al., *MobileNetV2*, arXiv
1801.04381, figure 3. Squeeze: Hu et al., *Squeeze-and-Excitation Networks*, arXiv 1709.01507,
section 3. Stochastic depth: Huang et al., arXiv 1603.09382, section 3.

>>> import torch
>>> from minseg import EfficientNet
>>> encoder = EfficientNet("efficientnet-b0", num_classes=0)
>>> [tuple(f.shape[1:]) for f in encoder.features(torch.zeros(1, 3, 64, 96))]
[(32, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]
>>> sum(p.numel() for p in EfficientNet("efficientnet-b0").parameters())  # as torchvision's
5288548

**Exercises.**
1. *By hand.* The second block of B0 has 96 channels inside and a 3 x 3 kernel. How many weights has
   its depthwise convolution, and how many would an ordinary one from 96 to 96 channels have?
2. *Break it.* In a copy of this file, my_efficientnet.py, replace
   `(columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)` by
   `(columns - columns // 2, columns // 2, rows - rows // 2, rows // 2)`. Predict, then run: which
   test fails?
3. *Write it.* `SqueezeExcite(channels, hidden)`, with the layers `reduce` and `expand`.
   `python -m pytest tests/test_efficientnet.py --mine my_efficientnet.py` grades it, and the copy,
   too.

Next: `minseg.pretrained`, because few people train an encoder from random weights.

**Answers.**
1. 9 for each channel; 9 for each pair of channels, 96 times as many.
2. Only `test_same_padding_puts_the_odd_pixel_right_and_down`. No shape changes, and a network
   trained from the start would not mind; published weights would see other pixels than those that
   they were trained for.

>>> ordinary = torch.nn.Conv2d(96, 96, 3, bias=False)
>>> encoder.blocks[1].branch[3].weight.numel(), ordinary.weight.numel()
(864, 82944)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# name: (width, depth, dropout before the classifier, the authors' image size)
SCALES = {
    "efficientnet-b0": (1.0, 1.0, 0.2, 224), "efficientnet-b1": (1.0, 1.1, 0.2, 240),
    "efficientnet-b2": (1.1, 1.2, 0.3, 260), "efficientnet-b3": (1.2, 1.4, 0.3, 300),
    "efficientnet-b4": (1.4, 1.8, 0.4, 380), "efficientnet-b5": (1.6, 2.2, 0.4, 456),
    "efficientnet-b6": (1.8, 2.6, 0.5, 528), "efficientnet-b7": (2.0, 3.1, 0.5, 600),
    "efficientnet-lite0": (1.0, 1.0, 0.2, 224), "efficientnet-lite1": (1.0, 1.1, 0.2, 240),
    "efficientnet-lite2": (1.1, 1.2, 0.3, 260), "efficientnet-lite3": (1.2, 1.4, 0.3, 280),
    "efficientnet-lite4": (1.4, 1.8, 0.3, 300),
}

# Table 1 of the paper: kernel, stride, expansion t, channels c, repeats. The stem has stride 2.
STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)


def round_channels(channels: int, width: float) -> int:
    """`channels * width` to the nearest multiple of 8, but never less than 90 % of it."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class PaddedConv(nn.Conv2d):
    """A convolution without bias, padded so that its output has ceil(H / stride) rows. `same`
    selects TensorFlow's rule: as little padding as the input needs, an odd pixel right and down;
    else kernel // 2 on every side. At stride 1 both rules are the same."""

    def __init__(self, c_in, c_out, kernel, stride=1, groups=1, same=True):
        super().__init__(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        if not self.same or self.stride[0] == 1:
            return super().forward(x)
        kernel, stride = self.kernel_size[0], self.stride[0]
        # Both sides together; the kernel is never smaller than the stride. ceil and max would say
        # the same, but torch.export takes minutes over them.
        rows, columns = (-n % stride + kernel - stride for n in x.shape[2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a weight in (0, 1), computed from the means of all channels."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        return x * self.expand(F.silu(self.reduce(mean))).sigmoid()


class MBConv(nn.Module):
    """Expand, depthwise, squeeze and excite, project, add; `drop` is stochastic depth's p."""

    def __init__(self, c_in, c_out, kernel, stride, expansion, *, lite, same, bn_eps, drop):
        super().__init__()
        hidden = c_in * expansion
        activation = nn.ReLU6 if lite else nn.SiLU
        layers = []
        if expansion > 1:
            layers += [PaddedConv(c_in, hidden, 1), nn.BatchNorm2d(hidden, bn_eps), activation()]
        layers += [PaddedConv(hidden, hidden, kernel, stride, groups=hidden, same=same),
                   nn.BatchNorm2d(hidden, bn_eps), activation()]
        if not lite:
            layers.append(SqueezeExcite(hidden, max(1, c_in // 4)))  # a quarter of x's channels
        layers += [PaddedConv(hidden, c_out, 1), nn.BatchNorm2d(c_out, bn_eps)]
        self.branch = nn.Sequential(*layers)
        self.residual = stride == 1 and c_in == c_out
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if not self.residual:
            return y
        if self.training and self.drop > 0:
            keep = 1 - self.drop
            y = y * (torch.rand(len(x), 1, 1, 1, device=x.device) < keep).to(y.dtype).div_(keep)
        return x + y


class EfficientNet(nn.Module):
    """EfficientNet B0 to B7 and Lite0 to Lite4 (arXiv 1905.11946, section 3.3 and table 1).
    `num_classes=0` leaves out the head, so only `features` works. `padding` is "same" (TensorFlow)
    or "symmetric"; p grows to `stochastic_depth`. `taps` are the numbers of the blocks that give
    the maps of strides 4 to 32, by default the last one of each stride. ValueError for an unknown
    name or padding."""

    def __init__(self, name: str = "efficientnet-b0", in_channels: int = 3, num_classes: int = 1000,
                 *, padding: str = "same", bn_eps: float = 1e-3, stochastic_depth: float = 0.2,
                 taps: Sequence[int] | None = None):
        super().__init__()
        if name not in SCALES:
            raise ValueError(f"unknown encoder {name!r}: choose one of {', '.join(SCALES)}")
        if padding not in ("same", "symmetric"):
            raise ValueError(f'padding is "same" or "symmetric", not {padding!r}')
        self.name, self.in_channels = name, in_channels
        self.padding, self.bn_eps = padding, bn_eps
        width, depth, dropout, _ = SCALES[name]
        lite, same = "lite" in name, padding == "same"
        activation = nn.ReLU6 if lite else nn.SiLU
        channels = 32 if lite else round_channels(32, width)
        self.stem = nn.Sequential(PaddedConv(in_channels, channels, 3, 2, same=same),
                                  nn.BatchNorm2d(channels, bn_eps), activation())

        ends = (0, len(STAGES) - 1)
        self.repeats = [repeats if lite and i in ends else math.ceil(repeats * depth)
                        for i, (*_, repeats) in enumerate(STAGES)]
        plan = []  # one (kernel, stride, expansion, channels) for each block
        for (kernel, stride, expansion, c_out, _), repeats in zip(STAGES, self.repeats):
            for j in range(repeats):
                plan.append((kernel, 1 if j else stride, expansion, round_channels(c_out, width)))
        blocks, c_in = [], channels
        for i, (kernel, stride, expansion, c_out) in enumerate(plan):
            drop = stochastic_depth * i / len(plan)
            blocks.append(MBConv(c_in, c_out, kernel, stride, expansion, lite=lite, same=same,
                                 bn_eps=bn_eps, drop=drop))
            c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        halvings = [i for i, (_, stride, _, _) in enumerate(plan) if stride == 2]
        self.taps = taps or [i - 1 for i in halvings[1:]] + [len(plan) - 1]
        self.feature_channels = (channels, *(plan[i][3] for i in self.taps))
        self.head = None
        if num_classes:
            hidden = 1280 if lite else round_channels(1280, width)
            self.head = nn.Sequential(
                PaddedConv(c_in, hidden, 1), nn.BatchNorm2d(hidden, bn_eps), activation(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout),
                nn.Linear(hidden, num_classes))

        for m in self.modules():
            if isinstance(m, nn.Conv2d):  # keeps the variance of the gradients (He et al., 2015)
                fan_out = m.weight.numel() // m.in_channels  # k^2 C_out / groups
                nn.init.normal_(m.weight, 0, math.sqrt(2 / fan_out))
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def features(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> five maps, k = 1 to 5: the k-th has feature_channels[k - 1]
        channels and size H/2^k, W/2^k, rounded up."""
        x = self.stem(x)  # (N, C, H/2, W/2)
        maps = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> class logits (N, num_classes)."""
        if self.head is None:
            raise ValueError("num_classes=0 has no classifier: call features(x)")
        return self.head(self.features(x)[-1])
