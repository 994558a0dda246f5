"""# Trained networks, made ready to predict fast

The same mathematics, with less work:

- **Batch norm folded in.** With fixed statistics it is a scaling and a shift of each channel, which
  the convolution before it can do itself: w' = w g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps)
  + beta, with m and v the running mean and variance, g and beta the norm's weight and bias.
- **Channels last**: the values of one pixel lie side by side, as convolutions want them.
- **uint8 until the device**: a quarter of the bytes to copy.
- **Mixed precision** (`amp`): bfloat16 where there is hardware for it, else on CUDA float16.
- **All eight views of a tile as one batch**, see `minseg.tta`.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..tta import flips_and_turns
from .step import half


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """A copy of `net`, in eval mode, whose batch norms are part of the convolutions before them.
    (This project's modules hold their layers in the order of computation: a norm that stands behind
    a convolution is applied to it.) Those that follow something else stay."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for module in list(net.modules()):
        layers = list(module.named_children())
        for (first, conv), (second, norm) in zip(layers, layers[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return net


def predictor(nets: Sequence[nn.Module], *, device: str, tta: bool = False, amp: bool = False,
              compile: bool = False) -> Callable[[Tensor], Tensor]:
    """The mean of what networks predict, as a function for `predict_bands`: uint8 (N, 3, tile,
    tile) -> probabilities (N, 1, tile, tile) on `device`. `compile` makes the first tiles slow."""
    nets = [fold_batch_norm(net).to(device, memory_format=torch.channels_last) for net in nets]
    if compile:
        nets = [torch.compile(net) for net in nets]
    kind = torch.device(device).type

    @torch.inference_mode()
    def predict(tiles: Tensor) -> Tensor:
        images = tiles.to(device, memory_format=torch.channels_last).float() / 255
        with torch.autocast(kind, half(device), enabled=amp):
            return sum(net(images).float().sigmoid() for net in nets) / len(nets)

    return flips_and_turns(predict) if tta else predict


def skip_flat(predict: Callable[[Tensor], Tensor], contrast: float) -> Callable[[Tensor], Tensor]:
    """`predict`, but 0 for tiles whose brightness varies less than `contrast`, a standard deviation
    of 255: glass. They do not go through the network."""

    def predict_others(tiles: Tensor) -> Tensor:
        keep = tiles[:, :, ::4, ::4].float().mean(1).flatten(1).std(1, correction=0) >= contrast
        answers = torch.zeros(len(tiles), 1, *tiles.shape[2:], device=tiles.device)
        if keep.any():
            answers[keep] = predict(tiles[keep])
        return answers

    return predict_others
