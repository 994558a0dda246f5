"""# Predicting, fast and with several networks

**In `tutorial.py`**, `return net.eval()(tiles / 255).sigmoid()` predicts with one network, as it
was trained. `predictor([net, ...], device="cpu")` takes its place.

**Idea.** A trained network no longer changes, and nobody asks for its gradients: so the same
numbers come from less work. And where several networks were trained, as for the folds of a
cross-validation, the mean of what they say is better founded than what one says.

**Batch norm folded in.** With fixed statistics, batch norm scales and shifts each channel, which
the convolution before it can do itself. With m and v the running mean and variance, g and beta the
norm's weight and bias:

    norm(w x + b) = g (w x + b - m) / sqrt(v + eps) + beta = w' x + b'
    w' = w g / sqrt(v + eps),        b' = (b - m) g / sqrt(v + eps) + beta

Each map that a norm would have read and written again is then left alone. A norm that does not
follow a convolution (the hypercolumn's, after a sum) stays.

**Layers in one call** (`fuse`, on a CPU). PyTorch's convolutions are computed by oneDNN, which can
do more in one call than a layer asks for:

- *The activation* is applied to a sum that is still in a register. No map is written and read once
  more for it. The sum of the decoder's two convolutions (`minseg.unet`) is formed in the same way.
- *The weights* are put into the order in which they are read, once and not in each call.
- *Padding* at stride 2 is one pixel more right and down than left and up (`minseg.efficientnet`). A
  kernel with a row and a column of zeros more, left and up, needs no padded copy of the map.
- *The head* has one channel, and oneDNN computes 16 at once. So a kernel of 6 x 6 and stride 4
  finds a square of 4 x 4 pixels as 16 channels (`squares`), in a quarter of the work.

**In 16 bits** (`amp`, see `minseg.training`) the numbers change a little. On a CPU with bfloat16
instructions, only the first convolution stays in float32: bfloat16 has 8 significant bits, too few
for a normalised pixel, and an image that is rounded is wrong for every layer. With all of the
network in bfloat16, the masks agree with those in float32 with a Dice of 0.9984; with the first
convolution in float32 it is 0.9993, with the whole decoder instead 0.9987. A CPU without those
instructions is many times slower in 16 bits.

**Several networks.** Probabilities are averaged, not logits: then each network has one vote, and
none outvotes the others by being very sure.

    p(x) = 1/K sum_k sigmoid(f_k(x))

**What else costs nothing:**

- *Channels last*: the values of one pixel lie side by side in memory: fast convolutions want it so.
- *uint8 until the device*: a quarter of the bytes to copy.
- *One size of batch*, on CUDA and where the network is compiled: a row of tiles rarely divides into
  full batches, and each new size would cost a search for algorithms or a compilation (`fill_up`).
- *Bare glass is skipped* where it is asked for (`skip_flat`; `infer.py --skip-flat`).

**Shapes.** uint8 (N, 3, tile, tile) -> probabilities, float32 (N, 1, tile, tile), on the device:
what `minseg.tiling` asks for. With `tta`, all eight views of the tiles are one batch (8N, 3, tile,
tile), see `minseg.tta`.

| what | nnU-Net | MONAI's `sliding_window_inference` | here |
|---|---|---|---|
| batch norm | as in training | the caller's business | folded |
| activations | layers of their own | the caller's business | part of convolutions, on a CPU |
| several networks | mean of logits | the caller's business | mean of probabilities |
| one after another | over the whole image | the caller's business | over each batch of tiles |
| a batch | one tile | `sw_batch_size` tiles, the last ones fewer | `batch`, filled up on CUDA |

**Measured.** The same weights on 2048 x 2048 pixels, on a CPU: 1.8 s, where
segmentation_models.pytorch in MONAI's sliding window takes 3.6 s (7.2 s with PyTorch's usual way
to free memory), and onnxruntime on this network 2.7 s. Probabilities differ by up to 6.0e-05,
the masks not at all. In bfloat16 1.1 s ([measured](../docs/measured.md#whole-slides)).

**Source.** Folding: Jacob et al., *Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference*, CVPR 2018, arXiv 1712.05877, section 3.2; PyTorch's
`fuse_conv_bn_eval` does the arithmetic. One call: oneDNN's manual, *Primitive Attributes:
Post-ops*; `torch.compile` makes the same calls. The mean of probabilities: Lakshminarayanan,
Pritzel and Blundell, *Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles*,
NIPS 2017, arXiv 1612.01474, section 2.4.

>>> import torch
>>> from torch import nn
>>> from minseg.predictor import predictor
>>> def says(p):  # a network that says p, whatever it sees
...     net = nn.Conv2d(3, 1, 1)
...     _ = nn.init.zeros_(net.weight), nn.init.constant_(net.bias, torch.tensor(p).logit())
...     return net
>>> tile = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
>>> round(predictor([says(0.99), says(0.2)], device="cpu")(tile).item(), 4)
0.595
>>> round(torch.tensor([0.99, 0.2]).logit().mean().sigmoid().item(), 4)  # the surer one wins
0.8326

**Exercises.**
1. *By hand.* A convolution computes 2x + 1. Its norm has m = 1, v = 4, g = 3, beta = 1/2 and
   eps = 0. What are w' and b'?
2. *Break it.* In a copy of this file, my_predictor.py, replace
   `sum(probabilities[1:], probabilities[0]) / len(forwards)` by
   `torch.stack(probabilities).logit().mean(0).sigmoid()`. Predict, then run: which test fails?
   What does it change for a single network?
3. *Write it.* `fold_batch_norm(net)`.
   `python -m pytest tests/test_predictor.py --mine my_predictor.py` grades it, and the copy, too.

Next: `minseg.crossval`, because only a score to trust can tell whether any of this helped.

**Answers.**
1. w' = 2 * 3/2 = 3, and b' = (1 - 1) * 3/2 + 1/2 = 1/2.
2. `test_several_networks_are_averaged_as_probabilities`: this is the mean of logits, in which a
   network that is very sure outvotes the others. A single network says the same as before, since
   the logit undoes the sigmoid.

>>> from minseg.predictor import fold_batch_norm
>>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0))
>>> values = net[0].weight, net[0].bias, *net[1].buffers(), net[1].weight, net[1].bias
>>> for tensor, value in zip(values, (2, 1, 1, 4, 0, 3, 0.5)):  # 0: the norm's count of batches
...     _ = tensor.data.fill_(value)
>>> [value.item() for value in fold_batch_norm(net)[0].parameters()]
[3.0, 0.5]
"""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .efficientnet import PaddedConv, SqueezeExcite
from .training import autocast_dtype, has_bfloat16
from .tta import flips_and_turns
from .unet import EnlargeConcatConv, UNet, enlarging_kernel

