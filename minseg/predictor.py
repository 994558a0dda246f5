"""# Predicting fast with trained networks

The mathematics of the trained network, with less work:

- **Batch norm folded in.** With fixed statistics, batch norm scales and shifts each channel, which
  the convolution before it can do itself: w' = w g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps)
  + beta, with m and v the running mean and variance, g and beta the norm's weight and bias.
- **Channels last**: the values of one pixel lie side by side, which suits fast convolutions.
- **uint8 until the device**: a quarter of the bytes to copy.
- **One size of batch**, on CUDA and where the network is compiled: a row of tiles rarely divides
  into full batches, and each new size would cost a search or a compilation, see `fill_up`.
- **Mixed precision** (`amp`): bfloat16, but float16 on a GPU that only emulates bfloat16. A CPU
  without bfloat16 instructions is many times slower with it.
- **All eight views of a tile as one batch**, see `minseg.tta`.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .training import autocast_dtype
from .tta import flips_and_turns


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


def predictor(nets: Sequence[nn.Module], *, device: str, tta: bool = False, amp: bool = False,
              compile: bool = False, batch: int = 1) -> Callable[[Tensor], Tensor]:
    """A function for `predict_bands`, the mean of what the networks predict: uint8 (N, 3, tile,
    tile) -> probabilities (N, 1, tile, tile) on `device`. With `compile` the first tiles are slow.
    On CUDA and with `compile`, every batch is filled up to `batch` tiles, or to as many as the
    largest one so far had; on a CPU no tile is predicted twice."""
    forwards: list[Callable[[Tensor], Tensor]] = []
    for net in nets:
        net = fold_batch_norm(net).to(device)
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forwards.append(torch.compile(net) if compile else net)
    kind = torch.device(device).type

    @torch.inference_mode()
    def predict(tiles: Tensor) -> Tensor:
        images = tiles.to(device, memory_format=torch.channels_last).float() / 255
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
