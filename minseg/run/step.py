"""# A training step that is fast and small, and still the same mathematics

- **Mixed precision.** Convolutions run in 16 bits; losses, the statistics of norms and the weights
  stay in 32. bfloat16 has the range of float32. float16 has a smaller one, and small gradients
  would become 0. So the loss is multiplied by a large number, the loss scale, before the backward
  pass, and the gradients are divided by it afterwards. If that makes a gradient infinite, the step
  is skipped and the scale is halved (`torch.amp.GradScaler`).
- **Recomputed activations** (activation checkpointing). The backward pass needs every map of the
  forward pass. We keep only the input of each block, and run the block a second time when the
  backward pass reaches it. That is a third more work for a fraction of the memory. Batch norm must
  not count the same batch twice.
- **EMA.** Each step is noisy, because it sees only a few tiles. An exponential moving average of
  the weights removes most of that noise for one addition per step; the averaged network is the one
  that is scored and saved.
- **No waiting.** To read the value of a loss, the program has to wait until the GPU has computed
  it. So losses stay on the device and are read once every 50 steps (`minseg.run.loop.Watch`).

**Source.** Micikevicius et al., *Mixed Precision Training*, ICLR 2018, arXiv 1710.03740; Chen et
al., *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174; Polyak and Juditsky,
*Acceleration of Stochastic Approximation by Averaging*, SIAM J. Control Optim. 1992.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from ..unet import UNet


def seeded(*what: object) -> torch.Generator:
    """A random generator that depends only on `what`: seeded(seed, "step", 17) gives the same
    numbers in a resumed run as in an uninterrupted one, and no state has to be saved."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def autocast_dtype(device: str | torch.device) -> torch.dtype:
    """The 16-bit type to use: bfloat16, but float16 on a GPU that only emulates bfloat16."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(False):
        return torch.float16
    return torch.bfloat16


def blocks(net: UNet) -> list[nn.Module]:
    """The blocks of a `UNet`'s encoder and decoder."""
    return [*net.encoder.blocks, net.block4, net.block3, net.block2, net.block1, net.block0]


def recompute_activations(net: UNet) -> None:
    """Makes the blocks of this `UNet` keep only their inputs for the backward pass."""
    for block in blocks(net):
        block.forward = partial(_recomputed, type(block).forward, block)


def _recomputed(forward: Callable, block: nn.Module, *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(block, *inputs)
    if torch.compiler.is_compiling():  # the compiler does not repeat the norms' updates
        return checkpoint(forward, block, *inputs, use_reentrant=False)
    return checkpoint(forward, block, *inputs, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _uncounted(block)))


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Inside the block, batch norms use the statistics of the batch but do not record them."""
    norms = [(m, m.momentum, m.num_batches_tracked) for m in block.modules()
             if isinstance(m, nn.BatchNorm2d)]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count


class EMA:
    """An exponential moving average of everything that a network learns. `net` is a copy of the
    network; its weights and batch norm statistics are averages over roughly the last
    1 / (1 - decay) steps.

        average = decay average + (1 - decay) current        (each step)
    """

    def __init__(self, net: nn.Module, decay: float):
        self.net = copy.deepcopy(net).requires_grad_(False)
        self._averages, self._current = (
            [value for value in model.state_dict().values() if value.is_floating_point()]
            for model in (self.net, net))
        self._update = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """To be called after each step."""
        self._update(self._averages, self._current, None)