LARGEST = 1e6  # weights are far smaller, unless training has diverged
ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "hardtanh", nn.SiLU: "swish"}  # as oneDNN names them


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """A copy of `net`, in eval mode, with batch norms folded into the convolutions before them.
    This relies on modules that hold their layers in the order of computation, as those of this
    project do. Batch norms that follow something else stay."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for module in list(net.modules()):
        layers = list(module.named_children())
        for (first, conv), (second, norm) in pairwise(layers):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return net


def can_fuse(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes the fused layers below on this CPU in `dtype`, and fast."""
    return (torch.backends.mkldnn.is_available() and (dtype == torch.float32 or has_bfloat16())
            and torch.backends.cpu.get_cpu_capability().startswith("AVX"))


class FusedConv(nn.Module):
    """A convolution and its activation in one call of oneDNN. It computes in `dtype`, and its
    result has the type `out`, by default the same."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none", *,
                 dtype: torch.dtype, out: torch.dtype | None = None, stride: Sequence[int] = (1, 1),
                 padding: Sequence[int] = (1, 1), groups: int = 1):
        super().__init__()
        self.dtype, self.out, self.activation = dtype, out or dtype, activation
        self.limits = [0, 6] if activation == "hardtanh" else []
        self.bias = None if bias is None else bias.to(dtype)
        self.where = padding, stride, (1, 1), groups
        # Called with the shape of the input: oneDNN orders the weights to suit it, and only once.
        self.ordered = lru_cache(maxsize=8)(partial(
            torch.ops.mkldnn._reorder_convolution_weight, weight.to(dtype), *self.where))

    def forward(self, x: Tensor, add_to: Tensor | None = None) -> Tensor:
        """The activation of the convolution of x, plus `add_to`, which is overwritten."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        layer = x, self.ordered(x.shape), self.bias, *self.where
        then = self.activation, self.limits, ""
        if add_to is not None:
            add = torch.ops.mkldnn._convolution_pointwise_.binary
            return add(add_to, *layer, "add", 1, *then)
        return torch.ops.mkldnn._convolution_pointwise(*layer, *then).to(self.out)


