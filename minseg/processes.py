"""# Several processes, one run

**Idea.** `torchrun` starts the same program P times, each with a GPU of its own or on a machine of
its own. A run is defined by its options. How many processes compute it changes the time, and the
result only by rounding: where a process has several micro-batches, gradients are added up in
another order, and over many steps that grows, as rounding does on another device.

A step has A micro-batches (`--accumulate`), numbered through the whole run. Process p takes A / P
of them in a row, and computes the gradient of their share of the loss. All random numbers of a
micro-batch, augmentation and stochastic depth, follow from the seed and its number. Three things
are then the same in all processes, as if one had computed them:

    gradient   = sum over the processes of their gradients, once per step
    loss       = the same sum; Dice over the batch needs the logits of all (`join`)
    statistics : batch norm's running mean r moves with each micro-batch, r <- (1 - q) r + q b.
                 After a step, r_new = (1 - q)^A r + sum_p (1 - q)^((P - 1 - p) A/P) c_p,
                 where c_p = r_p - (1 - q)^(A/P) r is what process p has added to it

So weights, optimiser and EMA never differ, and any process could save them; the first one does. It
also cuts slides, writes logs and scores. Held-out slides are divided among all.

**Shapes.** Nothing changes: each process sees batches (N, C, H, W), only fewer of them.

| what | DistributedDataParallel | here |
|---|---|---|
| gradient | mean, sent while the backward pass runs | sum, sent after it |
| `--accumulate` | within each process | divided among the processes |
| layers without gradient (deep supervision) | an error, or a flag | left out |
| running statistics | those of the first process | as of all micro-batches in order |
| Dice over the batch | over the part of each process | over the whole batch |

DDP hides the time that gradients travel behind the backward pass. This keeps the whole exchange in
one line of `training_step`.

**Source.** Goyal et al., *Accurate, Large Minibatch SGD*, arXiv 1706.02677, section 2.3 (what goes
wrong between processes); the PyTorch documentation of `torch.distributed` and `torchrun`.

>>> from minseg.processes import rank, share, world
>>> rank(), world(), share(4)  # without torchrun, all four micro-batches are ours
(0, 1, slice(0, 4, None))
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_alone = False  # while the first process does something that the others wait for


def world() -> int:
    """The number of processes."""
    there = dist.is_available() and dist.is_initialized() and not _alone
    return dist.get_world_size() if there else 1


def rank() -> int:
    """The number of this process, counted from 0."""
    return dist.get_rank() if world() > 1 else 0


def start(quiet: bool = True) -> None:
    """Joins the processes that torchrun has started, if it has. With `quiet`, only the first one
    goes on to write to stdout."""
    # Other launchers set WORLD_SIZE, too, for programs that have nothing to exchange.
    if not (dist.is_available() and dist.is_torchelastic_launched()) or dist.is_initialized():
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The first process may cut slides for hours while the others wait.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=timedelta(days=7))
    atexit.register(dist.destroy_process_group)
    if quiet and rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def exchange(what: Callable, *arguments: Any) -> None:
    """Calls a function of `torch.distributed`. If another process has ended, so does this one, and
    the first one says so."""
    try:
        what(*arguments)
    except RuntimeError:  # gloo and nccl have no errors of their own
        if not rank():
            print(f"{Path(sys.argv[0]).name}: another process of this run has ended: start it "
                  "again (train.py: with --resume)", file=sys.stderr)
        sys.exit(1)


def add_up(values: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if world() > 1:
        exchange(dist.all_reduce, values)
    return values


def any_process(condition: bool) -> bool:
    """Whether the condition holds in any process. Each has to ask."""
    return add_up(torch.tensor(float(condition))).item() > 0


def gather(value: Any) -> list[Any]:
    """What each process calls this with, in order of their ranks."""
    found = [value] * world()
    if world() > 1:
        exchange(dist.all_gather_object, found, value)
    return found


def join(values: Tensor) -> Tensor:
    """The batches (N, ...) of all processes, one after another: (P N, ...). Gradients reach this
    process's own part."""
    if world() == 1:
        return values
    parts = [torch.empty_like(values, dtype=torch.float32) for _ in range(world())]
    exchange(dist.all_gather, parts, values.detach().float().contiguous())
    return torch.cat([part.to(values.dtype) if i != rank() else values
                      for i, part in enumerate(parts)])


def by_first(function: Callable[..., None]) -> Callable[..., None]:
    """`function`, done by the first process alone. The others wait until it is done."""
    @wraps(function)
    def first(*args: Any, **options: Any) -> None:
        global _alone
        if rank() == 0:
            before, _alone = _alone, True
            try:
                function(*args, **options)
            finally:
                _alone = before
        any_process(False)

    return first


@contextmanager
def first_then_others() -> Iterator[None]:
    """The block is run by the first process, then by all others, which find what it has written
    and need not say anything again. It ends in all of them together."""
    if rank():
        any_process(False)
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            yield
    else:
        yield
        any_process(False)
    any_process(False)


def share(count: int) -> slice:
    """Which of the `count` micro-batches of a step are this process's."""
    mine = count // world()
    return slice(rank() * mine, (rank() + 1) * mine)


def divide(things: Sequence, answers: Callable[[Any], Any]) -> list:
    """`answers` to each of `things`, which are divided among the processes, in their order."""
    mine = {i: answers(things[i]) for i in range(rank(), len(things), world())}
    all_answers = {i: answer for found in gather(mine) for i, answer in found.items()}
    return [all_answers[i] for i in range(len(things))]


def add_gradients(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Adds up the gradients over the processes, in place, and the loss, which is returned."""
    if world() == 1:
        return loss
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values = [p.grad for p in parameters if p.grad is not None] + [loss]
    flat = add_up(torch.cat([value.detach().flatten() for value in values]))
    for value, part in zip(values, flat.split([value.numel() for value in values])):
        value.copy_(part.view_as(value))
    return loss


class RunningStatistics:
    """Keeps batch norm's running statistics of a network the same in all processes. `combine` is to
    be called after each step."""

    def __init__(self, net: nn.Module):
        self.norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        self.values = [value for m in self.norms for value in (m.running_mean, m.running_var)
                       if value is not None]
        self.before = self.flat()

    def flat(self) -> Tensor:
        """All statistics in one row; none of them without torchrun."""
        return torch.cat([value.flatten() for value in self.values]) if world() > 1 else Tensor()

    def combine(self, micro_batches: int) -> None:
        """`micro_batches`: those of the whole step, A."""
        if world() == 1:
            return
        mine = micro_batches // world()
        keep = 1 - (self.norms[0].momentum or 0.0)
        added = (self.flat() - keep**mine * self.before) * keep**((world() - 1 - rank()) * mine)
        self.before = keep**micro_batches * self.before + add_up(added)
        for value, part in zip(self.values, self.before.split([v.numel() for v in self.values])):
            value.copy_(part)
        for norm in self.norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += micro_batches - mine
