"""# What goes on around the training loop

A run has to be saved and resumed, to show its progress, to write a log, to stop when asked, and to
notice losses that are not finite. All this is here, because in `train.py` it would hide the few
lines that train.
"""

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.atomic import lock
from ..processes import RunningStatistics, any_process, rank, world
from ..training import EMA, seeded
from .checkpoint import restore, write_checkpoint
from .errors import Stopped, warn, whole_hundredths
from .report import Progress
from .scores import save_log
from .tiles import Tiles

SAVE_EVERY, SAVE_AFTER_EPOCH = 300, 30  # seconds since the last save, within and after an epoch
LOOK_EVERY = 50  # steps
MOST_SKIPPED = 20  # as many skipped steps in a row end the run


class Run:
    """A training run as the loop of `train.py` sees it: the number of the current step, and what to
    call after each step and each epoch.

        with Run(...) as run:
            for epoch in range(run.epoch, plan.epochs):
                for numbers_of_step in run.remaining(tile numbers of the epoch):
                    ...
                    run.after_step(loss, lr, numbers_of_step)
                run.after_epoch(dice)

    - It counts: `step` is the number of steps done, `epoch` the number of epochs done.
    - It saves: `resume.pt` is written after each epoch, unless the last one is younger than half a
      minute, every five minutes in between, and after the last step; also before the first step,
      so that a full disk is noticed then. It holds the states of network, EMA, optimiser and loss
      scaler, and the counts.
    - It resumes: with `--resume` it restores the states, and `remaining` leaves out the steps that
      are done. All random numbers follow from the seed and the number of the step, so on a CPU the
      rest of the run is the same, to the bit, as if it had never been interrupted.
    - It stops: inside the `with` block, Ctrl-C or SIGTERM lets the current step (or the scoring
      after an epoch) finish, saves, and raises `Stopped`.
    - It watches: a loss or a weight that is not finite raises FloatingPointError before the last
      good `resume.pt` is overwritten.
    - It reports: it shows the progress with the time left, and writes log.csv and curves.png.
    """

    def __init__(self, args: argparse.Namespace, plan: Any, tiles: Tiles, folder: Path,
                 net: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer,
                 scaler: torch.amp.GradScaler):
        self.args, self.plan, self.tiles, self.folder = args, plan, tiles, folder
        self.ema, self.scaler, self.step, self.accumulate = ema, scaler, 0, 1
        self.states: dict[str, Any] = {"net": net, "ema": ema.net, "optimizer": optimizer,
                                       "scaler": scaler}
        self.rows: list[dict] = []  # the rows of log.csv, one for each epoch that is done
        self.loss_sum = torch.zeros((), device=args.device)  # over the steps of this epoch
        self.seconds_before = 0.0  # the time spent before the run was resumed
        if args.resume and (saved := restore(folder / "resume.pt", self.states, tiles.mask_area,
                                             plan.steps_per_epoch)):
            self.step, self.rows = saved["step"], saved["rows"]
            self.loss_sum += saved["loss_sum"]
            self.seconds_before = saved["seconds"]
            text = "is closed" if args.close else "goes on"
            print(f"{folder}: {text} after step {self.step} of {plan.steps}, in epoch "
                  f"{min(self.epoch + 1, plan.epochs)} of {plan.epochs}", flush=True)
            if args.close:  # no step is missing any more
                plan.steps = self.step
                plan.epochs = math.ceil(self.step / plan.steps_per_epoch)
        elif args.resume:
            print(f"{folder}: there is no resume.pt yet: begins with the first step", flush=True)
        self.start = self.last_save = time.monotonic()
        self.statistics = RunningStatistics(net)
        self.watch = Watch(tiles.describe)
        self.progress = Progress(plan.steps, f"training {folder.name}", self.step)
        self.signals = stop_when_asked()
        if not self.step:
            self.save()

    @property
    def epoch(self) -> int:
        """The number of epochs done."""
        return len(self.rows)

    def __enter__(self) -> "Run":
        self.stop = self.signals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.signals.__exit__(*error)

    def remaining(self, numbers: Tensor) -> Tensor:
        """The tile numbers of an epoch, (steps, accumulate, batch), without steps that are done
        already or beyond the end of the run."""
        self.accumulate = numbers.shape[1]
        numbers = numbers[self.step - self.epoch * self.plan.steps_per_epoch :]
        return numbers[: self.plan.steps - self.step]

    def random(self, k: int) -> torch.Generator:
        """The random numbers of micro-batch k of this step. They follow from its number in the run:
        whoever computes it, and however often the run is resumed, draws the same. Also seeds
        stochastic depth."""
        number = self.step * self.accumulate + k
        torch.manual_seed(seeded(self.args.seed, "depth", number).initial_seed())
        return seeded(self.args.seed, "step", number)

    def after_step(self, loss: Tensor, lr: float, numbers_of_step: Tensor) -> None:
        """To be called after each step with its loss (a tensor on the device), its learning rate,
        and its tile numbers, (accumulate, batch)."""
        self.loss_sum += loss
        self.watch.add(self.step, loss, self.scaler, lr, numbers_of_step)
        self.step += 1
        self.share_stop()
        if self.step % self.plan.steps_per_epoch == 0:
            self.check()  # scoring takes minutes, which a broken network would waste
        last = self.step == self.plan.steps
        within = self.step % self.plan.steps_per_epoch and not last
        # The trained network is saved before anything else can fail. After an epoch, `after_epoch`
        # saves and stops.
        if last or (within and (self.stop.is_set()
                                or time.monotonic() - self.last_save > SAVE_EVERY)):
            self.save()
        if within:
            self.stop_if_asked(f"after step {self.step} of {self.plan.steps}")
        self.progress.step(text=f"epoch {self.epoch + 1}/{self.plan.epochs}")

    def after_epoch(self, held_out_dice: float) -> None:
        """To be called after each epoch. Writes the log and, now and then, resume.pt."""
        self.share_stop()
        steps = self.step - self.epoch * self.plan.steps_per_epoch
        seconds = self.elapsed() - sum(row["seconds"] for row in self.rows)
        stage_of_last_step = 2 if self.step > self.plan.first_stage_steps else 1
        row = {"epoch": self.epoch + 1, "steps": self.step, "stage": stage_of_last_step,
               "loss": round(self.loss_sum.item() / steps, 5),
               "held_out_dice": round(held_out_dice, 5), "seconds": round(seconds, 1)}
        self.rows.append(row)
        self.loss_sum.zero_()
        self.progress.say("epoch {epoch}  loss {loss:.4f}  held-out Dice {held_out_dice:.4f}  "
                          "{seconds} s".format(**row))
        losses = self.args.loss + (f", then {self.args.then}" if self.args.then else "")
        save_log(self.folder, self.rows, f"{self.args.encoder}, {losses}, {self.folder}", losses)
        if self.stop.is_set() or time.monotonic() - self.last_save >= SAVE_AFTER_EPOCH:
            self.save()
        self.stop_if_asked(f"after epoch {self.epoch} of {self.plan.epochs}")

    def elapsed(self) -> float:
        """Seconds of training, including those before the run was resumed."""
        return self.seconds_before + time.monotonic() - self.start

    def check(self) -> None:
        """FloatingPointError if a loss or a value in the averaged network is not finite."""
        average = self.ema.net.state_dict().values()
        self.watch.check([value for value in average if value.is_floating_point()])

    def save(self) -> None:
        """Writes resume.pt, unless something in it is not finite."""
        self.check()
        self.last_save = time.monotonic()
        if rank():
            return
        path = self.folder / "resume.pt"
        try:
            write_checkpoint(path, step=self.step, rows=self.rows, loss_sum=self.loss_sum.item(),
                             steps_per_epoch=self.plan.steps_per_epoch,
                             mask_area=self.tiles.mask_area, seconds=self.elapsed(),
                             **{name: saved.state_dict() for name, saved in self.states.items()})
        except OSError as error:
            if self.step < self.plan.steps:
                raise  # the resume.pt before it is still there
            warn(f"{path}: {error.strerror}: goes on without it, since model.pt is smaller")
            path.unlink(missing_ok=True)  # makes room

    def share_stop(self) -> None:
        """Whoever of the processes was asked to stop, all of them stop at the same step."""
        if any_process(self.stop.is_set()):
            self.stop.set()

    def stop_if_asked(self, where: str) -> None:
        """Raises `Stopped` if Ctrl-C or SIGTERM has arrived."""
        if self.stop.is_set():
            raise Stopped(where, whole_hundredths(self.step / self.plan.steps_per_epoch))