class FusedEnlarge(nn.Module):
    """`EnlargeConcatConv`, whose sum and ReLU are part of its convolutions."""

    def __init__(self, layer: EnlargeConcatConv, dtype: torch.dtype):
        super().__init__()
        weight, bias = layer.get_parameter("0.weight"), layer.get_parameter("0.bias")
        weight_d, weight_skip = weight[:, : layer.c_in], weight[:, layer.c_in :]
        self.dtype, self.bias, self.skip = dtype, bias.to(dtype), None
        if weight_skip.numel():
            self.skip = FusedConv(weight_skip, None, "relu", dtype=dtype)
        self.where = (1, 1), (0, 0), (2, 2), (1, 1), 1
        self.ordered = lru_cache(maxsize=8)(partial(
            torch.ops.mkldnn._reorder_convolution_transpose_weight,
            enlarging_kernel(weight_d).to(dtype), *self.where))

    def forward(self, d: Tensor, skip: Tensor | None = None) -> Tensor:
        d = d.to(self.dtype, memory_format=torch.channels_last)
        layer = d, self.ordered(d.shape), self.bias, *self.where
        enlarged = torch.ops.mkldnn._convolution_transpose_pointwise(
            *layer, "none" if self.skip else "relu", [], "")
        return self.skip(skip, add_to=enlarged) if self.skip else enlarged


