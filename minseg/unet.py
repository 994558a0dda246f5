"""# U-Net, with an EfficientNet as its encoder

**In `tutorial.py`**, `net = UNet("efficientnet-lite0")` makes the network, and
`logits = net.train()(inputs[crop])` runs it. Both are explained here.

**Idea.** We want a *mask*: for each pixel, whether it belongs to an object. An encoder that
classifies images knows *what* is there, but the last of its *maps* (images of many channels, which
its layers compute) is 32 times smaller than the image. The decoder doubles the size of that map
five times. After each of the first
four it concatenates the encoder's map of the same size (the skip), which still knows exactly
*where*; at full size the encoder has no map, so the fifth has no skip.

    x5                      stride 32        the encoder's five maps are x1 ... x5
    d4 = block(x5, x4)      stride 16        block(d, x) = conv(conv([up(d), x]))
    d3 = block(d4, x3)      stride 8         up: nearest neighbour, twice as high and wide
    d2 = block(d3, x2)      stride 4         [ , ]: channels side by side
    d1 = block(d2, x1)      stride 2         conv: 3 x 3 convolution, batch norm, ReLU
    d0 = block(d1)          stride 1         no skip
    logits = 3 x 3 convolution of d0

**Shapes.** (N, in_channels, H, W) in [0, 1] -> logits (N, classes, H, W), for any H and W from 1
up: the border pixels are repeated up to the next multiple of 32, and the logits are cropped.

**Less work, the same result.** Most of the decoder's work is the first convolution of each block.
A convolution of channels side by side is the sum of a convolution of each part. And of the three
neighbours that a row of its kernel W meets in up(d), two are copies of the same pixel of d, so
their weights can be added beforehand. `convolve_enlarged` does both:

    W * [up(d), x] = V *' d + Wx * x     V = mirrored(Wd) * ones(2, 2); *' transposed, stride 2

V is 4 x 4. That is 4 instead of 9 products for each channel of d and pixel of the result, and
neither up(d) nor the concatenation is ever made.

| what | paper | segmentation_models.pytorch | here |
|---|---|---|---|
| convolutions | without padding: 572 x 572 in, 388 x 388 out | padded | padded |
| upsampling | transposed convolution, its kernel learned | nearest | nearest |
| encoder's head convolution | - | kept, never used: 412,160 parameters | left out |
| sizes that are no multiple of 32 | - | maps are resized to the skips | padded inside |
| mean and standard deviation | - | left to the caller | part of the network |

![A U of maps](../docs/figures/unet.png)

*A trained network on a slide that it has not seen (Lite0 with gates, SCSE, hypercolumn and deep
supervision; only the maps are drawn). Down the encoder the maps get smaller and, from x2 on, have
more channels; up the decoder the answer appears from d3 on, its outline last.*

**The tricks**, each in a file of its own and off by default, go here:

    block(d, x) = attention(conv(conv([up(d), gate(x, d)])))         attention_gate; scse or cbam
    logits = 3 x 3 convolution of hypercolumn(d0, d1, d2, d3, d4)    hypercolumn, instead of d0
    1 x 1 convolutions of d1, d2, d3, d4: four more logits           deep_supervision, in training

The finest skip, x1, is never gated, as in the paper on gates: its features are too low-level to
judge relevance.

**Measured.** Dice 0.831 on nuclei, 0.911 on synthetic slides: the baseline of all comparisons
([how](../docs/study.md)). With the same weights, the logits on B0 equal those of
segmentation_models.pytorch ([audit](../docs/results/audit.json)). On B1 to B7 they do only once
that library's padding is corrected: it is fixed for the authors' image size, whatever the input's.

**Source.** Ronneberger, Fischer and Brox, *U-Net*, MICCAI 2015, arXiv 1505.04597, figure 1.

>>> import torch
>>> from minseg import UNet
>>> net = UNet("efficientnet-b0").eval()
>>> net(torch.rand(2, 3, 33, 70)).shape
torch.Size([2, 1, 33, 70])
>>> sum(p.numel() for p in net.parameters()), 6_251_469 - 412_160  # the latter: see the table
(5839309, 5839309)

**Exercises.**
1. *By hand.* How many weights has the first convolution of `block4`, and how many that of `block0`?
   (In B0, x4 and x5 have 112 and 320 channels.) An image of 256 x 256 makes their results 16 x 16
   and 256 x 256: how many products, done literally, is that for each of the two?
2. *Break it.* In a copy of this file, my_unet.py, replace `mode="replicate"` by `mode="constant"`.
   Predict, then run: which test fails?
3. *Write it.* `convolve_enlarged(conv, d, skip=None)`, literally at first: enlarge, concatenate,
   convolve. `python -m pytest tests/test_unet.py --mine my_unet.py` grades it, and the copy, too.

Next: `minseg.efficientnet`, because the encoder is where most of this network's weights are.

**Answers.**
1. As computed below. Deep blocks hold the weights, shallow ones have as much to do.
2. `test_other_sizes_are_padded_by_repeating_the_border`: zeros are the mean colour here, since they
   come after the normalisation, and make an edge that is not in the image.

>>> for block, c_in, size in ((net.block4, 320 + 112, 16), (net.block0, 32, 256)):
...     weights = block.conv1[0].weight.numel()
...     print(weights == c_in * block.conv1[0].out_channels * 9, weights, weights * size**2)
True 995328 254803968
True 4608 301989888
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_gate import AttentionGate
from .cbam import CBAM
from .efficientnet import EfficientNet
from .hypercolumn import Hypercolumn
from .pretrained import IMAGENET
from .scse import SCSE


def conv_norm_relu(c_in: int, c_out: int) -> nn.Sequential:
    """A 3 x 3 convolution (without bias: the norm has one), batch norm and ReLU; keeps the size."""
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def block_attention(name: str | None, channels: int) -> nn.Module:
    """The module after a decoder block's convolutions: SCSE, CBAM, or the identity. "cbam3" is the
    CBAM of HuBMAP's winner: 3 x 3, without norm. ValueError for any other name."""
    kinds: dict[str | None, Callable[[int], nn.Module]] = {
        None: nn.Identity, "scse": SCSE, "cbam": CBAM,
        "cbam3": partial(CBAM, kernel_size=3, spatial_norm=False)}
    if name not in kinds:
        raise ValueError(f'attention is None, "scse", "cbam" or "cbam3", not {name!r}')
    return kinds[name](channels)


