"""# A training step that is fast and small, and still the same mathematics

- **Mixed precision.** Convolutions in 16 bits, losses, norms' statistics and weights in 32.
  bfloat16 has float32's range. float16 has not: small gradients would vanish, so the loss is
  multiplied by a large number before the backward pass and the gradients divided by it after; where
  one is then infinite, the step is skipped and the number halved (`torch.amp.GradScaler`).
- **Recomputed activations.** The backward pass wants every map of the forward pass. Keep only each
  block's input, and compute the block once more when its turn comes: a third more work for a
  fraction of the memory. Batch norm must not count the same batch twice.
- **Averaged weights.** Every step is pulled about by its own few tiles. The mean of the weights of
  the last steps lies closer to where they all point, costs one addition, and is what is scored and
  kept.
- **Nobody waits.** Asking the device for a loss's value stops everything until it is known. So
  values stay there, and are looked at once in `EVERY` steps.

**Source.** Micikevicius et al., *Mixed Precision Training*, ICLR 2018, arXiv 1710.03740; Chen et
al., *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174; Polyak and Juditsky,
*Acceleration of Stochastic Approximation by Averaging*, SIAM J. Control Optim. 1992.
"""

import argparse
import copy
import hashlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

EVERY = 50  # steps
SKIPPED = 20  # steps in a row


def seeded(*what: object) -> torch.Generator:
    """A generator that depends on `what` alone: (seed, "step", 17) gives the same numbers in a run
    that was interrupted as in one that was not, and there is no state to keep."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def half(device: str | torch.device) -> torch.dtype:
    """The 16-bit numbers to use: bfloat16, but float16 on a GPU that only emulates bfloat16."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(False):
        return torch.float16
    return torch.bfloat16


def blocks(net: nn.Module) -> list[nn.Module]:
    """Those of a `UNet`'s encoder and of its decoder."""
    return [*net.encoder.blocks, net.block4, net.block3, net.block2, net.block1, net.block0]


def recompute_activations(net: nn.Module) -> None:
    """From now on the blocks of a `UNet` keep their inputs only."""
    for block in blocks(net):
        block.forward = partial(_recomputed, type(block).forward, block)


def _recomputed(forward: Callable, block: nn.Module, *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(block, *inputs)
    if torch.compiler.is_compiling():  # the compiler itself moves the norms' updates out
        return checkpoint(forward, block, *inputs, use_reentrant=False)
    return checkpoint(forward, block, *inputs, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _uncounted(block)))


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's statistics, but do not remember them."""
    norms = [(m, m.momentum, m.num_batches_tracked) for m in block.modules()
             if isinstance(m, nn.BatchNorm2d)]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count


class Average:
    """`net`, a copy of a network whose every number is a running mean of the network's: of all that
    it has been, the last 1 / (1 - decay) steps count most. Batch norm's statistics included."""

    def __init__(self, net: nn.Module, decay: float):
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.floats, self._now = ([v for v in model.state_dict().values() if v.is_floating_point()]
                                  for model in (self.net, net))
        self._update = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """To be called after each step."""
        self._update(self.floats, self._now, None)


class Watch:
    """Losses and loss scales, left on the device and looked at now and then. `describe` names the
    tiles of a batch, for the message."""

    def __init__(self, describe: Callable[[Sequence[int]], str]):
        self.describe, self.seen = describe, []
        self.last, self.skipped, self.scale = 0, 0, 0.0

    def add(self, step: int, loss: Tensor, scaler: torch.amp.GradScaler, rate: float,
            tiles: Sequence[Sequence[int]]) -> None:
        """Remembers a step; looks when `EVERY` have come together."""
        self.last = step
        scale = scaler.scale(torch.ones_like(loss))  # itself, without asking the device
        self.seen.append((step, torch.stack([loss, scale]), rate, tiles))
        if len(self.seen) >= EVERY:
            self.check()

    def check(self, weights: Sequence[Tensor] = ()) -> None:
        """FloatingPointError where a loss or one of `weights` is not finite, or too many steps in a
        row were skipped. To be called before anything is saved."""
        seen, self.seen = self.seen, []
        values = torch.stack([pair for _, pair, _, _ in seen]).tolist() if seen else []
        for (step, _, rate, tiles), (loss, scale) in zip(seen, values):
            self.skipped = self.skipped + 1 if scale < self.scale else 0
            self.scale = scale
            if abs(loss) < float("inf") and self.skipped < SKIPPED:  # false for NaN, too
                continue
            what = (f"{SKIPPED} steps in a row had gradients beyond 16 bits"
                    if self.skipped >= SKIPPED else f"the loss is {loss}")
            raise FloatingPointError(f"step {step}: {what}; learning rate {rate:.3g}, tiles "
                                     + self.describe([i for part in tiles for i in part]))
        if not all(weight.isfinite().all() for weight in weights):
            raise FloatingPointError(f"step {self.last}: the weights are no longer finite")


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch or Python raises when there is no memory left."""
    words = "can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or any(word in str(error) for word in words)


class Stopped(Exception):
    """Someone asked to stop; what was done is saved."""


def what_to_do(error: Exception, args: argparse.Namespace, again: str) -> str | None:
    """What to tell who trains: what went wrong, and the remedy. `again` is the command's options.
    None for what no one foresaw."""
    if isinstance(error, Stopped):
        again = again.removesuffix(" --resume")
        return f"stopped {error}; go on with\n    python train.py {again} --resume"
    if isinstance(error, FloatingPointError):
        return (f"{error}: the last good checkpoint, if there is one, goes on with --resume and a "
                "lower --lr")
    if out_of_memory(error):
        return (f"out of memory on {args.device}: add --checkpoint-activations and go on with "
                f"--resume, or, in another --out, lower --batch {args.batch} (and raise "
                "--accumulate) or --tile")
    return str(error) if isinstance(error, (ValueError, OSError)) else None


@contextmanager
def stop_when_asked() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, and the loop ends in its own time; a second one ends it at
    once."""
    asked, before = threading.Event(), {}

    def ask(number, frame):
        asked.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(OSError, RuntimeError):  # who reads it may have been stopped as well
            print("\nstopping after this step (once more: at once)", file=sys.stderr, flush=True)

    if threading.current_thread() is threading.main_thread():
        before.update({n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder for itself: by a lock on the file .lock in it, which the
    system opens when the process ends, however it ends. Where there are no such locks, always."""
    with open(folder / ".lock", "a+b") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        except (ImportError, OSError):  # Windows; a file system without locks
            mine = True
        yield mine