class FusedSqueezeExcite(nn.Module):
    """`SqueezeExcite` that overwrites its input."""

    def __init__(self, layer: SqueezeExcite, fused: Callable[..., FusedConv]):
        super().__init__()
        self.reduce = fused(layer.reduce, activation="swish")
        self.expand = fused(layer.expand, activation="sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        # In bfloat16 `mean` is several times slower, in float32 `avg_pool2d` is less exact.
        mean = (x.mean((2, 3), keepdim=True) if x.dtype == torch.float32
                else F.avg_pool2d(x, x.shape[2:]))
        return x.mul_(self.expand(self.reduce(mean)))


def squares(head: nn.Conv2d, dtype: torch.dtype) -> nn.Sequential:
    """A 3 x 3 convolution with few results, computed for squares of 4 x 4 pixels at a time. oneDNN
    computes 16 channels at once, and with one class 15 of them would be for nothing."""
    places = [F.pad(head.weight, (x, 3 - x, y, 3 - y)) for y in range(4) for x in range(4)]
    weight = torch.stack(places, 1).flatten(0, 1)  # (16 classes, C, 6, 6)
    bias = head.get_parameter("bias").repeat_interleave(16)
    return nn.Sequential(FusedConv(weight, bias, dtype=dtype, out=torch.float32, stride=(4, 4)),
                         nn.PixelShuffle(4))


def is_first(path: str, layer: nn.Module) -> bool:
    """Whether this is the convolution that reads the image."""
    return path == "encoder.stem.0"


def fuse(net: UNet, dtype: torch.dtype,
         exact: Callable[[str, nn.Module], bool] = is_first) -> UNet:
    """`net`, whose batch norms are folded, with the layers above in place of its own. They compute
    in `dtype`, or in float32 where `exact`, called with a layer's path and the layer, says so."""
    def fused(conv: nn.Conv2d, kind: torch.dtype, activation: str = "none") -> FusedConv:
        weight = conv.weight
        if isinstance(conv, PaddedConv) and conv.same and conv.stride[0] == 2:
            # One pixel more right and down than left and up: instead of a padded copy of the map,
            # which here has an even size, a kernel with zeros left and up.
            weight = F.pad(weight, (1, 0, 1, 0))
        return FusedConv(weight, conv.bias, activation, dtype=kind, out=dtype, stride=conv.stride,
                         padding=conv.padding, groups=conv.groups)  # type: ignore[arg-type]

    def replace_in(module: nn.Module, path: str = "") -> None:
        layers = [pair for pair in module.named_children() if type(pair[1]) is not nn.Identity]
        for (name, layer), (after, next_one) in zip(layers, [*layers[1:], ("", nn.Identity())]):
            kind = torch.float32 if exact(path + name, layer) else dtype
            if isinstance(layer, EnlargeConcatConv):
                setattr(module, name, FusedEnlarge(layer, kind))
            elif isinstance(layer, SqueezeExcite):
                setattr(module, name, FusedSqueezeExcite(layer, partial(fused, kind=kind)))
            elif layer is net.head:
                net.head = squares(net.head, kind)  # type: ignore[assignment]
            elif isinstance(layer, nn.Conv2d):
                in_order = isinstance(module, nn.Sequential)
                activation = ACTIVATIONS.get(type(next_one)) if in_order else None
                setattr(module, name, fused(layer, kind, activation or "none"))
                if activation:
                    setattr(module, after, nn.Identity())
            else:
                replace_in(layer, f"{path}{name}.")

    replace_in(net)
    return net


def predictor(nets: Sequence[nn.Module], *, device: str, tta: bool = False, amp: bool = False,
              compile: bool = False, batch: int = 1) -> Callable[[Tensor], Tensor]:
    """A function for `predict_bands`, the mean of what the networks predict: uint8 (N, 3, tile,
    tile) -> probabilities (N, 1, tile, tile) on `device`. With `compile` the first tiles are slow.
    On CUDA and with `compile`, every batch is filled up to `batch` tiles, or to as many as the
    largest one so far had; on a CPU no tile is predicted twice."""
    kind, dtype = torch.device(device).type, torch.bfloat16 if amp else torch.float32
    on_cpu = kind == "cpu" and not compile and can_fuse(dtype)
    forwards: list[Callable[[Tensor], Tensor]] = []
    for net in nets:
        net = fold_batch_norm(net).to(device)
        # The ReLU of oneDNN makes 0 of NaN, and a network that has diverged would look like one
        # that finds nothing: it stays as it is, and its NaN are seen.
        if on_cpu and isinstance(net, UNet) and all(
                parameter.abs().max() < LARGEST for parameter in net.parameters()):
            forwards.append(fuse(net, dtype))
            continue
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forwards.append(torch.compile(net) if compile else net)

    @torch.inference_mode()
    def predict(tiles: Tensor) -> Tensor:
        images = tiles.to(device).float() / 255
        if not on_cpu:  # where three channels lie apart, they are normalised faster
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(kind, autocast_dtype(device), enabled=amp):
            probabilities = [forward(images).float().sigmoid() for forward in forwards]
            return sum(probabilities[1:], probabilities[0]) / len(forwards)

    whole = flips_and_turns(predict) if tta else predict
    return fill_up(whole, batch) if compile or kind == "cuda" else whole


def fill_up(predict: Callable[[Tensor], Tensor], batch: int) -> Callable[[Tensor], Tensor]:
    """`predict`, which is always called with `batch` tiles, or with as many as the largest batch so
    far had: smaller ones are filled up with copies of their last tile. So cuDNN chooses its
    algorithms, and `torch.compile` compiles, only once. In eager mode a CPU gains nothing."""

    def predict_full(tiles: Tensor) -> Tensor:
        nonlocal batch
        batch = max(batch, len(tiles))
        if missing := batch - len(tiles):
            full = torch.cat([tiles, tiles[-1:].expand(missing, *tiles.shape[1:])])
            return predict(full)[: len(tiles)]
        return predict(tiles)

    return predict_full


def skip_flat(predict: Callable[[Tensor], Tensor], contrast: float) -> Callable[[Tensor], Tensor]:
    """`predict` that returns 0 for tiles of bare glass, without running the network on them: tiles
    whose brightness has a standard deviation below `contrast` (brightness is 0 to 255)."""

    def predict_others(tiles: Tensor) -> Tensor:
        keep = tiles[:, :, ::4, ::4].float().mean(1).flatten(1).std(1, correction=0) >= contrast
        answers = torch.zeros(len(tiles), 1, *tiles.shape[2:], device=tiles.device)
        kept = keep.nonzero()[:, 0]  # the one time that the program waits for the device
        if len(kept):
            answers[kept] = predict(tiles[kept])
        return answers

    return predict_others
