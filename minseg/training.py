"""# Training: a step that is fast and small, and still the same mathematics

**In `tutorial.py`**, `schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)` lets
the learning rate rise and fall. `train.py` does so, too, and five things more.

**Idea.** A step computes a loss, its gradients, and new weights. Six tricks make it faster, smaller
or steadier, and none of them changes the loss that is minimised. The loop itself, with the first
two, is in `train.py` (`build`, `learning_rate_share`, `train`); the other four are below.

**The first prediction.** Few pixels are positive. A network whose last bias is 0 says 1/2
everywhere, so its first steps do little but push all logits down, those of rare objects too. If the
last bias is instead the logit of the share of positive pixels, the network begins with what is true
on average, and the mean gradient of cross-entropy is 0:

    bias = log(share / (1 - share)),        d BCE / d bias = mean(p) - share

**The learning rate** rises, because the first gradients are the wildest, and then falls along half
a cosine, because at a high rate the weights cannot come to rest. Of T steps, w warm up:

    rate(t) / highest = (t + 1) / w                                   t < w = min(T / 10, 500)
                        (1 + cos(pi (t - w) / (T - w))) / 2           from then on

**EMA.** Each step sees only a few tiles, so the weights jitter. An exponential moving average of
them removes most of that for one addition per step; it is what we score and save. It forgets
slowly: after n steps, decay^n of the first weights is still in it.

    average = decay average + (1 - decay) weights,        about the last 1 / (1 - decay) steps

![The range of numbers; a weight, its average, and the rate](../docs/figures/training.png)

*Top: the range of three kinds of numbers, and how fine they are. Below: one weight, its noisy
descent to 0 and its average over a fifth of the steps, with the learning rate. The average lags at
first, but from step 150 on it hardly moves. The weight itself comes to rest only when the rate is
nearly 0.*

**Mixed precision.** Convolutions run in 16 bits; losses, the statistics of norms and the weights
stay in 32. bfloat16 has nearly the range of float32. float16 is finer, but its smallest number is
6e-8, and smaller gradients would become 0. So the loss is multiplied by a large number S, the loss
scale, before the backward pass, and the gradients are divided by it in 32 bits. If S makes a
gradient infinite, the step is skipped and S is halved (`torch.amp.GradScaler`).

    gradient = float32(d (S loss) / d w) / S

**Recomputed activations** (activation checkpointing). The backward pass needs every map of the
forward pass. Keep only the input of each block, and run the block a second time when the backward
pass reaches it: a third more work for a fraction of the memory. Batch norm must not count the same
batch twice.

**Accumulation.** The gradient of a batch that is too large for the memory is the mean of those of
its micro-batches, if the loss is a mean over images. Dice over the batch is not: of eight tiles
with one object, seven would be batches without any. So all micro-batches run forward without
gradients; the loss of all logits z together gives the gradient at each of them; then each
micro-batch runs forward once more, and backward from there. That is a third more work, and exactly
the gradient of the whole batch (batch norm still takes its statistics from each micro-batch).

    d loss / d w = sum_m (d z_m / d w)^T (d loss / d z_m),        m: the micro-batches

**Shapes.** A micro-batch is a pair: images (n, 3, H, W) in [0, 1] and targets (n, C, H, W) in
{0, 1}. `backward_whole` takes any number of them, adds to the gradients of the weights, and returns
the loss, a scalar that stays on the device: to read it, the program would have to wait for the GPU
(`minseg.run.loop` reads the losses of many steps at once).

| what | elsewhere | here |
|---|---|---|
| first prediction | 0.01 (RetinaNet, also torchvision's) | the share of positive pixels |
| learning rate | nnU-Net: (1 - t/T)^0.9, from the first epoch on | warm-up, half a cosine |
| | MONAI's `WarmupCosineSchedule`: the same, from 0 on: t / w | begins at 1 / w |
| EMA | timm's `ModelEmaV3`: 10,000 steps, unless told otherwise | a fifth of the run |
| norms, recomputed | `torch.utils.checkpoint`: each batch counts twice | once |
| accumulation | the mean of the micro-batches' losses | the loss of all logits |

The average spans a fifth of the run with pretrained weights, a twentieth without.

**Measured.** On slides with very few glomeruli, at a rate of 1e-3, beginning with 1/2 costs -0.044
[-0.072, -0.015] of Dice. With another loss (Dice of each image) and all empty tiles, beginning with
the share costs -0.225 [-0.314, -0.135]. (One seed each.) On nuclei, warming up for 0.3 of the steps
instead of 0.1: -0.017 [-0.165, +0.131]; an average over a tenth of the steps instead of a
twentieth: -0.003 [-0.023, +0.018]. Neither can be told from chance ([log](../docs/log.md)).
Recomputed activations: 0.93 instead of 1.43 GiB and 6.5 instead of 8.3 images per second on a CPU
([measured](../docs/measured.md#a-training-step)).

**Source.** First prediction: Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, arXiv
1708.02002, section 3.3. Rate: Loshchilov and Hutter, *SGDR*, ICLR 2017, arXiv 1608.03983, section 3
(the cosine, with restarts). EMA: Polyak and Juditsky, *Acceleration of Stochastic Approximation by
Averaging*, SIAM J. Control Optim. 1992. Micikevicius et al., *Mixed Precision Training*, ICLR 2018,
arXiv 1710.03740, section 3. Chen et al., *Training Deep Nets with Sublinear Memory Cost*, arXiv
1604.06174, section 3. The two passes: Gao et al., *Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup*, arXiv 2101.06983, section 3.

>>> import torch
>>> from torch.nn import functional as F
>>> target = torch.tensor([1.] + 9 * [0.])  # one pixel in ten is positive
>>> for p in (0.5, 0.1):  # the first prediction
...     bias = torch.tensor(p).logit().requires_grad_()
...     F.binary_cross_entropy_with_logits(bias.expand(10), target).backward()
...     print(f"{bias.grad.item():.3f}")
0.400
0.000
>>> gradient = torch.tensor(1e-8)
>>> gradient.half().item(), f"{(2**16 * gradient).half().float() / 2**16:.2e}"  # 16 bits, scaled
(0.0, '1.00e-08')

**Exercises.**
1. *By hand.* A weight was 0 for a long time and jumps to 1. How many steps later does its average
   first exceed 1/2, if decay is 0.9? And if an average spans a fifth of 600 steps?
2. *Break it.* In a copy of this file, my_training.py, replace
   `norm.momentum, norm.num_batches_tracked = 0.0, None` by `pass`. Predict, then run:
   which tests fail?
3. *Write it.* `EMA(net, decay)`: a class with `net`, the averaged copy, and a method `update`.
   `python -m pytest tests/test_training.py --mine my_training.py` grades it, and the copy, too.

Next: `minseg.tiling`, the way back from tiles to the whole slide.

**Answers.**
1. After n steps it is 1 - decay^n: 7 steps, and with decay = 1 - 1/120, 83.
2. `test_recomputed_activations_change_memory_and_nothing_else` and
   `test_dice_over_a_batch_in_parts_has_the_gradient_of_all_logits_together`: what is run twice is
   counted twice in the running means and variances.

>>> from torch import nn
>>> from minseg.training import EMA
>>> for decay in (0.9, 1 - 1 / 120):
...     net, steps = nn.Conv2d(1, 1, 1, bias=False), 0
...     ema = EMA(net.requires_grad_(False), decay)
...     _ = ema.net.weight.zero_(), net.weight.fill_(1)
...     while ema.net.weight <= 1 / 2:
...         ema.update()
...         steps += 1
...     print(steps)
7
83
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


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16, and PyTorch uses them."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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

    random = torch.cuda if next(forward.parameters()).is_cuda else torch.random
    batches, states, held = [], [], []
    with torch.no_grad(), _uncounted(forward):  # these batches do not count twice
        for images, targets in micro_batches:
            batches.append((images, targets))
            states.append(random.get_rng_state())
            held.append(logits_of(images))
    leaves = [[logits.requires_grad_() for logits in scales] for scales in held]
    whole = [join(torch.cat(parts)) for parts in zip(*leaves)]  # `join`: see minseg.processes
    targets = join(torch.cat([targets for _, targets in batches]))
    value = deep_supervision_loss(loss, whole, targets)
    scaler.scale(value).backward()  # as far as the leaves: the networks' graphs are gone
    for (images, _), state, scales in zip(batches, states, leaves):
        # Deep supervision gives the coarsest map the weight 0: it has no gradient.
        used = [k for k, leaf in enumerate(scales) if leaf.grad is not None]
        random.set_rng_state(state)  # draws the same random numbers as the first pass
        logits = logits_of(images)
        torch.autograd.backward([logits[k] for k in used], [scales[k].grad for k in used])
    return value.detach() / world()  # each process returns its share


class EMA:
    """An exponential moving average of everything that a network learns. `net` is a copy of the
    network that needs no gradients; its weights and batch norm statistics are averages over roughly
    the last 1 / (1 - decay) steps.

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