class Watch:
    """Finds losses that are not finite, and too many skipped steps.

    With float16, `GradScaler` skips a step whose gradients overflow and halves the loss scale. Now
    and then this is normal. But a network that has diverged overflows at every scale: the scale
    falls at each step, no step changes a weight, and the loss can stay finite. So `MOST_SKIPPED`
    falls of the scale in a row count as a failure, too.

    Losses and scales stay on the device: reading each one would make the program wait for the GPU
    at every step. Every `LOOK_EVERY` steps they are read together. `describe` names the tiles of a
    step, for the message."""

    def __init__(self, describe: Callable[[Sequence[int]], str]):
        self.describe = describe
        self.unseen: list[tuple[int, Tensor, float, Tensor]] = []
        self.last_step, self.skipped, self.scale = 0, 0, 0.0

    def add(self, step: int, loss: Tensor, scaler: torch.amp.GradScaler, lr: float,
            numbers_of_step: Tensor) -> None:
        """Adds a step, and checks the steps added so far once there are `LOOK_EVERY` of them."""
        self.last_step = step
        # Scaling a 1 gives the scale as a tensor on the device; get_scale() would wait for it.
        scale = scaler.scale(torch.ones_like(loss))
        self.unseen.append((step, torch.stack([loss, scale]), lr, numbers_of_step))
        if len(self.unseen) >= LOOK_EVERY:
            self.check()

    def check(self, weights: Sequence[Tensor] = ()) -> None:
        """FloatingPointError if a loss or one of `weights` is not finite, or if too many steps in a
        row were skipped. To be called before anything is saved."""
        steps, self.unseen = self.unseen, []
        values = torch.stack([pair for _, pair, _, _ in steps]).tolist() if steps else []
        for (step, _, lr, numbers_of_step), (loss, scale) in zip(steps, values):
            self.skipped = self.skipped + 1 if scale < self.scale else 0
            self.scale = scale
            if math.isfinite(loss) and self.skipped < MOST_SKIPPED:
                continue
            failure = (f"{MOST_SKIPPED} steps in a row had gradients too large for 16 bits"
                       if self.skipped >= MOST_SKIPPED else f"the loss is {loss}")
            tiles = self.describe(numbers_of_step.flatten().tolist())
            raise FloatingPointError(f"step {step}: {failure}; learning rate {lr:.3g}, tiles "
                                     f"{tiles}")
        if weights and not torch.stack([w.isfinite().all() for w in weights]).all():
            raise FloatingPointError(f"step {self.last_step}: the weights are no longer finite")


