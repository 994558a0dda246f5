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
- **Accumulation.** The gradient of a batch that is too large for the memory is the mean of those of
  its micro-batches, if the loss is a mean over images. Dice over the batch is not: of eight tiles
  with one object, seven would be batches without any. So all micro-batches run forward without
  gradients; the loss of all logits together gives the gradient at each of them; then each
  micro-batch runs forward once more, and backward from there. That is a third more work, as for
  recomputed activations, and exactly the gradient of the whole batch (batch norm still takes its
  statistics from each micro-batch).
- **EMA.** Each step is noisy, because it sees only a few tiles. An exponential moving average of
  the weights removes most of that noise for one addition per step; the averaged network is the one
  that is scored and saved.
- **No waiting.** To read the value of a loss, the program has to wait until the GPU has computed
  it. So losses stay on the device and are read once every 50 steps (`minseg.run.loop.Watch`).

**Source.** Micikevicius et al., *Mixed Precision Training*, ICLR 2018, arXiv 1710.03740; Chen et
al., *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174; Gao et al., *Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup*, arXiv 2101.06983, section 3 (the two
passes); Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, SIAM J.
Control Optim. 1992.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from .deep_supervision import deep_supervision_loss
from .processes import join, world
from .unet import UNet


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


def backward_whole(forward: nn.Module, loss: Callable, micro_batches: Iterable,
                   scaler: torch.amp.GradScaler, dtype: torch.dtype | None) -> Tensor:
    """The backward pass of one large batch that comes in micro-batches (images, targets), for any
    `loss` of all logits and targets. Returns the loss, on the device."""
    def logits_of(images: Tensor) -> list[Tensor]:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            logits = forward(images.contiguous(memory_format=torch.channels_last))
        return [logits] if isinstance(logits, Tensor) else list(logits)

    batches, states, held = [], [], []
    with torch.no_grad(), _uncounted(forward):  # these batches do not count twice
        for images, targets in micro_batches:
            random = torch.cuda if images.device.type == "cuda" else torch.random
            batches.append((images, targets))
            states.append(random.get_rng_state())
            held.append(logits_of(images))
    leaves = [[logits.requires_grad_() for logits in scales] for scales in held]
    whole = [join(torch.cat(parts)) for parts in zip(*leaves)]
    targets = join(torch.cat([targets for _, targets in batches]))
    value = deep_supervision_loss(loss, whole, targets)
    scaler.scale(value).backward()  # to the leaves
    for (images, _), state, scales in zip(batches, states, leaves):
        used = [k for k, leaf in enumerate(scales) if leaf.grad is not None]  # or its weight is 0
        random.set_rng_state(state)  # draws the same random numbers as the first pass
        logits = logits_of(images)
        torch.autograd.backward([logits[k] for k in used], [scales[k].grad for k in used])
    return value.detach() / world()  # each process returns its share


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