def per_channel(name: str, given: Sequence[float] | None, imagenet: Sequence[float],
                channels: int) -> Tensor:
    """`given`, or ImageNet's values for three channels, else 0.5, as float32 (1, channels, 1, 1).
    ValueError, with the argument's `name`, if there is not one number for each channel."""
    if given is None:
        given = imagenet if channels == 3 else (0.5,) * channels
    if len(given) != channels:
        raise ValueError(f"{name} needs {channels} numbers, one for each channel, not {given}")
    return torch.tensor(given, dtype=torch.float32).view(1, -1, 1, 1)


def pad_to_multiple(x: Tensor, factor: int, training: bool) -> Tensor:
    """(N, C, H, W) with its last row and column repeated until H and W are multiples of `factor`.
    While training on one image that would become a single square of `factor`, `factor` more rows
    follow: the deepest map then has two pixels, as batch norm cannot be trained on one."""
    height, width = x.shape[2:]
    # Not -n % factor: from this form, torch.export sees that the padded size is a multiple. And not
    # -(-n // factor): exported to ONNX, a quotient of integers is rounded towards 0.
    down, right = ((n + factor - 1) // factor * factor - n for n in (height, width))
    if training and len(x) == 1 and max(height, width) <= factor:
        down += factor
    return F.pad(x, (0, right, 0, down), mode="replicate")


def enlarging_kernel(weight: Tensor) -> Tensor:
    """The kernel V (see above) for the weights that meet up(d): (c_out, c_in, 3, 3) -> (c_in,
    c_out, 4, 4)."""
    # A convolution gathers from neighbours, a transposed one spreads to them, so c comes before a.
    # (After F.pad, the older ONNX exporter would no longer know the size of the kernel.)
    c, b, a = weight.transpose(0, 1).unbind(2)
    rows = torch.stack([a, a + b, b + c, c], 2)  # (c_in, c_out, 4, 3)
    c, b, a = rows.unbind(3)
    return torch.stack([a, a + b, b + c, c], 3)


def convolve_enlarged(conv: nn.Conv2d, d: Tensor, skip: Tensor | None = None) -> Tensor:
    """`conv([up(d), skip])` of a 3 x 3 convolution, with less work (see above): d (N, c_in, H, W)
    and skip (N, c_skip, 2H, 2W) or None -> (N, c_out, 2H, 2W)."""
    c_in = d.shape[1]
    kernel = enlarging_kernel(conv.weight[:, :c_in])
    result = F.conv_transpose2d(d, kernel, conv.bias, stride=2, padding=1)
    return result if skip is None else result + F.conv2d(skip, conv.weight[:, c_in:], padding=1)


class EnlargeConcatConv(nn.Sequential):
    """`conv(torch.cat([enlarge(d), skip], 1))`, where `conv` is a `conv_norm_relu`, with less work:
    d (N, c_in, H, W) and skip (N, c_skip, 2H, 2W) or None -> (N, c_out, 2H, 2W)."""

    def __init__(self, c_in: int, c_skip: int, c_out: int):
        super().__init__(*conv_norm_relu(c_in + c_skip, c_out))
        self.c_in = c_in

    def forward(self, d: Tensor, skip: Tensor | None = None) -> Tensor:
        conv, norm, relu = self
        return relu(norm(convolve_enlarged(conv, d, skip)))  # type: ignore[arg-type]


class DecoderBlock(nn.Module):
    """(N, c_in, H, W) and a skip (N, c_skip, 2H, 2W) -> (N, c_out, 2H, 2W)."""

    def __init__(self, c_in: int, c_skip: int, c_out: int, gated: bool = False,
                 attention: str | None = None):
        super().__init__()
        self.gate = AttentionGate(c_skip, c_in) if gated else None
        self.conv1 = EnlargeConcatConv(c_in, c_skip, c_out)
        self.conv2 = conv_norm_relu(c_out, c_out)
        self.attention = block_attention(attention, c_out)

    def forward(self, d: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.gate is not None:
            skip = self.gate(skip, d)  # the deeper map says where to look
        d = self.conv1(d, skip)  # conv(torch.cat([enlarge(d), skip], 1)): (N, c_out, 2H, 2W)
        return self.attention(self.conv2(d))


class UNet(nn.Module):
    """A U-Net (arXiv 1505.04597) on an EfficientNet encoder.

    Each of the `classes` is a binary problem of its own, with one logit map. `gates`, `attention`
    (None, "scse", "cbam", "cbam3"), `hypercolumn` and `deep_supervision` switch tricks on, in any
    combination. `mean` and `std`, one number for each channel, normalise the input; None means
    ImageNet's for three channels, else 0.5 and 0.5. `padding`, `bn_eps` and `stochastic_depth` are
    the encoder's. ValueError for an unknown encoder or attention, and for `mean` or `std` of
    another length."""

    mean: Tensor  # (1, in_channels, 1, 1)
    std: Tensor

    def __init__(self, encoder: str = "efficientnet-b0", *, in_channels: int = 3, classes: int = 1,
                 decoder_channels: Sequence[int] = (256, 128, 64, 32, 16), gates: bool = False,
                 attention: str | None = None, hypercolumn: bool = False,
                 deep_supervision: bool = False, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, padding: str = "same", bn_eps: float = 1e-3,
                 stochastic_depth: float = 0.2):
        super().__init__()
        if len(decoder_channels) != 5:
            raise ValueError(f"decoder_channels needs five numbers, not {decoder_channels}")
        # Not part of the state dict: a checkpoint stores them with the network's other arguments.
        for name, given, imagenet in zip(("mean", "std"), (mean, std), IMAGENET):
            values = per_channel(name, given, imagenet, in_channels)
            self.register_buffer(name, values, persistent=False)

        # segmentation_models.pytorch takes B0's stride-16 skip after block 8 (of 0 to 15), two
        # blocks before the last map of that size; from B1 up it takes the last. Doing the same,
        # weights trained there give the same logits here.
        taps = [2, 4, 8, 15] if encoder == "efficientnet-b0" else None
        self.encoder = EfficientNet(encoder, in_channels, num_classes=0, padding=padding,
                                    bn_eps=bn_eps, stochastic_depth=stochastic_depth, taps=taps)
        x1, x2, x3, x4, x5 = self.encoder.feature_channels
        d4, d3, d2, d1, d0 = decoder_channels
        self.block4 = DecoderBlock(x5, x4, d4, gates, attention)
        self.block3 = DecoderBlock(d4, x3, d3, gates, attention)
        self.block2 = DecoderBlock(d3, x2, d2, gates, attention)
        self.block1 = DecoderBlock(d2, x1, d1, False, attention)  # the finest skip is not gated
        self.block0 = DecoderBlock(d1, 0, d0, False, attention)
        self.hypercolumn = Hypercolumn((d0, d1, d2, d3, d4), d0) if hypercolumn else None
        self.head = nn.Conv2d(d0, classes, 3, padding=1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))
        deep = (nn.Conv2d(c, classes, 1) for c in (d1, d2, d3, d4))
        self.deep_heads = nn.ModuleList(deep) if deep_supervision else None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(N, in_channels, H, W) in [0, 1] -> logits (N, classes, H, W). With deep supervision,
        while training: five logits, finest first, the k-th (N, classes, H/2^k, W/2^k), counted from
        0, sizes rounded up."""
        height, width = x.shape[2:]
        x = pad_to_multiple((x - self.mean) / self.std, 32, self.training)

        x1, x2, x3, x4, x5 = self.encoder.features(x)  # strides 2, 4, 8, 16, 32
        d4 = self.block4(x5, x4)
        d3 = self.block3(d4, x3)
        d2 = self.block2(d3, x2)
        d1 = self.block1(d2, x1)
        d0 = self.block0(d1)  # (N, decoder_channels[4], H, W), padded
        last = self.hypercolumn([d0, d1, d2, d3, d4]) if self.hypercolumn else d0
        logits = self.head(last)[:, :, :height, :width]
        if self.deep_heads is None or not self.training:
            return logits
        deep = [head(d) for head, d in zip(self.deep_heads, (d1, d2, d3, d4))]
        return [logits] + [z[:, :, : math.ceil(height / 2**k), : math.ceil(width / 2**k)]
                           for k, z in enumerate(deep, 1)]