@contextmanager
def stop_when_asked() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM sets the event, so that the loop can finish its step and save. It
    also restores the usual handlers, so that a second one ends the program immediately."""
    asked = threading.Event()
    handlers: dict[int, Any] = {}

    def on_signal(number, frame):
        asked.set()
        if rank():
            return
        if world() == 1:  # torchrun passes on the same Ctrl-C, and ends processes that do not stop
            for number, handler in handlers.items():
                signal.signal(number, handler)
        with suppress(OSError, RuntimeError):  # Ctrl-C also ends a program that stderr is piped to
            print("\nstopping after this step (press Ctrl-C again to stop immediately)",
                  file=sys.stderr, flush=True)

    if threading.current_thread() is threading.main_thread():
        handlers.update({number: signal.signal(number, on_signal)
                         for number in (signal.SIGINT, signal.SIGTERM)})
    try:
        yield asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def claim_fold(folder: Path, resume: bool) -> Iterator[bool]:
    """`claim`, by the first process for all."""
    with claim(folder, resume) if rank() == 0 else nullcontext(False) as claimed:
        yield any_process(claimed)


@contextmanager
def claim(folder: Path, resume: bool) -> Iterator[bool]:
    """Makes a fold's folder and locks it, since several processes can train the folds of one run.
    Yields whether this process may train the fold. If not, prints why: the fold is complete, it was
    interrupted and `resume` is False, or another process is training it. A complete fold needs no
    resume.pt any more, so it is deleted."""
    model, resume_file = folder / "model.pt", folder / "resume.pt"
    reason = None
    if model.exists():
        reason = "is complete already"
        if resume_file.exists():
            resume_file.unlink()
    else:
        try:
            folder.mkdir(exist_ok=resume)
        except FileExistsError:
            reason = "is unfinished: if no other process is training it, add --resume"
    if reason:
        print(f"{folder}: {reason}")
        yield False
        return
    with locked(folder) as free:
        if not free:
            print(f"{folder}: another process is training it")
        yield free
        if free and model.exists():
            resume_file.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Locks the file .lock in a folder, and yields whether that succeeded: False if another process
    holds the lock. The system releases a lock when its process ends, even if it is killed. On
    systems without such locks it always yields True."""
    with open(folder / ".lock", "a+b") as file:
        yield lock(file) is not False
